"""A receiver of callbacks on loopback that fails on purpose.

``rule(call)`` says what becomes of each request: a Response, which may also be slow, cut or silent. Everything that
came is kept in ``calls``, in the order in which it was read. ``down()`` closes the port, ``up()`` opens it again.
"""

from __future__ import annotations

import contextlib
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.support.waiting import eventually


@dataclass
class Call:
    """One request as it came."""

    number: int
    path: str
    #: Names in lower case.
    headers: dict[str, str]
    raw: bytes
    #: ``time.monotonic()`` when it had been read, and when it was answered.
    at: float = field(default_factory=time.monotonic)
    answered_at: float | None = None
    #: What it was answered; None: nothing.
    status: int | None = None

    @property
    def body(self) -> Any:
        return json.loads(self.raw)

    @property
    def key(self) -> str:
        return self.headers.get("idempotency-key", "")

    @property
    def state(self) -> str:
        return str(self.body["state"])


@dataclass(frozen=True)
class Response:
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    #: Seconds before it is answered.
    delay_s: float = 0.0
    #: The connection is cut instead of an answer.
    is_cut: bool = False
    #: Nothing is answered, and the connection stays open, until the receiver closes.
    is_silent: bool = False
    #: A byte of a header this often, without end.
    drips_every_s: float | None = None


OK = Response()
CUT = Response(is_cut=True)
SILENT = Response(is_silent=True)
Rule = Callable[[Call], Response]


def then(*responses: Response) -> Rule:
    """These, one after another, and the last one for ever."""
    left = list(responses)

    def rule(call: Call) -> Response:
        return left.pop(0) if len(left) > 1 else left[0]

    return rule


class Receiver:
    """A context manager; ``url(name)`` is where callbacks go."""

    def __init__(self, rule: Rule = lambda call: OK, *, tls: ssl.SSLContext | None = None) -> None:
        self.rule = rule
        self._tls = tls
        self.calls: list[Call] = []
        self.lock = threading.Lock()
        self.released = threading.Event()
        self.port = 0
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    def url(self, name: str = "status") -> str:
        return f"http{'s' if self._tls else ''}://127.0.0.1:{self.port}/callbacks/{name}"

    def urls(self) -> dict[str, str]:
        return {name: self.url(name) for name in ("status", "completion", "failure")}

    # --- up and down ------------------------------------------------------------------------------------------

    def up(self) -> None:
        assert self._server is None
        self._server = _Server(("127.0.0.1", self.port), _handler(self))
        self.port = int(self._server.server_address[1])
        if self._tls is not None:
            self._server.socket = self._tls.wrap_socket(
                self._server.socket, server_side=True, do_handshake_on_connect=False
            )
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()

    def down(self) -> None:
        if self._server is not None and self._thread is not None:
            self._server.shutdown()
            self._server.server_close()
            self._thread.join(5)
            self._server = None

    def __enter__(self) -> Receiver:
        self.up()
        return self

    def __exit__(self, *exc: object) -> None:
        self.released.set()
        self.down()

    # --- what came ----------------------------------------------------------------------------------------------

    @property
    def delivered(self) -> list[Call]:
        """Those that were answered with 2xx, in the order in which they came."""
        with self.lock:
            return [call for call in self.calls if call.status is not None and 200 <= call.status < 300]

    @property
    def keys(self) -> list[str]:
        return [call.key for call in self.delivered]

    @property
    def states(self) -> list[str]:
        return [call.state for call in self.delivered]

    def wait_for_key(self, key: str, timeout_s: float = 10) -> Call:
        """The call of that key which was answered with 2xx."""
        found = eventually(lambda: [call for call in self.delivered if call.key == key], timeout_s, f"a callback {key}")
        return found[0]  # type: ignore[no-any-return]

    def take(self, path: str, headers: dict[str, str], raw: bytes) -> Call:
        with self.lock:
            call = Call(len(self.calls), path, headers, raw)
            self.calls.append(call)
            return call


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    request_queue_size = 64

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that are killed or give up are what tests do."""


def _handler(receiver: Receiver) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_POST(self) -> None:
            size = int(self.headers.get("Content-Length", "0"))
            raw = self.rfile.read(size)
            if len(raw) < size:
                self.close_connection = True
                return  # who sent it was killed half-way: no receiver has heard anything
            call = receiver.take(self.path, {name.lower(): value for name, value in self.headers.items()}, raw)
            response = receiver.rule(call)
            self.close_connection = True
            if response.delay_s:
                receiver.released.wait(response.delay_s)
            if response.is_silent:
                receiver.released.wait(60)
            if response.is_silent or response.is_cut:
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
                return
            if response.drips_every_s is not None:
                self._drip(response.drips_every_s)
                return
            self._answer(call, response)

        # A redirect that was followed would come as a GET.
        def do_GET(self) -> None:
            receiver.take(self.path, {"followed": "yes"}, b"{}")
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _answer(self, call: Call, response: Response) -> None:
            # Noted first: who reads the answer may look at once.
            with receiver.lock:
                call.status, call.answered_at = response.status, time.monotonic()
            self.send_response(response.status)
            for name, value in {"Content-Length": "2", **response.headers}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(b"{}")

        def _drip(self, every_s: float) -> None:
            self.wfile.write(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while not receiver.released.wait(every_s):
                self.wfile.write(b"x")

        def log_message(self, format: str, *args: Any) -> None:
            return

    return Handler


@contextlib.contextmanager
def receiving(rule: Rule = lambda call: OK) -> Iterator[Receiver]:
    with Receiver(rule) as receiver:
        yield receiver
