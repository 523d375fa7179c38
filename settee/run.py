"""One job on its way through the engine: the hops of ARCHITECTURE.md, one after another."""

from __future__ import annotations

import hashlib
import logging
import posixpath
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from settee.artifacts import collect
from settee.comfy.process import Server
from settee.comfy.prompts import check
from settee.comfy.session import Ended, Hooks, Session
from settee.comfyui.file_inputs import load_problems, path_problems
from settee.comfyui.isolation import salts
from settee.comfyui.literals import with_values
from settee.comfyui.messages import Report
from settee.comfyui.problems import class_problems, registry_problems
from settee.comfyui.rewrite import filled_prefixes, linked, replaced, respelled, without_unknown
from settee.comfyui.seeds import draw_seeds
from settee.comfyui.workflow import Problem, Workflow, own_node
from settee.delivery import BucketLook, Delivered, check_request, deliver
from settee.delivery.plan import MAX_WARNINGS
from settee.errors import (
    InvalidRequest,
    JobCanceled,
    JobTimeout,
    ModelMissing,
    SetteeError,
    StagingError,
    WorkflowRejected,
    problem_line,
)
from settee.images import unloadable
from settee.inputs import Staged, stage
from settee.job import Artifact, Cancel, Job, OnProgress, Progress, Result, Status
from settee.models.missing import as_missing, missing_models, names_of
from settee.models.order import Order
from settee.models.store import ModelStore
from settee.settings import Settings
from settee.workspace import Workspace

log = logging.getLogger(__name__)


class Run:
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
        self._seeds: dict[str, int] = {}
        self._status = Status.PREPARING
        self._warnings: list[str] = []

    def go(self, session: Session, workspace: Workspace, server: Server, models: ModelStore, shared: bool) -> Result:
        """Returns its Result, or raises, once ComfyUI is idle and the workspace wiped. ``shared``: as in Engine."""
        job = self._job
        try:
            session.forgetter.settle()
            server.new_job()
            with self._timed("wipe"):
                self._clean(workspace)
            self._report(Status.PREPARING)
            self._check_policy()
            self._bucket = BucketLook(job, self._settings)
            # From here on its models are fetched, and read ahead, while ComfyUI starts and inputs are staged.
            with models.request(
                job.request.workflow, job.request.models, job.request.bucket, is_sealed=job.sealed
            ) as order:
                delivered, warnings = self._work(session, workspace, server, order, shared)
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
            seeds=self._seeds,
            warnings=warnings,
        )

    def _work(
        self, session: Session, workspace: Workspace, server: Server, order: Order, shared: bool
    ) -> tuple[Delivered, tuple[str, ...]]:
        with self._timed("ready"):
            session.ready(self._cancel, self._deadline, self._waits)
        graph, live = self._check_graph(session, server, order)
        with self._timed("staging"):
            staged = self._stage(workspace)
            if not shared:
                self._upload(server, staged)
            self._check_loads(live, session, staged)
        with self._timed("models"):
            self._await_models(order, session)
        self._bucket.check(self._cancel)
        # Nobody else writes to a ComfyUI of our own, and the workspace has been wiped.
        present = workspace.made()[0] if shared and not server.is_ours else []
        with self._timed("execution"):
            try:
                ended = self._execute(session, workspace, graph, staged)
            except WorkflowRejected as error:
                raise as_missing(error, graph, order.entries) from error
        with self._timed("delivery"):
            found = collect(
                ended,
                graph,
                session.registry,
                workspace=workspace if shared else None,
                # A door with a destination of its own has no such option.
                include_temp=None if self._job.destination else self._job.request.delivery.include_temp,
                staged={file.name for file in staged},
                present=present,
                rewritten=self._rewritten(workspace, server, staged) if shared else (),
                pause=self._pause,
            )
            delivered = self._deliver(server, found.artifacts)
        # Each once, and so many: a node that reports thousands of entries must not cost the job its result.
        told = list(dict.fromkeys((*self._warnings, *ended.warnings, *found.warnings, *delivered.warnings)))
        if len(told) > MAX_WARNINGS:
            told[MAX_WARNINGS:] = [f"and {len(told) - MAX_WARNINGS} more warnings"]
        return delivered, tuple(told)

    # --- before ComfyUI -------------------------------------------------------------------------------------

    def _clean(self, workspace: Workspace) -> None:
        """An empty workspace, or no job: what an earlier job left is nobody else's business."""
        left = workspace.open().left
        if left:
            raise StagingError(f"{len(left)} files of an earlier job cannot be removed from the workspace")

    def _check_policy(self) -> None:
        """Refuse what can be refused without ComfyUI."""
        check_request(self._job.request, self._settings)
        self._check_classes(self._job.request.workflow)

    def _check_classes(self, graph: Workflow) -> None:
        problems = class_problems(graph, self._settings.allowed_nodes, self._settings.denied_nodes)
        if problems:
            raise InvalidRequest.from_problems(problems, "workflow")

    def _check_graph(self, session: Session, server: Server, order: Order) -> tuple[Workflow, Workflow]:
        """Return the graph as ComfyUI is to run it, and its nodes that lead to an output.

        What the node registry shows to be wrong is found before any GPU time is spent, or a model waited for.
        """
        request, given = self._job.request, self._job.request.workflow
        classes = {node["class_type"] for node in given.values()}
        if not classes <= session.registry.classes.keys() | session.registry.replacements.keys():
            # A server that is not ours may have gained nodes since.
            session.refresh_registry()
        whole = linked(given, session.registry)
        graph = replaced(whole, session.registry)
        if graph is not whole:
            self._check_classes(graph)
        graph, warnings = respelled(graph, session.registry, names_of(order.entries))
        self._warnings += warnings
        graph = self._filled_in(graph, session)
        unsafe = path_problems(graph, session.registry, self._job.own_paths)
        if unsafe:
            raise InvalidRequest.from_problems(unsafe, "workflow")
        problems = registry_problems(graph, session.registry, server.failed_imports)
        runnable = without_unknown(graph, session.registry)
        has_outputs = session.registry.output_nodes(runnable)
        if problems and not (request.allow_partial and has_outputs):
            raise WorkflowRejected.from_problems(problems, "workflow")
        if not has_outputs:
            raise WorkflowRejected("the workflow has no output node: add one, such as SaveImage")
        self._warn_of_dropped(graph, runnable, problems)
        live = session.registry.live(runnable)
        made_up = ", ".join(session.registry.stand_ins(live))
        if made_up:
            self._warnings.append(f"made up by settee's embedded ComfyUI, which runs no model: {made_up[:500]}")
        self._check_models(live, session, order)
        return runnable, live

    def _warn_of_dropped(self, graph: Workflow, runnable: Workflow, problems: list[Problem]) -> None:
        """ComfyUI refuses a prompt whole for one class that it does not know, wherever that stands."""
        unknown = [problem for problem in problems if problem["type"] == "unknown_class"]
        self._warnings += [f"not run (allow_partial): {problem_line(problem)}" for problem in unknown]
        if not unknown and len(runnable) < len(graph):
            left = ", ".join(f"{i} ({graph[i]['class_type']})" for i in graph if i not in runnable)
            self._warnings.append(f"left out, as no output needs them and ComfyUI has no such class: {left[:500]}")

    def _check_models(self, live: Workflow, session: Session, order: Order) -> None:
        if missing_models(live, session.registry, order.entries):
            # The registry is as old as ComfyUI's start; files may have come since.
            session.refresh_registry()
            missing = missing_models(live, session.registry, order.entries)
            if missing and not self._job.request.allow_partial:
                raise ModelMissing.from_problems(missing, "workflow")
        order.narrow(live)

    def _filled_in(self, graph: Workflow, session: Session) -> Workflow:
        """The graph with seeds and prefixes as the editor sends them; seeds that cannot be drawn are warnings."""
        every = self._job.request.seeds == "random"
        drawn = draw_seeds(graph, session.registry, every=every)
        self._seeds = drawn.shown()
        if every and not drawn.values:
            self._warnings.append("seeds: random: this workflow has no seed to draw")
        self._warnings += [f"not drawn: {line}" for line in drawn.stuck]
        graph = with_values(graph, drawn.values)
        return with_values(graph, filled_prefixes(graph, time.localtime()))

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

    def _await_models(self, order: Order, session: Session) -> None:
        """Every model that the workflow names is in place, whole, and stays there until the job has ended."""

        def notify(message: str) -> None:
            self._report(Status.MATERIALIZING, message=message)

        if order.wait(self._cancel, self._deadline, notify):
            # ComfyUI keeps what it loaded under a name, also inside its nodes: it would use the file of before.
            session.free()
            order.forgotten()

    def _upload(self, server: Server, staged: tuple[Staged, ...]) -> None:
        for file in staged:
            subfolder, name = posixpath.split(file.name)
            server.client.upload(file.path, name=name, subfolder=subfolder)

    def _check_loads(self, live: Workflow, session: Session, staged: tuple[Staged, ...]) -> None:
        """Every file that the workflow loads came with the job, in a format that its loader knows. ComfyUI would only
        refuse the outputs it concerns."""
        if self._job.request.allow_partial or not self._job.takes_files:
            return  # ComfyUI's own word is enough
        files = {file.name: unloadable(file.path) for file in staged}
        if problems := load_problems(live, session.registry, files):
            raise InvalidRequest.from_problems(problems, "workflow")

    # --- in ComfyUI -------------------------------------------------------------------------------------------

    def _execute(self, session: Session, workspace: Workspace, graph: Workflow, staged: tuple[Staged, ...]) -> Ended:
        def on_report(report: Report) -> None:
            node_id = own_node(graph, report.node_id or "")
            node = graph.get(node_id)
            # A job that runs a second time begins anew; what its caller sees does not fall.
            self._percent = max(self._percent, report.percent)
            self._report(
                Status.RUNNING,
                node_id=node_id or None,
                node_type=node["class_type"] if node else None,
                value=report.value,
                maximum=report.maximum,
                percent=self._percent,
            )

        hooks = Hooks(
            on_dirty=lambda: workspace.wipe("output", "temp"),
            on_submitted=lambda: self._report(Status.SUBMITTED),
            on_wait=self._waits,
            on_report=on_report,
        )
        changed = salts(graph, {file.name: file_digest(file.path) for file in staged})
        return session.run(self._job, graph, changed, cancel=self._cancel, deadline=self._deadline, hooks=hooks)

    # --- after ComfyUI ------------------------------------------------------------------------------------------

    def _rewritten(self, workspace: Workspace, server: Server, staged: tuple[Staged, ...]) -> list[str]:
        """Files below input that nodes wrote; on a ComfyUI that others use too, only those over the job's own."""
        theirs = {file.name for file in staged if file.is_as_it_came()}
        ours = (
            workspace.made(kind="input")[0] if server.is_ours else [file.name for file in staged if file.path.exists()]
        )
        return [name for name in ours if name not in theirs]

    def _pause(self) -> None:
        self._cancel.wait(0.05)
        check(self._cancel, self._deadline)

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

    def _waits(self) -> None:
        self._report(self._status, message="waiting for ComfyUI to answer")

    def _report(self, status: Status, **fields: Any) -> None:
        self._status = status
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


__all__ = ["Run"]
