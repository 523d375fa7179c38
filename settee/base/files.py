"""Files that are whole or not there at all, locks that processes share, and hashes.

Where an operating system or a file system has no locks, or cannot sync a folder, the file is written all the same.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator
from enum import Enum
from pathlib import Path

PART = ".part"
#: Who removes or replaces a file holds its lock for an unlink, not longer.
WAIT_S = 2.0
_CHUNK = 1024 * 1024
#: What file systems answer, network ones mostly, that have no such thing as syncing a folder.
_NO_SYNC = (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES, errno.EROFS)


@contextlib.contextmanager
def closing_fd(fd: int) -> Iterator[int]:
    """Close an open file or folder when it is done with."""
    try:
        yield fd
    finally:
        os.close(fd)


def write_whole(
    path: Path | str,
    content: bytes | Iterable[bytes | memoryview],
    *,
    mode: int = 0o600,
    is_lasting: bool = True,
    part: Path | str | None = None,
) -> None:
    """Put ``content`` in the place of ``path``: written to ``part`` (default: ``<path>.part``), then renamed.

    With ``is_lasting`` it survives a power cut on return. No link is followed. Raises OSError, and what ``content``
    raises; what was there before stays then.
    """
    part = part or f"{path}{PART}"
    chunks = (content,) if isinstance(content, bytes) else content
    flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
    try:
        with closing_fd(os.open(part, flags, mode)) as fd:
            for chunk in chunks:
                write_all(fd, chunk)
            if is_lasting:
                os.fsync(fd)
        os.replace(part, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(part)
        raise
    if is_lasting:
        sync_folder(Path(path).parent)


def write_all(fd: int, chunk: bytes | memoryview) -> None:
    """Write all of a chunk. Raises OSError."""
    view = memoryview(chunk)
    while view:
        view = view[os.write(fd, view) :]


def sync_folder(folder: Path) -> None:
    """Make renames and removals in the folder last, where its file system can. Raises OSError of a broken disk."""
    try:
        flags = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0) | getattr(os, "O_CLOEXEC", 0)
        with closing_fd(os.open(folder, flags)) as fd:
            os.fsync(fd)
    except OSError as error:
        if error.errno not in _NO_SYNC:
            raise


class Lock(Enum):
    """The result of an attempt to lock a file."""

    HELD = "held"
    #: Another process or thread holds one that excludes it.
    BUSY = "busy"
    #: There is no such file, or no locks here.
    NONE = "none"


def try_lock(fd: int, *, exclusive: bool = True) -> Lock:
    """flock an open file without waiting. It is held until the file is closed everywhere."""
    try:
        import fcntl
    except ImportError:  # Windows
        return Lock.NONE
    try:
        fcntl.flock(fd, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
    except OSError as error:
        return Lock.BUSY if error.errno in (errno.EAGAIN, errno.EACCES) else Lock.NONE
    return Lock.HELD


def hold(stack: contextlib.ExitStack, path: str, *, exclusive: bool, wait_s: float, create: bool = False) -> Lock:
    """Lock the file at ``path`` until the stack closes, waiting at most ``wait_s`` for another holder.

    A file that was replaced meanwhile does not count: the lock on the new file of that name is taken then.
    """
    deadline = time.monotonic() + wait_s
    while True:
        try:
            fd = _open_to_lock(path, create)
        except OSError:
            return Lock.NONE
        found = try_lock(fd, exclusive=exclusive)
        if found is Lock.HELD and is_at(fd, path):
            stack.callback(_release, fd)
            return Lock.HELD
        os.close(fd)
        if found is Lock.NONE or (found is Lock.BUSY and time.monotonic() >= deadline):
            return found
        if found is Lock.BUSY:
            time.sleep(0.002)  # flock has no timeout, and a stopped process must not stop this one


def is_at(fd: int, path: str | Path) -> bool:
    """Return True if the open file is the one at ``path``."""
    try:
        return os.path.samestat(os.fstat(fd), os.stat(path))
    except OSError:
        return False


def _release(fd: int) -> None:
    """Give a lock up at once: a process forked meanwhile (the SDK's ping) has the same open file, and would keep it."""
    with contextlib.suppress(OSError, ImportError):
        import fcntl

        fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)


def _open_to_lock(path: str, create: bool) -> int:
    """Open for writing where that is allowed: NFS gives exclusive locks to no other."""
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_CREAT if create else 0), 0o600)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)


def sha256_of(path: Path | str, check: Callable[[], object] = lambda: None) -> str:
    """Return the hex SHA-256 of a file. ``check`` is called between pieces. Raises OSError, and what it raises."""
    digest, buffer = hashlib.sha256(), memoryview(bytearray(_CHUNK))
    with open(path, "rb", buffering=0) as file:
        while count := file.readinto(buffer):
            check()
            digest.update(buffer[:count])
    return digest.hexdigest()


def digest_of(text: str) -> str:
    """Return the hex SHA-256 of a string, half surrogate pairs included: a file name for any id."""
    return hashlib.sha256(text.encode(errors="surrogatepass")).hexdigest()
