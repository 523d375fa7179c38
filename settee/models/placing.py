"""A model on its way into the models folder: linked where the host has it, else downloaded, checked, recorded.

An entry may mean many files of a Hugging Face repository (``org/name:*:diffusers``). A revision's files are listed
once. The list is kept with the records, so that a warm start asks no server, and every file on it is an entry of its
own: linked, downloaded, resumed, verified and removed as any other.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from settee.base.errors import DownloadFailed, ModelMissing, PayloadTooLarge, SetteeError
from settee.base.files import write_whole
from settee.base.settings import Settings
from settee.base.threads import Stopped
from settee.models.bars import amount
from settee.models.entry import HubFile, ModelEntry, identity
from settee.models.folder.budget import Budget
from settee.models.folder.file_state import FileState
from settee.models.folder.model_folder import ModelFolder
from settee.models.folder.place import relative, taken, temporary_name
from settee.models.folder.records import FOLDER
from settee.models.sources import BACKOFF, TRIES, Origin, addresses, host_cache, linked
from settee.models.sources.hugging_face import Hub
from settee.models.transfer.address import Address
from settee.models.transfer.scheduler import Lane, Scheduler
from settee.net.retry import retried

if TYPE_CHECKING:
    from settee.models.folder.checks import Hashes

log = logging.getLogger(__name__)

IN_PLACE = "in place"
#: No repository that is a model has more files.
MAX_FILES = 5000

#: Called with (entry, bytes in place, bytes in all or None, where from), by many threads.
Progressed = Callable[[ModelEntry, int, "int | None", str], None]


class Tools:
    """The parts that all placings of a worker share."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.folder = ModelFolder(settings.models_folder)
        self.budget = Budget(self.folder, settings)
        self.scheduler = Scheduler(settings.models_connections)


class Placing:
    """A model that is being placed: :meth:`at_once`, else by :meth:`place`."""

    def __init__(self, entry: ModelEntry, tools: Tools, on_progress: Progressed, lane: Lane | None = None) -> None:
        self.entry = entry
        #: Its turns, shared by the files of a repository.
        self.lane = lane or tools.scheduler.lane(size=entry.size)
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
        self._failures: list[SetteeError] = []
        #: Bytes that an earlier try had left.
        self._resumed_from: int | None = None

    @property
    def parts(self) -> tuple[Placing, ...]:
        """Return one placing for each file."""
        return (self,)

    def serves(self, entry: ModelEntry) -> bool:
        """Return True if it goes on, and its file will be the entry's too."""
        is_over = self.outcome is not None or self.lane.stop.is_set()
        return not is_over and self.entry.source == entry.source and entry.sha256 in (None, self.entry.sha256)

    def give_up(self) -> None:
        """Stop it. What was downloaded stays for a later try."""
        self.lane.stop.set()
        self._tools.scheduler.update()

    # --- steps ---------------------------------------------------------------------------------------------

    def at_once(self) -> str | None:
        """Return words when it is in place already, else None. A stat and a small read."""
        self.found = self._tools.folder.content_of(self.entry)
        if self._tools.folder.state(self.entry) is not FileState.RIGHT:
            return None
        self._tools.folder.keep(self.entry)
        return IN_PLACE

    def place(self) -> str:
        """Look for it on this host, then at its sources, one after another; return how it was placed.

        An existing file in its place may be read through for its hash. Raises SetteeError, or Stopped.
        """
        entry, failures = self.entry, self._failures
        with self._tools.scheduler.linking(self.lane):
            if how := self._here():
                return how
        for origin in addresses(entry, self._tools.settings):
            try:
                return self._from(origin)
            except SetteeError as error:
                log.debug("not from %s: %s", origin.label, error.code)
                failures.append(error)
        if failures and failures[-1].retryable and self._adopt(entry):
            name = "a job's model" if entry.from_job else entry.path
            log.warning("%s: its source does not answer; the existing file looks whole and is used", name)
            return IN_PLACE
        # The last source is the entry's own.
        last = failures[-1] if failures else DownloadFailed("no source has it", retryable=False)
        path = str(entry.path)
        message = last.message if path in last.message else f"the model {path}: {last.message}"
        raise type(last)(message, details={**last.details, "model": path}, retryable=last.retryable)

    def _adopt(self, entry: ModelEntry) -> bool:
        """Return True if a file of unknown content is there, and proves to be the entry's; it is recorded then."""
        if self._tools.folder.state(self.entry) is not FileState.UNKNOWN:
            return False
        problem = self._tools.folder.adopt(entry, stop=self.lane.stop)
        if problem is not None:
            # The name of a job's model may be private.
            level = logging.DEBUG if self.entry.from_job else logging.WARNING
            log.log(level, "%s exists already, but %s", self.entry.path, problem)
        return problem is None

    def _here(self) -> str | None:
        """Return how it was placed from this host; None when the host has none."""
        if (self.entry.size is not None or self.entry.sha256 is not None) and self._adopt(self.entry):
            return IN_PLACE
        source = linked(self.entry, self._tools.settings)
        if source is None:
            return None
        cache = self._tools.settings.host_cache_dir
        try:
            with _mtime_changed(self._tools.folder.path_of(self.entry).parent):
                self._tools.folder.link(self.entry, source, stop=self.lane.stop)
        except SetteeError as error:
            if self.entry.from_job and not source.is_relative_to(cache):
                raise taken(self.entry, "is another model on the worker's volume") from error
            self._failures.append(error)
            return None
        return f"linked from {'the host cache' if source.is_relative_to(cache) else 'the volume'}"

    def _from(self, origin: Origin) -> str:
        tools, entry, lane = self._tools, self.entry, self.lane
        with tools.scheduler.asking(lane):
            address = origin.ask(stop=self.lane.stop)
        lane.size = address.size
        self.done = (0, address.size)
        if self._adopt(replace(entry, size=entry.size or address.size, sha256=entry.sha256 or address.sha256)):
            return IN_PLACE
        # Another process that places the same file is waited for; it may be right by then.
        with tools.folder.claim(entry, stop=self.lane.stop) as is_needed:
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
            address,
            self._tools.folder.path_of(self.entry),
            lane=self.lane,
            deadline=time.monotonic() + self._tools.settings.models_timeout_s,
            on_progress=on_progress,
        )


class Repository(Placing):
    """Places the files of a repository, one after another: each has several connections of its own."""

    def __init__(self, entry: ModelEntry, tools: Tools, on_progress: Progressed) -> None:
        super().__init__(entry, tools, on_progress)
        self._files: tuple[Placing, ...] = ()
        self._bytes: dict[str, int] = {}

    @property
    def parts(self) -> tuple[Placing, ...]:
        return self._files

    def at_once(self) -> str | None:
        entries = known_files(self.entry, self._tools.folder)
        if entries is None:
            return None
        self._hold(entries)
        return IN_PLACE if all(part.at_once() for part in self._files) else None

    def place(self) -> str:
        if not self._files:
            self._hold(listed(self.entry, self._tools.settings, self._tools.folder, self.lane.stop))
        ways: Counter[str] = Counter()
        for part in self._files:
            if self.lane.stop.is_set():
                raise Stopped
            how = part.at_once() or part.place()
            ways[how.partition(" in ")[0] if how != IN_PLACE else how] += 1
            self._note(part.entry, part.entry.size or 0, None, "")
        return f"{len(self._files)} files: " + ", ".join(f"{count} {how}" for how, count in ways.items())

    def _hold(self, entries: Iterable[ModelEntry]) -> None:
        self._files = tuple(Placing(entry, self._tools, self._note, self.lane) for entry in entries)
        self._tools.budget.keep(str(part.entry.path) for part in self._files)

    def _note(self, entry: ModelEntry, done: int, _total: int | None, label: str) -> None:
        self._bytes[str(entry.path)] = done
        sizes = [part.entry.size for part in self._files]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        self.done = (sum(self._bytes.values()), total)
        if label:
            self._on_progress(self.entry, *self.done, label)


# --- which files ---------------------------------------------------------------------------------------------


def expanded(entries: Iterable[ModelEntry], folder: ModelFolder) -> list[ModelEntry]:
    """Return the entries, each repository as its files; one that was never listed stays."""
    found: list[ModelEntry] = []
    for entry in entries:
        found += (known_files(entry, folder) if entry.is_repository else None) or (entry,)
    return found


def known_files(entry: ModelEntry, folder: ModelFolder) -> list[ModelEntry] | None:
    """Return the files of a repository's entry by the list that was kept; None without one."""
    try:
        kept = json.loads(_list_file(entry, folder).read_bytes())
        return _entries(entry, kept["commit"], kept["files"])
    except (OSError, ValueError, KeyError, TypeError, SetteeError):
        return None


def listed(
    entry: ModelEntry, settings: Settings, folder: ModelFolder | None, stop: threading.Event | None = None
) -> list[ModelEntry]:
    """Ask the Hub for the files of a repository's entry, and keep the list with ``folder``.

    If the Hub does not answer, the host cache's snapshot is used. Raises ModelMissing when there are no such files,
    else DownloadFailed.
    """
    file = _source(entry)
    try:
        commit, files = retried(Hub(entry, file, settings).files, BACKOFF, tries=TRIES, stop=stop)
    except SetteeError as error:
        cached = host_cache.snapshot(file, settings.host_cache_dir) if error.retryable else None
        if cached is None:
            raise
        log.warning("%s: the Hub does not answer; the host cache's files are used", file.where)
        return _entries(entry, *cached)
    entries = _entries(entry, commit, files)
    if folder is not None and not entry.sealed:
        path = _list_file(entry, folder)
        content = json.dumps({"source": identity(file), "commit": commit, "files": files}).encode()
        # If the folder is read-only, the Hub is asked again at every start.
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            write_whole(path, content, is_lasting=False, part=path.with_name(temporary_name()))
    return entries


def _entries(entry: ModelEntry, commit: str, files: Iterable[Any]) -> list[ModelEntry]:
    file, found = _source(entry), []
    patterns = file.filename.split("|")
    for name, size, sha256 in files:
        # Hidden names (.gitattributes) and empty files are not part of a model.
        if size == 0 or name.startswith(".") or "/." in name or not any(fnmatchcase(name, one) for one in patterns):
            continue
        folder, _, last = f"{entry.path}/{name}".rpartition("/")
        source = HubFile(file.repo, name, commit)
        found.append(replace(entry, source=source, target=folder, name=last, size=size, sha256=sha256))
        relative(found[-1])
    if not found:
        raise ModelMissing(f"{file.where}: the repository has no such files", details={"reason": "file"})
    if len(found) > MAX_FILES:
        raise PayloadTooLarge(f"{file.where}: {len(found)} files; name fewer with a pattern, such as *.safetensors")
    return found


def _source(entry: ModelEntry) -> HubFile:
    assert isinstance(entry.source, HubFile)
    return entry.source


def _list_file(entry: ModelEntry, folder: ModelFolder) -> Path:
    mark = hashlib.sha256(identity(entry.source).encode()).hexdigest()[:16]
    return Path(folder.root, FOLDER, f"{relative(entry)}.{mark}.files")


# --- a folder of models, for ComfyUI ----------------------------------------------------------------------------


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
