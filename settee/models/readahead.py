"""Read model files into the page cache before ComfyUI asks for them.

ComfyUI maps a safetensors file and faults it in a little at a time, one request after another: from a network volume
or a host cache that is a fraction of what the source gives to several readers at once. Nothing here is needed for a
job to succeed, so nothing here can fail one: errors are logged, without names, which may be a job's.

How it reads was measured (bench/readahead.py): ``posix_fadvise(WILLNEED)`` brings no more than the file system's
read-ahead, 128 KiB over FUSE, and SEQUENTIAL doubles that for one descriptor, so each reader has a descriptor of its
own and reads 8 MiB from one place.

Needs the standard library only: ComfyUI's Python loads it too, for its two functions about memory
(comfy_nodes/settee_patches).
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

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


# --- the page cache, on Linux --------------------------------------------------------------------------------


def is_cached(fd: int, offset: int, length: int) -> bool:
    """Return True if the first and the last byte of a piece are in the page cache, where its file system can tell."""
    byte = bytearray(1)
    try:
        return all(os.preadv(fd, [byte], at, os.RWF_NOWAIT) for at in (offset, offset + length - 1))
    except OSError:  # not without waiting; or that cannot be asked for here
        return False


# --- memory --------------------------------------------------------------------------------------------------


def free_memory(root: Path = Path("/")) -> int:
    """Return the bytes that can be used before something else is evicted; 0 where unknown (no Linux, no /proc).

    The least of MemAvailable and, for every control group from this process's own up to the top, its limit less its
    use, where cache that was not used lately counts as free (`inactive_file`, as Kubernetes reckons a working set).
    ``root`` is the folder that holds ``proc`` and ``sys``.
    """
    available = _fields(root / "proc/meminfo").get("MemAvailable:", 0) * 1024
    return max(0, min([available, *(room for group in _groups(root) if (room := _room(group)) is not None)]))


def total_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this process may fill: the machine's, or its control groups' least limit; 0: unknown."""
    limits = (_limit(group) for group in _groups(root))
    return min([_fields(root / "proc/meminfo").get("MemTotal:", 0) * 1024, *filter(None, limits)])


def _groups(root: Path) -> list[Path]:
    """Return the folders of this process's memory groups, versions 1 and 2, its own and those above.

    /proc/self/cgroup has lines such as ``0::/a/b`` (version 2) and ``4:memory:/a/b`` (version 1). In a container
    without a cgroup namespace that path is the host's, and only the mount's top, the container's own, is to be seen.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    found = []
    for number, controllers, path in (line.split(":", 2) for line in lines if line.count(":") >= 2):
        if number == "0" and not controllers:
            mounts = [root / "sys/fs/cgroup", root / "sys/fs/cgroup/unified"]
        elif "memory" in controllers.split(","):
            mounts = [root / "sys/fs/cgroup/memory"]
        else:
            continue
        parts = [part for part in path.split("/") if part not in ("", "..")]
        found += [mount.joinpath(*parts[:depth]) for mount in mounts for depth in range(len(parts), -1, -1)]
    return found


def _room(group: Path) -> int | None:
    """Return the bytes that this group may still take; None without a limit or such a group."""
    limit = _limit(group)
    for usage, inactive in (("memory.current", "inactive_file"), ("memory.usage_in_bytes", "total_inactive_file")):
        used = _number(group / usage)
        if limit is not None and used is not None:
            return limit - used + min(used, _fields(group / "memory.stat").get(inactive, 0))
    return None


def _limit(group: Path) -> int | None:
    """Return the bytes that this group may take; None without a limit or such a group."""
    found = (_number(group / name) for name in ("memory.max", "memory.high", "memory.limit_in_bytes"))
    return min((limit for limit in found if limit is not None), default=None)


def _number(path: Path) -> int | None:
    """Return the file's number; None for "max" or no such file."""
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):
        return None


def _fields(path: Path) -> dict[str, int]:
    """Read ``name number …`` per line, as in /proc/meminfo and memory.stat."""
    try:
        lines = path.read_text(encoding="ascii").splitlines()
    except (OSError, ValueError):
        return {}
    return {words[0]: int(words[1]) for words in map(str.split, lines) if len(words) > 1 and words[1].isdecimal()}


# --- reading ahead -------------------------------------------------------------------------------------------


@dataclass(eq=False)
class _File:
    path: Path
    size: int = 0
    #: Readers at work on it.
    readers: int = 0
    #: Device and inode: two links to one file are one file.
    identity: tuple[int, int] | None = None
    read: int = 0
    started: float = 0.0


class ReadAhead:
    """Several threads that read files in the order they were named. Safe to use from any thread.

    ``free`` returns how many bytes of memory are left, and ``read(fd, buffer, offset)`` reads as ``os.preadv`` does.
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
        #: Those that are read or wait for it.
        self._files: list[_File] = []
        #: What readers are to do next: the beginning of a region to read, None for a first look.
        self._turns: deque[tuple[_File, int | None]] = deque()
        self._taken: deque[tuple[float, int]] = deque()
        self._threads: list[threading.Thread] = []
        self._closed = False

    def add(self, path: Path) -> None:
        """Have this file read; returns at once. A file that is being read or waits for it is not taken twice."""
        if not sys.platform.startswith("linux"):
            return
        with self._changed:
            if self._closed or any(file.path == path for file in self._files):
                return
            self._files.append(file := _File(path))
            self._turns.append((file, None))
            if not self._threads:
                self._start()
            self._changed.notify_all()

    def close(self) -> None:
        """End the readers, within a second: one that hangs in a dead volume's read is left to it."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        deadline = time.monotonic() + CLOSE_S
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self) -> None:
        try:
            for number in range(self._readers):
                thread = threading.Thread(target=self._work, name=f"read-ahead-{number}", daemon=True)
                thread.start()
                self._threads.append(thread)
        except RuntimeError as error:  # the container's limit of threads: fewer readers, or none
            log.warning("read-ahead has %d of %d readers: %s", len(self._threads), self._readers, error)
            if not self._threads:
                self._give_up(self._files)

    # --- one reader --------------------------------------------------------------------------------------

    def _work(self) -> None:
        buffer, opened, fd = memoryview(bytearray(PIECE)), None, -1
        while turn := self._next():
            file, offset = turn
            try:
                if file is not opened:
                    if fd >= 0:
                        os.close(fd)
                    opened, fd = None, -1
                    # A link is followed, and a pipe does not block.
                    fd, opened = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), file
                    with contextlib.suppress(OSError):  # a pipe; a file system that has no use for it
                        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
                if offset is None:
                    self._look(file, fd)
                else:
                    self._region(file, fd, offset, buffer)
            except (OSError, ValueError) as error:
                log.warning("read-ahead of a model given up: %s", getattr(error, "strerror", error))
                self._give_up([file])
            finally:
                self._leave(file)
        if fd >= 0:
            os.close(fd)

    def _next(self) -> tuple[_File, int | None] | None:
        """Return the next turn; None when closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._turns or self._closed)
            if self._closed:
                return None
            file, offset = self._turns.popleft()
            file.readers += 1
            return file, offset

    def _look(self, file: _File, fd: int) -> None:
        """Have a file read before all others, unless that would gain nothing."""
        found = os.fstat(fd)
        identity = found.st_dev, found.st_ino
        with self._changed:
            if stat.S_ISREG(found.st_mode) and all(other.identity != identity for other in self._files):
                file.size = found.st_size
            file.identity, file.started = identity, self._clock()
            self._turns.extendleft((file, offset) for offset in reversed(range(0, file.size, REGION)))
            self._changed.notify_all()

    def _region(self, file: _File, fd: int, offset: int, buffer: memoryview) -> None:
        """Read the missing parts of one region, if there is memory for it."""
        length = min(REGION, file.size - offset)
        pieces = [(start, min(PIECE, length - start)) for start in range(0, length, PIECE)]
        missing = [(start, size) for start, size in pieces if not is_cached(fd, offset + start, size)]
        if missing and not self._take(sum(size for _, size in missing)):
            log.info("read-ahead stops: no free memory is left for more")
            self._give_up(self._files)
            return
        for start, size in missing:
            end = start + size
            while start < end and not self._closed:
                count = self._read(fd, buffer[: end - start], offset + start)
                if count == 0:  # the file became shorter
                    return
                start += count
                file.read += count

    def _take(self, size: int) -> bool:
        """Count ``size`` bytes as taken, if they are free."""
        free = self._free()
        with self._changed:
            now = self._clock()
            while self._taken and self._taken[0][0] < now - HOLD_S:
                self._taken.popleft()
            if free - MARGIN - sum(taken for _, taken in self._taken) < size:
                return False
            self._taken.append((now, size))
            return True

    def _give_up(self, files: list[_File]) -> None:
        """Take no more turns for these files."""
        with self._changed:
            self._turns = deque(turn for turn in self._turns if turn[0] not in files)
            self._files = [file for file in self._files if file.readers or file not in files]

    def _leave(self, file: _File) -> None:
        with self._changed:
            file.readers -= 1
            if not file.readers and all(other is not file for other, _ in self._turns):
                self._files.remove(file)
                level = logging.INFO if file.read else logging.DEBUG
                read, size, took = file.read / 1e6, file.size / 1e6, self._clock() - file.started
                log.log(level, "read ahead: %.0f of a model's %.0f MB in %.1f s", read, size, took)
