"""Hashes of files that may be larger than memory."""

from __future__ import annotations

import hashlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from settee.base.threads import Stopped

#: Large enough that the interpreter's share vanishes and its lock is free nearly all the time.
_CHUNK = 4 * 1024 * 1024


@dataclass(frozen=True)
class Hashes:
    """Bytes that were hashed, and their digests in hex."""

    size: int
    #: None where none was asked for.
    sha256: str | None
    #: Of 64 bits, for later checks.
    xxh3: str


class Hashing:
    """Takes a file's bytes in order."""

    def __init__(self, *, sha256: bool) -> None:
        import xxhash

        self.size = 0
        self._fast, self._strong = xxhash.xxh3_64(), hashlib.sha256() if sha256 else None

    def update(self, chunk: memoryview) -> None:
        self.size += len(chunk)
        self._fast.update(chunk)
        if self._strong is not None:
            self._strong.update(chunk)

    def result(self) -> Hashes:
        sha256 = None if self._strong is None else self._strong.hexdigest()
        return Hashes(self.size, sha256, self._fast.hexdigest())


def hash_file(path: Path | str, *, sha256: bool, stop: threading.Event | None = None) -> Hashes:
    """Read the file once. Raises OSError, Stopped."""
    hashing, buffer = Hashing(sha256=sha256), memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
        while count := file.readinto(buffer):
            if stop is not None and stop.is_set():
                raise Stopped
            hashing.update(buffer[:count])
    return hashing.result()
