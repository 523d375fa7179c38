"""Room for a download before it begins: on the disk, and within MODELS_DISK_BUDGET_GB for what jobs bring.

Where there is too little, files that jobs brought are removed, the least recently used first: never one in use by a
running job, never MODELS' own, never a link (it takes no room, and what it leads to is not ours).
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from settee.errors import NoSpace
from settee.models.bar_text import amount
from settee.models.entry import ModelEntry
from settee.models.placed import Shelf
from settee.models.places import PART, relative
from settee.models.records import Placed
from settee.settings import Settings

log = logging.getLogger(__name__)

#: Left free: ComfyUI, its nodes and logs write to the same disk.
MARGIN_BYTES = 512 * 10**6
_GB = 10**9


@dataclass(eq=False)
class _Reservation:
    path: str
    target: str
    need: int
    from_job: bool
    device: int | None

    def outstanding(self) -> int:
        """What it still takes from the disk. The transfer allocates the part's room when it begins."""
        for path in (self.target + PART, self.target):
            with contextlib.suppress(OSError):
                info = os.lstat(path)
                # At its end the part is renamed to the target; anything else there is what it will replace.
                if path != self.target or info.st_size == self.need:
                    return max(0, self.need - info.st_blocks * 512)
        return self.need


class Budget:
    """The room of one models folder. One for the process: its parallel downloads know of one another by it."""

    def __init__(self, shelf: Shelf, settings: Settings, *, margin_bytes: int = MARGIN_BYTES) -> None:
        self._shelf = shelf
        limit = settings.models_disk_budget_gb
        self._limit = None if limit is None else int(limit * _GB)
        self._margin = margin_bytes
        self._mutex = threading.Lock()
        self._reserved: list[_Reservation] = []
        #: What jobs have asked for, and may not use yet.
        self._kept: Counter[str] = Counter()

    def keep(self, paths: Iterable[str]) -> None:
        """A job wants these from now on: none makes room for another of its models."""
        with self._mutex:
            self._kept.update(paths)

    def let_go(self, paths: Iterable[str]) -> None:
        """It wants them no longer."""
        with self._mutex:
            self._kept.subtract(paths)
            self._kept += Counter()  # drops the zeroes

    @contextlib.contextmanager
    def reserve(self, entry: ModelEntry, need: int) -> Iterator[Callable[[int], None]]:
        """Around a download of ``need`` bytes (0: nobody knows). Makes room first. Raises NoSpace, UnsafePath.

        Gives what is to be told how many bytes there are by now: it makes room for more than ``need``, or raises
        NoSpace. A server that names no size could fill the disk.
        """
        rel = relative(entry)
        target = f"{self._shelf.root}/{rel}"
        with self._mutex:
            asked = _Reservation(rel, target, need, entry.from_job, _device(target))
            self._make_room(asked)
            self._reserved.append(asked)

        def grown(done: int) -> None:
            if done > asked.need:
                with self._mutex:
                    asked.need = done
                    self._make_room(asked)

        try:
            yield grown
        finally:
            with self._mutex:
                self._reserved.remove(asked)

    def _make_room(self, asked: _Reservation) -> None:
        excess, lack = self._excess(asked), self._lack(asked)
        if excess <= 0 and lack <= 0:
            return
        evictable = self._evictable(asked)
        self._check(asked, excess, lack, evictable)
        for placed in evictable:
            on_disk = _device(f"{self._shelf.root}/{placed.path}") == asked.device
            if not (excess > 0 or (lack > 0 and on_disk)):
                continue
            try:
                freed = self._shelf.remove(placed)
            except OSError as error:
                log.warning("a model that a job brought cannot be removed to make room: %s", error.strerror)
                continue
            if freed is None:
                continue
            # Without names: a job's are its own affair.
            log.info(
                "removed a model of %s that a job brought and that was not used for the longest", amount(placed.size)
            )
            # Measured again: a file that a process still has open keeps its room until it is closed.
            excess, lack = excess - placed.size, self._lack(asked)
        self._check(asked, excess, lack, [])

    def _excess(self, asked: _Reservation) -> int:
        """Bytes over the budget with this one."""
        if self._limit is None or not asked.from_job:
            return 0
        coming = {other.path: other.need for other in self._reserved if other.from_job} | {asked.path: asked.need}
        there = sum(placed.size for placed in self._brought() if placed.path not in coming)
        return there + sum(coming.values()) - self._limit

    def _lack(self, asked: _Reservation) -> int:
        """Bytes that the disk has too few with this one."""
        if asked.device is None:
            return 0
        others = [other for other in self._reserved if other.device == asked.device and other.path != asked.path]
        still = sum(other.outstanding() for other in others) + asked.outstanding()
        return still + self._margin - free_at(asked.target)

    def _brought(self) -> Iterator[Placed]:
        """Plain files that jobs brought."""
        return (p for p in self._shelf.records() if p.from_job and not p.pending and p.link is None)

    def _evictable(self, asked: _Reservation) -> list[Placed]:
        busy = {other.path for other in self._reserved} | {asked.path} | self._kept.keys()
        found = [p for p in self._brought() if p.path not in busy and not self._shelf.in_use(p.path)]
        return sorted(found, key=lambda placed: placed.last_used)

    def _check(self, asked: _Reservation, excess: int, lack: int, evictable: list[Placed]) -> None:
        """Raises NoSpace when removing all of these would not do: then none is removed in vain."""
        what, details = f"{asked.path} needs {amount(asked.need)}", {"model": asked.path, "needed_bytes": asked.need}
        if excess > sum(placed.size for placed in evictable):
            raise NoSpace(
                f"{what}, and MODELS_DISK_BUDGET_GB is {amount(self._limit or 0)}, less what running jobs use and "
                "other downloads take: send fewer or smaller models, or raise it",
                details={**details, "budget_bytes": self._limit},
            )
        here = [p for p in evictable if _device(f"{self._shelf.root}/{p.path}") == asked.device]
        if lack > sum(placed.size for placed in here):
            free = free_at(asked.target)
            kept = lack + free - asked.outstanding()
            raise NoSpace(
                f"{what}, and its disk has {amount(free)} free, of which {amount(kept)} are kept for other downloads "
                "and for ComfyUI: give the worker a larger disk, or remove models (`python utils.py prune`: what jobs "
                "left)",
                details={**details, "free_bytes": free},
            )


def _existing(path: str) -> str:
    """The nearest folder above that is there."""
    folder = os.path.dirname(path)
    while folder != "/" and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def _device(path: str) -> int | None:
    try:
        return os.stat(_existing(path)).st_dev
    except OSError:
        return None


def free_at(path: str) -> int:
    """Bytes that this user may still write there; a very large number where nobody can tell."""
    try:
        room = os.statvfs(_existing(path))
    except OSError:
        return 1 << 62
    return room.f_bavail * room.f_frsize
