"""Every command's --help and --version: they describe, and do nothing else."""

from __future__ import annotations

import importlib
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import settee
from settee import __main__ as commands

ROOT = Path(__file__).parents[2]
PYTHON = sys.executable

COMMANDS: dict[str, tuple[list[str], str]] = {
    "settee": ([PYTHON, "-m", "settee"], "agent"),
    "client": ([PYTHON, "client.py"], "--endpoint"),
    "models": ([PYTHON, "utils.py"], "verify"),
    "worker": ([PYTHON, "rp_handler.py"], "--rp_api_port"),
    "agent": ([PYTHON, "-m", "settee", "agent"], "--check"),
    "keygen": ([PYTHON, "-m", "settee", "keygen"], "ENCRYPTION_KEY"),
    "embedded": ([PYTHON, "-m", "settee", "embedded"], "--port"),
    "interactive": ([PYTHON, "-m", "settee", "interactive"], "editor"),
    "health": ([PYTHON, "-m", "settee", "health"], "ComfyUI"),
    "demo": ([PYTHON, "tools/demo.py"], "--out"),
    "bench": ([PYTHON, "-m", "bench"], "agent_answers"),
    "start.sh": (["bash", "start.sh"], "MODE"),
}


def run(command: list[str], *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("COMFY_", "MODELS", "RUNPOD_"))}
    env = {**clean, "SETTEE_PYTHON": PYTHON, "WORKSPACE_DIR": str(folder / "ram"), "COMFY_DIR": str(folder / "none")}
    return subprocess.run(
        [*command, *arguments], cwd=ROOT, env={**env, "COLUMNS": "60"}, capture_output=True, text=True, timeout=60
    )


@pytest.mark.parametrize("name", COMMANDS)
def test_help_describes_and_does_nothing_else(name: str, tmp_path: Path) -> None:
    command, word = COMMANDS[name]
    done = run(command, "--help", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "usage: " in done.stdout
    assert word in done.stdout
    assert [line for line in done.stdout.splitlines() if len(line) > 60] == []
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_version(name: str, tmp_path: Path) -> None:
    done = run(COMMANDS[name][0], "--version", folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"settee {settee.__version__}\n", "")


@pytest.mark.parametrize("command", [["bash", "docker/lock-comfyui.sh"], [PYTHON, "tools/install.py"]])
def test_the_tools_have_a_help_too(command: list[str], tmp_path: Path) -> None:
    done = run(command, "--help", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("usage: ")
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []


def test_a_demo_whose_port_is_taken_ends_before_it_starts_anything(tmp_path: Path) -> None:
    with socket.create_server(("localhost", 0)) as taken:
        port = str(taken.getsockname()[1])
        done = run(COMMANDS["worker"][0], "--demo", "--rp_api_port", port, folder=tmp_path)
    assert done.returncode == 1
    assert f"cannot listen on localhost:{port} (Address already in use): give another --rp_api_port" in done.stderr
    assert "ComfyUI" not in done.stderr


def test_the_workers_help_lists_the_options_of_the_installed_sdk(tmp_path: Path) -> None:
    from settee.doors.runpod import sdk

    shown = run(COMMANDS["worker"][0], "--help", folder=tmp_path).stdout
    for action in sdk.load().serverless.parser._actions:
        assert action.option_strings[-1] in shown
    assert "--demo" in shown


def test_every_command_of_the_list_is_among_them() -> None:
    assert commands.COMMANDS.keys() <= COMMANDS.keys()


def test_a_command_that_does_not_exist_is_refused_with_those_that_do(tmp_path: Path) -> None:
    done = run([PYTHON, "-m", "settee"], "agnet", folder=tmp_path)
    assert done.returncode == 2
    assert "agent" in done.stderr
    done = run([PYTHON, "-m", "bench"], "whipe", folder=tmp_path)
    assert done.returncode == 2
    assert "there is no bench whipe" in done.stderr


def test_a_command_whose_packages_are_missing_names_what_installs_them() -> None:
    for command, package, extra in (("agent", "pydantic", "agent"), ("embedded", "aiohttp", "embedded")):
        code = f"import sys; sys.modules['{package}'] = None; sys.argv = ['settee', '{command}']\n"
        code += "from settee.__main__ import main; sys.exit(main())"
        done = subprocess.run([PYTHON, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert done.stderr.splitlines()[-1] == (
            f"settee {command}: the package {package} is missing: pip install 'settee[{extra}]'"
        )


def test_the_scripts_of_the_package_exist() -> None:
    scripts = (ROOT / "pyproject.toml").read_text().partition("[project.scripts]\n")[2].partition("\n\n")[0]
    for line in scripts.splitlines():
        module, _, function = line.partition(' = "')[2].rstrip('"').partition(":")
        assert callable(getattr(importlib.import_module(module), function))


def test_a_worker_that_cannot_start_lists_every_problem(tmp_path: Path) -> None:
    env = {**os.environ, "MODELS": "bad,o/r:x.st:vae,worse", "WORKSPACE_DIR": str(tmp_path / "ram")}
    done = subprocess.run([PYTHON, "rp_handler.py"], cwd=ROOT, env=env, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert [line.split(":")[1].strip() for line in done.stderr.splitlines()] == ["MODELS entry 1", "MODELS entry 3"]
