"""How a supervised ComfyUI starts, or does not, and what it is shown."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import requests

from settee import health
from settee.backends.comfy.process import SupervisedServer
from settee.base.errors import ComfyUnavailable
from settee.base.settings import load
from settee.staging.workspace import Folders
from tests.support.embedded import COMFY_COMMAND, EmbeddedServer
from tests.support.waiting import eventually

GRAPH = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 1}},
    "9": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
}


@contextmanager
def server(tmp_path: Path, **settings: Any) -> Iterator[SupervisedServer]:
    folders = Folders(tmp_path / "input", tmp_path / "output", tmp_path / "temp")
    for _, folder in folders.named():
        folder.mkdir(exist_ok=True)
    given = {
        "comfy_command": COMFY_COMMAND,
        "comfy_dir": tmp_path / "none",
        "comfy_port": 0,
        "models_extra_dirs": (),
        **settings,
    }
    found = SupervisedServer(load(**given), folders)
    try:
        yield found
    finally:
        found.close()


def test_one_that_never_came_up_is_beyond_repair_at_once(tmp_path: Path) -> None:
    with server(tmp_path, comfy_command=f"{COMFY_COMMAND} --fault die_at_start=true") as comfy:
        comfy.start()
        with pytest.raises(ComfyUnavailable, match="it ended with exit code 1 before it answered") as caught:
            comfy.wait_ready(30)
        assert comfy.generation == 1, "not four starts with pauses between them"
        assert comfy.unrecoverable
        assert comfy.generation == 1
        assert caught.value.details["exit_code"] == 1
        assert caught.value.details["log"][-1] == "ModuleNotFoundError: No module named 'torch'"
        comfy.new_job()
        assert comfy.log_tail(1) == ["ModuleNotFoundError: No module named 'torch'"], "a job that comes now is told why"


def test_one_that_the_system_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subprocess, "Popen", Mock(side_effect=PermissionError(13, "Permission denied")))
    with server(tmp_path) as comfy:
        comfy.start()
        with pytest.raises(ComfyUnavailable, match=r"ComfyUI cannot be started: .*: Permission denied"):
            comfy.wait_ready(30)


def test_one_that_came_up_before_is_tried_four_times(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    script = tmp_path / "comfyui.sh"
    script.write_text(f'[ ! -e {gone} ] || exit 3\nexec {COMFY_COMMAND} "$@"\n')
    with server(tmp_path, comfy_command=f"/bin/sh {script}") as comfy:
        comfy.start()
        comfy.wait_ready(30)
        gone.touch()
        comfy.restart("the test wants it")
        with pytest.raises(ComfyUnavailable, match="it ended 4 times in a row with exit code 3"):
            comfy.wait_ready(60)
        assert comfy.generation == 5


def test_one_that_was_too_slow_is_tried_again(tmp_path: Path) -> None:
    """It was killed, so nothing says that it would have failed: the second start may be the quick one."""
    slow = tmp_path / "slow"
    slow.touch()
    script = tmp_path / "comfyui.sh"
    script.write_text(f'[ ! -e {slow} ] || {{ rm {slow}; sleep 60; }}\nexec {COMFY_COMMAND} "$@"\n')
    with server(tmp_path, comfy_command=f"/bin/sh {script}", comfy_start_timeout_s=12) as comfy:
        comfy.start()
        comfy.wait_ready(60)
        assert comfy.generation == 2


def test_models_elsewhere_are_there_for_jobs_and_the_file_goes_at_the_end(tmp_path: Path) -> None:
    for path in ("mine/checkpoints/a.safetensors", "volume/loras/b.safetensors", "volume/clip/c.safetensors"):
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    with server(
        tmp_path, models_dir=tmp_path / "mine", models_extra_dirs=(str(tmp_path / "volume"), "/nowhere")
    ) as comfy:
        comfy.start()
        comfy.wait_ready(30)
        found = {
            kind: requests.get(f"{comfy.client.url}/models/{kind}", timeout=5).json()
            for kind in ("checkpoints", "loras", "text_encoders")
        }
        assert found == {
            "checkpoints": ["a.safetensors"],
            "loras": ["b.safetensors"],
            "text_encoders": ["c.safetensors"],
        }
        command = comfy.command()
        file = Path(command[command.index("--extra-model-paths-config") + 1])
        assert file.exists()
        comfy.restart("the test wants it")
        eventually(lambda: comfy.generation == 2, what="the second start")
        assert comfy.command() == command
    assert not file.exists()


# --- the container's health check -----------------------------------------------------------------------------


def test_health_is_an_answer_and_a_queue_that_moves(tmp_path: Path) -> None:
    settings = load(comfy_url="http://127.0.0.1:9")
    assert "cannot be reached" in (health.problem(settings) or "")
    with EmbeddedServer(tmp_path) as comfy:
        settings = load(comfy_url=comfy.url)
        assert health.problem(settings) is None
        comfy.fault("executor_dead")
        requests.post(f"{comfy.url}/prompt", json={"prompt": GRAPH}, timeout=5).raise_for_status()
        assert requests.get(f"{comfy.url}/system_stats", timeout=5).ok, "an open port says nothing"
        assert "stands still" in (health.problem(settings, again_s=0.2) or "")


def test_health_of_a_port_that_nobody_knows() -> None:
    assert "set COMFY_PORT" in (health.problem(load(comfy_url=None, comfy_port=0)) or "")


def test_the_command_says_it_by_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("COMFY_URL", raising=False)
    monkeypatch.setattr(sys, "argv", ["health"])
    with EmbeddedServer(tmp_path) as comfy:
        monkeypatch.setenv("COMFY_PORT", str(comfy.port))
        assert health.main() == 0
    assert health.main() == 1
    monkeypatch.setenv("COMFY_PORT", "many")
    assert health.main() == 1
    # As a HEALTHCHECK of an operator's own may name it.
    assert subprocess.run([sys.executable, "-m", "settee.health"], stdout=subprocess.DEVNULL).returncode == 1
    healthy, gone, wrong = capsys.readouterr().out.splitlines()
    assert healthy == "healthy"
    assert "cannot be reached" in gone
    assert "COMFY_PORT" in wrong
