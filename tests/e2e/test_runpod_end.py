"""How a worker ends, how it begins, and the SDK's own loop. Under the real SDK; the engine is a stub."""

from __future__ import annotations

import signal
import subprocess
import sys
import time

import pytest

from tests.support.control_plane import ControlPlane
from tests.support.stub_rig import does, working


def test_refresh_worker_asks_for_a_new_pod_and_takes_no_more_jobs() -> None:
    with working(REFRESH_WORKER="true") as (runpod, worker):
        bad = runpod.submit({})
        assert "stopPod" not in runpod.wait_result(bad), "a job that never reached ComfyUI left nothing behind"
        first, second = runpod.submit(does("Give", size=3)), runpod.submit(does("Give", size=3))
        assert runpod.wait_result(first)["stopPod"] is True
        assert worker.wait() == 0
        assert runpod.of("take", second) == []


def test_a_comfyui_that_is_gone_for_good_replaces_the_worker() -> None:
    with working() as (runpod, worker):
        result = runpod.wait_result(runpod.submit(does("Die")))
        assert result["stopPod"] is True
        assert result["output"]["code"] == "comfy_unavailable"
        assert worker.wait() == 1


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_an_idle_worker_at_once(number: int) -> None:
    with working() as (runpod, worker):
        runpod.wait_result(runpod.submit(does("Give", size=3)))
        begun = time.monotonic()
        worker.signal(number)
        assert worker.wait() == 0
        assert time.monotonic() - begun < 15, "not after the 20 s for which the take is held"
        assert "Traceback" not in worker.log


def test_a_signal_that_meets_a_callback_of_c_code_ends_the_worker_all_the_same() -> None:
    """An exception that is raised in one is printed and lost: in an import, say."""
    code = """
import os, signal, time
from settee.doors.runpod import worker

class Freed:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)

worker.AGAIN_S = 0.2
signals = worker.Signals(lambda: False)
signals.wrap(alone=True)
try:
    Freed()
    time.sleep(30)
finally:
    signals.end()
    time.sleep(0.5)
    print("tidied up")
"""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=20)
    assert "Exception ignored" in ended.stderr
    assert (ended.returncode, ended.stdout) == (0, "tidied up\n")


def test_sigterm_lets_a_job_finish_that_can() -> None:
    with working(SHUTDOWN_GRACE_S="20") as (runpod, worker):
        job_id = runpod.submit(does("Wait", seconds=1))
        runpod.wait_for("take", job_id)
        worker.signal(signal.SIGTERM)
        assert runpod.wait_result(job_id)["output"]["status"] == "success_no_images"
        assert worker.wait() == 0


def test_sigterm_cancels_and_reports_a_job_that_cannot_finish() -> None:
    with working(SHUTDOWN_GRACE_S="0.2") as (runpod, worker):
        job_id = runpod.submit(does("Wait", seconds=60))
        runpod.wait_for("take", job_id)
        worker.signal(signal.SIGTERM)
        result = runpod.wait_result(job_id)
        assert result["output"] == {"code": "canceled", "details": {"reason": "shutdown", "retryable": True}}
        assert worker.wait() == 0


def test_a_job_handed_out_while_the_worker_is_told_to_stop_is_not_lost() -> None:
    with working() as (runpod, worker):
        runpod.wait_result(runpod.submit(does("Give", size=3)))
        runpod.take_delay_s = 0.3
        job_id = runpod.submit(does("Give", size=3))
        runpod.wait_for("take", job_id)
        worker.signal(signal.SIGTERM)
        assert runpod.wait_result(job_id)["output"]["status"] == "success"
        assert worker.wait() == 0


def test_a_second_sigterm_cancels_the_job_now() -> None:
    with working(SHUTDOWN_GRACE_S="60") as (runpod, worker):
        job_id = runpod.submit(does("Wait", seconds=60))
        runpod.wait_for("take", job_id)
        worker.signal(signal.SIGTERM)
        worker.wait_log("Shutting down")
        worker.signal(signal.SIGTERM)
        assert runpod.wait_result(job_id)["output"]["code"] == "canceled"
        assert worker.wait() == 0


@pytest.mark.parametrize("arguments", [(), ("--rp_debugger",)])
def test_the_stock_loop_serves_too(arguments: tuple[str, ...]) -> None:
    plane = ControlPlane(hold_s=1)  # it ends with its long polls
    with working(plane, *arguments, FAST_LOOP="false", PROGRESS_INTERVAL_S="0.05") as (runpod, worker):
        job_id = runpod.submit(does("Steps", count=20, seconds=0.03))
        result = runpod.wait_result(job_id)
        assert result["output"]["status"] == "success_no_images"
        assert ("rp_debugger" in result["output"]) == bool(arguments)
        assert [event.kind for event in runpod.events if event.job_id == job_id][-1] == "result"
        assert runpod.progress_of(job_id)
        assert runpod.wait_result(runpod.submit({}))["output"]["code"] == "invalid_request"
        last = runpod.submit(does("Wait", seconds=60))
        # Not on its take: the SDK loses a job that it is handed while it is being told to stop.
        runpod.wait_for("progress", last)
        worker.signal(signal.SIGTERM)
        assert runpod.wait_result(last)["output"]["code"] == "canceled"
        assert worker.wait(30) == 0


def test_settings_that_are_wrong_are_named_and_nothing_is_taken() -> None:
    with working(PROGRESS_INTERVAL_S="soon", ENCRYPTION_KEY="x") as (runpod, worker):
        assert worker.wait() == 1
        assert "settee: PROGRESS_INTERVAL_S" in worker.log
        assert runpod.takes == []


def test_a_bad_encryption_key_ends_the_worker_before_it_takes_jobs() -> None:
    with working(ENCRYPTION_KEY="x") as (runpod, worker):
        assert worker.wait() == 1
        assert "ENCRYPTION_KEY is not a Fernet key" in worker.log
        assert "Traceback" not in worker.log
        assert runpod.takes == []
