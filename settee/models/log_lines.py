"""What the worker's log says of models on their way. Of a job's own no name: it may be private."""

from __future__ import annotations

import logging
import sys

from settee.errors import JobCanceled, SetteeError
from settee.models.bars import Bars
from settee.models.entry import ModelEntry
from settee.models.placing import IN_PLACE

log = logging.getLogger(__name__)


class LogLines:
    """A line when a download begins, one every few seconds, and how each model ended. Safe from any thread."""

    def __init__(self) -> None:
        self._bars = Bars(sys.stderr, is_terminal=False, log=lambda line: log.info("model %s", line))

    def progress(self, entry: ModelEntry, done: int, total: int | None, source: str) -> None:
        """``done`` of ``total`` bytes are in place."""
        if not entry.from_job:
            self._bars.update(str(entry.path), done, total, source)

    def end(self, entry: ModelEntry, outcome: str | SetteeError) -> None:
        """An entry ended: words, or the error."""
        self._bars.forget(str(entry.path))
        if outcome == IN_PLACE or isinstance(outcome, JobCanceled):
            return
        if entry.from_job:
            log.info("a model of the job's: %s", outcome.code if isinstance(outcome, SetteeError) else outcome)
        elif isinstance(outcome, SetteeError):
            log.log(logging.ERROR if entry.required else logging.WARNING, "%s", outcome.message)
        else:
            log.info("model %s: %s", entry.path, outcome)


__all__ = ["LogLines"]
