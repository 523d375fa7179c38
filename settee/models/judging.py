"""Is what lies there what the entry asks for? Told from one stat and the record."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass
from enum import Enum

from settee.models.entry import ModelEntry
from settee.models.hashing import Hashes
from settee.models.records import Placed, identity


class State(str, Enum):
    """How what lies at an entry's place stands to the entry."""

    ABSENT = "absent"
    RIGHT = "right"
    #: Not what the entry asks for: to be replaced.
    WRONG = "wrong"
    #: Perhaps: :meth:`settee.models.placed.Shelf.adopt` finds out.
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Look:
    """A state, and how it was told."""

    state: State
    #: Why, to follow the file's name in a sentence.
    reason: str = ""
    placed: Placed | None = None
    #: Of the file, or of the file that the link leads to; -1 when there is none.
    size: int = -1
    mtime_ns: int = 0
    link: str | None = None
    #: Whether there is anything but a file or a link to one.
    is_strange: bool = False

    @property
    def is_ours(self) -> bool:
        """Whether this is ours to replace: what the record is of, what a download left there, or a link to nothing."""
        if self.placed is None:
            return self.size < 0
        return self.placed.pending or self.size < 0 or self.placed.matches(self.size, self.mtime_ns, self.link)


@dataclass(frozen=True, eq=False)
class Content:
    """What a name held at some time. Two are equal when they are the same bytes, as far as a look can tell."""

    #: A hash, where one is known.
    hashed: str | None
    #: Device, inode, size and time of change.
    file: tuple[int, int, int, int]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Content):
            return NotImplemented
        return self.file == other.file or (self.hashed is not None and self.hashed == other.hashed)

    __hash__ = None  # type: ignore[assignment]


def look_at(path: str, rel: str, entry: ModelEntry, placed: Placed | None) -> Look:
    """One stat (two for a link), and what the record makes of it."""
    link = None
    try:
        info = os.lstat(path)
        if stat.S_ISLNK(info.st_mode):
            link = os.readlink(path)
            info = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        if link is None:
            return Look(State.ABSENT, "is not there", placed)
        return Look(State.WRONG, "is a link to nothing", placed, link=link)
    except OSError as error:
        return Look(State.WRONG, f"cannot be looked at ({error.strerror})", placed, link=link)
    if not stat.S_ISREG(info.st_mode):
        return Look(State.WRONG, "is not a file", placed, link=link, is_strange=True)
    state, reason = _judge(entry, info, link, placed)
    return Look(state, reason, placed, info.st_size, info.st_mtime_ns, link)


def _judge(entry: ModelEntry, info: os.stat_result, link: str | None, placed: Placed | None) -> tuple[State, str]:
    if entry.size is not None and info.st_size != entry.size:
        return State.WRONG, f"has {info.st_size} bytes instead of {entry.size}"
    if placed is None:
        return State.UNKNOWN, "was not placed by this worker"
    is_same = placed.matches(info.st_size, info.st_mtime_ns, link)
    if placed.pending:
        return (State.WRONG, "is to be replaced") if is_same else (State.UNKNOWN, "was never checked")
    if placed.link != link:
        return State.UNKNOWN, "was replaced since it was placed"
    if placed.size != info.st_size:
        return State.WRONG, f"has {info.st_size} bytes, and had {placed.size} when it was placed"
    if not is_same:
        return State.UNKNOWN, "was changed since it was placed"
    if entry.sha256 is not None and placed.sha256 is not None:
        if entry.sha256 == placed.sha256:
            return State.RIGHT, ""
        return State.WRONG, f"has the sha256 {placed.sha256} instead of {entry.sha256}"
    if placed.source != identity(entry.source):
        return State.UNKNOWN, "was placed from another source"
    if entry.sha256 is not None:
        return State.UNKNOWN, "was never checked against its sha256"
    return State.RIGHT, ""


def unprovable(entry: ModelEntry, look: Look) -> str | None:
    """Why an UNKNOWN file cannot be taken for the entry's when the entry has no sha256."""
    placed = look.placed
    if placed is not None and placed.source != identity(entry.source):
        return "was placed from another source, and no sha256 is known to tell whether it is the same file"
    if entry.from_job and placed is None:
        return "was not placed by this worker, and no sha256 is known to tell whether it is the same file"
    is_proof = placed is not None and (placed.pending or placed.sha256 is not None or placed.xxh3 is not None)
    if entry.from_job and not is_proof:
        return f"{look.reason}, and no hash is known to tell whether it is the same file"
    return None


def is_kept_from(entry: ModelEntry, look: Look) -> bool:
    """A job takes MODELS' place only to put the same file where a link has come to lead nowhere."""
    if not entry.from_job or look.placed is None or look.placed.from_job:
        return False
    return look.size >= 0 or look.placed.source != identity(entry.source)


def difference(found: Hashes, sha256: str | None, xxh3: str | None) -> str | None:
    """Whether the bytes are other ones; the XXH3 decides where it is known."""
    if xxh3 is not None:
        return None if found.xxh3 == xxh3 else "was changed since it was placed"
    return None if found.sha256 == sha256 else f"has the sha256 {found.sha256} instead of {sha256}"
