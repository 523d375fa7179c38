"""The worker under the SDK's local API and its --test_input. The engine is a stub."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from settee.backends.comfy.process import free_port
from tests.support.rig import empty
from tests.support.stub_rig import does
from tests.support.worker import WorkerProcess


class LocalApi:
    def __init__(self, port: int, worker: WorkerProcess) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self.worker = worker

    def post(self, path: str, body: Any = None, timeout_s: float = 20) -> dict[str, Any]:
        answer = requests.post(f"{self.url}{path}", json=body, timeout=timeout_s)
        answer.raise_for_status()
        return answer.json()

    def wait(self, timeout_s: float = 40) -> LocalApi:
        deadline = time.monotonic() + timeout_s
        while True:
            try:
                requests.get(f"{self.url}/openapi.json", timeout=5)
                return self
            except requests.ConnectionError:
                assert time.monotonic() < deadline, self.worker.log
                assert self.worker.process.poll() is None, self.worker.log
                time.sleep(0.05)


@contextlib.contextmanager
def serving(**env: str) -> Iterator[LocalApi]:
    port = free_port()
    with WorkerProcess("--rp_serve_api", "--rp_api_port", str(port), env=env) as worker:
        yield LocalApi(port, worker).wait()


@pytest.fixture(scope="module")
def api() -> Iterator[LocalApi]:
    with serving(RUN_RESULT_MB="0.001", PROGRESS_INTERVAL_S="0.05") as api:
        yield api


def test_runsync(api: LocalApi) -> None:
    answer = api.post("/runsync", {"input": does("Give", size=3000)})
    assert answer["status"] == "COMPLETED"
    assert answer["output"]["images"][0]["size"] == 3000, "the platform's caps do not apply here"


def test_run_and_status(api: LocalApi) -> None:
    job_id = api.post("/run", {"input": does("Give", size=3)})["id"]
    assert api.post(f"/status/{job_id}")["output"]["status"] == "success"


def test_a_failure_shows_its_line_and_code(api: LocalApi) -> None:
    answer = api.post("/runsync", {"input": does("Fail", error="WorkflowRejected", message="node 3 is wrong")})
    assert answer["status"] == "FAILED"
    assert answer["error"] == "node 3 is wrong [workflow_rejected]"


@pytest.mark.parametrize("job_input", [{}, {"workflow": 5}, {"encrypted_input": "x"}])
def test_a_malformed_job_fails_and_the_next_succeeds(api: LocalApi, job_input: Any) -> None:
    answer = api.post("/runsync", {"input": job_input})
    assert answer["status"] == "FAILED"
    assert "invalid_request" in answer["error"]
    assert api.post("/runsync", {"input": does("Give", size=3)})["status"] == "COMPLETED"


def test_progress_goes_nowhere_and_logs_nothing(api: LocalApi) -> None:
    before = len(api.worker.log)
    answer = api.post("/runsync", {"input": does("Steps", count=10, seconds=0.05)})
    assert answer["status"] == "COMPLETED"
    log = api.worker.log[before:]
    assert "rror" not in log
    assert "arning" not in log


def test_jobs_at_once_wait_for_one_another(api: LocalApi) -> None:
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: api.post("/runsync", {"input": does("Wait", seconds=0.1)}), range(4)))
    assert [answer["status"] for answer in answers] == ["COMPLETED"] * 4


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_cancels_the_job_answers_it_and_ends_the_worker(number: int) -> None:
    with serving(SHUTDOWN_GRACE_S="0.2") as api, concurrent.futures.ThreadPoolExecutor(1) as pool:
        answer = pool.submit(api.post, "/runsync", {"input": does("Wait", seconds=60)})
        api.worker.wait_log("the stub engine begins")
        api.worker.signal(number)
        assert answer.result(20)["error"] == "the job was canceled: the worker is shutting down [canceled]"
        assert api.worker.wait() == 0
        assert "Traceback" not in api.worker.log


def test_a_signal_ends_an_idle_worker() -> None:
    with serving() as api:
        api.worker.signal(signal.SIGTERM)
        assert api.worker.wait() == 0


def test_serve_api_locally_is_the_official_workers_switch() -> None:
    port = free_port()
    with WorkerProcess("--rp_api_port", str(port), env={"SERVE_API_LOCALLY": "true"}) as worker:
        api = LocalApi(port, worker).wait()
        assert api.post("/runsync", {"input": does("Give", size=3)})["status"] == "COMPLETED"
        worker.wait_log("0.0.0.0")


@pytest.mark.parametrize(
    ("job_input", "code", "words"),
    [
        (does("Give", size=3), 0, "completed successfully"),
        (does("Fail", error="ComfyError", message="it broke"), 1, "it broke [comfy_error]"),
        (does("Crash", message="a secret"), 1, "[internal_error]"),
        ({"worfklow": {}}, 1, "[invalid_request]"),
    ],
)
def test_test_input(job_input: Any, code: int, words: str) -> None:
    with WorkerProcess("--test_input", json.dumps({"input": job_input}), env={}) as worker:
        assert worker.wait() == code
        assert words in worker.log


def test_a_test_input_that_failed_shows_every_problem() -> None:
    job = {"input": {"workflow": {"1": {"class_type": "X", "inputs": 5}, "2": {}}, "imgaes": []}}
    with WorkerProcess("--test_input", json.dumps(job), env={}) as worker:
        assert worker.wait() == 1
        shown = worker.log
    details = json.loads(shown[shown.index("{\n") : shown.index("\n}\n") + 3])["details"]
    assert len(details["problems"]) >= 3
    assert {"imgaes"} < {problem["path"] for problem in details["problems"]}


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--test_input", '{"input'), "--test_input must be a JSON object"),
        (("--test_input", "[]"), "--test_input must be a JSON object"),
        ((), "outside RunPod no jobs come by themselves: --rp_serve_api"),
        (("--rp_serve_api", "--rp_prot", "1"), "unknown option '--rp_prot'"),
    ],
)
def test_arguments_that_the_sdk_takes_amiss_are_errors_that_say_what_to_do(
    arguments: tuple[str, ...], says: str
) -> None:
    with WorkerProcess(*arguments, env={}) as worker:
        assert worker.wait() == 1
        assert f"settee: {says}" in worker.log
        assert "Traceback" not in worker.log


def test_test_input_is_stopped_by_a_signal() -> None:
    job = json.dumps({"input": does("Wait", seconds=60)})
    with WorkerProcess("--test_input", job, env={"SHUTDOWN_GRACE_S": "0.1"}) as worker:
        worker.wait_log("the stub engine begins")
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 1, "the SDK's way to say that the job failed"
        assert "[canceled]" in worker.log


def test_demo_serves_the_local_api_with_an_embedded_comfyui_and_leaves_nothing(tmp_path: Path) -> None:
    port = free_port()
    arguments = ("--demo", "--rp_api_port", str(port))
    env = {"TMPDIR": str(tmp_path), "COMFY_URL": "http://127.0.0.1:9"}
    with WorkerProcess(*arguments, env=env, command=("-m", "settee", "worker")) as worker:
        api = LocalApi(port, worker).wait()
        worker.wait_log(f"example.png --url http://127.0.0.1:{port}\n")
        assert api.post("/runsync", {"input": {"workflow": empty()}})["output"]["status"] == "success"
        worker.signal(signal.SIGTERM)
        assert worker.wait() == 0
    assert list(tmp_path.iterdir()) == []
