"""The thread that runs prompts, one after another, and how one runs node by node."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from settee.comfyui.workflow import is_link
from settee.embedded.broadcast import Hub, Progress
from settee.embedded.caching import Cache, Prompt, execution_order, fingerprints
from settee.embedded.nodes import NODES
from settee.embedded.nodes.node import Env, Interrupted, Node, Outcome
from settee.embedded.pending import Item, PromptQueue
from settee.embedded.validation import type_name

log = logging.getLogger("settee.embedded")

_IDLE_WAIT_SECONDS = 10.0


@dataclass
class Run:
    """Runs the nodes of one prompt and tells its client about each."""

    prompt: Prompt
    prompt_id: str
    extra_data: Any
    cache: Cache
    hub: Hub
    env: Env

    def __post_init__(self) -> None:
        self._progress = Progress(self.hub, self.prompt_id)
        self._executed: list[str] = []
        self._inputs: dict[str, Any] = {}

    def node(self, node_id: str) -> Node:
        """Return the class of a node of this prompt."""
        return NODES[self.prompt[node_id]["class_type"]]

    def run_node(self, node_id: str) -> None:
        """Run one node, or only repeat what it showed when its result is cached. Raises what the node raises."""
        if cached := self.cache.get(node_id):
            self._post("executed", node_id, output=cached.outcome.ui)
            self._progress.finish(node_id)
            return
        self._inputs = {}
        self._progress.set(node_id, 0.0, 1.0, "running")
        self._inputs = self._gather(node_id)
        if self.hub.client_id is not None:
            self.hub.last_node_id = node_id
        self._post("executing", node_id)
        outcome = self._execute(node_id)
        if outcome.ui:
            self._post("executed", node_id, output=outcome.ui)
        self.cache.store(node_id, outcome)
        self._progress.finish(node_id)
        self._executed.append(node_id)

    def repeat_intermediate(self) -> None:
        """Send again what cached nodes showed that ComfyUI's editor wants to see: their old files, temp ones too."""
        for node_id in self.prompt:
            cached = self.cache.get(node_id)
            is_repeated = node_id not in self._executed and self.node(node_id).intermediate_output
            if cached and cached.outcome.ui and is_repeated:
                self._post("executed", node_id, output=cached.outcome.ui)

    def _execute(self, node_id: str) -> Outcome:
        node, env = self.node(node_id), self.env
        env.check_interrupted()

        def report(value: float, total: float, preview: Any) -> None:
            env.check_interrupted()
            self._progress.update(node_id, value, total, preview)

        return node.run(replace(env, report=report), dict(self._inputs))

    def _post(self, event: str, node_id: str, **more: Any) -> None:
        if self.hub.client_id is not None:
            data = {"node": node_id, "display_node": node_id, **more, "prompt_id": self.prompt_id}
            self.hub.post(event, data, self.hub.client_id)

    def _gather(self, node_id: str) -> dict[str, Any]:
        """Return the node's inputs by name: constants, values of other nodes, and hidden ones.

        Constants of an unknown name are left out; a link of one is passed on, which nodes raise TypeError for.
        """
        declared = self.node(node_id).inputs
        gathered: dict[str, Any] = {}
        for name, value in self.prompt[node_id]["inputs"].items():
            if is_link(value):
                source = self.cache.get(value[0])
                values = source.outcome.values if source else ()
                gathered[name] = values[int(value[1])] if value[1] < len(values) else None
            elif name in declared:
                gathered[name] = value
        hidden = {
            "PROMPT": self.prompt,
            "EXTRA_PNGINFO": self.extra_data.get("extra_pnginfo"),
            "UNIQUE_ID": node_id,
        }
        return gathered | {n: hidden[str(each.kind)] for n, each in declared.items() if each.section == "hidden"}

    def where(self, node_id: str) -> dict[str, Any]:
        """Return the data of execution_interrupted."""
        return {
            "prompt_id": self.prompt_id,
            "node_id": node_id,
            "node_type": self.prompt[node_id]["class_type"],
            "executed": list(self._executed),
        }

    def failure(self, node_id: str, problem: Exception) -> dict[str, Any]:
        """Return the data of execution_error."""
        return {
            **self.where(node_id),
            "exception_message": f"{problem}\n",
            "exception_type": type_name(problem),
            "traceback": traceback.format_tb(problem.__traceback__),
            "current_inputs": {
                name: [value if isinstance(value, (int, float, str, type(None))) else str(value)]
                for name, value in self._inputs.items()
            },
            "current_outputs": list(self.prompt),
        }

    def shown(self) -> dict[str, Any]:
        """Return what history keeps of the nodes."""
        outputs, meta = {}, {}
        for node_id in self.prompt:
            cached = self.cache.get(node_id)
            if cached and cached.outcome.ui:
                outputs[node_id], by = cached.outcome.ui, cached.node_id
                meta[node_id] = {"node_id": by, "display_node": by, "parent_node": None, "real_node_id": by}
        return {"outputs": outputs, "meta": meta}


class Executor:
    """Takes prompts from the queue and runs them."""

    def __init__(self, queue: PromptQueue, hub: Hub, env: Env) -> None:
        self._queue = queue
        self._hub = hub
        self._env = replace(env, check_interrupted=self._check_interrupted)
        self._cache = Cache()
        self._interrupted = threading.Event()
        self._messages: list[tuple[str, dict[str, Any]]] = []

    def interrupt(self) -> None:
        """Make the running prompt end at its next check; without one, nothing happens."""
        self._interrupted.set()

    def work(self) -> None:
        """Run prompts until the process ends.

        A node without inputs that no output needs raises here and ends the thread, and with it all work, while HTTP
        goes on answering. ComfyUI dies of the same request, and callers must be safe from it.
        """
        while True:
            self._queue.wait(_IDLE_WAIT_SECONDS)
            if taken := self._queue.take():
                self._work_on(*taken)
            if "free_memory" in self._queue.take_flags():
                self._cache.clear()

    def _work_on(self, item: Item, ticket: int) -> None:
        started, (_, prompt_id, prompt, extra_data, outputs) = time.perf_counter(), item
        self._interrupted.clear()
        self._hub.client_id = extra_data["client_id"] if "client_id" in extra_data else None  # noqa: SIM401
        self._messages = []
        self._note("execution_start", {"prompt_id": prompt_id})
        if not self._env.options.is_cached:
            self._cache.clear()
        self._cache.start(fingerprints(prompt, self._env.folders))
        cached = [node_id for node_id in prompt if self._cache.get(node_id)]
        self._note("execution_cached", {"nodes": cached, "prompt_id": prompt_id})
        run = Run(prompt, prompt_id, extra_data, self._cache, self._hub, self._env)
        succeeded = self._run_nodes(run, outputs)
        self._hub.last_node_id = None
        end = "success" if succeeded else "error"
        status = {"status_str": end, "completed": succeeded, "messages": self._messages}
        self._queue.done(ticket, run.shown(), status)
        if self._hub.client_id is not None:
            self._hub.post("executing", {"node": None, "prompt_id": prompt_id}, self._hub.client_id)
        log.info("Prompt executed in %.2f seconds", time.perf_counter() - started)

    def _run_nodes(self, run: Run, outputs: Iterable[str]) -> bool:
        """Run the nodes that the outputs need; True when none failed."""
        order = execution_order(
            run.prompt,
            outputs,
            is_cached=lambda node_id: self._cache.get(node_id) is not None,
            is_output=lambda node_id: run.node(node_id).output_node,
        )
        for node_id in order:
            try:
                run.run_node(node_id)
            except Interrupted:
                log.info("Processing interrupted")
                self._note("execution_interrupted", run.where(node_id), broadcast=True)
                return False
            except Exception as problem:  # edge: a node may raise anything, and its client learns of it
                log.exception("!!! Exception during processing !!! %s", problem)
                self._note("execution_error", run.failure(node_id, problem))
                return False
        run.repeat_intermediate()
        self._note("execution_success", {"prompt_id": run.prompt_id})
        return True

    def _note(self, event: str, data: dict[str, Any], broadcast: bool = False) -> None:
        """Send a message that history keeps too."""
        data = {**data, "timestamp": int(time.time() * 1000)}
        self._messages.append((event, data))
        if self._hub.client_id is not None or broadcast:
            self._hub.post(event, data, self._hub.client_id)

    def _check_interrupted(self) -> None:
        if self._interrupted.is_set():
            self._interrupted.clear()
            raise Interrupted
