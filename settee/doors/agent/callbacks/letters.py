"""Terminal callbacks on disk, and the note of the job that runs: what must survive a kill.

    <folder>/pending/<number>-<hash>.json   to be delivered, oldest first
    <folder>/refused/…                      refused for good; one moved back to pending/ is sent at the next start
    <folder>/running.json                   the job that has been accepted and has no terminal callback yet

Files are for this user only: addresses of callbacks may hold credentials.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from settee.base.files import sweep, sync_folder, write_whole
from settee.doors.agent.callbacks.addressing import Urls
from settee.doors.agent.callbacks.posting import Post
from settee.doors.agent.timestamps import parsed, stamp

log = logging.getLogger(__name__)

_VERSION = 1
#: Refused ones that are kept.
_MAX_REFUSED = 500
#: What reading a file raises that nobody here wrote. RecursionError: JSON of a thousand brackets.
_DAMAGED = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True, kw_only=True)
class Running:
    """What a restarted agent must know of the job that ran."""

    #: One acceptance of a job: the same job id may come again.
    run_id: str
    job_id: str
    client_id: str
    started_at: datetime
    prompt_id: str | None = None
    urls: Urls = field(default_factory=Urls)


@dataclass(frozen=True, kw_only=True)
class Letter:
    """A terminal callback that is to be delivered."""

    run_id: str
    job_id: str
    post: Post


class Shelf:
    """The folder. Used by one thread at a time; every method raises OSError when the disk does not take part."""

    def __init__(self, folder: Path) -> None:
        self._pending = folder / "pending"
        self._refused = folder / "refused"
        self._running = folder / "running.json"
        self._last_number = 0

    def open(self) -> None:
        """Make what is missing, and remove what a kill left half-written; nobody else may use the folder then."""
        for folder in (self._running.parent, self._pending, self._refused):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            sweep(folder)

    # --- terminal callbacks -------------------------------------------------------------------------------------

    def put(self, letter: Letter) -> Path:
        """On return it is on the disk, whole."""
        self._last_number = max(self._last_number + 1, time.time_ns())
        digest = hashlib.sha256(f"{letter.run_id} {letter.post.key}".encode(errors="surrogatepass")).hexdigest()
        path = self._pending / f"{self._last_number:020d}-{digest[:16]}.json"
        _write(
            path,
            {
                "run_id": letter.run_id,
                "job_id": letter.job_id,
                "key": letter.post.key,
                "url": letter.post.url,
                "body": letter.post.body.decode("ascii"),
            },
        )
        return path

    def letters(self) -> Iterator[tuple[Path, Letter]]:
        """Those to be delivered, oldest first. One that cannot be read is put aside, as refused."""
        for path in sorted(self._pending.glob("*.json")):
            try:
                data = _read(path, texts=("url", "key", "body", "run_id", "job_id"))
                post = Post(data["url"], data["key"], data["body"].encode("ascii"))
                letter = Letter(run_id=data["run_id"], job_id=data["job_id"], post=post)
            except _DAMAGED:
                log.error("the callback %s in the outbox is damaged: it is put aside", path.name)
                self.refuse(path)
                continue
            # A clock that was put back must not make a new one older than this.
            if (number := path.name.partition("-")[0]).isdecimal():
                self._last_number = max(self._last_number, int(number))
            yield path, letter

    def remove(self, path: Path) -> None:
        path.unlink(missing_ok=True)
        sync_folder(path.parent)

    def refuse(self, path: Path) -> None:
        """Keep it, but do not send it again."""
        with contextlib.suppress(FileNotFoundError):
            path.rename(self._refused / path.name)
            sync_folder(self._refused)
            sync_folder(self._pending)
        for old in sorted(self._refused.glob("*.json"))[:-_MAX_REFUSED]:
            old.unlink(missing_ok=True)

    # --- the job that runs ----------------------------------------------------------------------------------------

    def begin(self, running: Running) -> None:
        _write(
            self._running,
            {
                "run_id": running.run_id,
                "job_id": running.job_id,
                "client_id": running.client_id,
                "started_at": stamp(running.started_at),
                "prompt_id": running.prompt_id,
                "urls": running.urls.as_dict(),
            },
        )

    def running(self) -> Running | None:
        """The job that was accepted last and not ended."""
        try:
            data = _read(self._running, texts=("run_id", "job_id", "client_id", "started_at"))
            return Running(
                run_id=data["run_id"],
                job_id=data["job_id"],
                client_id=data["client_id"],
                started_at=parsed(data["started_at"]),
                prompt_id=data["prompt_id"],
                urls=Urls.from_dict(data["urls"]),
            )
        except FileNotFoundError:
            return None
        except _DAMAGED:
            log.error("running.json in the outbox is damaged: a job that was interrupted cannot be reported")
            return None

    def end(self) -> None:
        self._running.unlink(missing_ok=True)
        sync_folder(self._running.parent)


def _read(path: Path, *, texts: Sequence[str]) -> dict[str, Any]:
    """Raises OSError, and one of _DAMAGED."""
    data = json.loads(path.read_bytes())
    if not isinstance(data, dict) or data.get("version") != _VERSION:
        raise ValueError("not of this version")
    if not all(isinstance(data[name], str) for name in texts):
        raise TypeError("what should be text is none")
    return data


def _write(path: Path, data: dict[str, Any]) -> None:
    write_whole(path, json.dumps({"version": _VERSION, **data}).encode("ascii"))
