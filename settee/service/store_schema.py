"""The store's file: its tables, migrations, how SQLite keeps its journal, and what becomes of a damaged one."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path

from settee.base.errors import ConfigError
from settee.service import timestamps

log = logging.getLogger(__name__)

FILE = "service.sqlite3"
#: How long a lock of another process is waited for, seconds.
_BUSY_S = 10.0
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


def _migrate(db: sqlite3.Connection, adopt: Callable[[sqlite3.Connection], None]) -> None:
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


def connected(folder: Path, adopt: Callable[[sqlite3.Connection], None], *, is_owner: bool) -> sqlite3.Connection:
    """Open the file; for its owner it is made, migrated, and set aside where it is damaged.

    Raises OSError, sqlite3.Error, ConfigError.
    """
    path = folder / FILE
    if not is_owner:
        return _open(path, None)
    try:
        return _open(path, adopt)
    except sqlite3.DatabaseError as error:
        if "not a database" not in str(error) and "malformed" not in str(error):
            raise
    # One that is not a database, or a broken one, must not keep the service from its work.
    aside = path.with_name(f"{FILE}.damaged-{timestamps.file_stamp(timestamps.now())}")
    log.error("the state file %s is damaged: it is kept as %s, and a new one is begun", FILE, aside.name)
    path.rename(aside)
    for suffix in ("-journal", "-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            path.with_name(FILE + suffix).rename(aside.with_name(aside.name + suffix))
    return _open(path, adopt)


def _open(path: Path, adopt: Callable[[sqlite3.Connection], None] | None) -> sqlite3.Connection:
    if adopt is not None:  # for this user alone; a link is not followed
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600))
    db = sqlite3.connect(
        f"{path.absolute().as_uri()}?mode=rw",
        uri=True,
        timeout=_BUSY_S,
        isolation_level=None,  # transactions are begun by the store, and nowhere behind its back
        check_same_thread=False,
    )
    try:
        db.row_factory = sqlite3.Row
        db.execute("PRAGMA synchronous=FULL")
        if adopt is not None:
            db.execute(f"PRAGMA journal_mode={journal_mode(path.parent)}")
            _migrate(db, adopt)
        return db
    except BaseException:
        db.close()
        raise
