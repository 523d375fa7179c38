"""The state of a service in one SQLite file: after kill -9 at any moment this file alone states what is to be done.

    attempts            a job as it was accepted once, running or ended; the same job id may come again
    events              the states that an ended attempt went through, for followers that come late
    callbacks           what must be delivered, or was refused for good
    idempotency_keys    which job each key made
    leftovers           what a killed attempt leaves behind on this host: models that were to be removed with it

Each method is one short transaction, and on return its effect is on the disk (synchronous=FULL). The table ``jobs`` is
left to the folder queue, whose columns are fixed by its contract; its attempts and callbacks are rows of these tables.
Times are UTC text that compares with SQLite's CURRENT_TIMESTAMP.
"""

from __future__ import annotations

import contextlib
import json
import os
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from settee.base.errors import ConfigError, StagingError
from settee.base.files import Lock, digest_of, try_lock
from settee.base.job import Status
from settee.service import timestamps
from settee.service.store_schema import FILE, connected

#: Idempotency keys, ended jobs and refused callbacks that are kept: the newest.
MAX_KEYS, MAX_JOBS, MAX_REFUSED = 1000, 200, 500


class StoreError(StagingError):
    """The service's state cannot be written."""

    retryable = True


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
class Callback:
    """A callback: the same key and the same bytes, however often it is sent."""

    #: May hold credentials: neither shown nor logged.
    url: str = field(repr=False)
    #: The header Idempotency-Key.
    key: str
    #: JSON.
    body: bytes = field(repr=False)
    attempt_id: str = ""
    job_id: str = ""
    #: 0: the disk has not taken it.
    id: int = 0
    created_at: str = ""
    tries: int = 0
    last_error: str | None = None
    refused_at: str | None = None


@dataclass(frozen=True, kw_only=True)
class Ending:
    """The end of an attempt: what its job shows from now on, and its events."""

    state: Status
    moment: datetime
    #: The number of the last event, and what it shows.
    number: int
    shown: Mapping[str, Any]
    events: Sequence[tuple[int, Mapping[str, Any]]] = ()


# --- the file -------------------------------------------------------------------------------------------------


class Store:
    """May be used from any thread. Every method but :meth:`open` raises StoreError when the disk does not take part."""

    def __init__(self, folder: Path) -> None:
        """Nothing is touched before :meth:`open`."""
        self._folder = folder
        self._lock = threading.RLock()
        self._db: sqlite3.Connection | None = None
        self._lock_fd = -1

    @property
    def path(self) -> Path:
        return self._folder / FILE

    def open(self, adopt: Callable[[sqlite3.Connection], None] = lambda db: None, *, exclusive: bool = True) -> None:
        """Open the file, or make it; ``adopt`` fills a new one in the transaction that makes it.

        ``exclusive``: for the service itself, of which there is one for a folder. Without it: for a command that looks
        at a file, which must exist. Raises ConfigError when the folder cannot be used.
        """
        try:
            if exclusive:
                self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
                flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
                self._lock_fd = os.open(self._folder / ".lock", flags, 0o600)
                if try_lock(self._lock_fd) is Lock.BUSY:
                    raise ConfigError(
                        "another agent uses this state folder, and both would send the same callbacks: set state_dir "
                        "to a folder of its own"
                    )
            self._db = connected(self._folder, adopt, is_owner=exclusive)
        except (OSError, sqlite3.Error) as error:
            self.close()
            why = getattr(error, "strerror", None) or error
            raise ConfigError(
                f"the state folder cannot be used ({why}): set state_dir to a folder that this user may write, on a "
                "disk that is not full"
            ) from error
        except ConfigError:
            self.close()
            raise

    def close(self) -> None:
        with self._lock:
            if self._db is not None:
                self._db.close()
                self._db = None
            if self._lock_fd >= 0:
                os.close(self._lock_fd)
                self._lock_fd = -1

    @contextlib.contextmanager
    def _transaction(self, *, is_read: bool = False) -> Iterator[sqlite3.Connection]:
        with self._lock:
            if self._db is None:
                raise StoreError("the service's state is closed")
            try:
                if is_read:
                    yield self._db
                    return
                self._db.execute("BEGIN IMMEDIATE")
                try:
                    yield self._db
                    self._db.execute("COMMIT")
                except BaseException:
                    if self._db.in_transaction:  # a full disk has rolled it back already
                        self._db.execute("ROLLBACK")
                    raise
            except sqlite3.Error as error:
                raise StoreError(f"the service's state cannot be written ({error}): make room on its disk") from error

    def _rows(self, statement: str, *values: object) -> list[sqlite3.Row]:
        with self._transaction(is_read=True) as db:
            return db.execute(statement, values).fetchall()

    def changes(self) -> int:
        """Return a number that another process's writing changes."""
        return int(self._rows("PRAGMA data_version")[0][0])

    # --- attempts ---------------------------------------------------------------------------------------------

    def accept(self, attempt: Attempt, key: str | None = None, digest: str = "") -> None:
        """Note that a job is accepted, and by which idempotency key: from now on a restart finds it."""
        started_at, details = timestamps.column(attempt.started_at), json.dumps(attempt.details, default=str)
        with self._transaction() as db:
            # A key is kept as its hash: callers choose them, and some put a token in.
            db.execute(
                "INSERT INTO attempts (id, job_id, run_count, started_at, prompt_id, details) VALUES (?, ?, "
                "(SELECT COALESCE(MAX(run_count), 0) + 1 FROM attempts WHERE job_id = ?), ?, ?, ?)",
                (attempt.id, attempt.job_id, attempt.job_id, started_at, attempt.prompt_id, details),
            )
            if key is not None:
                db.execute(
                    "INSERT OR REPLACE INTO idempotency_keys (key_hash, digest, job_id) VALUES (?, ?, ?)",
                    (digest_of(key), digest, attempt.job_id),
                )
                db.execute(
                    "DELETE FROM idempotency_keys WHERE seq <= (SELECT MAX(seq) FROM idempotency_keys) - ?", (MAX_KEYS,)
                )

    def end(
        self, attempt_id: str, ending: Ending, terminal: Callback | None = None, *, forget_key: bool = False
    ) -> Callback | None:
        """Note how an attempt ended, and the callback that reports it, which is returned with its number.

        ``forget_key``: the attempt never began, and the same request is to begin another.
        """
        ended_at, shown = timestamps.column(ending.moment), json.dumps(ending.shown, default=str)
        with self._transaction() as db:
            db.execute(
                "UPDATE attempts SET state = ?, ended_at = ?, number = ?, shown = ? WHERE id = ?",
                (ending.state.value, ended_at, ending.number, shown, attempt_id),
            )
            db.executemany(
                "INSERT OR REPLACE INTO events (attempt_id, number, data) VALUES (?, ?, ?)",
                [(attempt_id, number, json.dumps(data, default=str)) for number, data in ending.events],
            )
            if forget_key:
                db.execute(
                    "DELETE FROM idempotency_keys WHERE seq = (SELECT MAX(seq) FROM idempotency_keys "
                    "WHERE job_id = (SELECT job_id FROM attempts WHERE id = ?))",
                    (attempt_id,),
                )
            db.execute(
                "DELETE FROM attempts WHERE state <> 'running' AND rowid NOT IN "
                "(SELECT MAX(rowid) FROM attempts GROUP BY job_id ORDER BY MAX(rowid) DESC LIMIT ?)",
                (MAX_JOBS,),
            )
            if terminal is None:
                return None
            # It may be there already. RETURNING needs SQLite 3.35: Enterprise Linux 9 has 3.34.
            db.execute(
                "INSERT OR IGNORE INTO callbacks (attempt_id, job_id, key, url, body) "
                "VALUES (:attempt_id, :job_id, :key, :url, :body)",
                vars(terminal),
            )
            of_it = "SELECT id FROM callbacks WHERE attempt_id = :attempt_id AND key = :key"
            return replace(terminal, id=db.execute(of_it, vars(terminal)).fetchone()["id"])

    def running(self) -> list[Attempt]:
        """Return the attempts that have not ended, oldest first: at a start, those that were interrupted."""
        rows = self._rows(
            "SELECT id, job_id, prompt_id, started_at, details FROM attempts WHERE state = 'running' ORDER BY rowid"
        )
        return [
            Attempt(id=i, job_id=job, prompt_id=prompt, started_at=timestamps.parsed(at), details=json.loads(details))
            for i, job, prompt, at, details in rows
        ]

    def ended(self, job_id: str) -> list[tuple[int, dict[str, Any]]] | None:
        """Return the events of the latest attempt of a job by their numbers, its end last; None if it is not known."""
        rows = self._rows(
            "WITH latest AS (SELECT id, number, shown FROM attempts WHERE job_id = ? AND state <> 'running' "
            "ORDER BY rowid DESC LIMIT 1) SELECT events.number, data FROM events JOIN latest ON attempt_id = id "
            "UNION ALL SELECT number, shown FROM latest ORDER BY 1",
            job_id,
        )
        return [(number, json.loads(data)) for number, data in rows] or None

    def known_key(self, key: str) -> tuple[str, str] | None:
        """Return the hex digest of the request's body, and the id of the job, that this idempotency key came with."""
        rows = self._rows("SELECT digest, job_id FROM idempotency_keys WHERE key_hash = ?", digest_of(key))
        return (rows[0]["digest"], rows[0]["job_id"]) if rows else None

    # --- callbacks --------------------------------------------------------------------------------------------

    def callbacks(self, *, is_refused: bool = False) -> list[Callback]:
        """Return those to be delivered, or those that were refused, oldest first."""
        rows = self._rows("SELECT * FROM callbacks WHERE (refused_at IS NOT NULL) = ? ORDER BY id", is_refused)
        return [Callback(**dict(row)) for row in rows]

    def pending_callback(self, callback_id: int) -> Callback | None:
        """Return it as it is to be delivered now; None when it is not any more."""
        rows = self._rows("SELECT * FROM callbacks WHERE id = ? AND refused_at IS NULL", callback_id)
        return Callback(**dict(rows[0])) if rows else None

    def failed(self, callback_id: int, why: str, *, is_refused: bool = False) -> None:
        """Note a failed try; what is refused is kept, but not sent again."""
        with self._transaction() as db:
            db.execute(
                "UPDATE callbacks SET tries = tries + 1, last_error = ?, "
                "refused_at = CASE WHEN ? THEN CURRENT_TIMESTAMP END WHERE id = ?",
                (why, is_refused, callback_id),
            )
            db.execute(
                "DELETE FROM callbacks WHERE refused_at IS NOT NULL AND id NOT IN "
                "(SELECT id FROM callbacks WHERE refused_at IS NOT NULL ORDER BY id DESC LIMIT ?)",
                (MAX_REFUSED,),
            )

    def remove(self, callback_ids: Iterable[int]) -> None:
        """Forget callbacks that are delivered, or not to be sent any more."""
        with self._transaction() as db:
            db.executemany("DELETE FROM callbacks WHERE id = ?", [(each,) for each in callback_ids])

    def retry(self, callback_id: int, url: str | None = None) -> None:
        """Have it sent again with the same key and body, to another address if one is given."""
        with self._transaction() as db:
            # SQLite does not write a row that stays the same, and the service would not notice: tries count from here.
            db.execute(
                "UPDATE callbacks SET refused_at = NULL, tries = 0, url = COALESCE(?, url) WHERE id = ?",
                (url, callback_id),
            )

    # --- leftovers --------------------------------------------------------------------------------------------

    def set_leftovers(self, models: Iterable[str]) -> None:
        """State what a kill would leave behind from now on, instead of what was stated before."""
        with self._transaction() as db:
            db.execute("DELETE FROM leftovers WHERE kind = 'model'")
            db.executemany("INSERT OR IGNORE INTO leftovers (kind, name) VALUES ('model', ?)", [(m,) for m in models])

    def leftovers(self) -> list[str]:
        return [row["name"] for row in self._rows("SELECT name FROM leftovers WHERE kind = 'model'")]
