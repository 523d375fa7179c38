"""One job on its way through the engine: the hops of ARCHITECTURE.md, one after another."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from settee.backends.backend import Backend, Limits, Notify
from settee.base.errors import JobCanceled, JobTimeout, SetteeError, StagingError
from settee.base.job import Artifact, Cancel, Job, OnProgress, Progress, Result, Status
from settee.base.settings import Settings
from settee.delivery import BucketLook, Delivered, check_request, deliver
from settee.delivery.plan import MAX_WARNINGS
from settee.models.model_store import ModelStore
from settee.models.orders import Order
from settee.staging.inputs import Staged, stage

log = logging.getLogger(__name__)


class JobRun:
    """The state of one job on its way through the engine."""

    def __init__(
        self,
        job: Job,
        backend: Backend,
        models: ModelStore,
        settings: Settings,
        on_progress: OnProgress,
        cancel: Cancel,
    ) -> None:
        self._job, self._backend, self._models, self._settings = job, backend, models, settings
        self._on_progress = on_progress
        self._started = time.monotonic()
        self._limits = Limits(cancel=cancel, deadline=self._started + (job.request.timeout_s or settings.job_timeout_s))
        self._notify = Notify(
            waiting=self._waits, submitted=lambda: self._report(Status.SUBMITTED), progress=self._progress
        )
        self._timings: dict[str, float] = {}
        self._percent = 0.0
        self._status = Status.PREPARING

    def go(self) -> Result:
        """Return its Result, or raise, once the backend is idle and the workspace wiped."""
        job, backend = self._job, self._backend
        try:
            backend.settle()
            with self._timed("wipe"):
                self._clean()
            self._report(Status.PREPARING)
            # What can be refused without the backend.
            check_request(job.request, self._settings)
            backend.check_policy(job)
            bucket = BucketLook(job, self._settings)
            # From here on its models are fetched, and read ahead, while the backend starts and inputs are staged.
            request = job.request
            with Order.begin(
                self._models, request.workflow, request.models, request.bucket, is_sealed=job.sealed
            ) as order:
                result = self._work(order, bucket)
        except (JobCanceled, JobTimeout) as error:
            self._explain_end(error)
            raise
        finally:
            backend.end_job()
            with self._timed("wipe"):
                self._wipe()
        self._timings["total"] = self._since(self._started)
        return replace(result, timings=dict(self._timings))

    def _work(self, order: Order, bucket: BucketLook) -> Result:
        job, backend, limits, notify = self._job, self._backend, self._limits, self._notify
        with self._timed("ready"):
            backend.ready(limits, notify)
        checked = backend.check(job, order.entries)
        order.narrow(checked.live)
        with self._timed("staging"):
            staged = self._stage()
            backend.take(job, checked, staged)
        with self._timed("models"):
            self._await_models(order)
        bucket.check(limits.cancel)
        with self._timed("execution"):
            collect = backend.execute(job, checked, staged, limits, notify)
        with self._timed("delivery"):
            made = collect()
            delivered = self._deliver(made.artifacts)
        # Each once, and so many: a node that reports thousands of entries must not cost the job its result.
        warnings = list(dict.fromkeys((*checked.warnings, *made.warnings, *delivered.warnings)))
        if len(warnings) > MAX_WARNINGS:
            warnings[MAX_WARNINGS:] = [f"and {len(warnings) - MAX_WARNINGS} more warnings"]
        return Result(
            job_id=job.id,
            status=Status.SUCCEEDED,
            outputs=delivered.outputs,
            seeds=checked.seeds,
            warnings=tuple(warnings),
        )

    # --- the hops -------------------------------------------------------------------------------------------

    def _clean(self) -> None:
        """An empty workspace, or no job: no job sees what an earlier one left."""
        left = self._backend.workspace.open().left
        if left:
            raise StagingError(f"{len(left)} files of an earlier job cannot be removed from the workspace")

    def _stage(self) -> tuple[Staged, ...]:
        request = self._job.request
        if not request.images and not request.files:
            return ()
        self._report(Status.MATERIALIZING)
        return stage(
            request.files,
            request.images,
            self._backend.workspace,
            self._settings,
            cancel=self._limits.cancel,
            deadline=self._limits.deadline,
            bucket=request.bucket,
            notify=lambda done, total: self._report(Status.MATERIALIZING, message=f"{done} of {total} files"),
        )

    def _await_models(self, order: Order) -> None:
        """Every model that the workflow names is in place, whole, and stays there until the job has ended."""

        def notify(message: str) -> None:
            self._report(Status.MATERIALIZING, message=message)

        if order.wait(self._limits.cancel, self._limits.deadline, notify):
            # A backend keeps what it loaded under a name: it would use the file of before.
            self._backend.free()
            order.forgotten()

    def _deliver(self, artifacts: list[Artifact]) -> Delivered:
        self._report(Status.UPLOADING)
        return deliver(
            artifacts,
            self._job,
            self._settings,
            fetch=self._backend.fetch,
            cancel=self._limits.cancel,
            deadline=self._limits.deadline,
            notify=lambda done, total: self._report(Status.UPLOADING, message=f"{done} of {total} files"),
        )

    def _wipe(self) -> None:
        if self._job.request.debug and self._settings.allow_debug and not self._job.sealed:
            log.warning("job %s asked for debug: its files stay until the next job", self._job.id)
            return
        left = self._backend.workspace.wipe().left
        if left:
            log.error("job %s: %d files could not be wiped", self._job.id, len(left))

    def _explain_end(self, error: SetteeError) -> None:
        if isinstance(error, JobTimeout):
            limit = self._limits.deadline - self._started
            error.message = f"the job ran into its time limit of {limit:g} s; raise timeout_s if it needs longer"
        error.details.setdefault("timings", dict(self._timings))

    # --- progress and timings -------------------------------------------------------------------------------

    def _waits(self) -> None:
        self._report(self._status, message="waiting for ComfyUI to answer")

    def _progress(
        self, node_id: str | None, node_type: str | None, value: int | None, maximum: int | None, percent: float
    ) -> None:
        # A job that runs a second time begins again; what its caller sees does not fall.
        self._percent = max(self._percent, percent)
        self._report(
            Status.RUNNING,
            node_id=node_id,
            node_type=node_type,
            value=value,
            maximum=maximum,
            percent=self._percent,
        )

    def _report(self, status: Status, **fields: Any) -> None:
        self._status = status
        self._on_progress(Progress(job_id=self._job.id, status=status, **fields))

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            self._timings[phase] = round(self._timings.get(phase, 0.0) + self._since(begun), 2)

    @staticmethod
    def _since(begun: float) -> float:
        """Milliseconds."""
        return round((time.monotonic() - begun) * 1000, 2)


__all__ = ["JobRun"]
