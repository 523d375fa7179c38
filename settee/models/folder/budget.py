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

from settee.base.errors import NoSpace
from settee.base.settings import Settings
from settee.models.bars import amount
from settee.models.entry import ModelEntry
from settee.models.folder.model_folder import ModelFolder
from settee.models.folder.place import PART, existing, free_at, relative
from settee.models.folder.records import Placed

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
        """Return what it still takes from the disk."""
        for path in (self.target + PART, self.target):
            with contextlib.suppress(OSError):
                info = os.lstat(path)
                # At its end the part is renamed to the target; any other file there will be replaced.
                if path != self.target or info.st_size == self.need:
                    return max(0, self.need - info.st_blocks * 512)
        return self.need


class Budget:
    """The room of one models folder. One for the process: all its downloads are reserved here."""

    def __init__(self, folder: ModelFolder, settings: Settings, *, margin_bytes: int = MARGIN_BYTES) -> None:
        self._folder = folder
        limit = settings.models_disk_budget_gb
        self._limit = None if limit is None else int(limit * _GB)
        self._margin = margin_bytes
        self._mutex = threading.Lock()
        self._reserved: list[_Reservation] = []
        #: Models that jobs have asked for, and may not use yet.
        self._kept: Counter[str] = Counter()

    def keep(self, paths: Iterable[str]) -> None:
        """Protect a job's models: none is removed to make room for another of them."""
        with self._mutex:
            self._kept.update(paths)

    def let_go(self, paths: Iterable[str]) -> None:
        """End the protection of :meth:`keep`."""
        with self._mutex:
            self._kept.subtract(paths)
            self._kept += Counter()  # drops the zeroes

    @contextlib.contextmanager
    def reserve(self, entry: ModelEntry, need: int) -> Iterator[Callable[[int], None]]:
        """Make room for a download of ``need`` bytes (0: unknown), and hold it. Raises NoSpace, UnsafePath.

        Yields a function to call with the bytes in place: it makes room for more than ``need``, or raises NoSpace. A
        server that states no size could fill the disk.
        """
        rel = relative(entry)
        target = f"{self._folder.root}/{rel}"
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
            on_disk = _device(f"{self._folder.root}/{placed.path}") == asked.device
            if not (excess > 0 or (lack > 0 and on_disk)):
                continue
            try:
                is_removed = self._folder.records.remove(placed)
            except OSError as error:
                log.warning("a model that a job brought cannot be removed to make room: %s", error.strerror)
                continue
            if not is_removed:
                continue
            # Without its name, which may be private.
            log.info("removed a model of %s that a job brought, the least recently used", amount(placed.size))
            # Measured again: a file that a process still has open keeps its room until it is closed.
            excess, lack = excess - placed.size, self._lack(asked)
        self._check(asked, excess, lack, [])

    def _excess(self, asked: _Reservation) -> int:
        """Return the bytes over the budget with this one."""
        if self._limit is None or not asked.from_job:
            return 0
        coming = {other.path: other.need for other in self._reserved if other.from_job} | {asked.path: asked.need}
        there = sum(placed.size for placed in self._brought() if placed.path not in coming)
        return there + sum(coming.values()) - self._limit

    def _lack(self, asked: _Reservation) -> int:
        """Return the bytes that the disk lacks with this one."""
        if asked.device is None:
            return 0
        others = [other for other in self._reserved if other.device == asked.device and other.path != asked.path]
        still = sum(other.outstanding() for other in others) + asked.outstanding()
        return still + self._margin - free_at(asked.target)

    def _brought(self) -> Iterator[Placed]:
        """Return plain files that jobs brought."""
        return (p for p in self._folder.records if p.from_job and not p.pending and p.link is None)

    def _evictable(self, asked: _Reservation) -> list[Placed]:
        busy = {other.path for other in self._reserved} | {asked.path} | self._kept.keys()
        found = [p for p in self._brought() if p.path not in busy and not self._folder.records.in_use(p.path)]
        return sorted(found, key=lambda placed: placed.last_used)

    def _check(self, asked: _Reservation, excess: int, lack: int, evictable: list[Placed]) -> None:
        """Raise NoSpace when removing all of these would not suffice: then none is removed."""
        what, details = f"{asked.path} needs {amount(asked.need)}", {"model": asked.path, "needed_bytes": asked.need}
        if excess > sum(placed.size for placed in evictable):
            raise NoSpace(
                f"{what}, and MODELS_DISK_BUDGET_GB is {amount(self._limit or 0)}, less what running jobs use and "
                "other downloads take: send fewer or smaller models, or raise it",
                details={**details, "budget_bytes": self._limit},
            )
        here = [p for p in evictable if _device(f"{self._folder.root}/{p.path}") == asked.device]
        if lack > sum(placed.size for placed in here):
            free = free_at(asked.target)
            kept = lack + free - asked.outstanding()
            raise NoSpace(
                f"{what}, and its disk has {amount(free)} free, of which {amount(kept)} are kept for other downloads "
                "and for ComfyUI: give the worker a larger disk, or remove models (`python utils.py prune`: what jobs "
                "left)",
                details={**details, "free_bytes": free},
            )


def _device(path: str) -> int | None:
    try:
        return os.stat(existing(path)).st_dev
    except OSError:
        return None
