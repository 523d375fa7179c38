"""Moments as callbacks and archives write them: UTC, to the millisecond."""

from __future__ import annotations

from datetime import datetime, timezone


def now() -> datetime:
    """This moment, in UTC. Whoever writes times takes a function like it, so that tests can stop the clock."""
    return datetime.now(timezone.utc)


def stamp(moment: datetime) -> str:
    """``2026-05-04T03:02:01.123Z``. A moment without a zone is taken for UTC."""
    return f"{_utc(moment).isoformat(timespec='milliseconds')}Z"


def file_stamp(moment: datetime) -> str:
    """``20260504T030201.123Z``, which no file system minds; names sort as the moments do."""
    moment = _utc(moment)
    return f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z"


def parsed(text: str) -> datetime:
    """What :func:`stamp` wrote. Raises ValueError."""
    # Before Python 3.11 fromisoformat does not know the Z.
    return datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=timezone.utc)


def _utc(moment: datetime) -> datetime:
    """In UTC, and without the zone, which isoformat would write as +00:00."""
    return moment if moment.tzinfo is None else moment.astimezone(timezone.utc).replace(tzinfo=None)
