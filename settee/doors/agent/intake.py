"""Takes dispatches, one at a time, and runs each from its acceptance to its end. Knows nothing of HTTP.

Each step of a job is published once (:mod:`settee.service.events`).
"""

from __future__ import annotations

import gc
import logging
import secrets
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from typing import Any

from settee.base import logs
from settee.base.errors import InvalidRequest, JobCanceled, JobTimeout, ModelMissing, SetteeError, StagingError
from settee.base.job import Progress, Result, Status
from settee.base.settings import Settings
from settee.comfyui.seeds import MAX_DRAWN
from settee.comfyui.workflow import Workflow
from settee.doors.agent import assets, prepare
from settee.doors.agent.archive import Archive
from settee.doors.agent.assets import Leftovers, Storage
from settee.doors.agent.config import AgentConfig
from settee.doors.agent.contract import STATES, Job, JobResult
from settee.doors.agent.engine_settings import model_places
from settee.doors.agent.envelope import Envelope
from settee.doors.agent.reporting import INTERRUPTED_SEQ, AgentRestarted, JobCallbacks, failure
from settee.engine.engine import Engine
from settee.models.entry import ModelEntry
from settee.models.folder.file_state import FileState
from settee.models.required import names_of
from settee.service import callback_urls, timestamps
from settee.service.callbacks import Outbox
from settee.service.events import EventLog, Metrics, Outcome, Step, publish
from settee.service.scrub import secret_values
from settee.service.slot import SHUTDOWN, Slot, SlotJob
from settee.service.store import Attempt, Store

log = logging.getLogger(__name__)

#: How long downloads that were given up may take to end, seconds.
_MODELS_S = 5.0
#: The order in which a job goes through its states; the engine begins again at PREPARING.
_ORDER = list(Status)


def event_log(attempt: Attempt, **options: Any) -> EventLog:
    """Return the log of a job, which shows each step as GET /jobs/{id} does. ``options`` are EventLog's."""

    def render(step: Step) -> dict[str, Any]:
        shown: dict[str, Any] = {"jobId": attempt.job_id, "state": STATES[step.state]}
        shown["acceptedAt"] = timestamps.stamp(attempt.started_at)
        if attempt.prompt_id is not None:
            shown["promptId"] = attempt.prompt_id
        if step.outcome is None:
            return Job.model_validate({**shown, "message": step.message, "progress": step.progress}).shown()
        # Not through the model: what a store has kept for long is shown as it was.
        return {**shown, "finishedAt": timestamps.stamp(step.moment), **step.outcome.body}

    # Of two jobs with one id, one after the other, each begins above the other's: Last-Event-ID stays true.
    first = Step(state=Status.QUEUED, moment=attempt.started_at)
    return EventLog(attempt.job_id, int(attempt.started_at.timestamp() * 1000), render, shown=render(first), **options)


class JobRun:
    """One job. :meth:`run` is for a thread of its own, and never raises."""

    def __init__(self, intake: Intake, envelope: Envelope, attempt: Attempt, slot_job: SlotJob) -> None:
        self._intake, self._envelope, self._attempt, self._slot_job = intake, envelope, attempt, slot_job
        self._prompt_id, self._cancel = attempt.prompt_id or "", slot_job.cancel
        self._state, self._begun = Status.QUEUED, time.monotonic()
        #: What it leaves: models that go with it, and files below ComfyUI's output folder.
        self._passing: Sequence[ModelEntry] = ()
        self._made: list[str] = []
        token = envelope.cancel_token
        hidden = [*intake.config.secrets(), *secret_values(envelope.shown())]
        hidden += [token.get_secret_value()] if token else []
        self._archive = Archive(intake.config.paths.outputs, envelope.job_id, secrets=hidden)
        self.log = event_log(attempt, interval_s=intake.config.comfyui.poll_interval_seconds)
        self._callbacks = JobCallbacks(
            attempt,
            intake.outbox.note,
            heartbeat_s=intake.config.callbacks.heartbeat_seconds,
            activity=intake.activity,
        )
        self._subscribers = self._callbacks, self.log, self._archive.on_step, intake.metrics.on_step

    def run(self) -> None:
        """Run the job to its end, whatever that is. Afterwards nothing of it is left."""
        with logs.job(self._envelope.job_id), self._cancel:
            try:
                self._publish(Status.QUEUED)
                try:
                    result, timings = self._work()
                finally:
                    # Before its end is reported: its dispatcher may send the next one at once.
                    self._intake.leftovers.done(self._prompt_id, self._passing, self._made)
                self._succeeded(result, timings)
            except SetteeError as error:
                self.fail(error)
            except Exception:
                log.exception("the job failed inside the agent")
                self.fail(SetteeError("the job failed inside the agent; its log has more"))

    def _check(self) -> None:
        """Before the engine has the job, and its time limit with it."""
        if self._cancel.is_set():
            raise JobCanceled(self._cancel.reason or None)
        if self._spent_s() > self._intake.config.comfyui.timeout_seconds:
            raise JobTimeout("the job's template and models could not be looked up within its time limit")

    def _spent_s(self) -> float:
        return time.monotonic() - self._begun

    # --- the work ---------------------------------------------------------------------------------------------

    def _work(self) -> tuple[JobResult, dict[str, float]]:
        intake, config, engine = self._intake, self._intake.config, self._intake.engine
        self._publish(Status.PREPARING)
        graph = intake.storage.template(self._envelope, config.paths.workflows, self._check)
        targets = model_places(config).targets
        models = assets.resolve(self._envelope, config, intake.storage, engine.model_folder, targets, self._check)
        self._check()
        ready = self._planned(graph, models)
        self._archive.prepared(self._envelope.shown(), ready.context.values, ready.workflow)
        self._check()
        intake.metrics.phases({"preparing": self._spent_s() * 1000})
        self._publish(Status.MATERIALIZING)
        job, keys = prepare.job_for(ready, config, intake.settings, self._prompt_id, spent_s=self._spent_s())
        missing = self._missing(models.entries)
        self._passing = models.passing
        intake.leftovers.note(models.passing)
        try:
            result = self._listed(lambda: engine.run(job, self._progress, self._cancel), missing)
        finally:
            still = self._missing(missing)
            intake.metrics.staged.inc(sum(entry.size or 0 for entry in missing if entry not in still))
            # What a cancel gave up may be put in place a moment later, and would then stay for good.
            engine.await_models(models.passing, _MODELS_S)
        self._made = [f"{each.comfy_subfolder}/{each.filename}".lstrip("/") for each in result.outputs]
        return prepare.result_of(ready, result, keys, engine.output_dir or config.paths.outputs), result.timings

    def _planned(self, graph: Workflow, models: assets.Assets) -> prepare.Plan:
        """Check again by a new answer of ComfyUI's what an older one refuses: files may have come."""
        intake, seed, begun = self._intake, secrets.randbelow(MAX_DRAWN + 1), time.monotonic()

        def waits() -> None:
            self._publish(Status.PREPARING, "waiting for ComfyUI to answer")

        def planned(max_age_s: float) -> prepare.Plan:
            known = intake.engine.backend.node_registry(self._cancel, max_age_s=max_age_s, on_wait=waits)
            return prepare.plan(self._envelope, intake.config, graph, models, known, lambda: seed)

        try:
            return planned(intake.config.comfyui.object_info_cache_seconds)
        except InvalidRequest:
            return planned(time.monotonic() - begun)

    def _listed(self, run: Callable[[], Result], missing: Sequence[ModelEntry]) -> Result:
        """Run again where ComfyUI does not list yet what was just placed."""
        try:
            return run()
        except ModelMissing:
            if not missing or self._missing(missing):
                raise
        self._cancel.wait(self._intake.config.comfyui.model_refresh_delay_seconds)
        try:
            return run()
        except ModelMissing as error:
            names = {str(problem.get("value")) for problem in error.details.get("problems") or ()}
            if names.isdisjoint(names_of(missing)):
                raise
            # Its dispatcher has done nothing wrong.
            raise StagingError(
                "the job's models are in place, but ComfyUI does not list them: paths.base_models and paths.loras "
                "must be the folders that this ComfyUI reads"
            ) from error

    def _missing(self, entries: Sequence[ModelEntry]) -> list[ModelEntry]:
        return [entry for entry in entries if self._intake.engine.model_folder.state(entry) is not FileState.RIGHT]

    # --- its steps --------------------------------------------------------------------------------------------

    def _progress(self, progress: Progress) -> None:
        if _ORDER.index(progress.status) >= _ORDER.index(self._state):
            shown = {"phase": progress.status.value, "percent": progress.percent, "node": progress.node_id}
            shown |= {"node_type": progress.node_type, "step": progress.value, "max": progress.maximum}
            self._publish(progress.status, progress.message, shown)
        elif progress.message:
            self._publish(self._state, progress.message)

    def _publish(self, state: Status, message: str | None = None, progress: dict[str, Any] | None = None) -> None:
        self._state = state
        step = Step(state=state, moment=timestamps.now(), message=message, progress=progress)
        publish(step, *self._subscribers)

    def _succeeded(self, result: JobResult, timings: dict[str, float]) -> None:
        size = sum(each.bytes for each in result.artifacts)
        outcome = Outcome(body={"result": result.shown()}, timings=timings, delivered_bytes=size)
        self._end(Step(state=Status.SUCCEEDED, moment=timestamps.now(), outcome=outcome))
        log.info("SUCCESS: %d file(s) in %.1f s", len(result.artifacts), self._spent_s())

    def fail(self, error: SetteeError, *, has_begun: bool = True) -> None:
        """End the job with an error. ``has_begun``: False when it never ran, and the same dispatch may come again."""
        if self.log.is_over:
            return
        if isinstance(error, JobCanceled) and self._cancel.reason == SHUTDOWN:
            error = AgentRestarted()
        step = failure(error)
        self._end(step, forget_key=not has_begun)
        code = step.outcome.reason_code if step.outcome else ""
        log.info("%s: %s, %s (its archive has more)", step.state.name, code, type(error).__name__)

    def _end(self, step: Step, *, forget_key: bool = False) -> None:
        """Store how it ended before anything of that is sent or shown; the slot is free before anything is sent."""
        callbacks = self._callbacks.closing(step)

        def on_stored() -> None:
            self.log(step)
            self._intake.slot.ended(self._slot_job)

        ending = self.log.ending(step)
        self._intake.outbox.finish(self._attempt, ending, callbacks, on_stored=on_stored, forget_key=forget_key)
        publish(step, *self._subscribers)


# --- taking jobs ------------------------------------------------------------------------------------------------


class OtherBody(InvalidRequest):
    """The same Idempotency-Key came with another body: use a new key for another job."""


def report_interrupted(store: Store) -> list[Attempt]:
    """End the attempts that ran when the agent was stopped: FAILED, reported where their callbacks go.

    Before the outbox starts. Returns them. Raises StoreError.
    """
    found = store.running()
    for attempt in found:
        step = failure(AgentRestarted())
        callbacks = JobCallbacks(attempt, seq=INTERRUPTED_SEQ - 1).closing(step)
        store.end(attempt.id, event_log(attempt).ending(step), callbacks[-1] if callbacks else None)
        log.warning("job %s was interrupted by a restart; its dispatcher is notified", attempt.job_id)
    return found


class Intake:
    """What all jobs of an agent share. Every method may be called from any thread; none waits for a job."""

    def __init__(
        self,
        config: AgentConfig,
        settings: Settings,
        engine: Engine,
        store: Store,
        outbox: Outbox,
    ) -> None:
        self.config, self.settings, self.engine = config, settings, engine
        self.store, self.outbox, self.storage = store, outbox, Storage(settings)
        self.slot = Slot(engine, config.comfyui.timeout_seconds)
        self.leftovers = Leftovers(store, engine, config.paths.outputs)
        #: Of the job that was accepted last: the ends of those before are in the store.
        self._log: EventLog | None = None
        #: One dispatch at a time: held while the state folder's disk takes its time.
        self._taking = threading.Lock()
        self.metrics = Metrics(
            restarts=lambda: engine.backend.restarts,
            depth=lambda: int(self.slot.is_busy),
            callbacks=lambda: outbox.pending,
        )

    def start(self, interrupted: Sequence[Attempt] = ()) -> None:
        """Clear up after jobs that a killed agent left (:func:`report_interrupted`). Before the first job."""
        self.leftovers.clear(interrupted)
        self.slot.recover(self._prepare)

    def _prepare(self) -> None:
        self.storage.prepare()
        # What is there by now stays: without it, a round of the garbage collector is short (40 ms with).
        gc.freeze()

    def log_of(self, job_id: str) -> EventLog | None:
        """Return the log of the latest job of this id; None if it is not known any more. May wait for the disk.

        Raises StoreError.
        """
        found = self._log
        return found if found is not None and found.job_id == job_id else EventLog.stored(self.store, job_id)

    def submit(self, envelope: Envelope, key: str | None = None, digest: str = "") -> str:
        """Take a job, and begin it; returns its id. The same ``key`` and ``digest`` of a body twice is one job.

        Raises Busy, OtherBody, InvalidRequest (an address of a callback), StagingError (the state folder). May wait
        for the disk.
        """
        callbacks = self.config.callbacks
        urls = callback_urls.checked(
            dict(envelope.callbacks), base_url=callbacks.base_url, hosts=callbacks.allowed_hosts
        )
        with self._taking:
            if key is not None and (known := self.store.known_key(key)) is not None:
                if known[0] != digest:
                    raise OtherBody
                return known[1]
            slot_job = SlotJob(envelope.job_id, envelope.cancel_token)
            try:
                self.slot.take(slot_job)
                self._begin(envelope, urls, slot_job, key, digest)
            except BaseException:
                self.slot.free(slot_job)
                slot_job.cancel.close()
                raise
        log.info("job %s is accepted", envelope.job_id)
        return envelope.job_id

    def _begin(self, envelope: Envelope, urls: dict[str, str], slot_job: SlotJob, key: str | None, digest: str) -> None:
        """From here on its dispatcher learns how it ends, whatever happens. Raises StagingError."""
        attempt = Attempt(
            id=str(uuid.uuid4()),
            job_id=envelope.job_id,
            started_at=timestamps.now(),
            prompt_id=str(uuid.uuid4()),
            details={"client_id": self.config.comfyui.client_id, "urls": urls},
        )
        job = JobRun(self, envelope, attempt, slot_job)
        self.outbox.accept(attempt, key, digest)
        self._log = job.log
        try:
            self.slot.start(slot_job, job.run)
        except RuntimeError as error:  # no more threads
            refused = StagingError("the agent cannot start another thread", retryable=True)
            job.fail(refused, has_begun=False)
            raise refused from error

    def activity(self) -> dict[str, Any]:
        """Return what ComfyUI's queue holds, in numbers: whose prompts they are is not for others."""
        running, pending = self.engine.backend.queue()
        return {"running": running, "pending": pending, "timestamp": timestamps.stamp(timestamps.now())}
