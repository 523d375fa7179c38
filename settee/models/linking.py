"""Symbolic links to models that lie elsewhere on the host."""

from __future__ import annotations

import contextlib
import os
import re
from pathlib import Path

from settee.errors import IntegrityError, StagingError
from settee.models.checks import model_problem
from settee.models.entry import ModelEntry
from settee.models.records import temporary_name
from settee.models.refusals import unusable

#: Where the Hub's cache keeps files that have a sha256 (LFS): ``blobs/<sha256>``.
_BLOB = re.compile(r"/blobs/([0-9a-f]{64})\Z")


def blob_sha256(path: str) -> str | None:
    """The sha256 that the Hub's cache says in the name of the file that this one leads to."""
    found = _BLOB.search(os.path.realpath(path))
    return found[1] if found else None


def source_of(entry: ModelEntry, aim: str) -> os.stat_result:
    """Raises StagingError, IntegrityError for a source that is not the entry's model by size or head."""
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


def symlink(entry: ModelEntry, path: Path, aim: str) -> None:
    """Put the link there in one rename. Raises StagingError, NoSpace."""
    temporary = path.with_name(temporary_name())
    try:
        os.symlink(aim, temporary)
        os.replace(temporary, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise unusable(entry, error) from error


def link_in_place(path: Path, info: os.stat_result, aim: str) -> str | None:
    """What the link at ``path`` would have to say; None when ``aim`` is that very place and a plain file lies there.

    An extra folder may be the models folder itself: a link would lead to itself, over the only copy.
    """
    try:
        there = os.lstat(path)
    except OSError:
        return aim
    if (there.st_dev, there.st_ino) == (info.st_dev, info.st_ino):
        return None
    folder, name = os.path.split(aim)
    if name == path.name and os.path.samefile(folder, path.parent):
        return os.readlink(path)
    return aim
