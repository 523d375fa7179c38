"""The client's RunPod target against the SDK's local API. The engine is a stub."""

from __future__ import annotations

import concurrent.futures
import json
import math
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from settee.client.client_errors import JobStopped, NetworkError, Rejected, UsageError
from settee.client.follow import follow
from settee.client.targets import Answer, Status
from settee.client.targets.runpod import RunPod
from tests.e2e.test_runpod_local import serving
from tests.support.client_command import Command
from tests.support.client_jobs import run, sent
from tests.support.stub_rig import does


@pytest.fixture(scope="module")
def local_url() -> Iterator[str]:
    with serving() as api:
        yield api.url


@pytest.fixture(params=[False, True], ids=["run", "sync"])
def local(local_url: str, request: pytest.FixtureRequest) -> Iterator[RunPod]:
    with closing(RunPod(local_url, sync=request.param)) as target:
        yield target


def test_local_jobs(local: RunPod) -> None:
    assert run(local, does("Give", size=3000)).outputs[0].size == 3000
    with pytest.raises(Rejected, match=r"^node 3 is wrong$") as caught:
        run(local, does("Fail", error="WorkflowRejected", message="node 3 is wrong"))
    assert caught.value.code == "workflow_rejected"


def test_a_local_job_is_run_once_however_often_it_is_asked_for(local: RunPod) -> None:
    answer = local.submit(sent(does("Wait", seconds=1.5)))
    begun = time.monotonic()
    seen: list[Answer] = []
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        others = pool.submit(lambda: [local.status(answer.job_id).status for _ in range(2)])
        follow(local, answer, timeout_s=60, on_update=seen.append)
        assert others.result() == [Status.IN_PROGRESS] * 2
    assert 1.3 < time.monotonic() - begun < 10
    assert len(seen) > 2


def test_local_time_runs_out_and_stopping_is_at_once(local: RunPod) -> None:
    answer = local.submit(sent(does("Wait", seconds=3)))
    begun = time.monotonic()
    assert local.keeps(answer.job_id), "it has not begun"
    with pytest.raises(JobStopped, match=r"has not ended within 0\.5 s .* to no other command") as late:
        follow(local, answer, timeout_s=0.5)
    assert "--" not in late.value.message, "there is no way back to it"
    assert not local.keeps(answer.job_id)
    stop = threading.Event()
    threading.Timer(0.2, stop.set).start()
    with pytest.raises(JobStopped, match="stopped following"):
        follow(local, answer, timeout_s=60, stop=stop)
    assert time.monotonic() - begun < 3
    assert follow(local, answer, timeout_s=math.inf).status is Status.COMPLETED


def test_what_the_local_api_lacks(local: RunPod) -> None:
    for ask, words in (
        (lambda: local.cancel("test-1"), "cannot cancel a job"),
        (local.health, "cannot report its health"),
    ):
        with pytest.raises(UsageError, match=words):
            ask()
    with pytest.raises(JobStopped, match="does not know job test-1"):
        follow(local, local.status("test-1"), timeout_s=60)


def test_a_local_worker_that_ends_meanwhile() -> None:
    with serving(SHUTDOWN_GRACE_S="0.1") as api, closing(RunPod(api.url)) as target:
        answer = target.submit(sent(does("Wait", seconds=60)))
        target.status(answer.job_id)
        api.worker.wait_log("the stub engine begins")
        api.worker.process.kill()
        with pytest.raises(NetworkError, match=r"the connection broke off"):
            follow(target, answer, timeout_s=60)


def test_an_interrupt_promises_no_way_back_to_a_local_job(tmp_path: Path) -> None:
    client = Command(tmp_path)
    (client.folder / "waits.json").write_text(json.dumps(does("Wait", seconds=60)["workflow"]))
    with serving(SHUTDOWN_GRACE_S="0.1") as api, client.terminal("waits.json", "--url", api.url) as terminal:
        api.worker.wait_log("the stub engine begins")
        terminal.interrupt()
        terminal.read_until("returns its result to no other command")
        assert terminal.process.wait(10) == 5
    assert not any(words in terminal.written for words in ("Cancel it", "--resume", "--cancel")), terminal.written
