"""A worker of RunPod's SDK as anyone would write it: the baseline of the other benchmarks.

`python -m bench.constant_worker [BYTES]` answers every job with an image of that many zero bytes in base64, built
as the most used ComfyUI worker does.
"""

import base64
import sys
from typing import Any

import runpod

SIZE = int(sys.argv.pop(1)) if len(sys.argv) > 1 and sys.argv[1].isdigit() else 48


def handler(job: dict[str, Any]) -> dict[str, Any]:
    path = job["input"].get("path")
    if path is None:
        return {"images": [{"filename": "a.png", "type": "base64", "data": base64.b64encode(bytes(SIZE)).decode()}]}
    with open(path, "rb") as file:
        data = base64.b64encode(file.read()).decode("utf-8")
    return {"images": [{"filename": "a.png", "type": "base64", "data": data}]}


if __name__ == "__main__":
    runpod.serverless.start({"handler": handler})
