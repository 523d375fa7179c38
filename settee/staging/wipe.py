"""Wiping: what a job left on the disk is overwritten in place, then removed.

The zeroes must land on the very pages that hold the old bytes. Opening a file for writing the usual way
(``open(name, "wb")``) truncates it first: the old pages go back to the kernel untouched and the zeroes fill new
ones. So a file is opened without truncation, overwritten in place, synced, and only then cut and unlinked. A hard
link, a mapping or a descriptor that another process still holds then shows zeroes too.

This holds for a RAM disk and for file systems that overwrite in place (ext4, XFS). One that copies on write
(btrfs, ZFS, a lower layer of overlayfs) keeps the old blocks until it reuses them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from pathlib import Path

from settee.base.files import closing_fd

_ZEROES = memoryview(bytes(1024 * 1024))

#: Folders within folders that are open at once; deeper ones are moved up first, so that a tree of any depth
#: costs neither descriptors nor Python's recursion.
_DEEPEST = 32

#: Walks over a tree before it is given up as one that is being written into all the time.
_PASSES = 5

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def wipe_file(name: str, *, dir_fd: int) -> None:
    """Overwrite the file ``name`` of an open folder with zeroes in place, sync, truncate and unlink it.

    Other names of the same file (hard links) lose the bytes as well. Symbolic links, fifos, sockets and devices
    are only unlinked: never followed, never opened. A file that could not be overwritten is unlinked all the same, so
    that no later job meets it. Raises OSError for either failure, also FileNotFoundError when there is nothing of that
    name.
    """
    is_file = stat.S_ISREG(os.lstat(name, dir_fd=dir_fd).st_mode)
    try:
        if is_file:
            # O_NONBLOCK and the second look at the type: the name may have become a fifo since the first.
            flags = os.O_WRONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
            with closing_fd(_open(name, flags, dir_fd)) as fd:
                status = os.fstat(fd)
                if stat.S_ISREG(status.st_mode):
                    _zero(fd, status.st_size)
                    os.fsync(fd)
                    os.ftruncate(fd, 0)
    finally:
        os.unlink(name, dir_fd=dir_fd)


def _zero(fd: int, size: int) -> None:
    """Zero every stretch of data within ``size`` bytes. Holes are left: filling them would take memory."""
    position = 0
    while position < size:
        try:
            position = os.lseek(fd, position, os.SEEK_DATA)
            end = min(os.lseek(fd, position, os.SEEK_HOLE), size)
        except OSError as error:
            if error.errno == errno.ENXIO:  # no data beyond here
                break
            end = size  # a file system without holes
        while position < end:
            position += os.pwrite(fd, _ZEROES[: end - position], position)


def _open(name: str, flags: int, dir_fd: int) -> int:
    """Open a file or folder; one of ours that may not be opened gets every right for its owner first."""
    try:
        return os.open(name, flags, dir_fd=dir_fd)
    except PermissionError:
        with closing_fd(os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=dir_fd)) as fd:
            # fchmod refuses O_PATH descriptors; this address leads to the open file itself, whatever its name is now.
            os.chmod(f"/proc/self/fd/{fd}", 0o700)
        return os.open(name, flags, dir_fd=dir_fd)


class _Wipe:
    """One wipe of one tree: walks over it until there is nothing more to do."""

    def __init__(self, root_fd: int) -> None:
        self.root_fd = root_fd
        #: What the present walk could not remove.
        self.left: list[str] = []
        #: Entries that no walk meets again, though it was not overwritten.
        self.gone: list[str] = []
        #: Entries that the present walk removed or moved up.
        self.progress = 0
        #: Deep folders moved up so far.
        self.moved = 0

    def run(self) -> tuple[str, ...]:
        passes = 0
        while passes < _PASSES:
            self.left, self.progress, moved = [], 0, self.moved
            self.empty(self.root_fd, "", 0)
            if not self.progress:
                return (*self.gone, *self.left)
            passes += self.moved == moved
        return (*self.gone, *self.left, ".")

    def empty(self, fd: int, path: str, depth: int) -> None:
        """Wipe what the open folder ``fd`` holds, called ``path`` (ends with "/", "" for the root)."""
        names: list[str] = []
        folders: list[str] = []
        # The names first: a folder that is written into meanwhile could go on listing indefinitely.
        with os.scandir(fd) as entries:
            for entry in entries:
                (folders if entry.is_dir(follow_symlinks=False) else names).append(entry.name)
        for name in names:
            self.progress += self.file(fd, name, path)
        for name in folders:
            self.progress += self.folder(fd, name, path, depth)

    def file(self, fd: int, name: str, path: str) -> bool:
        """Wipe one entry that was not a folder; return True if that is done with."""
        try:
            wipe_file(name, dir_fd=fd)
        except FileNotFoundError:
            return True  # another process was faster
        except OSError as error:
            if error.errno == errno.EISDIR:
                return True  # a folder has taken its place, which the next walk meets
            try:
                os.lstat(name, dir_fd=fd)
            except FileNotFoundError:
                self.gone.append(path + name)
                return True
            self.left.append(path + name)
            return False
        return True

    def folder(self, fd: int, name: str, path: str, depth: int) -> bool:
        """Empty and remove one folder; return True if that is done with."""
        try:
            if depth >= _DEEPEST:
                self.moved += 1
                os.rename(name, f".wiped-{self.moved}", src_dir_fd=fd, dst_dir_fd=self.root_fd)
                return True
            # Never what a link leads to.
            with closing_fd(_open(name, _FOLDER | os.O_NOFOLLOW, fd)) as child:
                if os.fstat(child).st_mode & 0o300 != 0o300:
                    with contextlib.suppress(PermissionError):
                        os.fchmod(child, 0o700)
                self.empty(child, f"{path}{name}/", depth + 1)
            os.rmdir(name, dir_fd=fd)
        except FileNotFoundError:
            return True
        except OSError as error:
            if error.errno in (errno.ENOTDIR, errno.ELOOP):
                return self.file(fd, name, path)  # it has become a file or a link since it was listed
            self.left.append(path + name)
            return False
        return True


def wipe_tree(root: Path) -> tuple[str, ...]:
    """Wipe everything below ``root``, in the memory that the names of one folder take; ``root`` itself stays.

    Returns what could not be wiped, relative to the root ("." is the root): still there, or gone but not overwritten.

    Every folder is opened through its parent's descriptor and no link is followed, so nothing outside is touched
    even when another process swaps folders for links meanwhile. The one exception is ``root``: start.sh may have made
    ComfyUI's input a link to the RAM disk, and it is the operator who names it. A missing root is an empty one.
    Never raises for what it meets in the tree.
    """
    try:
        fd = os.open(root, _FOLDER)
    except FileNotFoundError:
        return ()
    except OSError:
        return (".",)
    with closing_fd(fd):
        return _Wipe(fd).run()
