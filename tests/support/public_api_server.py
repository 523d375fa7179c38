"""The HTTP of tests.support.public_api: routes, the caller's key, and answers that a test wants to go wrong."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs, unquote, urlsplit

if TYPE_CHECKING:
    from tests.support.public_api import PublicApi


@dataclass
class Fault:
    """What is done instead of answering as one should, ``times`` times."""

    #: The first word of the path: run, runsync, status, cancel, health; None for any.
    route: str | None
    times: int = 1
    #: Answer with this status, without doing what was asked.
    status: int | None = None
    headers: dict[str, str] = field(default_factory=dict)
    #: The body of that answer, or of a good one in place of its own.
    body: bytes | None = None
    #: Wait so long before anything, seconds.
    delay_s: float = 0.0
    #: Do what was asked, and close the connection: at once, or after so many bytes of the body.
    cut_after: int | None = None
    #: Do what was asked, and send the body one byte after another, with so many seconds between them.
    drip_s: float | None = None
    #: Do what was asked, and send so many bytes of the body as if they were all.
    truncate: int | None = None


@dataclass(frozen=True)
class Asked:
    """One request, as it was answered."""

    method: str
    route: str
    status: int | None
    at: float
    size: int
    headers: dict[str, str]


class Server(ThreadingHTTPServer):
    """The endpoint's routes. What they do is the API's; how they answer, a fault may change."""

    BASE = "/v2/endpoint1"
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, api: PublicApi, port: int) -> None:
        self.api = api
        super().__init__(("127.0.0.1", port), _Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what tests do."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        api = self.server.api
        asked = api.asked  # a fault's delay may outlast the test that this belongs to
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = urlsplit(self.path)
        route, _, job_id = parts.path.removeprefix(f"{Server.BASE}/").partition("/")
        fault = api.next_fault(route)
        api.sleep(fault.delay_s)
        if fault.status is not None:
            status, value = fault.status, {"error": f"a fault of the test's: {fault.status}"}
        elif self.headers.get("Authorization") != f"Bearer {api.key}":
            status, value = 401, {"error": "unauthorized"}
        elif not parts.path.startswith(f"{Server.BASE}/"):
            status, value = 404, {"error": "endpoint not found"}
        else:
            status, value = self._answer_of(route, unquote(job_id), body, parse_qs(parts.query))
        cut = fault.cut_after == 0
        headers = dict(self.headers.items())
        api.note(Asked(self.command, route, None if cut else status, time.monotonic(), len(body), headers), asked)
        if cut:
            self.close_connection = True
        else:
            self._send(status, json.dumps(value).encode() if fault.body is None else fault.body, fault)

    def _answer_of(self, route: str, job_id: str, body: bytes, query: dict[str, list[str]]) -> tuple[int, Any]:
        api = self.server.api
        if self.command == "POST" and route in ("run", "runsync") and not job_id:
            status, value = api.run(body, sync=route == "runsync")
            if route == "run" or status != 200:
                return status, value
            wait_ms = float(query["wait"][0]) if "wait" in query else 1000 * api.wait_s
            if not 1000 <= wait_ms <= 300_000:
                return 400, {"error": "wait must be 1000 to 300000"}
            return api.wait(value["id"], wait_ms / 1000)
        if route == "status" and job_id:
            return api.status(job_id)
        if self.command == "POST" and route == "cancel" and job_id:
            return api.cancel(job_id)
        if self.command == "GET" and route == "health" and not job_id:
            return api.health()
        return 404, {"error": "no such route"}

    def _send(self, status: int, body: bytes, fault: Fault) -> None:
        sent = body if fault.truncate is None else body[: fault.truncate]
        self.send_response(status)
        headers = {"Content-Type": "application/json", "Content-Length": str(len(sent)), **fault.headers}
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        if fault.cut_after is not None:
            self.wfile.write(sent[: fault.cut_after])
            self.close_connection = True
        elif fault.drip_s is not None:
            with contextlib.suppress(OSError):
                for byte in sent:
                    self.wfile.write(bytes([byte]))
                    self.server.api.sleep(fault.drip_s)
        else:
            self.wfile.write(sent)

    def log_message(self, *args: Any) -> None:
        """Quiet: what was asked is noted."""
