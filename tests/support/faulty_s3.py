"""An S3 server that fails on request, for what a healthy one never does.

It keeps objects in memory, believes every signature and speaks just enough of the protocol for uploads. ``faults``
are used up one per request that stores something; when there are none left, it works.
"""

from __future__ import annotations

import hashlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

OK, CUT, LOST, ERROR, HTML, HANG, SHORT = ["ok", "cut", "lost", "error", "html", "hang", "short"]
DENIED = "denied"


class FaultyS3:
    """``endpoint_url``, what it holds (``objects``, ``uploads``), what it was asked (``requests``), and its faults.

    cut     the connection ends in the middle of the body
    lost    the object is stored, but the connection ends before the answer
    error   500 InternalError
    denied  403 AccessDenied
    html    200 with a web page
    hang    no answer until the server ends
    short   an object loses its last byte
    """

    access_key = "any"
    secret_key = "any-secret"

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self.objects: dict[str, bytes] = {}
        self.uploads: dict[str, dict[int, bytes]] = {}
        self.requests: list[str] = []
        self.faults: list[str] = []
        #: Used whenever ``faults`` is empty.
        self.then = OK
        #: Whether the keys may ask for a bucket, and list it.
        self.may_look = True
        #: Called with each request's line before it is answered.
        self.on_request: Callable[[str], None] = lambda line: None
        #: Whether the last multipart upload had parts of one size, as Cloudflare's R2 insists.
        self.even = False
        self.released = threading.Event()
        self.received = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.daemon_threads = True
        if tls is not None:
            self._server.socket = tls.wrap_socket(self._server.socket, server_side=True, do_handshake_on_connect=False)
        self.endpoint_url = f"http{'s' * (tls is not None)}://127.0.0.1:{self._server.server_address[1]}"

    @contextmanager
    def running(self) -> Iterator[FaultyS3]:
        thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield self
        finally:
            self.released.set()
            self._server.shutdown()
            self._server.server_close()
            thread.join(timeout=10)

    def fault(self) -> str:
        return self.faults.pop(0) if self.faults else self.then

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        server = self

        class Handler(_Handler):
            s3 = server

        return Handler


class _Handler(BaseHTTPRequestHandler):
    s3: FaultyS3
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _answer(self, status: int, body: bytes = b"", **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        if "Content_Length" not in headers:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _refuse(self, status: int, code: str) -> None:
        self._answer(status, f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode())

    def _hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def _body(self) -> bytes:
        body = bytearray()
        length = int(self.headers.get("Content-Length", 0))
        while len(body) < length:
            chunk = self.rfile.read(min(65_536, length - len(body)))
            if not chunk:
                break
            body += chunk
            self.s3.received += len(chunk)
        return bytes(body)

    def _route(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        line = f"{self.command} {self.path}"
        self.s3.requests.append(line)
        self.s3.on_request(line)
        return unquote(parts.path.lstrip("/")), parse_qs(parts.query, keep_blank_values=True)

    def _broken(self) -> bool:
        """Whether this request was given a fault, which then has happened."""
        fault = self.s3.fault()
        if fault == CUT:
            self.rfile.read(min(50_000, int(self.headers.get("Content-Length", 0))))
            self._hang_up()
        elif fault == ERROR:
            self._body()
            self._refuse(500, "InternalError")
        elif fault == DENIED:
            self._body()
            self._refuse(403, "AccessDenied")
        elif fault == HTML:
            self._body()
            self._answer(200, b"<!doctype html><title>Welcome</title><p>It works!", Content_Type="text/html")
        elif fault == HANG:
            self._body()
            self.s3.released.wait(60)
            self._hang_up()
        elif fault in (LOST, SHORT):
            self._store(*self._route_again(), self._body()[: -1 if fault == SHORT else None])
            if fault == LOST:
                self._hang_up()
            else:
                self._answer(200, ETag='"0"')
        else:
            return False
        return True

    def _route_again(self) -> tuple[str, dict[str, list[str]]]:
        parts = urlsplit(self.path)
        return unquote(parts.path.lstrip("/")), parse_qs(parts.query, keep_blank_values=True)

    def _store(self, key: str, query: dict[str, list[str]], body: bytes) -> None:
        if self.command == "PUT" and "uploadId" in query:
            self.s3.uploads[query["uploadId"][0]][int(query["partNumber"][0])] = body
        elif self.command == "PUT":
            self.s3.objects[key] = body
        elif "uploadId" in query:
            parts = self.s3.uploads.pop(query["uploadId"][0])
            lengths = [len(parts[number]) for number in sorted(parts)]
            self.s3.even = len(set(lengths[:-1])) == 1 and 0 < lengths[-1] <= lengths[0]
            self.s3.objects[key] = b"".join(parts[number] for number in sorted(parts))

    def do_PUT(self) -> None:
        key, query = self._route()
        if self._broken():
            return
        body = self._body()
        self._store(key, query, body)
        self._answer(200, ETag=f'"{hashlib.md5(body).hexdigest()}"')

    def do_POST(self) -> None:
        key, query = self._route()
        if "uploads" in query:
            self._body()
            upload = f"upload-{len(self.s3.requests)}"
            self.s3.uploads[upload] = {}
            self._answer(200, f"<R><UploadId>{upload}</UploadId></R>".encode(), Content_Type="application/xml")
            return
        if query["uploadId"][0] not in self.s3.uploads:
            self._body()
            self._refuse(404, "NoSuchUpload")
            return
        if self._broken():
            return
        named = [int(number) for number in re.findall(rb"<PartNumber>(\d+)<", self._body())]
        assert named == sorted(self.s3.uploads[query["uploadId"][0]])
        self._store(key, query, b"")
        self._answer(200, b'<R><ETag>"x"</ETag></R>', Content_Type="application/xml")

    def do_HEAD(self) -> None:
        key, _ = self._route()
        if "/" not in key:  # a bucket: all are there
            self._answer(200 if self.s3.may_look else 403)
        elif key in self.s3.objects:
            self._answer(200, Content_Length=str(len(self.s3.objects[key])), ETag='"x"')
        else:
            self._answer(404)

    def do_GET(self) -> None:
        key, _ = self._route()
        if "/" not in key and not self.s3.may_look:
            self._refuse(403, "AccessDenied")
            return
        if self._broken():
            return
        body = self.s3.objects.get(key)
        if body is None:
            self._refuse(404, "NoSuchKey")
            return
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        if asked is None:
            self._answer(200, body, ETag='"x"', Accept_Ranges="bytes")
            return
        first, last = int(asked[1]), min(int(asked[2] or len(body)), len(body) - 1)
        where = f"bytes {first}-{last}/{len(body)}"
        self._answer(206, body[first : last + 1], ETag='"x"', Content_Range=where)

    def do_DELETE(self) -> None:
        key, query = self._route()
        if "uploadId" in query:
            if self.s3.uploads.pop(query["uploadId"][0], None) is None:
                self._refuse(404, "NoSuchUpload")
                return
        else:
            self.s3.objects.pop(key, None)
        self._answer(204)
