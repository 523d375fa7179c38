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
import ctypes
import functools
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


def open_ahead(path: Path) -> int:
    """Open a file for reading from front to back; a link is followed, and a pipe does not block. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):  # a pipe; a file system that has no use for it
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return fd


def in_memory(device: int) -> bool:
    """Return True for a RAM disk, by /proc/self/mountinfo (fields: id parent major:minor … - type source)."""
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = Path("/proc/self/mountinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return False
    return any(
        before.split()[2] == wanted and after.split()[0] in ("tmpfs", "ramfs", "devtmpfs")
        for before, dash, after in (line.partition(" - ") for line in lines)
        if dash
    )


def resident(fd: int, offset: int, length: int) -> bytes | None:
    """Return one byte per page: not 0 when it is in the page cache. ``offset`` is a multiple of the page size.

    None when that is not known. A mapping is made and queried, never touched: nothing is read. Valid only for files
    that :func:`tells_the_truth` about.
    """
    libc = _libc()
    address = libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_SHARED, fd, offset)
    if address in (None, ctypes.c_void_p(-1).value):
        return None
    try:
        pages = ctypes.create_string_buffer(-(-length // mmap.PAGESIZE))
        return bytes(pages) if libc.mincore(address, length, pages) == 0 else None
    finally:
        libc.munmap(address, length)


def tells_the_truth(fd: int, size: int) -> bool:
    """Return True if :func:`resident` is valid for this file, which has ``size`` bytes.

    Since Linux 5.2 mincore reports every page as resident to a process that neither owns the file nor may write to it
    (mm/mincore.c), also a page far behind the file's end.
    """
    behind = (size // mmap.PAGESIZE) * mmap.PAGESIZE + 2**30
    return resident(fd, behind, mmap.PAGESIZE) == b"\0"


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes, libc.mmap.restype = [pointer, size, number, number, number, ctypes.c_int64], pointer
    libc.munmap.argtypes = [pointer, size]
    libc.mincore.argtypes = [pointer, size, ctypes.c_char_p]
    return libc


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
    #: Where the next region begins.
    next: int = 0
    #: Readers at work on it.
    readers: int = 0
    #: Device and inode: two links to one file are one file.
    identity: tuple[int, int] = (0, 0)
    #: :func:`resident` is valid.
    probed: bool = False
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
        """Wait until nothing is left to read. False after ``timeout`` seconds."""
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
        """Return a region of the first file that has one left, or a path to open, or None when closed."""
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
        """Look at a file and queue it for reading, unless that would gain nothing."""
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
        """Read the missing parts of one region, if there is memory for it."""
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

    def _give_up(self, file: _File | None = None) -> None:
        """Take no more regions of this file; without one: of any file, and drop all that wait."""
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
