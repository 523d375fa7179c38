"""The archive of a job for an operator to look up, in ``<outputs>/logs/<job>/``.

    manifest-<timestamp>.json   {envelope, resolvedParameters, workflow}
    applied-workflow.json       the graph as ComfyUI got it
    events.jsonl                {timestamp, event, details}, one a line

Secrets are taken out (:mod:`settee.service.scrub`). A disk that is full or may not be written costs the
archive, never the job: nothing here raises for it.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from settee.base.files import write_whole
from settee.service import timestamps
from settee.service.events import Step
from settee.service.scrub import without_secrets

log = logging.getLogger(__name__)

_SAFE = re.compile(r"[A-Za-z0-9._-]{1,100}")
#: Other bytes of a path's part may be up to 255; of an id that is not a plain name, this much is kept.
_SHOWN = 60


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
        self.folder = outputs_dir / "logs" / folder_name(job_id)
        self._job_id = job_id
        self._secrets = tuple(secrets)
        self._now = now
        self._lock = threading.Lock()
        self._events: int | None = None

    def manifest(
        self, envelope: Mapping[str, Any], resolved_parameters: Mapping[str, Any], workflow: Mapping[str, Any]
    ) -> bool:
        """Keep what was asked for and what was made of it. Return True if it was kept."""
        name = f"manifest-{timestamps.file_stamp(self._now())}.json"
        return self._keep(name, {"envelope": envelope, "resolvedParameters": resolved_parameters, "workflow": workflow})

    def applied_workflow(self, workflow: Mapping[str, Any]) -> bool:
        """Keep the graph as it was submitted. Return True if it was kept."""
        return self._keep("applied-workflow.json", workflow)

    def on_step(self, step: Step) -> None:
        """Keep a state that was entered, and how the job ended."""
        outcome = step.outcome
        if outcome is not None:
            body = outcome.body
            is_result = "result" in body
            details = (
                {"artifacts": body["result"]["artifacts"], "timings": outcome.timings} if is_result else body["error"]
            )
            self.event(step.state.value, details)
        elif step.is_new:
            self.event(step.state.value, {"message": step.message} if step.message else None)

    def event(self, event: str, details: Mapping[str, Any] | None = None) -> bool:
        """Add a line. Return True if it was kept."""
        said = {"timestamp": timestamps.stamp(self._now()), "event": event, "details": details or {}}
        line = _json_line(without_secrets(said, self._secrets))
        with self._lock:
            try:
                if self._events is None:
                    self._events = self._opened_events()
                os.write(self._events, line)
            except OSError as error:
                return self._lost("events.jsonl", error)
        return True

    def close(self) -> None:
        """No more events."""
        with self._lock:
            if self._events is not None:
                os.close(self._events)
                self._events = None

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _opened_events(self) -> int:
        self._make_folder()
        flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(self.folder / "events.jsonl", flags, 0o640)
        size = os.fstat(fd).st_size
        if size and os.pread(fd, 1, size - 1) != b"\n":
            os.write(fd, b"\n")  # a kill broke the last line off
        return fd

    def _keep(self, name: str, value: Mapping[str, Any]) -> bool:
        text = json.dumps(without_secrets(value, self._secrets), ensure_ascii=False, indent=2)
        with self._lock:
            try:
                self._make_folder()
                write_whole(self.folder / name, _utf8(text), mode=0o640, is_lasting=False)
            except OSError as error:
                return self._lost(name, error)
        return True

    def _make_folder(self) -> None:
        self.folder.mkdir(mode=0o750, parents=True, exist_ok=True)

    def _lost(self, name: str, error: OSError) -> bool:
        log.warning("job %s: %s is not archived (%s)", self._job_id, name, error.strerror)
        return False


def folder_name(job_id: str) -> str:
    """A job id as the name of a folder: as it is where that is a plain name, else what is plain of it and a hash.

    Names of the second sort have an ``@``, so no id can take another's folder.
    """
    if _SAFE.fullmatch(job_id) and job_id not in (".", ".."):
        return job_id
    digest = hashlib.sha256(job_id.encode(errors="surrogatepass")).hexdigest()
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', job_id)[:_SHOWN]}@{digest[:16]}"


def _json_line(value: Any) -> bytes:
    text = json.dumps(value, ensure_ascii=False)
    # Line separators that JSON allows inside a text, and readers of lines may break at.
    for char in "\x85\u2028\u2029":
        text = text.replace(char, f"\\u{ord(char):04x}")
    return _utf8(text) + b"\n"


def _utf8(text: str) -> bytes:
    """Half a surrogate pair, which UTF-8 has no bytes for, is written as JSON escapes it."""
    return re.sub("[\ud800-\udfff]", lambda match: f"\\u{ord(match[0]):04x}", text).encode()
