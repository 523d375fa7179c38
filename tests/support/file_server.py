"""A web server for one file, on loopback: whole and by ranges, and with whatever a rule makes of an answer.

``rule(ask, reply)`` is called with every request before it is answered, and may change the reply: its status, its
headers, its body, when it is cut or falls silent, how fast it comes. What was asked is kept in ``asked``, with the
bytes of bodies that were handed to the socket.
"""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_PIECE = 64 * 1024


@dataclass
class Ask:
    """One request."""

    number: int
    method: str
    path: str
    headers: dict[str, str]
    #: First and last byte, as asked.
    span: tuple[int, int] | None
    #: Bytes of the body handed to the socket.
    sent: int = 0
    #: Which connection it came by.
    peer: int = 0
    at: float = field(default_factory=time.monotonic)


@dataclass
class Reply:
    """What is about to be answered."""

    status: int
    headers: dict[str, str]
    body: memoryview
    #: The connection is closed after so many bytes of the body.
    cut_after: int | None = None
    #: Nothing more comes after so many bytes of the body, until the server ends; -1: no head either.
    silent_after: int | None = None
    #: Bytes per second.
    rate: float | None = None
    chunked: bool = False


Rule = Callable[[Ask, Reply], None]


class FileServer:
    """``url`` is where ``data`` is; any other path has it too."""

    def __init__(self, data: bytes, *, rule: Rule = lambda ask, reply: None, tls: ssl.SSLContext | None = None) -> None:
        self.data = data
        self.rule = rule
        self.etag: str | None = '"one"'
        self.ranges = True
        #: Status of every HEAD, instead of 200.
        self.head_status: int | None = None
        self.asked: list[Ask] = []
        self.released = threading.Event()
        self.active = 0
        self.most_active = 0
        self.lock = threading.Lock()
        self._server = _Threads(("127.0.0.1", 0), _handler(self))
        self._scheme = "http" if tls is None else "https"
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.port = int(self._server.server_address[1])

    @property
    def url(self) -> str:
        return f"{self._scheme}://127.0.0.1:{self.port}/file.bin"

    @contextlib.contextmanager
    def running(self) -> Iterator[FileServer]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.released.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join(5)

    @property
    def sent(self) -> int:
        """Bytes of bodies that were handed to sockets."""
        return sum(ask.sent for ask in self.asked)

    @property
    def gets(self) -> list[Ask]:
        return [ask for ask in self.asked if ask.method == "GET"]

    def reply(self, ask: Ask) -> Reply:
        headers = {"Accept-Ranges": "bytes"} if self.ranges else {}
        if self.etag is not None:
            headers["ETag"] = self.etag
        data = memoryview(self.data)
        if ask.method == "HEAD" and self.head_status is not None:
            return Reply(self.head_status, {}, memoryview(b""))
        if ask.span is None or not self.ranges:
            return Reply(200, headers, data)
        first, last = ask.span
        if first >= len(data):
            return Reply(416, {"Content-Range": f"bytes */{len(data)}"}, memoryview(b""))
        last = min(last, len(data) - 1)
        headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
        return Reply(206, headers, data[first : last + 1])


class _Threads(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    # Clients that go away at once, and TLS clients that do not like the certificate, are what the tests are about.
    def handle_error(self, request: Any, client_address: Any) -> None:
        return


def _handler(server: FileServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 0
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            match = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range", ""))
            span = (int(match[1]), int(match[2])) if match else None
            with server.lock:
                ask = Ask(len(server.asked), self.command, self.path, dict(self.headers.items()), span)
                ask.peer = self.client_address[1]
                server.asked.append(ask)
                server.active += 1
                server.most_active = max(server.most_active, server.active)
            try:
                reply = server.reply(ask)
                server.rule(ask, reply)
                self._send(ask, reply)
            finally:
                with server.lock:
                    server.active -= 1

        do_HEAD = do_GET

        def _send(self, ask: Ask, reply: Reply) -> None:
            if reply.silent_after == -1:
                server.released.wait(60)
                self.close_connection = True
                return
            self.send_response(reply.status)
            for name, value in reply.headers.items():
                self.send_header(name, value)
            if reply.chunked:
                self.send_header("Transfer-Encoding", "chunked")
            elif "Content-Length" not in reply.headers:
                self.send_header("Content-Length", str(len(reply.body)))
            self.end_headers()
            if ask.method == "GET":
                self._send_body(ask, reply)

        def _send_body(self, ask: Ask, reply: Reply) -> None:
            stops = [at for at in (reply.cut_after, reply.silent_after, len(reply.body)) if at is not None]
            end, position, begun = min(stops), 0, time.monotonic()
            piece = _PIECE if reply.rate is None else max(1, min(_PIECE, int(reply.rate * 0.01)))
            while position < end:
                data = reply.body[position : min(end, position + piece)]
                try:
                    self.connection.sendall(b"%x\r\n%b\r\n" % (len(data), bytes(data)) if reply.chunked else data)
                except OSError:
                    self.close_connection = True
                    return
                position += len(data)
                ask.sent += len(data)
                if reply.rate is not None:
                    server.released.wait(max(0.0, begun + position / reply.rate - time.monotonic()))
            if reply.silent_after is not None and end == reply.silent_after < len(reply.body):
                server.released.wait(60)
            if end < len(reply.body):
                self.close_connection = True
                with contextlib.suppress(OSError):
                    self.connection.shutdown(socket.SHUT_RDWR)
            elif reply.chunked:
                self.connection.sendall(b"0\r\n\r\n")
            elif reply.headers.get("Connection") == "close":
                self.close_connection = True

        def log_message(self, format: str, *args: Any) -> None:
            return

    return Handler
