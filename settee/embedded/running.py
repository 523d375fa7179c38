"""One prompt while it runs, node by node."""

from __future__ import annotations

import traceback
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from settee.embedded.caching import Cache, Prompt
from settee.embedded.hub import PREVIEW, Hub, PreviewImage
from settee.embedded.nodes import NODES
from settee.embedded.nodes.base import Node, NodeEnv, Outcome, is_link
from settee.embedded.nodes.own import out_of_memory
from settee.embedded.progress import Progress
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
        """What execution_interrupted says."""
        class_type = self.prompt[node_id]["class_type"]
        return {
            "prompt_id": self.prompt_id,
            "node_id": node_id,
            "node_type": class_type,
            "executed": list(self._executed),
        }

    def failure(self, node_id: str, problem: Exception) -> dict[str, Any]:
        """What execution_error says."""
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
