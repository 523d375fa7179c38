"""`python -m settee agent`, as an operator meets it: what it checks, and how it ends when it cannot begin."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]


def command(*args: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "settee", "agent", *args],
        cwd=ROOT,
        env=env or {"PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def written(folder: Path, **more: Any) -> str:
    paths = {name: str(folder / name) for name in ("base_models", "loras", "workflows", "outputs", "temp")}
    minio = {"endpoint": "127.0.0.1:9", "access_key": "an-access-key", "secret_key": "a-secret-key"}
    (folder / "config.yaml").write_text(yaml.safe_dump({"minio": minio, "paths": paths, **more}))
    return str(folder / "config.yaml")


def test_check_says_what_it_will_do(tmp_path: Path) -> None:
    done = command("--check", "--config", written(tmp_path, auth={"tokens": ["a-token-of-the-test"]}))
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("is right", "0.0.0.0 port 8081", "1 token", "http://127.0.0.1:8188", "http://127.0.0.1:9"):
        assert text in done.stdout
    assert "secret" not in done.stdout
    assert "a-token" not in done.stdout
    assert list(tmp_path.iterdir()) == [tmp_path / "config.yaml"], "a check makes nothing"


def test_the_example_must_be_filled_in_first() -> None:
    done = command("--check", "--config", "deploy/config.example.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "minio.access_key and minio.secret_key still say CHANGE-ME" in done.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """2, which tells systemd that no restart mends it; and nothing was begun."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command("--config", written(tmp_path, server={"port": port}))
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "config.yaml"]


@pytest.mark.parametrize("args", [[], ["--config", "none.yaml"]])
def test_without_a_configuration(args: list[str]) -> None:
    done = command(*args)
    assert done.returncode == 2
    assert done.stderr.startswith("settee agent: ")
    assert len(done.stderr.splitlines()) == 1
