"""A small ComfyUI client for the contract tests: HTTP by requests, events by a socket that a thread reads."""

from __future__ import annotations

import itertools
import json
import os
import random
import struct
import threading
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import requests
import websocket

from tests.support.waiting import eventually

Graph = dict[str, dict[str, Any]]
WAIT_SECONDS = 60.0 if os.environ.get("COMFY_URL") else 15.0
"""A real sampler on a busy CPU takes its time."""


class Binary(NamedTuple):
    """A binary message: its event number and what follows it."""

    event: int
    payload: bytes


Message = dict[str, Any] | Binary


def label(message: Message) -> str:
    """A message in a few letters: ``executing:3``, ``progress:1/4``, ``status:0+sid``, ``BIN1``."""
    if isinstance(message, Binary):
        return f"BIN{message.event}"
    kind, data = message["type"], message.get("data", {})
    if kind == "status":
        remaining = data["status"]["exec_info"]["queue_remaining"]
        return f"status:{remaining}" + ("+sid" if "sid" in data else "")
    if kind in ("executing", "executed"):
        return f"{kind}:{data['node']}"
    if kind == "progress":
        return f"progress:{data['value']}/{data['max']}"
    if kind == "execution_cached":
        return f"execution_cached:{data['nodes']}"
    return str(kind)


def step_of(message: Message) -> int:
    """The value of a progress message, 0 for others."""
    is_progress = not isinstance(message, Binary) and message["type"] == "progress"
    return int(message["data"]["value"]) if is_progress else 0  # type: ignore[call-overload]


class Listener:
    """One event socket. Everything it gets is kept in ``messages``."""

    def __init__(
        self,
        url: str,
        client_id: str | None,
        first: str | None = None,
        on_message: Callable[[Message], None] = lambda _: None,
    ) -> None:
        self.client_id = client_id
        self._on_message = on_message
        self.messages: list[Message] = []
        self.closed = False
        self._news = threading.Condition()
        query = "" if client_id is None else f"?clientId={client_id}"
        self._socket = websocket.create_connection(url + query, timeout=WAIT_SECONDS, skip_utf8_validation=True)
        if first is not None:
            self._socket.send(first)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()
        self.wait_for(lambda message: label(message).endswith("+sid"))

    def _read(self) -> None:
        try:
            self._socket.settimeout(None)
            while True:
                opcode, data = self._socket.recv_data()
                if opcode == websocket.ABNF.OPCODE_CLOSE:
                    break
                with self._news:
                    self.messages.append(_decoded(opcode, data))
                    self._on_message(self.messages[-1])
                    self._news.notify_all()
        except (OSError, websocket.WebSocketException):
            pass  # the other side is gone, or close() was called
        with self._news:
            self.closed = True
            self._news.notify_all()

    def wait_for(self, wanted: Callable[[Message], bool], seconds: float = WAIT_SECONDS, count: int = 1) -> Message:
        """The count-th message so far that is wanted; fails after a time, or when the socket closed."""

        def found() -> Message | None:
            hits = (message for message in self.messages if wanted(message))
            return next(itertools.islice(hits, count - 1, None), None)

        with self._news:
            self._news.wait_for(lambda: found() is not None or self.closed, seconds)
            message = found()
        assert message is not None, f"not received; got {self.labels()}, closed: {self.closed}"
        return message

    def wait_label(self, wanted: str, count: int = 1) -> Message:
        """wait_for by label."""
        return self.wait_for(lambda message: label(message) == wanted, count=count)

    def wait_end(self, prompt_id: str) -> None:
        """Wait for the last message of a prompt."""
        self.wait_for(
            lambda message: (
                not isinstance(message, Binary)
                and message["type"] == "executing"
                and message["data"] == {"node": None, "prompt_id": prompt_id}
            )
        )

    def wait_closed(self, seconds: float = WAIT_SECONDS) -> None:
        """Wait until the other side closed or reset the connection."""
        with self._news:
            self._news.wait_for(lambda: self.closed, seconds)
        assert self.closed

    def labels(self) -> list[str]:
        """Every message so far in a few letters."""
        return [label(message) for message in self.messages]

    def say(self, text: str) -> None:
        """Send a text message."""
        self._socket.send(text)

    def close(self) -> None:
        """Leave, and wait until the server knows."""
        self._socket.close()
        self._thread.join(WAIT_SECONDS)


def _decoded(opcode: int, data: bytes) -> Message:
    if opcode == websocket.ABNF.OPCODE_BINARY:
        return Binary(struct.unpack(">I", data[:4])[0], data[4:])
    message: dict[str, Any] = json.loads(data)
    return message


class Comfy:
    """One server under test."""

    def __init__(
        self,
        url: str,
        input_dir: Path | None = None,
        output_dir: Path | None = None,
        temp_dir: Path | None = None,
        is_real: bool = False,
    ) -> None:
        self.url = url
        self.input_dir, self.output_dir, self.temp_dir = input_dir, output_dir, temp_dir
        self.is_real = is_real
        self.session = requests.Session()
        self._listeners: list[Listener] = []

    def get(self, path: str, **more: Any) -> requests.Response:
        """GET a path."""
        return self.session.get(self.url + path, timeout=WAIT_SECONDS, **more)

    def post(self, path: str, **more: Any) -> requests.Response:
        """POST to a path."""
        return self.session.post(self.url + path, timeout=WAIT_SECONDS, **more)

    def listen(self, client_id: str | None = None, first: str | None = None) -> Listener:
        """Open a socket, under a new client id when none is given."""
        listener = Listener(self.url.replace("http", "ws", 1) + "/ws", client_id or uuid.uuid4().hex, first)
        self._listeners.append(listener)
        return listener

    def listen_unnamed(self) -> Listener:
        """Open a socket without a client id."""
        listener = Listener(self.url.replace("http", "ws", 1) + "/ws", None)
        self._listeners.append(listener)
        return listener

    def submit(self, graph: Graph, listener: Listener | None = None, **fields: Any) -> str:
        """Queue a graph and give its prompt id."""
        body = {"prompt": graph, **fields}
        if listener is not None:
            body["client_id"] = listener.client_id
        answer = self.post("/prompt", json=body)
        assert answer.status_code == 200, answer.text
        prompt_id: str = answer.json()["prompt_id"]
        return prompt_id

    def run(self, graph: Graph, listener: Listener | None = None, **fields: Any) -> dict[str, Any]:
        """Queue a graph and wait for its entry of history."""
        prompt_id = self.submit(graph, listener, **fields)
        if listener is not None:
            listener.wait_end(prompt_id)
        return self.wait_history(prompt_id)

    def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The entry of a prompt, None while there is none."""
        return self.get(f"/history/{prompt_id}").json().get(prompt_id)  # type: ignore[no-any-return]

    def wait_history(self, prompt_id: str, seconds: float = WAIT_SECONDS) -> dict[str, Any]:
        """The entry of a prompt, waited for."""
        return eventually(lambda: self.history(prompt_id), seconds)

    def wait_idle(self) -> None:
        """Wait until nothing runs and nothing waits."""
        eventually(
            lambda: self.get("/prompt").json()["exec_info"]["queue_remaining"] == 0, WAIT_SECONDS, "an idle server"
        )

    def view(self, entry: dict[str, str]) -> bytes:
        """The bytes of a file that history or an executed message named."""
        answer = self.get("/view", params=entry)
        assert answer.status_code == 200
        return answer.content

    def upload(self, name: str, data: bytes, **fields: str) -> dict[str, str]:
        """Upload an input file; overwrites."""
        form = {"overwrite": "true", **fields}
        answer = self.post("/upload/image", files={"image": (name, data, "image/png")}, data=form)
        assert answer.status_code == 200, answer.text
        return answer.json()  # type: ignore[no-any-return]

    def close(self) -> None:
        """Close every socket; cached connections stay for the next test."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()


_COLORS: Iterator[int] = iter(random.sample(range(1 << 24), 10_000))


def empty_to_save(prefix: str = "rec", batch: int = 1, color: int | None = None) -> Graph:
    """EmptyImage into SaveImage, in a colour no other test uses."""
    return {
        "1": empty(batch, color),
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": prefix}},
    }


def empty(batch: int = 1, color: int | None = None) -> dict[str, Any]:
    """An EmptyImage node of 64 x 64."""
    inputs = {"width": 64, "height": 64, "batch_size": batch, "color": next(_COLORS) if color is None else color}
    return {"class_type": "EmptyImage", "inputs": inputs}


def sampler_graph(steps: int, delay_ms: int = 20, prefix: str = "sd") -> Graph:
    """The embedded server's stand-in for a checkpoint, a sampler and a saver."""
    seed = random.randrange(1 << 32)
    sampler = {"image": ["1", 0], "seed": seed, "steps": steps, "delay_ms": delay_ms}
    return {
        "1": empty(),
        "3": {"class_type": "SetteeSampler", "inputs": sampler},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": prefix}},
    }


def ksampler_graph(steps: int, checkpoint: str) -> Graph:
    """A real sampler, for a real server with a small checkpoint."""
    sampler = {
        "seed": random.randrange(1 << 32),
        "steps": steps,
        "cfg": 5.0,
        "denoise": 1.0,
        "sampler_name": "euler",
        "scheduler": "normal",
        "model": ["4", 0],
        "positive": ["6", 0],
        "negative": ["7", 0],
        "latent_image": ["5", 0],
    }
    return {
        "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": checkpoint}},
        "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}},
        "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad", "clip": ["4", 1]}},
        "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}},
        "3": {"class_type": "KSampler", "inputs": sampler},
        "8": {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["4", 2]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "sd"}},
    }
