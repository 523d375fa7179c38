"""The users of files in a models folder; removal of files without users, wiped where that was asked for.

Only what is known to be settee's is removed.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from settee.base.files import Lock, try_lock, unlock
from settee.models.folder.place import JOURNAL, PART
from settee.models.folder.records import Placed, Records, temporary_name
from settee.staging.wipe import wipe_file

log = logging.getLogger(__name__)


class Users:
    """The users of one models folder, of this process and of all others that share it. Safe from any thread.

    ``root`` is the folder's absolute path. Names are relative to it: ``checkpoints/sd15.safetensors``.
    """

    def __init__(self, root: str, records: Records) -> None:
        self._root, self._records = root, records
        #: How many running jobs of this process use a file.
        self._counts: Counter[str] = Counter()
        self._mutex = threading.RLock()

    @contextlib.contextmanager
    def use(self, names: Sequence[str], is_right: Callable[[int], bool]) -> Iterator[tuple[int, ...]]:
        """Keep these files from being removed or replaced. Yields the indices of those that cannot be used.

        ``is_right`` is asked, with an index, once that file cannot be removed any more. Where the file system has no
        locks, only this process is kept from removing them.
        """
        with contextlib.ExitStack() as stack:
            with self._mutex:
                self._counts.update(names)
            stack.callback(self._leave, names)
            gone = []
            for number, rel in enumerate(names):
                with contextlib.ExitStack() as one:
                    lock = one.enter_context(self._records.lock(rel, exclusive=False))
                    if lock is Lock.BUSY or not is_right(number):
                        gone.append(number)
                        continue
                    self._records.touch(rel)
                    stack.push(one.pop_all())
            yield tuple(gone)

    def _leave(self, names: Sequence[str]) -> None:
        with self._mutex:
            self._counts.subtract(names)
            self._counts += Counter()  # drops the zeroes

    def in_use(self, rel: str) -> bool:
        """Return True if a running job uses the file, in this process or another."""
        with self._mutex:
            if self._counts[rel] > 0:
                return True
            with self._records.lock(rel, exclusive=True) as lock:
                return lock is Lock.BUSY

    def remove(self, placed: Placed, *, wipe: bool = False) -> int | None:
        """Remove a recorded file and its record. Return the bytes freed, or None while a running job uses it.

        None too when its record has changed since: the file was placed again. Of a link only the link is removed. A
        file that is not the recorded one any more stays. ``wipe`` overwrites the bytes. Raises OSError.
        """
        path, put_aside = f"{self._root}/{placed.path}", None
        with self._mutex:
            if self._counts[placed.path] > 0:
                return None
            with self._records.lock(placed.path, exclusive=True) as lock:
                # Size and time alone prove nothing: files written one after the other may share both.
                if lock is Lock.BUSY or self._records.read(placed.path) != placed:
                    return None
                freed = 0
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    # Overwriting takes seconds, for which no lock may be held: the file is first renamed away.
                    freed, put_aside = _remove_recorded(path, placed, put_away=wipe)
                self._records.delete(placed.path)
        if put_aside is not None:
            overwrite(put_aside)
        return freed

    def wipe(self, rel: str) -> bool:
        """Overwrite and remove what a sealed job brought, also half downloaded. MODELS' files stay.

        False, which is logged, when something is left: in use by another job, or not removable.
        """
        try:
            placed = self._records.read(rel)
            removed = placed is None or not placed.from_job or self.remove(placed, wipe=True) is not None
            is_gone = remove_part(f"{self._root}/{rel}", wipe=True) and removed
        except OSError as error:
            log.error("a job's model could not be wiped: %s", error.strerror)
            return False
        if not is_gone:
            log.error("a job's model could not be wiped: another job uses or fetches it")
        return is_gone


def _remove_recorded(path: str, placed: Placed, *, put_away: bool) -> tuple[int, str | None]:
    """Remove the file or link that the record describes, and nothing else. Return the bytes freed. Raises OSError.

    ``put_away`` renames a file to a hidden name instead, which is returned for :func:`overwrite`.
    """
    info = os.lstat(path)
    if placed.link is not None:
        if stat.S_ISLNK(info.st_mode) and os.readlink(path) == placed.link:
            os.unlink(path)
        return 0, None
    # Where a job's download had begun, the file is either its result or what it was to replace: both a job's.
    is_ours = (placed.pending and placed.from_job) or placed.matches(info.st_size, info.st_mtime_ns, None)
    if not (stat.S_ISREG(info.st_mode) and is_ours):
        return 0, None
    hidden = f"{os.path.dirname(path)}/{temporary_name()}" if put_away else None
    if hidden is None:
        os.unlink(path)
    else:
        os.rename(path, hidden)
    return info.st_size if info.st_nlink == 1 else 0, hidden


def remove_part(target: str, *, wipe: bool = False) -> bool:
    """Remove a download's part and journal. False while a process goes on with it. Raises OSError."""
    with _part_lock(target) as is_free:
        if not is_free:
            return False
        for path in (target + JOURNAL, target + PART):
            with contextlib.suppress(FileNotFoundError):
                (overwrite if wipe else os.unlink)(path)
    return True


def is_downloading(target: str) -> bool:
    """Return True if some process goes on with the download of this file."""
    with _part_lock(target) as is_free:
        return not is_free


@contextlib.contextmanager
def _part_lock(target: str) -> Iterator[bool]:
    """Take the flock that a download holds on its part. Yields True when it was free, or there is no part."""
    try:
        fd = os.open(target + PART, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        # Nothing is known of a part that cannot be opened; a link is not one of settee's.
        yield error.errno == errno.ENOENT
        return
    try:
        yield try_lock(fd) is not Lock.BUSY
    finally:
        unlock(fd)
        os.close(fd)


def overwrite(path: str) -> None:
    """Overwrite a file in place and remove it. Raises OSError."""
    folder, name = os.path.split(path)
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        wipe_file(name, dir_fd=fd)
    finally:
        os.close(fd)
