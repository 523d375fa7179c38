"""How much a worker grows while it answers with a 48 MB picture as base64, as a multiple of the file.

The peak of the worker's resident memory over what it was after the same job with a small picture, under the real
SDK. The baseline reads a file of that size and encodes it with the standard library under the stock loop, as the
most used ComfyUI worker does; ours has the whole engine in between, once under the SDK and once as handler(job)
alone. The picture comes from a real S3 server, so that no request carries it. Linux only (/proc).
"""

from __future__ import annotations

import base64
import io
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support import s3 as s3_server
from tests.support.control_plane import ControlPlane
from tests.support.memory import reset_peak, resident
from tests.support.worker import REAL, WorkerProcess

SIDE = 4000  # times 4000 times 3 bytes of noise: 48 MB, and no smaller as a PNG


def peak_growth(command: tuple[str, ...], small: Any, large: Any, **env: str) -> tuple[int, int]:
    """By how many bytes the worker grew, and the size of the picture it returned."""
    with ControlPlane() as runpod, WorkerProcess(env={**runpod.env(), **env}, command=command) as worker:
        try:
            _image(runpod.wait_result(runpod.submit(small), timeout_s=60))
            pid = worker.process.pid
            before = reset_peak(pid)
            content = _image(runpod.wait_result(runpod.submit(large), timeout_s=120))
            return resident("VmHWM", pid) - before, len(content)
        except TimeoutError as error:
            sys.exit(f"{error}\n{worker.log[-3000:]}")


def handler_growth(small: Any, large: Any, **env: str) -> tuple[int, int]:
    """The same of the handler alone, called in a process of its own."""
    command = [sys.executable, "-m", "bench.handler_call", json.dumps(small), json.dumps(large)]
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("RUNPOD_", "COMFY_"))}
    done = subprocess.run(command, env={**clean, **env}, capture_output=True, text=True, timeout=300)
    if done.returncode != 0:
        sys.exit(done.stderr[-3000:])
    found = json.loads(done.stdout.splitlines()[-1])
    return found["growth"], found["size"]


def _image(result: dict[str, Any]) -> bytes:
    if "error" in result:
        sys.exit(str(result)[:1000])
    return base64.b64decode(result["output"]["images"][0]["data"])


def noise(side: int) -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.frombytes("RGB", (side, side), os.urandom(side * side * 3)).save(file, "PNG", compress_level=1)
    return file.getvalue()


def job(bucket: str, side: int) -> dict[str, Any]:
    workflow = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "noise.png"}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "noise"}},
    }
    images = {"noise.png": f"s3://{bucket}/{side}.png"}
    return {"workflow": workflow, "images": images, "delivery": "base64"}


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="s3-") as folder:
        s3, server = s3_server.start(Path(folder, "s3"))
        try:
            _compare(Path(folder), s3)
        finally:
            s3_server.stop(server)


def _compare(folder: Path, s3: s3_server.S3Server) -> None:
    bucket, client = s3.make_bucket(), s3.client()
    for side in (64, SIDE):
        path = Path(folder, f"{side}.png")
        path.write_bytes(noise(side))
        client.upload_file(str(path), bucket, path.name)
    client.close()
    files = [{"path": str(Path(folder, f"{side}.png"))} for side in (64, SIDE)]
    stock, size = peak_growth(("-m", "bench.constant_worker"), *files, RUNPOD_LOG_LEVEL="INFO")
    print(f"stock SDK, base64 of a file   {stock / 1e6:6.0f} MB   {stock / size:.2f} x the file ({size / 1e6:.0f} MB)")
    settings = {
        "COMFY_COMMAND": f'"{sys.executable}" -m settee.embedded',
        "COMFY_PORT": "0",
        "WORKSPACE_DIR": f"{folder}/workspace",
        "RUN_RESULT_MB": "500",
        "BUCKET_NAME": bucket,
        **s3.env(),
    }
    jobs = job(bucket, 64), job(bucket, SIDE)
    ours, size = peak_growth(REAL, *jobs, **settings)
    print(f"rp_handler.py, whole engine   {ours / 1e6:6.0f} MB   {ours / size:.2f} x the file (target: 2)")
    ours, size = handler_growth(*jobs, **settings)
    print(f"handler(job), without the SDK {ours / 1e6:6.0f} MB   {ours / size:.2f} x the file (target: 2)")


if __name__ == "__main__":
    main()
