"""Leftovers of earlier versions on the disk: their state folder, and models in a `cache/` folder of ComfyUI's.

The state folder of settee 0.1 is taken over once, in the transaction that makes the store:

pending/*.json      completions and failures that were not delivered     ─▶ callbacks
running.json        the job that ran                                     ─▶ an attempt that runs: it is reported
keys.json           Idempotency-Keys                                     ─▶ idempotency_keys

What else it has (jobs that have ended, callbacks that were refused for good) stays in its files.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import sqlite3
from pathlib import Path
from typing import Any

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
        for pattern, add in (
            ("pending/*.json", _add_callback),
            ("running.json", _add_running),  # after the callbacks: it may have one already
            ("keys.json", _add_keys),
        ):
            for path in sorted(self._folder.glob(pattern)):
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
        if not list(self._folder.glob("pending/*.json")):
            shutil.rmtree(self._folder / "pending", ignore_errors=True)


def _add_callback(db: sqlite3.Connection, data: dict[str, Any]) -> None:
    texts = [data[name] for name in ("run_id", "job_id", "key", "url", "body")]
    if not all(isinstance(each, str) for each in texts):
        raise TypeError("not a string")
    texts[-1] = texts[-1].encode("ascii")
    db.execute("INSERT INTO callbacks (attempt_id, job_id, key, url, body) VALUES (?, ?, ?, ?, ?)", texts)


def _add_running(db: sqlite3.Connection, data: dict[str, Any]) -> None:
    """It was killed between writing its callback and removing this file when there is a callback of the same run."""
    if db.execute("SELECT 1 FROM callbacks WHERE attempt_id = ?", (data["run_id"],)).fetchone() is not None:
        return
    details = {"client_id": data["client_id"], "urls": data["urls"]}
    started_at = timestamps.column(timestamps.parsed(data["started_at"]))
    db.execute(
        "INSERT INTO attempts (id, job_id, run_count, prompt_id, started_at, details) VALUES (?, ?, 1, ?, ?, ?)",
        (data["run_id"], data["job_id"], data["prompt_id"], started_at, json.dumps(details)),
    )


def _add_keys(db: sqlite3.Connection, data: dict[str, Any]) -> None:
    rows = [(str(key_hash), str(digest), str(job_id)) for key_hash, digest, job_id in data["keys"]]
    db.executemany("INSERT OR REPLACE INTO idempotency_keys (key_hash, digest, job_id) VALUES (?, ?, ?)", rows)


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
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() and cache not in path.parents:
            shown.setdefault(os.path.realpath(path), []).append(path)
    files = [path for path in sorted(cache.rglob("*")) if path.is_file() and not path.is_symlink()]
    moved = sum(_moved(path, shown.get(os.path.realpath(path), []), folder / path.relative_to(cache)) for path in files)
    for root, _, _ in os.walk(cache, topdown=False):
        with contextlib.suppress(OSError):  # something stays in it
            os.rmdir(root)
    return moved


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
