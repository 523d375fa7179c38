"""ComfyUI's event socket: what tells early how a prompt goes. Never the truth; see watcher.py."""

from __future__ import annotations

import logging
import math
import select
import time
import uuid
from collections.abc import Iterator
from typing import Any

import websocket

from settee.base.job import Cancel
from settee.base.json_io import loads
from settee.comfyui.messages import FEATURES, Event, ImageEvent, image_event, remaining, text_event

log = logging.getLogger(__name__)

#: A frame that has begun must be complete within this, or the connection counts as broken.
_FRAME_TIMEOUT_S = 10.0


class SocketLost(Exception):
    """The event socket is closed. The prompt may well go on."""


class EventSocket:
    """One connection with a client id of its own.

    A second connection under a client id that is still in use makes the server forget the newer one
    (reconnect_takeover.json), so :meth:`reconnect` closes the old one first, and a socket that was ever
    reconnected is not kept for the next job (`pristine`).
    """

    def __init__(self, url: str) -> None:
        scheme, rest = url.split("://", 1)
        self._url = f"{'wss' if scheme == 'https' else 'ws'}://{rest}/ws?clientId="
        self.client_id = uuid.uuid4().hex
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
        """Open the socket and wait for the server's greeting. Raises SocketLost."""
        try:
            ws = websocket.create_connection(
                self._url + self.client_id, timeout=timeout_s, skip_utf8_validation=True, enable_multithread=False
            )
        except (OSError, websocket.WebSocketException) as error:
            raise SocketLost(str(error)) from error
        self._ws = ws
        try:
            ws.send(FEATURES)
        except (OSError, websocket.WebSocketException) as error:
            self._lose()
            raise SocketLost(str(error)) from error
        # The greeting proves that the server knows this client id: events of a prompt submitted from now on
        # have an address.
        deadline = time.monotonic() + timeout_s
        for event in self.receive(deadline, None):
            if isinstance(event, Event) and event.type == "status" and "sid" in event.data:
                return
        self._lose()
        raise SocketLost("no greeting")

    def reconnect(self, timeout_s: float = 2.0) -> None:
        self._lose()
        self.pristine = False
        self.connect(timeout_s)

    def receive(self, until: float, cancel: Cancel | None) -> Iterator[Event | ImageEvent]:
        """Events as they come until ``until`` (time.monotonic()) or until ``cancel`` is set.

        Raises SocketLost when the connection ends.
        """
        poll = self._poll(cancel)
        while self._readable(poll, until - time.monotonic()):
            event = self._read()
            if event is not None:
                yield event
            if time.monotonic() >= until or (cancel is not None and cancel.is_set()):
                return

    def drain(self) -> None:
        """Throw away what came since the last job. Raises SocketLost when the server closed meanwhile."""
        poll, give_up = self._poll(None), time.monotonic() + 1.0
        while self._readable(poll, 0.0):
            self._read()
            if time.monotonic() > give_up:
                raise SocketLost("a flood of messages of others")

    def close(self) -> None:
        self._lose()

    def _poll(self, cancel: Cancel | None) -> select.poll:
        """For the socket and the cancel token; poll, because select takes no descriptor above 1023."""
        poll = select.poll()
        sock: Any = self._open_ws().sock
        poll.register(sock, select.POLLIN)
        if cancel is not None:
            poll.register(cancel, select.POLLIN)
        return poll

    def _readable(self, poll: select.poll, timeout_s: float) -> bool:
        """Whether there is something to read before the timeout, or the cancel token, is there."""
        sock: Any = self._open_ws().sock
        # TLS may hold bytes that poll cannot see.
        pending = getattr(sock, "pending", None)
        if pending is not None and pending():
            return True
        own = sock.fileno()
        return any(fd == own for fd, _ in poll.poll(max(0, math.ceil(timeout_s * 1000))))

    def _open_ws(self) -> websocket.WebSocket:
        ws = self._ws
        if ws is None or ws.sock is None:
            raise SocketLost("closed")
        return ws

    def _read(self) -> Event | ImageEvent | None:
        ws = self._open_ws()
        try:
            ws.settimeout(_FRAME_TIMEOUT_S)
            opcode, raw = ws.recv_data()
        except (OSError, websocket.WebSocketException) as error:
            self._lose()
            raise SocketLost(str(error)) from error
        if opcode == websocket.ABNF.OPCODE_CLOSE:
            self._lose()
            raise SocketLost("closed by the server")
        if opcode == websocket.ABNF.OPCODE_BINARY:
            return image_event(raw, loads)
        event = text_event(raw, loads)
        if event is not None and event.type == "status":
            self.remaining = remaining(event)
            self.peak = max(self.peak, self.remaining or 0)
        return event

    def _lose(self) -> None:
        ws, self._ws = self._ws, None
        if ws is not None:
            # No closing handshake: a frozen server would not answer it.
            ws.shutdown()  # type: ignore[no-untyped-call]  # the library has no annotation here
