"""Messages to the clients of the event socket."""

from __future__ import annotations

import asyncio
import contextlib
import json
import struct
import time
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any, NamedTuple

import aiohttp
from aiohttp import web
from PIL import Image, ImageOps

PREVIEW = 1
"""Binary event: 4 bytes image type, then the encoded image."""
PREVIEW_WITH_METADATA = 4
"""Binary event: 4 bytes metadata length, JSON metadata, then the encoded image."""


class PreviewImage(NamedTuple):
    """An image on its way to a client: ``JPEG`` or ``PNG``, and the largest side in pixels (None: as it is)."""

    format: str
    image: Image.Image
    max_size: int | None

    def message(self, metadata: dict[str, Any] | None) -> bytes:
        """Return the binary event: PREVIEW_WITH_METADATA, or PREVIEW without any."""
        if metadata is None:
            return struct.pack(">II", PREVIEW, 2 if self.format == "PNG" else 1) + self._encoded()
        described = json.dumps({**metadata, "image_type": f"image/{self.format.lower()}"}).encode()
        return struct.pack(">II", PREVIEW_WITH_METADATA, len(described)) + described + self._encoded()

    def _encoded(self) -> bytes:
        image = self.image
        if self.max_size is not None:
            image = ImageOps.contain(image, (self.max_size, self.max_size), Image.Resampling.BILINEAR)
        buffer = BytesIO()
        image.save(buffer, format=self.format, quality=95, compress_level=1)
        return buffer.getvalue()


@dataclass
class Client:
    """One connected socket."""

    socket: web.WebSocketResponse
    features: dict[str, Any] = field(default_factory=dict)


class Hub:
    """Clients by id, and an outbox that any thread may post to and one task sends from, in order."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._outbox: asyncio.Queue[tuple[str | PreviewImage, Any, Any]] = asyncio.Queue()
        self.clients: dict[Any, Client] = {}
        self.client_id: Any = None
        """The client that submitted the prompt that runs, or that ran last. Not always a string: callers may send
        anything."""
        self.last_node_id: str | None = None
        """The node that runs for client_id, which that client gets when it reconnects."""

    def post(self, event: str | PreviewImage, data: Any, client_id: Any) -> None:
        """Queue a message to one client, or to all of them when client_id is None; callable from any thread.

        The data of a picture is its metadata, None for a client that does not understand any.
        """
        self._loop.call_soon_threadsafe(self._outbox.put_nowait, (event, data, client_id))

    async def publish(self) -> None:
        """Send queued messages until the process ends.

        A client id that cannot be hashed (a list, an object) raises TypeError here and so ends the process, as it
        does in ComfyUI; that is why nothing may forward a caller's client_id unchecked.
        """
        while True:
            await self.send(*await self._outbox.get())

    async def send(self, event: str | PreviewImage, data: Any, client_id: Any) -> None:
        """Send one message now."""
        if client_id is None:
            clients = list(self.clients.values())
        else:
            clients = [self.clients[client_id]] if client_id in self.clients else []
        if not clients:
            return
        sent = json.dumps({"type": event, "data": data}) if isinstance(event, str) else event.message(data)
        for client in clients:
            with contextlib.suppress(aiohttp.ClientError, ConnectionError):  # it is leaving; its handler removes it
                await (client.socket.send_str(sent) if isinstance(sent, str) else client.socket.send_bytes(sent))


PROGRESS_SECONDS = 0.1
PROGRESS_SHARE = 0.005
"""Steps of a node are sent no closer than this to each other, but for the first, the last and those with previews."""


def place(node_id: str) -> dict[str, Any]:
    """Return the ids that ComfyUI repeats for nodes that other nodes created; here every node is its own."""
    return {"display_node_id": node_id, "parent_node_id": None, "real_node_id": node_id}


class Progress:
    """Value and maximum of every node of one prompt that was started so far."""

    def __init__(self, hub: Hub, prompt_id: str) -> None:
        self._hub = hub
        self._prompt_id = prompt_id
        self._nodes: dict[str, dict[str, Any]] = {}
        self._sent: dict[str, tuple[float, float]] = {}

    def finish(self, node_id: str) -> None:
        """Note that a node is done, or was found in the cache."""
        maximum = self._nodes[node_id]["max"] if node_id in self._nodes else 1
        self.set(node_id, maximum, maximum, "finished")

    def update(self, node_id: str, value: float, maximum: float, preview: PreviewImage | None) -> None:
        """Note that a node got further, which is not sent each time.

        A preview goes with its metadata before ``progress``, or bare after it, by what the client understands.
        """
        now = time.monotonic()
        before, then = self._sent.get(node_id, (-1.0, 0.0))
        is_worth_it = now - then >= PROGRESS_SECONDS and value - before >= PROGRESS_SHARE * maximum
        if not (preview or before < 0 or value >= maximum or is_worth_it):
            return
        self._sent[node_id] = value, now
        client_id = self._hub.client_id
        self.set(node_id, value, maximum, "running")
        client = self._hub.clients.get(client_id)
        is_detailed = client is not None and client.features.get("supports_preview_metadata")
        if preview and is_detailed:
            metadata = {"node_id": node_id, "prompt_id": self._prompt_id, **place(node_id)}
            self._hub.post(preview, metadata, client_id)
        step = {"value": value, "max": maximum, "prompt_id": self._prompt_id, "node": node_id}
        self._hub.post("progress", step, client_id)
        if preview and not is_detailed:
            self._hub.post(preview, None, client_id)

    def set(self, node_id: str, value: float, maximum: float, state: str) -> None:
        """Note where a node is, and send it."""
        self._nodes[node_id] = {
            "value": value,
            "max": maximum,
            "state": state,
            "node_id": node_id,
            "prompt_id": self._prompt_id,
            **place(node_id),
        }
        # Every message repeats every node, as from ComfyUI: a graph of 100 nodes costs 2 MB.
        message = {"prompt_id": self._prompt_id, "nodes": dict(self._nodes)}
        self._hub.post("progress_state", message, self._hub.client_id)
