"""Runs one job, start to finish. It knows no door; ARCHITECTURE.md tells a job's twelve hops.

Ordinary blocking code: a GPU does one job at a time. What must be able to interrupt it (a cancel, a deadline) goes
through a Cancel token and a time in time.monotonic().
"""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path

from settee.comfy.attempts import prompt_ids
from settee.comfy.process import ExternalServer, Server, SupervisedServer
from settee.comfy.session import Session
from settee.comfyui.node_registry import NodeRegistry
from settee.errors import Busy, ComfyUnavailable
from settee.job import Cancel, Job, OnProgress, Progress, Result
from settee.models.entry import ModelEntry
from settee.models.placed import Shelf
from settee.models.store import ModelStore
from settee.run import Run
from settee.settings import Settings
from settee.workspace import Folders, Workspace

#: How long ComfyUI may take to tell of its queue, seconds.
_ASKED_S = 2.0
#: What Prompts notes of a job that runs.
_LEFT = re.compile(r"([0-9a-f-]{36}) ([0-9a-f]{32})")

log = logging.getLogger(__name__)


def _ignore(_: Progress) -> None:
    pass


class Engine:
    """One ComfyUI, one workspace, one job at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        root = settings.workspace_dir
        own = Folders(input=root / "input", output=root / "output", temp=root / "temp")
        self._shared = True
        self._server: Server
        if settings.comfy_url is None:
            self._server = SupervisedServer(settings, own)
        else:
            self._server = ExternalServer(settings.comfy_url)
            self._shared = settings.comfy_input_dir is not None and settings.comfy_output_dir is not None
            if self._shared:
                assert settings.comfy_input_dir is not None
                assert settings.comfy_output_dir is not None
                own = Folders(
                    input=settings.comfy_input_dir,
                    output=settings.comfy_output_dir,
                    temp=settings.comfy_temp_dir,
                    are_shared=True,
                )
        self._workspace = Workspace(own, settings)
        self._session = Session(self._server, settings, self._workspace.note)
        self._models = ModelStore(settings)
        self._slot = threading.Lock()
        self._running: Cancel | None = None
        self._closing = threading.Event()
        self._claimed = False

    # --- life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start ComfyUI (unless COMFY_URL names one) and to place models; wait for neither. Raises ConfigError."""
        self._models.load()
        self._claim()
        self._workspace.open()
        if not self._shared:
            log.warning(
                "COMFY_INPUT_DIR and COMFY_OUTPUT_DIR are not set: files go over HTTP, and what jobs leave in that "
                "ComfyUI's folders cannot be wiped"
            )
        elif not self._server.is_ours:
            log.warning(
                "only the COMFY_*_DIR folders are wiped: not the data sets that jobs save, names in ComfyUI's database "
                "(--enable-assets), nor what it keeps in its memory (least with --cache-classic)"
            )
        self._server.start()
        self._models.start()

    def _claim(self) -> None:
        """Nothing is wiped, by a job or at the end, in folders that are not this worker's. Raises ConfigError."""
        if not self._claimed:
            self._workspace.claim()
            self._claimed = True
            if (left := _LEFT.fullmatch(self._workspace.noted())) and not self._server.is_ours:
                self._session.prompts.inherit(*left.groups())

    def wait_ready(self, timeout_s: float, cancel: Cancel | None = None) -> None:
        """Wait until ComfyUI answers. Raises ComfyUnavailable with the end of its log."""
        self._server.wait_ready(timeout_s, cancel)

    @property
    def unrecoverable(self) -> bool:
        """True when ComfyUI cannot be brought back: only a new worker helps."""
        return self._server.unrecoverable

    @property
    def shelf(self) -> Shelf:
        """The models folder: for a door that has models of its own to name and to remove."""
        return self._models.tools.shelf

    @property
    def output_dir(self) -> Path | None:
        """Where ComfyUI writes, wiped around every job; None where its files only come over HTTP."""
        return self._workspace.folders.output if self._shared else None

    @property
    def restarts(self) -> int:
        """How often ComfyUI was started again."""
        return max(0, self._server.generation - 1)

    def node_registry(self, cancel: Cancel | None = None) -> NodeRegistry:
        """Return ComfyUI's node registry. Raises ComfyUnavailable, JobCanceled."""
        # Ours may be starting, which takes what it takes; another one is there or it is not.
        is_ours = self._server.is_ours
        patience = self._settings.comfy_start_timeout_s if is_ours else self._settings.comfy_unresponsive_s
        self._server.wait_ready(patience, cancel, for_job=True)
        return self._server.client.node_registry()

    def await_models(self, entries: Sequence[ModelEntry], timeout_s: float) -> bool:
        """Wait until nothing of these is fetched any more, after the job that brought them. Whether that is so.

        What a canceled job gave up may still be put in place a moment later.
        """
        return self._models.await_end(entries, timeout_s)

    def take_back(self, prompt_id: str) -> None:
        """The job with this prompt id, of a worker that was killed, which a ComfyUI that is not ours may still run.

        :meth:`settle` has it stop, and no job begins before it has. Call this before the first job.
        """
        if not self._server.is_ours:  # ours ended with its worker
            for each in prompt_ids(prompt_id):
                self._session.prompts.inherit(each)

    def settle(self, timeout_s: float, is_over: Callable[[], bool]) -> bool:
        """Wait until ComfyUI runs nothing of an earlier job any more, and has forgotten it; whether that is so.

        One that is not ours, and takes its time to stop, may after :meth:`run` has returned. ``is_over``: give up.
        """
        if not self._slot.acquire(blocking=False):
            return False
        try:
            prompts, deadline = self._session.prompts, time.monotonic() + timeout_s
            return prompts.settle(deadline, lambda: is_over() or self._closing.is_set())
        finally:
            self._slot.release()

    def queue(self) -> tuple[int, int]:
        """How many prompts run and wait in ComfyUI. Raises ComfyError when it does not answer at once."""
        found = self._server.client.queue(timeout_s=_ASKED_S)
        return len(found.running), len(found.pending)

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
        self._session.close()
        self._server.close()
        self._models.close()
        if not self._claimed:
            return
        left = self._workspace.wipe().left
        if left:
            log.error("%d files could not be wiped", len(left))
        self._workspace.release()

    # --- one job --------------------------------------------------------------------------------------------

    def run(self, job: Job, on_progress: OnProgress = _ignore, cancel: Cancel | None = None) -> Result:
        """Run a job; returns its Result once ComfyUI is idle and the workspace wiped, whatever happened.

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
                if job.sealed and isinstance(self._server, SupervisedServer):
                    stack.enter_context(self._server.quiet())
                run = Run(job, on_progress, token, self._settings)
                return run.go(self._session, self._workspace, self._server, self._models, self._shared)
        finally:
            if not self._session.prompts.leftovers:
                self._workspace.note("")
            self._running = None
            self._slot.release()


__all__ = ["Engine"]
