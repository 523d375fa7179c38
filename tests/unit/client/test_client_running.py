"""Ctrl-C at moments that no signal can be timed to."""

from __future__ import annotations

import io
from types import SimpleNamespace
from typing import Any

import pytest

from settee.base.threads import Call
from settee.client.arguments import Environment
from settee.client.client_errors import JobStopped, Unsure, command_line
from settee.client.display import Display
from settee.client.endpoint import Job
from settee.client.targets import Answer, Status
from settee.client.under_way import UnderWay


@pytest.mark.parametrize(
    ("status", "words", "asked"),
    [
        (Status.IN_PROGRESS, "job j1 asked to end", ["j1"]),
        (Status.COMPLETED, "job j1 left as it is: --resume j1", []),
        (Status.FAILED, "no job is left running there", []),
    ],
)
def test_ctrl_c_between_sending_a_job_and_waiting_for_it(
    monkeypatch: pytest.MonkeyPatch, status: Status, words: str, asked: list[str]
) -> None:
    canceled: list[str] = []
    target = SimpleNamespace(cancel=canceled.append, keeps=lambda job_id: True)
    endpoint: Any = SimpleNamespace(target=target, environment=Environment())

    def interrupted(call: Call[Job]) -> Job:
        call.ended.wait(10)
        raise KeyboardInterrupt

    monkeypatch.setattr(Call, "result", interrupted)
    jobs = UnderWay(Display(io.StringIO()))
    with command_line(), pytest.raises(JobStopped, match=words):
        jobs.run(lambda: jobs.begun(lambda: Job(endpoint, Answer("j1", status))))
    assert canceled == asked


@pytest.mark.parametrize("is_late", [False, True])
def test_a_lost_answer_does_not_keep_the_other_jobs_of_a_batch_running(
    monkeypatch: pytest.MonkeyPatch, is_late: bool
) -> None:
    canceled: list[str] = []
    target = SimpleNamespace(cancel=canceled.append, keeps=lambda job_id: True)
    endpoint: Any = SimpleNamespace(target=target, environment=Environment())
    jobs = UnderWay(Display(io.StringIO()))

    def lost() -> Job:
        assert jobs.stop.wait(10 if is_late else 0) == is_late
        raise Unsure("the answer did not come", b"")

    def work() -> None:
        jobs.begun(lambda: Job(endpoint, Answer("j1", Status.IN_PROGRESS)))
        with pytest.raises(Unsure):
            jobs.begun(lost)

    def interrupted(call: Call[Job]) -> Job:
        call.ended.wait(0.5 if is_late else 10)
        raise KeyboardInterrupt

    monkeypatch.setattr(Call, "result", interrupted)
    with command_line(), pytest.raises(JobStopped, match="job j1 asked to end") as error:
        jobs.run(work)
    assert canceled == ["j1"]
    assert ("the answer did not come" in error.value.message) == is_late
