"""ComfyUI's event socket and its messages, which report early how a prompt goes. The truth is in history and queue.

Shared by the worker's watcher and the client's bare ComfyUI. websocket-client is imported when a socket is opened.
"""

from __future__ import annotations

import contextlib
import selectors
import socket as sockets
import struct
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from settee.base.json_io import loads

if TYPE_CHECKING:
    import websocket

    from settee.base.job import Cancel

#: A frame that has begun must be complete within this, or the connection counts as broken.
_FRAME_TIMEOUT_S = 10.0
#: select() takes no descriptor above 1023; Windows has nothing else.
_Selector = getattr(selectors, "PollSelector", selectors.SelectSelector)
#: Each of these repeats the state of every node: 2 MB for a graph of 102 nodes (many_nodes.json). Its content
#: comes in smaller messages too, so it is skipped unparsed.
_SKIPPED = (b'{"type": "progress_state"', b'{"type":"progress_state"')
_BINARY_IMAGE = 1
_BINARY_IMAGE_WITH_METADATA = 4

#: Sends its pictures over the socket; history has nothing of them (big_ws_message.json).
PICTURE_NODE = "SaveImageWebsocket"

#: The very first message to send: previews then name their node (success_ksampler_preview_metadata.json).
FEATURES = '{"type": "feature_flags", "data": {"supports_preview_metadata": true}}'


@dataclass(frozen=True)
class Event:
    type: str
    data: dict[str, Any]


@dataclass(frozen=True)
class ImageEvent:
    """A picture sent over the socket: a preview, or the output of SaveImageWebsocket."""

    #: Known when the server speaks preview metadata; else the node that executes.
    node_id: str | None
    media_type: str
    content: bytes
    #: ComfyUI's own previews of a sampler's steps are JPEG and, by FEATURES, come with metadata. Whatever else is sent
    #: was made to be kept: SaveImageWebsocket's PNG comes with metadata too, external-tooling nodes send without.
    is_preview: bool = False


def text_event(raw: bytes) -> Event | None:
    """Read a text frame; None for one that is skipped, or has another shape."""
    if raw.startswith(_SKIPPED):
        return None
    try:
        message = loads(raw)
        return Event(str(message["type"]), dict(message["data"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def remaining(status: Event) -> int | None:
    """Return how many prompts wait or run, by a ``status`` event; None when it does not state it."""
    said: Any = status.data
    for key in ("status", "exec_info", "queue_remaining"):
        said = said.get(key) if isinstance(said, dict) else None
    return said if isinstance(said, int) else None


def image_event(raw: bytes) -> ImageEvent | None:
    """Read a binary frame: event number (4 bytes), then image type or metadata length (4 bytes), big-endian."""
    if len(raw) < 8:
        return None
    kind, number = struct.unpack(">II", raw[:8])
    if kind == _BINARY_IMAGE:
        return ImageEvent(None, "image/png" if number == 2 else "image/jpeg", raw[8:])
    if kind == _BINARY_IMAGE_WITH_METADATA:
        try:
            metadata = loads(raw[8 : 8 + number])
        except (ValueError, RecursionError):
            return None
        if not isinstance(metadata, dict):
            return None
        node_id = metadata.get("node_id")
        media_type = str(metadata.get("image_type") or "image/jpeg")
        content, is_preview = raw[8 + number :], media_type == "image/jpeg"
        return ImageEvent(str(node_id) if node_id is not None else None, media_type, content, is_preview)
    return None


class SocketLost(Exception):
    """The event socket is closed. The prompt may well go on."""


class EventSocket:
    """One connection under a client id, read by one thread.

    A second connection under a client id that is still in use makes the server forget the newer one
    (reconnect_takeover.json), so :meth:`reconnect` closes the old one first, and a socket that was ever
    reconnected is not kept for the next job (`pristine`).
    """

    def __init__(self, url: str, client_id: str | None = None) -> None:
        """``url`` is the server's, http(s)://…; ``client_id``: by default one that nothing else has."""
        scheme, rest = url.split("://", 1)
        self._url = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/ws?clientId="
        self.client_id = client_id or uuid.uuid4().hex
        self._ws: websocket.WebSocket | None = None
        self.pristine = True
        #: How many prompts wait or run, all clients' together, by the server's last word; None before its first.
        self.remaining: int | None = None
        #: The most that it ever said; set it to 0 to begin again.
        self.peak = 0

    @property
    def is_open(self) -> bool:
        return self._ws is not None

    def connect(self, timeout_s: float = 5.0) -> None:
        """Open the socket and wait for the server's greeting: events of what is submitted from now on have an address.

        Raises SocketLost.
        """
        import websocket

        with self._lost_on_failure():
            self._ws = websocket.create_connection(
                self._url + self.client_id,
                timeout=timeout_s,
                skip_utf8_validation=True,
                enable_multithread=False,
                redirect_limit=0,
            )
            self._ws.send(FEATURES)
        for event in self.receive(time.monotonic() + timeout_s):
            if isinstance(event, Event) and event.type == "status" and "sid" in event.data:
                return
        self.close()
        raise SocketLost("no greeting")

    def reconnect(self, timeout_s: float = 2.0) -> None:
        self.close()
        self.pristine = False
        self.connect(timeout_s)

    def receive(self, until: float, cancel: Cancel | None = None) -> Iterator[Event | ImageEvent]:
        """Yield events as they come until ``until`` (time.monotonic()) or until ``cancel`` is set.

        Raises SocketLost when the connection ends.
        """
        with self._selector(cancel) as selector:
            while self._is_readable(selector, until - time.monotonic()):
                event = self._read()
                if event is not None:
                    yield event
                if time.monotonic() >= until or (cancel is not None and cancel.is_set()):
                    return

    def drain(self) -> None:
        """Throw away what came since the last job. Raises SocketLost when the server closed meanwhile."""
        give_up = time.monotonic() + 1.0
        with self._selector(None) as selector:
            while self._is_readable(selector, 0.0):
                self._read()
                if time.monotonic() > give_up:
                    raise SocketLost("a flood of messages of others")

    def ping(self) -> None:
        """Send a frame, which keeps an idle connection from being forgotten on its way. Raises SocketLost."""
        with self._lost_on_failure():
            self._open_ws().ping()

    def shut(self) -> None:
        """End the connection, from any thread; the one that reads gets SocketLost, and closes it."""
        sock: Any = getattr(self._ws, "sock", None)
        if sock is not None:
            with contextlib.suppress(OSError):
                sock.shutdown(sockets.SHUT_RDWR)

    def close(self) -> None:
        ws, self._ws = self._ws, None
        if ws is not None:
            # No closing handshake: a frozen server would not answer it.
            ws.shutdown()  # type: ignore[no-untyped-call]  # the library has no annotation here

    def _selector(self, cancel: Cancel | None) -> selectors.BaseSelector:
        """Return what waits for the socket and the cancel token."""
        sock: Any = self._open_ws().sock
        selector: selectors.BaseSelector = _Selector()
        for each in (sock, cancel):
            if each is not None:
                selector.register(each, selectors.EVENT_READ)
        return selector

    def _is_readable(self, selector: selectors.BaseSelector, timeout_s: float) -> bool:
        """Return True when there is something to read; False at the timeout, or when the cancel token is set."""
        sock: Any = self._open_ws().sock
        # TLS may hold bytes that poll cannot see.
        pending = getattr(sock, "pending", None)
        if pending is not None and pending():
            return True
        return any(key.fileobj is sock for key, _ in selector.select(max(0.0, timeout_s)))

    def _open_ws(self) -> websocket.WebSocket:
        ws = self._ws
        if ws is None or ws.sock is None:
            raise SocketLost("closed")
        return ws

    @contextlib.contextmanager
    def _lost_on_failure(self) -> Iterator[None]:
        import websocket

        try:
            yield
        except (OSError, ValueError, websocket.WebSocketException) as error:
            self.close()
            raise SocketLost(type(error).__name__) from error

    def _read(self) -> Event | ImageEvent | None:
        import websocket

        ws = self._open_ws()
        with self._lost_on_failure():
            ws.settimeout(_FRAME_TIMEOUT_S)
            opcode, raw = ws.recv_data(control_frame=True)
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            self.close()
            raise SocketLost("closed by the server")
        if opcode == websocket.ABNF.OPCODE_BINARY:
            return image_event(raw)
        event = text_event(raw) if opcode == websocket.ABNF.OPCODE_TEXT else None
        if event is not None and event.type == "status":
            self.remaining = remaining(event)
            self.peak = max(self.peak, self.remaining or 0)
        return event
