"""How a job stands, in one row of text. What a worker says of its progress is not trusted to be what it should be."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from settee.base.text import encodable, for_terminal
from settee.client.display.text import cut, duration, symbol
from settee.client.targets.target import Answer, Status

#: Of a worker's words, characters.
_MOST = 200
#: A row has room for a bar from this width on.
_BAR_FROM, _BAR_CELLS = 72, 16

WORDS = {
    Status.IN_QUEUE: "in queue",
    Status.IN_PROGRESS: "running",
    Status.COMPLETED: "completed",
    Status.FAILED: "failed",
    Status.CANCELLED: "canceled",
    Status.TIMED_OUT: "timed out",
}


@dataclass
class Shown:
    """A job that is followed."""

    name: str
    answer: Answer
    #: When it was first seen.
    begun: float


@dataclass(frozen=True, kw_only=True)
class Counts:
    """Of all jobs of a run. ``done``: ended, however; ``begun``: when the first of them did."""

    total: int
    done: int
    failed: int
    begun: float


def job_row(job: Shown, now: float, width: int, encoding: str, *, named: bool) -> str:
    """Status, percent, step, time, node and what it says, most important first: the end is cut off where it is narrow.

    ``running ████░░░░ 41% · step 8/20 · 0:12 · 12 KSampler``
    """
    progress = job.answer.progress if isinstance(job.answer.progress, dict) else {}
    elapsed = duration(now - job.begun)
    if job.answer.status is Status.IN_PROGRESS:
        percent = _number(progress.get("percent"))
        shown = WORDS[Status.IN_PROGRESS]
        if percent is not None:
            percent = min(100.0, max(0.0, percent))
            shown += f"{_bar(percent, encoding) if width >= _BAR_FROM else ''} {percent:.0f}%"
        node = " ".join(filter(None, (_word(progress.get("node")), _word(progress.get("node_type")))))
        phase = "" if node else _word(progress.get("phase"))
        parts = [shown, _step(progress), elapsed, node or phase, _word(progress.get("message"))]
    else:
        parts = [_waiting(job.answer), elapsed]
    name = for_terminal(job.name, encoding, most=_MOST)
    return _joined([cut(name, max(8, width // 4), encoding) if named else "", *parts], width, encoding)


def summary_row(counts: Counts, jobs: Iterable[Shown], now: float, width: int, encoding: str) -> str:
    """``12 of 50 done · 1 failed · 3 running · 1 in queue · 26% · 1:42``."""
    live = list(jobs)
    running = [job for job in live if job.answer.status is Status.IN_PROGRESS]
    shares = [_number(_of(job.answer.progress, "percent")) or 0.0 for job in running]
    whole = counts.done + sum(min(100.0, max(0.0, share)) for share in shares) / 100
    percent = min(100.0, 100 * whole / counts.total) if counts.total > 0 else 0.0
    parts = [
        f"{counts.done} of {counts.total} done",
        f"{counts.failed} failed" if counts.failed else "",
        f"{len(running)} running" if running else "",
        f"{len(live) - len(running)} in queue" if len(live) > len(running) else "",
        f"{percent:.0f}%",
        duration(now - counts.begun),
    ]
    return _joined(parts, width, encoding)


def log_line(job: Shown, now: float, encoding: str) -> str:
    """For a file: a job's new status, ``abc123: failed after 0:12``. Why, its error says, which somebody else tells."""
    status = job.answer.status
    name = for_terminal(job.name, encoding, most=_MOST)
    if not status.is_terminal:
        return f"{name}: {_waiting(job.answer)}"
    return f"{name}: {WORDS[status]} after {duration(now - job.begun)}"


def _waiting(answer: Answer) -> str:
    ahead = answer.queue_position
    if answer.status is not Status.IN_QUEUE or ahead is None:
        return WORDS[answer.status]
    return f"in queue, {ahead} ahead" if ahead > 0 else "in queue, next"


def _step(progress: dict[str, Any]) -> str:
    step, most = _number(progress.get("step")), _number(progress.get("max"))
    if step is None or most is None or most <= 1:
        return ""
    return f"step {step:.0f}/{most:.0f}"


def _joined(parts: Iterable[str], width: int, encoding: str) -> str:
    text = encodable(symbol(" · ", " - ", encoding).join(filter(None, parts)), encoding)
    return cut(text, width, encoding)


def _bar(percent: float, encoding: str) -> str:
    full, empty = symbol("█", "#", encoding), symbol("░", "-", encoding)
    filled = int(_BAR_CELLS * percent / 100)
    return f" {full * filled}{empty * (_BAR_CELLS - filled)}"


def _of(progress: Any, name: str) -> Any:
    return progress.get(name) if isinstance(progress, dict) else None


def _number(value: Any) -> float | None:
    """A worker's number, unless it is none, or one that nobody would count to."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    return float(value) if -1e9 < value < 1e9 else None


def _word(value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)):
        return ""
    text = value if isinstance(value, str) else f"{value:d}" if abs(value) < 10**9 else ""
    return for_terminal(text, most=_MOST)
