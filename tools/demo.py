"""`make demo`: every shipped workflow through the real RunPod SDK, with the embedded ComfyUI below it.

Starts rp_handler.py under the SDK's local API, sends workflows/*.json with the example picture through client.py,
checks that what comes back opens as pictures, and ends what it started. It runs from a checkout, whatever settings of
a worker the shell has.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests

from settee import __version__
from settee.backends.comfy.process import end, free_port
from settee.base.settings import Settings, child_environment

ROOT = Path(__file__).parents[1]
START_S = 60.0


def main(argv: list[str] | None = None) -> int:
    """0 when every workflow gave its pictures."""
    parser = argparse.ArgumentParser(prog="python tools/demo.py", description="Run every workflow of workflows/ once.")
    parser.add_argument("--out", type=Path, default=Path("out"), help="folder for the pictures")
    parser.add_argument("--version", action="version", version=f"settee {__version__}")
    args = parser.parse_args(argv)
    say("The demo's ComfyUI is the embedded one: it runs nodes that need no model,\nand makes up what models would.")
    workflows = sorted((ROOT / "workflows").glob("*.json"))
    if not workflows:
        raise SystemExit(f"there are no workflows in {ROOT / 'workflows'}: run the demo from a checkout")
    failed = []
    with _worker() as url:
        for workflow in workflows:
            begun = time.monotonic()
            paths = _send(url, workflow, args.out)
            if not paths:
                failed.append(workflow.name)
            for path in paths:
                say(f"  {workflow.name:16} -> {path}  {_describe(path)}  {1000 * (time.monotonic() - begun):.0f} ms")
    if failed:
        say(f"failed: {', '.join(failed)}")
        return 1
    say(f"Done: look at {args.out}/. A workflow of your own: README.md, 'Use'.")
    return 0


def say(text: str) -> None:
    print(text, flush=True)


@contextmanager
def _worker() -> Iterator[str]:
    """rp_handler.py under the SDK's local API; its base URL once it listens."""
    port = free_port()
    command = [sys.executable, str(ROOT / "rp_handler.py"), "--demo", "--rp_api_port", str(port)]
    say("Starting the worker under RunPod's SDK ...")
    url = f"http://127.0.0.1:{port}"
    quiet = {"LOG_LEVEL": "WARNING", "RUNPOD_LOG_LEVEL": "ERROR", "UVICORN_LOG_LEVEL": "warning"}
    worker = subprocess.Popen(command, cwd=ROOT, env={**_plain(), **quiet})
    try:
        _await_listening(url, worker)
        yield url
    finally:
        end(worker, 20)


def _plain() -> dict[str, str]:
    """The shell's, without what would make this worker or its client another one than the demo's (COMFY_URL,
    BUCKET_NAME, ENCRYPTION_KEY, …)."""
    settings = {name.upper() for name in Settings.model_fields}
    return {name: value for name, value in child_environment().items() if name.upper() not in settings}


def _await_listening(url: str, worker: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if worker.poll() is not None:
            raise SystemExit(f"the worker ended with exit code {worker.returncode} before it listened")
        try:
            requests.get(f"{url}/openapi.json", timeout=2).raise_for_status()
        except requests.RequestException:
            time.sleep(0.05)  # nothing tells when the SDK's server listens
        else:
            return
    raise SystemExit(f"the worker did not listen within {START_S:g} s")


def _send(url: str, workflow: Path, out: Path) -> list[Path]:
    """The files that client.py saved; [] when it failed (its message is on the terminal)."""
    command = [sys.executable, str(ROOT / "client.py"), str(workflow), "--url", url, "--out", str(out)]
    command += ["--img", str(ROOT / "workflows" / "example.png")]
    client = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=120, env=_plain())
    return [Path(line) for line in client.stdout.splitlines()] if client.returncode == 0 else []


def _describe(path: Path) -> str:
    """Decode the picture: a file that does not open is no result."""
    from PIL import Image

    with Image.open(path) as image:
        image.load()
        return f"{image.width} x {image.height} {image.format}"


if __name__ == "__main__":
    sys.exit(main())
