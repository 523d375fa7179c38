"""The HTTP server on loopback under every double of the tests: it fails on purpose.

A double overrides ``answer(ask)``, which returns a Reply: a status, headers and a body, and what goes wrong on the
way. The server cuts, falls silent, drips or slows down accordingly, keeps every request in ``asked``, and ends
whatever still hangs when it closes.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import struct
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qs, urlsplit

from requests.structures import CaseInsensitiveDict
from typing_extensions import Self

_PIECE = 64 * 1024


@dataclass
class Ask:
    """One request."""

    method: str
    #: As it was sent, query included.
    path: str
    headers: CaseInsensitiveDict[str]
    connection: socket.socket
    _stream: Any
    #: The port at the other end: which connection it came by.
    peer: int = 0
    number: int = -1
    _read: bytearray = field(default_factory=bytearray)
    #: ``time.monotonic()`` when it came, and when its answer began.
    at: float = field(default_factory=time.monotonic)
    answered_at: float | None = None
    #: Status that was answered; None: nothing was.
    status: int | None = None
    #: Bytes of the answer's body that were handed to the socket.
    sent: int = 0
    #: First and last byte, as asked.
    span: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if match := re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", "")):
            self.span = (int(match[1]), int(match[2]))

    @property
    def route(self) -> str:
        """The path without its query."""
        return urlsplit(self.path).path

    @property
    def query(self) -> dict[str, list[str]]:
        return parse_qs(urlsplit(self.path).query, keep_blank_values=True)

    @property
    def raw(self) -> bytes:
        """What has been read of the body."""
        return bytes(self._read)

    @property
    def received(self) -> int:
        """Bytes that have been read of the body."""
        return len(self._read)

    @property
    def unread(self) -> int:
        return int(self.headers.get("Content-Length", "0")) - self.received

    def read(self, size: int | None = None) -> bytes:
        """Read the body, or ``size`` more bytes of it; shorter if the client is gone."""
        left = self.unread if size is None else min(size, self.unread)
        while left and (piece := self._stream.read1(min(_PIECE, left))):
            self._read += piece
            left -= len(piece)
        return self.raw


@dataclass
class Reply:
    """An answer, and its faults. Offsets are bytes of the body."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    #: Bytes, or what writes them to the connection.
    body: bytes | memoryview | Callable[[Ask], None] = b""
    #: Seconds before anything is answered.
    delay_s: float = 0.0
    #: The connection is closed after so many bytes; -1: before the head.
    cut_after: int | None = None
    #: Nothing more comes after so many bytes, until the server ends; -1: no head either.
    silent_after: int | None = None
    #: Bytes per second.
    rate: float | None = None
    #: A byte of a header this often, without end.
    head_drips_every_s: float | None = None
    chunked: bool = False


class HttpDouble:
    """A context manager; ``origin`` is where it listens."""

    #: The class of what is kept in ``asked``.
    kind: ClassVar[type[Ask]] = Ask
    #: Whether bodies are left for ``answer`` to read. A request whose sender goes away before its end never came.
    reads_lazily = False
    #: Whether a connection may serve a second request.
    keeps_alive = True

    def __init__(self, *, tls: ssl.SSLContext | None = None, port: int = 0, host: str = "127.0.0.1") -> None:
        self._tls = tls
        self._host = host
        self.port = port
        self.asked: list[Any] = []
        #: Set when the server ends: nothing waits any longer.
        self.released = threading.Event()
        self.lock = threading.Lock()
        self.idle = threading.Condition(self.lock)
        #: Requests being answered: now, and at most.
        self.active = self.most_active = 0
        #: Of them, those that say nothing more until the server ends.
        self.hanging = 0
        self._connections: set[socket.socket] = set()
        self._server: _Server | None = None

    def answer(self, ask: Any) -> Reply:
        raise NotImplementedError

    @property
    def origin(self) -> str:
        return f"http{'s' if self._tls else ''}://{self._host}:{self.port}"

    # --- up and down --------------------------------------------------------------------------------------------

    def up(self) -> None:
        assert self._server is None
        self._server = _Server(self, self.port, self._tls)
        self.port = int(self._server.server_address[1])
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()

    def down(self) -> None:
        """Close the port; answers that have begun go on."""
        if self._server is not None:
            self._server.shutdown()
            self._server.server_close()
            self._server = None

    def close(self) -> None:
        self.released.set()
        self.down()
        self.hang_up()

    def hang_up(self) -> None:
        """Close every connection: requests that are still on their way get no answer."""
        with self.lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def __enter__(self) -> Self:
        self.up()
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # --- for the connections ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def connected(self, connection: socket.socket) -> Any:
        with self.lock:
            self._connections.add(connection)
        try:
            yield
        finally:
            with self.lock:
                self._connections.discard(connection)

    def hang(self) -> None:
        """Say nothing more, until the server ends: an answer that is not waited for."""
        with self.idle:
            self.hanging += 1
            self.idle.notify_all()
        self.released.wait(60)

    def settle(self) -> None:
        """Wait until what was asked is answered: a client has its last byte before the server has noted it."""
        with self.idle:
            self.idle.wait_for(lambda: self.active <= self.hanging, 1.0)

    @contextlib.contextmanager
    def answering(self, ask: Ask) -> Any:
        with self.lock:
            ask.number = len(self.asked)
            self.asked.append(ask)
            self.active += 1
            self.most_active = max(self.most_active, self.active)
        try:
            yield
        finally:
            with self.idle:
                self.active -= 1
                self.idle.notify_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, double: HttpDouble, port: int, tls: ssl.SSLContext | None) -> None:
        self.double = double
        super().__init__(("127.0.0.1", port), _Handler)
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that go away, and TLS clients that do not like the certificate, are what tests are about."""
        if not isinstance(sys.exc_info()[1], (OSError, ValueError)):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Server

    def handle(self) -> None:
        with self.server.double.connected(self.connection):
            super().handle()

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are kept in ``asked`` instead."""

    def _serve(self) -> None:
        double = self.server.double
        ask = double.kind(
            self.command,
            self.path,
            CaseInsensitiveDict(self.headers.items()),
            self.connection,
            self.rfile,
            self.client_address[1],
        )
        self.close_connection = self.close_connection or not double.keeps_alive
        if not double.reads_lazily:
            ask.read()
            if ask.unread:
                self.close_connection = True
                return
        with double.answering(ask):
            try:
                self._send(ask, double.answer(ask))
            except OSError:
                self._reset()
        self.close_connection = self.close_connection or ask.unread > 0

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = _serve

    def _send(self, ask: Ask, reply: Reply) -> None:
        released = self.server.double.released
        if reply.delay_s:
            released.wait(reply.delay_s)
        if reply.silent_after == -1:
            self.server.double.hang()
        if -1 in (reply.silent_after, reply.cut_after):
            self._hang_up()
            return
        if reply.head_drips_every_s is not None:
            self.connection.sendall(b"HTTP/1.1 200 OK\r\nX-Long: ")
            while not released.wait(reply.head_drips_every_s):
                self.connection.sendall(b"x")
            self._hang_up()
            return
        headers = CaseInsensitiveDict(reply.headers)
        if reply.chunked:
            headers["Transfer-Encoding"] = "chunked"
        elif not callable(reply.body):
            headers.setdefault("Content-Length", str(len(reply.body)))
        if headers.get("Connection") == "close":
            self.close_connection = True
        lines = [f"HTTP/1.1 {reply.status} {_phrase(reply.status)}", *(f"{k}: {v}" for k, v in headers.items())]
        head = "\r\n".join([*lines, "", ""]).encode("latin-1", "replace")
        # Noted first: who reads the answer may look at once.
        ask.status, ask.answered_at = reply.status, time.monotonic()
        if ask.method == "HEAD":
            self.connection.sendall(head)
        elif callable(reply.body):
            self.connection.sendall(head)
            reply.body(ask)
        else:
            self._send_body(ask, reply, head, memoryview(reply.body))

    def _send_body(self, ask: Ask, reply: Reply, head: bytes, body: memoryview) -> None:
        released = self.server.double.released
        stops = [at for at in (reply.cut_after, reply.silent_after, len(body)) if at is not None]
        end, begun = min(stops), time.monotonic()
        size = _PIECE if reply.rate is None else max(1, min(_PIECE, int(reply.rate * 0.01)))
        # One write where it fits one: a head and a body in two packets cost a delayed acknowledgement.
        while head or ask.sent < end:
            piece = bytes(body[ask.sent : min(end, ask.sent + size)])
            self.connection.sendall(
                head + (b"%x\r\n%b\r\n" % (len(piece), piece) if reply.chunked and piece else piece)
            )
            head = b""
            ask.sent += len(piece)
            if reply.rate is not None:
                released.wait(max(0.0, begun + ask.sent / reply.rate - time.monotonic()))
        if end == reply.silent_after and end < len(body):
            self.server.double.hang()
        if end < len(body):
            self._hang_up()
        elif reply.chunked:
            self.connection.sendall(b"0\r\n\r\n")

    def _hang_up(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _reset(self) -> None:
        """Close with RST instead of FIN: no client can take it for the end of a body."""
        with contextlib.suppress(OSError):
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._hang_up()


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return "Unknown"
