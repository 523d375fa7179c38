"""The client's RunPod target against RunPod's public API, with a worker behind it whose engine is a stub."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from typing import Any

import pytest

from settee.client.client_errors import (
    AuthError,
    ClientError,
    JobFailed,
    JobStopped,
    NetworkError,
    Rejected,
    UsageError,
)
from settee.client.follow import follow, result_of
from settee.client.targets import Answer, Status, Target, runpod
from settee.client.targets.runpod import RunPod
from tests.support.client_jobs import run, sent, target_of
from tests.support.public_api import PublicApi
from tests.support.stub_rig import does
from tests.support.waiting import eventually
from tests.support.worker import WorkerProcess


@pytest.fixture(scope="module")
def shared() -> Iterator[PublicApi]:
    """A stub worker's."""
    settings = {"PROGRESS_INTERVAL_S": "0.05", "RUN_RESULT_MB": "0.2"}
    with PublicApi() as api, WorkerProcess(env={**api.worker_env(), **settings}):
        yield api


@pytest.fixture
def target(api: PublicApi) -> Iterator[RunPod]:
    with target_of(api) as target:
        yield target


def until(target: Target, job_id: str, status: Status) -> Answer:
    def there() -> Answer | None:
        answer = target.status(job_id)
        return answer if answer.status is status else None

    return eventually(there, what=status.value)  # type: ignore[no-any-return]


# --- jobs ---------------------------------------------------------------------------------------------------


def test_a_job_and_its_result(target: RunPod) -> None:
    result = run(target, does("Give", size=3000))
    assert [(output.filename, output.size) for output in result.outputs] == [("out_00001_.png", 3000)]
    assert {"total", "delayTime", "executionTime"} <= result.timings.keys()


def test_progress_is_seen_on_the_way(target: RunPod) -> None:
    seen: list[Answer] = []
    answer = target.submit(sent(does("Steps", count=40, seconds=0.05)))
    assert answer.status is Status.IN_QUEUE
    follow(target, answer, timeout_s=40, on_update=seen.append)
    steps = [answer.progress["step"] for answer in seen if "step" in answer.progress]
    assert len(steps) >= 2
    assert steps == sorted(steps)
    assert seen[-2].progress["node_type"] == "Steps"
    assert [seen[0].status, seen[-1].status] == [Status.IN_QUEUE, Status.COMPLETED]


@pytest.mark.parametrize(
    ("error", "kind", "code"),
    [
        ("WorkflowRejected", Rejected, "workflow_rejected"),
        ("PayloadTooLarge", Rejected, "payload_too_large"),
        ("ExecutionFailed", JobFailed, "execution_failed"),
        ("Busy", JobFailed, "busy"),
        ("JobTimeout", JobStopped, "timeout"),
        ("JobCanceled", JobStopped, "canceled"),
    ],
)
def test_failures_are_of_their_kind(target: RunPod, error: str, kind: type[ClientError], code: str) -> None:
    with pytest.raises(kind) as caught:
        run(target, does("Fail", error=error, message="node 3 is wrong", details={"node_id": "3"}))
    assert (caught.value.message, caught.value.code) == ("node 3 is wrong", code)
    assert caught.value.details["node_id"] == "3"
    assert type(caught.value) is kind


def test_a_crash_tells_nothing_of_its_inside(target: RunPod) -> None:
    with pytest.raises(JobFailed) as caught:
        run(target, does("Crash", message="in /secret/place"))
    assert "/secret/place" not in str(vars(caught.value))
    assert caught.value.code == "internal_error"


def test_a_malformed_job_is_refused_by_the_worker(target: RunPod) -> None:
    with pytest.raises(Rejected) as caught:
        run(target, {"workflow": 5})
    assert caught.value.code == "invalid_request"
    assert caught.value.details["problems"]


@pytest.mark.parametrize("envelope", [{}, {"inputs": 1}])
def test_what_is_no_job_is_refused_at_once(target: RunPod, envelope: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match=r"refuses the request \(HTTP 400\): input is required"):
        target.submit(envelope)


def test_a_request_over_the_cap_is_refused(target: RunPod) -> None:
    with pytest.raises(Rejected, match="too large") as caught:
        target.submit(sent({"x": "x" * 10_000_001}))
    assert caught.value.code == "payload_too_large"


# --- ends that are RunPod's ---------------------------------------------------------------------------------


def test_cancel_while_it_runs(target: RunPod) -> None:
    answer = target.submit(sent(does("Wait", seconds=60)))
    until(target, answer.job_id, Status.IN_PROGRESS)
    target.cancel(answer.job_id)
    with pytest.raises(JobStopped, match="the job was canceled"):
        result_of(follow(target, answer, timeout_s=60))
    assert run(target, does("Give", size=3)).outputs, "the worker is free again"


def test_cancel_while_it_waits_and_once_it_is_over(api: PublicApi, target: RunPod) -> None:
    first = target.submit(sent(does("Wait", seconds=1)))
    second = target.submit(sent(does("Give", size=3)))
    target.cancel(second.job_id)
    assert follow(target, second, timeout_s=60).status is Status.CANCELLED
    assert follow(target, first, timeout_s=60).status is Status.COMPLETED
    assert api.plane.of("take", second.job_id) == []
    target.cancel(first.job_id)
    assert target.status(first.job_id).status is Status.COMPLETED


def test_over_the_execution_timeout(target: RunPod) -> None:
    answer = target.submit({**sent(does("Wait", seconds=60)), "policy": {"executionTimeout": 300}})
    with pytest.raises(JobStopped, match="execution timeout"):
        result_of(follow(target, answer, timeout_s=60))


def test_a_result_that_has_expired(api: PublicApi, target: RunPod, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = follow(target, target.submit(sent(does("Give", size=3))), timeout_s=60)
    monkeypatch.setattr(api, "run_kept_s", -1.0)
    with pytest.raises(JobStopped, match=r"does not know job .* \(any more\): RunPod keeps results") as caught:
        target.status(answer.job_id)
    assert caught.value.job_id == answer.job_id


@pytest.mark.parametrize("ask", ["status", "cancel"])
def test_a_job_that_nobody_knows(target: RunPod, ask: str) -> None:
    with pytest.raises(JobStopped, match="does not know job nobody-u1"):
        getattr(target, ask)("nobody-u1")


@pytest.mark.parametrize("job_id", ["", "..", "a/b", "a?b", "a b", "x" * 300, "a\n"])
@pytest.mark.parametrize("ask", ["status", "cancel"])
def test_what_is_no_job_id_is_not_asked_for(api: PublicApi, target: RunPod, ask: str, job_id: str) -> None:
    with pytest.raises(UsageError, match="is not a job id"):
        getattr(target, ask)(job_id)
    assert api.asked == []


def test_a_result_that_runpod_lost(api: PublicApi, target: RunPod) -> None:
    answer = target.submit(sent(does("Give", size=3)))
    follow(target, answer, timeout_s=60)
    api.fault("status", body=b'{"id": "%s", "status": "COMPLETED"}' % answer.job_id.encode())
    with pytest.raises(JobFailed, match="over RunPod's limit"):
        result_of(target.status(answer.job_id))


# --- /runsync -----------------------------------------------------------------------------------------------


def test_runsync_answers_with_the_result(api: PublicApi) -> None:
    with target_of(api, sync=True) as target:
        answer = target.submit(sent(does("Give", size=3)))
        assert answer.status is Status.COMPLETED
        assert answer.job_id.startswith("sync-")
        assert len(result_of(answer).outputs) == 1
        assert (api.count("runsync"), api.count("run")) == (1, 0)


def test_runsync_that_takes_longer_is_followed(api: PublicApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runpod, "WAIT_S", 1.0)
    with target_of(api, sync=True) as target:
        answer = target.submit(sent(does("Wait", seconds=2)))
        # The first job of a worker waits in the queue while that starts.
        assert not answer.status.is_terminal
        assert follow(target, answer, timeout_s=60).status is Status.COMPLETED


def test_half_an_answer_to_runsync_still_leads_to_the_job(api: PublicApi) -> None:
    with target_of(api, sync=True) as target:
        api.fault("runsync", cut_after=120)
        answer = target.submit(sent(does("Give", size=3000)))
        assert answer.job_id.startswith("sync-")
        assert result_of(follow(target, answer, timeout_s=60)).outputs[0].size == 3000
        assert api.count("runsync") == 1


# --- a bad connection ---------------------------------------------------------------------------------------


def test_a_job_survives_everything_that_goes_wrong_on_the_way(api: PublicApi, target: RunPod) -> None:
    api.fault("run", status=429)
    api.fault("run", truncate=60)
    api.fault("status", status=500)
    api.fault("status", cut_after=5)
    api.fault("status", delay_s=0.5)
    before = len(api.inputs())
    result = run(target, does("Give", size=3))
    assert len(result.outputs) == 1
    assert len(api.inputs()) == before + 1, "sent once, though its answer broke off"


def test_a_lost_answer_to_a_submission_is_not_guessed_at(api: PublicApi, target: RunPod) -> None:
    api.fault("run", cut_after=0)
    with pytest.raises(NetworkError, match="it may have been accepted") as caught:
        target.submit(sent(does("Give", size=3)))
    assert caught.value.exit_code == 6
    assert api.count("run") == 1


def test_cancel_gets_through_a_bad_connection(api: PublicApi, target: RunPod) -> None:
    answer = target.submit(sent(does("Wait", seconds=60)))
    api.fault("cancel", status=502)
    api.fault("cancel", cut_after=0)
    target.cancel(answer.job_id)
    assert follow(target, answer, timeout_s=60).status is Status.CANCELLED


def test_following_stops_at_once_while_runpod_is_away(api: PublicApi, target: RunPod) -> None:
    answer = target.submit(sent(does("Give", size=3)))
    api.fault("status", status=429, headers={"Retry-After": "30"}, times=99)
    stop = threading.Event()
    threading.Timer(0.5, stop.set).start()
    begun = time.monotonic()
    with pytest.raises(JobStopped, match="stopped following"):
        follow(target, answer, timeout_s=600, stop=stop)
    assert time.monotonic() - begun < 10
    api.clear()
    assert follow(target, answer, timeout_s=60).status is Status.COMPLETED, "picked up again"


def test_time_runs_out_while_runpod_is_slow(api: PublicApi, target: RunPod) -> None:
    answer = target.submit(sent(does("Give", size=3)))
    api.fault("status", delay_s=20, times=99)
    begun = time.monotonic()
    with pytest.raises(JobStopped, match=rf"job\('{answer.job_id}'\)"):
        follow(target, answer, timeout_s=1)
    assert time.monotonic() - begun < 8


def test_a_wrong_key_and_a_missing_one(api: PublicApi) -> None:
    with target_of(api, api_key="wrong") as target, pytest.raises(AuthError, match="RUNPOD_API_KEY"):
        target.submit(sent({}))
    with target_of(api, api_key=None) as target, pytest.raises(AuthError, match="set RUNPOD_API_KEY"):
        target.health()


def test_an_endpoint_that_is_not_there(api: PublicApi) -> None:
    with closing(RunPod(f"{api.url}x", api_key=api.key)) as target:
        for ask in (lambda: target.submit(sent({})), target.health):
            with pytest.raises(NetworkError, match="not a RunPod API"):
                ask()


def test_health(target: RunPod) -> None:
    health = target.health()
    assert health["workers"]["ready"] == 1
    assert health["jobs"].keys() >= {"inQueue", "inProgress", "completed", "failed"}
    assert target.node_registry() is None


def test_fifty_jobs_at_once_some_of_which_fail(api: PublicApi, target: RunPod) -> None:
    api.fault(None, status=429, times=30)
    jobs = [does("Fail", error="OutOfMemory") if n % 10 == 3 else does("Give", size=n + 1) for n in range(50)]

    def end_of(job: dict[str, Any]) -> int | str | None:
        try:
            return run(target, job, timeout_s=100).outputs[0].size
        except JobFailed as error:
            return error.code

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        ends = list(pool.map(end_of, jobs))
    assert ends == ["out_of_memory" if n % 10 == 3 else n + 1 for n in range(50)]


# --- RunPod's own address -----------------------------------------------------------------------------------


@pytest.mark.parametrize(("sync", "cap"), [(False, 10_000_000), (True, 20_000_000)])
def test_an_endpoint_by_its_id(sync: bool, cap: int) -> None:
    target = runpod.endpoint("abc-123", "rpa_x", sync)
    assert (target.name, target.request_cap) == ("endpoint abc-123", cap)
    assert RunPod("https://api.runpod.ai/v2/abc", sync=sync).request_cap == cap
    assert RunPod("http://127.0.0.1:8000", sync=sync).request_cap is None


@pytest.mark.parametrize(
    ("endpoint_id", "key", "words"),
    [
        ("https://api.runpod.ai/v2/abc/run", "k", "is not an endpoint id"),
        ("", "k", "is not an endpoint id"),
        ("a/../b", "k", "is not an endpoint id"),
        ("abc", None, "set RUNPOD_API_KEY"),
        ("abc", "", "set RUNPOD_API_KEY"),
        ("abc", "two\nlines", "RUNPOD_API_KEY holds"),
    ],
)
def test_an_endpoint_that_cannot_be(endpoint_id: str, key: str | None, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        runpod.endpoint(endpoint_id, key)
