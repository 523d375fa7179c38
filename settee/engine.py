"""Runs one job, start to finish. It knows no door; ARCHITECTURE.md tells a job's twelve hops.

Ordinary blocking code: a GPU does one job at a time. What must be able to interrupt it (a cancel, a deadline) goes
through a Cancel token and a time in time.monotonic().
"""

from __future__ import annotations

import hashlib
import logging
import posixpath
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from settee import registry, workflow
from settee.artifacts import collect
from settee.comfy.process import ExternalServer, Server, SupervisedServer
from settee.comfy.session import Ended, Hooks, Session
from settee.comfy.watcher import Report
from settee.delivery import Delivered, check_request, deliver
from settee.errors import (
    Busy,
    ComfyUnavailable,
    InvalidRequest,
    JobCanceled,
    JobTimeout,
    SetteeError,
    StagingError,
    WorkflowRejected,
)
from settee.inputs import Staged, stage
from settee.job import Artifact, Cancel, Job, OnProgress, Progress, Result, Status
from settee.settings import Settings
from settee.workspace import Folders, Workspace

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
        self._session = Session(self._server, settings)
        self._slot = threading.Lock()
        self._running: Cancel | None = None
        self._closing = threading.Event()
        self._claimed = False

    # --- life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start ComfyUI (unless COMFY_URL names one) without waiting for it. Raises ConfigError."""
        self._claim()
        self._workspace.open()
        if not self._shared:
            log.warning(
                "COMFY_INPUT_DIR and COMFY_OUTPUT_DIR are not set: files go over HTTP, and what jobs leave in that "
                "ComfyUI's folders cannot be wiped"
            )
        self._server.start()

    def _claim(self) -> None:
        """Nothing is wiped, by a job or at the end, in folders that are not this worker's. Raises ConfigError."""
        if not self._claimed:
            self._workspace.claim()
            self._claimed = True

    def wait_ready(self, timeout_s: float, cancel: Cancel | None = None) -> None:
        """Wait until ComfyUI answers. Raises ComfyUnavailable with the end of its log."""
        self._server.wait_ready(timeout_s, cancel)

    @property
    def unrecoverable(self) -> bool:
        """True when ComfyUI cannot be brought back: only a new worker helps."""
        return self._server.unrecoverable

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
        self._session.close()
        self._server.close()
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
                return _Run(job, on_progress, token, self._settings).go(
                    self._session, self._workspace, self._server, self._shared
                )
        finally:
            self._running = None
            self._slot.release()


class _Run:
    """The state of one job on its way through the engine."""

    def __init__(self, job: Job, on_progress: OnProgress, cancel: Cancel, settings: Settings) -> None:
        self._job = job
        self._tell = on_progress
        self._cancel = cancel
        self._settings = settings
        self._started = time.monotonic()
        self._deadline = self._started + (job.request.timeout_s or settings.job_timeout_s)
        self._timings: dict[str, float] = {}
        self._percent = 0.0

    def go(self, session: Session, workspace: Workspace, server: Server, shared: bool) -> Result:
        job = self._job
        try:
            session.forgetter.settle()
            server.new_job()
            with self._timed("wipe"):
                self._clean(workspace)
            self._report(Status.PREPARING)
            self._check_policy()
            with self._timed("ready"):
                session.ready(self._cancel, self._deadline)
            graph = self._check_graph(session)
            with self._timed("staging"):
                staged = self._stage(workspace)
                if not shared:
                    self._upload(server, staged)
                self._check_loads(graph, session, staged)
            with self._timed("execution"):
                ended = self._execute(session, graph, staged)
            with self._timed("delivery"):
                found = collect(
                    ended.outputs,
                    graph,
                    prefix=ended.prefix,
                    workspace=workspace if shared else None,
                    include_temp=job.request.delivery.include_temp,
                    pictures=ended.pictures,
                )
                delivered = self._deliver(server, found.artifacts)
            warnings = (*ended.warnings, *found.warnings, *delivered.warnings)
        except (JobCanceled, JobTimeout) as error:
            self._explain_end(error)
            raise
        finally:
            session.forgetter.begin()
            with self._timed("wipe"):
                self._wipe(workspace)
        self._timings["total"] = self._since(self._started)
        return Result(
            job_id=job.id,
            status=Status.SUCCEEDED,
            outputs=delivered.outputs,
            timings=dict(self._timings),
            warnings=warnings,
        )

    # --- before ComfyUI -------------------------------------------------------------------------------------

    def _clean(self, workspace: Workspace) -> None:
        """An empty workspace, or no job: what an earlier job left is nobody else's business."""
        left = workspace.open().left
        if left:
            raise StagingError(f"{len(left)} files of an earlier job cannot be removed from the workspace")

    def _check_policy(self) -> None:
        """What can be refused without ComfyUI."""
        request, settings = self._job.request, self._settings
        check_request(request, settings)
        problems = workflow.class_problems(request.workflow, settings.allowed_nodes, settings.denied_nodes)
        if problems:
            raise InvalidRequest.from_problems(problems, "workflow")

    def _check_graph(self, session: Session) -> workflow.Workflow:
        """What the node registry shows to be wrong, before any GPU time is spent."""
        graph = self._job.request.workflow
        if any(node["class_type"] not in session.object_info for node in graph.values()):
            # A server that is not ours may have gained nodes since.
            session.refresh_registry()
        unsafe = registry.path_problems(graph, session.object_info)
        if unsafe:
            raise InvalidRequest.from_problems(unsafe, "workflow")
        problems = registry.registry_problems(graph, session.object_info)
        if problems:
            raise WorkflowRejected.from_problems(problems, "workflow")
        if not workflow.output_nodes(graph, session.object_info):
            raise WorkflowRejected("the workflow has no output node: add one, such as SaveImage")
        return graph

    def _stage(self, workspace: Workspace) -> tuple[Staged, ...]:
        request = self._job.request
        if not request.images and not request.files:
            return ()
        self._report(Status.MATERIALIZING)
        return stage(
            request.files,
            request.images,
            workspace,
            self._settings,
            cancel=self._cancel,
            deadline=self._deadline,
            bucket=request.bucket,
            notify=lambda done, total: self._report(Status.MATERIALIZING, message=f"{done} of {total} files"),
        )

    def _upload(self, server: Server, staged: tuple[Staged, ...]) -> None:
        for file in staged:
            subfolder, name = posixpath.split(file.name)
            server.client.upload(file.path, name=name, subfolder=subfolder)

    def _check_loads(self, graph: workflow.Workflow, session: Session, staged: tuple[Staged, ...]) -> None:
        """Every file that the workflow loads came with the job. ComfyUI would only refuse the outputs it concerns."""
        if self._job.request.allow_partial:
            return
        names = {file.name for file in staged}
        problems = [
            {
                "path": f"workflow.{load.node_id}.inputs.{load.input}",
                "node_id": load.node_id,
                "class_type": load.class_type,
                "input": load.input,
                "value": load.name[:200],
                "problem": f"loads {load.name[:200]!r}, which did not come with the job: add it to `images` or `files`",
                "near": registry.near_matches(load.name, names),
            }
            for load in registry.loads(graph, session.object_info)
            if posixpath.normpath(load.name) not in names
        ]
        if problems:
            raise InvalidRequest.from_problems(problems, "workflow")

    # --- in ComfyUI -------------------------------------------------------------------------------------------

    def _execute(self, session: Session, graph: workflow.Workflow, staged: tuple[Staged, ...]) -> Ended:
        def on_report(report: Report) -> None:
            node = graph.get(report.node_id or "")
            # A job that runs a second time begins anew; what its caller sees does not fall.
            self._percent = max(self._percent, report.percent)
            self._report(
                Status.RUNNING,
                node_id=report.node_id,
                node_type=node["class_type"] if node else None,
                value=report.value,
                maximum=report.maximum,
                percent=self._percent,
            )

        hooks = Hooks(on_submitted=lambda: self._report(Status.SUBMITTED), on_report=on_report)
        salts = workflow.salts(graph, {file.name: file_digest(file.path) for file in staged})
        return session.run(self._job, graph, salts, cancel=self._cancel, deadline=self._deadline, hooks=hooks)

    # --- after ComfyUI ------------------------------------------------------------------------------------------

    def _deliver(self, server: Server, artifacts: list[Artifact]) -> Delivered:
        def fetch(artifact: Artifact) -> Iterator[bytes]:
            return server.client.view(
                filename=artifact.filename, subfolder=artifact.comfy_subfolder, folder_type=artifact.folder_type
            )

        self._report(Status.UPLOADING)
        return deliver(
            artifacts,
            self._job,
            self._settings,
            fetch=fetch,
            cancel=self._cancel,
            deadline=self._deadline,
            notify=lambda done, total: self._report(Status.UPLOADING, message=f"{done} of {total} files"),
        )

    def _wipe(self, workspace: Workspace) -> None:
        if self._job.request.debug and self._settings.allow_debug and not self._job.sealed:
            log.warning("job %s asked for debug: its files stay until the next job", self._job.id)
            return
        left = workspace.wipe().left
        if left:
            log.error("job %s: %d files could not be wiped", self._job.id, len(left))

    def _explain_end(self, error: SetteeError) -> None:
        if isinstance(error, JobTimeout):
            limit = self._deadline - self._started
            error.message = f"the job ran into its time limit of {limit:g} s; raise timeout_s if it needs longer"
        error.details.setdefault("timings", dict(self._timings))

    # --- small things -------------------------------------------------------------------------------------------

    def _report(self, status: Status, **fields: Any) -> None:
        self._tell(Progress(job_id=self._job.id, status=status, **fields))

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


def file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(1024 * 1024):
            digest.update(piece)
    return digest.hexdigest()


__all__ = ["Engine"]
