"""A whole models folder, for the command line: :func:`verify` reads it again, :func:`prune` removes leftovers."""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

from settee.base.files import Lock, hold
from settee.base.threads import Stopped
from settee.models.folder.checks import model_problem
from settee.models.folder.hashing import hash_file
from settee.models.folder.model_folder import ModelFolder
from settee.models.folder.place import JOURNAL, PART, models_in, set_aside_in, walk
from settee.models.folder.records import FOLDER, PLACING, TEMPORARY, Placed
from settee.models.folder.removal import is_downloading, remove_part

log = logging.getLogger(__name__)

#: Readers at once: a network volume gives one reader a fraction of its speed.
_READERS = 4
#: A temporary name lives for microseconds; one this old was left by a process that died.
_STALE_S = 600


class Verdict(str, Enum):
    """The result of verifying one file."""

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
    """One verified file."""

    #: Below the models folder.
    path: str
    verdict: Verdict
    size: int = 0
    #: To follow the file's name in a sentence.
    detail: str = ""
    placed: Placed | None = None


def verify(
    folder: ModelFolder,
    *,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
    stop: threading.Event | None = None,
) -> Iterator[Finding]:
    """Read every recorded file again, several at once, and list the models that have no record. Changes nothing.

    Findings come as they are made. ``on_progress`` gets (bytes read, bytes to read), from one thread at a time.
    Raises Stopped when ``stop`` is set meanwhile; an iterator that is closed early ends its readers.
    """
    placed = [item for item in folder.records() if not item.pending]
    stop, ended = stop or threading.Event(), threading.Event()
    total, done, mutex = sum(item.size for item in placed if item.xxh3 or item.sha256), 0, threading.Lock()

    def on_bytes(count: int) -> None:
        nonlocal done
        if stop.is_set() or ended.is_set():
            raise Stopped
        with mutex:
            done += count
            on_progress(done, total)

    pool = ThreadPoolExecutor(_READERS, "verify")
    try:
        for future in as_completed([pool.submit(_verified, folder.root, item, on_bytes) for item in placed]):
            yield future.result()
    finally:
        ended.set()
        pool.shutdown(cancel_futures=True)
    known = {item.path for item in placed}
    for rel in models_in(folder.root):
        if stop.is_set():
            raise Stopped
        if rel not in known:
            path = Path(folder.root, rel)
            problem = model_problem(path)
            yield Finding(rel, Verdict.NOT_OURS, path.stat().st_size, problem or "was not placed by this worker")
    for rel in set_aside_in(folder.root):
        yield Finding(rel, Verdict.NOT_OURS, detail="was set aside for an entry of MODELS, and is yours to delete")


def _verified(root: str, placed: Placed, on_bytes: Callable[[int], None]) -> Finding:
    path, size = Path(root, placed.path), 0
    try:
        link = os.readlink(path) if path.is_symlink() else None
        info = os.stat(path)
    except OSError as error:
        detail = "is a link to nothing" if os.path.islink(path) else f"is gone ({error.strerror})"
        return Finding(placed.path, Verdict.MISSING, size, detail, placed)
    size = info.st_size
    if link != placed.link:
        verdict, detail = Verdict.NOT_OURS, "was replaced since it was placed"
    elif size != placed.size:
        verdict, detail = Verdict.DAMAGED, f"has {size} bytes, and had {placed.size} when it was placed"
    elif problem := model_problem(path):
        verdict, detail = Verdict.DAMAGED, problem
    else:
        try:
            verdict, detail = _compared(path, placed, info, on_bytes)
        except OSError as error:
            verdict, detail = Verdict.DAMAGED, f"cannot be read ({error.strerror})"
    return Finding(placed.path, verdict, size, detail, placed)


def _compared(path: Path, placed: Placed, info: os.stat_result, on_bytes: Callable[[int], None]) -> tuple[Verdict, str]:
    """Compare the bytes with the recorded hash. Raises OSError, Stopped."""
    if placed.link is not None and placed.sha256 is None:
        # The Hub's cache knows the hash of a link's file, a volume does not.
        same = "" if placed.same_time(info.st_mtime_ns) else ", and it was changed since"
        return Verdict.UNCHECKED, f"is a link: only its size and head were checked{same}"
    xxh3 = None if placed.link is not None else placed.xxh3
    if not (xxh3 or placed.sha256):
        return Verdict.UNCHECKED, "has no recorded hash: only its size and head were checked"
    found = hash_file(path, sha256=xxh3 is None, on_bytes=on_bytes)
    if (found.xxh3 == xxh3) if xxh3 else (found.sha256 == placed.sha256):
        return Verdict.OK, ""
    if placed.link is not None:
        return Verdict.DAMAGED, f"leads to a file with the sha256 {found.sha256} instead of {placed.sha256}"
    return Verdict.DAMAGED, "has other bytes than when it was placed"


# --- prune -------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Pruned:
    """One thing that was removed, or would be."""

    #: Below the models folder.
    path: str
    #: What this frees.
    bytes: int
    why: str


def prune(folder: ModelFolder, wanted: set[str], *, dry_run: bool = False) -> list[Pruned]:
    """Remove leftovers, and return them. ``wanted`` are the places of MODELS' entries.

    - parts of downloads that no process goes on with, and that none of ``wanted`` would resume;
    - models that jobs brought, that no running job uses and that are not wanted;
    - records without a file, and temporary names of processes that died.

    A part that has neither journal nor record is not settee's, and stays; so do MODELS' files, also those of former
    entries. What cannot be removed stays too, with a warning.
    """
    found = [*_parts(folder, wanted, dry_run), *_placed(folder, wanted, dry_run), *_temporary(folder.root, dry_run)]
    return sorted(found, key=lambda item: item.path)


def _parts(folder: ModelFolder, wanted: set[str], dry_run: bool) -> Iterator[Pruned]:
    left = list(walk(folder.root))
    parts = {name.removesuffix(PART) for name in left if name.endswith(PART)}
    journals = {name.removesuffix(JOURNAL) for name in left if name.endswith(JOURNAL)}
    ours = journals | {placed.path for placed in folder.records()}
    for rel in sorted((parts | journals) & ours - wanted):
        target = f"{folder.root}/{rel}"
        if is_downloading(target):
            continue
        freed = _allocated(target + PART) + _allocated(target + JOURNAL)
        try:
            if dry_run or remove_part(target):
                yield Pruned(rel + PART, freed, "a download that no process goes on with")
        except OSError as error:
            _warn(rel + PART, error)


def _placed(folder: ModelFolder, wanted: set[str], dry_run: bool) -> Iterator[Pruned]:
    for placed in list(folder.records()):
        target = f"{folder.root}/{placed.path}"
        if not os.path.lexists(target):
            # The record of a running download will be needed at its end.
            if (placed.pending and is_downloading(target)) or folder.in_use(placed.path):
                continue
            why, freed = "a record of a file that is gone", 0
        elif placed.from_job and not placed.pending and placed.path not in wanted:
            if folder.in_use(placed.path):
                continue
            why, freed = "brought by a job", 0 if placed.link else _allocated(target)
        else:
            continue
        try:
            if dry_run or folder.remove(placed) is not None:
                yield Pruned(placed.path, freed, why)
        except OSError as error:
            _warn(placed.path, error)


def _temporary(root: str, dry_run: bool) -> Iterator[Pruned]:
    """Remove links and records that were written and never renamed, and locks that no process holds."""
    names = [*walk(root), *(f"{FOLDER}/{name}" for name in walk(f"{root}/{FOLDER}"))]
    for rel in names:
        path, is_lock = f"{root}/{rel}", rel.startswith(FOLDER) and rel.endswith(PLACING)
        if not (is_lock or rel.rpartition("/")[2].startswith(TEMPORARY)):
            continue
        try:
            with contextlib.ExitStack() as stack:
                info = os.lstat(path)
                if is_lock:
                    if hold(stack, path, exclusive=True, wait_s=0) is not Lock.HELD:
                        continue
                elif time.time() - info.st_mtime < _STALE_S:
                    continue
                if not dry_run:
                    os.unlink(path)
        except OSError as error:
            _warn(rel, error)
            continue
        yield Pruned(rel, info.st_blocks * 512, "left by a process that died")


def _allocated(path: str) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0


def _warn(rel: str, error: OSError) -> None:
    log.warning("%s cannot be removed: %s", rel, error.strerror)
