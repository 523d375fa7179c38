"""The HTTP of tests.support.public_api: routes, the caller's key, and answers that a test wants to go wrong."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from tests.support.http_double import Ask, HttpDouble, Reply

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


class Server(HttpDouble):
    """The endpoint's routes. What they do is the API's; how they answer, a fault may change."""

    BASE = "/v2/endpoint1"

    def __init__(self, api: PublicApi, port: int) -> None:
        super().__init__(port=port)
        self.api = api

    def answer(self, ask: Ask) -> Reply:
        api = self.api
        asked = api.asked  # a fault's delay may outlast the test that this belongs to
        route, _, job_id = ask.route.removeprefix(f"{Server.BASE}/").partition("/")
        fault = api.next_fault(route)
        api.sleep(fault.delay_s)
        if fault.status is not None:
            status, value = fault.status, {"error": f"a fault of the test's: {fault.status}"}
        elif ask.headers.get("Authorization") != f"Bearer {api.key}":
            status, value = 401, {"error": "unauthorized"}
        elif not ask.route.startswith(f"{Server.BASE}/"):
            status, value = 404, {"error": "endpoint not found"}
        else:
            status, value = self._answer_of(ask, route, unquote(job_id))
        cut = fault.cut_after == 0
        headers = dict(ask.headers.items())
        api.note(Asked(ask.method, route, None if cut else status, time.monotonic(), ask.received, headers), asked)
        body = json.dumps(value).encode() if fault.body is None else fault.body
        return Reply(
            status,
            {"Content-Type": "application/json", **fault.headers},
            body if fault.truncate is None else body[: fault.truncate],
            cut_after=-1 if cut else fault.cut_after,
            rate=None if fault.drip_s is None else 1 / fault.drip_s,
        )

    def _answer_of(self, ask: Ask, route: str, job_id: str) -> tuple[int, Any]:
        api = self.api
        if ask.method == "POST" and route in ("run", "runsync") and not job_id:
            status, value = api.run(ask.raw, sync=route == "runsync")
            if route == "run" or status != 200:
                return status, value
            wait_ms = float(ask.query["wait"][0]) if "wait" in ask.query else 1000 * api.wait_s
            if not 1000 <= wait_ms <= 300_000:
                return 400, {"error": "wait must be 1000 to 300000"}
            return api.wait(value["id"], wait_ms / 1000)
        if route == "status" and job_id:
            return api.status(job_id)
        if ask.method == "POST" and route == "cancel" and job_id:
            return api.cancel(job_id)
        if ask.method == "GET" and route == "health" and not job_id:
            return api.health()
        return 404, {"error": "no such route"}
