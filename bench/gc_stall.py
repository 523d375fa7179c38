"""ComfyUI's garbage collector stall: jobs 11 s apart on a real ComfyUI, with and without settee's custom node.

    COMFY_DIR=/path/to/ComfyUI [COMFY_PYTHON=…] [COMFY_ARGS=--cpu] python -m bench.gc_stall

Each job is an EmptyImage and a SaveImage, from POST /prompt until its history is there; the first one of each run
is left out. The baseline runs without any custom node.
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import uuid
from pathlib import Path
from typing import Any

import requests

from settee.backends.comfy.process import SupervisedServer
from settee.base.settings import Settings, load
from settee.staging.workspace import Folders

JOBS = 4
#: ComfyUI collects when more than 10 s have passed since it last did.
GAP_S = 11.0


def graph(colour: int) -> dict[str, Any]:
    size = {"width": 64, "height": 64, "batch_size": 1, "color": colour}
    return {
        "1": {"class_type": "EmptyImage", "inputs": size},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "gc"}},
    }


def job(session: requests.Session, url: str, colour: int) -> float:
    """Milliseconds from the submission to the history."""
    prompt_id = str(uuid.uuid4())
    begun = time.perf_counter()
    body = {"prompt": graph(colour), "prompt_id": prompt_id}
    session.post(f"{url}/prompt", json=body, timeout=30).raise_for_status()
    while not session.get(f"{url}/history/{prompt_id}", timeout=30).json():
        time.sleep(0.002)
    return 1000 * (time.perf_counter() - begun)


def measure(settings: Settings) -> float:
    """The median job of one ComfyUI, milliseconds."""
    root = settings.workspace_dir
    server = SupervisedServer(settings, Folders(root / "input", root / "output", root / "temp"))
    for name in ("input", "output", "temp"):
        (root / name).mkdir(parents=True)
    try:
        server.start()
        server.wait_ready(300)
        session, times = requests.Session(), []
        for number in range(JOBS + 1):
            if number:
                time.sleep(GAP_S)
            times.append(job(session, server.client.url, number))
        return statistics.median(times[1:])
    finally:
        server.close()


def main() -> None:
    if "COMFY_DIR" not in os.environ:
        print("not measured: set COMFY_DIR to a real ComfyUI (the embedded one has no stall)")
        return
    with tempfile.TemporaryDirectory(prefix="settee-gc-") as folder:
        common = load(comfy_port=0)
        stock = measure(
            common.model_copy(
                update={
                    "comfy_args": f"{common.comfy_args} --disable-all-custom-nodes",
                    "workspace_dir": Path(folder) / "stock",
                }
            )
        )
        ours = measure(common.model_copy(update={"workspace_dir": Path(folder) / "ours"}))
    print(f"a job {GAP_S:g} s after the last, no custom node  {stock:6.1f} ms   1.00")
    print(f"the same with settee_patches              {ours:6.1f} ms   {ours / stock:.2f}")


if __name__ == "__main__":
    main()
