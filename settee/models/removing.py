"""Removing files of the models folder: only what is known to be ours, and wiped where that was asked for."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator

from settee.base.files import Lock, try_lock, unlock
from settee.models.places import JOURNAL, PART
from settee.models.records import Placed, temporary_name
from settee.wipe import wipe_file


def remove_file(path: str, placed: Placed) -> int:
    """Remove what the record is of, and nothing else: the bytes that this freed. Raises OSError."""
    info = os.lstat(path)
    if _is_recorded_link(path, info, placed):
        os.unlink(path)
    if not _is_recorded_file(info, placed):
        return 0
    os.unlink(path)
    return _freed(info)


def put_away(path: str, placed: Placed) -> tuple[int, str | None]:
    """The same, but a file's bytes are still there, under the hidden name that comes second: :func:`overwrite` it."""
    info = os.lstat(path)
    if _is_recorded_link(path, info, placed):
        os.unlink(path)
    if not _is_recorded_file(info, placed):
        return 0, None
    hidden = f"{os.path.dirname(path)}/{temporary_name()}"
    os.rename(path, hidden)
    return _freed(info), hidden


def _is_recorded_link(path: str, info: os.stat_result, placed: Placed) -> bool:
    return placed.link is not None and stat.S_ISLNK(info.st_mode) and os.readlink(path) == placed.link


def _is_recorded_file(info: os.stat_result, placed: Placed) -> bool:
    # Where a job's download had begun, what is there is either its end or what it was to replace: a job's, both.
    is_ours = (placed.pending and placed.from_job) or placed.matches(info.st_size, info.st_mtime_ns, None)
    return placed.link is None and stat.S_ISREG(info.st_mode) and is_ours


def _freed(info: os.stat_result) -> int:
    return info.st_size if info.st_nlink == 1 else 0


def remove_part(target: str, *, wipe: bool = False) -> bool:
    """Remove a download's part and journal. False when it goes on in some process. Raises OSError."""
    with _part_lock(target) as is_free:
        if not is_free:
            return False
        for path in (target + JOURNAL, target + PART):
            with contextlib.suppress(FileNotFoundError):
                (overwrite if wipe else os.unlink)(path)
    return True


def is_downloading(target: str) -> bool:
    """Whether some process goes on with the download of this file."""
    with _part_lock(target) as is_free:
        return not is_free


@contextlib.contextmanager
def _part_lock(target: str) -> Iterator[bool]:
    """Who downloads has a flock on the part. True when nobody has, or there is no part."""
    try:
        fd = os.open(target + PART, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        # Of what cannot be opened nobody can tell; a link is no part of ours.
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
