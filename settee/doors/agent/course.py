"""One dispatched job, from its acceptance to its end, told at every step: callbacks, record, archive."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from settee.base import logs
from settee.base.errors import InvalidRequest, JobCanceled, JobTimeout, ModelMissing, SetteeError, StagingError
from settee.base.job import Cancel, Progress, Result, Status
from settee.base.settings import Settings
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.seeds import MAX_DRAWN
from settee.comfyui.workflow import Workflow
from settee.doors.agent import assets, work
from settee.doors.agent.archive import Archive
from settee.doors.agent.callbacks.interruption import AgentRestarted
from settee.doors.agent.callbacks.payloads import ended, failure_shown, reason_code
from settee.doors.agent.callbacks.reporter import Reporter
from settee.doors.agent.config import AgentConfig
from settee.doors.agent.dispatch.envelope import Envelope
from settee.doors.agent.engine_settings import ModelPlaces, spelled
from settee.doors.agent.leavings import Leavings
from settee.doors.agent.metrics import Metrics
from settee.doors.agent.record import Record
from settee.doors.agent.records import Records
from settee.doors.agent.secrets_out import secret_values
from settee.doors.agent.storage import Storage
from settee.engine import Engine
from settee.models.entry import ModelEntry
from settee.models.folder.file_state import FileState

log = logging.getLogger(__name__)

#: Mode long downloads that were given up may take to end, seconds.
_MODELS_S = 5.0
#: In what order a job goes through its states; the engine begins anew at PREPARING.
_ORDER = list(Status)
#: Why a job is canceled that nobody canceled.
SHUTDOWN = "the agent is shutting down"


@dataclass
class Dispatched:
    """The job in the slot."""

    envelope: Envelope
    record: Record
    reporter: Reporter
    prompt_id: str
    cancel: Cancel = field(default_factory=Cancel)


class Registry:
    """ComfyUI's node registry, as old as the configuration allows."""

    def __init__(self, engine: Engine, age_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._engine, self._age_s, self._clock = engine, age_s, clock
        self._known: tuple[float, NodeRegistry] | None = None

    @property
    def is_known(self) -> bool:
        """Whether the next answer may be an older one."""
        return self._known is not None and self._clock() - self._known[0] <= self._age_s

    def get(self, cancel: Cancel) -> NodeRegistry:
        """As Engine.node_registry."""
        if self._known is None or not self.is_known:
            self._known = (self._clock(), self._engine.node_registry(cancel))
        return self._known[1]

    def forget(self) -> None:
        self._known = None


@dataclass(frozen=True)
class Parts:
    """What every job of an agent shares."""

    config: AgentConfig
    settings: Settings
    engine: Engine
    storage: Storage
    places: ModelPlaces
    registry: Registry
    leavings: Leavings
    records: Records
    metrics: Metrics


class Course:
    """One job. :meth:`run` is for a thread of its own, and never raises."""

    def __init__(self, parts: Parts, job: Dispatched, on_end: Callable[[], None]) -> None:
        """``on_end`` is called when how it ended is on the disk, before anybody hears of it."""
        self._parts, self._job, self._envelope, self._on_end = parts, job, job.envelope, on_end
        self._state, self._begun = Status.QUEUED, time.monotonic()
        #: Models that were to go and are still there.
        self._left: list[ModelEntry] = []
        token = job.envelope.cancel_token
        self._archive = Archive(
            parts.config.paths.outputs,
            job.envelope.job_id,
            secrets=[
                *parts.config.secrets(),
                *([token.get_secret_value()] if token else []),
                *secret_values(job.envelope.shown()),
            ],
        )

    def run(self) -> None:
        """To the end, whatever that is. Afterwards nothing of the job is left."""
        with logs.job(self._envelope.job_id), self._archive, self._job.cancel:
            try:
                self._tell(Status.QUEUED)
                try:
                    done = self._work()
                finally:
                    # Before its end is told: whoever hears of that may send the next one at once.
                    self._parts.leavings.done(self._job.prompt_id, self._left)
                self._succeeded(*done)
            except SetteeError as error:
                self._failed(error)
            except Exception:
                log.exception("the job failed inside the agent")
                self._failed(SetteeError("the job failed inside the agent; its log has more"))

    def _check(self) -> None:
        """Before the engine has the job, and its time limit with it."""
        if self._job.cancel.is_set():
            raise JobCanceled(self._job.cancel.reason or None)
        if self._spent_s() > self._parts.config.comfyui.timeout_seconds:
            raise JobTimeout("the job's template and models could not be looked up within its time limit")

    def _spent_s(self) -> float:
        return time.monotonic() - self._begun

    # --- the work --------------------------------------------------------------------------------------------

    def _work(self) -> tuple[work.Plan, Result, dict[int, str]]:
        parts = self._parts
        self._tell(Status.PREPARING)
        parts.leavings.note(self._job.prompt_id)
        graph = work.template(self._envelope, parts.storage, parts.config.paths.workflows, self._check)
        self._check()
        folders = {"base_models": parts.places.base_models, "loras": parts.places.loras}
        shelf = parts.engine.shelf
        models = assets.resolve(self._envelope, parts.config, parts.storage, shelf, folders, self._check)
        self._check()
        ready = self._planned(graph, models)
        self._archive.manifest(self._envelope.shown(), ready.context.values, ready.workflow)
        self._archive.applied_workflow(ready.workflow)
        self._check()
        parts.metrics.phases({"preparing": self._spent_s() * 1000})
        self._tell(Status.MATERIALIZING)
        return ready, *self._rendered(ready, models)

    def _planned(self, graph: Workflow, models: assets.Assets) -> work.Plan:
        """What is refused by an older answer of ComfyUI's is looked at once more by a new one: files may have come."""
        parts, seed = self._parts, secrets.randbelow(MAX_DRAWN + 1)

        def planned() -> work.Plan:
            known = parts.registry.get(self._job.cancel)
            return work.plan(self._envelope, parts.config, graph, models, known, lambda: seed)

        was_known = parts.registry.is_known
        if not was_known:
            self._tell(Status.PREPARING, "waiting for ComfyUI to answer")
        try:
            return planned()
        except InvalidRequest:
            if not was_known:
                raise
        parts.registry.forget()
        return planned()

    def _rendered(self, ready: work.Plan, models: assets.Assets) -> tuple[Result, dict[int, str]]:
        parts, engine, cancel = self._parts, self._parts.engine, self._job.cancel
        job, keys = work.job_for(ready, parts.config, parts.settings, self._job.prompt_id, spent_s=self._spent_s())
        missing = self._missing(models.entries)
        parts.leavings.note(self._job.prompt_id, models.passing)
        try:
            result = self._listed(lambda: engine.run(job, self._progress, cancel), missing)
            parts.leavings.made(f"{each.comfy_subfolder}/{each.filename}".lstrip("/") for each in result.outputs)
            return result, keys
        finally:
            still = self._missing(missing)
            parts.metrics.staged.inc(sum(entry.size or 0 for entry in missing if entry not in still))
            # What a cancel gave up may land a moment later, and would then stay for good.
            engine.await_models(models.passing, _MODELS_S)
            self._left = assets.remove(models.passing, engine.shelf)

    def _listed(self, run: Callable[[], Result], missing: Sequence[ModelEntry]) -> Result:
        """ComfyUI may list what was just placed a little later: then it is asked once more."""
        try:
            return run()
        except ModelMissing:
            if not missing or self._missing(missing):
                raise
        self._job.cancel.wait(self._parts.config.comfyui.model_refresh_delay_seconds)
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
        return [entry for entry in entries if self._parts.engine.shelf.state(entry) is not FileState.RIGHT]

    # --- who is told -----------------------------------------------------------------------------------------

    def _progress(self, progress: Progress) -> None:
        if _ORDER.index(progress.status) < _ORDER.index(self._state):
            if progress.message:
                self._tell(self._state, progress.message)
            return
        said = {"phase": progress.status.value, "percent": progress.percent}
        said |= {"node": progress.node_id, "node_type": progress.node_type, "step": progress.value}
        said["max"] = progress.maximum
        self._tell(progress.status, progress.message, said)

    def _tell(self, state: Status, message: str | None = None, said: dict[str, Any] | None = None) -> None:
        is_new = state is not self._state or state is Status.QUEUED
        self._state = state
        progress = {name: value for name, value in (said or {}).items() if value is not None} or None
        self._job.reporter.state(state, message, progress, prompt_id=self._job.prompt_id)
        self._job.record.tell(state, message=message, progress=progress, promptId=self._job.prompt_id)
        if is_new:
            self._archive.event(state.value, {"message": message} if message else None)

    def _succeeded(self, ready: work.Plan, result: Result, keys: dict[int, str]) -> None:
        parts, metrics, job = self._parts, self._parts.metrics, self._job
        made = work.artifacts(ready, result, keys, parts.engine.output_dir or parts.config.paths.outputs)
        shown = [artifact.as_dict() for artifact in made]
        params, meta = work.params(ready), {**work.meta(ready), "timings_ms": result.timings}
        warnings = (*ready.warnings, *map(spelled, result.warnings))
        parts.records.end(
            job.record,
            Status.SUCCEEDED,
            {"result": {"artifacts": shown, "params": params.as_dict(), "meta": meta, "warnings": warnings}},
            lambda moment: job.reporter.completed(
                artifacts=made, params=params, meta=meta, warnings=warnings, finished_at=moment
            ),
        )
        self._on_end()
        log.info("SUCCESS: %d file(s) in %.1f s", len(made), self._spent_s())
        self._archive.event(Status.SUCCEEDED.value, {"artifacts": shown, "timings": result.timings})
        metrics.jobs.labels("SUCCESS", "").inc()
        metrics.phases(result.timings)
        metrics.delivered.inc(sum(artifact.bytes for artifact in made))

    def _failed(self, error: SetteeError) -> None:
        job = self._job
        if isinstance(error, JobCanceled) and job.cancel.reason == SHUTDOWN:
            error = AgentRestarted()
        if not job.record.is_over:
            self._parts.records.end_failed(
                job.record, error, lambda moment: job.reporter.failed(error, finished_at=moment)
            )
        self._on_end()
        log.info("%s: %s, %s (its archive has more)", ended(error).name, reason_code(error), type(error).__name__)
        self._archive.event(ended(error).value, failure_shown(error))
        self._parts.metrics.jobs.labels(ended(error).name, reason_code(error)).inc()
        timings = error.details.get("timings")
        self._parts.metrics.phases(timings if isinstance(timings, dict) else {})
