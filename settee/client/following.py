"""From a job that was sent to what came of it: asking how it stands until it has ended, and reading its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

from settee.client import errors
from settee.client.errors import ClientError, JobFailed, JobStopped, NetworkError, UsageError
from settee.client.results import KINDS, Result, outputs_of
from settee.client.targets.http import patience
from settee.client.targets.target import Answer, Status, Target

#: Seconds between questions: at first, after something moved, at the slowest; and by how much they grow.
FIRST_S, MOVED_S, SLOWEST_S, GROWTH = 0.2, 0.5, 5.0, 1.5


#: Of a job that its target does not keep (:meth:`Target.keeps`).
NOT_KEPT = "the SDK's local API runs it to its end all the same, and tells no other command what came of it"


class Interrupted(Exception):
    """Following was told to stop; the job goes on."""

    def __init__(self, answer: Answer) -> None:
        super().__init__(f"stopped following job {answer.job_id}")
        #: How the job stood when it was last asked for.
        self.answer = answer
        self.job_id = answer.job_id


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

    Raises Interrupted when ``stop`` is set; JobStopped after ``timeout_s`` seconds (the job goes on) or when the
    target knows the job no more; NetworkError when it cannot be asked.
    """
    stop = stop or threading.Event()
    deadline = clock() + timeout_s
    # One that is under way may be done, and the SDK's local API begins with it when it is first asked for.
    interval_s = 0.0 if answer.status is Status.IN_PROGRESS else FIRST_S
    on_update(answer)
    while not answer.status.is_terminal:
        if (left := deadline - clock()) <= 0:
            raise _out_of_time(target, answer, timeout_s)
        if stop.wait(min(interval_s, left)):
            raise Interrupted(answer)
        if clock() >= deadline:
            raise _out_of_time(target, answer, timeout_s)
        try:
            with patience(stop, lambda: deadline - clock()):
                fresh = target.status(answer.job_id)
        except NetworkError as error:
            if stop.is_set():
                raise Interrupted(answer) from error
            if clock() >= deadline:
                raise _out_of_time(target, answer, timeout_s) from error
            raise _lost_touch(error, answer.job_id) from error
        has_moved = (fresh.status, fresh.progress, fresh.queue_position) != (
            answer.status,
            answer.progress,
            answer.queue_position,
        )
        interval_s = MOVED_S if has_moved else min(SLOWEST_S, max(FIRST_S, interval_s * GROWTH))
        answer = fresh
        on_update(answer)
    return answer


def _out_of_time(target: Target, answer: Answer, timeout_s: float) -> JobStopped:
    return JobStopped(
        f"{target.name}: job {answer.job_id} has not ended within {timeout_s:g} s (it is {answer.status.value}); "
        + (f"it goes on there: {ways_back(answer.job_id)}" if target.keeps(answer.job_id) else NOT_KEPT),
        job_id=answer.job_id,
    )


def ways_back(job_id: str) -> str:
    """What can be done about a job that goes on without us."""
    return f"--resume {job_id} picks it up, --cancel {job_id} ends it"


def _lost_touch(error: NetworkError, job_id: str) -> NetworkError:
    """The same error, and how to get back to the job."""
    message = f"{error.message}; the job may go on: --resume {job_id} picks it up"
    kind = errors.AuthError if isinstance(error, errors.AuthError) else NetworkError
    return kind(message, code=error.code, details=error.details, job_id=job_id)


def result_of(
    answer: Answer, *, seeds: Mapping[str, int] | None = None, workflow: Mapping[str, Any] | None = None
) -> Result:
    """What a job that has ended came to: its outputs, its timings (RunPod's ``delayTime`` and ``executionTime`` beside
    the worker's), its warnings; ``seeds`` and ``workflow`` are what the caller sent, and the worker's seeds are added.

    Raises what :func:`failure_of` says for a job that did not succeed; JobFailed for a result without outputs.
    """
    if (error := failure_of(answer)) is not None:
        raise error
    output = answer.output or {}
    if not any(kind in output for kind in KINDS):
        raise JobFailed(
            "the job completed, but its result has none of the lists that outputs come in: is a settee worker there?",
            job_id=answer.job_id,
        )
    timings = {
        str(name): float(value)
        for name, value in _mapping(output.get("timings")).items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
    }
    # worker-comfyui has warnings under "errors" only; settee's workers have them under both.
    warnings = output.get("warnings") or output.get("errors")
    drawn = _mapping(output.get("seeds"))
    return Result(
        job_id=answer.job_id,
        outputs=outputs_of(output, answer.job_id),
        timings={**timings, **answer.timings},
        warnings=tuple(str(warning) for warning in warnings) if isinstance(warnings, list) else (),
        seeds={**(seeds or {}), **{str(at): seed for at, seed in drawn.items() if type(seed) is int}},
        workflow=dict(workflow or {}),
    )


def failure_of(answer: Answer) -> ClientError | None:
    """The error that a job's end is: Rejected, JobFailed or JobStopped; None for one that succeeded.

    UsageError for a result that is still sealed.
    """
    assert answer.status.is_terminal, "the job has not ended"
    if answer.status is Status.COMPLETED:
        if answer.output is None:
            return JobFailed("the job ended without a result", job_id=answer.job_id)
        if "encrypted_output" in answer.output:
            return UsageError(
                "the result is sealed: set ENCRYPTION_KEY (or give --key-file) and --resume the job",
                job_id=answer.job_id,
            )
        return None
    kind = errors.of_code(answer.code) if answer.status is Status.FAILED else JobStopped
    words = {
        Status.FAILED: "the job failed, and the worker did not say why: its log has more",
        Status.CANCELLED: "the job was canceled",
        Status.TIMED_OUT: "the job ran out of time",
    }
    message = answer.error or words[answer.status]
    return kind(message, code=answer.code, details=answer.details, job_id=answer.job_id)


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
