"""A small honest engine for the door's tests: the contract of settee.engine.Engine, and a "node" for each ending.

The workflow's first node says what happens: ``Wait`` (inputs.seconds; stops when cancelled), ``Give``
(inputs.size: a base64 file of that many bytes), ``Fail`` (inputs.error: a class of settee.base.errors),
``Crash`` (message), ``Die`` (ComfyUI cannot be brought back), ``Steps`` (inputs.count, inputs.seconds each),
``Deaf`` (seconds; ends when it ends, however often it is told to stop).
"""

from __future__ import annotations

import base64
import hashlib
import logging
import threading
import time
from typing import Any

from settee.base import errors
from settee.base.job import Cancel, Job, Kind, OnProgress, Output, Progress, Result, Status
from settee.base.settings import Settings

log = logging.getLogger("settee.stub")


class StubEngine:
    """One job at a time, each in the caller's thread."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.unrecoverable, self.backend = False, self
        self.started = self.closed = False
        #: Ids in the order in which jobs began, and in which they ended.
        self.began: list[str] = []
        self.ended: list[str] = []
        self.ready = threading.Event()
        self.ready.set()
        self._slot = threading.Lock()

    def start(self) -> None:
        assert not self.started, "started twice"
        self.started = True

    def wait_ready(self, timeout_s: float, cancel: Cancel | None = None) -> None:
        deadline = time.monotonic() + timeout_s
        while not self.ready.wait(0.01):
            if cancel is not None and cancel.is_set():
                raise errors.JobCanceled
            if time.monotonic() > deadline:
                raise errors.ComfyUnavailable

    def close(self) -> None:
        assert self._slot.acquire(timeout=0), "closed while a job runs"
        self.closed = True

    def run(self, job: Job, on_progress: OnProgress = lambda _: None, cancel: Cancel | None = None) -> Result:
        assert self.started
        assert not self.closed
        if not self._slot.acquire(blocking=False):
            raise errors.Busy
        try:
            # As the real one does, once it has begun to fetch the job's models.
            self.wait_ready(self.settings.comfy_start_timeout_s, cancel)
            self.began.append(job.id)
            log.info("the stub engine begins")
            on_progress(Progress(job_id=job.id, status=Status.PREPARING, percent=0.0))
            node: dict[str, Any] = next(iter(job.request.workflow.values()))
            outputs = self._play(job, node["class_type"], node["inputs"], on_progress, cancel or Cancel())
            return Result(outputs=outputs, timings={"total": 1.0})
        finally:
            self.ended.append(job.id)
            self._slot.release()

    def _play(
        self, job: Job, what: str, inputs: dict[str, Any], on_progress: OnProgress, cancel: Cancel
    ) -> tuple[Output, ...]:
        if what == "Wait" and cancel.wait(inputs["seconds"]):
            raise errors.JobCanceled
        if what == "Deaf":
            time.sleep(inputs["seconds"])
        if what == "Fail":
            raise getattr(errors, inputs["error"])(inputs.get("message"), details=inputs.get("details"))
        if what == "Crash":
            raise RuntimeError(inputs["message"])
        if what == "Die":
            self.unrecoverable = True
            raise errors.ComfyUnavailable("ComfyUI died and does not come back")
        for step in range(inputs.get("count", 0)):
            if cancel.wait(inputs["seconds"]):
                raise errors.JobCanceled
            on_progress(
                Progress(
                    job_id=job.id,
                    status=Status.RUNNING,
                    node_id="1",
                    node_type=what,
                    value=step + 1,
                    maximum=inputs["count"],
                    percent=100.0 * (step + 1) / inputs["count"],
                    message="a private word",
                )
            )
        return tuple(self._give(inputs["size"]) for _ in range(1) if what == "Give")

    def _give(self, size: int) -> Output:
        content = bytes(size)
        return Output(
            filename="out_00001_.png",
            subfolder="",
            kind=Kind.IMAGE,
            node_id="1",
            media_type="image/png",
            size=size,
            sha256=hashlib.sha256(content).hexdigest(),
            type="base64",
            data=base64.b64encode(content).decode(),
            width=8,
            height=8,
        )
