"""Moments in UTC, to the millisecond: as JSON states them, as file names and as the store's columns."""

from __future__ import annotations

from datetime import datetime, timezone


def now() -> datetime:
    """Return this moment, in UTC. Code that writes times takes a function like it, so that tests can stop the clock."""
    return datetime.now(timezone.utc)


def stamp(moment: datetime) -> str:
    """Return ``2026-05-04T03:02:01.123Z``. A moment without a zone is taken for UTC."""
    return f"{_utc(moment).isoformat(timespec='milliseconds')}Z"


def file_stamp(moment: datetime) -> str:
    """Return ``20260504T030201.123Z``, which every file system takes; names sort as the moments do."""
    moment = _utc(moment)
    return f"{moment:%Y%m%dT%H%M%S}.{moment.microsecond // 1000:03d}Z"


def column(moment: datetime) -> str:
    """Return ``2026-05-04 03:02:01.123``, which compares as text with SQLite's CURRENT_TIMESTAMP."""
    return _utc(moment).isoformat(sep=" ", timespec="milliseconds")


def parsed(text: str) -> datetime:
    """Return the moment that :func:`stamp` or :func:`column` wrote. Raises ValueError."""
    # Before Python 3.11 fromisoformat does not know the Z.
    return datetime.fromisoformat(text.removesuffix("Z")).replace(tzinfo=timezone.utc)


def _utc(moment: datetime) -> datetime:
    """Return it in UTC, without the zone, which isoformat would write as +00:00."""
    return moment if moment.tzinfo is None else moment.astimezone(timezone.utc).replace(tzinfo=None)
