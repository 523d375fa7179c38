"""Log lines: set up once by a door, each with the id of the job it belongs to.

settee's own loggers and ComfyUI's output follow LOG_LEVEL; libraries log from WARNING on, except
those in QUIET. RunPod's SDK does not use the logging module, and is left alone.
"""

from __future__ import annotations

import contextvars
import json
import logging
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from typing import TextIO

from settee.base.settings import Settings
from settee.base.text import escaped

#: Libraries whose warnings quote a job: urllib3's name the URL of a request that is tried again, signature and all
#: ("Retrying (…) after connection broken by …: /bucket/key?X-Amz-Signature=…"), and so do those built on it; PIL's
#: name what it finds in a picture. What matters of them reaches the job's error.
QUIET = ("urllib3", "botocore", "boto3", "s3transfer", "requests", "PIL")

_job_id: contextvars.ContextVar[str | None] = contextvars.ContextVar("settee_job_id", default=None)


@contextmanager
def job(job_id: str) -> Iterator[None]:
    """Put this id on every line logged in here. A new thread starts without one: copy the context into it."""
    token = _job_id.set(escaped(job_id))
    try:
        yield
    finally:
        _job_id.reset(token)


def setup(settings: Settings, stream: TextIO | None = None, spelled: Callable[[str], str] | None = None) -> None:
    """Log to ``stream`` (default: stderr) as LOG_LEVEL and LOG_FORMAT state. Called again, it replaces itself.

    ``spelled``: turns the engine's messages into the words of a door that calls settings by other names.
    """
    handler = logging.StreamHandler(stream if stream is not None else sys.stderr)
    if spelled is not None:

        def spell(record: logging.LogRecord) -> bool:
            if record.name.partition(".")[0] == "settee":
                record.msg, record.args = spelled(record.getMessage()), ()
            return True

        handler.addFilter(spell)
    handler.set_name("settee")
    handler.setFormatter(JsonFormatter() if settings.log_format == "json" else TextFormatter())
    root = logging.getLogger()
    for old in [handler for handler in root.handlers if handler.get_name() == "settee"]:
        root.removeHandler(old)
    root.addHandler(handler)
    for name in ("settee", "comfyui"):
        logging.getLogger(name).setLevel(settings.log_level)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)


class TextFormatter(logging.Formatter):
    """``14:03:07.512 WARNING settee.engine [job id] message``, for a person."""

    def format(self, record: logging.LogRecord) -> str:
        moment = datetime.fromtimestamp(record.created, timezone.utc).strftime("%H:%M:%S.%f")[:-3]
        job_id = _job_id.get()
        where = f"{record.name} [{job_id}]" if job_id else record.name
        line = f"{moment} {record.levelname} {where} {escaped(record.getMessage())}"
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class JsonFormatter(logging.Formatter):
    """One JSON object a line, for a machine: time, level, logger, message, and job_id and exception when known."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": datetime.fromtimestamp(record.created, timezone.utc).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
        }
        if job_id := _job_id.get():
            line["job_id"] = job_id
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
