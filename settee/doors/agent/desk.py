"""The agent's one slot: who takes a job, who is told of it, who ends it. Knows nothing of HTTP; what becomes of a job:
:mod:`settee.doors.agent.course`."""

from __future__ import annotations

import gc
import hmac
import logging
import threading
import time
import uuid
from collections.abc import Callable
from typing import Any

from settee.base.errors import Busy, ComfyUnavailable, SetteeError, StagingError
from settee.base.settings import Settings
from settee.doors.agent import timestamps
from settee.doors.agent.callbacks.letters import Running
from settee.doors.agent.callbacks.outbox import Outbox
from settee.doors.agent.callbacks.reporter import Reporter, Urls
from settee.doors.agent.config import AgentConfig
from settee.doors.agent.course import SHUTDOWN, Course, Dispatched, Parts, Registry
from settee.doors.agent.dispatch.envelope import Envelope
from settee.doors.agent.engine_settings import model_places
from settee.doors.agent.keys import Keys, Known
from settee.doors.agent.leavings import Leavings
from settee.doors.agent.metrics import Metrics
from settee.doors.agent.record import Record
from settee.doors.agent.records import Records
from settee.doors.agent.storage import Storage
from settee.engine import Engine

log = logging.getLogger(__name__)


class OtherBody(SetteeError):
    """The same Idempotency-Key came with another body: use a new key for another job."""

    code = "invalid_request"


class Desk:
    """Takes jobs, one at a time. Every method may be called from any thread; none waits for a job but :meth:`close`."""

    def __init__(
        self,
        config: AgentConfig,
        settings: Settings,
        engine: Engine,
        outbox: Outbox,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._engine, self._outbox = config, engine, outbox
        self._parts = Parts(
            config=config,
            settings=settings,
            engine=engine,
            storage=Storage(settings),
            places=model_places(config),
            registry=Registry(engine, config.comfyui.object_info_cache_seconds, clock),
            leavings=Leavings(config.state_folder, None if engine.output_dir else config.paths.outputs),
            records=Records(config.state_folder / "jobs"),
            metrics=metrics,
        )
        self._keys = Keys(config.state_folder)
        #: One dispatch at a time: held while the state folder's disk takes its time.
        self._intake = threading.Lock()
        #: Held for moments only: the event loop takes it.
        self._lock = threading.Lock()
        self._job: Dispatched | None = None
        #: Before the first job: while ComfyUI still has what a killed agent left there.
        self._recovering = False
        self._thread: threading.Thread | None = None
        self._closing = False
        metrics.watch(restarts=lambda: engine.restarts, depth=lambda: int(self.is_busy), letters=lambda: outbox.pending)

    def start(self, interrupted: Running | None = None) -> None:
        """Clear up after a job that a killed agent left. Before the first job; waits for nobody.

        ``interrupted``: what :meth:`Outbox.start` found.
        """
        self._parts.leavings.clear(self._engine)
        self._parts.records.load()
        if interrupted is not None:
            self._parts.records.interrupted(interrupted)
        self._recovering = True
        threading.Thread(target=self._recover, name="settee-recovering", daemon=True).start()

    def _recover(self) -> None:
        try:
            if not self._settled():
                log.error("ComfyUI still runs a job of an agent that was killed")
        finally:
            self._recovering = False
        self._parts.storage.prepare()
        # What is there by now stays: without it, a round of the garbage collector is short (40 ms with).
        gc.freeze()

    def _settled(self) -> bool:
        """Wait until ComfyUI is idle of earlier jobs; whether it is."""
        return self._engine.settle(self._config.comfyui.timeout_seconds, lambda: self._closing)

    @property
    def is_busy(self) -> bool:
        """Whether a job would be refused: one runs, or ComfyUI has not stopped an earlier one yet."""
        return self._job is not None or self._recovering

    def submit(self, envelope: Envelope, key: str | None = None, digest: str = "") -> str:
        """Take a job, and begin it; returns its id. The same ``key`` and ``digest`` of a body twice is one job.

        Raises Busy, OtherBody, InvalidRequest (an address of a callback), StagingError (the state folder). May wait
        for the disk.
        """
        urls = Urls(envelope.callbacks.status, envelope.callbacks.completion, envelope.callbacks.failure).checked(
            base_url=self._config.callbacks.base_url, hosts=self._config.callbacks.allowed_hosts
        )
        with self._intake:
            if key is not None and (known := self._keys.get(key)) is not None:
                if known.digest != digest:
                    raise OtherBody
                return known.job_id
            with self._lock:
                if self._closing:
                    raise ComfyUnavailable("the agent is shutting down", retryable=True)
                if self.is_busy:
                    raise Busy
                job = self._job = self._dispatched(envelope, urls)
            try:
                self._begin(job, key, digest)
            except BaseException:
                self._free(job)
                job.cancel.close()
                raise
        log.info("job %s is accepted", envelope.job_id)
        return envelope.job_id

    def _dispatched(self, envelope: Envelope, urls: Urls) -> Dispatched:
        prompt_id = str(uuid.uuid4())
        reporter = Reporter(
            envelope.job_id,
            self._config.comfyui.client_id,
            urls,
            self._outbox,
            prompt_id=prompt_id,
            heartbeat_s=self._config.callbacks.heartbeat_seconds,
            activity=self._activity,
        )
        interval_s = self._config.comfyui.poll_interval_seconds
        record = Record(envelope.job_id, reporter.started_at, interval_s=interval_s)
        return Dispatched(envelope, record, reporter, prompt_id)

    def _begin(self, job: Dispatched, key: str | None, digest: str) -> None:
        """From here on its dispatcher hears how it ends, come what may. Raises StagingError."""
        job.reporter.begin()
        if key is not None:
            self._keys.put(key, Known(digest, job.envelope.job_id))
        thread = threading.Thread(target=self._run, args=(job,), name="settee-job", daemon=True)
        self._parts.records.add(job.record)
        with self._lock:
            self._thread = thread
        try:
            thread.start()
        except RuntimeError as error:  # no more threads
            if key is not None:
                self._keys.forget(key)  # sent again, it is another try
            failure = StagingError("the agent cannot start another thread", retryable=True)
            self._parts.records.end_failed(
                job.record, failure, lambda moment: job.reporter.failed(failure, finished_at=moment)
            )
            raise failure from error

    def _run(self, job: Dispatched) -> None:
        def on_end() -> None:
            # Its dispatcher may have heard of it in a millisecond, and the next job is welcome.
            if self._engine.settle(0.0, lambda: True):
                self._free(job)

        try:
            Course(self._parts, job, on_end).run()
            if self._job is job and not self._settled():
                log.error("ComfyUI still runs job %s, which it was told to stop", job.envelope.job_id)
        finally:
            self._free(job)

    def _free(self, job: Dispatched) -> None:
        """The slot, if this job still has it."""
        with self._lock:
            if self._job is job:
                self._job = None

    def cancel(self, token: str) -> bool:
        """Ask the job with this cancel token to stop. False when no job that runs has it."""
        with self._lock:
            job = self._job
            if job is None or job.envelope.cancel_token is None or job.record.is_over:
                return False
            expected = job.envelope.cancel_token.get_secret_value().encode(errors="replace")
            if not hmac.compare_digest(expected, token.encode(errors="replace")):
                return False
            job.cancel.set("canceled by its dispatcher")
            return True

    def record(self, job_id: str) -> Record | None:
        """What is known of a job; None of one that this agent has not run lately."""
        return self._parts.records.get(job_id)

    def close(self, timeout_s: float) -> None:
        """Take no more jobs, and end the one that runs: its dispatcher is told."""
        with self._lock:
            self._closing = True
            if self._job is not None:
                self._job.cancel.set(SHUTDOWN)
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    def _activity(self) -> dict[str, Any] | None:
        """What ComfyUI's queue holds, in numbers: whose prompts they are is nobody's business."""
        running, pending = self._engine.queue()
        return {"running": running, "pending": pending, "timestamp": timestamps.stamp(timestamps.now())}
