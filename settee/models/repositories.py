"""Entries that mean many files of a Hugging Face repository: ``org/name:*:diffusers``.

A revision's files are listed once. The list is kept with the records, so that a warm start asks no server, and every
file on it is an entry of its own: linked, downloaded, resumed, verified and removed as any other.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import threading
from collections import Counter
from collections.abc import Iterable
from dataclasses import replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from settee.base.files import write_whole
from settee.base.threads import Stopped
from settee.errors import ModelMissing, PayloadTooLarge, SetteeError
from settee.models.entry import HubFile, ModelEntry
from settee.models.placed import Shelf
from settee.models.places import relative
from settee.models.placing import IN_PLACE, Placing, Progressed, Tools
from settee.models.records import FOLDER, TEMPORARY, identity
from settee.models.sources import BACKOFF, TRIES, host_cache
from settee.net.retry import retried
from settee.request import Bucket
from settee.settings import Settings

log = logging.getLogger(__name__)

#: No repository that is a model has more files.
MAX_FILES = 5000


def new_placing(entry: ModelEntry, tools: Tools, on_progress: Progressed, bucket: Bucket | None) -> Placing:
    kind = Repository if entry.is_repository else Placing
    return kind(entry, tools, on_progress, bucket)


class Repository(Placing):
    """Places the files of a repository, one after another: each has several connections of its own."""

    def __init__(self, entry: ModelEntry, tools: Tools, on_progress: Progressed, bucket: Bucket | None = None) -> None:
        super().__init__(entry, tools, on_progress, bucket)
        self._files: tuple[Placing, ...] = ()
        self._bytes: dict[str, int] = {}

    @property
    def parts(self) -> tuple[Placing, ...]:
        return self._files

    def hurry(self, urgent: bool) -> None:
        super().hurry(urgent)
        for part in self._files:
            part.hurry(urgent)

    def at_once(self) -> str | None:
        entries = known_files(self.entry, self._tools.shelf)
        if entries is None:
            return None
        self._hold(entries)
        return IN_PLACE if all(part.at_once() for part in self._files) else None

    def here(self) -> str | None:
        return None  # file by file, below: the list may be on the Hub only

    def fetched(self) -> str:
        if not self._files:
            self._hold(listed(self.entry, self._tools.settings, self._tools.shelf, self.stop))
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
            part.hurry(self._turn.urgent)
        self._tools.budget.keep(str(part.entry.path) for part in self._files)

    def _note(self, entry: ModelEntry, done: int, _total: int | None, label: str) -> None:
        self._bytes[str(entry.path)] = done
        sizes = [part.entry.size for part in self._files]
        total = None if None in sizes else sum(size or 0 for size in sizes)
        self.done = (sum(self._bytes.values()), total)
        if label:
            self._on_progress(self.entry, *self.done, label)


# --- which files ---------------------------------------------------------------------------------------------


def expanded(entries: Iterable[ModelEntry], shelf: Shelf) -> list[ModelEntry]:
    """The entries, each repository as its files; one that was never listed stays."""
    found: list[ModelEntry] = []
    for entry in entries:
        found += (known_files(entry, shelf) if entry.is_repository else None) or (entry,)
    return found


def known_files(entry: ModelEntry, shelf: Shelf) -> list[ModelEntry] | None:
    """The files of a repository's entry by the list that was kept; None without one."""
    try:
        kept = json.loads(_list_file(entry, shelf).read_bytes())
        return _entries(entry, kept["commit"], kept["files"])
    except (OSError, ValueError, KeyError, TypeError, SetteeError):
        return None


def listed(
    entry: ModelEntry, settings: Settings, shelf: Shelf | None, stop: threading.Event | None = None
) -> list[ModelEntry]:
    """The same, asked of the Hub, and kept with ``shelf``. Where the Hub does not answer, the host cache's snapshot.

    Raises ModelMissing when there are no such files, else DownloadFailed.
    """
    from settee.models.sources import hub

    file = _source(entry)
    try:
        commit, files = retried(lambda: hub.files_of(entry, file, settings), BACKOFF, tries=TRIES, stop=stop)
    except SetteeError as error:
        cached = host_cache.snapshot(file, settings.host_cache_dir) if error.retryable else None
        if cached is None:
            raise
        log.warning("%s: the Hub does not answer; the host cache's files are used", file.where)
        return _entries(entry, *cached)
    entries = _entries(entry, commit, files)
    if shelf is not None and not entry.sealed:
        _keep(_list_file(entry, shelf), {"source": identity(file), "commit": commit, "files": files})
    return entries


def _entries(entry: ModelEntry, commit: str, files: Iterable[Any]) -> list[ModelEntry]:
    file, found = _source(entry), []
    patterns = file.filename.split("|")
    for name, size, sha256 in files:
        # Hidden names (.gitattributes) have no place among models, and nothing is in an empty file.
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


def _list_file(entry: ModelEntry, shelf: Shelf) -> Path:
    mark = hashlib.sha256(identity(entry.source).encode()).hexdigest()[:16]
    return Path(shelf.root, FOLDER, f"{relative(entry)}.{mark}.files")


def _keep(path: Path, content: dict[str, Any]) -> None:
    """Whole or not at all; a folder that must not be written is asked about again at every start."""
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_name(f"{TEMPORARY}{os.getpid()}-{threading.get_ident()}")
        write_whole(path, json.dumps(content).encode(), is_lasting=False, part=part)


__all__ = ["Repository", "expanded", "known_files", "listed", "new_placing"]
