"""Errors of the models folder, in words that say what to do."""

from __future__ import annotations

import errno

from settee.errors import IntegrityError, InvalidRequest, NoSpace, StagingError
from settee.models.entry import ModelEntry


def words(entry: ModelEntry) -> tuple[str, str]:
    return str(entry.path), entry.position or "an entry"


def taken(entry: ModelEntry, what: str, *, retryable: bool | None = None) -> StagingError | InvalidRequest:
    """The place is somebody else's: a job's mistake, or one of the worker's settings."""
    kind = InvalidRequest if entry.from_job else IntegrityError
    path, position = words(entry)
    return kind(
        f"{position}: {path} {what}: give the entry another LocalName",
        details={"model": path},
        retryable=retryable,
    )


def unusable(entry: ModelEntry, error: OSError) -> StagingError:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return NoSpace(f"{entry.path} cannot be placed: the models folder's disk is full")
    return StagingError(
        f"{entry.path} cannot be placed ({error.strerror}): let MODELS_DIR name a folder that the worker may write"
    )
