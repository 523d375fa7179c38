"""Read model files into the page cache before ComfyUI asks for them.

ComfyUI maps a safetensors file and faults it in a little at a time, one request after another: from a network volume
or a host cache that is a fraction of what the source gives to several readers at once. Nothing here is needed for a
job to succeed, so nothing here can fail one: what goes wrong is logged, without names, which may be a job's.

How it reads was measured (bench/readahead.py): ``posix_fadvise(WILLNEED)`` brings no more than the file system's
read-ahead, 128 KiB over FUSE, and SEQUENTIAL doubles that for one descriptor, so each reader has a descriptor of its
own and reads 8 MiB from one place.
"""

from __future__ import annotations

import logging
import mmap
import os
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from settee.models.free_memory import free_memory
from settee.models.page_cache import in_memory, open_ahead, resident, tells_the_truth

MIB = 1024 * 1024
#: What one reader takes at a time.
REGION = 8 * MIB
#: One read: also how far a reader goes before it notices that it should stop.
PIECE = 2 * MIB
#: Memory that stays free: for ComfyUI itself, and for what the kernel reads beyond a region's end of its own accord.
MARGIN = 1024 * MIB
#: Cache counts as free memory. What was read ahead this lately is counted as taken all the same, so that one file
#: does not push out the last one before it was loaded.
HOLD_S = 300.0
CLOSE_S = 0.5

log = logging.getLogger(__name__)


@dataclass(eq=False)
class _File:
    path: Path
    size: int = 0
    #: Where the next region begins.
    next: int = 0
    #: Readers at work on it.
    readers: int = 0
    #: Device and inode: two links to one file are one file.
    identity: tuple[int, int] = (0, 0)
    #: Whether :func:`resident` can be believed.
    probed: bool = False
    read: int = 0
    started: float = 0.0


class ReadAhead:
    """Several threads that read files in the order they were named. Safe to use from any thread.

    ``free`` says how many bytes of memory are left, and ``read(fd, buffer, offset)`` reads as ``os.preadv`` does.
    The threads start with the first file.
    """

    def __init__(
        self,
        *,
        readers: int = 4,
        free: Callable[[], int] = free_memory,
        read: Callable[[int, memoryview, int], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._readers, self._free, self._clock = readers, free, clock
        self._read = read or (lambda fd, buffer, offset: os.preadv(fd, [buffer], offset))
        self._changed = threading.Condition()
        self._waiting: deque[Path] = deque()
        self._opening: set[Path] = set()
        self._files: list[_File] = []
        self._taken: deque[tuple[float, int]] = deque()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def add(self, path: Path) -> None:
        """Have this file read; returns at once. A file that is being read or waits for it is not taken twice."""
        if not sys.platform.startswith("linux"):
            return
        with self._changed:
            if self._closed or path in self._waiting or path in self._opening:
                return
            if any(file.path == path for file in self._files):
                return
            self._waiting.append(path)
            if not self._threads:
                self._start()
            self._changed.notify_all()

    def wait(self, timeout: float) -> bool:
        """Until nothing is left to read: whether that came to be within ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: not (self._waiting or self._opening or self._files), timeout)

    def close(self) -> None:
        """End the readers, within a second: one that hangs in a dead volume's read is left to it."""
        with self._changed:
            self._closed = True
            self._waiting.clear()
            self._changed.notify_all()
        deadline = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def __enter__(self) -> ReadAhead:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _start(self) -> None:
        try:
            for number in range(self._readers):
                thread = threading.Thread(target=self._work, name=f"read-ahead-{number}", daemon=True)
                thread.start()
                self._threads.append(thread)
        except RuntimeError as error:  # the container's limit of threads: fewer readers, or none
            log.warning("read-ahead has %d of %d readers: %s", len(self._threads), self._readers, error)
            if not self._threads:
                self._waiting.clear()

    # --- one reader --------------------------------------------------------------------------------------

    def _work(self) -> None:
        buffer = memoryview(bytearray(PIECE))
        opened: _File | None = None
        fd = -1
        try:
            while (turn := self._next()) is not None:
                if isinstance(turn, Path):
                    self._open(turn)
                    continue
                file, offset = turn
                try:
                    if file is not opened:
                        if fd >= 0:
                            os.close(fd)
                        opened, fd = None, -1
                        fd, opened = open_ahead(file.path), file
                    self._region(file, fd, offset, buffer)
                except OSError as error:
                    log.warning("read-ahead of a model given up: %s", error.strerror)
                    self._give_up(file)
                finally:
                    self._leave(file)
        finally:
            if fd >= 0:
                os.close(fd)

    def _next(self) -> tuple[_File, int] | Path | None:
        """A region of the first file that has one left, or a path to open, or None when closed."""
        with self._changed:
            while not self._closed:
                for file in self._files:
                    if file.next < file.size:
                        file.readers += 1
                        file.next += REGION
                        return file, file.next - REGION
                if self._waiting:
                    path = self._waiting.popleft()
                    self._opening.add(path)
                    return path
                self._changed.wait()
        return None

    def _open(self, path: Path) -> None:
        """Look at a file and put it up for reading, unless there is nothing to win."""
        file = None
        try:
            fd = open_ahead(path)
            try:
                found = os.fstat(fd)
                if stat.S_ISREG(found.st_mode) and found.st_size and not in_memory(found.st_dev):
                    file = _File(path, found.st_size, identity=(found.st_dev, found.st_ino), started=self._clock())
                    file.probed = tells_the_truth(fd, found.st_size)
            finally:
                os.close(fd)
        except (OSError, ValueError) as error:
            log.warning("read-ahead of a model is not possible: %s", getattr(error, "strerror", error))
        with self._changed:
            self._opening.discard(path)
            if file and not any(other.identity == file.identity for other in self._files):
                self._files.append(file)
            self._changed.notify_all()

    def _region(self, file: _File, fd: int, offset: int, buffer: memoryview) -> None:
        """Read what is missing of one region, when there is room for it."""
        length = min(REGION, file.size - offset)
        present = resident(fd, offset, length) if file.probed else None
        pages = PIECE // mmap.PAGESIZE
        missing = [
            start
            for start in range(0, length, PIECE)
            if present is None or 0 in present[(first := start // mmap.PAGESIZE) : first + pages]
        ]
        if not missing:
            return
        if not self._take(sum(min(PIECE, length - start) for start in missing)):
            log.info("read-ahead stops: no free memory is left for more")
            self._give_up()
            return
        for start in missing:
            end = min(start + PIECE, length)
            while start < end and not self._closed:
                count = self._read(fd, buffer[: end - start], offset + start)
                if count == 0:  # the file became shorter
                    return
                start += count
                file.read += count

    def _take(self, size: int) -> bool:
        """Count ``size`` bytes as taken, if they are to be had."""
        free = self._free()
        with self._changed:
            now = self._clock()
            while self._taken and self._taken[0][0] < now - HOLD_S:
                self._taken.popleft()
            if free - MARGIN - sum(taken for _, taken in self._taken) < size:
                return False
            self._taken.append((now, size))
            return True

    def _give_up(self, file: _File | None = None) -> None:
        """Take no more regions of this file; without one: of any, and forget what waits."""
        with self._changed:
            for other in [file] if file else self._files:
                other.next = other.size
            if file is None:
                self._waiting.clear()
                self._files = [other for other in self._files if other.readers]

    def _leave(self, file: _File) -> None:
        with self._changed:
            file.readers -= 1
            if file.readers == 0 and file.next >= file.size:
                self._files.remove(file)
                took = self._clock() - file.started
                level = logging.INFO if file.read else logging.DEBUG
                log.log(
                    level, "read ahead: %.0f of a model's %.0f MB in %.1f s", file.read / 1e6, file.size / 1e6, took
                )
                self._changed.notify_all()


__all__ = ["ReadAhead"]
