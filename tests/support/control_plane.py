"""RunPod's side of a serverless worker, on loopback: jobs out, progress and results in.

    with ControlPlane() as runpod:
        worker = start_worker(runpod.env())
        job_id = runpod.submit({"workflow": …})
        runpod.wait_result(job_id, timeout_s=10)["output"]

What a worker's SDK expects of it was read from the SDK (runpod 1.12); see docs of each route below.
"""

from __future__ import annotations

import json
import select
import socket
import threading
import time
import uuid
from collections import deque
from dataclasses import dataclass, field
from typing import Any

from tests.support.http_double import Ask, HttpDouble, Reply

KEY = "control-plane-key"
POD = "pod-1"


@dataclass(frozen=True)
class Event:
    """One thing that happened, in order of arrival."""

    #: "take" (a job was handed out), "empty" (a take was answered without one), "progress", "result", "refused"
    kind: str
    job_id: str | None
    #: time.monotonic(), when the request was complete (a take: when it was answered).
    at: float
    #: The parsed body of progress and results; the status of an empty take.
    body: Any = None
    #: Bytes of the body.
    size: int = 0
    headers: dict[str, str] = field(default_factory=dict)


class ControlPlane(HttpDouble):
    """A RunPod with one endpoint and one worker. Attributes may be changed while it runs."""

    def __init__(self, *, hold_s: float = 20.0, result_cap: int | None = None) -> None:
        super().__init__()
        #: How long an empty job-take or job-stop is held open, seconds.
        self.hold_s = hold_s
        #: A result over this many bytes is refused with 400, as RunPod does.
        self.result_cap = result_cap
        #: Seconds between reading a progress update and answering it.
        self.progress_delay_s = 0.0
        #: Seconds between handing a job out and answering the take with it.
        self.take_delay_s = 0.0
        #: Statuses for the next job-takes, and for the next results, before normal service.
        self.take_statuses: deque[int] = deque()
        self.result_statuses: deque[int] = deque()
        self.events: list[Event] = []
        self.pings: list[str | None] = []
        self._queue: deque[dict[str, Any] | str] = deque()
        self._stops: list[str] = []
        self._changed = threading.Condition()

    # --- what a test does --------------------------------------------------------------------------------

    def close(self) -> None:
        self.released.set()
        with self._changed:
            self._changed.notify_all()
        super().close()

    @property
    def url(self) -> str:
        return self.origin

    def env(self) -> dict[str, str]:
        """The variables that RunPod sets in a worker's container."""
        return {
            "RUNPOD_POD_ID": POD,
            "RUNPOD_ENDPOINT_ID": "endpoint-1",
            "RUNPOD_AI_API_KEY": KEY,
            "RUNPOD_WEBHOOK_GET_JOB": f"{self.url}/v2/endpoint-1/job-take/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_OUTPUT": f"{self.url}/v2/endpoint-1/job-done/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_POST_STREAM": f"{self.url}/v2/endpoint-1/job-stream/$RUNPOD_POD_ID/$ID?gpu=none",
            "RUNPOD_WEBHOOK_PING": f"{self.url}/v2/endpoint-1/ping/$RUNPOD_POD_ID?gpu=none",
            "RUNPOD_PING_INTERVAL": "1000",
            "RUNPOD_SKIP_AUTO_SYSTEM_CHECKS": "true",
            "RUNPOD_SKIP_GPU_CHECK": "true",
        }

    def submit(self, job_input: Any, job_id: str | None = None, **envelope: Any) -> str:
        """Queue a job as /run does (as /runsync does with a ``job_id`` that begins with ``sync-``)."""
        job_id = job_id or f"{uuid.uuid4()}-u1"
        self.submit_raw({"id": job_id, "input": job_input, **envelope})
        return job_id

    def submit_raw(self, *jobs: dict[str, Any]) -> None:
        """Queue whole envelopes, all at once."""
        with self._changed:
            self._queue.extend(jobs)
            self._changed.notify_all()

    def submit_text(self, body: str) -> None:
        """Queue a body for job-take as it is, JSON or not."""
        with self._changed:
            self._queue.append(body)
            self._changed.notify_all()

    def cancel(self, job_id: str) -> None:
        """Tell the worker to stop a job, as /cancel and the execution timeout do."""
        with self._changed:
            self._stops.append(job_id)
            self._changed.notify_all()

    def of(self, kind: str, job_id: str | None = None) -> list[Event]:
        """The events of a kind so far, of one job or of all."""
        with self._changed:
            return [event for event in self.events if event.kind == kind and job_id in (None, event.job_id)]

    @property
    def takes(self) -> list[Event]:
        return self.of("take")

    @property
    def results(self) -> dict[str, Any]:
        """The last result of each job."""
        return {str(event.job_id): event.body for event in self.of("result")}

    def progress_of(self, job_id: str) -> list[Any]:
        """The progress updates of a job, in order: what /status would have shown."""
        return [event.body["output"] for event in self.of("progress", job_id)]

    def wait_for(self, kind: str, job_id: str | None = None, *, count: int = 1, timeout_s: float = 60.0) -> Event:
        """Wait until there are ``count`` events of a kind; returns the last. Raises TimeoutError."""
        deadline = time.monotonic() + timeout_s
        with self._changed:
            while len(found := self.of(kind, job_id)) < count:
                if (left := deadline - time.monotonic()) <= 0:
                    kinds = [(event.kind, event.job_id) for event in self.events]
                    raise TimeoutError(f"no {kind} {job_id or ''} x{count} in {timeout_s:g} s; saw {kinds}")
                self._changed.wait(left)
        return found[-1]

    def wait_result(self, job_id: str, timeout_s: float = 60.0) -> Any:
        """The posted result of a job: ``{"output", "error"?, "stopPod"?}``. Raises TimeoutError."""
        return self.wait_for("result", job_id, timeout_s=timeout_s).body

    # --- what the worker asks, on a thread of its own each ------------------------------------------------

    def answer(self, ask: Ask) -> Reply:
        before, _, job_id = ask.route.rpartition("/")
        if ask.headers.get("Authorization") != KEY:
            status, value = 401, {"error": "the raw key is expected"}
        elif ask.method == "GET" and f"/job-take/{POD}" in ask.route:
            status, value = self.take(ask.connection)
        elif ask.method == "GET" and f"/job-stop/{POD}" in ask.route:
            status, value = self.stops(ask.connection)
        elif ask.method == "GET" and f"/ping/{POD}" in ask.route:
            status, value = self.ping(ask.query.get("job_id", [None])[0])
        elif before.endswith(f"/job-done/{POD}") and ask.query.get("isStream") == ["false"]:
            status, value = self.done(job_id, ask.raw, dict(ask.headers.items()))
        else:
            status, value = 404, {"error": "no such route"}
        body = b"" if value is None else (value if isinstance(value, str) else json.dumps(value)).encode()
        return Reply(status, {"Content-Type": "application/json"} if body else {}, body)

    def take(self, connection: socket.socket) -> tuple[int, Any]:
        """GET job-take: a job, 204 after a while without one, or a status that the test asked for."""
        with self._changed:
            if self.take_statuses:
                status = self.take_statuses.popleft()
                self._record(Event("empty", None, time.monotonic(), status))
                return status, None
            if not self._wait(lambda: bool(self._queue), connection):
                self._record(Event("empty", None, time.monotonic(), 204))
                return 204, None
            job = self._queue.popleft()
            self._record(Event("take", job.get("id") if isinstance(job, dict) else None, time.monotonic()))
        time.sleep(self.take_delay_s)
        return 200, job

    def stops(self, connection: socket.socket) -> tuple[int, Any]:
        """GET job-stop: ``{"jobsToStop": [ids]}``, or 204 after a while."""
        with self._changed:
            if not self._wait(lambda: bool(self._stops), connection):
                return 204, None
            stops, self._stops = self._stops, []
            return 200, {"jobsToStop": stops}

    def done(self, job_id: str, body: bytes, headers: dict[str, str]) -> tuple[int, Any]:
        """POST job-done: progress, or a result, which may be refused."""
        at = time.monotonic()
        posted = json.loads(body)
        is_progress = isinstance(posted, dict) and posted.get("status") == "IN_PROGRESS"
        with self._changed:
            status = 200
            if not is_progress:
                too_big = self.result_cap is not None and len(body) > self.result_cap
                status = 400 if too_big else self.result_statuses.popleft() if self.result_statuses else 200
            kind = "progress" if is_progress else "result" if status == 200 else "refused"
            self._record(Event(kind, job_id, at, posted, len(body), headers))
        if is_progress and self.progress_delay_s:
            time.sleep(self.progress_delay_s)
        return status, {}

    def ping(self, job_ids: str | None) -> tuple[int, Any]:
        """GET ping, with the ids of the jobs in progress."""
        with self._changed:
            self.pings.append(job_ids)
            self._changed.notify_all()
        return 200, {}

    def _record(self, event: Event) -> None:
        self.events.append(event)
        self._changed.notify_all()

    def _wait(self, ready: Any, connection: socket.socket) -> bool:
        """Hold a long poll until ``ready()``. False when its time is up, or nobody listens any more."""
        deadline = time.monotonic() + self.hold_s
        while not ready():
            left = deadline - time.monotonic()
            if left <= 0 or self.released.is_set() or _hung_up(connection):
                return False
            # Short waits: a client that hangs up wakes no condition.
            self._changed.wait(min(left, 0.05))
        return not _hung_up(connection)


def _hung_up(connection: socket.socket) -> bool:
    readable, _, _ = select.select([connection], [], [], 0)
    try:
        return bool(readable) and connection.recv(1, socket.MSG_PEEK) == b""
    except OSError:
        return True
