"""Does the file at an entry's place match the entry? Decided by one stat and the record; nothing is read."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from enum import Enum

from settee.models.entry import ModelEntry, identity
from settee.models.folder.records import Placed


class FileState(str, Enum):
    """How the file at an entry's place relates to the entry."""

    ABSENT = "absent"
    RIGHT = "right"
    #: Not what the entry asks for: to be replaced.
    WRONG = "wrong"
    #: Undecided: :meth:`settee.models.folder.model_folder.ModelFolder.adopt` finds out.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Inspection:
    """A file's state, and the facts that it was derived from."""

    state: FileState
    #: Why, to follow the file's name in a sentence.
    reason: str = ""
    placed: Placed | None = None
    #: Size of the file, or of the file that the link leads to; -1 when there is none.
    size: int = -1
    mtime_ns: int = 0
    link: str | None = None
    #: True for anything but a file or a link to one.
    is_strange: bool = False

    @property
    def is_ours(self) -> bool:
        """Return True if settee may replace it: a recorded file, a download's leftover, or a dangling link."""
        if self.placed is None:
            return self.size < 0
        return self.placed.pending or self.size < 0 or self.placed.matches(self.size, self.mtime_ns, self.link)


def inspect(path: str, entry: ModelEntry, placed: Placed | None) -> Inspection:
    """Take one stat (two for a link), and compare it with the record and the entry."""
    link = None
    try:
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            link = os.readlink(path)
            info = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if link is None:
            return Inspection(FileState.ABSENT, "does not exist", placed)
        return Inspection(FileState.WRONG, "is a link to nothing", placed, link=link)
    except OSError as error:
        return Inspection(FileState.WRONG, f"cannot be looked at ({error.strerror})", placed, link=link)
    if not stat.S_ISREG(info.st_mode):
        return Inspection(FileState.WRONG, "is not a file", placed, link=link, is_strange=True)
    state, reason = _compare(entry, info, link, placed)
    return Inspection(state, reason, placed, info.st_size, info.st_mtime_ns, link)


def _compare(entry: ModelEntry, info: os.stat_result, link: str | None, placed: Placed | None) -> tuple[FileState, str]:
    if entry.size is not None and info.st_size != entry.size:
        return FileState.WRONG, f"has {info.st_size} bytes instead of {entry.size}"
    if placed is None:
        return FileState.UNKNOWN, "was not placed by this worker"
    is_same = placed.matches(info.st_size, info.st_mtime_ns, link)
    if placed.pending:
        return (FileState.WRONG, "is to be replaced") if is_same else (FileState.UNKNOWN, "was never checked")
    if placed.link != link:
        return FileState.UNKNOWN, "was replaced since it was placed"
    if placed.size != info.st_size:
        return FileState.WRONG, f"has {info.st_size} bytes, and had {placed.size} when it was placed"
    if not is_same:
        return FileState.UNKNOWN, "was changed since it was placed"
    if entry.sha256 is not None and placed.sha256 is not None:
        if entry.sha256 == placed.sha256:
            return FileState.RIGHT, ""
        return FileState.WRONG, f"has the sha256 {placed.sha256} instead of {entry.sha256}"
    if placed.source != identity(entry.source):
        return FileState.UNKNOWN, "was placed from another source"
    if entry.sha256 is not None:
        return FileState.UNKNOWN, "was never checked against its sha256"
    return FileState.RIGHT, ""


def unprovable(entry: ModelEntry, found: Inspection) -> str | None:
    """Return why an UNKNOWN file cannot be taken for the entry's when the entry has no sha256."""
    placed = found.placed
    if placed is not None and placed.source != identity(entry.source):
        return "was placed from another source, and no sha256 is known to tell whether it is the same file"
    if entry.from_job and placed is None:
        return "was not placed by this worker, and no sha256 is known to tell whether it is the same file"
    is_proof = placed is not None and (placed.pending or placed.sha256 is not None or placed.xxh3 is not None)
    if entry.from_job and not is_proof:
        return f"{found.reason}, and no hash is known to tell whether it is the same file"
    return None
