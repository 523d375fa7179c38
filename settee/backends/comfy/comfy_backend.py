"""ComfyUI as a backend: a graph is checked by its node registry, run by its session, and collected from its folders."""

from __future__ import annotations

import logging
import posixpath
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager

from settee.backends.backend import Checked, Limits, Made, Report
from settee.backends.comfy.artifacts import FolderCollector
from settee.backends.comfy.comfy_client import Client
from settee.backends.comfy.process import Server, SupervisedServer
from settee.backends.comfy.prompts import prompt_ids
from settee.backends.comfy.session import Session
from settee.base.errors import InvalidRequest, ModelMissing, WorkflowRejected, problem_line
from settee.base.job import Artifact, Cancel, Job
from settee.base.settings import Settings
from settee.comfyui.graph import Graph, with_values
from settee.comfyui.isolation import salts
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.outputs import Collector
from settee.comfyui.problems import class_problems, load_problems, path_problems, registry_problems
from settee.comfyui.rewrite import filled_prefixes, linked, replaced, respelled, without_unknown
from settee.comfyui.seeds import draw_seeds
from settee.comfyui.workflow import Workflow
from settee.models.entry import ModelEntry
from settee.models.required import as_missing, missing_models, names_of
from settee.staging.inputs import Staged
from settee.staging.workspace import Folders, Workspace

#: Mode long ComfyUI may take to show its queue, seconds.
_ASKED_S = 2.0
#: What Prompts notes of a job that runs.
_LEFT = re.compile(r"([0-9a-f-]{36}) ([0-9a-f]{32})")

log = logging.getLogger(__name__)


class ComfyBackend:
    """One ComfyUI, ours or the one at COMFY_URL."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        root = settings.workspace_dir
        folders = Folders(input=root / "input", output=root / "output", temp=root / "temp")
        self._server: Server
        #: False where files only come and go over HTTP.
        self.is_shared = True
        if settings.comfy_url is None:
            self._server = SupervisedServer(settings, folders)
        else:
            self._server = Server(Client(settings.comfy_url))
            given = settings.comfy_input_dir, settings.comfy_output_dir
            self.is_shared = None not in given
            if given[0] is not None and given[1] is not None:
                folders = Folders(input=given[0], output=given[1], temp=settings.comfy_temp_dir, are_shared=True)
        self.workspace = Workspace(folders)
        self._session = Session(self._server, settings, self.workspace)
        #: The node registry that a door asked for, and when it did.
        self._registry: tuple[float, NodeRegistry] | None = None

    # --- life ---------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start ComfyUI, unless COMFY_URL names one, and return. Raises ConfigError."""
        if not self.is_shared:
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

    def wait_ready(self, timeout_s: float, cancel: Cancel | None = None) -> None:
        """Wait until ComfyUI answers. Raises ComfyUnavailable with the end of its log."""
        self._server.wait_ready(timeout_s, cancel)

    @property
    def unrecoverable(self) -> bool:
        return self._server.unrecoverable

    @property
    def restarts(self) -> int:
        return max(0, self._server.generation - 1)

    def close(self) -> None:
        self._session.close()
        self._server.close()

    # --- what an earlier worker or job left -----------------------------------------------------------------

    def claimed(self) -> None:
        """Take over the prompt that a killed worker noted; ours ended with its worker."""
        if (left := _LEFT.fullmatch(self.workspace.noted())) and not self._server.is_ours:
            self._session.prompts.inherit(*left.groups())

    def take_back(self, prompt_id: str) -> None:
        """Have the job with this prompt id stop, which a killed worker left to a ComfyUI that is not ours."""
        if not self._server.is_ours:
            for each in prompt_ids(prompt_id):
                self._session.prompts.inherit(each)

    def stop_leftovers(self, deadline: float, is_over: Callable[[], bool]) -> bool:
        """Wait until ComfyUI runs nothing of an earlier job, and has forgotten it; False if it still does."""
        prompts = self._session.prompts
        had_any = bool(prompts.leftovers)
        while prompts.leftovers and not is_over() and time.monotonic() < deadline:
            prompts.stop_leftovers()  # each for COMFY_INTERRUPT_S at most
        if had_any and not prompts.leftovers:
            prompts.settle()
        return not prompts.leftovers

    def queue(self) -> tuple[int, int]:
        """Return how many prompts run and wait. Raises ComfyError when ComfyUI does not answer at once."""
        found = self._server.client.queue(timeout_s=_ASKED_S)
        return len(found.running), len(found.pending)

    def node_registry(
        self, cancel: Cancel | None = None, *, max_age_s: float = 0.0, on_wait: Callable[[], None] = lambda: None
    ) -> NodeRegistry:
        """Return the node registry, at most ``max_age_s`` seconds old; ``on_wait`` is called before ComfyUI is asked.

        Raises ComfyUnavailable, JobCanceled.
        """
        if self._registry is None or time.monotonic() - self._registry[0] > max_age_s:
            on_wait()
            begun = time.monotonic()
            self._server.wait_ready(self._session.ready_timeout_s, cancel, for_job=True)
            self._registry = (begun, self._server.client.node_registry())
        return self._registry[1]

    # --- one job: before it runs ----------------------------------------------------------------------------

    def settle(self) -> None:
        self._session.prompts.settle()
        self._server.new_job()

    def quiet(self) -> AbstractContextManager[object]:
        return self._server.quiet()

    def check_policy(self, job: Job) -> None:
        """Raise InvalidRequest for classes that ALLOWED_NODES or DENIED_NODES rule out."""
        self._check_classes(job.request.workflow)

    def _check_classes(self, graph: Workflow) -> None:
        problems = class_problems(graph, self._settings.allowed_nodes, self._settings.denied_nodes)
        if problems:
            raise InvalidRequest.from_problems(problems, "workflow")

    def ready(self, limits: Limits, report: Report) -> None:
        self._session.ready(limits, report)

    def check(self, job: Job, entries: Sequence[ModelEntry]) -> Checked:
        """Find what the node registry shows to be wrong. Raises InvalidRequest, WorkflowRejected, ModelMissing."""
        session, request, given = self._session, job.request, job.request.workflow
        classes = {node["class_type"] for node in given.values()}
        if not classes <= session.registry.classes.keys() | session.registry.replacements.keys():
            session.refresh_registry()  # a server that is not ours may have gained nodes since
        registry = session.registry
        whole = linked(given, registry)
        graph = replaced(whole, registry)
        if graph is not whole:
            self._check_classes(graph)
        graph, warnings = respelled(graph, registry, names_of(entries))
        graph, seeds, not_drawn = _filled_in(graph, registry, every=request.seeds == "random")
        if unsafe := path_problems(graph, registry, job.options.own_paths):
            raise InvalidRequest.from_problems(unsafe, "workflow")
        problems = registry_problems(graph, registry, self._server.failed_imports)
        runnable = without_unknown(graph, registry)
        has_outputs = registry.output_nodes(runnable)
        if problems and not (request.allow_partial and has_outputs):
            raise WorkflowRejected.from_problems(problems, "workflow")
        if not has_outputs:
            raise WorkflowRejected("the workflow has no output node: add one, such as SaveImage")
        # ComfyUI refuses a prompt whole for one class that it does not know, wherever that stands.
        unknown = [problem for problem in problems if problem["type"] == "unknown_class"]
        warnings += [*not_drawn, *(f"not run (allow_partial): {problem_line(problem)}" for problem in unknown)]
        if not unknown and len(runnable) < len(graph):
            left = ", ".join(f"{i} ({graph[i]['class_type']})" for i in graph if i not in runnable)
            warnings.append(f"left out, as no output needs them and ComfyUI has no such class: {left[:500]}")
        live = Graph(runnable, registry).live
        if made_up := ", ".join(registry.stand_ins(live)):
            warnings.append(f"made up by settee's embedded ComfyUI, which runs no model: {made_up[:500]}")
        if missing_models(live, registry, entries):
            # The registry is as old as ComfyUI's start; files may have come since.
            session.refresh_registry()
            missing = missing_models(live, session.registry, entries)
            if missing and not request.allow_partial:
                raise ModelMissing.from_problems(missing, "workflow")
        return Checked(runnable, live, entries, seeds, tuple(warnings))

    def take(self, job: Job, checked: Checked, staged: Sequence[Staged]) -> None:
        """Upload input files where folders are not shared, and check that every file that the graph loads came with the
        job, in a format that its loader knows: ComfyUI would only refuse the outputs it concerns."""
        for file in () if self.is_shared else staged:
            subfolder, name = posixpath.split(file.name)
            self._server.client.put(file.path, name=name, subfolder=subfolder)
        if job.request.allow_partial or not job.options.takes_files:
            return  # ComfyUI's own word is enough
        files = {file.name: file.unloadable for file in staged}
        if problems := load_problems(checked.live, self._session.registry, files):
            raise InvalidRequest.from_problems(problems, "workflow")

    def free(self) -> None:
        self._session.prompts.free()

    # --- one job: its run -----------------------------------------------------------------------------------

    def execute(
        self, job: Job, checked: Checked, staged: Sequence[Staged], limits: Limits, report: Report
    ) -> Callable[[], Made]:
        graph = checked.graph
        # No other process writes to a ComfyUI of our own, and the workspace has been wiped.
        present = self.workspace.made()[0] if self.is_shared and not self._server.is_ours else []
        changed = salts(graph, {file.name: file.sha256 for file in staged})
        try:
            ended = self._session.run(job, graph, changed, limits, report)
        except WorkflowRejected as error:
            raise as_missing(error, graph, checked.entries) from error

        def pause() -> None:
            limits.cancel.wait(0.05)
            limits.check()

        def collect() -> Made:
            names, registry = {file.name for file in staged}, self._session.registry
            collector = Collector(ended, graph, registry, names)
            if self.is_shared:
                collector = FolderCollector(
                    ended,
                    graph,
                    registry,
                    self.workspace,
                    staged=names,
                    present=present,
                    rewritten=self._rewritten(staged),
                    pause=pause,
                )
            # A door with a destination of its own has no such option.
            include_temp = None if job.options.destination else job.request.delivery.include_temp
            artifacts, warnings = collector.collect(include_temp)
            return Made(artifacts, tuple(warnings))

        return collect

    def _rewritten(self, staged: Sequence[Staged]) -> list[str]:
        """Return files below input that nodes wrote; on a ComfyUI that others use, only those over the job's own."""
        theirs = {file.name for file in staged if file.is_as_it_came()}
        is_ours = self._server.is_ours
        ours = self.workspace.made(kind="input")[0] if is_ours else [f.name for f in staged if f.path.exists()]
        return [name for name in ours if name not in theirs]

    def fetch(self, artifact: Artifact) -> Iterator[bytes]:
        return self._server.client.view((artifact.folder_type, artifact.comfy_subfolder, artifact.filename))

    def end_job(self) -> None:
        self._session.prompts.begin_to_forget()

    def forget_note(self) -> None:
        """Note that nothing of a job is left in ComfyUI, unless something is."""
        if not self._session.prompts.leftovers:
            self.workspace.note("")


def _filled_in(graph: Workflow, registry: NodeRegistry, *, every: bool) -> tuple[Workflow, dict[str, int], list[str]]:
    """The graph with seeds and prefixes as the editor sends them, the seeds, and warnings for those not drawn."""
    drawn = draw_seeds(graph, registry, every=every)
    warnings = [f"not drawn: {line}" for line in drawn.stuck]
    if every and not drawn.values:
        warnings.insert(0, "seeds: random: this workflow has no seed to draw")
    graph = with_values(graph, drawn.values)
    return with_values(graph, filled_prefixes(graph, time.localtime())), drawn.shown(), warnings
