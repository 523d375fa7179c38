"""What nobody needs in the models folder any more: for `utils.py prune`."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from settee.base.files import Lock, hold
from settee.models.entry import ModelEntry
from settee.models.placed import Shelf
from settee.models.places import JOURNAL, PART, relative
from settee.models.records import FOLDER, PLACING, TEMPORARY
from settee.models.removing import is_downloading, remove_part
from settee.models.repositories import expanded
from settee.models.walk import walk

log = logging.getLogger(__name__)

#: A temporary name of ours lives for microseconds; one this old was left by a process that died.
_STALE_S = 600


@dataclass(frozen=True)
class Pruned:
    """One thing that was removed, or would be."""

    #: Below the models folder.
    path: str
    #: What this frees.
    bytes: int
    why: str


def prune(shelf: Shelf, wanted: Iterable[ModelEntry], *, dry_run: bool = False) -> list[Pruned]:
    """Remove what is left over, and say what that was.

    - parts of downloads that no process goes on with, and that none of ``wanted`` (MODELS) would resume;
    - models that jobs brought, that no running job uses and that are not wanted;
    - records without a file, and temporary names of processes that died.

    A part that has neither journal nor record is not ours, and stays; so do MODELS' files, also those of former
    entries. What cannot be removed stays too, with a warning.
    """
    names = {relative(entry) for entry in expanded(wanted, shelf)}
    found = [*_parts(shelf, names, dry_run), *_placed(shelf, names, dry_run), *_temporary(shelf.root, dry_run)]
    return sorted(found, key=lambda item: item.path)


def _parts(shelf: Shelf, wanted: set[str], dry_run: bool) -> Iterator[Pruned]:
    left = list(walk(shelf.root))
    parts = {name.removesuffix(PART) for name in left if name.endswith(PART)}
    journals = {name.removesuffix(JOURNAL) for name in left if name.endswith(JOURNAL)}
    ours = journals | {placed.path for placed in shelf.records()}
    for rel in sorted((parts | journals) & ours - wanted):
        target = f"{shelf.root}/{rel}"
        if is_downloading(target):
            continue
        freed = _allocated(target + PART) + _allocated(target + JOURNAL)
        try:
            if dry_run or remove_part(target):
                yield Pruned(rel + PART, freed, "a download that nobody goes on with")
        except OSError as error:
            _warn(rel + PART, error)


def _placed(shelf: Shelf, wanted: set[str], dry_run: bool) -> Iterator[Pruned]:
    for placed in list(shelf.records()):
        target = f"{shelf.root}/{placed.path}"
        if not os.path.lexists(target):
            # One of a download that goes on will be needed at its end.
            if (placed.pending and is_downloading(target)) or shelf.in_use(placed.path):
                continue
            why, freed = "a record of a file that is gone", 0
        elif placed.from_job and not placed.pending and placed.path not in wanted:
            if shelf.in_use(placed.path):
                continue
            why, freed = "brought by a job", 0 if placed.link else _allocated(target)
        else:
            continue
        try:
            if dry_run or shelf.remove(placed) is not None:
                yield Pruned(placed.path, freed, why)
        except OSError as error:
            _warn(placed.path, error)


def _temporary(root: str, dry_run: bool) -> Iterator[Pruned]:
    """Links and records that were written, and never renamed."""
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
