"""RunPod's public API for one endpoint, on loopback, in front of the control plane that its workers see.

    with PublicApi() as runpod:
        worker = WorkerProcess(env=runpod.worker_env())
        requests.post(f"{runpod.url}/run", json={"input": …}, headers={"Authorization": f"Bearer {runpod.key}"})

    python -m tests.support.public_api        # with a worker on the embedded ComfyUI, for use by hand

A job's state is read off what its worker did. Faults are switched on by the test:
``runpod.fault("status", status=503)``. The limits and times are RunPod's as documented;
they are attributes, and may be changed while it runs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import tempfile
import threading
import time
import uuid
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.support.control_plane import POD, ControlPlane
from tests.support.embedded import COMFY_COMMAND
from tests.support.public_api_server import Asked, Fault, Server

KEY = "rpa_test-key-of-a-caller"

QUEUED, RUNNING, COMPLETED = "IN_QUEUE", "IN_PROGRESS", "COMPLETED"
FAILED, CANCELLED, TIMED_OUT = "FAILED", "CANCELLED", "TIMED_OUT"


@dataclass
class _Job:
    id: str
    input: Any
    envelope: dict[str, Any]
    submitted: float = field(default_factory=time.monotonic)
    #: Set when RunPod itself ended it: CANCELLED or TIMED_OUT.
    ended_as: str | None = None
    ended: float | None = None


class _Plane(ControlPlane):
    """One from whose queue a job can be taken back."""

    def withdraw(self, job_id: str) -> bool:
        """Whether the job was still waiting; no worker gets it then."""
        with self._changed:
            for job in self._queue:
                if isinstance(job, dict) and job.get("id") == job_id:
                    self._queue.remove(job)
                    return True
        return False

    @property
    def changed(self) -> threading.Condition:
        return self._changed


class PublicApi:
    """RunPod as its callers see it. ``plane`` is how its workers do."""

    def __init__(self, plane: _Plane | None = None, *, port: int = 0, key: str = KEY) -> None:
        self.plane = plane or _Plane()
        self.key = key
        #: Seconds that a result is kept after /run and after /runsync.
        self.run_kept_s, self.runsync_kept_s = 1800.0, 60.0
        #: Bytes of a request.
        self.run_cap, self.runsync_cap = 10_000_000, 20_000_000
        #: Without a policy of the job's own, seconds: to run, and to live.
        self.execution_timeout_s, self.ttl_s = 600.0, 86_400.0
        #: How long /runsync waits unless told, seconds.
        self.wait_s = 90.0
        self.asked: list[Asked] = []
        self._faults: list[Fault] = []
        self._jobs: dict[str, _Job] = {}
        self._lock = threading.Lock()
        self._server = Server(self, port)

    # --- what a test does --------------------------------------------------------------------------------

    def __enter__(self) -> PublicApi:
        self.plane.up()
        self._server.up()
        return self

    def __exit__(self, *exc: object) -> None:
        self._server.close()
        self.plane.close()

    @property
    def url(self) -> str:
        """The endpoint's base URL."""
        return self._server.origin + Server.BASE

    def worker_env(self) -> dict[str, str]:
        """The variables that RunPod sets in a worker's container."""
        return self.plane.env()

    def fault(self, route: str | None = None, **fault: Any) -> Fault:
        """Switch a fault on for the next requests of a route (see Fault); of several, the first one first."""
        added = Fault(route, **fault)
        with self._lock:
            self._faults.append(added)
        return added

    def clear(self) -> None:
        """No faults any more, and nothing asked yet: also not what was asked before and is still to be answered."""
        with self._lock:
            self._faults.clear()
            self.asked = []

    def count(self, route: str) -> int:
        """How often it was asked."""
        with self._lock:
            return sum(asked.route == route for asked in self.asked)

    def inputs(self) -> list[Any]:
        """What every job so far brought, in order of arrival."""
        with self._lock:
            return [job.input for job in self._jobs.values()]

    def jobs(self) -> list[str]:
        """The ids of all jobs so far, in order of arrival."""
        with self._lock:
            return list(self._jobs)

    # --- routes ------------------------------------------------------------------------------------------

    def run(self, body: bytes, *, sync: bool) -> tuple[int, Any]:
        cap = self.runsync_cap if sync else self.run_cap
        if len(body) > cap:
            return 413, {"error": f"the payload is over {cap / 1e6:g} MB"}
        try:
            envelope = json.loads(body)
        except ValueError:
            return 400, {"error": "the request's body is not JSON"}
        if not isinstance(envelope, dict) or "input" not in envelope:
            return 400, {"error": "input is required"}
        job = _Job(f"{'sync-' if sync else ''}{uuid.uuid4()}-u1", envelope["input"], envelope)
        with self._lock:
            self._jobs[job.id] = job
        kept = {key: envelope[key] for key in ("s3Config", "webhook", "policy") if key in envelope}
        self.plane.submit(job.input, job.id, **kept)
        return 200, {"id": job.id, "status": QUEUED}

    def wait(self, job_id: str, wait_s: float) -> tuple[int, Any]:
        """/runsync's answer: when the job has ended, or how it stands after a while."""
        deadline = time.monotonic() + wait_s
        while True:
            status, answer = self.status(job_id)
            if status != 200 or answer["status"] not in (QUEUED, RUNNING):
                return status, answer
            left = deadline - time.monotonic()
            if left <= 0 or self._server.released.is_set():
                return status, answer
            with self.plane.changed:
                self.plane.changed.wait(min(left, 0.05))

    def status(self, job_id: str) -> tuple[int, Any]:
        with self._lock:
            job = self._jobs.get(job_id)
        if job is None:
            return 404, {"error": "job not found"}
        answer = self._state(job)
        kept_s = self.runsync_kept_s if job_id.startswith("sync-") else self.run_kept_s
        if job.ended is not None and time.monotonic() - job.ended > kept_s:
            with self._lock:
                self._jobs.pop(job_id, None)
            return 404, {"error": "job not found"}
        return 200, answer

    def cancel(self, job_id: str) -> tuple[int, Any]:
        with self._lock:
            job = self._jobs.get(job_id)
        if job is None:
            return 404, {"error": "job not found"}
        if self._state(job)["status"] in (QUEUED, RUNNING):
            self._end(job, CANCELLED)
        return 200, {"id": job_id, "status": self._state(job)["status"]}

    def health(self) -> tuple[int, Any]:
        with self._lock:
            jobs = list(self._jobs.values())
        states = Counter(self._state(job)["status"] for job in jobs)
        running = states[RUNNING]
        return 200, {
            "jobs": {
                "completed": states[COMPLETED],
                "failed": states[FAILED],
                "inProgress": running,
                "inQueue": states[QUEUED],
                "retried": 0,
            },
            "workers": {"idle": 0 if running else 1, "initializing": 0, "ready": 1, "running": running, "throttled": 0},
        }

    def _state(self, job: _Job) -> dict[str, Any]:
        """The job's answer on /status: from what RunPod did to it, else from what its worker did."""
        takes = self.plane.of("take", job.id)
        results = self.plane.of("result", job.id)
        if job.ended_as is None and not results:
            self._check_time(job, takes[0].at if takes else None)
        answer: dict[str, Any] = {"id": job.id}
        if takes:
            answer["delayTime"] = round(1000 * (takes[0].at - job.submitted))
            answer["workerId"] = POD
        if job.ended_as is not None:
            return {**answer, "status": job.ended_as}
        if not takes:
            return {**answer, "status": QUEUED}
        if not results:
            updates = self.plane.progress_of(job.id)
            return {**answer, "status": RUNNING, **({"output": updates[-1]} if updates else {})}
        job.ended = results[-1].at
        answer["executionTime"] = round(1000 * (job.ended - takes[0].at))
        body = results[-1].body
        answer["status"] = FAILED if body.get("error") else COMPLETED
        return {**answer, **{key: body[key] for key in ("error", "output") if key in body}}

    def _check_time(self, job: _Job, taken: float | None) -> None:
        policy = job.envelope.get("policy") or {}
        now = time.monotonic()
        limit_s = policy.get("executionTimeout", 1000 * self.execution_timeout_s) / 1000
        ttl_s = policy.get("ttl", 1000 * self.ttl_s) / 1000
        if now - job.submitted > ttl_s or (taken is not None and now - taken > limit_s):
            self._end(job, TIMED_OUT)

    def _end(self, job: _Job, how: str) -> None:
        job.ended_as, job.ended = how, time.monotonic()
        if not self.plane.withdraw(job.id):
            self.plane.cancel(job.id)

    # --- faults ------------------------------------------------------------------------------------------

    def next_fault(self, route: str) -> Fault:
        with self._lock:
            for fault in self._faults:
                if fault.route in (None, route) and fault.times > 0:
                    fault.times -= 1
                    return fault
        return Fault(route)

    def note(self, asked: Asked, among: list[Asked]) -> None:
        with self._lock:
            among.append(asked)

    def sleep(self, seconds: float) -> None:
        """A fault's pause; the test's end ends it."""
        self._server.released.wait(seconds)


def main() -> int:
    """Serve until interrupted, with a worker on the embedded ComfyUI unless told otherwise."""
    from settee.backends.comfy.process import free_port
    from tests.support.worker import REAL, WorkerProcess

    parser = argparse.ArgumentParser(description="RunPod's public API on loopback, with a worker behind it")
    parser.add_argument("--port", type=int, default=0)
    parser.add_argument("--key", default=KEY, help="what callers must send as a bearer token")
    parser.add_argument("--encryption-key", help="the worker's ENCRYPTION_KEY")
    parser.add_argument("--no-worker", action="store_true", help="jobs stay in the queue")
    args = parser.parse_args()
    with contextlib.ExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory())
        api = stack.enter_context(PublicApi(port=args.port, key=args.key))
        if not args.no_worker:
            settings = {
                "COMFY_COMMAND": COMFY_COMMAND,
                "COMFY_PORT": str(free_port()),
                "WORKSPACE_DIR": str(Path(folder) / "workspace"),
                **({"ENCRYPTION_KEY": args.encryption_key} if args.encryption_key else {}),
            }
            stack.enter_context(WorkerProcess(env={**api.worker_env(), **settings}, command=REAL))
        print(f"{api.url}\nRUNPOD_API_KEY={api.key}", flush=True)
        ended = threading.Event()
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: ended.set())
        ended.wait()
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
