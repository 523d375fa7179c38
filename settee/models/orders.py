"""The models of one job: what it may bring, what its workflow needs, and the wait for all of it.

No job may take the name of one of the worker's models: by its name alone ComfyUI would find the job's file from then
on, for every later job. So the name counts, and not the place: a file in `unet` hides one in `diffusion_models`, and
one in the models folder hides the network volume's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from settee.base.errors import InvalidRequest, JobCanceled, JobTimeout, SetteeError, StagingError
from settee.base.job import Cancel
from settee.base.settings import Settings
from settee.comfyui.model_folders import name_of
from settee.comfyui.workflow import Problem, Workflow
from settee.models.entry import ModelEntry, S3Object
from settee.models.model_store import ModelStore
from settee.models.placing import Placing
from settee.models.required import Named, named_models, wanted
from settee.models.sources import volume_file

if TYPE_CHECKING:
    from settee.engine.request import Bucket

#: A cancel token, progress and a download's end are looked at this often: they cannot be waited for together, and a
#: job's progress is reported about as often anyway.
_POLL_S = 0.1


def read_ahead(store: ModelStore, named: Iterable[Named]) -> None:
    """Have existing files that these names mean read into the page cache."""
    roots = (store.settings.models_folder, *map(Path, store.settings.models_extra_dirs))
    for item in named:
        for folder in item.folders:
            name = Path(folder, item.value)
            if name.is_absolute() or ".." in name.parts:
                continue
            # Not Path.is_file, which raises unexpected errors: a name may be too long for the disk.
            path = next((root / name for root in roots if os.path.isfile(root / name)), None)
            if path is not None:
                store.read_ahead(path)


@dataclass(eq=False)
class Order:
    """The models of one job, from its arrival to its end. A context manager: its end lets them go."""

    _store: ModelStore
    #: All that could supply this job: the worker's entries and its own.
    entries: Sequence[ModelEntry]
    #: The paths of models that the job brought.
    _own: Collection[str]
    #: Those are overwritten at its end.
    _wipes: bool
    _placings: Sequence[Placing]
    #: Those that are waited for.
    _awaited: Sequence[Placing]
    _used: ExitStack = field(default_factory=ExitStack)

    @classmethod
    def begin(
        cls,
        store: ModelStore,
        workflow: Workflow,
        own: Sequence[ModelEntry] = (),
        bucket: Bucket | None = None,
        *,
        is_sealed: bool = False,
    ) -> Order:
        """Begin to place the models of a workflow and its job. Raises InvalidRequest (name clashes).

        ``bucket`` is the job's s3Config. Models that a sealed job brings are wiped when it ends.
        """
        if own and not store.has_folder:
            raise InvalidRequest(
                "this worker cannot place models: set MODELS_DIR on it, the models folder of the ComfyUI at COMFY_URL"
            )
        own = checked(own, store.entries, store.settings, bucket)
        own = [replace(entry, sealed=is_sealed and entry.from_job) for entry in own]
        read_ahead(store, named_models(workflow))
        known = [*store.entries, *own]
        mine = {str(entry.path): entry for entry in own}
        needed = mine | {path: entry for path, entry in wanted(workflow, known).items() if path not in mine}
        # Before the first of them begins to make room for itself.
        store.tools.budget.keep(list(needed))
        placings = [store.begin(entry, urgent=True) for entry in needed.values()]
        return cls(store, known, mine.keys(), is_sealed, placings, placings)

    def narrow(self, workflow: Workflow) -> None:
        """Wait for the job's own models and those that these nodes name: no other will be used."""
        needed = self._own | wanted(workflow, self.entries).keys()
        self._awaited = [one for one in self._placings if str(one.entry.path) in needed]

    def wait(self, cancel: Cancel, deadline: float, notify: Callable[[str], None]) -> bool:
        """Return when all are in place, and in use by this job until its end.

        True when a name now holds another file than ComfyUI may have loaded. Raises the failure of a placing,
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
        entries = [part.entry for one in self._awaited for part in one.parts]
        gone = self._used.enter_context(self._store.tools.folder.use(entries))
        if gone:
            raise StagingError(f"the model {gone[0].path} was removed while the job waited for another", retryable=True)
        return self._store.has_changed(self._awaited)

    def forgotten(self) -> None:
        """ComfyUI has dropped all that it kept. Until then every job's :meth:`wait` returns True."""
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


# --- what a job brings ---------------------------------------------------------------------------------------


def checked(
    own: Sequence[ModelEntry], entries: Iterable[ModelEntry], settings: Settings, bucket: Bucket | None
) -> list[ModelEntry]:
    """Return a job's entries, those that the worker has anyway as the worker's own.

    Raises InvalidRequest with all clashes of names.
    """
    configured: dict[str, ModelEntry] = {}
    for entry in entries:
        configured.setdefault(_key(entry), entry)
    kept: dict[str, ModelEntry] = {}
    problems: list[Problem] = []
    for entry in (_at(entry, bucket) for entry in own):
        theirs = configured.get(_key(entry))
        if problem := _clash(entry, theirs or kept.get(_key(entry)), settings):
            problems.append({"path": entry.position, "problem": problem})
        elif theirs is None:
            kept[_key(entry)] = entry
        else:
            # The hash and size that the job gives must hold for it, too.
            kept[_key(entry)] = replace(theirs, sha256=theirs.sha256 or entry.sha256, size=theirs.size or entry.size)
    if problems:
        raise InvalidRequest.from_problems(problems)
    return list(kept.values())


def _key(entry: ModelEntry) -> str:
    """Some volumes do not tell case apart."""
    return name_of(entry.path).lower()


def _clash(entry: ModelEntry, other: ModelEntry | None, settings: Settings) -> str | None:
    if other is not None:
        if other.source != entry.source or (entry.sha256 and other.sha256 and entry.sha256 != other.sha256):
            return f"{entry.path} is another model on this worker: give yours another LocalName"
        return None
    if entry.sha256 is None and volume_file(entry.path, settings) is not None:
        return (
            f"{entry.path} is a model on this worker's volume: leave yours out to use that one, give its sha256 "
            "if it is the same, or give yours another LocalName"
        )
    return None


def _at(entry: ModelEntry, bucket: Bucket | None) -> ModelEntry:
    """Return the entry with its job's s3Config: equal keys at two endpoints are two files."""
    if bucket is None or not isinstance(entry.source, S3Object):
        return entry
    return replace(entry, source=replace(entry.source, endpoint=bucket.endpoint_url, config=bucket))
