"""What the kernel has of a file in memory, and how to open a file that is to be read from front to back. Linux."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import mmap
import os
import sys
from pathlib import Path


def open_ahead(path: Path) -> int:
    """A descriptor for reading from front to back; a link is followed, and a pipe does not block. Raises OSError."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    if sys.platform.startswith("linux"):
        with contextlib.suppress(OSError):  # a pipe; a file system that has no use for it
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_SEQUENTIAL)
    return fd


def in_memory(device: int) -> bool:
    """Whether that device is a RAM disk, by /proc/self/mountinfo (fields: id parent major:minor … - type source)."""
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
    """One byte per page: not 0 when it is in the page cache. ``offset`` is a multiple of the page size.

    None when it cannot be known. A mapping is made and asked about, never touched: nothing is read.
    Believe it when :func:`tells_the_truth`.
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
    """Whether :func:`resident` can be believed of this file, which has ``size`` bytes.

    Since Linux 5.2 mincore says "all of it" to whoever neither owns the file nor may write to it (mm/mincore.c).
    Who is told the same of a page far behind the file's end is told nothing.
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


__all__ = ["in_memory", "open_ahead", "resident", "tells_the_truth"]
