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
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from settee.service import timestamps

log = logging.getLogger(__name__)

_CACHE = "cache"
_FOLDERS = ("pending", "refused", "jobs")
#: What reading a file raises that is damaged. RecursionError: JSON of a thousand brackets.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError, sqlite3.ProgrammingError)
_STATES = {"SUCCESS": "succeeded", "FAILED": "failed", "CANCELED": "canceled"}


class PreviousState:
    """The folder. What of it cannot be read is left where it is, which is logged."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._taken: list[Path] = []

    def adopt(self, db: sqlite3.Connection) -> None:
        """Fill the tables of a new store. Raises sqlite3.Error."""
        for name in ("pending", "refused"):
            for path in sorted((self._folder / name).glob("*.json")):
                self._take(path, lambda data, at=name: _add_callback(db, data, is_refused=at == "refused"))  # type: ignore[misc]
        ended = sorted((self._folder / "jobs").glob("*.json"), key=_number)
        for path in ended:
            self._take(path, lambda data: _add_ended(db, data))
        self._take(self._folder / "running.json", lambda data: _add_running(db, data))
        self._take(self._folder / "keys.json", lambda data: _add_keys(db, data))
        self._take(self._folder / "leavings.json", lambda data: _add_leftovers(db, data))
        if self._taken:
            log.info("the state of the previous version is taken over: %d file(s)", len(self._taken))

    def remove(self) -> None:
        """Remove the files that were taken over: they are in the store now."""
        for path in self._taken:
            path.unlink(missing_ok=True)
        for name in _FOLDERS:
            folder = self._folder / name
            if folder.is_dir() and not list(folder.glob("*.json")):
                shutil.rmtree(folder, ignore_errors=True)

    def _take(self, path: Path, add: Callable[[dict[str, Any]], None]) -> None:
        if not path.exists():
            return
        try:
            data = json.loads(path.read_bytes())
            if not isinstance(data, dict):
                raise TypeError("not an object")
            add(data)
        except _DAMAGED:
            log.error("%s in the state folder cannot be read: it is not taken over", path.relative_to(self._folder))
            return
        self._taken.append(path)


def _add_callback(db: sqlite3.Connection, data: dict[str, Any], *, is_refused: bool) -> None:
    texts = [data[name] for name in ("run_id", "job_id", "key", "url", "body")]
    if not all(isinstance(each, str) for each in texts):
        raise TypeError("not a string")
    texts[-1] = texts[-1].encode("ascii")
    refused_at = "CURRENT_TIMESTAMP" if is_refused else "NULL"
    db.execute(
        f"INSERT INTO callbacks (attempt_id, job_id, key, url, body, refused_at) VALUES (?, ?, ?, ?, ?, {refused_at})",  # noqa: S608 - one of two words
        texts,
    )


def _add_ended(db: sqlite3.Connection, data: dict[str, Any]) -> None:
    shown = data["shown"]
    db.execute(
        "INSERT INTO attempts (id, job_id, run_count, state, prompt_id, started_at, ended_at, number, shown) "
        "VALUES (?, ?, 1, ?, ?, ?, ?, ?, ?)",
        (
            str(uuid.uuid4()),
            shown["jobId"],
            _STATES[shown["state"]],
            shown.get("promptId"),
            _column(shown["acceptedAt"]),
            _column(shown["finishedAt"]),
            int(data["number"]),
            json.dumps(shown),
        ),
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
    """Move what lies in ``<folder>/cache`` to where links below ``folder`` show it, else to ``folder``; how many files.

    ComfyUI goes on listing each under the name that its link had; of several links to one file the first becomes the
    file, and the others lead there. A file whose name is taken by another one stays where it is, as does what cannot
    be moved: both are logged.
    """
    cache = folder / _CACHE
    if not cache.is_dir() or cache.is_symlink():
        return 0
    shown: dict[str, list[Path]] = {}
    for link in _links(folder, cache):
        shown.setdefault(os.path.realpath(link), []).append(link)
    moved = 0
    for root, _, names in os.walk(cache):
        for name in names:
            source = Path(root, name)
            if not source.is_symlink():
                moved += _moved(source, shown.get(os.path.realpath(source), []), folder / source.relative_to(cache))
    for root, _, _ in os.walk(cache, topdown=False):
        try:
            os.rmdir(root)
        except OSError:
            continue  # something stays in it
    return moved


def _links(folder: Path, cache: Path) -> Iterator[Path]:
    """Every link below ``folder``, but for those in the cache itself, in a fixed order."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if Path(root, name) != cache)
        for name in sorted(names):
            path = Path(root, name)
            if path.is_symlink():
                yield path


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
