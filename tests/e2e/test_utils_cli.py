"""utils.py as its users run it: a process of its own, piped or in a terminal, interrupted or not."""

from __future__ import annotations

import hashlib
import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.engine.test_models import tensors
from tests.support.hub import HubServer
from tests.support.waiting import eventually

ROOT = Path(__file__).parents[2]
REPO = "acme/models"


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[HubServer]:
    with HubServer(tmp_path / "hub") as server:
        for number in range(3):
            server.add(REPO, f"m{number}.safetensors", tensors(number))
        yield server


class Place:
    """Where utils.py runs."""

    def __init__(self, root: Path, hub: HubServer) -> None:
        self.models = root / "models"
        self.cache = root / "cache"
        clean = {name: value for name, value in os.environ.items() if not name.startswith(("MODELS", "HF_", "COMFY_"))}
        self.env = {
            **clean,
            "HF_ENDPOINT": hub.endpoint,
            "MODELS_DIR": str(self.models),
            "HOST_CACHE_DIR": str(self.cache),
            "MODELS_EXTRA_DIRS": str(root / "volume"),
        }

    def start(self, *arguments: str, models: str, **pipes: int) -> subprocess.Popen[str]:
        command = [sys.executable, "utils.py", *arguments]
        return subprocess.Popen(
            command, cwd=ROOT, env={**self.env, "MODELS": models}, text=True, **{"stdout": -1, "stderr": -1, **pipes}
        )

    def run(self, *arguments: str, models: str) -> tuple[int, str, str]:
        """Exit code, stdout, stderr."""
        process = self.start(*arguments, models=models)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def files(self) -> list[str]:
        found = (path.relative_to(self.models) for path in self.models.rglob("*") if not path.is_dir())
        return sorted(str(path) for path in found if path.parts[0] != ".settee")


@pytest.fixture
def place(tmp_path: Path, hub: HubServer) -> Place:
    return Place(tmp_path, hub)


def entries(*numbers: int, options: str = "") -> str:
    return ",".join(f"{REPO}:m{number}.safetensors:checkpoints{options}" for number in numbers)


def test_a_whole_repository_is_planned_placed_listed_and_kept_by_prune(place: Place, hub: HubServer) -> None:
    models = f"{REPO}:*:diffusers"
    code, out, _ = place.run("plan", models=models)
    assert (code, out.count("diffusers/models/m")) == (0, 3), out
    assert place.files() == []
    code, out, _ = place.run(models=models)
    assert (code, out) == (0, f"1 model in {place.models}: 1 in place, 0 failed\n")
    assert place.run("list", models=models)[1].count("diffusers/models/m") == 3
    assert place.run(models=models)[1] == f"1 model in {place.models}, all in place\n"
    assert place.run("verify", models=models)[0] == 0
    (place.models / "diffusers" / "models" / "m1.safetensors").write_bytes(b"x")
    assert place.run("verify", models=models)[0] == 3
    assert place.run(models=models)[0] == 0
    assert place.run("prune", models=models)[1].startswith("0 removed")
    assert len(place.files()) == 3


def test_it_places_all_once(place: Place, hub: HubServer) -> None:
    code, out, err = place.run(models=entries(0, 1))
    assert (code, out) == (0, f"2 models in {place.models}: 2 in place, 0 failed\n")
    speeds = re.findall(r"downloaded from Hugging Face in [\d.]+ s \(([\d.]+) (?:k|M|G)B/s\)", err)
    assert len(speeds) == 2
    assert all(map(float, speeds)), "a small file has a speed, too"
    assert (place.models / "checkpoints" / "m1.safetensors").read_bytes() == tensors(1)
    hub.forget()
    assert place.run(models=entries(0, 1)) == (0, f"2 models in {place.models}, all in place\n", "")
    assert hub.requests == []


def test_nothing_to_place(place: Place) -> None:
    code, out, err = place.run(models="")
    assert (code, err) == (0, "")
    assert "MODELS and MODELS_FILE are empty" in out


@pytest.mark.parametrize(
    ("models", "code", "said"),
    [
        ("bad", 2, "MODELS entry 1"),
        (f"{REPO}:none.safetensors:vae", 1, "no file 'none.safetensors'"),
        (entries(0, options="#sha256=" + "0" * 64), 3, "0" * 64),
    ],
)
def test_the_exit_code_says_what_failed(place: Place, models: str, code: int, said: str) -> None:
    found, _, err = place.run(models=models)
    assert found == code
    assert said in err
    assert "Traceback" not in err
    assert place.files() == []


def test_every_bad_entry_is_listed(place: Place) -> None:
    code, _, err = place.run(models="bad,o/r:x.st:vae,worse")
    assert code == 2
    assert "MODELS entry 1" in err
    assert "MODELS entry 3" in err
    assert "MODELS entry 2" not in err


def test_an_optional_model_that_fails_is_said_and_no_failure(place: Place, tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text(
        f"- {{source: '{REPO}:none.safetensors', target: vae, required: false}}\n- {REPO}:m0.safetensors:vae\n"
    )
    place.env["MODELS_FILE"] = str(file)
    code, out, err = place.run(models="")
    assert (code, out) == (0, f"2 models in {place.models}: 1 in place, 1 failed\n")
    assert "vae/none.safetensors: failed" in err


def test_settings_that_are_wrong_are_all_said(place: Place) -> None:
    place.env |= {"MODELS_CONNECTIONS": "x", "LOG_LEVEL": "LOUD"}
    code, _, err = place.run(models="")
    assert code == 2
    assert "MODELS_CONNECTIONS" in err
    assert "LOG_LEVEL" in err
    assert "Traceback" not in err


def test_a_folder_that_is_nearly_comfyuis_is_doubted(place: Place) -> None:
    code, _, err = place.run(models=f"{REPO}:m0.safetensors:checkpoint")
    assert code == 0
    assert "did you mean 'checkpoints'?" in err


def test_a_comfyui_that_is_not_there_gets_no_models(place: Place, tmp_path: Path) -> None:
    del place.env["MODELS_DIR"]
    place.env["COMFY_DIR"] = str(tmp_path / "none")
    code, _, err = place.run(models=entries(0))
    assert code == 2
    assert "set COMFY_DIR, or MODELS_DIR" in err
    assert not (tmp_path / "none").exists()


def test_list_says_what_is_gone(place: Place) -> None:
    place.run(models=entries(0))
    (place.models / "checkpoints" / "m0.safetensors").unlink()
    assert "gone, or changed" in place.run("list", models="")[1]


def test_plan_writes_nothing_and_says_from_where(place: Place, hub: HubServer) -> None:
    commit = hub.commit(REPO)
    cached = place.cache / f"models--{REPO.replace('/', '--')}"
    (cached / "refs").mkdir(parents=True)
    (cached / "refs" / "main").write_text(commit)
    (cached / "snapshots" / commit).mkdir(parents=True)
    (cached / "snapshots" / commit / "m1.safetensors").write_bytes(tensors(1))
    code, out, err = place.run("plan", models=f"{entries(0, 1)},{entries(2, options='#lazy')},{REPO}:none.st:vae")
    lines = out.splitlines()
    assert lines[0] == "checkpoints/m0.safetensors: download from Hugging Face, 1 MB"
    assert lines[1].startswith("checkpoints/m1.safetensors: link from ")
    assert lines[2].endswith("(lazy: when a job names it)")
    assert "cannot be placed" in lines[3]
    assert (code, err) == (1, "")
    assert not place.models.exists()
    code, out, _ = place.run("plan", "--json", models=entries(0, 1))
    assert json.loads(out)["bytes"] == len(tensors(0))
    assert place.run(models=entries(1))[0] == 0
    assert (place.models / "checkpoints" / "m1.safetensors").is_symlink()


def test_list_and_verify(place: Place) -> None:
    assert place.run("list", models="") == (0, "", f"utils.py: nothing was placed in {place.models}\n")
    place.run(models=entries(0))
    code, out, _ = place.run("list", models="")
    assert code == 0
    assert out.split()[0] == "checkpoints/m0.safetensors"
    assert hashlib.sha256(tensors(0)).hexdigest()[:12] in out
    assert place.run("verify", models="")[:2] == (0, "checkpoints/m0.safetensors: ok\n")
    path = place.models / "checkpoints" / "m0.safetensors"
    times = path.stat()
    damaged = bytearray(path.read_bytes())
    damaged[-1] ^= 1
    path.write_bytes(damaged)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    code, out, err = place.run("verify", models="")
    assert code == 3
    assert "damaged" in out
    assert err.endswith(
        "1 of 1 are not what they were: remove checkpoints/m0.safetensors, and run utils.py to place them again\n"
    )
    path.unlink()
    assert place.run("verify", models="")[2].endswith(
        "1 of 1 are not what they were: run utils.py to place them again\n"
    )
    assert place.run(models=entries(0))[0] == 0
    assert place.run("verify", models="")[0] == 0


def test_what_was_set_aside_is_listed(place: Place) -> None:
    place.run(models=entries(0))
    path = place.models / "checkpoints" / "m0.safetensors"
    path.write_bytes(tensors(5))
    assert "is kept as m0.safetensors.set-aside" in place.run(models=entries(0))[2]
    for command in ("list", "verify"):
        code, out, _ = place.run(command, models="")
        assert code == 0
        assert "checkpoints/m0.safetensors.set-aside" in out
        assert "yours to delete" in out
    assert "set-aside" in place.run("list", "--json", models="")[1]


def test_prune_removes_what_an_interrupted_download_left(place: Place, hub: HubServer) -> None:
    hub.add(REPO, "large.safetensors", tensors(9, 100_000_000))
    hub.faults.rate = 40_000_000
    models = f"{REPO}:large.safetensors:checkpoints"
    process = place.start(models=models)
    eventually(lambda: hub.served > 40_000_000)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "resumed next time" in err
    assert "Traceback" not in err
    left = place.files()
    assert left == ["checkpoints/large.safetensors.part", "checkpoints/large.safetensors.part.json"]
    assert place.run("prune", models=models)[1] == "0 removed, 0 kB\n"
    assert "1 would be removed" in place.run("prune", "--dry-run", models="")[1]
    assert place.files() == left
    place.run("prune", models="")
    assert place.files() == []


def test_in_a_terminal_it_draws_bars(place: Place, hub: HubServer) -> None:
    hub.faults.rate = 1_000_000
    leader, follower = pty.openpty()
    try:
        process = place.start(models=entries(0, 1), stdout=follower, stderr=follower)
        os.close(follower)
        seen = b""
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and select.select([leader], [], [], 30)[0]:
            try:
                piece = os.read(leader, 65536)
            except OSError:  # the other end is closed
                break
            seen += piece
        assert process.wait(10) == 0
    finally:
        os.close(leader)
    assert b"B/s" in seen
    assert b"\x1b[" in seen
    assert seen.decode().rstrip().endswith(f"2 models in {place.models}: 2 in place, 0 failed")
