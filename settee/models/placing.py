"""One model on its way into the models folder: linked where the host has it, else downloaded, checked, recorded."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from settee.errors import DownloadFailed, SetteeError
from settee.models.address import Address
from settee.models.bar_text import amount
from settee.models.budget import Budget
from settee.models.entry import ModelEntry
from settee.models.judging import Content, State
from settee.models.placed import Shelf
from settee.models.refusals import taken
from settee.models.sources import Origin, addresses, linked
from settee.models.sources.host_cache import sha256_of
from settee.models.transfer.gate import Gate, Lane
from settee.models.turns import Turn, Turns
from settee.request import Bucket
from settee.settings import Settings

if TYPE_CHECKING:
    from settee.models.transfer.download import Fetched

log = logging.getLogger(__name__)

#: Sources that are asked about their files at once.
_ASKING = 8
IN_PLACE = "in place"

#: Told (entry, bytes in place, bytes in all or None, where from), by many threads.
Progressed = Callable[[ModelEntry, int, "int | None", str], None]


@dataclass
class Tools:
    """What all placings of a worker share."""

    settings: Settings
    shelf: Shelf
    budget: Budget
    gate: Gate
    turns: Turns = field(default_factory=Turns)
    asking: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(_ASKING))


class Placing:
    """A model that is being placed: :meth:`at_once`, else :meth:`here`, else :meth:`fetched`."""

    def __init__(
        self,
        entry: ModelEntry,
        tools: Tools,
        on_progress: Progressed,
        bucket: Bucket | None = None,
        *,
        stop: threading.Event | None = None,
    ) -> None:
        self.entry = entry
        self.stop = stop or threading.Event()
        #: Bytes in place, and in all when that is known.
        self.done: tuple[int, int | None] = (0, entry.size)
        #: How it ended: words for a person, or the error. Set by the store.
        self.outcome: str | SetteeError | None = None
        #: What its name held before.
        self.found: Content | None = None
        #: Jobs that wait for it.
        self.waiting = 0
        self._tools = tools
        self._on_progress = on_progress
        self._bucket = bucket
        self._is_taken = threading.Lock()
        self._lane: Lane = tools.gate.lane()
        self._turn = Turn(self.stop, entry.size)
        self._trouble: list[SetteeError] = []
        #: Bytes that an earlier try had left.
        self._resumed_from: int | None = None

    @property
    def parts(self) -> tuple[Placing, ...]:
        """One for each file that is placed."""
        return (self,)

    @property
    def is_over(self) -> bool:
        """Whether it has ended, or was given up."""
        return self.outcome is not None or self.stop.is_set()

    def hurry(self, urgent: bool) -> None:
        """A job waits for it: all others stand back. Or none does any more."""
        self._lane.urgent = self._turn.urgent = urgent
        self._tools.turns.changed()

    def give_up(self) -> None:
        """Nobody wants it any more. What was downloaded stays for a later try."""
        self.stop.set()
        self._tools.turns.changed()

    # --- what it takes -------------------------------------------------------------------------------------

    def at_once(self) -> str | None:
        """Look whether it is in place; words when it is. A stat and a small read."""
        self.found = self._tools.shelf.content_of(self.entry)
        if self._tools.shelf.state(self.entry) is not State.RIGHT:
            return None
        self._tools.shelf.keep(self.entry)
        return IN_PLACE

    def is_for(self, entry: ModelEntry) -> bool:
        """Whether this one's file will be the entry's too."""
        mine = self.entry
        return mine.source == entry.source and entry.sha256 in (None, mine.sha256)

    def take(self) -> bool:
        """Whether the caller, and nobody else, is to do what comes after :meth:`at_once`."""
        return self._is_taken.acquire(blocking=False)

    def here(self) -> str | None:
        """Look for it on this host; returns how it was placed, None when it is not there. Raises Stopped.

        A file that lies in its place may be read through for its hash.
        """
        entry = self.entry
        is_proven = entry.size is not None or entry.sha256 is not None
        if is_proven and self._tools.shelf.state(entry) is State.UNKNOWN and self._adopt(None, None):
            return IN_PLACE
        return self._link()

    def fetched(self) -> str:
        """Fetch it from its sources, one after another; returns how. Raises SetteeError, or Stopped."""
        entry, shelf = self.entry, self._tools.shelf
        trouble = self._trouble
        for origin in addresses(entry, self._tools.settings, self._bucket):
            try:
                return self._from(origin)
            except SetteeError as error:
                log.debug("not from %s: %s", origin.label, error.code)
                trouble.append(error)
        if trouble and trouble[-1].retryable and shelf.state(entry) is State.UNKNOWN and self._adopt(None, None):
            name = "a job's model" if entry.from_job else entry.path
            log.warning("%s: its source does not answer; what lies there looks whole and is used", name)
            return IN_PLACE
        raise self._failure(trouble)

    def _adopt(self, size: int | None, sha256: str | None) -> bool:
        """Whether the file that lies there is the one, once somebody has looked; it is recorded then."""
        problem = self._tools.shelf.adopt(self.entry, size=size, sha256=sha256, stop=self.stop)
        if problem is not None:
            # What a job names may be private.
            level = logging.DEBUG if self.entry.from_job else logging.WARNING
            log.log(level, "%s lies there already, but %s", self.entry.path, problem)
        return problem is None

    def _link(self) -> str | None:
        source = linked(self.entry, self._tools.settings)
        if source is None:
            return None
        cache = self._tools.settings.host_cache_dir
        try:
            with _seen_to_change(self._tools.shelf.path_of(self.entry).parent):
                self._tools.shelf.link(self.entry, source, sha256=sha256_of(source), stop=self.stop)
        except SetteeError as error:
            if self.entry.from_job and not source.is_relative_to(cache):
                raise taken(self.entry, "is another model on the worker's volume") from error
            self._trouble.append(error)
            return None
        return f"linked from {'the host cache' if source.is_relative_to(cache) else 'the volume'}"

    def _from(self, origin: Origin) -> str:
        tools, entry = self._tools, self.entry
        with tools.turns.asking(self._turn), tools.asking:
            address = origin.ask(self.stop)
        self._turn.size = address.size
        self.done = (0, address.size)
        if tools.shelf.state(entry) is State.UNKNOWN and self._adopt(address.size, address.sha256):
            return IN_PLACE
        # Another process that places the same file is waited for; it may be right by then.
        with tools.shelf.claim(entry, stop=self.stop) as is_needed:
            if not is_needed:
                return IN_PLACE
            with tools.turns.taken(self._turn), tools.budget.reserve(entry, address.size or 0) as grown:
                begun = time.monotonic()
                with _seen_to_change(tools.shelf.path_of(entry).parent):
                    fetched = self._download(address, origin.label, grown)
                # Before its room is given up: until then it counts as coming, from now on as being there.
                tools.shelf.record(entry, size=fetched.size, sha256=fetched.sha256, xxh3=fetched.xxh3)
        took = max(time.monotonic() - begun, 1e-3)
        came = fetched.size - (self._resumed_from or 0)
        return f"downloaded from {origin.label} in {took:.1f} s ({amount(came / took)}/s)"

    def _download(self, address: Address, label: str, grown: Callable[[int], None]) -> Fetched:
        from settee.models.transfer.download import download  # most starts download nothing

        def on_progress(done: int, total: int | None) -> None:
            if self._resumed_from is None:
                self._resumed_from = done
            self.done = (done, total)
            grown(done)
            self._on_progress(self.entry, done, total, label)

        return download(
            replace(address, private=self.entry.from_job),
            self._tools.shelf.path_of(self.entry),
            lane=self._lane,
            stop=self.stop,
            deadline=time.monotonic() + self._tools.settings.models_timeout_s,
            on_progress=on_progress,
        )

    def _failure(self, trouble: list[SetteeError]) -> SetteeError:
        """The last source's error, which is the entry's own source, as one about this model."""
        last = trouble[-1] if trouble else DownloadFailed("no source has it", retryable=False)
        path = str(self.entry.path)
        message = last.message if path in last.message else f"the model {path}: {last.message}"
        return type(last)(message, details={**last.details, "model": path}, retryable=last.retryable)


@contextmanager
def _seen_to_change(folder: Path) -> Iterator[None]:
    """Around a change in a folder: its modification time is another one afterwards.

    ComfyUI lists a folder again when that time differs (folder_paths.cached_filename_list_), and some file systems
    count in seconds: a model that came within the second of the last look would not exist for ComfyUI.
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
