"""The protocol between the engine and whatever renders: ComfyUI, or a pipeline in this process.

The engine owns the job: its slot, deadline, models, staging, delivery and wiping. A backend checks a graph, runs it and
collects what it made. All calls come from one thread, for one job at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

from settee.base.job import Artifact, Cancel, Job
from settee.base.job import Limits as Limits
from settee.models.entry import ModelEntry
from settee.staging.inputs import Staged
from settee.staging.workspace import Workspace


@dataclass(frozen=True)
class Checked:
    """A job's graph as it will run."""

    graph: dict[str, Any]
    #: The nodes that lead to an output: only what they name is loaded.
    live: dict[str, Any]
    #: All that could supply the models that it names.
    entries: Sequence[ModelEntry]
    #: Drawn for this job, by ``node.input``.
    seeds: dict[str, int] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Made:
    """The outputs of a job's nodes."""

    artifacts: list[Artifact]
    warnings: tuple[str, ...] = ()


#: Reports a step of the job that runs: its status (without one, that of before) and other fields of Progress.
Report = Callable[..., None]


class Backend(Protocol):
    """Raises a SetteeError for every way in which a job can fail; JobCanceled and JobTimeout by :class:`Limits`."""

    #: The folders that it reads and writes, wiped around every job.
    workspace: Workspace

    @property
    def unrecoverable(self) -> bool:
        """True when it cannot be brought back: only a new worker helps."""

    @property
    def restarts(self) -> int: ...

    def start(self) -> None:
        """Begin to start, and return. Raises ConfigError."""

    def wait_ready(self, timeout_s: float, cancel: Cancel | None = None) -> None: ...

    def close(self) -> None: ...

    def settle(self) -> None:
        """Return when nothing of the job before is left in its memory or history."""

    def quiet(self) -> AbstractContextManager[object]:
        """Print nothing of what it prints meanwhile: a sealed job runs."""

    def check_policy(self, job: Job) -> None:
        """Refuse what can be refused before it is ready."""

    def ready(self, limits: Limits, report: Report) -> None:
        """Return once it can run a job."""

    def check(self, job: Job, entries: Sequence[ModelEntry]) -> Checked:
        """Find everything wrong with a job's graph that costs no GPU time, a model that is missing too."""

    def take(self, job: Job, checked: Checked, staged: Sequence[Staged]) -> None:
        """Take a job's input files. Raises InvalidRequest for one that the graph loads and that did not come."""

    def free(self) -> None:
        """Drop models and caches before the next graph."""

    def execute(
        self, job: Job, checked: Checked, staged: Sequence[Staged], limits: Limits, report: Report
    ) -> Callable[[], Made]:
        """Run a graph to its end; the returned call collects what it made. When it raises, nothing of it runs on."""

    def fetch(self, artifact: Artifact) -> Iterator[bytes]:
        """Yield the bytes of an artifact without a path."""

    def end_job(self) -> None:
        """Begin to forget the job: :meth:`settle` waits for it."""
