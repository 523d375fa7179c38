"""One model on its way into the models folder: linked where the host has it, else downloaded, checked, recorded."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from settee.base.errors import DownloadFailed, SetteeError
from settee.base.settings import Settings
from settee.models.bars import amount
from settee.models.entry import ModelEntry
from settee.models.folder.budget import Budget
from settee.models.folder.file_state import FileState
from settee.models.folder.model_folder import ModelFolder
from settee.models.folder.place import taken
from settee.models.sources import Origin, addresses, linked
from settee.models.transfer.address import Address
from settee.models.transfer.scheduler import Scheduler

if TYPE_CHECKING:
    from settee.models.folder.hashing import Hashes
    from settee.s3.target import CallersBucket

log = logging.getLogger(__name__)

IN_PLACE = "in place"

#: Called with (entry, bytes in place, bytes in all or None, where from), by many threads.
Progressed = Callable[[ModelEntry, int, "int | None", str], None]


@dataclass
class Tools:
    """The parts that all placings of a worker share."""

    settings: Settings
    folder: ModelFolder
    budget: Budget
    scheduler: Scheduler

    @classmethod
    def of(cls, settings: Settings) -> Tools:
        """Return new ones for these settings."""
        folder = ModelFolder(settings.models_folder)
        return cls(settings, folder, Budget(folder, settings), Scheduler(settings.models_connections))


class Placing:
    """A model that is being placed: :meth:`at_once`, else :meth:`here`, else :meth:`fetched`."""

    def __init__(
        self,
        entry: ModelEntry,
        tools: Tools,
        on_progress: Progressed,
        bucket: CallersBucket | None = None,
        *,
        stop: threading.Event | None = None,
    ) -> None:
        self.entry = entry
        self.stop = stop or threading.Event()
        #: Bytes in place, and in all when that is known.
        self.done: tuple[int, int | None] = (0, entry.size)
        #: How it ended: words for a person, or the error. Set by the store.
        self.outcome: str | SetteeError | None = None
        #: The content of its name before it was placed.
        self.found: frozenset[object] = frozenset()
        #: Jobs that wait for it.
        self.waiting = 0
        self._tools = tools
        self._on_progress = on_progress
        self._bucket = bucket
        self._is_taken = threading.Lock()
        self._lane = tools.scheduler.lane(self.stop, entry.size)
        self._failures: list[SetteeError] = []
        #: Bytes that an earlier try had left.
        self._resumed_from: int | None = None

    @property
    def parts(self) -> tuple[Placing, ...]:
        """Return one placing for each file."""
        return (self,)

    @property
    def is_over(self) -> bool:
        """Return True if it has ended, or was given up."""
        return self.outcome is not None or self.stop.is_set()

    @property
    def urgent(self) -> bool:
        """Return True if a job waits for it: all others stand back."""
        return self._lane.urgent

    @urgent.setter
    def urgent(self, value: bool) -> None:
        for one in (self, *self.parts):
            one._lane.urgent = value

    def give_up(self) -> None:
        """Stop it. What was downloaded stays for a later try."""
        self.stop.set()
        self._tools.scheduler.update()

    # --- steps ---------------------------------------------------------------------------------------------

    def at_once(self) -> str | None:
        """Return words when it is in place already, else None. A stat and a small read."""
        self.found = self._tools.folder.content_of(self.entry)
        if self._tools.folder.state(self.entry) is not FileState.RIGHT:
            return None
        self._tools.folder.keep(self.entry)
        return IN_PLACE

    def is_for(self, entry: ModelEntry) -> bool:
        """Return True if this one's file will be the entry's too."""
        mine = self.entry
        return mine.source == entry.source and entry.sha256 in (None, mine.sha256)

    def take(self) -> bool:
        """Return True for the first caller, which is to do the steps after :meth:`at_once`."""
        return self._is_taken.acquire(blocking=False)

    def here(self) -> str | None:
        """Look for it on this host; return how it was placed, None when the host has none. Raises Stopped.

        An existing file in its place may be read through for its hash.
        """
        entry = self.entry
        is_proven = entry.size is not None or entry.sha256 is not None
        if is_proven and self._tools.folder.state(entry) is FileState.UNKNOWN and self._adopt(None, None):
            return IN_PLACE
        return self._link()

    def fetched(self) -> str:
        """Fetch it from its sources, one after another; return how. Raises SetteeError, or Stopped."""
        entry, folder = self.entry, self._tools.folder
        failures = self._failures
        for origin in addresses(entry, self._tools.settings, self._bucket):
            try:
                return self._from(origin)
            except SetteeError as error:
                log.debug("not from %s: %s", origin.label, error.code)
                failures.append(error)
        if failures and failures[-1].retryable and folder.state(entry) is FileState.UNKNOWN and self._adopt(None, None):
            name = "a job's model" if entry.from_job else entry.path
            log.warning("%s: its source does not answer; the existing file looks whole and is used", name)
            return IN_PLACE
        # The last source is the entry's own.
        last = failures[-1] if failures else DownloadFailed("no source has it", retryable=False)
        path = str(entry.path)
        message = last.message if path in last.message else f"the model {path}: {last.message}"
        raise type(last)(message, details={**last.details, "model": path}, retryable=last.retryable)

    def _adopt(self, size: int | None, sha256: str | None) -> bool:
        """Return True if the existing file proves to be the entry's; it is recorded then."""
        problem = self._tools.folder.adopt(self.entry, size=size, sha256=sha256, stop=self.stop)
        if problem is not None:
            # The name of a job's model may be private.
            level = logging.DEBUG if self.entry.from_job else logging.WARNING
            log.log(level, "%s exists already, but %s", self.entry.path, problem)
        return problem is None

    def _link(self) -> str | None:
        source = linked(self.entry, self._tools.settings)
        if source is None:
            return None
        cache = self._tools.settings.host_cache_dir
        try:
            with _mtime_changed(self._tools.folder.path_of(self.entry).parent):
                self._tools.folder.link(self.entry, source, stop=self.stop)
        except SetteeError as error:
            if self.entry.from_job and not source.is_relative_to(cache):
                raise taken(self.entry, "is another model on the worker's volume") from error
            self._failures.append(error)
            return None
        return f"linked from {'the host cache' if source.is_relative_to(cache) else 'the volume'}"

    def _from(self, origin: Origin) -> str:
        tools, entry, lane = self._tools, self.entry, self._lane
        with tools.scheduler.asking(lane):
            address = origin.ask(self.stop)
        lane.size = address.size
        self.done = (0, address.size)
        if tools.folder.state(entry) is FileState.UNKNOWN and self._adopt(address.size, address.sha256):
            return IN_PLACE
        # Another process that places the same file is waited for; it may be right by then.
        with tools.folder.claim(entry, stop=self.stop) as is_needed:
            if not is_needed:
                return IN_PLACE
            with tools.scheduler.running(lane), tools.budget.reserve(entry, address.size or 0) as grown:
                begun = time.monotonic()
                with _mtime_changed(tools.folder.path_of(entry).parent):
                    fetched = self._download(address, origin.label, grown)
                # Before its reservation ends: until then it counts as coming, from now on as existing.
                tools.folder.record(entry, size=fetched.size, sha256=fetched.sha256, xxh3=fetched.xxh3)
        took = max(time.monotonic() - begun, 1e-3)
        came = fetched.size - (self._resumed_from or 0)
        return f"downloaded from {origin.label} in {took:.1f} s ({amount(came / took)}/s)"

    def _download(self, address: Address, label: str, grown: Callable[[int], None]) -> Hashes:
        from settee.models.transfer.download import download  # most starts download nothing

        def on_progress(done: int, total: int | None) -> None:
            if self._resumed_from is None:
                self._resumed_from = done
            self.done = (done, total)
            grown(done)
            self._on_progress(self.entry, done, total, label)

        return download(
            replace(address, private=self.entry.from_job),
            self._tools.folder.path_of(self.entry),
            lane=self._lane,
            deadline=time.monotonic() + self._tools.settings.models_timeout_s,
            on_progress=on_progress,
        )


@contextmanager
def _mtime_changed(folder: Path) -> Iterator[None]:
    """Change a folder's modification time, whatever happens in it within one tick of the file system's clock.

    ComfyUI lists a folder again when that time differs (folder_paths.cached_filename_list_), and some file systems
    count in seconds: a model that came within the second of the last listing would not exist for ComfyUI.
    """
    before = _mtime_ns(folder)
    yield
    if before is not None and before == _mtime_ns(folder):
        with suppress(OSError):
            os.utime(folder, ns=(time.time_ns(), before + 2_000_000_000))


def _mtime_ns(folder: Path) -> int | None:
    try:
        return folder.stat().st_mtime_ns
    except OSError:
        return None
