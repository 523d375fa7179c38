"""The ledger of many jobs, by which a second run goes on where the first one ended.

It lies beside the results: a line for every job that was sent, and one for how it ended; the last line of a job counts.
A job that was sent and not seen to end is asked for again, not sent again.
"""

from __future__ import annotations

import contextlib
import json
import os
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from settee.base.files import Lock, try_lock
from settee.client.errors import UsageError

#: In the folder of the results.
LEDGER = "settee-batch.jsonl"


@dataclass
class Entry:
    """What the ledger knows of one job."""

    key: str
    name: str
    #: ``sent``, ``done`` or ``failed``.
    status: str
    job_id: str | None = None
    target: str | None = None
    files: list[str] = field(default_factory=list)
    seeds: dict[str, int] = field(default_factory=dict)
    error: str | None = None


class Ledger:
    """The file, ours alone while it is entered; then every method may be called from any thread.

    Raises UsageError when it cannot be read or written, or another run has it.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LEDGER
        self._mutex = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._file: BinaryIO | None = None

    def __enter__(self) -> Ledger:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with contextlib.ExitStack() as opened:
                file = opened.enter_context(self.path.open("a+b"))
                _lock(file, self.path)
                file.seek(0)
                content = file.read()
                if content and not content.endswith(b"\n"):
                    # A run that was killed while it wrote leaves half a line.
                    file.write(b"\n")
                opened.pop_all()
                self._file = file
        except OSError as error:
            raise UsageError(f"{self.path} cannot be used: {error.strerror}") from error
        for line in content.split(b"\n"):
            if (entry := _entry(line)) is not None:
                self._entries[entry.key] = entry
        return self

    def __exit__(self, *_: object) -> None:
        with self._mutex:
            file, self._file = self._file, None
            if file is None:
                return
            with contextlib.suppress(OSError), file:
                if not self._entries:
                    # While the lock is ours.
                    self.path.unlink(missing_ok=True)
                    return
            if not self._entries:
                # Windows lets nobody remove a file that is open.
                with contextlib.suppress(OSError):
                    self.path.unlink(missing_ok=True)

    def get(self, key: str) -> Entry | None:
        with self._mutex:
            return self._entries.get(key)

    def is_done(self, key: str) -> bool:
        """Whether a job has succeeded, and its files are all still there."""
        entry = self.get(key)
        folder = self.path.parent
        return entry is not None and entry.status == "done" and all((folder / name).exists() for name in entry.files)

    def write(self, entry: Entry) -> None:
        """On disk when this returns: what was paid for must not be forgotten."""
        line = json.dumps({name: value for name, value in vars(entry).items() if value})
        with self._mutex:
            if self._file is None:
                return  # the run is over, and this thread was not waited for
            self._entries[entry.key] = entry
            try:
                self._file.write(line.encode("ascii") + b"\n")
                self._file.flush()
                os.fsync(self._file.fileno())
            except OSError as error:
                raise UsageError(f"{self.path} cannot be written: {error.strerror}") from error

    def remove(self) -> None:
        """When nothing is left to go on with."""
        with self._mutex:
            self._entries.clear()


def _lock(file: BinaryIO, path: Path) -> None:
    """Two runs of one batch would send every job twice. Raises UsageError when there is another run."""
    if try_lock(file.fileno()) is Lock.BUSY:
        raise UsageError(f"another run is writing to {path.parent} now: wait for it, or choose another --out")


def _entry(line: bytes) -> Entry | None:
    try:
        data = json.loads(line)
        return Entry(**data) if isinstance(data, dict) and isinstance(data.get("status"), str) else None
    except (ValueError, TypeError, RecursionError):
        return None
