"""The folders of a job: ComfyUI's input, output and temp, on a RAM disk where there is one.

They are wiped before and after every job. Names come from two sides that are both not trusted: the caller names
input files (:func:`safe_relative`), and ComfyUI's history names outputs (:meth:`Workspace.path_of`).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import re
import signal
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from settee.base.errors import (
    ConfigError,
    InvalidRequest,
    NoSpace,
    OutputMissing,
    PayloadTooLarge,
    StagingError,
    UnsafePath,
)
from settee.base.files import closing_fd, write_all
from settee.base.settings import MIB
from settee.base.text import DEVICES, shown
from settee.staging.wipe import wipe_file, wipe_tree

log = logging.getLogger(__name__)

#: In the folder above: states that the folders next to it are settee's to empty, and holds the lock on them.
MARKER = ".settee"

_RULES = tuple(
    (re.compile(pattern, re.DOTALL), why)
    for pattern, why in (
        (r"\Z", "is empty"),
        (r"/", "is absolute: give a name relative to the input folder"),
        (r".*\\", "has a backslash: subfolders are written with /"),
        (r".:", "starts with a drive letter"),
        (r"~", "starts with ~"),
        # ComfyUI's folder_paths cuts these off a file name and looks in that folder instead, space or not.
        (r".*\[(input|output|temp)\]\Z", "ends with a folder in brackets, which ComfyUI would look in instead"),
        (r"(.*/)?(/|\Z)", "has an empty folder or file name"),
        (r"(.*/)?\.\.?(/|\Z)", "has '.' or '..' as a folder: only plain subfolders are allowed"),
        (r".*[. ](/|\Z)", "has a part that ends with a dot or a space"),
        (r".*[\0-\x1f\x7f-\x9f\u2028\u2029]", "has a control character"),
        (rf"(.*/)?(?i:{'|'.join(map(re.escape, DEVICES))}) *([./]|\Z)", "has a part that is a device on Windows"),
        (r".*[\ud800-\udfff]", "is not valid Unicode (half a surrogate pair)"),
    )
)
_PART_BYTES = 255
#: What programs call a file that they are still writing.
_UNFINISHED = (".tmp", ".part", ".partial", ".lock")

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NEW_FILE = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


def safe_relative(name: str) -> PurePosixPath:
    """Check a name by the one rule for input files: plain names, in plain subfolders if need be.

    The result stays below its folder on any file system and has one meaning to ComfyUI. Raises UnsafePath
    with the name and the rule that it breaks.
    """
    broken = next((why for pattern, why in _RULES if pattern.match(name)), None)
    if broken is None and max(len(part.encode()) for part in name.split("/")) > _PART_BYTES:
        broken = f"has a part of more than {_PART_BYTES} bytes"
    if broken is not None:
        raise UnsafePath(f"the file name {shown(name)} {broken}")
    return PurePosixPath(name)


@dataclass(frozen=True)
class Folders:
    """Where ComfyUI reads and writes. ``temp`` is None when the worker does not share it."""

    input: Path
    output: Path
    temp: Path | None
    #: ComfyUI's own folders at COMFY_URL, not ones below WORKSPACE_DIR.
    are_shared: bool = False

    def named(self) -> Iterator[tuple[str, Path]]:
        """Give ``(folder_type, path)`` of those that exist."""
        yield "input", self.input
        yield "output", self.output
        if self.temp is not None:
            yield "temp", self.temp


class Workspace:
    """The folders, from one job to the next."""

    def __init__(self, folders: Folders) -> None:
        self.folders = folders
        self._claim: int | None = None

    def claim(self) -> None:
        """Take the folders for this process, until :meth:`release`. Raises ConfigError when that must not be.

        They are emptied before and after every job, so no other process may use them, and what is in them must be ours:
        a lock, and a marker that says who made them. Called once, before the first :meth:`open`.
        """
        root = self.folders.input.parent
        marker = root / MARKER
        try:
            if not self.folders.are_shared and not marker.exists():
                strange = [folder for _, folder in self.folders.named() if folder.is_dir() and any(folder.iterdir())]
                if strange:
                    raise ConfigError(
                        f"WORKSPACE_DIR has a folder {strange[0].name!r} with files that are not settee's, and every "
                        "job would destroy them: set WORKSPACE_DIR to a folder of its own"
                    )
            root.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._claim = os.open(marker, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            if self.folders.are_shared:
                log.debug("the folder above ComfyUI's is not ours to write: it is not locked")
                return
            raise ConfigError(
                f"WORKSPACE_DIR cannot be used ({error.strerror}): set it to a folder of its own"
            ) from error
        try:
            # Record locks are this process's alone: the SDK's forked ping process does not keep them.
            fcntl.lockf(self._claim, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            self.release()
            raise ConfigError(
                "another worker uses these folders, and both would wipe each other's jobs: "
                "set WORKSPACE_DIR (and COMFY_PORT) to ones of its own"
            ) from error

    def release(self) -> None:
        """Give the folders up."""
        if self._claim is not None:
            os.close(self._claim)
            self._claim = None

    def note(self, text: str) -> None:
        """Keep a line that outlives a kill of this process; without the lock, nothing is kept."""
        if self._claim is not None:
            os.ftruncate(self._claim, 0)
            os.pwrite(self._claim, text.encode(), 0)

    def noted(self) -> str:
        """Return the last note of any worker that had these folders."""
        return "" if self._claim is None else os.pread(self._claim, _PART_BYTES, 0).decode(errors="replace")

    def open(self) -> tuple[str, ...]:
        """Create the folders that are missing, for this user only, and :meth:`wipe` them all.

        Raises ConfigError when a folder cannot be made or used.
        """
        for kind, folder in self.folders.named():
            try:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            except OSError as error:
                raise ConfigError(
                    f"the {kind} folder cannot be made ({error.strerror}): "
                    f"set WORKSPACE_DIR (or COMFY_{kind.upper()}_DIR) to a folder that the worker may write"
                ) from error
        return self.wipe()

    def wipe(self, *kinds: str) -> tuple[str, ...]:
        """Wipe input, output and temp, or only those named; return what is left, by folder.

        See :func:`settee.staging.wipe.wipe_tree`.
        """
        folders = [(kind, folder) for kind, folder in self.folders.named() if not kinds or kind in kinds]
        return tuple(
            kind if name == "." else f"{kind}/{name}" for kind, folder in folders for name in wipe_tree(folder)
        )

    def path_of(self, folder_type: str, subfolder: str, filename: str) -> tuple[Path, str]:
        """Return the file that ComfyUI's history names, with every link resolved, and its name below that folder.

        History is not trusted: a custom node may write anything there. Raises UnsafePath for what is not below
        that folder, OutputMissing for what is not a file.
        """
        folder = dict(self.folders.named()).get(folder_type)
        if folder is None:
            raise UnsafePath(
                f"ComfyUI names a file in the folder {shown(folder_type)}, which the worker does not share"
            )
        where = f"the output {shown(f'{subfolder}/{filename}' if subfolder else filename)}"
        try:
            root = os.path.realpath(folder)
            path = os.path.realpath(os.path.join(root, subfolder, filename))
        except (TypeError, ValueError, OSError) as error:  # NUL, a surrogate, a loop of links
            raise UnsafePath(f"{where} that ComfyUI names is not a file name") from error
        if not path.startswith(root.rstrip("/") + "/"):
            raise UnsafePath(f"{where} that ComfyUI names is outside its {folder_type} folder")
        try:
            is_file = stat.S_ISREG(os.lstat(path).st_mode)
        except OSError:
            is_file = False
        if not is_file:
            raise OutputMissing(f"{where} that ComfyUI reported is not there")
        return Path(path), path[len(root.rstrip("/")) + 1 :]

    def made(self, below: str = "", kind: str = "output") -> tuple[list[str], int]:
        """Return the names of the files in a folder, and how many entries are not plain ones.

        Those are links, which are not followed, hidden files, unfinished ones, and folders that cannot be read.
        """
        names: list[str] = []
        root, others, folders = str(dict(self.folders.named())[kind]), 0, [below]
        while folders:
            folder = folders.pop()
            try:
                entries = list(os.scandir(os.path.join(root, folder)))
            except FileNotFoundError:
                continue
            except OSError:  # not to be read, or so deep that its path is too long
                others += 1
                continue
            for entry in entries:
                name = os.path.join(folder, entry.name)
                is_plain = not entry.name.startswith(".") and not entry.name.lower().endswith(_UNFINISHED)
                if is_plain and entry.is_dir(follow_symlinks=False):
                    folders.append(name)
                elif is_plain and entry.is_file(follow_symlinks=False):
                    names.append(name)
                else:
                    others += 1
        return sorted(names), others

    def write(self, name: str, chunks: Iterable[bytes | memoryview], max_bytes: int) -> str:
        """Write an input file, flushed and synced, and return its hex SHA-256: no file is read again for it.

        On any failure, also one raised by ``chunks``, the part written so far is wiped. Raises UnsafePath,
        PayloadTooLarge over ``max_bytes``, InvalidRequest when the name is taken, NoSpace.
        """
        relative = safe_relative(name)
        with _writing(name):
            folder_fd = open_folder(self.folders.input, relative.parts[:-1], make=True)
        with closing_fd(folder_fd):
            with _writing(name):
                fd = os.open(relative.name, _NEW_FILE, 0o600, dir_fd=folder_fd)
            try:
                with closing_fd(fd):
                    return _copy(chunks, fd, name, max_bytes)
            except BaseException:
                with contextlib.suppress(OSError):
                    wipe_file(relative.name, dir_fd=folder_fd)
                raise


def open_folder(root: str | Path, parts: Sequence[str], *, make: bool = False) -> int:
    """Return a descriptor of a folder below ``root``; no link below that is followed. Raises OSError."""
    fd = os.open(root, _FOLDER & ~os.O_NOFOLLOW)
    for part in parts:
        with closing_fd(fd):
            if make:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=fd)
            child = os.open(part, _FOLDER, dir_fd=fd)
        fd = child
    return fd


def is_being_written(path: Path) -> bool:
    """Return True while any process has a file open for writing; False where the system does not tell.

    Linux grants no lease for reading on such a file (fcntl(2), F_SETLEASE).
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        with closing_fd(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)) as fd:
            # Who opens the file while the lease is ours has this signal sent to us: SIGIO, its default, would end us.
            fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    except OSError as error:
        return error.errno == errno.EAGAIN
    return False


def _copy(chunks: Iterable[bytes | memoryview], fd: int, name: str, max_bytes: int) -> str:
    total, digest = 0, hashlib.sha256()
    for chunk in chunks:
        digest.update(chunk)
        total += len(chunk)
        if total > max_bytes:
            raise PayloadTooLarge(f"the file {shown(name)} is over MAX_FILE_MB ({max_bytes / MIB:g} MiB)")
        with _writing(name):
            write_all(fd, chunk)
    with _writing(name):
        os.fsync(fd)
    return digest.hexdigest()


@contextlib.contextmanager
def _writing(name: str) -> Iterator[None]:
    """Raise our error for what goes wrong while a file is made; the host's path stays in the cause."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(
                f"no space left for the input file {shown(name)}: send less, or give the worker a larger RAM disk "
                "(docker run --shm-size) or a WORKSPACE_DIR on a larger disk"
            ) from error
        if error.errno == errno.EEXIST:
            raise InvalidRequest(f"the input file {shown(name)} is given twice") from error
        if error.errno in (errno.ENOTDIR, errno.ELOOP):
            raise UnsafePath(f"the file name {shown(name)} goes through something that is not a folder") from error
        raise StagingError(f"the input file {shown(name)} cannot be written ({error.strerror})") from error
