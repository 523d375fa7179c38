"""Hashes of files that may be larger than memory; hashing can be stopped."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from settee.base.threads import Stopped

#: Large enough that the interpreter's share vanishes and its lock is free nearly all the time.
_CHUNK = 4 * 1024 * 1024


@dataclass(frozen=True)
class Hashes:
    """Hex digests, with the file's size and time from before the first byte was read."""

    sha256: str | None
    xxh3: str
    size: int
    mtime_ns: int


def hash_file(
    path: Path | str,
    *,
    sha256: bool,
    stop: threading.Event | None = None,
    on_bytes: Callable[[int], None] = lambda count: None,
) -> Hashes:
    """Read the file once. ``on_bytes`` gets the size of each chunk. Raises OSError, Stopped."""
    import xxhash

    slow, fast = hashlib.sha256() if sha256 else None, xxhash.xxh3_64()
    buffer = memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file:
        info = os.fstat(file.fileno())
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while count := file.readinto(buffer):
            if stop is not None and stop.is_set():
                raise Stopped
            chunk = buffer[:count]
            fast.update(chunk)
            if slow is not None:
                slow.update(chunk)
            on_bytes(count)
    return Hashes(slow.hexdigest() if slow is not None else None, fast.hexdigest(), info.st_size, info.st_mtime_ns)
