"""`python -m settee agent`, as an operator meets it: what it checks, and how it ends when it cannot begin."""

from __future__ import annotations

import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from settee.backends.comfy.process import free_port
from settee.base.job import Status
from settee.service import timestamps
from settee.service.store import Callback, Ending, Store
from tests.support.s3 import S3Server

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
    store = {"endpoint": "127.0.0.1:9", "access_key": "an-access-key", "secret_key": "a-secret-key"}
    (folder / "config.yaml").write_text(yaml.safe_dump({"minio": store, "paths": paths, **more}))
    return str(folder / "config.yaml")


def minio(s3: S3Server, **changes: str) -> dict[str, str]:
    return {"endpoint": s3.endpoint_url, "access_key": s3.access_key, "secret_key": s3.secret_key, **changes}


def test_check_says_what_it_will_do_and_what_it_asked(tmp_path: Path, s3: S3Server) -> None:
    given = written(tmp_path, auth={"tokens": ["a-token-of-the-test"]}, minio=minio(s3))
    for name in ("base_models", "loras"):
        (tmp_path / name).mkdir()
    before = sorted(tmp_path.iterdir())
    done = command("--check", "--config", given)
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("is right", "0.0.0.0 port 8081", "1 token", "http://127.0.0.1:8188", s3.endpoint_url, "S3 answers"):
        assert text in done.stdout
    assert "not asked: buckets" in done.stdout
    assert s3.secret_key not in done.stdout
    assert "a-token" not in done.stdout
    assert sorted(tmp_path.iterdir()) == before, "a check makes nothing"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"endpoint": "127.0.0.1:9"},
            "S3 cannot be reached, or drops the connection again and again: look at minio.endpoint",
        ),
        ({"access_key": "nobody"}, "S3 does not accept the keys: look at minio.access_key and minio.secret_key"),
    ],
)
def test_check_finds_what_jobs_would_fail_for(
    changes: dict[str, str], words: str, tmp_path: Path, s3: S3Server
) -> None:
    given = written(tmp_path, minio=minio(s3, **changes), comfyui={"dir": str(tmp_path / "none")})
    (tmp_path / "loras").mkdir()
    done = command("--check", "--config", given)
    assert done.returncode == 1
    assert [line.removeprefix("settee agent: ") for line in done.stderr.splitlines()] == [
        f"paths.base_models: the folder {tmp_path / 'base_models'} does not exist: name ComfyUI's own, or make it",
        words,
        f"comfyui.dir: no ComfyUI (main.py) in {tmp_path / 'none'}",
    ]
    assert "is right" not in done.stdout


def test_the_example_must_be_filled_in_first() -> None:
    done = command("--check", "--config", "deploy/config.example.yaml")
    assert (done.returncode, done.stdout) == (2, "")
    assert "minio.access_key and minio.secret_key still contain CHANGE-ME" in done.stderr


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """2, which tells systemd that no restart mends it; and nothing was begun."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = command("--config", written(tmp_path, server={"port": port}))
    assert done.returncode == 2
    assert f"cannot listen on 127.0.0.1 port {port}" in done.stderr
    assert "Traceback" not in done.stderr
    assert list(tmp_path.iterdir()) == [tmp_path / "config.yaml"]


def test_what_stops_it_is_said_in_its_own_options(tmp_path: Path) -> None:
    kept = tmp_path / "temp" / "workspace" / "output" / "kept.png"
    kept.parent.mkdir(parents=True)
    kept.write_bytes(b"x")
    done = command("--config", written(tmp_path, server={"port": free_port()}))
    assert done.returncode == 2
    assert "paths.temp has a folder 'output' with files that are not settee's" in done.stderr
    assert "WORKSPACE_DIR" not in done.stderr
    assert kept.exists()


@pytest.mark.parametrize("args", [[], ["--config", "none.yaml"]])
def test_without_a_configuration(args: list[str]) -> None:
    done = command(*args)
    assert done.returncode == 2
    assert done.stderr.startswith("settee agent: ")
    assert len(done.stderr.splitlines()) == 1


def with_callbacks(folder: Path) -> Store:
    """The state of an agent that has one callback to send, and two that were refused."""
    store = Store(folder / "outputs" / "state")
    store.open()
    ending = Ending(state=Status.FAILED, moment=timestamps.now(), number=1, shown={})
    for number, key in enumerate(("waiting-SUCCESS", "refused-FAILED", "other-FAILED")):
        url = f"http://me:a-password@receiver-{number}.example/secret-path"
        body = f'{{"number": {number}}}'.encode()
        callback = Callback(attempt_id=key, job_id=key.partition("-")[0], key=key, url=url, body=body)
        added = store.end(key, ending, callback)
        assert added is not None
        assert added.id == number + 1
        if number:
            store.failed(added.id, "HTTP 404", is_refused=True)
    return store


def test_callbacks_are_listed_sent_again_and_dropped(tmp_path: Path) -> None:
    """Also while an agent has the state folder: this process has it open."""
    given, store = written(tmp_path), with_callbacks(tmp_path)
    listed = command("callbacks", "list", "--config", given)
    assert (listed.returncode, listed.stderr) == (0, "")
    lines = listed.stdout.splitlines()
    assert [line.split()[:2] for line in lines] == [["1", "pending"], ["2", "refused"], ["3", "refused"]]
    assert ("receiver-1.example" in lines[1], "HTTP 404" in lines[1], "1 try" in lines[1]) == (True, True, True)
    assert "password" not in listed.stdout
    assert "secret-path" not in listed.stdout
    # The configuration may stand before the subcommand as well.
    assert command("--config", given, "callbacks", "list", "--refused").stdout.splitlines() == lines[1:]

    done = command("callbacks", "retry", "2", "--url", "https://moved.example/cb", "--config", given)
    assert (done.returncode, done.stdout) == (0, "1 callback to be sent\n")
    assert [(each.id, each.url, each.body) for each in store.callbacks()][1:] == [
        (2, "https://moved.example/cb", b'{"number": 1}')
    ]
    assert command("callbacks", "drop", "1", "2", "--config", given).stdout == "2 callbacks dropped\n"
    assert command("callbacks", "retry", "--refused", "--config", given).returncode == 0
    assert [each.id for each in store.callbacks()] == [3]
    assert store.callbacks(is_refused=True) == []
    store.close()


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["retry", "9"], "no callback 9"),
        (["retry", "2", "--url", "nowhere"], "--url"),
        (["retry"], "ID"),
        (["drop"], "ID"),
        ([], "COMMAND"),
    ],
)
def test_wrong_commands_change_nothing(args: list[str], words: str, tmp_path: Path) -> None:
    given, store = written(tmp_path), with_callbacks(tmp_path)
    before = (store.callbacks(), store.callbacks(is_refused=True))
    done = command("callbacks", *args, *(["--config", given] if args else []))
    assert (done.returncode, done.stdout) == (2, "")
    assert words in done.stderr
    assert (store.callbacks(), store.callbacks(is_refused=True)) == before
    store.close()


def test_callbacks_of_an_agent_that_never_ran(tmp_path: Path) -> None:
    done = command("callbacks", "list", "--config", written(tmp_path))
    assert (done.returncode, "state_dir" in done.stderr) == (2, True)
    assert not (tmp_path / "outputs").exists()
