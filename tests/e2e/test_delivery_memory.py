"""What a delivery may cost in memory, measured in a process of its own. `make bench` prints the figures."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.measure_delivery import measured
from tests.support.s3 import S3Server

MB = 1_000_000


pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")


def make(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        for _ in range(size // MB):
            file.write(os.urandom(MB))
    return path


def test_base64_holds_one_copy(tmp_path: Path) -> None:
    """4/3 of the file is the result itself; "".join or a decode of encoded bytes would make it 8/3."""
    size = 48 * MB
    assert measured("base64", make(tmp_path / "a.png", size)) < 1.6 * size


def test_a_whole_job_holds_its_base64_once(s3: S3Server, tmp_path: Path) -> None:
    """From the envelope to the answer, in the process of the handler: an answer must not be encoded to be measured."""
    bucket, client = s3.make_bucket(), s3.client()
    for side in (64, 3000):
        file = io.BytesIO()
        Image.frombytes("RGB", (side, side), os.urandom(side * side * 3)).save(file, "PNG", compress_level=1)
        client.put_object(Bucket=bucket, Key=f"{side}.png", Body=file.getvalue())
    jobs = [json.dumps(_job(f"s3://{bucket}/{side}.png")) for side in (64, 3000)]
    env = {name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "COMFY_"))} | {
        "COMFY_COMMAND": f'"{sys.executable}" -m settee.embedded',
        "COMFY_PORT": "0",
        "WORKSPACE_DIR": str(tmp_path / "workspace"),
        "RUN_RESULT_MB": "500",
        "BUCKET_NAME": bucket,
        **s3.env(),
    }
    command = [sys.executable, "-m", "bench.handler_call", *jobs]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["growth"] < 2 * found["size"]


def _job(picture: str) -> dict[str, Any]:
    workflow = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "noise.png"}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "noise"}},
    }
    return {"workflow": workflow, "images": {"noise.png": picture}, "delivery": "base64"}


def test_a_sealed_result_is_held_once_beside_its_json(tmp_path: Path) -> None:
    """The JSON (twice the file, in hex), its writer's slack, and the token (4/3 of that).

    ``Fernet.encrypt`` takes seven times the JSON.
    """
    size = 10 * MB
    assert measured("seal-result", make(tmp_path / "a.bin", size)) < 3.3 * 2 * size


@pytest.mark.parametrize(("what", "size"), [("s3", 200), ("s3-fetch", 120), ("s3-sealed", 120)])
def test_200_mb_to_s3_take_less_than_64(s3: S3Server, tmp_path: Path, what: str, size: int) -> None:
    path = make(tmp_path / "film.mp4", size * MB)
    assert measured(what, path, s3.endpoint_url, s3.make_bucket()) < 64 * MB
