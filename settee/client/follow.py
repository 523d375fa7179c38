"""From a job that was sent to what came of it: asking how it stands until it has ended, and reading its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from settee.client import client_errors
from settee.client.client_errors import ClientError, JobFailed, JobStopped, NetworkError
from settee.client.job_outputs import KINDS, outputs_of
from settee.client.saving import Result
from settee.client.targets import Answer, Status, Target
from settee.client.targets.json_http import limited
from settee.comfyui.history import mapping

#: Seconds between questions: at first, after something moved, at the slowest; and by how much they grow.
FIRST_S, MOVED_S, SLOWEST_S, GROWTH = 0.2, 0.5, 5.0, 1.5
#: The parts of an answer that show that a job moves.
_MOVES = ("status", "progress", "queue_position")
#: Of a job that its target does not keep (:meth:`Target.keeps`).
NOT_KEPT = "the SDK's local API runs it to completion all the same, and returns its result to no other command"


def follow(
    target: Target,
    answer: Answer,
    *,
    timeout_s: float,
    on_update: Callable[[Answer], None] = lambda _: None,
    stop: threading.Event | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> Answer:
    """Ask for the job of ``answer`` until it has ended, and return the answer that says so.

    Asks soon at first (at once for a job under way) and then ever less often, and again more often when the job's
    status or progress moves.
    ``on_update`` gets every answer, the one given and the last included. ``stop`` may be set from any thread.

    Raises JobStopped when ``stop`` is set or after ``timeout_s`` seconds (the job goes on), or when the target knows
    the job no more; NetworkError when it cannot be asked.
    """
    stop = stop or threading.Event()
    deadline = clock() + timeout_s
    # One that is under way may be done, and the SDK's local API begins with it when it is first asked for.
    interval_s = 0.0 if answer.status is Status.IN_PROGRESS else FIRST_S
    on_update(answer)
    while not answer.status.is_terminal:
        if stop.wait(min(interval_s, max(0.0, deadline - clock()))):
            raise _stopped(answer)
        fresh = None
        if clock() < deadline:
            try:
                with limited(stop, lambda: deadline - clock()):
                    fresh = target.status(answer.job_id)
            except NetworkError as error:
                if stop.is_set():
                    raise _stopped(answer) from error
                if clock() < deadline:
                    kind = client_errors.AuthError if isinstance(error, client_errors.AuthError) else NetworkError
                    words = f"{error.message}; the job may go on: --resume {answer.job_id} picks it up"
                    raise kind(words, code=error.code, details=error.details, job_id=answer.job_id) from error
        if fresh is None:
            late = f"job {answer.job_id} has not ended within {timeout_s:g} s (it is {answer.status.value})"
            goes_on = f"it goes on there: {ways_back(answer.job_id)}" if target.keeps(answer.job_id) else NOT_KEPT
            raise JobStopped(f"{target.name}: {late}; {goes_on}", job_id=answer.job_id)
        has_moved = any(getattr(fresh, name) != getattr(answer, name) for name in _MOVES)
        interval_s = MOVED_S if has_moved else min(SLOWEST_S, max(FIRST_S, interval_s * GROWTH))
        answer = fresh
        on_update(answer)
    return answer


def _stopped(answer: Answer) -> JobStopped:
    return JobStopped(f"stopped following job {answer.job_id}", job_id=answer.job_id)


def ways_back(job_id: str) -> str:
    """Return the options that reach a job which goes on without us."""
    return f"--resume {job_id} picks it up, --cancel {job_id} ends it"


def result_of(
    answer: Answer, *, seeds: Mapping[str, int] | None = None, workflow: Mapping[str, Any] | None = None
) -> Result:
    """Return the result of a job that has ended: its outputs, its timings (the worker's, and RunPod's ``delayTime`` and
    ``executionTime``), its warnings. ``seeds`` and ``workflow`` are what the caller sent; the worker's seeds are added.

    Raises what :func:`failure_of` returns for a job that did not succeed; JobFailed for a result without outputs.
    """
    if (error := failure_of(answer)) is not None:
        raise error
    output = answer.output or {}
    if not any(kind in output for kind in KINDS):
        raise JobFailed(
            "the job completed, but its result has none of the lists for outputs: is a settee worker there?",
            job_id=answer.job_id,
        )
    found = mapping(output.get("timings"))
    timings = {str(name): float(value) for name, value in found.items() if type(value) in (int, float)}
    # worker-comfyui has warnings under "errors" only; settee's workers have them under both.
    warnings = output.get("warnings") or output.get("errors")
    drawn = mapping(output.get("seeds"))
    return Result(
        job_id=answer.job_id,
        outputs=outputs_of(output, answer.job_id),
        timings={**timings, **answer.timings},
        warnings=tuple(str(warning) for warning in warnings) if isinstance(warnings, list) else (),
        seeds={**(seeds or {}), **{str(at): seed for at, seed in drawn.items() if type(seed) is int}},
        workflow=dict(workflow or {}),
    )


def failure_of(answer: Answer) -> ClientError | None:
    """Return the error for how a job ended: Rejected, JobFailed or JobStopped; None for one that succeeded."""
    assert answer.status.is_terminal, "the job has not ended"
    if answer.status is Status.COMPLETED:
        if answer.output is None:
            return JobFailed("the job ended without a result", job_id=answer.job_id)
        return None
    kind = client_errors.of_code(answer.code) if answer.status is Status.FAILED else JobStopped
    words = {
        Status.FAILED: "the job failed, and the worker did not report why: see its log",
        Status.CANCELLED: "the job was canceled",
        Status.TIMED_OUT: "the job ran out of time",
    }
    message = answer.error or words[answer.status]
    return kind(message, code=answer.code, details=answer.details, job_id=answer.job_id)
