"""Runs one job, start to finish: the hops of ARCHITECTURE.md, one after another. It knows no door.

Ordinary blocking code: a GPU does one job at a time. What must be able to interrupt it (a cancel, a deadline) goes
through a Cancel token and a time in time.monotonic().
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from settee.backends.backend import Backend
from settee.backends.comfy.comfy_backend import ComfyBackend
from settee.base.errors import Busy, ComfyUnavailable, JobCanceled, JobTimeout, StagingError
from settee.base.job import Cancel, Job, Limits, OnProgress, Progress, Result, Status
from settee.base.settings import Settings
from settee.delivery import Delivery, check_request
from settee.delivery.plan import MAX_WARNINGS
from settee.models.entry import ModelEntry
from settee.models.folder.model_folder import ModelFolder
from settee.models.model_store import ModelStore
from settee.models.orders import Order
from settee.staging.inputs import Staged, Staging

log = logging.getLogger(__name__)

_CLOSING = "the worker is shutting down"


class Engine:
    """One backend, one workspace, one job at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        #: For a door that asks ComfyUI itself: if it answers, its node registry, its queue, how often it was started.
        self.backend = ComfyBackend(settings)
        self._models = ModelStore(settings)
        self._slot, self._closing = threading.Lock(), threading.Event()
        self._running: Cancel | None = None
        self._claimed = False

    # --- life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to start the backend and to place models; wait for neither. Raises ConfigError."""
        self._models.load()
        self._claim()
        self.backend.workspace.open()
        self.backend.start()
        self._models.start()

    def _claim(self) -> None:
        """Nothing is wiped, by a job or at the end, in folders that are not this worker's. Raises ConfigError."""
        if not self._claimed:
            self.backend.workspace.claim()
            self._claimed = True
            self.backend.claimed()

    @property
    def model_folder(self) -> ModelFolder:
        """The models folder: for a door that has models of its own to name and to remove."""
        return self._models.tools.folder

    @property
    def output_dir(self) -> Path | None:
        """Where ComfyUI writes, wiped around every job; None where its files only come over HTTP."""
        return self.backend.workspace.folders.output if self.backend.is_shared else None

    def await_models(self, entries: Sequence[ModelEntry], timeout_s: float) -> bool:
        """Wait until nothing of these is fetched any more, after the job that brought them; False if it still is.

        What a canceled job gave up may still be put in place a moment later.
        """
        return self._models.await_end(entries, timeout_s)

    def settle(self, timeout_s: float, is_over: Callable[[], bool]) -> bool:
        """Wait until ComfyUI runs nothing of an earlier job any more, and has forgotten it; False if it still does.

        One that is not ours, and takes its time to stop, may after :meth:`run` has returned. ``is_over``: give up.
        """
        if not self._slot.acquire(blocking=False):
            return False
        try:
            deadline = time.monotonic() + timeout_s
            return self.backend.stop_leftovers(deadline, lambda: is_over() or self._closing.is_set())
        finally:
            self._slot.release()

    def close(self) -> None:
        """Cancel the job that runs, stop ComfyUI, wipe. No job runs afterwards."""
        if self._closing.is_set():
            return
        self._closing.set()
        if (running := self._running) is not None:
            running.set(_CLOSING)
        # The job's own deadlines bound this; what is left after them is ended with ComfyUI.
        self._slot.acquire(timeout=2 * self._settings.comfy_interrupt_s + 5)
        self._models.give_up()  # downloads end while ComfyUI does
        self.backend.close()
        self._models.close()
        if self._claimed:
            _wipe(self.backend, "at the end")
            self.backend.workspace.release()

    # --- one job --------------------------------------------------------------------------------------------

    def run(self, job: Job, on_progress: OnProgress = lambda _: None, cancel: Cancel | None = None) -> Result:
        """Run a job; return its Result once ComfyUI is idle and the workspace wiped, whatever happened.

        Raises a SetteeError for every way in which a job can fail: Busy while another one runs, JobCanceled,
        JobTimeout, and the rest of the tree in errors.py.
        """
        if self._closing.is_set():
            raise ComfyUnavailable(_CLOSING, retryable=True)
        if not self._slot.acquire(blocking=False):
            raise Busy
        try:
            self._claim()
            with ExitStack() as stack:
                token = self._running = cancel if cancel is not None else stack.enter_context(Cancel())
                if self._closing.is_set():
                    token.set(_CLOSING)
                if job.sealer:
                    stack.enter_context(self.backend.quiet())
                return JobRun(job, self.backend, self._models, self._settings, on_progress, token).go()
        finally:
            self.backend.forget_note()
            self._running = None
            self._slot.release()


def _wipe(backend: Backend, when: str) -> None:
    left = backend.workspace.wipe()
    if left:
        log.error("%d files could not be wiped %s", len(left), when)


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
        self._timings: dict[str, float] = {}
        self._percent, self._status = 0.0, Status.PREPARING

    def go(self) -> Result:
        """Return its Result, or raise, once the backend is idle and the workspace wiped."""
        job, backend = self._job, self._backend
        try:
            backend.settle()
            with self._timed("wipe"):
                left = backend.workspace.open()
            if left:  # an empty workspace, or no job: no job sees what an earlier one left
                raise StagingError(f"{len(left)} files of an earlier job cannot be removed from the workspace")
            self._report(Status.PREPARING)
            # What can be refused without the backend.
            check_request(job.request, self._settings)
            backend.check_policy(job)
            delivery = Delivery(
                job,
                self._settings,
                fetch=backend.fetch,
                limits=self._limits,
                notify=self._counts(Status.UPLOADING),
            )
            # From here on its models are fetched, and read ahead, while the backend starts and inputs are staged.
            request = job.request
            with Order.begin(
                self._models, request.workflow, request.models, request.bucket, is_sealed=job.sealer is not None
            ) as order:
                result = self._work(order, delivery)
        except (JobCanceled, JobTimeout) as error:
            if isinstance(error, JobTimeout):
                limit = self._limits.deadline - self._started
                error.message = f"the job ran into its time limit of {limit:g} s; raise timeout_s if it needs longer"
            error.details.setdefault("timings", dict(self._timings))
            raise
        finally:
            backend.end_job()
            with self._timed("wipe"):
                self._wipe()
        self._timings["total"] = round((time.monotonic() - self._started) * 1000, 2)
        return replace(result, timings=dict(self._timings))

    def _work(self, order: Order, delivery: Delivery) -> Result:
        job, backend, limits = self._job, self._backend, self._limits
        with self._timed("ready"):
            backend.ready(limits, self._report)
        checked = backend.check(job, order.entries)
        order.narrow(checked.live)
        with self._timed("staging"):
            staged = self._stage()
            backend.take(job, checked, staged)
        with self._timed("models"):
            # Every model that the workflow names is in place, whole, and stays there until the job has ended.
            if order.wait(limits.cancel, limits.deadline, partial(self._report, Status.MATERIALIZING)):
                # A backend keeps what it loaded under a name: it would use the file of before.
                backend.free()
                order.forgotten()
        delivery.check_bucket()
        with self._timed("execution"):
            collect = backend.execute(job, checked, staged, limits, self._report)
        with self._timed("delivery"):
            made = collect()
            self._report(Status.UPLOADING)
            delivered = delivery.deliver(made.artifacts)
        # Each once, and so many: a node that reports thousands of entries must not cost the job its result.
        warnings = list(dict.fromkeys((*checked.warnings, *made.warnings, *delivered.warnings)))
        if len(warnings) > MAX_WARNINGS:
            warnings[MAX_WARNINGS:] = [f"and {len(warnings) - MAX_WARNINGS} more warnings"]
        return Result(outputs=delivered.outputs, seeds=checked.seeds, warnings=tuple(warnings))

    # --- the hops -------------------------------------------------------------------------------------------

    def _stage(self) -> tuple[Staged, ...]:
        request = self._job.request
        if not request.images and not request.files:
            return ()
        self._report(Status.MATERIALIZING)
        counts = self._counts(Status.MATERIALIZING)
        return Staging(request, self._backend.workspace, self._settings, self._limits, counts).run()

    def _wipe(self) -> None:
        if self._job.request.debug and self._settings.allow_debug and not self._job.sealer:
            log.warning("job %s asked for debug: its files stay until the next job", self._job.id)
            return
        _wipe(self._backend, f"after job {self._job.id}")

    # --- progress and timings -------------------------------------------------------------------------------

    def _counts(self, status: Status) -> Callable[[int, int], None]:
        return lambda done, total: self._report(status, message=f"{done} of {total} files")

    def _report(self, status: Status | None = None, message: str | None = None, **fields: Any) -> None:
        self._status = status or self._status
        if "percent" in fields:  # a job that runs a second time begins again; what its caller sees does not fall
            fields["percent"] = self._percent = max(self._percent, fields["percent"])
        self._on_progress(Progress(job_id=self._job.id, status=self._status, message=message, **fields))

    @contextmanager
    def _timed(self, phase: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            spent_s = time.monotonic() - begun
            self._timings[phase] = round(self._timings.get(phase, 0.0) + spent_s * 1000, 2)
