"""What lies in the models folder, read again: for `utils.py verify`."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from settee.base.threads import Stopped
from settee.models.checks import model_problem
from settee.models.hashing import hash_file
from settee.models.placed import Shelf
from settee.models.records import Placed
from settee.models.walk import models_in, set_aside_in

#: Readers at once: a network volume gives one reader a fraction of its speed.
_READERS = 4


class Verdict(str, Enum):
    """What became of one file."""

    #: Its bytes are those that were right once.
    OK = "ok"
    #: Other bytes than were recorded: remove it and let it be placed again.
    DAMAGED = "damaged"
    #: Recorded, and gone; or a link to nothing.
    MISSING = "missing"
    #: Recorded without a hash (taken over by its size): its head is right, more is not known.
    UNCHECKED = "unchecked"
    #: A model without a record: not placed by this worker.
    NOT_OURS = "not ours"


@dataclass(frozen=True)
class Finding:
    """One file, and how it is."""

    #: Below the models folder.
    path: str
    verdict: Verdict
    size: int = 0
    #: To follow the file's name in a sentence.
    detail: str = ""
    placed: Placed | None = None


def verify(
    shelf: Shelf,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    stop: threading.Event | None = None,
) -> Iterator[Finding]:
    """Read every recorded file again, several at once, and list the models that have no record.

    Findings come as they are made. ``on_progress`` hears (bytes read, bytes to read), one thread at a time. Nothing is
    changed. Raises Stopped when ``stop`` is set meanwhile; an iterator that is closed early ends its readers.
    """
    placed = [item for item in shelf.records() if not item.pending]
    stop, ended = stop or threading.Event(), threading.Event()
    total = sum(item.size for item in placed if item.xxh3 or item.sha256)
    progress = _Progress(total, on_progress, (stop, ended))
    pool = ThreadPoolExecutor(_READERS, "verify")
    try:
        for future in as_completed([pool.submit(_finding, shelf.root, item, progress.add) for item in placed]):
            yield future.result()
    finally:
        ended.set()
        pool.shutdown(cancel_futures=True)
    known = {item.path for item in placed}
    for rel in models_in(shelf.root):
        if stop.is_set():
            raise Stopped
        if rel not in known:
            path = Path(shelf.root, rel)
            problem = model_problem(path)
            yield Finding(rel, Verdict.NOT_OURS, path.stat().st_size, problem or "was not placed by this worker")
    for rel in set_aside_in(shelf.root):
        yield Finding(rel, Verdict.NOT_OURS, detail="was set aside for an entry of MODELS, and is yours to delete")


class _Progress:
    """What all readers have read. Raises Stopped in each of them when one of the events is set."""

    def __init__(self, total: int, tell: Callable[[int, int], None], stops: tuple[threading.Event, ...]) -> None:
        self._total, self._tell, self._stops = total, tell, stops
        self._done = 0
        self._mutex = threading.Lock()

    def add(self, count: int) -> None:
        if any(stop.is_set() for stop in self._stops):
            raise Stopped
        with self._mutex:
            self._done += count
            self._tell(self._done, self._total)


def _finding(root: str, placed: Placed, on_bytes: Callable[[int], None]) -> Finding:
    path = Path(root, placed.path)

    def say(verdict: Verdict, detail: str = "", size: int = 0) -> Finding:
        return Finding(placed.path, verdict, size, detail, placed)

    try:
        link = os.readlink(path) if path.is_symlink() else None
        info = os.stat(path)
    except OSError as error:
        return say(Verdict.MISSING, "is a link to nothing" if os.path.islink(path) else f"is gone ({error.strerror})")
    if link != placed.link:
        return say(Verdict.NOT_OURS, "was replaced since it was placed", info.st_size)
    if info.st_size != placed.size:
        return say(Verdict.DAMAGED, f"has {info.st_size} bytes, and had {placed.size} when it was placed", info.st_size)
    if problem := model_problem(path):
        return say(Verdict.DAMAGED, problem, info.st_size)
    if placed.link is not None:
        return _linked(path, placed, info, on_bytes, say)
    if not (placed.xxh3 or placed.sha256):
        return say(Verdict.UNCHECKED, "has no recorded hash: only its size and head were checked", info.st_size)
    try:
        found = hash_file(path, sha256=placed.xxh3 is None, on_bytes=on_bytes)
    except OSError as error:
        return say(Verdict.DAMAGED, f"cannot be read ({error.strerror})", info.st_size)
    if (found.xxh3 == placed.xxh3) if placed.xxh3 else (found.sha256 == placed.sha256):
        return say(Verdict.OK, "", info.st_size)
    return say(Verdict.DAMAGED, "has other bytes than when it was placed", info.st_size)


def _linked(
    path: Path, placed: Placed, info: os.stat_result, on_bytes: Callable[[int], None], say: Callable[..., Finding]
) -> Finding:
    """What the link leads to is read when somebody knew its hash: the Hub's cache does, a volume does not."""
    if placed.sha256 is None:
        same = "" if placed.same_time(info.st_mtime_ns) else ", and it was changed since"
        return say(Verdict.UNCHECKED, f"is a link: only its size and head were checked{same}", info.st_size)
    try:
        found = hash_file(path, sha256=True, on_bytes=on_bytes)
    except OSError as error:
        return say(Verdict.DAMAGED, f"cannot be read ({error.strerror})", info.st_size)
    if found.sha256 == placed.sha256:
        return say(Verdict.OK, "", info.st_size)
    said = f"leads to a file with the sha256 {found.sha256} instead of {placed.sha256}"
    return say(Verdict.DAMAGED, said, info.st_size)
