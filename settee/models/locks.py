"""Locks on files that processes share: had at once, or known not to be."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from enum import Enum

#: Who removes or replaces a file holds its lock for an unlink, not longer.
WAIT_S = 2.0


class Lock(Enum):
    """What became of an attempt to lock a record."""

    HELD = "held"
    #: Somebody else holds one that does not go with it.
    BUSY = "busy"
    #: There is no record, or the file system knows no locks.
    NONE = "none"


def hold(stack: contextlib.ExitStack, path: str, *, exclusive: bool, wait_s: float, create: bool = False) -> Lock:
    """Lock the file at ``path`` until the stack closes, waiting at most ``wait_s`` for whoever is in the way.

    What was replaced by another file of that name meanwhile does not count: then it is that one's lock.
    """
    operation = fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fd = _open_to_lock(path, create)
        except OSError:
            return Lock.NONE
        is_busy = False
        try:
            fcntl.flock(fd, operation | fcntl.LOCK_NB)
            if _is_still(fd, path):
                stack.callback(_unlock, fd)
                return Lock.HELD
            # Else replaced meanwhile: the lock of the new record is the one that counts.
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                os.close(fd)
                return Lock.NONE
            is_busy = True
        os.close(fd)
        if is_busy and time.monotonic() >= deadline:
            return Lock.BUSY
        if is_busy:
            time.sleep(0.002)  # flock has no timeout, and a stopped process must not stop this one


def _unlock(fd: int) -> None:
    # Explicitly: a process forked meanwhile (the SDK's ping) has the same open file, and would keep it locked.
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _open_to_lock(path: str, create: bool) -> int:
    """For writing where it may be: NFS gives exclusive locks to no other."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_CREAT if create else 0), 0o600)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def _is_still(fd: int, path: str) -> bool:
    try:
        there = os.stat(path)
    except OSError:
        return False
    mine = os.fstat(fd)
    return (there.st_dev, there.st_ino) == (mine.st_dev, mine.st_ino)
