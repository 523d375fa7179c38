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
from functools import partial
from itertools import chain
from pathlib import Path

from settee.base.files import Lock, hold
from settee.models.folder.checks import hash_file, model_problem
from settee.models.folder.model_folder import ModelFolder
from settee.models.folder.place import JOURNAL, PART, TEMPORARY, models_in, set_aside_in, walk
from settee.models.folder.records import FOLDER, PLACING, Placed

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
    #: To follow the file's name in a sentence.
    detail: str = ""
    placed: Placed | None = None


def verify(folder: ModelFolder) -> Iterator[Finding]:
    """Read every recorded file again, several at once, and list the models that have no record. Changes nothing.

    Findings come as they are made; an iterator that is closed early ends its readers.
    """
    placed, ended = [item for item in folder.records if not item.pending], threading.Event()
    pool = ThreadPoolExecutor(_READERS, "verify")
    try:
        for future in as_completed([pool.submit(_verified, folder.root, item, ended) for item in placed]):
            yield future.result()
    finally:
        ended.set()
        pool.shutdown(cancel_futures=True)
    known = {item.path for item in placed}
    for rel in models_in(folder.root):
        if rel not in known:
            problem = model_problem(Path(folder.root, rel))
            yield Finding(rel, Verdict.NOT_OURS, problem or "was not placed by this worker")
    for rel in set_aside_in(folder.root):
        yield Finding(rel, Verdict.NOT_OURS, "was set aside for an entry of MODELS, and is yours to delete")


def _verified(root: str, placed: Placed, ended: threading.Event) -> Finding:
    path = Path(root, placed.path)
    try:
        link = os.readlink(path) if path.is_symlink() else None
        info = os.stat(path)
    except OSError as error:
        detail = "is a link to nothing" if os.path.islink(path) else f"is gone ({error.strerror})"
        return Finding(placed.path, Verdict.MISSING, detail, placed)
    if link != placed.link:
        verdict, detail = Verdict.NOT_OURS, "was replaced since it was placed"
    elif info.st_size != placed.size:
        verdict, detail = Verdict.DAMAGED, f"has {info.st_size} bytes, and had {placed.size} when it was placed"
    elif problem := model_problem(path):
        verdict, detail = Verdict.DAMAGED, problem
    else:
        try:
            verdict, detail = _compared(path, placed, info, ended)
        except OSError as error:
            verdict, detail = Verdict.DAMAGED, f"cannot be read ({error.strerror})"
    return Finding(placed.path, verdict, detail, placed)


def _compared(path: Path, placed: Placed, info: os.stat_result, ended: threading.Event) -> tuple[Verdict, str]:
    """Compare the bytes with the recorded hash. Raises OSError, Stopped."""
    if placed.link is not None and placed.sha256 is None:
        # The Hub's cache knows the hash of a link's file, a volume does not.
        same = "" if placed.same_time(info.st_mtime_ns) else ", and it was changed since"
        return Verdict.UNCHECKED, f"is a link: only its size and head were checked{same}"
    xxh3 = None if placed.link is not None else placed.xxh3
    if not (xxh3 or placed.sha256):
        return Verdict.UNCHECKED, "has no recorded hash: only its size and head were checked"
    found = hash_file(path, sha256=xxh3 is None, stop=ended)
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


#: Returns False when it stays after all.
Remove = Callable[[], "bool | None"]


def prune(folder: ModelFolder, wanted: set[str], *, dry_run: bool = False) -> list[Pruned]:
    """Remove leftovers, and return them. ``wanted`` are the places of MODELS' entries.

    - parts of downloads that no process goes on with, and that none of ``wanted`` would resume;
    - models that jobs brought, that no running job uses and that are not wanted;
    - records without a file, and temporary names of processes that died.

    A part that has neither journal nor record is not settee's, and stays; so do MODELS' files, also those of former
    entries. What cannot be removed stays too, with a warning.
    """
    found = []
    for item, remove in chain(_parts(folder, wanted), _placed(folder, wanted), _temporary(folder.root)):
        try:
            if dry_run or remove() is not False:
                found.append(item)
        except OSError as error:
            log.warning("%s cannot be removed: %s", item.path, error.strerror)
    return sorted(found, key=lambda item: item.path)


def _parts(folder: ModelFolder, wanted: set[str]) -> Iterator[tuple[Pruned, Remove]]:
    left = list(walk(folder.root))
    parts = {name.removesuffix(PART) for name in left if name.endswith(PART)}
    journals = {name.removesuffix(JOURNAL) for name in left if name.endswith(JOURNAL)}
    ours = journals | {placed.path for placed in folder.records}
    for rel in sorted((parts | journals) & ours - wanted):
        if not folder.records.is_placing(rel):
            target = f"{folder.root}/{rel}"
            freed = _allocated(target + PART) + _allocated(target + JOURNAL)
            item = Pruned(rel + PART, freed, "a download that no process goes on with")
            yield item, partial(folder.records.remove_part, rel)


def _placed(folder: ModelFolder, wanted: set[str]) -> Iterator[tuple[Pruned, Remove]]:
    for placed in list(folder.records):
        target = f"{folder.root}/{placed.path}"
        if not os.path.lexists(target):
            # The record of a running download will be needed at its end.
            is_left = not (placed.pending and folder.records.is_placing(placed.path))
            why, freed = "a record of a file that is gone", 0
        else:
            is_left = placed.from_job and not placed.pending and placed.path not in wanted
            why, freed = "brought by a job", 0 if placed.link else _allocated(target)
        if is_left and not folder.records.in_use(placed.path):
            yield Pruned(placed.path, freed, why), partial(folder.records.remove, placed)


def _temporary(root: str) -> Iterator[tuple[Pruned, Remove]]:
    """Yield links and records that were written and never renamed, and locks that no process holds: they are held."""
    for rel in (*walk(root), *(f"{FOLDER}/{name}" for name in walk(f"{root}/{FOLDER}"))):
        path, is_lock = f"{root}/{rel}", rel.startswith(FOLDER) and rel.endswith(PLACING)
        if not (is_lock or rel.rpartition("/")[2].startswith(TEMPORARY)):
            continue
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            info = os.lstat(path)
            if is_lock:
                is_left = hold(stack, path, exclusive=True, wait_s=0) is Lock.HELD
            else:
                is_left = time.time() - info.st_mtime >= _STALE_S
            if is_left:
                yield Pruned(rel, info.st_blocks * 512, "left by a process that died"), partial(os.unlink, path)


def _allocated(path: str) -> int:
    try:
        return os.lstat(path).st_blocks * 512
    except OSError:
        return 0
