"""How a job is followed to its end, with a clock of the test's, and what its end is taken for."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from typing import Any

import pytest

from settee.client.client_errors import (
    AuthError,
    ClientError,
    JobFailed,
    JobStopped,
    NetworkError,
    Rejected,
)
from settee.client.follow import failure_of, follow, result_of
from settee.client.targets import Answer, Status

QUEUED = Answer("j", Status.IN_QUEUE)
RUNNING = Answer("j", Status.IN_PROGRESS)
DONE = Answer("j", Status.COMPLETED, output={"images": []})


class Clock(threading.Event):
    """Time that passes only while somebody waits; set when it is ``stops_at``."""

    def __init__(self, stops_at: float = math.inf) -> None:
        super().__init__()
        self.now = 0.0
        self.stops_at = stops_at
        self.waits: list[float] = []

    def __call__(self) -> float:
        return self.now

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout is not None
        assert timeout >= 0
        self.waits.append(timeout)
        self.now += timeout
        if self.now >= self.stops_at:
            self.set()
        return self.is_set()


class Scripted:
    """A target that gives one answer after another; the last one again and again."""

    name = "endpoint e1"
    request_cap: int | None = None

    def __init__(self, answers: Iterable[Answer | Callable[[], Answer]]) -> None:
        self.answers = list(answers)
        self.asked = 0

    def status(self, job_id: str) -> Answer:
        assert job_id == "j"
        answer = self.answers[min(self.asked, len(self.answers) - 1)]
        self.asked += 1
        return answer() if callable(answer) else answer

    def submit(self, payload: dict[str, Any]) -> Answer:
        raise AssertionError(payload)

    def cancel(self, job_id: str) -> None:
        raise AssertionError(job_id)

    def keeps(self, job_id: str) -> bool:
        return True

    def health(self) -> dict[str, Any]:
        return {}

    def node_registry(self) -> None:
        return None

    def close(self) -> None:
        return


def at(percent: float) -> Answer:
    return Answer("j", Status.IN_PROGRESS, progress={"percent": percent})


def test_every_answer_is_shown_and_the_last_returned() -> None:
    clock = Clock()
    seen: list[Answer] = []
    answer = follow(
        Scripted([QUEUED, RUNNING, at(50), DONE]), QUEUED, timeout_s=60, on_update=seen.append, stop=clock, clock=clock
    )
    assert answer is DONE
    assert seen == [QUEUED, QUEUED, RUNNING, at(50), DONE]


def test_a_job_that_is_over_is_not_asked_for() -> None:
    target = Scripted([QUEUED])
    seen: list[Answer] = []
    assert follow(target, DONE, timeout_s=60, on_update=seen.append) is DONE
    assert (target.asked, seen) == (0, [DONE])


def test_it_asks_soon_then_ever_less_often() -> None:
    clock = Clock()
    follow(Scripted([*[QUEUED] * 30, DONE]), QUEUED, timeout_s=600, stop=clock, clock=clock)
    assert clock.waits[0] == pytest.approx(0.2)
    assert clock.waits[:-1] == sorted(clock.waits[:-1])
    assert clock.waits[-2] == pytest.approx(5.0)
    assert sum(wait < 1 for wait in clock.waits) >= 4


def test_a_job_under_way_is_asked_for_at_once() -> None:
    clock = Clock()
    follow(Scripted([RUNNING, RUNNING, DONE]), RUNNING, timeout_s=600, stop=clock, clock=clock)
    assert clock.waits == [0.0, pytest.approx(0.2), pytest.approx(0.3)]


@pytest.mark.parametrize(
    "moved", [at(1), Answer("j", Status.IN_PROGRESS), Answer("j", Status.IN_QUEUE, queue_position=1)]
)
def test_it_asks_more_often_again_when_something_moves(moved: Answer) -> None:
    clock = Clock()
    follow(Scripted([*[QUEUED] * 20, moved, DONE]), QUEUED, timeout_s=600, stop=clock, clock=clock)
    assert clock.waits[20:] == [pytest.approx(5.0), pytest.approx(0.5)]


def test_time_runs_out_and_the_message_says_how_to_go_on() -> None:
    clock = Clock()
    with pytest.raises(JobStopped, match=r"has not ended within 7 s.*--resume j .*--cancel j") as caught:
        follow(Scripted([RUNNING]), RUNNING, timeout_s=7, stop=clock, clock=clock)
    assert caught.value.job_id == "j"
    assert clock.now == pytest.approx(7.0)


def test_without_a_limit_it_goes_on_for_days() -> None:
    clock = Clock()
    assert follow(Scripted([*[RUNNING] * 50_000, DONE]), RUNNING, timeout_s=math.inf, stop=clock, clock=clock) is DONE
    assert clock.now > 200_000


def test_told_to_stop_it_names_the_job() -> None:
    clock = Clock(stops_at=3)
    with pytest.raises(JobStopped, match="stopped following") as caught:
        follow(Scripted([RUNNING, at(10)]), QUEUED, timeout_s=60, stop=clock, clock=clock)
    assert caught.value.job_id == "j"


def raising(error: ClientError) -> Callable[[], Answer]:
    def ask() -> Answer:
        raise error

    return ask


def test_a_network_that_is_gone_tells_how_to_get_back_to_the_job() -> None:
    clock = Clock()
    with pytest.raises(NetworkError, match=r"no route; the job may go on: --resume j") as caught:
        follow(Scripted([raising(NetworkError("no route"))]), RUNNING, timeout_s=60, stop=clock, clock=clock)
    assert caught.value.job_id == "j"


def test_a_key_that_is_refused_meanwhile_stays_an_auth_error() -> None:
    clock = Clock()
    with pytest.raises(AuthError, match="RUNPOD_API_KEY"):
        follow(Scripted([raising(AuthError("RUNPOD_API_KEY"))]), RUNNING, timeout_s=60, stop=clock, clock=clock)


@pytest.mark.parametrize("error", [JobStopped("gone"), Rejected("no")])
def test_other_errors_pass(error: ClientError) -> None:
    clock = Clock()
    with pytest.raises(type(error)) as caught:
        follow(Scripted([raising(error)]), RUNNING, timeout_s=60, stop=clock, clock=clock)
    assert caught.value is error


def test_told_to_stop_while_the_network_is_gone() -> None:
    clock = Clock()

    def ask() -> Answer:
        clock.set()
        raise NetworkError("no route")

    with pytest.raises(JobStopped, match="stopped following"):
        follow(Scripted([ask]), RUNNING, timeout_s=60, stop=clock, clock=clock)


def test_time_that_ran_out_while_the_network_was_gone() -> None:
    clock = Clock()

    def ask() -> Answer:
        clock.now += 100
        raise NetworkError("no route")

    with pytest.raises(JobStopped, match="within 60 s"):
        follow(Scripted([ask]), RUNNING, timeout_s=60, stop=clock, clock=clock)


# --- what the end is ----------------------------------------------------------------------------------------


def test_a_result_is_its_outputs_timings_and_warnings() -> None:
    output = {
        "images": [{"filename": "a.png", "type": "base64", "data": "AA==", "node_id": "9"}],
        "timings": {"total": 12, "odd": "x", "flag": True},
        "warnings": ["node 4 was not run"],
        "errors": ["node 4 was not run"],
    }
    answer = Answer("j", Status.COMPLETED, output=output, timings={"delayTime": 5.0})
    result = result_of(answer, seeds={"3.seed": 7}, workflow={"3": {}})
    assert [item.filename for item in result.outputs] == ["a.png"]
    assert result.timings == {"total": 12.0, "delayTime": 5.0}
    assert result.warnings == ("node 4 was not run",)
    assert (result.job_id, result.seeds, result.workflow) == ("j", {"3.seed": 7}, {"3": {}})


def test_warnings_of_the_official_worker() -> None:
    assert result_of(Answer("j", Status.COMPLETED, output={"images": [], "errors": ["w"]})).warnings == ("w",)


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (Answer("j", Status.FAILED, error="node 3", code="workflow_rejected"), Rejected, "node 3"),
        (Answer("j", Status.FAILED, error="node 3", code="execution_failed"), JobFailed, "node 3"),
        (Answer("j", Status.FAILED, error="over", code="timeout"), JobStopped, "over"),
        (Answer("j", Status.FAILED, error="over", code="canceled"), JobStopped, "over"),
        (Answer("j", Status.FAILED), JobFailed, "did not report why"),
        (Answer("j", Status.CANCELLED), JobStopped, "was canceled"),
        (Answer("j", Status.TIMED_OUT), JobStopped, "out of time"),
        (Answer("j", Status.COMPLETED), JobFailed, "without a result"),
        (Answer("j", Status.COMPLETED, output={"answer": 42}), JobFailed, "settee worker"),
    ],
)
def test_other_ends_are_errors(answer: Answer, kind: type[ClientError], words: str) -> None:
    with pytest.raises(kind, match=words) as caught:
        result_of(answer)
    assert type(caught.value) is kind
    assert caught.value.job_id == "j"


def test_what_the_worker_said_goes_along() -> None:
    error = failure_of(Answer("j", Status.FAILED, error="e", code="no_space", details={"size": 3}))
    assert error is not None
    assert (error.code, error.details) == ("no_space", {"size": 3})
