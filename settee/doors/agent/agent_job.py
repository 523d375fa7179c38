"""One dispatched job, from its acceptance to its end. Each step is published once (:mod:`settee.service.events`)."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from settee.base import logs
from settee.base.errors import InvalidRequest, JobCanceled, JobTimeout, ModelMissing, SetteeError, StagingError
from settee.base.job import Cancel, Progress, Result, Status
from settee.base.settings import Settings
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.seeds import MAX_DRAWN
from settee.comfyui.workflow import Workflow
from settee.doors.agent import assets, contract, prepare
from settee.doors.agent.archive import Archive
from settee.doors.agent.config import AgentConfig
from settee.doors.agent.contract import Job, JobResult
from settee.doors.agent.engine_settings import ModelPlaces, spelled
from settee.doors.agent.envelope import Envelope
from settee.doors.agent.heartbeats import AgentRestarted, JobCallbacks
from settee.doors.agent.leftovers import Leftovers
from settee.doors.agent.reasons import job_error, reason_code
from settee.doors.agent.storage import Storage
from settee.engine.engine import Engine
from settee.models.entry import ModelEntry
from settee.models.folder.file_state import FileState
from settee.service import timestamps
from settee.service.callbacks import Outbox
from settee.service.events import EventLog, JobEvents, Outcome, Step
from settee.service.metrics import Metrics
from settee.service.scrub import secret_values
from settee.service.slot import SHUTDOWN, Slot, SlotJob
from settee.service.store import Attempt

log = logging.getLogger(__name__)

#: How long downloads that were given up may take to end, seconds.
_MODELS_S = 5.0
#: In what order a job goes through its states; the engine begins again at PREPARING.
_ORDER = list(Status)


class Registry:
    """ComfyUI's node registry, as old as the configuration allows."""

    def __init__(self, engine: Engine, age_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine, self._age_s, self._clock = engine, age_s, clock
        self._known: tuple[float, NodeRegistry] | None = None

    @property
    def is_known(self) -> bool:
        """Return True if the next answer may be an older one."""
        return self._known is not None and self._clock() - self._known[0] <= self._age_s

    def get(self, cancel: Cancel) -> NodeRegistry:
        """Return what ComfyBackend.node_registry does."""
        if self._known is None or not self.is_known:
            self._known = (self._clock(), self._engine.backend.node_registry(cancel))
        return self._known[1]

    def forget(self) -> None:
        self._known = None


@dataclass(frozen=True)
class Parts:
    """Parts that all jobs of an agent share."""

    config: AgentConfig
    settings: Settings
    engine: Engine
    slot: Slot
    outbox: Outbox
    storage: Storage
    places: ModelPlaces
    registry: Registry
    leftovers: Leftovers
    metrics: Metrics


def event_log(attempt: Attempt, **options: Any) -> EventLog:
    """Return the log of a job, which shows each step as GET /jobs/{id} does. ``options`` are EventLog's."""

    def render(step: Step) -> dict[str, Any]:
        shown = {
            "jobId": attempt.job_id,
            "state": contract.STATES[step.state],
            "acceptedAt": timestamps.stamp(attempt.started_at),
            "promptId": attempt.prompt_id,
        }
        if step.outcome is None:
            return Job.model_validate({**shown, "message": step.message, "progress": step.progress}).shown()
        # Not through the model: what a store has kept for long is shown as it was.
        known = {name: value for name, value in shown.items() if value is not None}
        return {**known, "finishedAt": timestamps.stamp(step.moment), **step.outcome.body}

    # Of two jobs with one id, one after the other, each begins above the other's: Last-Event-ID stays true.
    first = Step(state=Status.QUEUED, moment=attempt.started_at)
    return EventLog(attempt.job_id, int(attempt.started_at.timestamp() * 1000), render, shown=render(first), **options)


def failure(state: Status, error: SetteeError) -> Step:
    """Return the last step of a job that failed, or was canceled."""
    timings = error.details.get("timings")
    outcome = Outcome(
        body={"error": job_error(error).shown()},
        reason_code=reason_code(error),
        timings=timings if isinstance(timings, dict) else {},
    )
    return Step(state=state, moment=timestamps.now(), outcome=outcome)


class JobRun:
    """One job. :meth:`run` is for a thread of its own, and never raises."""

    def __init__(
        self, parts: Parts, envelope: Envelope, attempt: Attempt, slot_job: SlotJob, callbacks: JobCallbacks
    ) -> None:
        self._parts, self._envelope, self._attempt, self._slot_job = parts, envelope, attempt, slot_job
        self._prompt_id, self._cancel = attempt.prompt_id or "", slot_job.cancel
        self._state, self._begun = Status.QUEUED, time.monotonic()
        #: Models that were to go and are still there.
        self._left: list[ModelEntry] = []
        token = envelope.cancel_token
        self._archive = Archive(
            parts.config.paths.outputs,
            envelope.job_id,
            secrets=[
                *parts.config.secrets(),
                *([token.get_secret_value()] if token else []),
                *secret_values(envelope.shown()),
            ],
        )
        self.log = event_log(attempt, interval_s=parts.config.comfyui.poll_interval_seconds)
        self._callbacks = callbacks
        self._events = JobEvents(callbacks, self.log, self._archive.on_step, parts.metrics.on_step)

    def run(self) -> None:
        """Run the job to its end, whatever that is. Afterwards nothing of it is left."""
        with logs.job(self._envelope.job_id), self._archive, self._cancel:
            try:
                self._publish(Status.QUEUED)
                try:
                    result, timings = self._work()
                finally:
                    # Before its end is reported: its dispatcher may send the next one at once.
                    self._parts.leftovers.done(self._prompt_id, self._left)
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
        if self._spent_s() > self._parts.config.comfyui.timeout_seconds:
            raise JobTimeout("the job's template and models could not be looked up within its time limit")

    def _spent_s(self) -> float:
        return time.monotonic() - self._begun

    # --- the work ---------------------------------------------------------------------------------------------

    def _work(self) -> tuple[JobResult, dict[str, float]]:
        parts = self._parts
        self._publish(Status.PREPARING)
        graph = prepare.template(self._envelope, parts.storage, parts.config.paths.workflows, self._check)
        self._check()
        folders = {"base_models": parts.places.base_models, "loras": parts.places.loras}
        model_folder = parts.engine.model_folder
        models = assets.resolve(self._envelope, parts.config, parts.storage, model_folder, folders, self._check)
        self._check()
        ready = self._planned(graph, models)
        self._archive.manifest(self._envelope.shown(), ready.context.values, ready.workflow)
        self._archive.applied_workflow(ready.workflow)
        self._check()
        parts.metrics.phases({"preparing": self._spent_s() * 1000})
        self._publish(Status.MATERIALIZING)
        result, keys = self._rendered(ready, models)
        outputs = parts.engine.output_dir or parts.config.paths.outputs
        warnings = [spelled(each) for each in result.warnings]
        return prepare.result_of(ready, result, keys, outputs, warnings), result.timings

    def _planned(self, graph: Workflow, models: assets.Assets) -> prepare.Plan:
        """Check again by a new answer of ComfyUI's what an older one refuses: files may have come."""
        parts, seed = self._parts, secrets.randbelow(MAX_DRAWN + 1)

        def planned() -> prepare.Plan:
            known = parts.registry.get(self._cancel)
            return prepare.plan(self._envelope, parts.config, graph, models, known, lambda: seed)

        was_known = parts.registry.is_known
        if not was_known:
            self._publish(Status.PREPARING, "waiting for ComfyUI to answer")
        try:
            return planned()
        except InvalidRequest:
            if not was_known:
                raise
        parts.registry.forget()
        return planned()

    def _rendered(self, ready: prepare.Plan, models: assets.Assets) -> tuple[Result, dict[int, str]]:
        parts, engine = self._parts, self._parts.engine
        job, keys = prepare.job_for(ready, parts.config, parts.settings, self._prompt_id, spent_s=self._spent_s())
        missing = self._missing(models.entries)
        parts.leftovers.note(models.passing)
        try:
            result = self._listed(lambda: engine.run(job, self._progress, self._cancel), missing)
            parts.leftovers.made(f"{each.comfy_subfolder}/{each.filename}".lstrip("/") for each in result.outputs)
            return result, keys
        finally:
            still = self._missing(missing)
            parts.metrics.staged.inc(sum(entry.size or 0 for entry in missing if entry not in still))
            # What a cancel gave up may land a moment later, and would then stay for good.
            engine.await_models(models.passing, _MODELS_S)
            self._left = assets.remove(models.passing, engine.model_folder)

    def _listed(self, run: Callable[[], Result], missing: Sequence[ModelEntry]) -> Result:
        """ComfyUI may list what was just placed a little later: then it is asked again."""
        try:
            return run()
        except ModelMissing:
            if not missing or self._missing(missing):
                raise
        self._cancel.wait(self._parts.config.comfyui.model_refresh_delay_seconds)
        try:
            return run()
        except ModelMissing as error:
            names = {str(problem.get("value")) for problem in error.details.get("problems") or ()}
            if not names.intersection(entry.name for entry in missing):
                raise
            # Its dispatcher has done nothing wrong.
            raise StagingError(
                "the job's models are in place, but ComfyUI does not list them: paths.base_models and paths.loras "
                "must be the folders that this ComfyUI reads"
            ) from error

    def _missing(self, entries: Sequence[ModelEntry]) -> list[ModelEntry]:
        return [entry for entry in entries if self._parts.engine.model_folder.state(entry) is not FileState.RIGHT]

    # --- its steps --------------------------------------------------------------------------------------------

    def _progress(self, progress: Progress) -> None:
        if _ORDER.index(progress.status) < _ORDER.index(self._state):
            if progress.message:
                self._publish(self._state, progress.message)
            return
        said = {"phase": progress.status.value, "percent": progress.percent}
        said |= {"node": progress.node_id, "node_type": progress.node_type, "step": progress.value}
        said["max"] = progress.maximum
        self._publish(progress.status, progress.message, said)

    def _publish(self, state: Status, message: str | None = None, progress: dict[str, Any] | None = None) -> None:
        is_new = state is not self._state or state is Status.QUEUED
        self._state = state
        said = {name: value for name, value in (progress or {}).items() if value is not None} or None
        self._events.publish(Step(state=state, moment=timestamps.now(), message=message, progress=said, is_new=is_new))

    def _succeeded(self, result: JobResult, timings: dict[str, float]) -> None:
        outcome = Outcome(
            body={"result": result.shown()},
            timings=timings,
            delivered_bytes=sum(each.bytes for each in result.artifacts),
        )
        self._end(Step(state=Status.SUCCEEDED, moment=timestamps.now(), outcome=outcome))
        log.info("SUCCESS: %d file(s) in %.1f s", len(result.artifacts), self._spent_s())

    def fail(self, error: SetteeError, *, has_begun: bool = True) -> None:
        """End the job with an error. ``has_begun``: False when it never ran, and the same dispatch may come again."""
        if self.log.is_over:
            return
        if isinstance(error, JobCanceled) and self._cancel.reason == SHUTDOWN:
            error = AgentRestarted()
        step = failure(contract.ended(error), error)
        self._end(step, forget_key=not has_begun)
        if not has_begun:
            self._archive.close()
        code = step.outcome.reason_code if step.outcome else ""
        log.info("%s: %s, %s (its archive has more)", step.state.name, code, type(error).__name__)

    def _end(self, step: Step, *, forget_key: bool = False) -> None:
        """Store how it ended before anything of that is sent or shown; the slot is free before anything is sent."""
        last, terminal = self._callbacks.closing(step)

        def on_stored() -> None:
            self.log(step)
            self._parts.slot.ended(self._slot_job)

        self._parts.outbox.finish(
            self._attempt, self.log.ending(step), last, terminal, on_stored=on_stored, forget_key=forget_key
        )
        self._events.publish(step)
