"""start.sh for real: the worker under a control plane, its RAM disk, and the embedded ComfyUI below it."""

from __future__ import annotations

import os
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

from settee.backends.comfy.process import free_port
from settee.staging.workspace import MARKER
from tests.support.control_plane import ControlPlane
from tests.support.embedded import COMFY_COMMAND
from tests.support.hub import HubServer
from tests.support.rig import empty, files_below, slow
from tests.support.waiting import eventually
from tests.support.worker import ROOT, WorkerProcess

#: A container's end after SIGTERM.
END_S = 5.0


class Container:
    """start.sh's process, which becomes the worker, and its folders."""

    def __init__(self, folder: Path, runpod: ControlPlane, process: WorkerProcess, port: int) -> None:
        self.workspace = folder / "ram"
        self.comfy_dir = folder / "comfyui"
        self.runpod = runpod
        self.process = process
        self.port = port

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def listens(self) -> bool:
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", self.port)) == 0

    def answers(self) -> bool:
        try:
            return requests.get(f"{self.url}/system_stats", timeout=2).ok
        except requests.RequestException:
            return False


@contextmanager
def container(folder: Path, *arguments: str, **env: str) -> Iterator[Container]:
    """A container's start with ``env``, in a file system of its own as far as settings reach."""
    port = free_port()
    (folder / "comfyui" / "input").mkdir(parents=True)
    (folder / "comfyui" / "input" / "example.png").write_bytes(b"precious")
    settings = {
        "SETTEE_PYTHON": sys.executable,
        "COMFY_DIR": str(folder / "comfyui"),
        "COMFY_COMMAND": COMFY_COMMAND,
        "PYTHONPATH": str(ROOT),  # for the embedded ComfyUI, which runs in COMFY_DIR
        "COMFY_PORT": str(port),
        "WORKSPACE_DIR": str(folder / "ram"),
        "MODELS_EXTRA_DIRS": str(folder / "volume"),
        "PROGRESS_INTERVAL_S": "0.05",
        "SHUTDOWN_GRACE_S": "1",
        **env,
    }
    with (
        ControlPlane() as runpod,
        WorkerProcess(
            *arguments, env={**runpod.env(), **settings}, command=(str(ROOT / "start.sh"),), program=("bash",)
        ) as process,
    ):
        try:
            yield Container(folder, runpod, process, port)
        except (AssertionError, TimeoutError) as error:
            raise AssertionError(f"{error}\n--- container ---\n{process.log}") from error


def left_behind(workspace: Path) -> list[Path]:
    return [path for path in files_below(workspace) if path.is_file() and path.name != MARKER]


def test_a_job_runs_on_the_ram_disk_and_sigterm_ends_everything(tmp_path: Path) -> None:
    with container(tmp_path) as box:
        job_id = box.runpod.submit({"workflow": empty()})
        assert box.runpod.wait_result(job_id, timeout_s=30)["output"]["status"] == "success"
        for name in ("input", "output", "temp"):
            assert os.readlink(box.comfy_dir / name) == str(box.workspace / name)
        assert (box.comfy_dir / "input.before-settee" / "example.png").read_bytes() == b"precious"
        assert left_behind(box.workspace) == []

        begun = time.monotonic()
        box.process.signal(signal.SIGTERM)
        assert box.process.wait(END_S) == 0
        assert time.monotonic() - begun < END_S
        assert not box.listens(), "ComfyUI has ended, too"


@pytest.mark.parametrize(("steps", "status"), [(10, "success"), (400, None)])
def test_sigterm_during_a_job_ends_within_5_s_with_its_result_or_its_stop(
    tmp_path: Path, steps: int, status: str | None
) -> None:
    """A job that ends within SHUTDOWN_GRACE_S is delivered; one that would not is stopped, and says so."""
    with container(tmp_path) as box:
        job_id = box.runpod.submit({"workflow": slow(steps=steps, delay_ms=50)})
        box.runpod.wait_for("progress", job_id, count=2)
        begun = time.monotonic()
        box.process.signal(signal.SIGTERM)
        box.process.wait(END_S)
        assert time.monotonic() - begun < END_S
        result: dict[str, Any] = box.runpod.results[job_id]
        assert result["output"].get("status") == status
        assert bool(result.get("error")) == (status is None)
        assert not box.listens()
        assert left_behind(box.workspace) == []


@pytest.mark.parametrize("mode", ["serverless", "serve-api"])
def test_a_comfyui_that_dies_at_its_start_ends_the_worker_at_once(tmp_path: Path, mode: str) -> None:
    """One start, not four; the end of its log; exit code 1. The platform starts another worker."""
    arguments = ["--rp_api_port", str(free_port())] if mode == "serve-api" else []
    with container(tmp_path, *arguments, MODE=mode, COMFY_COMMAND=f"{COMFY_COMMAND} --fault die_at_start=true") as box:
        begun = time.monotonic()
        assert box.process.wait(15) == 1
        assert time.monotonic() - begun < 10, "most of it the imports of a cold start"
        log = box.process.log
        assert log.count("started ComfyUI") == 1
        assert "ComfyUI does not start: it ended with exit code 1 before it answered" in log
        assert "ComfyUI printed: ModuleNotFoundError: No module named 'torch'" in log
        assert box.runpod.takes == [], "it never took a job"


def test_the_local_api_in_mode_serve_api(tmp_path: Path) -> None:
    port = free_port()
    with container(tmp_path, "--rp_api_port", str(port), MODE="serve-api") as box:
        url = f"http://127.0.0.1:{port}"

        def listens() -> bool:
            try:
                return requests.get(f"{url}/openapi.json", timeout=2).ok
            except requests.RequestException:
                return False

        eventually(listens, timeout_s=30, what="the local API")
        answer = requests.post(f"{url}/runsync", json={"input": {"workflow": empty()}}, timeout=30).json()
        assert answer["output"]["status"] == "success"
        box.process.signal(signal.SIGTERM)
        box.process.wait(END_S)
        assert not box.listens()


def test_interactive_is_comfyui_on_every_address_and_no_worker(tmp_path: Path) -> None:
    with container(tmp_path, MODE="interactive") as box:
        eventually(box.answers, timeout_s=30, what="ComfyUI")
        stats = requests.get(f"{box.url}/system_stats", timeout=5).json()
        argv = stats["system"]["argv"]
        assert argv[argv.index("--listen") + 1] == "0.0.0.0"
        (box.workspace / "output" / "drawn.png").write_bytes(b"mine")
        begun = time.monotonic()
        box.process.signal(signal.SIGTERM)
        assert box.process.wait(END_S) == 0
        assert time.monotonic() - begun < END_S
        assert not box.listens()
        assert box.runpod.events == []
        assert (box.workspace / "output" / "drawn.png").exists(), "nobody's job: nothing is wiped"


def test_interactive_places_models_beside_comfyui(tmp_path: Path) -> None:
    with HubServer(tmp_path / "hub") as hub:
        hub.add("org/model", "weights.bin", b"x" * 100_000)
        models = {"MODELS": "org/model:weights.bin:checkpoints", "HF_ENDPOINT": hub.endpoint}
        with container(tmp_path, MODE="interactive", MODELS_DIR=str(tmp_path / "models"), **models) as box:
            eventually(box.answers, timeout_s=30, what="ComfyUI")
            shown = f"{box.url}/models/checkpoints"
            eventually(lambda: requests.get(shown, timeout=5).json() == ["weights.bin"], 30, "the model in ComfyUI")
            box.process.signal(signal.SIGTERM)
            assert box.process.wait(END_S) == 0


def test_interactive_ends_when_comfyui_cannot_start(tmp_path: Path) -> None:
    with container(tmp_path, MODE="interactive", COMFY_COMMAND=f"{COMFY_COMMAND} --fault die_at_start=true") as box:
        assert box.process.wait(15) == 1
        assert "ComfyUI printed: ModuleNotFoundError: No module named 'torch'" in box.process.log


def test_secrets_from_files_reach_the_worker_and_neither_log_nor_comfyui(tmp_path: Path) -> None:
    token = tmp_path / "token"
    token.write_text("hush-token\n")
    printing = tmp_path / "comfyui.sh"
    printing.write_text(f'env >&2\nexec {COMFY_COMMAND} "$@"\n')
    with container(tmp_path, HF_TOKEN_FILE=str(token), ENCRYPTION_KEY="", COMFY_COMMAND=f"/bin/bash {printing}") as box:
        job_id = box.runpod.submit({"workflow": empty()})
        assert box.runpod.wait_result(job_id, timeout_s=30)["output"]["status"] == "success"
        log = box.process.log
        assert "COMFY_PORT=" in log, "ComfyUI's environment was printed by the test's own script"
        assert "hush-token" not in log
        assert "HF_TOKEN_FILE" not in log


def test_a_secret_file_that_is_missing_is_one_clear_error(tmp_path: Path) -> None:
    with container(tmp_path, HF_TOKEN_FILE=str(tmp_path / "none")) as box:
        assert box.process.wait(15) == 1
        assert f"settee: HF_TOKEN_FILE: {tmp_path / 'none'} cannot be read" in box.process.log


def test_files_that_are_not_settees_are_refused_and_kept(tmp_path: Path) -> None:
    kept = tmp_path / "ram" / "output" / "kept.png"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    with container(tmp_path) as box:
        assert box.process.wait(15) == 1
        assert "set WORKSPACE_DIR to a folder of its own" in box.process.log
    assert kept.read_bytes() == b"x"
