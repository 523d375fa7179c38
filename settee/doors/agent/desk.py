"""The agent's one slot: who takes a job, who runs it, who is told. Knows nothing of HTTP."""

from __future__ import annotations

import hmac
import logging
import secrets
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from settee import logs
from settee.doors.agent import assets, timestamps, work
from settee.doors.agent.archive import Archive
from settee.doors.agent.callbacks import Reporter, Urls
from settee.doors.agent.config import AgentConfig
from settee.doors.agent.engine_settings import model_places
from settee.doors.agent.envelope import Envelope
from settee.doors.agent.interruption import AgentRestarted
from settee.doors.agent.keys import Keys, Known
from settee.doors.agent.leavings import Leavings
from settee.doors.agent.metrics import Metrics
from settee.doors.agent.outbox import Outbox
from settee.doors.agent.payloads import ended, failure_shown, reason_code
from settee.doors.agent.record import Record
from settee.doors.agent.storage import Storage
from settee.engine import Engine
from settee.errors import (
    Busy,
    ComfyUnavailable,
    InvalidRequest,
    JobCanceled,
    ModelMissing,
    SetteeError,
    StagingError,
)
from settee.job import Cancel, Progress, Result, Status
from settee.models.entry import ModelEntry
from settee.models.judging import State
from settee.settings import Settings
from settee.workflow import ObjectInfo, Workflow

log = logging.getLogger(__name__)

#: Jobs that GET /jobs/{id} still knows.
_REMEMBERED = 200
#: How long downloads that were given up may take to end, seconds.
_MODELS_S = 5.0
#: As every node takes it, and every control plane shows it.
_MAX_DRAWN = 2**31 - 1
#: In what order a job goes through its states; the engine begins anew at PREPARING.
_ORDER = list(Status)


class OtherBody(SetteeError):
    """The same Idempotency-Key came with another body: use a new key for another job."""

    code = "invalid_request"


@dataclass
class _Running:
    """The job in the slot."""

    envelope: Envelope
    record: Record
    reporter: Reporter
    prompt_id: str
    cancel: Cancel = field(default_factory=Cancel)
    state: Status = Status.QUEUED
    #: Models that were to go and are still there.
    left: list[ModelEntry] = field(default_factory=list)

    @property
    def is_shutdown(self) -> bool:
        return self.cancel.is_set() and self.cancel.reason == _SHUTDOWN


_SHUTDOWN = "the agent is shutting down"


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
        self._config, self._settings, self._engine = config, settings, engine
        self._outbox, self._metrics, self._clock = outbox, metrics, clock
        self._storage = Storage(settings)
        self._places = model_places(config)
        is_emptied = config.comfyui.output_dir is not None or config.comfyui.dir is not None
        self._leavings = Leavings(config.state_folder, None if is_emptied else config.paths.outputs)
        self._keys = Keys(config.state_folder)
        #: One dispatch at a time: held while the state folder's disk takes its time.
        self._intake = threading.Lock()
        #: Held for moments only: the event loop takes it.
        self._lock = threading.Lock()
        self._running: _Running | None = None
        self._thread: threading.Thread | None = None
        self._closing = False
        self._records: OrderedDict[str, Record] = OrderedDict()
        self._registry: tuple[float, ObjectInfo] | None = None
        metrics.watch(restarts=lambda: engine.restarts, depth=lambda: int(self.is_busy), letters=lambda: outbox.pending)

    def start(self) -> None:
        """Clear up after a job that a killed agent left. Before the first job; waits for nobody."""
        self._leavings.clear(self._engine)

    # --- what callers ask ------------------------------------------------------------------------------------

    @property
    def is_busy(self) -> bool:
        return self._running is not None

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
                if self._running is not None:
                    raise Busy
                running = self._running = self._made(envelope, urls)
            try:
                self._begin(running, key, digest)
            except BaseException:
                with self._lock:
                    self._running = None
                raise
        return envelope.job_id

    def _made(self, envelope: Envelope, urls: Urls) -> _Running:
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
        return _Running(envelope, record, reporter, prompt_id)

    def _begin(self, running: _Running, key: str | None, digest: str) -> None:
        """From here on its dispatcher hears how it ends, come what may. Raises StagingError."""
        job_id = running.envelope.job_id
        running.reporter.begin()
        if key is not None:
            self._keys.put(key, Known(digest, job_id))
        thread = threading.Thread(target=self._run, args=(running,), name="settee-job", daemon=True)
        with self._lock:
            self._remember(self._records, job_id, running.record)
            self._thread = thread
        try:
            thread.start()
        except RuntimeError as error:  # no more threads
            failure = StagingError("the agent cannot start another thread", retryable=True)
            running.reporter.failed(failure)
            running.record.end(Status.FAILED, {"error": failure_shown(failure)})
            raise failure from error

    def cancel(self, token: str) -> bool:
        """Ask the job with this cancel token to stop. False when no job that runs has it."""
        with self._lock:
            running = self._running
            if running is None or running.envelope.cancel_token is None:
                return False
            expected = running.envelope.cancel_token.get_secret_value().encode(errors="replace")
            if not hmac.compare_digest(expected, token.encode(errors="replace")):
                return False
            running.cancel.set("canceled by its dispatcher")
            return True

    def record(self, job_id: str) -> Record | None:
        """What is known of a job; None of one that this agent has not run lately."""
        with self._lock:
            return self._records.get(job_id)

    def close(self, timeout_s: float) -> None:
        """Take no more jobs, and end the one that runs: its dispatcher is told."""
        with self._lock:
            self._closing = True
            if self._running is not None:
                self._running.cancel.set(_SHUTDOWN)
            thread = self._thread
        if thread is not None:
            thread.join(timeout_s)

    @staticmethod
    def _remember(kept: OrderedDict[str, Any], key: str, value: Any) -> None:
        kept[key] = value
        kept.move_to_end(key)
        while len(kept) > _REMEMBERED:
            kept.popitem(last=False)

    # --- one job, in its thread ------------------------------------------------------------------------------

    def _run(self, running: _Running) -> None:
        envelope = running.envelope
        token = envelope.cancel_token.get_secret_value() if envelope.cancel_token else None
        with (
            logs.job(envelope.job_id),
            Archive(self._config.paths.outputs, envelope.job_id, secrets=[token] if token else []) as archive,
            running.cancel,
        ):
            try:
                self._tell(running, archive, Status.QUEUED)
                self._succeeded(running, archive, *self._work(running, archive))
            except SetteeError as error:
                self._failed(running, archive, error)
            except Exception:
                log.exception("job %s failed inside the agent", envelope.job_id)
                self._failed(running, archive, SetteeError("the job failed inside the agent; its log has more"))
            finally:
                self._leavings.done(running.prompt_id, running.left)
                with self._lock:
                    self._running = None

    def _work(self, running: _Running, archive: Archive) -> tuple[work.Plan, Result, dict[int, str]]:
        envelope, begun = running.envelope, time.monotonic()

        def check() -> None:
            if running.cancel.is_set():
                raise JobCanceled

        self._tell(running, archive, Status.PREPARING)
        self._leavings.note(running.prompt_id)
        graph = work.template(envelope, self._storage, self._config.paths.workflows, check)
        check()
        folders = {"base_models": self._places.base_models, "loras": self._places.loras}
        models = assets.resolve(envelope, self._config, self._storage, self._engine.shelf, folders, check)
        check()
        ready = self._planned(running, graph, models)
        archive.manifest(envelope.shown(), ready.context.values, ready.workflow)
        archive.applied_workflow(ready.workflow)
        check()
        self._metrics.phases({"preparing": (time.monotonic() - begun) * 1000})
        self._tell(running, archive, Status.MATERIALIZING)
        job, keys = work.job_for(ready, self._config, self._settings, running.prompt_id)
        missing = self._missing(models.entries)
        self._leavings.note(running.prompt_id, models.passing)

        def on_progress(progress: Progress) -> None:
            self._progress(running, archive, progress)

        try:
            try:
                result = self._engine.run(job, on_progress, running.cancel)
            except ModelMissing:
                # ComfyUI may list what was just placed a little later; without that, asking again changes nothing.
                if not missing or self._missing(missing):
                    raise
                running.cancel.wait(self._config.comfyui.model_refresh_delay_seconds)
                result = self._engine.run(job, on_progress, running.cancel)
        finally:
            still = self._missing(missing)
            self._metrics.staged.inc(sum(entry.size or 0 for entry in missing if entry not in still))
            # What a cancel gave up may land a moment later, and would then stay for good.
            self._engine.await_models(models.passing, _MODELS_S)
            running.left = assets.remove(models.passing, self._engine.shelf)
        return ready, result, keys

    def _missing(self, entries: Sequence[ModelEntry]) -> list[ModelEntry]:
        return [entry for entry in entries if self._engine.shelf.state(entry) is not State.RIGHT]

    def _planned(self, running: _Running, graph: Workflow, models: assets.Assets) -> work.Plan:
        """What is refused by an older answer of ComfyUI's is looked at once more by a new one: files may have come."""
        seed = secrets.randbelow(_MAX_DRAWN + 1)

        def planned() -> work.Plan:
            return work.plan(
                running.envelope, self._config, graph, models, self._object_info(running.cancel), lambda: seed
            )

        was_known = self._registry is not None
        try:
            return planned()
        except InvalidRequest:
            if not was_known:
                raise
        self._registry = None
        return planned()

    def _object_info(self, cancel: Cancel) -> ObjectInfo:
        """ComfyUI's node registry, as old as the configuration allows. Raises ComfyUnavailable, JobCanceled."""
        now = self._clock()
        if self._registry is None or now - self._registry[0] > self._config.comfyui.object_info_cache_seconds:
            self._registry = (now, self._engine.object_info(cancel))
        return self._registry[1]

    def _progress(self, running: _Running, archive: Archive, progress: Progress) -> None:
        if _ORDER.index(progress.status) < _ORDER.index(running.state):
            return
        said = {"phase": progress.status.value, "percent": progress.percent}
        said |= {"node": progress.node_id, "node_type": progress.node_type, "step": progress.value}
        said["max"] = progress.maximum
        self._tell(running, archive, progress.status, progress.message, said)

    def _tell(
        self,
        running: _Running,
        archive: Archive,
        state: Status,
        message: str | None = None,
        said: dict[str, Any] | None = None,
    ) -> None:
        is_new = state is not running.state or state is Status.QUEUED
        running.state = state
        progress = {name: value for name, value in (said or {}).items() if value is not None} or None
        running.reporter.state(state, message, progress, prompt_id=running.prompt_id)
        running.record.tell(state, message=message, progress=progress, promptId=running.prompt_id)
        if is_new:
            archive.event(state.value, {"message": message} if message else None)

    def _succeeded(
        self, running: _Running, archive: Archive, ready: work.Plan, result: Result, keys: dict[int, str]
    ) -> None:
        outputs = self._config.comfyui.output_dir or self._config.paths.outputs
        made = work.artifacts(ready, result, keys, outputs)
        params, meta = work.params(ready), {**work.meta(ready), "timings_ms": result.timings}
        warnings = (*ready.warnings, *result.warnings)
        shown = [artifact.as_dict() for artifact in made]
        # First what must not be lost, whatever becomes of the rest.
        running.reporter.completed(artifacts=made, params=params, meta=meta, warnings=warnings)
        running.record.end(
            Status.SUCCEEDED,
            {"result": {"artifacts": shown, "params": params.as_dict(), "meta": meta, "warnings": warnings}},
        )
        archive.event(Status.SUCCEEDED.value, {"artifacts": shown, "timings": result.timings})
        self._metrics.jobs.labels("SUCCESS", "").inc()
        self._metrics.phases(result.timings)
        self._metrics.delivered.inc(sum(artifact.bytes for artifact in made))

    def _failed(self, running: _Running, archive: Archive, error: SetteeError) -> None:
        if running.is_shutdown and isinstance(error, JobCanceled):
            error = AgentRestarted()
        state = ended(error)
        shown = failure_shown(error)
        running.reporter.failed(error)
        if not running.record.is_over:
            running.record.end(state, {"error": shown})
        archive.event(state.value, shown)
        self._metrics.jobs.labels(state.name, reason_code(error)).inc()
        log.info("job %s ended: %s", running.envelope.job_id, reason_code(error))

    def _activity(self) -> dict[str, Any] | None:
        """What ComfyUI's queue holds, in numbers: whose prompts they are is nobody's business."""
        running, pending = self._engine.queue()
        return {"running": running, "pending": pending, "timestamp": timestamps.stamp(timestamps.now())}
