"""Attacks on the RunPod door: jobs made to be lost, to be held for long, or to leave private words behind."""

from __future__ import annotations

import io
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from settee.backends.comfy.process import free_port
from settee.base.sealing import Sealer, generate_key
from tests.support.control_plane import ControlPlane
from tests.support.embedded import COMFY_COMMAND
from tests.support.rig import b64, empty, files_below
from tests.support.stub_rig import does, working
from tests.support.worker import REAL, WorkerProcess

KEY = generate_key()


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[ControlPlane, WorkerProcess, Path]]:
    folder = tmp_path_factory.mktemp("attack")
    env = {
        "COMFY_COMMAND": COMFY_COMMAND,
        "COMFY_PORT": str(free_port()),
        "WORKSPACE_DIR": str(folder / "workspace"),
        "ENCRYPTION_KEY": KEY,
    }
    with ControlPlane() as runpod, WorkerProcess(env={**runpod.env(), **env}, command=REAL) as worker:
        yield runpod, worker, folder / "workspace"


@pytest.mark.parametrize("size", ["[" * 100_000 + "]" * 100_000, "9" * 5000], ids=["deep", "digits"])
@pytest.mark.parametrize("fast", ["true", "false"])
def test_a_job_that_pythons_json_does_not_read_is_answered(size: str, fast: str) -> None:
    """Unanswered, RunPod would keep it in progress until it times out."""
    with working(FAST_LOOP=fast) as (runpod, _):
        workflow = f'{{"1": {{"class_type": "Give", "inputs": {{"size": {size}}}}}}}'
        runpod.submit_text(f'{{"id": "odd", "input": {{"workflow": {workflow}}}}}')
        result = runpod.wait_result("odd", timeout_s=8)
        assert "cannot be read" in result["error"]
        assert result["output"]["code"] == "invalid_request"


def test_an_error_over_the_cap_is_not_lost_with_the_sdks_own_loop() -> None:
    """It posts whatever it is given, and gives up when RunPod refuses that."""
    with working(ControlPlane(result_cap=10_000_000), FAST_LOOP="false") as (runpod, _):
        job = runpod.submit(does("Fail", error="ComfyError", details={"x": "y" * 10_500_000}))
        assert runpod.wait_result(job, timeout_s=12)["error"]


def _load(name: str) -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "made"}},
    }


def _png(size: tuple[int, int]) -> bytes:
    file = io.BytesIO()
    Image.new("1", size).save(file, "PNG")
    return file.getvalue()


def test_half_a_picture_under_another_suffix_is_refused(
    real: tuple[ControlPlane, WorkerProcess, Path],
) -> None:
    """LoadImage opens a file under any name, and half a PNG makes a picture."""
    file = io.BytesIO()
    Image.effect_noise((256, 256), 80).convert("RGB").save(file, "PNG")
    half = file.getvalue()[: len(file.getvalue()) // 2]
    runpod, _, _ = real
    result = runpod.wait_result(runpod.submit({"workflow": _load("a.bin"), "files": {"a.bin": b64(half)}}))
    assert result["output"].get("code") == "invalid_request"


def test_max_pixels_holds_under_another_suffix(real: tuple[ControlPlane, WorkerProcess, Path]) -> None:
    runpod, _, _ = real
    data = b64(_png((12_000, 12_000)))
    result = runpod.wait_result(runpod.submit({"workflow": _load("a.bin"), "files": {"a.bin": data}}), timeout_s=60)
    assert result["output"].get("code") == "payload_too_large"


def test_debug_leaves_nothing_of_a_sealed_job_in_plain(real: tuple[ControlPlane, WorkerProcess, Path]) -> None:
    """Job.sealed: no file of it may lie anywhere in plain. ALLOW_DEBUG is on by default."""
    runpod, _, workspace = real
    token = Sealer(KEY).seal({"workflow": empty(prefix="private"), "debug": True})
    assert "error" not in runpod.wait_result(runpod.submit({"encrypted_input": token, "is_encrypted": True}))
    assert not [path.name for path in files_below(workspace) if path.is_file() and "private" in path.name]


def test_no_log_quotes_a_plain_jobs_values(real: tuple[ControlPlane, WorkerProcess, Path]) -> None:
    runpod, worker, _ = real
    graph = empty()
    graph["2"] = {
        "class_type": "ImageScale",
        "inputs": {
            "image": ["1", 0],
            "upscale_method": "a very private prompt",
            "width": 64,
            "height": 64,
            "crop": "disabled",
        },
    }
    graph["9"]["inputs"]["images"] = ["2", 0]
    assert "error" in runpod.wait_result(runpod.submit({"workflow": graph}))
    url = "http://a-private-host.invalid/x.png"
    assert "error" in runpod.wait_result(runpod.submit({"workflow": empty(), "images": {"private-name.png": url}}))
    for word in ("a very private prompt", "private-name", "a-private-host"):
        assert word not in worker.log


def test_a_sigterm_does_not_wait_for_a_result_that_hangs_for_ten_minutes(monkeypatch: pytest.MonkeyPatch) -> None:
    """RunPod has the result, and never says so."""
    done = ControlPlane.done

    def silent(plane: ControlPlane, job_id: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
        answer = done(plane, job_id, body, headers)
        threading.Event().wait(25)
        return answer

    monkeypatch.setattr(ControlPlane, "done", silent)
    with working(SHUTDOWN_GRACE_S="0.2") as (runpod, worker):
        job = runpod.submit(does("Give", size=3))
        runpod.wait_result(job)
        worker.signal(signal.SIGTERM)
        assert worker.wait(15) == 0


def test_the_stock_loop_takes_no_job_after_sigterm() -> None:
    """Its long poll would go on for up to 90 s while the part that runs jobs has ended: a job taken then is lost."""
    with working(FAST_LOOP="false", SHUTDOWN_GRACE_S="0.2") as (runpod, worker):
        runpod.wait_result(runpod.submit(does("Give", size=3)))
        worker.signal(signal.SIGTERM)
        worker.wait_log("Shutting down")
        job = runpod.submit(does("Give", size=3))
        assert worker.wait(15) == 0
        assert not runpod.of("take", job) or job in runpod.results


def test_the_stock_loop_runs_a_job_that_was_being_taken_at_sigterm() -> None:
    with working(FAST_LOOP="false") as (runpod, worker):
        worker.wait_log("fitness checks passed")
        runpod.take_delay_s = 0.3
        job = runpod.submit(does("Give", size=3))
        runpod.wait_for("take", job)
        worker.signal(signal.SIGTERM)
        assert runpod.wait_result(job, timeout_s=10)["output"]["status"] == "success"
        assert worker.wait(15) == 0


def test_a_warm_up_file_that_is_missing_ends_the_worker_at_its_start(tmp_path: Path) -> None:
    with working(WARMUP_WORKFLOW=str(tmp_path / "none.json")) as (_, worker):
        assert worker.wait(15) == 1
        assert "settee: WARMUP_WORKFLOW cannot be read" in worker.log
        assert "fitness" not in worker.log
