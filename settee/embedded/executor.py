"""The thread that runs prompts, one after another, and how one runs node by node."""

from __future__ import annotations

import logging
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from settee.embedded.broadcast import PREVIEW, Hub, PreviewImage, Progress
from settee.embedded.caching import Cache, ExecutionOrder, Fingerprints, Prompt
from settee.embedded.faults import Faults, Stats
from settee.embedded.nodes import NODES
from settee.embedded.nodes.base import Interrupted, Node, NodeEnv, Outcome, is_link
from settee.embedded.nodes.own import exit_soon, out_of_memory
from settee.embedded.pending import PromptQueue
from settee.embedded.validation import type_name

OOM_HINT = "The GPU has no memory left for this workflow: a smaller picture or batch needs less."


class Run:
    """Runs the nodes of one prompt and tells its client about each."""

    def __init__(self, prompt: Prompt, prompt_id: str, extra_data: Any, cache: Cache, hub: Hub, env: NodeEnv) -> None:
        self.prompt = prompt
        self.prompt_id = prompt_id
        self._extra_data = extra_data
        self._cache = cache
        self._hub = hub
        self._env = env
        self._progress = Progress(hub, prompt_id)
        self._executed: list[str] = []
        self._inputs: dict[str, Any] = {}

    def node_class(self, node_id: str) -> type[Node]:
        """The class of a node of this prompt."""
        return NODES[self.prompt[node_id]["class_type"]]

    def run_node(self, node_id: str) -> None:
        """Run one node, or only repeat what it showed when its result is cached. Raises what the node raises."""
        shown = self._cache.shown(node_id)
        if self._cache.output(node_id) is not None:
            self._say_executed(node_id, shown["output"] if shown else None)
            self._progress.finish(node_id)
            return
        self._inputs = {}
        self._progress.start(node_id)
        node_class = self.node_class(node_id)
        self._inputs = self._gather(node_id, node_class)
        if self._hub.client_id is not None:
            self._hub.last_node_id = node_id
            where = {"node": node_id, "display_node": node_id, "prompt_id": self.prompt_id}
            self._hub.post("executing", where, self._hub.client_id)
        outcome = self._execute(node_id, node_class)
        if outcome.ui:
            meta = {"node_id": node_id, "display_node": node_id, "parent_node": None, "real_node_id": node_id}
            self._cache.store_shown(node_id, {"meta": meta, "output": outcome.ui})
            self._say_executed(node_id, outcome.ui)
        self._cache.store(node_id, outcome.values)
        self._progress.finish(node_id)
        self._executed.append(node_id)

    def repeat_intermediate(self) -> None:
        """Tell again what cached nodes showed that ComfyUI's editor wants to see: their old files, temp ones too."""
        for node_id in self.prompt:
            shown = self._cache.shown(node_id)
            if shown and node_id not in self._executed and self.node_class(node_id).spec.intermediate_output:
                self._say_executed(node_id, shown["output"])

    def _execute(self, node_id: str, node_class: type[Node]) -> Outcome:
        node = self._cache.node_object(node_id, node_class)

        def report(value: float, total: float, preview: PreviewImage | None) -> None:
            self._env.check_interrupted()
            self._progress.update(node_id, value, total, preview)

        self._env.check_interrupted()
        if self._env.faults.take("oom"):
            raise out_of_memory()
        self._env.stats.add("nodes_executed")
        return node.run(replace(self._env, report=report, send=self._send), **self._inputs)

    def _send(self, picture: PreviewImage) -> None:
        self._hub.post(PREVIEW, picture, self._hub.client_id)

    def _say_executed(self, node_id: str, output: Any) -> None:
        if self._hub.client_id is not None:
            data = {"node": node_id, "display_node": node_id, "output": output, "prompt_id": self.prompt_id}
            self._hub.post("executed", data, self._hub.client_id)

    def _gather(self, node_id: str, node_class: type[Node]) -> dict[str, Any]:
        """The node's inputs by name: constants, values of other nodes, and hidden ones.

        Constants of an unknown name are left out; a link of one is passed on, which ComfyUI's nodes cannot take.
        """
        spec = node_class.spec
        known = {name for kind in spec.inputs(self._env.folders).values() for name in kind}
        gathered: dict[str, Any] = {}
        for name, value in self.prompt[node_id]["inputs"].items():
            if is_link(value):
                if name not in known:
                    raise TypeError(f"{node_class.__name__} got an unexpected keyword argument {name!r}")
                values = self._cache.output(value[0])
                gathered[name] = None if values is None or value[1] >= len(values) else values[int(value[1])]
            elif name in known:
                gathered[name] = value
        hidden: dict[str, Callable[[], Any]] = {
            "PROMPT": lambda: self.prompt,
            "EXTRA_PNGINFO": self._pnginfo,
            "UNIQUE_ID": lambda: node_id,
        }
        for name, kind in spec.hidden.items():
            gathered[name] = hidden[kind]()
        return gathered

    def _pnginfo(self) -> Any:
        return self._extra_data.get("extra_pnginfo")

    def where(self, node_id: str) -> dict[str, Any]:
        """Return the data of execution_interrupted."""
        class_type = self.prompt[node_id]["class_type"]
        return {
            "prompt_id": self.prompt_id,
            "node_id": node_id,
            "node_type": class_type,
            "executed": list(self._executed),
        }

    def failure(self, node_id: str, problem: Exception) -> dict[str, Any]:
        """Return the data of execution_error."""
        hint = OOM_HINT if type_name(problem) == "torch.OutOfMemoryError" else ""
        return {
            **self.where(node_id),
            "exception_message": f"{problem}\n{hint}",
            "exception_type": type_name(problem),
            "traceback": traceback.format_tb(problem.__traceback__),
            "current_inputs": {name: [_plain(value)] for name, value in self._inputs.items()},
            "current_outputs": list(self.prompt),
        }


def _plain(value: Any) -> Any:
    return value if value is None or isinstance(value, (int, float, bool, str)) else str(value)


log = logging.getLogger("settee.embedded")

_IDLE_WAIT_SECONDS = 10.0


class Executor:
    """Takes prompts from the queue and runs them."""

    def __init__(self, queue: PromptQueue, hub: Hub, env: NodeEnv, cache: Cache) -> None:
        self._queue = queue
        self._hub = hub
        self._env = replace(env, check_interrupted=self._check_interrupted, enqueue=self._enqueue)
        self._running: tuple[float, Any, list[str]] = (0.0, {}, [])
        self._faults: Faults = env.faults
        self._stats: Stats = env.stats
        self._cache = cache
        self._interrupted = threading.Event()
        self._messages: list[tuple[str, dict[str, Any]]] = []
        self._succeeded = True

    def interrupt(self) -> None:
        """Make the running prompt end at its next check; without one, nothing happens."""
        self._interrupted.set()

    def work(self) -> None:
        """Run prompts for ever.

        A node without inputs that no output needs raises here and ends the thread, and with it all work, while HTTP
        goes on answering. ComfyUI dies of the same request, and callers must be safe from it.
        """
        while True:
            taken = self._queue.take(_IDLE_WAIT_SECONDS, self._paused)
            if taken is not None:
                item, ticket = taken
                self._work_on(ticket, *item)
            flags = self._queue.take_flags()
            if flags.get("free_memory") or flags.get("unload_models"):
                self._env.memory.free()
            if flags.get("free_memory"):
                self._cache.clear()
                self._stats.add("cache_drops")

    def _paused(self) -> bool:
        return bool(self._faults.get("executor_dead"))

    def _work_on(
        self, ticket: int, number: float, prompt_id: str, prompt: Prompt, extra_data: Any, outputs: list[str]
    ) -> None:
        started = time.perf_counter()
        self._running = (-ticket - 1.0, extra_data, outputs)
        result = self._run(prompt, prompt_id, extra_data, outputs)
        status = {
            "status_str": "success" if self._succeeded else "error",
            "completed": self._succeeded,
            "messages": self._messages,
        }
        late = self._faults.seconds("history_late")
        if late:
            self._say_final(prompt_id)
            time.sleep(late)
        self._queue.done(ticket, result, status, keep=not self._faults.get("history_lost"))
        self._stats.add("prompts_executed")
        if not late:
            self._say_final(prompt_id)
        log.info("Prompt executed in %.2f seconds", time.perf_counter() - started)

    def _enqueue(self, prompt: Prompt, is_told: bool) -> None:
        number, extra_data, outputs = self._running
        self._queue.put((number, str(uuid.uuid4()), prompt, dict(extra_data) if is_told else {}, outputs))

    def _say_final(self, prompt_id: str) -> None:
        client_id = self._hub.client_id
        if client_id is not None and not self._faults.get("no_final_message"):
            self._hub.post("executing", {"node": None, "prompt_id": prompt_id}, client_id)

    def _run(self, prompt: Prompt, prompt_id: str, extra_data: Any, outputs: Iterable[str]) -> dict[str, Any]:
        """Run a prompt and give what history keeps of its nodes."""
        self._interrupted.clear()
        self._hub.client_id = extra_data["client_id"] if "client_id" in extra_data else None  # noqa: SIM401
        self._messages = []
        self._say("execution_start", {"prompt_id": prompt_id})
        self._cache.start(prompt, Fingerprints(prompt, self._env).keys)
        cached = [node_id for node_id in prompt if self._cache.output(node_id) is not None]
        self._say("execution_cached", {"nodes": cached, "prompt_id": prompt_id})
        run = Run(prompt, prompt_id, extra_data, self._cache, self._hub, self._env)
        self._succeeded = self._run_nodes(run, outputs)
        self._hub.last_node_id = None
        shown = {node_id: self._cache.shown(node_id) for node_id in prompt}
        return {
            "outputs": {node_id: each["output"] for node_id, each in shown.items() if each},
            "meta": {node_id: each["meta"] for node_id, each in shown.items() if each},
        }

    def _run_nodes(self, run: Run, outputs: Iterable[str]) -> bool:
        order = ExecutionOrder(
            run.prompt,
            outputs,
            is_cached=lambda node_id: self._cache.output(node_id) is not None,
            is_output=lambda node_id: run.node_class(node_id).spec.output_node,
        )
        crash = self._faults.countdown("crash_on_prompt")
        while order:
            node_id = order.next()
            try:
                run.run_node(node_id)
            except Interrupted:
                log.info("Processing interrupted")
                self._stats.add("prompts_interrupted")
                self._say("execution_interrupted", run.where(node_id), broadcast=True)
                return False
            except Exception as problem:  # edge: a node may raise anything, and the client is told
                log.exception("!!! Exception during processing !!! %s", problem)
                self._stats.add("prompts_failed")
                self._say("execution_error", run.failure(node_id, problem))
                return False
            if crash:
                exit_soon()
            order.complete(node_id)
        run.repeat_intermediate()
        self._stats.add("prompts_succeeded")
        self._say("execution_success", {"prompt_id": run.prompt_id})
        return True

    def _say(self, event: str, data: dict[str, Any], broadcast: bool = False) -> None:
        """Send a message that history keeps too."""
        data = {**data, "timestamp": int(time.time() * 1000)}
        self._messages.append((event, data))
        if self._hub.client_id is not None or broadcast:
            self._hub.post(event, data, self._hub.client_id)

    def _check_interrupted(self) -> None:
        if self._interrupted.is_set():
            self._interrupted.clear()
            raise Interrupted
