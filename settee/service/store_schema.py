"""The store's tables and their rows, migrations, and how SQLite keeps its journal."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from settee.base.errors import ConfigError
from settee.base.job import Status

#: One tuple of statements for each version; ``PRAGMA user_version`` is the number of those that were applied. Files
#: that were written with one exist: a change is a further tuple.
_MIGRATIONS = (
    (
        """CREATE TABLE attempts (
             id TEXT PRIMARY KEY,
             job_id TEXT NOT NULL,
             run_count INTEGER NOT NULL,                -- of this job id, from 1
             worker_id TEXT,                            -- holder of a lease, where there are leases
             state TEXT NOT NULL DEFAULT 'running'
               CHECK (state IN ('running', 'succeeded', 'failed', 'canceled')),
             prompt_id TEXT,                            -- ComfyUI's, known before the prompt is sent
             remote_id TEXT,                            -- of a job at another service
             started_at TEXT NOT NULL,
             ended_at TEXT,
             details TEXT NOT NULL DEFAULT '{}',        -- JSON of the door's own
             number INTEGER NOT NULL DEFAULT 0,         -- of the last event
             shown TEXT                                 -- JSON: what the job shows once it has ended
           )""",
        "CREATE INDEX attempts_by_job ON attempts (job_id)",
        "CREATE INDEX attempts_by_state ON attempts (state)",
        """CREATE TABLE events (
             attempt_id TEXT NOT NULL REFERENCES attempts (id) ON DELETE CASCADE,
             number INTEGER NOT NULL,
             data TEXT NOT NULL,
             PRIMARY KEY (attempt_id, number)
           ) WITHOUT ROWID""",
        # Not bound to its attempt's row: ended attempts are forgotten, callbacks are delivered.
        """CREATE TABLE callbacks (
             id INTEGER PRIMARY KEY AUTOINCREMENT,      -- of one job id they are sent in this order
             attempt_id TEXT NOT NULL,
             job_id TEXT NOT NULL,
             key TEXT NOT NULL,
             url TEXT NOT NULL,
             body BLOB NOT NULL,
             created_at TEXT NOT NULL DEFAULT CURRENT_TIMESTAMP,
             tries INTEGER NOT NULL DEFAULT 0,
             last_error TEXT,
             refused_at TEXT,
             UNIQUE (attempt_id, key)
           )""",
        """CREATE TABLE idempotency_keys (
             seq INTEGER PRIMARY KEY AUTOINCREMENT,
             key_hash TEXT NOT NULL UNIQUE,
             digest TEXT NOT NULL,
             job_id TEXT NOT NULL
           )""",
        "CREATE TABLE leftovers (kind TEXT NOT NULL, name TEXT NOT NULL, PRIMARY KEY (kind, name)) WITHOUT ROWID",
    ),
)
#: File systems of this host, on which WAL's shared memory works.
_LOCAL = frozenset(("bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "overlay", "tmpfs", "xfs", "zfs"))


def migrate(db: sqlite3.Connection, adopt: Callable[[sqlite3.Connection], None]) -> None:
    """Bring the file to this version in one transaction; ``adopt`` fills one that is new. Raises ConfigError for a file
    of a newer settee, and sqlite3.Error."""
    db.execute("PRAGMA foreign_keys=ON")
    db.execute("BEGIN IMMEDIATE")
    try:
        (version,) = db.execute("PRAGMA user_version").fetchone()
        if version > len(_MIGRATIONS):
            raise ConfigError(
                "the state folder was written by a newer version of settee: run that one, or set state_dir to another "
                "folder"
            )
        for statement in (each for migration in _MIGRATIONS[version:] for each in migration):
            db.execute(statement)
        if version == 0:
            adopt(db)
        db.execute(f"PRAGMA user_version={len(_MIGRATIONS)}")
        db.execute("COMMIT")
    except BaseException:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def journal_mode(folder: Path, version: tuple[int, ...] = sqlite3.sqlite_version_info) -> str:
    """Return WAL where it is safe, else TRUNCATE.

    It is on a local disk, with an SQLite without the WAL-reset bug (sqlite.org/wal.html), which may corrupt a file when
    a checkpoint and a write meet.
    """
    is_fixed = version >= (3, 51, 3) or (3, 50, 7) <= version < (3, 51) or (3, 44, 6) <= version < (3, 45)
    return "WAL" if is_fixed and _is_local(folder) else "TRUNCATE"


def _is_local(folder: Path, mounts: Path = Path("/proc/self/mounts")) -> bool:
    real = folder.resolve()
    try:
        lines = [line.split() for line in mounts.read_text().splitlines()]
    except OSError:
        return False
    found = {line[1].encode().decode("unicode_escape"): line[2] for line in lines if len(line) > 2}
    nearest = next((found[str(each)] for each in (real, *real.parents) if str(each) in found), "")
    return nearest in _LOCAL


# --- rows -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One acceptance of a job."""

    id: str
    job_id: str
    started_at: datetime
    prompt_id: str | None = None
    #: JSON of the door's own: where callbacks go, for one. It may hold credentials.
    details: Mapping[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True, kw_only=True)
class PendingCallback:
    """A callback that must be delivered: the same key and the same bytes, however often it is sent."""

    attempt_id: str
    job_id: str
    key: str
    #: May hold credentials: neither shown nor logged.
    url: str = field(repr=False)
    #: JSON.
    body: bytes = field(repr=False)
    #: None: the disk has not taken it.
    id: int | None = None


@dataclass(frozen=True, kw_only=True)
class StoredCallback(PendingCallback):
    """A callback as an operator looks at it."""

    id: int
    created_at: str
    tries: int
    last_error: str | None
    refused_at: str | None


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The end of an attempt: what its job shows from now on, and its events."""

    state: Status
    moment: datetime
    #: The number of the last event, and what it shows.
    number: int
    shown: Mapping[str, Any]
    events: Sequence[tuple[int, Mapping[str, Any]]] = ()


@dataclass(frozen=True)
class KnownKey:
    """A job that an idempotency key made."""

    #: Hex, of the request's body.
    digest: str
    job_id: str
