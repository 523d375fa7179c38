"""How much a worker grows while it answers with a 48 MB picture as base64, as a multiple of the file.

The peak of the worker's resident memory over what it was after the same job with a small picture, under the real
SDK. The baseline reads a file of that size and encodes it with the standard library under the stock loop, as the
most used ComfyUI worker does; ours has the whole engine in between. The picture comes from a real S3 server, so that
no request carries it. Linux only (/proc).
"""

from __future__ import annotations

import base64
import io
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.support import s3 as s3_server
from tests.support.control_plane import ControlPlane
from tests.support.worker import REAL, WorkerProcess

SIDE = 4000  # times 4000 times 3 bytes of noise: 48 MB, and no smaller as a PNG


def peak_growth(command: tuple[str, ...], small: Any, large: Any, **env: str) -> tuple[int, int]:
    """By how many bytes the worker grew, and the size of the picture it returned."""
    with ControlPlane() as runpod, WorkerProcess(env={**runpod.env(), **env}, command=command) as worker:
        try:
            _image(runpod.wait_result(runpod.submit(small), timeout_s=60))
            pid = worker.process.pid
            before = _status(pid, "VmRSS")
            Path(f"/proc/{pid}/clear_refs").write_text("5")  # resets the peak
            content = _image(runpod.wait_result(runpod.submit(large), timeout_s=120))
            return _status(pid, "VmHWM") - before, len(content)
        except TimeoutError as error:
            sys.exit(f"{error}\n{worker.log[-3000:]}")


def _image(result: dict[str, Any]) -> bytes:
    if "error" in result:
        sys.exit(str(result)[:1000])
    return base64.b64decode(result["output"]["images"][0]["data"])


def _status(pid: int, name: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{name}:"):
            return int(line.split()[1]) * 1024
    raise LookupError(name)


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
    ours, size = peak_growth(
        REAL,
        job(bucket, 64),
        job(bucket, SIDE),
        COMFY_COMMAND=f'"{sys.executable}" -m settee.embedded',
        COMFY_PORT="0",
        WORKSPACE_DIR=f"{folder}/workspace",
        RUN_RESULT_MB="500",
        BUCKET_NAME=bucket,
        **s3.env(),
    )
    print(f"rp_handler.py, whole engine   {ours / 1e6:6.0f} MB   {ours / size:.2f} x the file ({size / 1e6:.0f} MB)")
    print(f"ratio {ours / size / (stock / size):.2f} (target: at most 4.5 x the file)")


if __name__ == "__main__":
    main()
