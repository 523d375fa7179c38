"""The archive of a job for an operator to look up, in ``<outputs>/logs/<job>/``.

    manifest-<timestamp>.json   {envelope, resolvedParameters, workflow}
    applied-workflow.json       the graph as ComfyUI got it
    events.jsonl                {timestamp, event, details}, one a line

Secrets are taken out (:mod:`settee.service.scrub`). A disk that is full or may not be written costs the
archive, never the job: nothing here raises for it.
"""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from settee.base.files import write_whole
from settee.base.job import Status
from settee.delivery.keys import safe_id
from settee.service import timestamps
from settee.service.events import Step
from settee.service.scrub import without_secrets

log = logging.getLogger(__name__)

#: Line separators that JSON allows inside a string, and readers of lines may break at.
_SEPARATORS = {ord(char): f"\\u{ord(char):04x}" for char in "\x85\u2028\u2029"}


class Archive:
    """The archive of one job. Nothing is touched before the first thing is kept; may be used from any thread."""

    def __init__(
        self,
        outputs_dir: Path,
        job_id: str,
        *,
        secrets: Iterable[str] = (),
        now: Callable[[], datetime] = timestamps.now,
    ) -> None:
        """``secrets``: values that must not appear in any text, wherever they stand: the cancel token, the agent's own,
        and what :func:`settee.service.scrub.secret_values` finds."""
        name = safe_id(job_id)
        # A ~ is in no safe id, so no other job's id can be what this one's became.
        self.folder = outputs_dir / "logs" / (name if name == job_id else f"{name}~")
        self._job_id, self._secrets, self._now = job_id, tuple(secrets), now
        self._lock = threading.Lock()
        self._state: Status | None = None

    def prepared(self, envelope: Mapping[str, Any], values: Mapping[str, Any], workflow: Mapping[str, Any]) -> None:
        """Keep what was asked for, and the parameters and the graph that were made of it."""
        name = f"manifest-{timestamps.file_stamp(self._now())}.json"
        self._keep(name, {"envelope": envelope, "resolvedParameters": values, "workflow": workflow})
        self._keep("applied-workflow.json", workflow)

    def on_step(self, step: Step) -> None:
        """Keep a state that was entered, and how the job ended."""
        if step.outcome is None:
            if step.state is not self._state:
                self.event(step.state.value, {"message": step.message} if step.message else {})
            self._state = step.state
        elif "result" in step.outcome.body:
            artifacts = step.outcome.body["result"]["artifacts"]
            self.event(step.state.value, {"artifacts": artifacts, "timings": step.outcome.timings})
        else:
            self.event(step.state.value, step.outcome.body["error"])

    def event(self, event: str, details: Mapping[str, Any]) -> None:
        """Add a line."""
        said = {"timestamp": timestamps.stamp(self._now()), "event": event, "details": details}
        line = _json(without_secrets(said, self._secrets)).translate(_SEPARATORS)
        self._write("events.jsonl", lambda path: _append(path, _utf8(f"{line}\n")))

    def _keep(self, name: str, value: Mapping[str, Any]) -> None:
        text = _json(without_secrets(value, self._secrets), indent=2)
        self._write(name, lambda path: write_whole(path, _utf8(text), mode=0o640, is_lasting=False))

    def _write(self, name: str, write: Callable[[Path], None]) -> None:
        with self._lock:
            try:
                self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)
                write(self.folder / name)
            except OSError as error:
                log.warning("job %s: %s is not archived (%s)", self._job_id, name, error.strerror)


def _append(path: Path, line: bytes) -> None:
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o640)
    with open(fd, "rb+", buffering=0) as file:
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            line = b"\n" + line  # a kill broke the last one off
        file.write(line)


def _json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _utf8(text: str) -> bytes:
    """Half a surrogate pair, which UTF-8 has no bytes for, is written as JSON escapes it."""
    return text.encode(errors="backslashreplace")
