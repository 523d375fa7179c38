"""What GET /jobs/{id} knows: the jobs of late, and how those ended that ran before a restart.

    <folder>/<hash of the job's id>.json    one job that has ended

Who asks instead of listening loses no result.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

from settee.base.errors import SetteeError
from settee.base.files import sweep, write_whole
from settee.base.job import Status
from settee.doors.agent import timestamps
from settee.doors.agent.callbacks.interruption import AgentRestarted
from settee.doors.agent.callbacks.letters import Running
from settee.doors.agent.callbacks.payloads import ended, failure_shown
from settee.doors.agent.record import Record

log = logging.getLogger(__name__)

_VERSION = 1
#: Jobs that are remembered: the newest.
KEPT = 200


class Records:
    """Every method may be called from any thread; none raises: at worst a restart forgets a job, which is logged."""

    def __init__(self, folder: Path, *, kept: int = KEPT) -> None:
        self._folder, self._kept = folder, kept
        #: Held for moments only: the event loop takes it.
        self._lock = threading.Lock()
        self._known: OrderedDict[str, Record] = OrderedDict()

    def load(self) -> None:
        """Those of before; before the first job."""
        found = []
        for path in self._folder.glob("*.json"):
            try:
                data = json.loads(path.read_bytes())
                if data["version"] != _VERSION:
                    raise ValueError("not of this version")
                found.append(Record.ended(data["shown"], data["number"]))
            except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
                log.warning("%s in the folder of jobs cannot be read: that job is forgotten", path.name)
        for record in sorted(found, key=lambda record: record.last_number):
            self.add(record)
        with contextlib.suppress(OSError):
            sweep(self._folder)

    def get(self, job_id: str) -> Record | None:
        with self._lock:
            return self._known.get(job_id)

    def add(self, record: Record) -> None:
        """A job that begins."""
        with self._lock:
            self._known[record.job_id] = record
            self._known.move_to_end(record.job_id)
            too_many = [self._known.popitem(last=False)[0] for _ in range(len(self._known) - self._kept)]
        for job_id in too_many:
            self._forget(job_id)

    def end(self, record: Record, state: Status, body: dict[str, Any], tell: Callable[[datetime], object]) -> None:
        """A job ends: ``body`` as of :meth:`Record.end`; ``tell`` has its callback written to the outbox.

        On the disk first: a kill before ``tell`` makes the job an interrupted one, whose record is written anew at
        the start; a kill after it finds both. So who asks is told what the callback tells.
        """
        moment = timestamps.now()
        path, shown = self._path(record.job_id), record.shown_at_end(state, moment, body)
        data = {"version": _VERSION, "number": record.last_number + 1, "shown": shown}
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(path, json.dumps(data).encode("ascii"))
        except OSError as error:
            log.warning("how job %s ended is not remembered over a restart (%s)", record.job_id, error.strerror)
        tell(moment)
        record.end(state, moment, body)

    def end_failed(self, record: Record, error: SetteeError, tell: Callable[[datetime], object]) -> None:
        """A job ends, and this is why."""
        self.end(record, ended(error), {"error": failure_shown(error)}, tell)

    def interrupted(self, running: Running) -> None:
        """A job ended with an agent that was killed; the outbox tells its dispatcher."""
        record = Record(running.job_id, running.started_at)
        record.tell(Status.QUEUED, promptId=running.prompt_id)
        self.add(record)
        self.end_failed(record, AgentRestarted(), lambda _: None)

    def _forget(self, job_id: str) -> None:
        try:
            self._path(job_id).unlink(missing_ok=True)
        except OSError as error:
            log.warning("a job of long ago stays in the folder of jobs (%s)", error.strerror)

    def _path(self, job_id: str) -> Path:
        return self._folder / f"{hashlib.sha256(job_id.encode(errors='surrogatepass')).hexdigest()[:32]}.json"


__all__ = ["Records"]
