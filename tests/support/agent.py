"""The GPU agent as a process, beside an embedded ComfyUI and a real S3 server."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests
import yaml

from settee.backends.comfy.process import free_port
from settee.doors.agent.contract import example
from tests.support.embedded import EmbeddedServer
from tests.support.faulty_s3 import FaultyS3
from tests.support.models import safetensors
from tests.support.receiver import Receiver
from tests.support.s3 import S3Server
from tests.support.waiting import eventually

EXAMPLE: dict[str, Any] = example("envelope")

#: The template that the seed document's envelope binds its parameters into.
TEMPLATE: dict[str, Any] = {
    "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "placeholder.safetensors"}},
    "2": {
        "class_type": "LoraLoader",
        "inputs": {
            "lora_name": "placeholder.safetensors",
            "strength_model": 1.0,
            "strength_clip": 1.0,
            "model": ["1", 0],
            "clip": ["1", 1],
        },
    },
    "3": {
        "class_type": "CLIPTextEncodeSDXL",
        "inputs": {
            "width": 1024,
            "height": 1024,
            "crop_w": 0,
            "crop_h": 0,
            "target_width": 1024,
            "target_height": 1024,
            "text_g": "",
            "text_l": "",
            "clip": ["2", 1],
        },
    },
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 1024, "height": 1024, "batch_size": 1}},
    "6": {
        "class_type": "KSampler",
        "inputs": {
            "seed": 0,
            "steps": 20,
            "cfg": 8.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
            "model": ["2", 0],
            "positive": ["3", 0],
            "negative": ["4", 0],
            "latent_image": ["5", 0],
        },
    },
    "7": {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["1", 2]}},
    "8": {"class_type": "SaveImage", "inputs": {"images": ["7", 0], "filename_prefix": "render"}},
}
TEMPLATE["4"] = copy.deepcopy(TEMPLATE["3"])


class Store:
    """Buckets with all that the seed document's envelope names."""

    def __init__(self, s3: S3Server) -> None:
        self.s3 = s3
        self.models, self.loras, self.outputs = (s3.make_bucket() for _ in range(3))
        self.put(self.models, EXAMPLE["workflow"]["minioKey"], yaml_json(TEMPLATE))
        self.put(self.models, EXAMPLE["baseModel"]["key"], safetensors(1000, 1))
        self.put(self.loras, EXAMPLE["loras"][0]["key"], safetensors(200, 2))

    def put(self, bucket: str, key: str, body: bytes, **more: Any) -> None:
        self.s3.admin.put_object(Bucket=bucket, Key=key, Body=body, **more)

    def envelope(self, receiver: Receiver | None = None, **changes: Any) -> dict[str, Any]:
        """The seed document's, at these buckets, with changes at its top level."""
        return envelope_at((self.models, self.loras, self.outputs), receiver, **changes)


def envelope_at(buckets: tuple[str, str, str], receiver: Receiver | None, **changes: Any) -> dict[str, Any]:
    """The seed document's envelope with its models, LoRAs and outputs in these buckets."""
    found: dict[str, Any] = copy.deepcopy(EXAMPLE)
    found["baseModel"]["bucket"], found["loras"][0]["bucket"], found["output"]["bucket"] = buckets
    found["callbacks"] = receiver.urls() if receiver is not None else {}
    return {**found, **changes}


def parameters(**changes: Any) -> dict[str, Any]:
    """Those of the seed document for a picture that is small and soon made, with changes."""
    small = {"steps": 2, "resolution": {"width": 64, "height": 64}}
    return {**copy.deepcopy(EXAMPLE["parameters"]), **small, **changes}


class HeldStore(FaultyS3):
    """What the seed document's envelope names, at a server that can be made to wait, which holds a job in a state."""

    buckets = ("models", "loras", "outputs")

    def __init__(self) -> None:
        super().__init__()
        self.on_request = self._wait
        self._held: str | None = None
        self._go_on = threading.Event()
        self.is_holding = threading.Event()
        self.put("models", EXAMPLE["workflow"]["minioKey"], yaml_json(TEMPLATE))
        self.put("models", EXAMPLE["baseModel"]["key"], safetensors(1000, 1))
        self.put("loras", EXAMPLE["loras"][0]["key"], safetensors(200, 2))

    def put(self, bucket: str, key: str, body: bytes) -> None:
        self.objects[f"{bucket}/{key}"] = body

    def outputs(self) -> list[str]:
        return sorted(key for key in self.objects if key.startswith("outputs/"))

    def hold(self, part: str) -> None:
        """Keep every request with this in its first line waiting."""
        self._go_on.clear()
        self.is_holding.clear()
        self._held = part

    def let_go(self) -> None:
        self._held = None
        self._go_on.set()

    def _wait(self, line: str) -> None:
        if self._held is not None and self._held in line:
            self.is_holding.set()
            self._go_on.wait(60)

    def envelope(self, receiver: Receiver | None = None, **changes: Any) -> dict[str, Any]:
        return envelope_at(self.buckets, receiver, **{"parameters": parameters(), **changes})


def yaml_json(value: Any) -> bytes:
    return json.dumps(value).encode()


class Agent:
    """``python -m settee agent`` as a subprocess. A context manager; its log is ``log_path``."""

    def __init__(self, root: Path, s3: S3Server | FaultyS3, comfy: EmbeddedServer, **options: Any) -> None:
        self.root, self.comfy = root, comfy
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.log_path = root / "agent.log"
        self.outputs = root / "outputs"
        host = s3.endpoint_url.removeprefix("http://")
        self.config: dict[str, Any] = {
            "minio": {"endpoint": host, "access_key": s3.access_key, "secret_key": s3.secret_key},
            "comfyui": {"api_url": comfy.url, "poll_interval_seconds": 0.05},
            "paths": {
                "base_models": str(comfy.root / "models" / "checkpoints"),
                "loras": str(comfy.root / "models" / "loras"),
                "workflows": str(root / "workflows"),
                "outputs": str(self.outputs),
                "temp": str(root / "temp"),
            },
            "callbacks": {"heartbeat_seconds": 0.2, "retry_backoff_seconds": 0.05, "timeout_seconds": 2},
            "server": {"port": self.port},
        }
        for name, value in options.items():
            self.config[name] = {**self.config.get(name, {}), **value} if isinstance(value, dict) else value
        self.session = requests.Session()
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> Agent:
        self.root.mkdir(parents=True, exist_ok=True)
        path = self.root / "config.yaml"
        path.write_text(yaml.safe_dump(self.config))
        with self.log_path.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "settee", "agent", "--config", str(path)],
                cwd=Path(__file__).parents[2],
                stdout=log,
                stderr=log,
                env={**os.environ, "COMFY_INTERRUPT_S": "5"},
            )
        try:
            eventually(self._is_up, 60, "the agent answers")
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        return self

    def _is_up(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log_path.read_text()
        try:
            return self.session.get(f"{self.url}/healthz", timeout=2).status_code == 200
        except requests.RequestException:
            return False

    def kill(self) -> None:
        self.end(signal.SIGKILL)

    def end(self, with_signal: int = signal.SIGTERM) -> int:
        assert self.process is not None
        self.process.send_signal(with_signal)
        try:
            return self.process.wait(30)
        finally:
            self.process.kill()
            self.process.wait()

    def __enter__(self) -> Agent:
        return self.start()

    def __exit__(self, *exc: object) -> None:
        self.session.close()
        self.stop()

    def stop(self) -> None:
        """End it, if it runs."""
        if self.process is not None and self.process.poll() is None:
            self.end()

    # --- asking -------------------------------------------------------------------------------------------

    def is_busy(self) -> bool:
        found: bool = self.session.get(f"{self.url}/healthz", timeout=5).json()["busy"]
        return found

    def state(self, job_id: str) -> str:
        return str(self.job(job_id)["state"])

    def cancel(self, token: str) -> int:
        return self.session.post(f"{self.url}/jobs/cancel", json={"token": token}, timeout=5).status_code

    def post(self, envelope: Any, **options: Any) -> requests.Response:
        return self.session.post(f"{self.url}/jobs", json=envelope, timeout=10, **options)

    def job(self, job_id: str) -> dict[str, Any]:
        answer = self.session.get(f"{self.url}/jobs/{job_id}", timeout=10)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    def ended(self, job_id: str, timeout_s: float = 40) -> dict[str, Any]:
        """How a job ended, once the slot is free again."""
        eventually(lambda: self.job(job_id)["state"] in ("SUCCESS", "FAILED", "CANCELED"), timeout_s=timeout_s)
        eventually(lambda: not self.is_busy())
        return self.job(job_id)


@contextlib.contextmanager
def comfy(root: Path, **options: Any) -> Iterator[EmbeddedServer]:
    server = EmbeddedServer(root, **options)
    server.start()
    try:
        yield server
    finally:
        server.stop()


def is_idle(server: EmbeddedServer) -> bool:
    """Whether ComfyUI runs nothing and has nothing to run."""
    queue = requests.get(f"{server.url}/queue", timeout=5).json()
    return not queue["queue_running"] and not queue["queue_pending"]


#: The states that a job goes through, and what of S3 to hold so that it stays there.
HOLDS = {
    "PREPARING": "GET /models/generator-workflows/",
    "MATERIALIZING": "GET /loras/",
    "SUBMITTED": None,
    "RUNNING": None,
    "UPLOADING": "PUT /outputs/",
}


@contextlib.contextmanager
def held_in(state: str, store: HeldStore, server: EmbeddedServer) -> Iterator[dict[str, Any]]:
    """Have jobs stay in this state; gives the parameters that a job needs for it."""
    found = parameters()
    if state == "SUBMITTED":
        server.fault("executor_dead")
    elif state == "RUNNING":
        found = parameters(steps=10_000)
    elif HOLDS.get(state):
        store.hold(HOLDS[state] or "")
    try:
        yield found
    finally:
        server.fault("executor_dead", None)
        store.let_go()
