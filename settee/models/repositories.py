"""Entries that mean many files of a Hugging Face repository: ``org/name:*:diffusers``.

A revision's files are listed once. The list is kept with the records, so that a warm start asks no server, and every
file on it is an entry of its own: linked, downloaded, resumed, verified and removed as any other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from settee.base.errors import ModelMissing, PayloadTooLarge, SetteeError
from settee.base.files import write_whole
from settee.base.settings import Settings
from settee.base.threads import Stopped
from settee.models.entry import HubFile, ModelEntry, identity
from settee.models.folder.model_folder import ModelFolder
from settee.models.folder.place import relative, temporary_name
from settee.models.folder.records import FOLDER
from settee.models.placing import IN_PLACE, Placing, Progressed, Tools
from settee.models.sources import BACKOFF, TRIES, host_cache
from settee.models.sources.hugging_face import Hub
from settee.net.retry import retried

if TYPE_CHECKING:
    from settee.s3.target import CallersBucket

log = logging.getLogger(__name__)

#: No repository that is a model has more files.
MAX_FILES = 5000


def new_placing(entry: ModelEntry, tools: Tools, on_progress: Progressed, bucket: CallersBucket | None) -> Placing:
    """Return the placing of a file, or of a repository."""
    kind = Repository if entry.is_repository else Placing
    return kind(entry, tools, on_progress, bucket)


class Repository(Placing):
    """Places the files of a repository, one after another: each has several connections of its own."""

    def __init__(
        self, entry: ModelEntry, tools: Tools, on_progress: Progressed, bucket: CallersBucket | None = None
    ) -> None:
        super().__init__(entry, tools, on_progress, bucket)
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

    def here(self) -> str | None:
        return None  # file by file, below: the list may be on the Hub only

    def fetched(self) -> str:
        if not self._files:
            self._hold(listed(self.entry, self._tools.settings, self._tools.folder, self.stop))
        ways: Counter[str] = Counter()
        for part in self._files:
            if self.stop.is_set():
                raise Stopped
            how = part.at_once() or part.here() or part.fetched()
            ways[how.partition(" in ")[0] if how != IN_PLACE else how] += 1
            self._note(part.entry, part.entry.size or 0, None, "")
        return f"{len(self._files)} files: " + ", ".join(f"{count} {how}" for how, count in ways.items())

    def _hold(self, entries: Iterable[ModelEntry]) -> None:
        self._files = tuple(Placing(entry, self._tools, self._note, stop=self.stop) for entry in entries)
        for part in self._files:
            part.urgent = self.urgent
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
        with contextlib.suppress(OSError):
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
