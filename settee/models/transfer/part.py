"""The partial file beside the target: one writer in the whole machine, renamed once it is right.

Its descriptor lives as long as anybody uses it: a thread that a silent server holds back may outlast its download, and
must not find another file under the number it knew.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import logging
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from settee.base.files import Lock, is_at, sync_folder, try_lock, unlock
from settee.base.threads import Stopped
from settee.models.address import Address
from settee.models.transfer import journal
from settee.models.transfer.trouble import failed, free_bytes, of_disk

logger = logging.getLogger(__name__)

#: flock has no event and no time limit of its own.
_LOCK_POLL_S = 0.1
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
_NO_FALLOCATE = (errno.EOPNOTSUPP, errno.ENOSYS, errno.EINVAL)


class Part:
    def __init__(self, target: Path, fd: int) -> None:
        self.target = target
        self.path, self.journal_path = paths(target)
        self.fd = fd
        self._lock = threading.Condition()
        self._writers = 0
        self._users = 1
        self._closing = False

    def allocate(self, size: int) -> None:
        """Give the file its size and, where the file system can, its room. Raises NoSpace, StagingError."""
        needed = self.check_room(size)
        try:
            if not _fallocate(self.fd, size):
                os.ftruncate(self.fd, size)
        except OSError as error:
            raise of_disk(error, self.target, needed) from error

    def check_room(self, size: int) -> int:
        """How many bytes more a file of that size takes. Raises NoSpace when the disk has not as many."""
        needed = max(0, size - os.fstat(self.fd).st_blocks * 512)
        if needed > free_bytes(self.target.parent):
            raise of_disk(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), self.target, needed)
        return needed

    def write(self, data: memoryview, offset: int) -> None:
        """Raises NoSpace, StagingError, Stopped once the part is being closed."""
        if self._closing:
            raise Stopped
        try:
            while data:
                count = os.pwrite(self.fd, data, offset)
                data, offset = data[count:], offset + count
        except OSError as error:
            raise of_disk(error, self.target, None) from error

    def size(self) -> int:
        return os.fstat(self.fd).st_size

    def reset(self) -> None:
        """Forget all bytes. Raises StagingError."""
        try:
            journal.remove(self.journal_path)
            os.ftruncate(self.fd, 0)
        except OSError as error:
            raise of_disk(error, self.target, None) from error

    def tidy(self) -> None:
        """After a download that failed: leave nothing behind that no later one could go on with."""
        found = journal.load(self.journal_path)
        if found is None or not any(found[1]):
            self.discard()

    def discard(self) -> None:
        """Leave nothing behind. What another process put there since is not touched."""
        if not is_at(self.fd, self.path):
            return
        with contextlib.suppress(OSError):
            journal.remove(self.journal_path)
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def finish(self, instead: Path | None = None) -> None:
        """Rename the part, or a file that is ``instead`` of it, to the target. Either is synced already.

        It survives a power cut from here on. Raises StagingError.
        """
        try:
            # First: a journal without its part is harmless, one beside the next part would lie.
            journal.remove(self.journal_path)
            (instead or self.path).replace(self.target)
            if instead is not None:
                self.path.unlink(missing_ok=True)
            sync_folder(self.target.parent)
        except OSError as error:
            raise of_disk(error, self.target, None) from error

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """For a thread that is about to write; :meth:`settle` waits for it. Raises Stopped when it is too late."""
        with self.reading():
            with self._lock:
                self._writers += 1
            try:
                yield
            finally:
                with self._lock:
                    self._writers -= 1
                    self._lock.notify_all()

    @contextlib.contextmanager
    def reading(self) -> Iterator[None]:
        """For a thread that reads or syncs, and may be left alone with that. Raises Stopped when it is too late."""
        with self._lock:
            if self._closing:
                raise Stopped
            self._users += 1
        try:
            yield
        finally:
            self._leave()

    def settle(self, timeout_s: float) -> None:
        """Wait until nobody writes."""
        with self._lock:
            self._lock.wait_for(lambda: not self._writers, timeout_s)

    def close(self) -> None:
        """Let others have it: the lock is given up at once, the descriptor with its last user."""
        with self._lock:
            self._closing = True
        unlock(self.fd)
        self._leave()

    def _leave(self) -> None:
        with self._lock:
            self._users -= 1
            last = not self._users
        if last:
            os.close(self.fd)


def paths(target: Path) -> tuple[Path, Path]:
    """The part and its journal."""
    return target.with_name(target.name + ".part"), target.with_name(target.name + ".part.json")


def open_part(target: Path, address: Address, stop: threading.Event, deadline: float) -> tuple[Part, bool]:
    """The part, locked against every other process and thread, and whether another one had it before.

    Raises Stopped, DownloadFailed at the deadline, StagingError.
    """
    path, _ = paths(target)
    waited = False
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        while True:
            fd = os.open(path, _FLAGS, 0o666)
            try:
                waited = _lock(fd, address, stop, deadline) or waited
                if is_at(fd, path):
                    return Part(target, fd), waited
            except BaseException:
                os.close(fd)
                raise
            # Whoever had it renamed or removed it.
            os.close(fd)
            waited = True
    except OSError as error:
        raise of_disk(error, target, None) from error


def _lock(fd: int, address: Address, stop: threading.Event, deadline: float) -> bool:
    """Whether it took waiting."""
    waited = False
    while True:
        found = try_lock(fd)
        if found is Lock.NONE:
            logger.warning(
                "the file system of the models folder has no locks: %s is downloaded without one", address.logged
            )
        if found is not Lock.BUSY:
            return waited
        if not waited:
            logger.info("another process is downloading %s: waiting for it", address.logged)
        waited = True
        if stop.wait(_LOCK_POLL_S):
            raise Stopped
        if time.monotonic() > deadline:
            raise failed(address.where, "another process was still downloading it when MODELS_TIMEOUT_S had passed")


def _fallocate(fd: int, size: int) -> bool:
    """Whether room was allocated; False where the file system cannot. Raises OSError.

    Not os.posix_fallocate, whose C library, on file systems without it, writes into every single block instead.
    """
    call = getattr(ctypes.CDLL(None, use_errno=True), "fallocate", None)
    if call is None or size == 0:
        return False
    call.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    while call(fd, 0, 0, size) != 0:
        code = ctypes.get_errno()
        if code in _NO_FALLOCATE:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True
