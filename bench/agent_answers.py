"""How soon the agent answers /healthz and a cancel that names no job, while it hashes and uploads a gigabyte.

    python -m bench.agent_answers [MB]

A job of the seed document's runs on the embedded ComfyUI, with a base model of 1 GB that has a checksum, from a real
S3 server. While ComfyUI samples, a file that another node saved before is made 1 GB long (with holes: the disk is not
what is measured). Meanwhile the agent is asked every 10 ms, at each request over a new connection; and so is a process
that does nothing but answer, with the same server: what it takes is the machine's own.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import requests

from settee.backends.comfy.process import free_port
from tests.support import s3 as servers
from tests.support.agent import TEMPLATE, Agent, Store, comfy, parameters
from tests.support.models import safetensors
from tests.support.waiting import eventually

#: Bytes.
SIZE = int(sys.argv[1]) * 10**6 if len(sys.argv) > 1 else 10**9
EVERY_S = 0.01
IDLE = """
import uvicorn
async def app(scope, receive, send):
    await send({{"type": "http.response.start", "status": 204, "headers": []}})
    await send({{"type": "http.response.body"}})
uvicorn.run(app, port={port}, http="h11", lifespan="off", log_config=None)
"""


class Asking:
    """Asks in a thread, and keeps how long each answer took, by the state of the job."""

    def __init__(self, agent: Agent, job_id: str, idle_url: str) -> None:
        self._idle_url = idle_url
        self.times: dict[str, list[float]] = {}
        self.idle: dict[str, list[float]] = {}
        self._agent, self._job_id, self._is_over = agent, job_id, threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self) -> Asking:
        self._thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._is_over.wait(EVERY_S):
            state = self._agent.state(self._job_id)
            for ask, times in ((self._health, self.times), (self._cancel, self.times), (self._idle, self.idle)):
                begun = time.perf_counter()
                ask()
                times.setdefault(state, []).append(1000 * (time.perf_counter() - begun))

    def _health(self) -> None:
        assert requests.get(f"{self._agent.url}/healthz", timeout=30).status_code == 200

    def _idle(self) -> None:
        assert requests.get(self._idle_url, timeout=30).status_code == 204

    def _cancel(self) -> None:
        answer = requests.post(f"{self._agent.url}/jobs/cancel", json={"token": "of nobody"}, timeout=30)
        assert answer.status_code == 404


@contextlib.contextmanager
def idle_server() -> Iterator[str]:
    port = free_port()
    process = subprocess.Popen([sys.executable, "-c", IDLE.format(port=port)])
    try:
        eventually(lambda: listens(port), 20)
        yield f"http://127.0.0.1:{port}/"
    finally:
        process.kill()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0


def grow(output: Path) -> None:
    """Make the text file that a node saves 1 GB long, as soon as it is there."""
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        for path in output.rglob("*.txt"):
            os.truncate(path, SIZE)
            return
        time.sleep(0.01)


def figures(times: list[float]) -> str:
    ninety_nine = sorted(times)[int(len(times) * 0.99)]
    return f"median {statistics.median(times):5.1f} ms, 99 % below {ninety_nine:5.1f}, slowest {max(times):5.1f}"


def main() -> int:
    root = Path(tempfile.mkdtemp(prefix="settee-bench-"))
    server, process = servers.start(root / "s3")
    try:
        store = Store(server)
        (root / "model").write_bytes(safetensors(SIZE, 1))
        with (root / "model").open("rb") as file:
            sha256 = hashlib.sha256()
            while piece := file.read(1 << 20):
                sha256.update(piece)
        server.admin.upload_file(str(root / "model"), store.models, "big.safetensors")
        graph = {**TEMPLATE, "9": {"class_type": "SetteeSaveFiles", "inputs": {"kind": "file", "filename_prefix": "x"}}}
        with comfy(root / "comfy", faults={"step_slow": 0.05}) as embedded:
            folders = {f"{name}_dir": str(root / "comfy" / name) for name in ("input", "output", "temp")}
            with Agent(root / "agent", server, embedded, comfyui=folders) as agent:
                model = {"bucket": store.models, "key": "big.safetensors", "checksum": sha256.hexdigest()}
                envelope = store.envelope(
                    jobId="big",
                    baseModel=model,
                    workflow={"id": "w", "inline": graph},
                    parameters=parameters(steps=100),
                )
                growing = threading.Thread(target=grow, args=(embedded.output_dir,))
                growing.start()
                assert agent.post(envelope).status_code == 202
                with idle_server() as idle_url, Asking(agent, "big", idle_url) as asking:
                    ended = agent.ended("big", 400)
                growing.join()
                if ended["state"] != "SUCCESS":
                    print(ended, agent.log_path.read_text()[-3000:])
                    return 1
        for state in asking.times:
            print(
                f"{state:14} {figures(asking.times[state])}; a server that only answers: {figures(asking.idle[state])}"
            )
    finally:
        servers.stop(process)
        import shutil

        shutil.rmtree(root, ignore_errors=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
