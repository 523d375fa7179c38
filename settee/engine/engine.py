"""Runs one job, start to finish. It knows no door; ARCHITECTURE.md has a job's hops.

Ordinary blocking code: a GPU does one job at a time. What must be able to interrupt it (a cancel, a deadline) goes
through a Cancel token and a time in time.monotonic().
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from settee.backends.comfy.comfy_backend import ComfyBackend
from settee.base.errors import Busy, ComfyUnavailable
from settee.base.job import Cancel, Job, OnProgress, Progress, Result
from settee.base.settings import Settings
from settee.comfyui.node_registry import NodeRegistry
from settee.engine.job_run import JobRun
from settee.models.entry import ModelEntry
from settee.models.folder.model_folder import ModelFolder
from settee.models.model_store import ModelStore

log = logging.getLogger(__name__)


def _ignore(_: Progress) -> None:
    pass


class Engine:
    """One backend, one workspace, one job at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._backend = ComfyBackend(settings)
        self._models = ModelStore(settings)
        self._slot = threading.Lock()
        self._running: Cancel | None = None
        self._closing = threading.Event()
        self._claimed = False

    # --- life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to start the backend and to place models; wait for neither. Raises ConfigError."""
        self._models.load()
        self._claim()
        self._backend.workspace.open()
        self._backend.start()
        self._models.start()

    def _claim(self) -> None:
        """Nothing is wiped, by a job or at the end, in folders that are not this worker's. Raises ConfigError."""
        if not self._claimed:
            self._backend.workspace.claim()
            self._claimed = True
            self._backend.claimed()

    def wait_ready(self, timeout_s: float, cancel: Cancel | None = None) -> None:
        """Wait until ComfyUI answers. Raises ComfyUnavailable with the end of its log."""
        self._backend.wait_ready(timeout_s, cancel)

    @property
    def unrecoverable(self) -> bool:
        """True when ComfyUI cannot be brought back: only a new worker helps."""
        return self._backend.unrecoverable

    @property
    def model_folder(self) -> ModelFolder:
        """The models folder: for a door that has models of its own to name and to remove."""
        return self._models.tools.folder

    @property
    def output_dir(self) -> Path | None:
        """Where ComfyUI writes, wiped around every job; None where its files only come over HTTP."""
        return self._backend.workspace.folders.output if self._backend.is_shared else None

    @property
    def restarts(self) -> int:
        """How often ComfyUI was started again."""
        return self._backend.restarts

    def node_registry(self, cancel: Cancel | None = None) -> NodeRegistry:
        """Return ComfyUI's node registry. Raises ComfyUnavailable, JobCanceled."""
        return self._backend.node_registry(cancel)

    def await_models(self, entries: Sequence[ModelEntry], timeout_s: float) -> bool:
        """Wait until nothing of these is fetched any more, after the job that brought them; False if it still is.

        What a canceled job gave up may still be put in place a moment later.
        """
        return self._models.await_end(entries, timeout_s)

    def take_back(self, prompt_id: str) -> None:
        """The job with this prompt id, of a worker that was killed, which a ComfyUI that is not ours may still run.

        :meth:`settle` has it stop, and no job begins before it has. Call this before the first job.
        """
        self._backend.take_back(prompt_id)

    def settle(self, timeout_s: float, is_over: Callable[[], bool]) -> bool:
        """Wait until ComfyUI runs nothing of an earlier job any more, and has forgotten it; False if it still does.

        One that is not ours, and takes its time to stop, may after :meth:`run` has returned. ``is_over``: give up.
        """
        if not self._slot.acquire(blocking=False):
            return False
        try:
            deadline = time.monotonic() + timeout_s
            return self._backend.stop_leftovers(deadline, lambda: is_over() or self._closing.is_set())
        finally:
            self._slot.release()

    def queue(self) -> tuple[int, int]:
        """How many prompts run and wait in ComfyUI. Raises ComfyError when it does not answer at once."""
        return self._backend.queue()

    def close(self) -> None:
        """Cancel the job that runs, stop ComfyUI, wipe. No job runs afterwards."""
        if self._closing.is_set():
            return
        self._closing.set()
        running = self._running
        if running is not None:
            running.set("the worker is shutting down")
        # The job's own deadlines bound this; what is left after them is ended with ComfyUI.
        self._slot.acquire(timeout=2 * self._settings.comfy_interrupt_s + 5)
        self._models.give_up()  # downloads end while ComfyUI does
        self._backend.close()
        self._models.close()
        if not self._claimed:
            return
        left = self._backend.workspace.wipe().left
        if left:
            log.error("%d files could not be wiped", len(left))
        self._backend.workspace.release()

    # --- one job --------------------------------------------------------------------------------------------

    def run(self, job: Job, on_progress: OnProgress = _ignore, cancel: Cancel | None = None) -> Result:
        """Run a job; return its Result once ComfyUI is idle and the workspace wiped, whatever happened.

        Raises a SetteeError for every way in which a job can fail: Busy while another one runs, JobCanceled,
        JobTimeout, and the rest of the tree in errors.py.
        """
        if self._closing.is_set():
            raise ComfyUnavailable("the worker is shutting down", retryable=True)
        if not self._slot.acquire(blocking=False):
            raise Busy
        try:
            self._claim()
            with ExitStack() as stack:
                token = cancel if cancel is not None else stack.enter_context(Cancel())
                self._running = token
                if self._closing.is_set():
                    token.set("the worker is shutting down")
                if job.sealed:
                    stack.enter_context(self._backend.quiet())
                return JobRun(job, self._backend, self._models, self._settings, on_progress, token).go()
        finally:
            self._backend.forget_note()
            self._running = None
            self._slot.release()


__all__ = ["Engine"]
