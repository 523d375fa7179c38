"""The worker under the real SDK against a control plane: jobs, progress, stops, sizes. The engine is a stub."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.control_plane import ControlPlane
from tests.support.stub_rig import does, working
from tests.support.worker import WorkerProcess


@pytest.fixture(scope="module")
def worker() -> Iterator[tuple[ControlPlane, WorkerProcess]]:
    """One worker for the tests that leave it as it was."""
    with working(PROGRESS_INTERVAL_S="0.05", RUN_RESULT_MB="1", RUNSYNC_RESULT_MB="2") as pair:
        yield pair


def test_a_job_is_answered_as_its_callers_expect(worker: tuple[ControlPlane, WorkerProcess]) -> None:
    runpod, _ = worker
    result = runpod.wait_result(runpod.submit(does("Give", size=3)))
    assert result == {
        "output": {
            "status": "success",
            "images": [
                {
                    "filename": "out_00001_.png",
                    "type": "base64",
                    "data": "AAAA",
                    "node_id": "1",
                    "subfolder": "",
                    "media_type": "image/png",
                    "size": 3,
                    "sha256": "709e80c88487a2411e1ee4dfb9f22a861492d20c4765150c0c794abd70f8147c",
                    "width": 8,
                    "height": 8,
                }
            ],
            "videos": [],
            "audio": [],
            "models_3d": [],
            "texts": [],
            "files": [],
            "timings": {"total": 1.0},
            "warnings": [],
        }
    }


def test_the_result_travels_as_the_sdk_sends_it(worker: tuple[ControlPlane, WorkerProcess]) -> None:
    runpod, _ = worker
    job_id = runpod.submit(does("Give", size=3))
    event = runpod.wait_for("result", job_id)
    assert event.headers["X-Request-ID"] == job_id
    assert event.headers["Content-Type"] == "application/x-www-form-urlencoded"
    assert event.headers["charset"] == "utf-8"


def test_nothing_left_behind_is_the_official_status(worker: tuple[ControlPlane, WorkerProcess]) -> None:
    runpod, _ = worker
    output = runpod.wait_result(runpod.submit(does("Wait", seconds=0)))["output"]
    assert output["status"] == "success_no_images"
    assert output["images"] == []


def test_a_failure_carries_code_and_details(worker: tuple[ControlPlane, WorkerProcess]) -> None:
    runpod, _ = worker
    job_id = runpod.submit(
        does("Fail", error="WorkflowRejected", message="node 3\nis wrong", details={"node_id": "3", "big": 2**70})
    )
    assert runpod.wait_result(job_id) == {
        "error": "node 3 is wrong [workflow_rejected]",
        "output": {"code": "workflow_rejected", "details": {"node_id": "3", "big": 2**70}},
    }


def test_an_error_of_our_own_shows_nothing_of_the_host(worker: tuple[ControlPlane, WorkerProcess]) -> None:
    runpod, process = worker
    job_id = runpod.submit(does("Crash", message="secret of the host: /root/.ssh"))
    result = runpod.wait_result(job_id)
    assert result["output"] == {"code": "internal_error", "details": {}}
    assert "/root" not in str(result)
    assert "Traceback" not in str(result)
    log = process.log
    assert f"[{job_id}] internal error" in log
    assert "RuntimeError: secret of the host" in log


@pytest.mark.parametrize(
    ("job_input", "words"),
    [
        (None, "not nothing"),
        ("", "not JSON"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ("null", "not nothing"),
        ([], "not list"),
        (7, "not int"),
        ({}, "workflow"),
        ({"workflow": None}, "workflow"),
        ({"workflow": {"nodes": [], "links": []}}, "workflow"),
        ({"wrokflow": {}}, "did you mean 'workflow'"),
        ({**does("Give", size=1), "images": "x"}, "images"),
        ({"is_encrypted": True}, "ENCRYPTION_KEY"),
    ],
)
def test_malformed_input_is_refused_and_explained(
    worker: tuple[ControlPlane, WorkerProcess], job_input: Any, words: str
) -> None:
    runpod, _ = worker
    result = runpod.wait_result(runpod.submit(job_input))
    assert result["output"]["code"] == "invalid_request"
    assert words in str(result)
    assert "Traceback" not in str(result)


def test_input_as_json_text(worker: tuple[ControlPlane, WorkerProcess]) -> None:
    runpod, _ = worker
    text = '{"workflow": {"1": {"class_type": "Give", "inputs": {"size": 3}}}}'
    assert runpod.wait_result(runpod.submit(text))["output"]["status"] == "success"


def test_text_that_utf_8_cannot_carry_is_answered_all_the_same(worker: tuple[ControlPlane, WorkerProcess]) -> None:
    runpod, _ = worker
    result = runpod.wait_result(runpod.submit(does("Fail", error="ComfyError", message="name \ud800 of a file")))
    assert result["error"] == "name ? of a file [comfy_error]"


def test_envelopes_that_are_no_job_are_answered_or_skipped(worker: tuple[ControlPlane, WorkerProcess]) -> None:
    runpod, _ = worker
    runpod.submit_raw({"id": "no-input"}, {"input": does("Give", size=3)}, {"id": 41, "input": does("Give", size=3)})
    good = runpod.submit(does("Give", size=3), webhook="http://127.0.0.1:9/", policy={"ttl": 1}, batchId="b")
    assert runpod.wait_result(good)["output"]["status"] == "success"
    assert runpod.results["no-input"]["output"]["code"] == "invalid_request"
    assert runpod.results["41"]["output"]["status"] == "success"


def test_a_job_that_cannot_be_read_does_not_end_the_worker(worker: tuple[ControlPlane, WorkerProcess]) -> None:
    runpod, _ = worker
    deep: list[Any] = []
    for _ in range(400):
        deep = [deep]
    runpod.submit_raw({"id": "deep", "input": {"workflow": {"1": {"class_type": "Give", "inputs": {"size": deep}}}}})
    assert runpod.wait_result("deep")["error"]
    runpod.submit_text("[" * 200_000 + "]" * 200_000)
    runpod.submit_text('"a word"')
    runpod.submit_text("{")
    assert runpod.wait_result(runpod.submit(does("Give", size=3)))["output"]["status"] == "success"


def test_progress_is_throttled_and_ends_before_the_result(worker: tuple[ControlPlane, WorkerProcess]) -> None:
    runpod, _ = worker
    job_id = runpod.submit(does("Steps", count=40, seconds=0.02))
    runpod.wait_result(job_id)
    kinds = [event.kind for event in runpod.events if event.job_id == job_id]
    assert kinds[0] == "take"
    assert kinds[-1] == "result"
    assert set(kinds[1:-1]) == {"progress"}
    updates = runpod.progress_of(job_id)
    assert 3 <= len(updates) <= 18, "about one in 50 ms over 0.8 s, the first 50 ms silent"
    steps = [update["step"] for update in updates]
    assert steps == sorted(steps)
    assert updates[-1]["max"] == 40
    assert updates[-1]["node"] == "1"
    assert updates[-1]["node_type"] == "Steps"
    assert updates[-1]["phase"] == "running"
    assert updates[-1]["percent"] == steps[-1] * 2.5


def test_a_short_job_sends_no_progress(worker: tuple[ControlPlane, WorkerProcess]) -> None:
    runpod, _ = worker
    job_id = runpod.submit(does("Give", size=3))
    runpod.wait_result(job_id)
    assert runpod.progress_of(job_id) == []


def test_a_slow_control_plane_does_not_hold_the_result_up_for_long() -> None:
    with working(PROGRESS_INTERVAL_S="0.05") as (runpod, _):
        runpod.progress_delay_s = 30
        job_id = runpod.submit(does("Steps", count=5, seconds=0.05))
        runpod.wait_result(job_id, timeout_s=10)
        assert len(runpod.progress_of(job_id)) == 1
        runpod.progress_delay_s = 0
        runpod.wait_result(runpod.submit(does("Give", size=3)))
        assert [event.kind for event in runpod.events if event.job_id == job_id][-1] == "result"


def test_one_job_at_a_time_and_the_next_at_once(worker: tuple[ControlPlane, WorkerProcess]) -> None:
    runpod, _ = worker
    before = len(runpod.events)
    ids = [f"queue-{number}" for number in range(20)]
    runpod.submit_raw(*({"id": job_id, "input": does("Give", size=9)} for job_id in ids))
    runpod.wait_result(ids[-1], timeout_s=15)  # the stock loop takes 0.96 s for each
    told = [(event.kind, event.job_id) for event in runpod.events[before:] if event.job_id is not None]
    assert told == [(kind, job_id) for job_id in ids for kind in ("take", "result")]


def test_the_stop_channel_stops_the_job_and_frees_the_slot(worker: tuple[ControlPlane, WorkerProcess]) -> None:
    runpod, process = worker
    job_id = runpod.submit(does("Wait", seconds=60))
    runpod.wait_for("progress", job_id)
    other = runpod.submit(does("Give", size=3))
    runpod.cancel("no-such-job")
    runpod.cancel(job_id)
    assert runpod.wait_result(other)["output"]["status"] == "success"
    assert job_id not in runpod.results, "RunPod has ended that job itself"
    assert f"[{job_id}] failed: canceled" in process.log


def test_a_stop_that_overtakes_its_job_is_not_forgotten(worker: tuple[ControlPlane, WorkerProcess]) -> None:
    runpod, _ = worker
    runpod.cancel("early")
    runpod.submit(does("Wait", seconds=60), "early")
    other = runpod.submit(does("Give", size=3))
    assert runpod.wait_result(other)["output"]["status"] == "success"
    assert "early" not in runpod.results


def test_a_stopped_job_keeps_the_slot_until_the_engine_is_done_with_it() -> None:
    with working() as (runpod, _):
        job_id = runpod.submit(does("Deaf", seconds=1.5))
        taken = runpod.wait_for("take", job_id)
        runpod.wait_for("progress", job_id)
        other = runpod.submit(does("Give", size=3))
        for _ in range(3):
            runpod.cancel(job_id)
            time.sleep(0.2)
        runpod.wait_result(other)
        assert runpod.wait_for("take", other).at - taken.at > 1.4, "the thread sleeps for 1.5 s whatever is said"
        assert job_id not in runpod.results


def test_a_result_over_the_cap_fails_with_its_size(worker: tuple[ControlPlane, WorkerProcess]) -> None:
    runpod, _ = worker
    run = runpod.submit(does("Give", size=1_000_000))
    sync = runpod.submit(does("Give", size=1_000_000), "sync-1")
    result = runpod.wait_result(run)
    assert result["output"]["code"] == "output_too_large"
    assert "BUCKET_ENDPOINT_URL" in result["error"]
    assert result["output"]["details"]["size"] > 1_333_332
    assert runpod.wait_result(sync)["output"]["status"] == "success"


def test_a_result_that_runpod_refuses_is_reported_instead_of_lost() -> None:
    with working(ControlPlane(result_cap=100_000)) as (runpod, _):
        result = runpod.wait_result(runpod.submit(does("Give", size=100_000)))
        assert result["output"]["code"] == "output_too_large"
        assert len(runpod.of("refused")) == 1, "sent again it would be refused again"


def test_a_result_survives_a_control_plane_that_stumbles() -> None:
    with working() as (runpod, _):
        runpod.result_statuses.extend([500, 503])
        job_id = runpod.submit(does("Give", size=3))
        assert runpod.wait_result(job_id)["output"]["status"] == "success"
        assert len(runpod.of("refused", job_id)) == 2


def test_an_empty_queue_and_its_refusals_do_not_make_the_worker_spin() -> None:
    with working(ControlPlane(hold_s=0)) as (runpod, _):
        runpod.take_statuses.extend([400] * 4 + [500])
        runpod.wait_for("empty")
        time.sleep(2.0)
        assert len(runpod.of("empty")) <= 8
        runpod.submit(does("Give", size=3), "after")
        runpod.wait_result("after", timeout_s=5)


def test_429_gives_runpod_a_rest() -> None:
    with working() as (runpod, _):
        runpod.take_statuses.append(429)
        job_id = runpod.submit(does("Give", size=3))
        runpod.wait_result(job_id)
        refused = runpod.of("empty")[0]
        assert refused.body == 429
        assert runpod.wait_for("take", job_id).at - refused.at > 4.5


def test_pings_name_the_running_job(worker: tuple[ControlPlane, WorkerProcess]) -> None:
    runpod, _ = worker
    job_id = runpod.submit(does("Wait", seconds=2.5))
    runpod.wait_result(job_id)
    assert job_id in runpod.pings


def test_a_result_that_nobody_wants_does_not_end_the_worker() -> None:
    with working() as (runpod, worker):
        runpod.result_statuses.extend([404, 400])
        gone, odd = (runpod.submit(does("Give", size=3)) for _ in range(2))
        good = runpod.submit(does("Give", size=3))
        assert runpod.wait_result(good)["output"]["status"] == "success"
        assert [event.job_id for event in runpod.of("refused")] == [gone, odd], "neither asks for another attempt"
        assert worker.log.count("Failed to return job results.") == 2
