"""rp_handler.py itself: the real SDK above, the real engine, and the embedded ComfyUI below."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import shlex
import signal
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from settee.backends.comfy.process import free_port
from settee.base.sealing import Sealer, generate_key
from settee.staging.workspace import MARKER
from tests.support.control_plane import ControlPlane
from tests.support.embedded import COMFY_COMMAND
from tests.support.rig import b64, empty, failing, files_below, png, slow
from tests.support.worker import REAL, WorkerProcess

KEY = generate_key()


class Rig:
    """A control plane, a worker, and the ComfyUI that the worker started."""

    def __init__(self, runpod: ControlPlane, worker: WorkerProcess, workspace: Path, port: int) -> None:
        self.runpod = runpod
        self.worker = worker
        self.workspace = workspace
        self.port = port

    def run(self, job_input: Any, **envelope: Any) -> dict[str, Any]:
        return self.runpod.wait_result(self.runpod.submit(job_input, **envelope), timeout_s=30)  # type: ignore[no-any-return]

    def queue(self) -> dict[str, list[Any]]:
        return requests.get(f"http://127.0.0.1:{self.port}/queue", timeout=5).json()  # type: ignore[no-any-return]

    def left_behind(self) -> list[Path]:
        kept = ("log", MARKER)
        return [path for path in files_below(self.workspace) if path.is_file() and not path.name.endswith(kept)]

    def comfyui_listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0


@contextmanager
def working(folder: Path, **env: str) -> Iterator[Rig]:
    port = free_port()
    settings = {
        "COMFY_COMMAND": COMFY_COMMAND,
        "COMFY_PORT": str(port),
        "WORKSPACE_DIR": str(folder / "workspace"),
        "PROGRESS_INTERVAL_S": "0.05",
        "COMFY_INTERRUPT_S": "5",
        **env,
    }
    with ControlPlane() as runpod, WorkerProcess(env={**runpod.env(), **settings}, command=REAL) as worker:
        try:
            yield Rig(runpod, worker, folder / "workspace", port)
        except (AssertionError, TimeoutError) as error:
            raise AssertionError(f"{error}\n--- worker ---\n{worker.log}") from error


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with working(tmp_path_factory.mktemp("worker"), ENCRYPTION_KEY=KEY, RUN_RESULT_MB="0.1") as rig:
        yield rig


def inverted(name: str = "in.png") -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "out/inverted"}},
    }


@pytest.mark.parametrize("shape", ["list", "object", "text"])
def test_a_picture_goes_in_and_comes_out_inverted(rig: Rig, shape: str) -> None:
    data = "data:image/png;base64," + b64(png((10, 200, 30)))
    images: Any = {"in.png": data} if shape == "object" else [{"name": "in.png", "image": data}]
    job_input: Any = {"workflow": inverted(), "images": images}
    output = rig.run(json.dumps(job_input) if shape == "text" else job_input)["output"]
    assert output["status"] == "success"
    (image,) = output["images"]
    content = base64.b64decode(image["data"], validate=True)
    pixel = Image.open(io.BytesIO(content)).getpixel((5, 5))
    assert isinstance(pixel, tuple)
    assert all(abs(got - want) <= 1 for got, want in zip(pixel, (245, 55, 225), strict=True)), pixel
    assert (image["type"], image["node_id"], image["subfolder"]) == ("base64", "9", "out")
    assert (image["size"], image["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert (image["width"], image["height"]) == (64, 64)
    assert rig.left_behind() == []


def test_a_node_that_fails_is_named(rig: Rig) -> None:
    result = rig.run({"workflow": failing("error", message="it broke")})
    assert result["output"]["code"] == "execution_failed"
    assert result["output"]["details"]["node_id"] == "5"
    assert "SetteeFault" in str(result)
    assert "it broke" in result["error"]
    assert "Traceback" not in str(result)
    assert rig.left_behind() == []


def test_an_unknown_node_is_refused_with_its_name(rig: Rig) -> None:
    workflow = empty()
    workflow["1"]["class_type"] = "EmptyImagee"
    result = rig.run({"workflow": workflow})
    assert result["output"]["code"] in ("workflow_rejected", "invalid_request")
    assert "EmptyImagee" in str(result)
    assert "EmptyImage'" in str(result) or '"EmptyImage"' in str(result)


def test_progress_rises_and_ends_before_the_result(rig: Rig) -> None:
    job_id = rig.runpod.submit({"workflow": slow(steps=30, delay_ms=30)})
    rig.runpod.wait_result(job_id)
    updates = rig.runpod.progress_of(job_id)
    percents = [update["percent"] for update in updates if "percent" in update]
    assert len(percents) >= 3
    assert percents == sorted(percents)
    sampling = [update for update in updates if update.get("node") == "5"]
    assert sampling
    assert all(update["node_type"] == "SetteeSampler" and update["phase"] == "running" for update in sampling)
    assert [event.kind for event in rig.runpod.events if event.job_id == job_id][-1] == "result"


def test_cancel_stops_comfyui_itself_and_the_next_job_is_fine(rig: Rig) -> None:
    job_id = rig.runpod.submit({"workflow": slow(steps=400, delay_ms=50)})
    rig.runpod.wait_for("progress", job_id, count=3)
    assert len(rig.queue()["queue_running"]) == 1
    rig.runpod.cancel(job_id)
    begun = time.monotonic()
    assert rig.run({"workflow": empty()})["output"]["status"] == "success"
    assert time.monotonic() - begun < 10, "20 s of sampling were left"
    assert rig.queue() == {"queue_running": [], "queue_pending": []}
    assert job_id not in rig.runpod.results
    assert rig.left_behind() == []


def test_a_job_over_its_time_limit_is_stopped(rig: Rig) -> None:
    result = rig.run({"workflow": slow(steps=400, delay_ms=50), "timeout_s": 0.5})
    assert result["output"]["code"] == "timeout"
    assert rig.queue()["queue_running"] == []


def test_a_sealed_job_is_sealed_from_end_to_end(rig: Rig) -> None:
    marker = "quiet-harbour"
    data = b64(png((1, 2, 3)))
    payload = {"workflow": inverted(f"{marker}.png"), "images": {f"{marker}.png": data}}
    sealer = Sealer(KEY)
    result = rig.run({"encrypted_input": sealer.seal(payload), "is_encrypted": True})
    assert set(result["output"]) == {"encrypted_output", "is_encrypted"}
    opened = sealer.open(result["output"]["encrypted_output"])
    picture = Image.open(io.BytesIO(base64.b64decode(opened["images"][0]["data"])))
    assert picture.getpixel((0, 0)) == (254, 253, 252)
    payload["workflow"]["2"]["class_type"] = f"{marker}Node"
    failed = rig.run({"encrypted_input": sealer.seal(payload), "is_encrypted": True})
    assert marker not in str(failed)
    assert f"{marker}Node" in str(sealer.open(failed["output"]["encrypted_output"]))
    assert marker not in rig.worker.log


def test_progress_of_a_sealed_job_tells_nothing_of_it(rig: Rig) -> None:
    job_id = rig.runpod.submit({"encrypted_input": Sealer(KEY).seal({"workflow": slow(20, 30)}), "is_encrypted": True})
    rig.runpod.wait_result(job_id)
    updates = rig.runpod.progress_of(job_id)
    assert updates
    assert all(set(update) <= {"phase", "percent"} for update in updates)


def test_a_result_over_the_cap_says_what_to_do(rig: Rig) -> None:
    result = rig.run({"workflow": slow(steps=9, delay_ms=0) | {"1": empty(size=512)["1"]}})
    assert result["output"]["code"] == "output_too_large"
    assert "BUCKET_ENDPOINT_URL" in str(result)
    assert rig.left_behind() == []


def test_sigterm_mid_run_reports_the_job_stops_comfyui_and_wipes(tmp_path: Path) -> None:
    with working(tmp_path, SHUTDOWN_GRACE_S="0.1") as rig:
        job_id = rig.runpod.submit({"workflow": slow(steps=400, delay_ms=50)})
        rig.runpod.wait_for("progress", job_id, count=3)
        rig.worker.signal(signal.SIGTERM)
        result = rig.runpod.wait_result(job_id)
        assert result["output"]["code"] == "canceled"
        assert result["output"]["details"]["retryable"] is True
        assert rig.worker.wait() == 0
        assert not rig.comfyui_listens()
        assert rig.left_behind() == []
        assert "Traceback" not in rig.worker.log


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_while_comfyui_starts_ends_the_worker(tmp_path: Path, number: int) -> None:
    with working(tmp_path, COMFY_COMMAND=f'"{sys.executable}" -c "import time; time.sleep(60)"') as rig:
        rig.worker.wait_log("Running 1 fitness check")
        begun = time.monotonic()
        rig.worker.signal(number)
        assert rig.worker.wait() == 0
        assert time.monotonic() - begun < 15
        assert rig.runpod.takes == []
        assert "Traceback" not in rig.worker.log


def test_a_comfyui_that_does_not_start_is_an_unhealthy_worker(tmp_path: Path) -> None:
    command = f'"{sys.executable}" -c "print(\'no GPU here\'); raise SystemExit(3)"'
    with working(tmp_path, COMFY_COMMAND=command, COMFY_START_TIMEOUT_S="5") as rig:
        rig.runpod.submit({"workflow": empty()})
        assert rig.worker.wait(40) == 1
        assert "no GPU here" in rig.worker.log
        assert rig.runpod.takes == [], "an unfit worker takes no job"


def test_the_warm_up_runs_before_the_first_job(tmp_path: Path) -> None:
    path = tmp_path / "warm.json"
    path.write_text(json.dumps(empty(save=True)))
    with working(tmp_path, WARMUP_WORKFLOW=str(path)) as rig:
        assert rig.run({"workflow": empty()})["output"]["status"] == "success"
        log = rig.worker.log
        assert log.index("[warmup] warm-up workflow done") < log.index("Started.")


def test_a_worker_that_fails_a_check_of_the_sdks_leaves_no_comfyui_behind(tmp_path: Path) -> None:
    unfit = {"RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "false", "RUNPOD_MIN_MEMORY_GB": "1000000"}
    with working(tmp_path, **unfit) as rig:
        assert rig.worker.wait(40) == 1
        assert "Insufficient memory" in rig.worker.log
        assert "started ComfyUI" in rig.worker.log
        assert not rig.comfyui_listens()
        assert rig.runpod.takes == []


def test_a_comfyui_that_ends_while_it_starts_ends_the_worker_and_fails_the_job_that_came_early(tmp_path: Path) -> None:
    end = tmp_path / "end"
    code = f"import os, time\nwhile not os.path.exists({str(end)!r}): time.sleep(0.05)\nprint('no GPU here')\nexit(3)"
    with working(tmp_path, COMFY_COMMAND=shlex.join([sys.executable, "-c", code])) as rig:
        job = rig.runpod.submit({"workflow": empty()})
        rig.runpod.wait_for("take", job)
        end.touch()
        result = rig.runpod.wait_result(job)
        assert result["output"]["code"] == "comfy_unavailable"
        assert "no GPU here" in json.dumps(result["output"]["details"]["log"])
        assert rig.worker.wait() == 1
        assert "no GPU here" in rig.worker.log
        assert rig.left_behind() == []


@pytest.mark.parametrize("early", [True, False])
def test_the_first_job_is_taken_while_comfyui_starts_only_with_early_jobs(tmp_path: Path, early: bool) -> None:
    begin = tmp_path / "begin"
    code = f"import os, runpy, time\nwhile not os.path.exists({str(begin)!r}): time.sleep(0.05)\n"
    code += "runpy.run_module('settee.embedded', run_name='__main__')"
    command = shlex.join([sys.executable, "-c", code])
    with working(tmp_path, COMFY_COMMAND=command, EARLY_JOBS=str(early)) as rig:
        job = rig.runpod.submit({"workflow": empty()})
        if not early:
            begin.touch()
        rig.runpod.wait_for("take", job)
        assert rig.comfyui_listens() is not early
        begin.touch()
        assert rig.runpod.wait_result(job)["output"]["status"] == "success"
