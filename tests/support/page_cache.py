"""How much of a file the kernel has in its page cache."""

from __future__ import annotations

import ctypes
import functools
import mmap


def resident(fd: int, offset: int, length: int) -> bytes | None:
    """Return one byte per page: not 0 when it is in the page cache. ``offset`` is a multiple of the page size.

    None when that is not known. A mapping is made and queried, never touched: nothing is read. Valid only for files
    that this process owns or may write to (mm/mincore.c).
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


@functools.cache
def _libc() -> ctypes.CDLL:
    libc = ctypes.CDLL(None, use_errno=True)
    pointer, size, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int
    libc.mmap.argtypes, libc.mmap.restype = [pointer, size, number, number, number, ctypes.c_int64], pointer
    libc.munmap.argtypes = [pointer, size]
    libc.mincore.argtypes = [pointer, size, ctypes.c_char_p]
    return libc
