"""Leftovers of earlier versions on the disk: their state folder, and models in a `cache/` folder of ComfyUI's.

The state folder of settee 0.1 is taken over once, in the transaction that makes the store:

pending/*.json      completions and failures that were not delivered     ─▶ callbacks
refused/*.json      those that were refused for good                     ─▶ callbacks, refused
running.json        the job that ran                                     ─▶ an attempt that runs: it is reported
keys.json           Idempotency-Keys                                     ─▶ idempotency_keys
leavings.json       models that were to go with the job that ran         ─▶ leftovers
jobs/*.json         jobs that have ended                                 ─▶ attempts that have ended
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import sqlite3
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from settee.doors.agent.contract import STATES
from settee.service import timestamps

log = logging.getLogger(__name__)

_CACHE = "cache"
#: What a file that is damaged raises. RecursionError: JSON of a thousand brackets.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, sqlite3.ProgrammingError)


class PreviousState:
    """The folder. What of it cannot be read is left where it is, which is logged."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: list[Path] = []

    def adopt(self, db: sqlite3.Connection) -> None:
        """Fill the tables of a new store. Raises sqlite3.Error."""
        for pattern, add, order in (
            ("pending/*.json", _add_callback, str),
            ("refused/*.json", _add_refused, str),
            ("jobs/*.json", _add_ended, _number),
            ("running.json", _add_running, str),  # after the callbacks: it may have one already
            ("keys.json", _add_keys, str),
            ("leavings.json", _add_leftovers, str),
        ):
            for path in sorted(self._folder.glob(pattern), key=order):
                try:
                    add(db, json.loads(path.read_bytes()))
                    self._taken.append(path)
                except _DAMAGED:
                    name = path.relative_to(self._folder)
                    log.error("%s in the state folder cannot be read: it is not taken over", name)
        if self._taken:
            log.info("the state of the previous version is taken over: %d file(s)", len(self._taken))

    def remove(self) -> None:
        """Remove the files that were taken over: they are in the store now."""
        for path in self._taken:
            path.unlink(missing_ok=True)
        for name in ("pending", "refused", "jobs"):
            if not list((self._folder / name).glob("*.json")):
                shutil.rmtree(self._folder / name, ignore_errors=True)


def _add_callback(db: sqlite3.Connection, data: dict[str, Any]) -> None:
    texts = [data[name] for name in ("run_id", "job_id", "key", "url", "body")]
    if not all(isinstance(each, str) for each in texts):
        raise TypeError("not a string")
    texts[-1] = texts[-1].encode("ascii")
    db.execute("INSERT INTO callbacks (attempt_id, job_id, key, url, body) VALUES (?, ?, ?, ?, ?)", texts)


def _add_refused(db: sqlite3.Connection, data: dict[str, Any]) -> None:
    _add_callback(db, data)
    db.execute("UPDATE callbacks SET refused_at = CURRENT_TIMESTAMP WHERE rowid = last_insert_rowid()")


def _add_ended(db: sqlite3.Connection, data: dict[str, Any]) -> None:
    shown = data["shown"]
    state = {name: status.value for status, name in STATES.items() if status.is_terminal}[shown["state"]]
    times = _column(shown["acceptedAt"]), _column(shown["finishedAt"])
    ids = str(uuid.uuid4()), shown["jobId"]
    db.execute(
        "INSERT INTO attempts (id, job_id, run_count, state, prompt_id, started_at, ended_at, number, shown) "
        "VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?)",
        (*ids, state, shown.get("promptId"), *times, int(data["number"]), json.dumps(shown)),
    )


def _add_running(db: sqlite3.Connection, data: dict[str, Any]) -> None:
    """It was killed between writing its callback and removing this file when there is a callback of the same run."""
    if db.execute("SELECT 1 FROM callbacks WHERE attempt_id = ?", (data["run_id"],)).fetchone() is not None:
        return
    details = {"client_id": data["client_id"], "urls": data["urls"]}
    db.execute(
        "INSERT INTO attempts (id, job_id, run_count, prompt_id, started_at, details) VALUES (?, ?, 1, ?, ?, ?)",
        (data["run_id"], data["job_id"], data["prompt_id"], _column(data["started_at"]), json.dumps(details)),
    )


def _add_keys(db: sqlite3.Connection, data: dict[str, Any]) -> None:
    rows = [(str(key_hash), str(digest), str(job_id)) for key_hash, digest, job_id in data["keys"]]
    db.executemany("INSERT OR REPLACE INTO idempotency_keys (key_hash, digest, job_id) VALUES (?, ?, ?)", rows)


def _add_leftovers(db: sqlite3.Connection, data: dict[str, Any]) -> None:
    rows = [("model", str(name)) for name in data["models"]]
    db.executemany("INSERT OR IGNORE INTO leftovers (kind, name) VALUES (?, ?)", rows)


def _column(stamp: str) -> str:
    return timestamps.column(timestamps.parsed(stamp))


def _number(path: Path) -> int:
    """Return the order in which jobs ended."""
    try:
        return int(json.loads(path.read_bytes())["number"])
    except _DAMAGED:
        return 0


# --- models in a cache folder -----------------------------------------------------------------------------------


def move_cache(folder: Path) -> int:
    """Move what is in ``<folder>/cache`` to where links below ``folder`` show it, else to ``folder``; how many files.

    ComfyUI goes on listing each under the name that its link had; of several links to one file the first becomes the
    file, and the others lead there. A file whose name is taken by another one stays where it is, as does what cannot
    be moved: both are logged.
    """
    cache = folder / _CACHE
    if not cache.is_dir() or cache.is_symlink():
        return 0
    shown: dict[str, list[Path]] = {}
    for path in _below(folder):
        if path.is_symlink() and cache not in path.parents:
            shown.setdefault(os.path.realpath(path), []).append(path)
    files = [path for path in _below(cache) if not path.is_symlink()]
    moved = sum(_moved(path, shown.get(os.path.realpath(path), []), folder / path.relative_to(cache)) for path in files)
    for root, _, _ in os.walk(cache, topdown=False):
        try:
            os.rmdir(root)
        except OSError:
            continue  # something stays in it
    return moved


def _below(folder: Path) -> Iterator[Path]:
    """Yield every file and link below a folder, in a fixed order."""
    for root, folders, names in os.walk(folder):
        folders.sort()
        yield from (Path(root, name) for name in sorted(names))


def _moved(source: Path, links: list[Path], otherwise: Path) -> bool:
    """Return True if a file was moved to the first of the links to it, or else to its name outside the cache."""
    target = links[0] if links else otherwise
    try:
        if not links and os.path.lexists(target):
            log.warning("%s stays in the old cache: its name is taken", source.name)
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
        for link in links[1:]:
            link.unlink()
            link.symlink_to(target)
    except OSError as error:
        log.warning("%s stays in the old cache: %s", source.name, error.strerror)
        return False
    return True


__all__ = ["PreviousState", "move_cache"]
