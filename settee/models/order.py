"""The models of one job: waited for, in use until its end, let go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING

from settee.comfyui.workflow import Workflow
from settee.errors import JobCanceled, JobTimeout, SetteeError, StagingError
from settee.job import Cancel
from settee.models.entry import ModelEntry
from settee.models.needs import wanted
from settee.models.placing import Placing

if TYPE_CHECKING:
    from settee.models.store import ModelStore

#: A cancel token, progress and a download's end are looked at this often: they cannot be waited for together, and a
#: job's progress is told about as often anyway.
_POLL_S = 0.1


class Order:
    """The models of one job, from its arrival to its end. A context manager: its end lets them go."""

    def __init__(
        self,
        store: ModelStore,
        placings: Sequence[Placing],
        entries: Sequence[ModelEntry],
        *,
        own: Iterable[str],
        wipes: bool,
    ) -> None:
        """``own``: the paths of what the job brought. ``wipes``: that is overwritten and removed at its end."""
        self._store = store
        self._placings = placings
        self._own = set(own)
        #: Those that are waited for.
        self._awaited = placings
        #: All that could supply this job: the worker's entries and its own.
        self.entries = entries
        self._used = ExitStack()
        self._wipes = wipes

    def narrow(self, workflow: Workflow) -> None:
        """Wait for the job's own models and those that these nodes name: no other will be used."""
        needed = self._own | wanted(workflow, self.entries).keys()
        self._awaited = [one for one in self._placings if str(one.entry.path) in needed]

    def wait(self, cancel: Cancel, deadline: float, notify: Callable[[str], None]) -> bool:
        """Return when all are in place, and in use by this job until its end.

        True when a name now holds another file than ComfyUI may have loaded. Raises what placing one failed with,
        JobCanceled, or JobTimeout (``deadline`` is in ``time.monotonic()``).
        """
        while True:
            pending = []
            for placing in self._awaited:
                if isinstance(placing.outcome, SetteeError):
                    raise placing.outcome
                if placing.outcome is None:
                    pending.append(placing)
            if not pending:
                break
            if cancel.is_set():
                raise JobCanceled(cancel.reason or None)
            if time.monotonic() >= deadline:
                raise JobTimeout
            notify(_progress_of(pending))
            self._store.wait_end(pending, _POLL_S)
        gone = self._used.enter_context(
            self._store.tools.shelf.use([part.entry for one in self._awaited for part in one.parts])
        )
        if gone:
            raise StagingError(f"the model {gone[0].path} was removed while the job waited for another", retryable=True)
        return self._store.has_changed(self._awaited)

    def forgotten(self) -> None:
        """ComfyUI has dropped all that it kept. Before this is told, every job's :meth:`wait` says that it must."""
        self._store.forgotten()

    def __enter__(self) -> Order:
        return self

    def __exit__(self, *exc: object) -> None:
        self._used.close()
        self._store.leave(self._placings)
        if self._wipes:
            self._store.wipe([placing for placing in self._placings if placing.entry.from_job])


def _progress_of(pending: Sequence[Placing]) -> str:
    first = pending[0]
    done, total = first.done
    how_far = f" {100 * done / total:.0f}%" if total else (f" {done / 1e6:.0f} MB" if done else "")
    more = f" (and {len(pending) - 1} more)" if len(pending) > 1 else ""
    return f"model {first.entry.path}{how_far}{more}"
