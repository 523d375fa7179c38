"""The display of jobs: the changes before they are sent, and how the jobs stand while they run.

    with Display(sys.stderr) as display:
        follow(target, answer, on_update=display.update, …)

On a terminal there are rows that rich redraws, elsewhere a line for every change of status. Without colours, so that
NO_COLOR has nothing to switch off. No failure here fails a job, and nothing that a worker states steers the terminal.
"""

from __future__ import annotations

import io
import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, TextIO

from settee.base import terminal
from settee.base.text import for_terminal
from settee.client.inject import Change
from settee.client.targets import Answer, Status
from settee.comfyui.workflow import Workflow, shown_node

#: Of many jobs, those under way get a row each while they are at most this many.
MAX_ROWS = 4
#: Characters that are shown of a worker's own words, and of a workflow's value.
_MAX_WORDS, _MAX_VALUE = 200, 2000
#: A row has room for a bar from this width on.
_BAR_FROM = 73
#: Cells that these columns of the table take at most.
_MAX_WHY, _MAX_INPUT = 12, 24

WORDS = {
    Status.IN_QUEUE: "in queue",
    Status.IN_PROGRESS: "running",
    Status.COMPLETED: "completed",
    Status.FAILED: "failed",
    Status.CANCELLED: "canceled",
    Status.TIMED_OUT: "timed out",
}


@dataclass
class _Followed:
    """A job that is followed, and when it was first seen."""

    name: str
    answer: Answer
    begun: float


class Display(terminal.Rows):
    """A row for each job under way, or a line for every change of status.

    ``is_terminal`` decides between the two (default: what the stream states). ``total`` is how many jobs there will be:
    with more than one there is a summary, and every job is named. ``quiet``: only :meth:`line` writes.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        is_terminal: bool | None = None,
        width: int | None = None,
        quiet: bool = False,
        total: int = 1,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        is_terminal = stream.isatty() if is_terminal is None else is_terminal
        super().__init__(stream, has_rows=is_terminal and not quiet, width=width)
        self._clock, self._quiet = clock, quiet
        #: For the jobs; a frame takes it alone.
        self._lock = threading.Lock()
        self._jobs: dict[str, _Followed] = {}
        self._total, self._done_before, self._begun = total, done, clock()
        #: Whether each job that has ended succeeded.
        self._ends: dict[str, bool] = {}

    @classmethod
    def on_stderr(cls, env: Mapping[str, str], *, quiet: bool, total: int = 1, done: int = 0) -> Display:
        """Return one for standard error, with rows only where the terminal can move its cursor."""
        term = env.get("TERM", "dumb" if os.name == "posix" else "")
        return cls(sys.stderr, is_terminal=sys.stderr.isatty() and term != "dumb", quiet=quiet, total=total, done=done)

    def update(self, answer: Answer, name: str | None = None) -> None:
        """Take how a job stands now; the first call begins its row. ``name``: what it is called (default: its id)."""
        key = name if name is not None else answer.job_id
        with self._lock:
            job = self._jobs.get(key)
            is_new = job is None or job.answer.status is not answer.status
            if job is None:
                job = _Followed(key, answer, self._clock())
            job.answer = answer
            if answer.status.is_terminal:
                self._jobs.pop(key, None)
                self._ends[key] = answer.status is Status.COMPLETED
            else:
                self._jobs[key] = job
        if is_new and not self._has_rows and not self._quiet:
            after = f" after {terminal.duration(self._clock() - job.begun)}" if answer.status.is_terminal else ""
            self._stream.write(f"{for_terminal(key, most=_MAX_WORDS)}: {_waiting(answer)}{after}\n")

    def lost(self, name: str) -> None:
        """Count a job as failed that an error ended: it is not followed, was not sent, or its outputs are not saved.

        It counts once, also when it has ended already.
        """
        with self._lock:
            self._jobs.pop(name, None)
            self._ends[name] = False

    def rows(self, width: int) -> list[str]:
        """Return the summary and the jobs under way."""
        with self._lock:
            jobs, now, is_named = list(self._jobs.values()), self._clock(), self._total > 1
            rows = []
            if is_named and (jobs or self._done_before + len(self._ends) < self._total):
                rows.append(self._summary(jobs, now))
            if not is_named or len(jobs) <= MAX_ROWS:
                rows += [_job_row(job, now, width, is_named=is_named) for job in jobs[:MAX_ROWS]]
        return [" · ".join(filter(None, row)) for row in rows]

    def _summary(self, jobs: list[_Followed], now: float) -> list[str]:
        """Return ``12 of 50 done · 1 failed · 3 running · 1 in queue · 26% · 1:42``."""
        running = [job.answer for job in jobs if job.answer.status is Status.IN_PROGRESS]
        done = self._done_before + len(self._ends)
        failed = len(self._ends) - sum(self._ends.values())
        whole = done + sum(_percent(answer) or 0.0 for answer in running) / 100
        return [
            f"{done} of {self._total} done",
            f"{failed} failed" if failed else "",
            f"{len(running)} running" if running else "",
            f"{len(jobs) - len(running)} in queue" if len(jobs) > len(running) else "",
            f"{min(100.0, 100 * whole / self._total):.0f}%",
            terminal.duration(now - self._begun),
        ]


# --- one job ---------------------------------------------------------------------------------------------------


def _job_row(job: _Followed, now: float, width: int, *, is_named: bool) -> list[str]:
    """Return status, percent, step, time, node and message, the most important first: a narrow row loses its end.

    ``running ████░░░░ 41% · step 8/20 · 0:12 · 12 KSampler``
    """
    from rich.text import Text

    name, elapsed = (
        Text(for_terminal(job.name, most=_MAX_WORDS) if is_named else ""),
        terminal.duration(now - job.begun),
    )
    name.truncate(max(8, width // 4), overflow="ellipsis")
    elapsed = terminal.duration(now - job.begun)
    if job.answer.status is not Status.IN_PROGRESS:
        return [name.plain, _waiting(job.answer), elapsed]
    progress, percent, shown = job.answer.progress, _percent(job.answer), WORDS[Status.IN_PROGRESS]
    if percent is not None:
        shown += f"{f' {terminal.bar(percent / 100)}' if width >= _BAR_FROM else ''} {percent:.0f}%"
    steps = (
        f"step {progress['step']:.0f}/{progress['max']:.0f}"
        if "step" in progress and progress.get("max", 0) > 1
        else ""
    )
    node, phase, message = (
        for_terminal(" ".join(str(progress[key]) for key in keys if key in progress), most=_MAX_WORDS)
        for keys in (("node", "node_type"), ("phase",), ("message",))
    )
    return [name.plain, shown, steps, elapsed, node or phase, message]


def _waiting(answer: Answer) -> str:
    ahead = answer.queue_position
    if answer.status is not Status.IN_QUEUE or ahead is None:
        return WORDS[answer.status]
    return f"in queue, {ahead} ahead" if ahead > 0 else "in queue, next"


def _percent(answer: Answer) -> float | None:
    return min(100.0, max(0.0, answer.progress["percent"])) if "percent" in answer.progress else None


# --- the table of changes --------------------------------------------------------------------------------------


def table(workflow: Workflow, changes: Iterable[Change], width: int) -> str:
    """Return a line for every input that changes, at most ``width`` cells wide: option, node, input, new value.

    Of several changes to one input the last counts, as in :func:`settee.client.inject.applied`. Values are cut at
    their end and shown as one line. "" without changes.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    grid = Table.grid(padding=(0, 2, 0, 0))
    for most in (_MAX_WHY, None, _MAX_INPUT, None):
        grid.add_column(max_width=most)
    for change in {(change.node_id, change.input): change for change in changes}.values():
        texts = (change.why, shown_node(workflow, change.node_id), change.input, _value(change.value))
        cells = (for_terminal(text, most=_MAX_VALUE) for text in texts)
        grid.add_row(*(Text(text, no_wrap=True, overflow="ellipsis") for text in cells))
    console = Console(file=io.StringIO(), width=width, color_system=None)
    with console.capture() as drawn:
        console.print(grid)
    return "\n".join(line.rstrip() for line in drawn.get().splitlines())


def _value(value: Any) -> str:
    """Return the value as the workflow has it, text without quotes unless there is nothing else to see."""
    if isinstance(value, str) and value.strip():
        return value[:_MAX_VALUE]
    return json.dumps(value, ensure_ascii=False, default=str)[:_MAX_VALUE]
