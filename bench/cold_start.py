"""A cold start: from `bash start.sh` to the first job's result, with models that come over a slow line.

Baselines of the same run: ComfyUI's start (the same command and job, no models), and curl fetching the job's own
model over that line. With eight models of which the job needs one, everything could take eight times as long. The
ComfyUI is the embedded one, told to take START_S seconds more to start.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from tests.engine.test_models import tensors, tint
from tests.shell.test_start_worker import container
from tests.support.embedded import COMFY_COMMAND
from tests.support.rig import empty
from tests.support.worker import ROOT

START_S = 4.0
COUNT = 8
#: Seconds that one model takes over the line.
LINES = (2.0, 8.0, 20.0)
MODEL_BYTES = 64_000_000


class Hub:
    """tests.support.hub in a process of its own, as slow as told."""

    def __init__(self, folder: Path, rate: float) -> None:
        command = [sys.executable, "-m", "tests.support.hub", str(folder), "--rate", str(rate)]
        self._process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        self.endpoint = json.loads(self._process.stdout.readline())["endpoint"]

    def __enter__(self) -> Hub:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._process.wait(10)


def first_result(models: str, graph: dict[str, Any], endpoint: str = "", **env: str) -> float:
    """Seconds from start.sh's start to the result of a job that waited in RunPod's queue."""
    with tempfile.TemporaryDirectory() as folder:
        begun = time.monotonic()
        settings = {
            "MODELS": models,
            "HF_ENDPOINT": endpoint or "http://127.0.0.1:9",
            "HOST_CACHE_DIR": f"{folder}/cache",
            "COMFY_COMMAND": f"{COMFY_COMMAND} --fault slow_start={START_S}",
            **env,
        }
        with container(Path(folder), **settings) as running:
            job = running.runpod.submit({"workflow": graph})
            result = running.runpod.wait_result(job, timeout_s=300)
            took = time.monotonic() - begun
            if result["output"].get("status") != "success":
                sys.exit(f"{result}\n{running.process.log}")
            return took


def curl(url: str) -> float:
    begun = time.monotonic()
    subprocess.run(["curl", "-sSLf", "-o", os.devnull, url], check=True)
    return time.monotonic() - begun


def main() -> None:
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        (folder / "acme/models").mkdir(parents=True)
        for number in range(COUNT):
            (folder / f"acme/models/m{number}.safetensors").write_bytes(tensors(number, MODEL_BYTES))
        start = first_result("", empty())
        print(f"ComfyUI's start alone: {start:.2f} s")
        for seconds in LINES:
            rate = MODEL_BYTES / seconds
            with Hub(folder, rate) as hub:
                alone = curl(f"{hub.endpoint}/acme/models/resolve/main/m5.safetensors")
                floor = max(start, alone)
                print(f"one model alone, by curl: {alone:.2f} s")
                for count, entries in ((1, (5,)), (COUNT, range(COUNT))):
                    models = ",".join(f"acme/models:m{number}.safetensors:checkpoints" for number in entries)
                    for early in ("true", "false"):
                        took = first_result(models, tint("m5.safetensors"), hub.endpoint, EARLY_JOBS=early)
                        ratio = f"{took / floor:.2f}x the longer of the two"
                        print(f"  {count} model(s), EARLY_JOBS={early}: {took:.2f} s, {ratio}", flush=True)


if __name__ == "__main__":
    main()
