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

from settee.workflow import natural_key, shape_problems

#: Outputs of every kind come in these lists of the result.
KINDS = ("images", "videos", "audio", "models_3d", "texts", "files")


class Failure(Exception):
    """What to print, and the exit code."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


def main(argv: list[str] | None = None) -> int:
    """0: every file is saved. 2: usage. 4: the job failed. 6: the worker cannot be reached."""
    args = _parser().parse_args(argv)
    try:
        args.out.mkdir(parents=True, exist_ok=True)
        output = _send(args.url, {"input": _payload(args.workflow, args.img)}, args.timeout)
        for warning in output.get("warnings") or ():
            print(f"client: {warning}", file=sys.stderr)
        for path in _save(output, args.out):
            print(path)
    except Failure as failure:
        print(f"client: {failure}", file=sys.stderr)
        return failure.code
    except OSError as error:
        print(f"client: {error.filename}: {error.strerror}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Send a workflow (API format) to a worker and save its outputs.")
    parser.add_argument("workflow", type=Path, help="workflow in API format")
    parser.add_argument(
        "--img", type=Path, nargs="*", default=[], help="images for the LoadImage nodes, lowest id first"
    )
    parser.add_argument("--url", type=_url, default="http://127.0.0.1:8000", help="base URL of the worker's API")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for what comes back")
    parser.add_argument("--timeout", type=_seconds, default=600, help="seconds to wait for the result")
    return parser


def _url(text: str) -> str:
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"{text!r} must begin with http:// or https://")
    return text.rstrip("/")


def _seconds(text: str) -> float:
    if not (seconds := float(text)) > 0:
        raise argparse.ArgumentTypeError("must be more than 0")
    return seconds


def _payload(path: Path, images: list[Path]) -> dict[str, Any]:
    try:
        workflow = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise Failure(2, f"{path} is not JSON: {error}") from error
    if not isinstance(workflow, dict):
        raise Failure(2, f"{path} holds no workflow: it must be an object of nodes")
    for problem in shape_problems(workflow, max_nodes=100_000):
        raise Failure(2, f"{path}: {problem['problem']}")
    loaders = sorted((i for i, node in workflow.items() if node["class_type"] == "LoadImage"), key=natural_key)
    if len(images) > len(loaders):
        raise Failure(2, f"{len(images)} images, but {path} has {len(loaders)} LoadImage node(s)")
    payload: dict[str, Any] = {"workflow": workflow, "images": []}
    for node_id, image in zip(loaders, images, strict=False):
        # The node's id keeps same-named files of two folders apart.
        name = f"{re.sub(r'[^A-Za-z0-9]', '_', node_id)}_{image.name}"
        workflow[node_id]["inputs"]["image"] = name
        payload["images"].append({"name": name, "image": base64.b64encode(image.read_bytes()).decode()})
    return payload


def _send(url: str, job: dict[str, Any], timeout_s: float) -> dict[str, Any]:
    """The output of the job. Raises Failure."""
    try:
        response = requests.post(f"{url}/runsync", json=job, timeout=(10, timeout_s))
        response.raise_for_status()
        answer = response.json()
    except requests.ConnectionError as error:
        raise Failure(6, f"nothing answers at {url}: is a worker running there?") from error
    except (requests.RequestException, ValueError) as error:
        raise Failure(6, f"no result from {url}: {error}") from error
    output = answer.get("output")
    if answer.get("status") != "COMPLETED" or not isinstance(output, dict):
        raise Failure(4, f"the job failed: {answer.get('error') or answer.get('status')}")
    return output


def _save(output: dict[str, Any], folder: Path) -> list[Path]:
    """Write every file under a name of our own choosing: the server's is only a hint."""
    saved: list[Path] = []
    for kind in KINDS:
        for item in output.get(kind) or ():
            path = _free_name(folder, str(item.get("filename")), saved)
            if item["type"] == "base64":
                path.write_bytes(base64.b64decode(item["data"]))
            elif item["type"] == "text":
                path.write_text(item["data"], encoding="utf-8")
            elif item["type"] == "s3_url":
                _download(item["data"], path)
            else:
                raise Failure(4, f"{item.get('filename')} lies on the worker's network volume: {item['data']}")
            saved.append(path)
    return saved


def _free_name(folder: Path, hint: str, taken: list[Path]) -> Path:
    """A plain name in the folder that no other output of this job has."""
    name = Path(re.sub(r"[^\w.-]", "_", Path(hint).name).lstrip(".") or "output")
    path, count = folder / name, 2
    while path in taken:
        path, count = folder / f"{name.stem}-{count}{name.suffix}", count + 1
    return path


def _download(url: str, path: Path) -> None:
    try:
        with requests.get(url, timeout=60, stream=True) as response, path.open("wb") as file:
            response.raise_for_status()
            for piece in response.iter_content(1024 * 1024):
                file.write(piece)
    except requests.RequestException as error:
        path.unlink(missing_ok=True)
        raise Failure(6, f"{path.name} could not be downloaded from S3") from error
