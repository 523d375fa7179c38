"""Engine.run against an ideal client: what the worker adds to ComfyUI's own time.

The ideal client keeps its event socket and its HTTP connection, submits, waits for `executing: null`, reads history
and the file from disk, and base64-encodes it. It checks nothing, stages nothing, wipes nothing. Both run on the same
ComfyUI in alternating rounds: the embedded one, or the one at COMFY_URL (with COMFY_INPUT_DIR and COMFY_OUTPUT_DIR).
"""

from __future__ import annotations

import argparse
import base64
import http.client
import io
import json
import os
import random
import statistics
import sys
import tempfile
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

import websocket

from settee.base.job import Job
from settee.base.settings import load
from settee.engine.engine import Engine
from settee.engine.request import parse


class IdealClient:
    def __init__(self, url: str, output: Path) -> None:
        host, _, port = url.removeprefix("http://").partition(":")
        self._output = output
        self._client_id = uuid.uuid4().hex
        self._http = http.client.HTTPConnection(host, int(port), timeout=60)
        self._ws = websocket.create_connection(f"ws://{host}:{port}/ws?clientId={self._client_id}", timeout=60)

    def run(self, graph: dict[str, Any]) -> str:
        prompt_id = self._call("POST", "/prompt", {"prompt": graph, "client_id": self._client_id})["prompt_id"]
        done = ('{"type": "executing", "data": {"node": null, "prompt_id": "' + prompt_id + '"}}').replace(" ", "")
        while True:
            message = self._ws.recv()
            if isinstance(message, str) and message.replace(" ", "") == done:
                break
        outputs = self._call("GET", f"/history/{prompt_id}")[prompt_id]["outputs"]
        [item] = next(iter(outputs.values()))["images"]
        return base64.b64encode((self._output / item["subfolder"] / item["filename"]).read_bytes()).decode()

    def _call(self, method: str, path: str, body: Any = None) -> Any:
        self._http.request(method, path, None if body is None else json.dumps(body))
        return json.loads(self._http.getresponse().read())


def empty() -> dict[str, Any]:
    colour = random.randrange(2**24)
    return {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "height": 64, "batch_size": 1, "color": colour}},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "bench/one"}},
    }


def photo(size: int) -> bytes:
    """A picture with detail, different each time, so that nothing is answered from a cache."""
    from PIL import Image, ImageFilter

    noise = Image.frombytes("RGB", (size // 8, size // 8), random.randbytes(size // 8 * (size // 8) * 3))
    file = io.BytesIO()
    noise.resize((size, size), Image.Resampling.BICUBIC).filter(ImageFilter.GaussianBlur(2)).save(file, "PNG")
    return file.getvalue()


def invert() -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": "in.png"}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "3": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "bench/two"}},
    }


def timed(call: Callable[[], object]) -> float:
    begun = time.perf_counter()
    call()
    return (time.perf_counter() - begun) * 1000


def compare(name: str, rounds: int, ideal: Callable[[], float], ours: Callable[[], float], limit: float) -> float:
    pairs: list[tuple[float, float]] = []
    for index in range(rounds + 2):
        # Whoever goes first pays for what the other then finds warm, so they take turns.
        pair = (ideal(), ours()) if index % 2 else tuple(reversed((ours(), ideal())))
        if index >= 2:
            pairs.append((pair[0], pair[1]))
    base, mine = statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs)
    print(f"{name:44} ideal {base:8.2f} ms   Engine.run {mine:8.2f} ms   ratio {mine / base:5.2f} (goal {limit})")
    return mine / base


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=200)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        given = os.environ.get("COMFY_URL")
        settings = load(
            workspace_dir=Path(folder),
            **({} if given else {"comfy_command": f"{sys.executable} -m settee.embedded", "comfy_port": 0}),
        )
        engine = Engine(settings)
        engine.start()
        try:
            engine.backend.wait_ready(120)
            _run(engine, settings, args.rounds, "real" if given else "embedded")
        finally:
            engine.close()


def _run(engine: Engine, settings: Any, rounds: int, which: str) -> None:
    folders = engine.backend.workspace.folders
    ideal = IdealClient(engine.backend._server.client.url, folders.output)

    def ours(graph: dict[str, Any], images: dict[str, str]) -> float:
        job = Job(id="bench", request=parse({"workflow": graph, "images": images}, settings))
        return timed(lambda: engine.run(job))

    compare(
        f"EmptyImage 64 -> SaveImage ({which})",
        rounds,
        lambda: timed(lambda: ideal.run(empty())),
        lambda: ours(empty(), {}),
        1.5,
    )

    def ideal_invert() -> float:
        data = photo(1024)
        (folders.input / "in.png").write_bytes(data)
        return timed(lambda: ideal.run(invert()))

    def our_invert() -> float:
        return ours(invert(), {"in.png": base64.b64encode(photo(1024)).decode()})

    compare(f"LoadImage 1024 -> invert -> save ({which})", max(rounds // 8, 5), ideal_invert, our_invert, 1.05)


if __name__ == "__main__":
    main()
