"""Settings that reach ComfyUI: how it is started, and what is sent along with a prompt."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from settee.backends.comfy.process import SupervisedServer
from settee.base.errors import ComfyUnavailable, ConfigError
from settee.base.job import Status
from settee.base.settings import load
from settee.staging.workspace import Folders
from tests.support.embedded import COMFY_COMMAND, comfyui_in
from tests.support.rig import SLOW, Rig, empty, files_below, slow
from tests.support.waiting import eventually


def command(folder: Path, **settings: Any) -> list[str]:
    folders = Folders(folder / "input", folder / "output", folder / "temp")
    return SupervisedServer(load(comfy_dir=folder, comfy_port=0, **settings), folders).command()


def test_the_comfyui_of_comfy_dir_is_started_with_comfy_args(tmp_path: Path) -> None:
    folder = comfyui_in(tmp_path / "ComfyUI")
    with Rig(tmp_path, embedded=True, comfy_command=None, comfy_dir=folder, comfy_args="--preview-size '64'") as rig:
        assert rig.run(empty(1)).outputs
        argv = requests.get(f"{rig.url}/system_stats", timeout=5).json()["system"]["argv"]
        assert argv[-2:] == ["--preview-size", "64"]
        assert argv[argv.index("--listen") + 1] == "127.0.0.1"


def test_comfyui_runs_on_its_own_python_where_it_has_one(tmp_path: Path) -> None:
    folder = comfyui_in(tmp_path / "ComfyUI")
    assert command(folder)[:2] == [sys.executable, str(folder / "main.py")]
    own = folder / "venv" / "bin" / "python"
    own.parent.mkdir(parents=True)
    own.touch()
    assert command(folder)[0] == str(own)
    assert command(folder, comfy_python="python9")[0] == "python9"


@pytest.mark.parametrize("own", ["--cache-ram 2 4", "--cache-lru 9", "--cache-none", "--high-ram", "--cache-classic"])
def test_comfyui_keeps_the_last_prompts_tensors_only_unless_comfy_args_choose(tmp_path: Path, own: str) -> None:
    """It takes one option of these at most, and its own choice since 0.33 is the tensors of all prompts."""
    folder = comfyui_in(tmp_path / "ComfyUI")
    assert "--cache-classic" in command(folder, comfy_args="--cpu")
    chosen = command(folder, comfy_args=own)
    assert [word for word in chosen if word.startswith(("--cache-", "--high-ram"))] == [own.split()[0]]


def test_no_comfyui_at_comfy_dir_says_what_to_set(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"COMFY_DIR.*COMFY_URL"):
        command(tmp_path)


@pytest.mark.parametrize("own", [None, "the job's"])
def test_the_api_key_goes_with_the_prompt(tmp_path: Path, own: str | None) -> None:
    with Rig(tmp_path, embedded=True, comfy_org_api_key="the worker's") as rig:
        rig.start(slow(), comfy_org_api_key=own, extra_data={"more": 1})
        [prompt] = eventually(lambda: rig.queue()["queue_running"], what="a running prompt")
        assert prompt[3]["api_key_comfy_org"] == (own or "the worker's")
        assert prompt[3]["more"] == 1


def test_debug_is_only_for_workers_that_allow_it(tmp_path: Path) -> None:
    with Rig(tmp_path, embedded=True, allow_debug=False) as rig:
        assert rig.run(empty(1), debug=True).outputs
        assert files_below(*rig.folders) == []


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"comfy_args": '--cpu "'}, "COMFY_ARGS is not a command line"),
        ({"comfy_command": "'"}, "COMFY_COMMAND is not a command line"),
        ({"comfy_command": "/nowhere/python -m x"}, "COMFY_COMMAND: '/nowhere/python' is not a program"),
    ],
)
def test_a_command_that_cannot_be_run_is_found_at_the_start(tmp_path: Path, wrong: dict[str, Any], says: str) -> None:
    rig = Rig(tmp_path, embedded=True, **wrong)
    with pytest.raises(ConfigError, match=says):
        rig.engine.start()
    rig.engine.close()


def test_a_comfyui_that_dies_for_good_makes_the_worker_unrecoverable(tmp_path: Path) -> None:
    """Then the result carries refresh_worker. It came up once, and its restarts, ever later, all fail."""
    gone = tmp_path / "gone"
    script = tmp_path / "comfyui.sh"
    script.write_text(f'[ ! -e {gone} ] || exit 1\nexec {COMFY_COMMAND} "$@"\n')
    with Rig(tmp_path, embedded=True, comfy_command=f"/bin/sh {script}") as rig:
        run = rig.start(slow(steps=400))
        run.reach(Status.RUNNING, SLOW)
        gone.touch()
        rig.send_signal(signal.SIGKILL)
        with pytest.raises(ComfyUnavailable, match="did not come back"):
            run.end()
        assert rig.engine.backend.unrecoverable


def test_files_of_somebody_else_outlive_a_worker_that_was_pointed_at_them(tmp_path: Path) -> None:
    precious = tmp_path / "workspace" / "output" / "precious.png"
    precious.parent.mkdir(parents=True)
    precious.write_bytes(b"x")
    rig = Rig(tmp_path, embedded=True)
    with pytest.raises(ConfigError, match="not settee's"):
        rig.engine.start()
    with pytest.raises(ConfigError, match="not settee's"):
        rig.run(empty())
    rig.engine.close()
    assert precious.read_bytes() == b"x"
