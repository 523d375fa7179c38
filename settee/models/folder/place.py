"""One place in the models folder: which names are allowed, links, files set aside, errors that say what to do."""

from __future__ import annotations

import contextlib
import errno
import itertools
import logging
import os
import re
import time
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

from settee.base.errors import IntegrityError, InvalidRequest, NoSpace, StagingError, UnsafePath
from settee.base.text import shown
from settee.comfyui.model_folders import SUFFIXES
from settee.models.entry import ModelEntry
from settee.models.folder.checks import model_problem
from settee.staging.workspace import safe_relative

log = logging.getLogger(__name__)

#: A download's file next to its target, and that file's journal.
PART = ".part"
JOURNAL = ".part.json"
#: The suffix of a whole model of the operator's that MODELS wanted another one in place of.
ASIDE = ".set-aside"
MAX_ASIDE = 100
#: Begins temporary names, next to models and next to records. No entry may have a hidden name.
TEMPORARY = ".settee-"
_counter = itertools.count()
_MAX_NAME_BYTES = 255 - len(JOURNAL)
#: Where the Hub's cache keeps files that have a sha256 (LFS): ``blobs/<sha256>``.
_BLOB = re.compile(r"(?:^|/)blobs/([0-9a-f]{64})\Z")


def relative(entry: ModelEntry) -> str:
    """Return the entry's place below the models folder. Raises UnsafePath for a name that is not allowed.

    A folder that is a link leads where the operator made it lead (settee makes none); no name leads out of it.
    """
    return place(entry.target, entry.name)


@lru_cache(maxsize=8192)
def place(target: str, name: str) -> str:
    """Return the place of an entry that is being read, by its Target and LocalName. Raises UnsafePath."""
    rel = f"{target}/{name}"
    safe_relative(rel)
    if "/" in name:
        raise UnsafePath(f"the model's name {shown(name)} has a folder: put folders into its Target")
    if any(part.startswith(".") for part in rel.split("/")):
        raise UnsafePath(f"the model's place {shown(rel)} has a name that begins with a dot")
    if name.lower().endswith((PART, JOURNAL)):
        raise UnsafePath(f"the model's name {shown(name)} is the name of an unfinished download")
    if len(name.encode()) > _MAX_NAME_BYTES:
        raise UnsafePath(f"the model's name {shown(name)} has more than {_MAX_NAME_BYTES} bytes")
    if any(part.lower().endswith((".json", PART, *SUFFIXES)) for part in target.split("/")):
        # The folder, or that of its records, would take the place of a model of that name, its download or its record.
        raise UnsafePath(f"the model's Target {shown(target)} has a folder that is named like a file")
    return rel


def walk(root: str) -> Iterator[str]:
    """Yield files and links to files, below ``root`` and where its links to folders lead, relative to it, sorted.

    Hidden folders are left out, those of the records among them. Each folder is visited once, whatever its links.
    """
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        try:
            info = os.stat(folder)
        except OSError:
            folders.clear()
            continue
        # A link to a folder above would lead in circles.
        if (info.st_dev, info.st_ino) in seen:
            folders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            yield f"{folder}/{name}"[len(root) + 1 :]


def models_in(root: str) -> Iterator[str]:
    """Yield the files that look like models and exist: no dangling link, no hidden name."""
    for rel in walk(root):
        name = rel.rpartition("/")[2].lower()
        if name.endswith(SUFFIXES) and not name.startswith(".") and os.path.isfile(f"{root}/{rel}"):
            yield rel


def existing(path: str) -> str:
    """Return the nearest folder above that exists."""
    folder = os.path.dirname(os.path.abspath(path))
    while folder != "/" and not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    return folder


def free_at(path: str) -> int:
    """Return the bytes that this user may still write there; a very large number where that is not known."""
    try:
        room = os.statvfs(existing(path))
    except OSError:
        return 1 << 62
    return room.f_bavail * room.f_frsize


def temporary_name() -> str:
    """Return a name that no other process or thread uses."""
    return f"{TEMPORARY}{os.getpid()}-{time.monotonic_ns():x}-{next(_counter)}.tmp"


# --- files set aside, and links ----------------------------------------------------------------------------


def set_aside(entry: ModelEntry, path: Path) -> None:
    """Rename the operator's file (or link) at ``path``, and log it. Raises IntegrityError, StagingError."""
    for number in range(MAX_ASIDE):
        aside = path.with_name(f"{path.name}{ASIDE}{f'-{number}' if number else ''}")
        if os.path.lexists(aside):
            continue
        try:
            os.rename(path, aside)
        except OSError as error:
            raise of_disk(error, path) from error
        position = entry.position or "an entry"
        log.warning("%s is not the model that %s asks for: it is kept as %s", entry.path, position, aside.name)
        return
    raise taken(entry, f"is another model, and {MAX_ASIDE} were set aside before it (…{ASIDE})")


def set_aside_in(root: str) -> Iterator[str]:
    """Yield the files that were set aside for an entry of MODELS: they are the operator's to delete."""
    return (rel for rel in walk(root) if re.search(rf"{re.escape(ASIDE)}(-\d+)?$", rel))


def blob_sha256(path: str | Path) -> str | None:
    """Return the sha256 that the Hub's cache put into the name of the file that this link leads to, if it has one."""
    try:
        found = _BLOB.search(os.readlink(path))
    except OSError:
        return None
    return found[1] if found else None


def check_source(entry: ModelEntry, aim: str) -> os.stat_result:
    """Raise StagingError or IntegrityError when a link's source is not the entry's model by size or head."""
    try:
        info = os.stat(aim)
    except OSError as error:
        raise StagingError(f"{entry.path} cannot be linked: its source is gone ({error.strerror})") from error
    problem = model_problem(Path(aim), entry.name)
    if problem is None and entry.size is not None and info.st_size != entry.size:
        problem = f"has {info.st_size} bytes instead of {entry.size}"
    if problem:
        raise IntegrityError(f"{entry.path}: the file on this host {problem}", details={"model": str(entry.path)})
    return info


def is_itself(path: Path, aim: str) -> bool:
    """Return True if a link's source is the very file in its place: an extra folder may lead to the models folder."""
    folder, name = os.path.split(aim)
    with contextlib.suppress(OSError):
        return os.path.samestat(os.lstat(path), os.stat(aim)) or (
            name == path.name and os.path.samefile(folder, path.parent)
        )
    return False


def symlink(path: Path, aim: str) -> None:
    """Put the link there in one rename. Raises StagingError, NoSpace."""
    temporary = path.with_name(temporary_name())
    try:
        os.symlink(aim, temporary)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise of_disk(error, path) from error


# --- errors ------------------------------------------------------------------------------------------------


def taken(entry: ModelEntry, what: str, *, retryable: bool | None = None) -> StagingError | InvalidRequest:
    """Return the error for a place that another model holds: the mistake of a job, or of the worker's settings."""
    kind = InvalidRequest if entry.from_job else IntegrityError
    return kind(
        f"{entry.position or 'an entry'}: {entry.path} {what}: give the entry another LocalName",
        details={"model": str(entry.path)},
        retryable=retryable,
    )


def of_disk(error: OSError, path: Path, needed: int | None = None) -> StagingError:
    """Return the error for a failed write, without the folder's name."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = free_at(str(path))
        numbers = "" if needed is None else f" it needs {needed:,} bytes more,"
        return NoSpace(
            f"not enough space for {path.name} on the worker's disk:{numbers} {free:,} bytes are free. "
            "Free some, set MODELS_DISK_BUDGET_GB, or give the worker a larger disk",
            details={"file": path.name, "needed": needed, "free": free},
        )
    why = os.strerror(error.errno) if error.errno else "it failed"
    return StagingError(
        f"{path.name} cannot be written to the models folder ({why}): let MODELS_DIR name a folder that the worker may "
        "write"
    )
