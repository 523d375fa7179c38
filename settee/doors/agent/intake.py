"""Takes dispatches, one at a time, and starts their jobs. Knows nothing of HTTP."""

from __future__ import annotations

import gc
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from settee.base.errors import SetteeError, StagingError
from settee.base.job import Status
from settee.base.settings import Settings
from settee.doors.agent.agent_job import JobRun, Parts, Registry, event_log, failure
from settee.doors.agent.config import AgentConfig
from settee.doors.agent.engine_settings import model_places
from settee.doors.agent.envelope import Envelope
from settee.doors.agent.heartbeats import AgentRestarted, JobCallbacks, interrupted
from settee.doors.agent.leftovers import Leftovers
from settee.doors.agent.storage import Storage
from settee.engine.engine import Engine
from settee.service import timestamps
from settee.service.callback_urls import Urls
from settee.service.callbacks import Outbox, pending
from settee.service.events import EventLog, JobLogs
from settee.service.metrics import Metrics
from settee.service.slot import Slot, SlotJob
from settee.service.store import Attempt, Store

log = logging.getLogger(__name__)


class OtherBody(SetteeError):
    """The same Idempotency-Key came with another body: use a new key for another job."""

    code = "invalid_request"


def report_interrupted(store: Store) -> list[Attempt]:
    """End the attempts that ran when the agent was stopped: FAILED, reported where their callbacks go.

    Before the outbox starts. Returns them. Raises StoreError.
    """
    found = store.running()
    for attempt in found:
        step = failure(Status.FAILED, AgentRestarted())
        post = interrupted(attempt, step.moment)
        callbacks = [] if post is None else [pending(attempt, post)]
        store.end(attempt.id, event_log(attempt).ending(step), callbacks)
        log.warning("job %s was interrupted by a restart; its dispatcher is notified", attempt.job_id)
    return found


class Intake:
    """Every method may be called from any thread; none waits for a job but :meth:`close`."""

    def __init__(
        self,
        config: AgentConfig,
        settings: Settings,
        engine: Engine,
        store: Store,
        outbox: Outbox,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._config, self._engine, self._store, self._outbox = config, engine, store, outbox
        self._slot = Slot(engine, config.comfyui.timeout_seconds)
        self._parts = Parts(
            config=config,
            settings=settings,
            engine=engine,
            slot=self._slot,
            outbox=outbox,
            storage=Storage(settings),
            places=model_places(config),
            registry=Registry(engine, config.comfyui.object_info_cache_seconds, clock),
            leftovers=Leftovers(store, None if engine.output_dir else config.paths.outputs),
            metrics=metrics,
        )
        self._logs = JobLogs(store)
        #: One dispatch at a time: held while the state folder's disk takes its time.
        self._intake = threading.Lock()
        metrics.watch(
            restarts=lambda: engine.backend.restarts, depth=lambda: int(self.is_busy), callbacks=lambda: outbox.pending
        )

    def start(self, interrupted: Sequence[Attempt] = ()) -> None:
        """Clear up after jobs that a killed agent left (:func:`report_interrupted`). Before the first job."""
        self._parts.leftovers.clear(self._engine, interrupted)
        self._slot.recover(self._prepare)

    def _prepare(self) -> None:
        self._parts.storage.prepare()
        # What is there by now stays: without it, a round of the garbage collector is short (40 ms with).
        gc.freeze()

    @property
    def is_busy(self) -> bool:
        return self._slot.is_busy

    def submit(self, envelope: Envelope, key: str | None = None, digest: str = "") -> str:
        """Take a job, and begin it; returns its id. The same ``key`` and ``digest`` of a body twice is one job.

        Raises Busy, OtherBody, InvalidRequest (an address of a callback), StagingError (the state folder). May wait
        for the disk.
        """
        urls = Urls(envelope.callbacks.status, envelope.callbacks.completion, envelope.callbacks.failure).checked(
            base_url=self._config.callbacks.base_url, hosts=self._config.callbacks.allowed_hosts
        )
        with self._intake:
            if key is not None and (known := self._store.known_key(key)) is not None:
                if known.digest != digest:
                    raise OtherBody
                return known.job_id
            slot_job = SlotJob(envelope.job_id, envelope.cancel_token)
            try:
                self._slot.take(slot_job)
                self._begin(envelope, urls, slot_job, key, digest)
            except BaseException:
                self._slot.free(slot_job)
                slot_job.cancel.close()
                raise
        log.info("job %s is accepted", envelope.job_id)
        return envelope.job_id

    def _begin(self, envelope: Envelope, urls: Urls, slot_job: SlotJob, key: str | None, digest: str) -> None:
        """From here on its dispatcher learns how it ends, whatever happens. Raises StagingError."""
        client_id = self._config.comfyui.client_id
        attempt = Attempt(
            id=str(uuid.uuid4()),
            job_id=envelope.job_id,
            started_at=timestamps.now(),
            prompt_id=str(uuid.uuid4()),
            details={"client_id": client_id, "urls": urls.as_dict()},
        )
        callbacks = JobCallbacks(
            attempt,
            urls,
            client_id,
            self._outbox,
            heartbeat_s=self._config.callbacks.heartbeat_seconds,
            activity=self._activity,
        )
        job = JobRun(self._parts, envelope, attempt, slot_job, callbacks)
        self._outbox.accept(attempt, key, digest)
        self._logs.add(job.log)
        try:
            self._slot.start(slot_job, job.run)
        except RuntimeError as error:  # no more threads
            refused = StagingError("the agent cannot start another thread", retryable=True)
            job.fail(refused, has_begun=False)
            raise refused from error

    def cancel(self, token: str) -> bool:
        """Ask the job with this cancel token to stop. False when no job that runs has it."""
        return self._slot.cancel(token)

    def job_log(self, job_id: str) -> EventLog | None:
        """Return what is known of a job; None if this agent has not run it lately. May wait for the disk."""
        return self._logs.get(job_id)

    def close(self, timeout_s: float) -> None:
        """Take no more jobs, and end the one that runs: its dispatcher is notified."""
        self._slot.close(timeout_s)

    def _activity(self) -> dict[str, Any]:
        """Return what ComfyUI's queue holds, in numbers: whose prompts they are is not for others."""
        running, pending = self._engine.backend.queue()
        return {"running": running, "pending": pending, "timestamp": timestamps.stamp(timestamps.now())}
