"""Finding the places in a workflow that a caller means: prompts, images, seeds and the rest. Pure; nothing is sent.

Every finding is a Change: shown first, then applied to a copy.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from settee.comfyui.graph import Place, with_values
from settee.comfyui.workflow import Workflow


@dataclass(frozen=True)
class Change:
    """One input of one node gets another value."""

    node_id: str
    input: str
    value: Any
    #: What asked for it: ``--prompt``, ``--img``, ``seed``.
    why: str


@dataclass(frozen=True)
class InputFile:
    """A file of the caller's that is sent with the job, under the name that its loader gets."""

    #: On the worker. No two files of one job share one.
    name: str
    path: Path
    #: ``image``, ``mask``, ``video`` or ``audio``.
    kind: str


@dataclass(frozen=True)
class Given:
    """A file that a caller gave, for a node by name or for the next that takes one."""

    path: Path
    #: An id or a title.
    node: str | None = None

    def __str__(self) -> str:
        return str(self.path) if self.node is None else f"{self.node}={self.path}"


def applied(workflow: Workflow, changes: Iterable[Change]) -> Workflow:
    """Return a copy with these changes; of two for the same input, the later one counts."""
    return with_values(workflow, {Place(change.node_id, change.input): change.value for change in changes})
