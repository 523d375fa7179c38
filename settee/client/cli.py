"""The command line of client.py, as small as the demo needs it."""

from __future__ import annotations

import argparse
import base64
import json
import re
import sys
from pathlib import Path
from typing import Any

import requests

from settee.workflow import natural_key

#: Outputs of every kind come in these lists of the result.
KINDS = ("images", "videos", "audio", "models_3d", "texts", "files")


def main(argv: list[str] | None = None) -> int:
    """0: every file is saved. 4: the job failed. 6: the worker cannot be reached. (argparse: 2 for usage.)"""
    args = _parser().parse_args(argv)
    try:
        job = {"input": _payload(args.workflow, args.img)}
    except (OSError, ValueError) as error:
        print(f"client: {error}", file=sys.stderr)
        return 2
    try:
        response = requests.post(f"{args.url.rstrip('/')}/runsync", json=job, timeout=(10, args.timeout))
        response.raise_for_status()
        answer = response.json()
    except (requests.RequestException, ValueError) as error:
        print(f"client: no answer from {args.url}: {error}", file=sys.stderr)
        return 6
    if answer.get("status") != "COMPLETED":
        print(f"client: the job failed: {answer.get('error') or answer}", file=sys.stderr)
        return 4
    for path in _save(answer["output"], args.out):
        print(path)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Send a workflow (API format) to a worker and save its outputs.")
    parser.add_argument("workflow", type=Path, help="workflow in API format")
    parser.add_argument(
        "--img", type=Path, nargs="*", default=[], help="images for the LoadImage nodes, lowest id first"
    )
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="base URL of the worker's API")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for what comes back")
    parser.add_argument("--timeout", type=float, default=600, help="seconds to wait for the result")
    return parser


def _payload(path: Path, images: list[Path]) -> dict[str, Any]:
    workflow = json.loads(path.read_text(encoding="utf-8"))
    loaders = sorted((i for i, node in workflow.items() if node.get("class_type") == "LoadImage"), key=natural_key)
    if len(images) > len(loaders):
        raise ValueError(f"{len(images)} images, but {path.name} has {len(loaders)} LoadImage node(s)")
    payload: dict[str, Any] = {"workflow": workflow, "images": []}
    for node_id, image in zip(loaders, images, strict=False):
        name = f"{node_id.replace(':', '_')}{image.suffix.lower()}"
        workflow[node_id]["inputs"]["image"] = name
        payload["images"].append({"name": name, "image": base64.b64encode(image.read_bytes()).decode()})
    return payload


def _save(output: dict[str, Any], folder: Path) -> list[Path]:
    """Write every file under a name of our own choosing: the server's is only a hint."""
    folder.mkdir(parents=True, exist_ok=True)
    saved = []
    for kind in KINDS:
        for item in output.get(kind) or ():
            name = re.sub(r"[^\w.-]", "_", Path(item["filename"]).name).lstrip(".") or "output"
            path = folder / name
            if item["type"] == "base64":
                path.write_bytes(base64.b64decode(item["data"]))
            elif item["type"] == "text":
                path.write_text(item["data"], encoding="utf-8")
            else:
                response = requests.get(item["data"], timeout=60)
                response.raise_for_status()
                path.write_bytes(response.content)
            saved.append(path)
    return saved
