"""Hashes the file in order while later ranges still arrive, then has the disk keep it."""

from __future__ import annotations

import errno
import hashlib
import os
import threading
from dataclasses import dataclass
from pathlib import Path

from settee.base.threads import Stopped
from settee.models.hashing import hash_file
from settee.models.transfer.ledger import Ledger
from settee.models.transfer.part import Part
from settee.models.transfer.trouble import of_disk

_READ_BYTES = 512 * 1024
#: How much must be there before the follower is worth waking.
_STEP_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Digests:
    size: int
    #: Hex; None unless it was asked for.
    sha256: str | None
    #: Hex, of 64 bits.
    xxh3: str


class Hashes:
    """Both hashes of a file, taken from its beginning on. They let other threads run meanwhile."""

    def __init__(self, fd: int, *, with_sha256: bool) -> None:
        import xxhash

        self._fd = fd
        self._fast = xxhash.xxh3_64()
        self._strong = hashlib.sha256() if with_sha256 else None
        self._view = memoryview(bytearray(_READ_BYTES))
        self.position = 0

    def read_to(self, end: int) -> None:
        """Take the bytes up to ``end`` in. Raises OSError, also when there are not as many."""
        while self.position < end:
            count = os.preadv(self._fd, [self._view[: end - self.position]], self.position)
            if not count:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            self._fast.update(self._view[:count])
            if self._strong is not None:
                self._strong.update(self._view[:count])
            self.position += count

    def digests(self) -> Digests:
        strong = self._strong.hexdigest() if self._strong is not None else None
        return Digests(self.position, strong, self._fast.hexdigest())


def follow(part: Part, ledger: Ledger, *, with_sha256: bool) -> Digests:
    """Hash what is in place as it comes, from the page cache; a resumed download's old bytes too.

    Raises Stopped when the ledger is closed, StagingError.
    """
    with part.reading():
        hashes = Hashes(part.fd, with_sha256=with_sha256)
        try:
            while hashes.position != ledger.size:
                there = ledger.wait_beyond(hashes.position, _STEP_BYTES)
                if there is None:
                    raise Stopped
                # In steps: what an earlier download left may be long, and this one may be stopped.
                hashes.read_to(min(there, hashes.position + _STEP_BYTES))
            os.fsync(part.fd)
        except OSError as error:
            raise of_disk(error, part.target, None) from error
    return hashes.digests()


def digests_of(path: Path, stop: threading.Event, *, with_sha256: bool) -> Digests:
    """The same of a file that lies there whole, synced. Raises OSError, Stopped."""
    found = hash_file(path, sha256=with_sha256, stop=stop)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return Digests(found.size, found.sha256, found.xxh3)
