"""Wiping: what a job left on the disk is overwritten where it lies, then removed.

The zeroes must land on the very pages that hold the old bytes. Opening a file for writing the usual way
(``open(name, "wb")``) truncates it first: the old pages go back to the kernel untouched and the zeroes fill new
ones. So a file is opened without truncation, overwritten in place, synced, and only then cut and unlinked. A hard
link, a mapping or a descriptor that somebody else still holds then shows zeroes too.

This holds for a RAM disk and for file systems that overwrite in place (ext4, XFS). One that copies on write
(btrfs, ZFS, a lower layer of overlayfs) keeps the old blocks until it reuses them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from dataclasses import dataclass
from pathlib import Path

_ZEROES = memoryview(bytes(1024 * 1024))

#: Folders within folders that are open at once; deeper ones are moved up first, so that a tree of any depth
#: costs neither descriptors nor Python's recursion.
_DEEPEST = 32

#: Looks at one folder before it is given up as one that is being written into all the time.
_PASSES = 200

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


@dataclass(frozen=True)
class Wiped:
    """What a wipe did."""

    #: Directory entries removed that were not folders: files, links, fifos, sockets, devices.
    files: int = 0
    #: Bytes overwritten with zeroes; the holes of a sparse file hold nothing and do not count.
    bytes: int = 0
    #: What could not be wiped, relative to the root ("." is the root): still there, or gone but not overwritten.
    left: tuple[str, ...] = ()


def wipe_file(name: str, *, dir_fd: int) -> int:
    """Overwrite the file ``name`` of an open folder with zeroes in place, sync, truncate and unlink it.

    Other names of the same file (hard links) lose the bytes as well. Symbolic links, fifos, sockets and devices
    are only unlinked: never followed, never opened. Returns the bytes overwritten. A file that could not be
    overwritten is unlinked all the same, so that no later job meets it. Raises OSError for either failure, also
    FileNotFoundError when there is nothing of that name.
    """
    if not stat.S_ISREG(os.lstat(name, dir_fd=dir_fd).st_mode):
        os.unlink(name, dir_fd=dir_fd)
        return 0
    try:
        return _overwrite(name, dir_fd)
    finally:
        os.unlink(name, dir_fd=dir_fd)


def _overwrite(name: str, dir_fd: int) -> int:
    # O_NONBLOCK and the second look at the type: the name may have become a fifo since the first.
    flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    try:
        fd = os.open(name, flags, dir_fd=dir_fd)
    except PermissionError:
        _allow_owner(name, dir_fd)
        fd = os.open(name, flags, dir_fd=dir_fd)
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            return 0
        written = _zero(fd, status.st_size)
        os.fsync(fd)
        os.ftruncate(fd, 0)
        return written
    finally:
        os.close(fd)


def _zero(fd: int, size: int) -> int:
    """Zero every stretch of data within ``size`` bytes. Holes are left: filling them would take memory."""
    written = position = 0
    while position < size:
        try:
            position = os.lseek(fd, position, os.SEEK_DATA)
            end = min(os.lseek(fd, position, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data beyond here
                break
            end = size  # a file system that knows no holes
        while position < end:
            count = os.pwrite(fd, _ZEROES[: end - position], position)
            position += count
            written += count
    return written


def _allow_owner(name: str, dir_fd: int) -> None:
    """Give the owner every right to a file or folder of ours, without following a link."""
    fd = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)
    try:
        # fchmod refuses O_PATH descriptors; this address leads to the open file itself, whatever its name is now.
        os.chmod(f"/proc/self/fd/{fd}", 0o700)
    finally:
        os.close(fd)


class _Walk:
    """One wipe of one tree: what it has done so far."""

    def __init__(self, root_fd: int) -> None:
        self.root_fd = root_fd
        self.files = 0
        self.bytes = 0
        self.left: list[str] = []
        self.moved = 0

    def empty(self, fd: int, path: str, depth: int) -> None:
        """Wipe everything in the open folder ``fd``, called ``path`` (ends with "/", "" for the root).

        Looks again until it finds nothing new: a file may be created meanwhile, and a deep folder be moved up.
        """
        failed: set[str] = set()
        for _ in range(_PASSES):
            found = False
            folders = []
            with os.scandir(fd) as entries:
                for entry in entries:
                    if entry.name in failed:
                        continue
                    found = True
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.name)
                    elif not self.file(fd, entry.name):
                        failed.add(entry.name)
            failed.update(name for name in folders if not self.folder(fd, name, path, depth))
            if not found:
                break
        else:
            failed.add(".")
        self.left += [path + name for name in failed]

    def file(self, fd: int, name: str) -> bool:
        try:
            self.bytes += wipe_file(name, dir_fd=fd)
        except FileNotFoundError:
            return True  # somebody else was faster
        except OSError as error:
            # A folder that took the file's place is met again in the next pass.
            return error.errno == errno.EISDIR
        self.files += 1
        return True

    def folder(self, fd: int, name: str, path: str, depth: int) -> bool:
        try:
            if depth >= _DEEPEST:
                self.moved += 1
                os.rename(name, f".wiped-{self.moved}", src_dir_fd=fd, dst_dir_fd=self.root_fd)
                return True
            # O_NOFOLLOW: a folder that has become a link since it was listed must not lead out of the tree.
            try:
                child = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
            except PermissionError:
                _allow_owner(name, fd)
                child = os.open(name, _FOLDER | os.O_NOFOLLOW, dir_fd=fd)
            try:
                if os.fstat(child).st_mode & 0o300 != 0o300:
                    with contextlib.suppress(PermissionError):
                        os.fchmod(child, 0o700)  # nothing can be removed from a read-only folder
                self.empty(child, f"{path}{name}/", depth + 1)
            finally:
                os.close(child)
            os.rmdir(name, dir_fd=fd)
        except FileNotFoundError:
            return True
        except NotADirectoryError:
            return self.file(fd, name)
        except OSError as error:
            return self.file(fd, name) if error.errno == errno.ELOOP else False
        return True


def wipe_tree(root: Path) -> Wiped:
    """Wipe everything below ``root``, in constant memory; ``root`` itself stays.

    Every folder is opened through its parent's descriptor and no link is followed, so nothing outside is touched
    even when somebody swaps folders for links meanwhile. The one exception is ``root``: start.sh may have made
    ComfyUI's input a link to the RAM disk, and it is the operator who names it. A missing root is an empty one.
    Never raises for what it meets in the tree: see :attr:`Wiped.left`.
    """
    try:
        fd = os.open(root, _FOLDER)
    except FileNotFoundError:
        return Wiped()
    except OSError:
        return Wiped(left=(".",))
    try:
        walk = _Walk(fd)
        walk.empty(fd, "", 0)
    finally:
        os.close(fd)
    return Wiped(walk.files, walk.bytes, tuple(walk.left))
