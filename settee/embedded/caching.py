"""The nodes of a prompt that run, in which order, and those answered from the execution before."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

from settee.embedded.nodes import NODES
from settee.embedded.nodes.base import Node, NodeEnv, is_link


class CycleError(Exception):
    """Nodes wait for each other. Validation finds static cycles first."""


class ExecutionOrder:
    """Hands out nodes whose inputs are ready, preferring those that bring an output node closest.

    The preference is ComfyUI's, so that the order of messages is too: an output node first, then a node that an
    output node waits for, then a node two steps from one, then the oldest.
    """

    def __init__(
        self,
        prompt: dict[str, Any],
        outputs: Iterable[str],
        is_cached: Callable[[str], bool],
        is_output: Callable[[str], bool],
    ) -> None:
        self._prompt = prompt
        self._is_cached = is_cached
        self._is_output = is_output
        self._waits_for: dict[str, set[str]] = {}
        self._awaited_by: dict[str, dict[str, None]] = {}
        for node_id in outputs:
            self._add(node_id)

    def __bool__(self) -> bool:
        return bool(self._waits_for)

    def _add(self, node_id: str) -> None:
        stack, edges = [node_id], []
        while stack:
            current = stack.pop()
            if current in self._waits_for:
                continue
            self._waits_for[current] = set()
            self._awaited_by[current] = {}
            for value in self._prompt[current]["inputs"].values():
                if is_link(value) and not self._is_cached(value[0]):
                    stack.append(value[0])
                    edges.append((value[0], current))
        for source, target in edges:
            self._waits_for[target].add(source)
            self._awaited_by[source][target] = None

    def next(self) -> str:
        """The node to run now; raises CycleError when all of them wait."""
        ready = [node_id for node_id, needs in self._waits_for.items() if not needs]
        if not ready:
            raise CycleError("Dependency cycle detected")
        for steps in range(3):
            for node_id in ready:
                if self._leads_to_output(node_id, steps):
                    return node_id
        return ready[0]

    def _leads_to_output(self, node_id: str, steps: int) -> bool:
        if steps == 0:
            return self._is_output(node_id)
        return any(self._leads_to_output(after, steps - 1) for after in self._awaited_by[node_id])

    def complete(self, node_id: str) -> None:
        """Say that a node is done."""
        del self._waits_for[node_id]
        for after in self._awaited_by.pop(node_id):
            self._waits_for[after].discard(node_id)


Prompt = dict[str, dict[str, Any]]


class NeverEqual:
    """Stands for a value that cannot be compared, so that its node is never taken from the cache."""


def hashable(value: Any) -> Any:
    """A hashable form of a JSON value that is equal exactly when the values are."""
    if value is None or isinstance(value, (int, float, str, bool)):
        return value
    if isinstance(value, Mapping):
        return frozenset((key, hashable(item)) for key, item in value.items())
    if isinstance(value, Sequence):
        return tuple(hashable(item) for item in value)
    return NeverEqual()


class Fingerprints:
    """The cache key of every node of one prompt: its class and inputs, those of its ancestors, and IS_CHANGED."""

    def __init__(self, prompt: Prompt, env: NodeEnv) -> None:
        self._prompt = prompt
        self._env = env
        self._changed: dict[str, Any] = {}
        self.keys = {node_id: self._key(node_id) for node_id in prompt}

    def _key(self, node_id: str) -> Any:
        ancestors = list(self._ancestors(node_id))
        position = {ancestor: index for index, ancestor in enumerate(ancestors)}
        return tuple(self._describe(each, position) for each in (node_id, *ancestors))

    def _ancestors(self, node_id: str) -> Iterator[str]:
        """Ancestors depth first, by sorted input name, each once."""
        seen: set[str] = set()

        def walk(current: str) -> Iterator[str]:
            inputs = self._prompt[current]["inputs"] if current in self._prompt else {}
            for name in sorted(inputs):
                source = inputs[name][0] if is_link(inputs[name]) else None
                if source is not None and source not in seen:
                    seen.add(source)
                    yield source
                    yield from walk(source)

        return walk(node_id)

    def _describe(self, node_id: str, position: Mapping[str, int]) -> Any:
        if node_id not in self._prompt:
            return math.nan, NeverEqual()
        node = self._prompt[node_id]
        node_class = NODES[node["class_type"]]
        own_id = node_id if "UNIQUE_ID" in node_class.spec.hidden.values() else None
        parts: list[Any] = [node["class_type"], self._is_changed(node_id, node_class), own_id]
        for name in sorted(node["inputs"]):
            value = node["inputs"][name]
            if is_link(value):
                parts.append((name, "ANCESTOR", position[value[0]], value[1]))
            else:
                parts.append((name, hashable(value)))
        return tuple(parts)

    def _is_changed(self, node_id: str, node_class: type[Node]) -> Any:
        if node_id not in self._changed:
            self._changed[node_id] = hashable(self._ask_is_changed(node_id, node_class))
        return self._changed[node_id]

    def _ask_is_changed(self, node_id: str, node_class: type[Node]) -> Any:
        if not node_class.has_fingerprint:
            return False
        node = self._prompt[node_id]
        constants = {n: None if is_link(v) else v for n, v in node["inputs"].items()}
        try:
            # ComfyUI writes this into the graph itself, from where it reaches the metadata of saved files.
            node["is_changed"] = [node_class.fingerprint(self._env, constants)]
        except Exception as error:  # as ComfyUI: whatever a node raises here is only a warning
            self._env.log.warning("WARNING: %s", error)
            node["is_changed"] = math.nan
        return node["is_changed"]


class Cache:
    """Outputs, what they showed (ui) and node objects.

    ``kept`` are the results that stay besides those of the newest prompt, which are at most a cache's all: 0 for
    ComfyUI's classic cache, None for no cache at all. ComfyUI's default drops the oldest when memory runs short.
    """

    def __init__(self, kept: int | None) -> None:
        self._kept = kept
        self._keys: Mapping[str, Any] = {}
        self._classes: Mapping[str, Any] = {}
        self.outputs: dict[Any, tuple[Any, ...]] = {}
        self.ui: dict[Any, dict[str, Any]] = {}
        self.objects: dict[Any, Node] = {}

    def start(self, prompt: Prompt, keys: Mapping[str, Any]) -> None:
        """Begin a prompt: everything that it does not contain is dropped."""
        self._keys = keys
        self._classes = {node_id: (node_id, node["class_type"]) for node_id, node in prompt.items()}
        used = set(keys.values())
        if self._kept is None:
            self.clear()
        others = [key for key in self.outputs if key not in used]
        for key in others[: max(0, len(others) - (self._kept or 0))]:
            del self.outputs[key]
            self.ui.pop(key, None)
        objects = set(self._classes.values())
        self.objects = {key: value for key, value in self.objects.items() if key in objects}

    def clear(self) -> None:
        """Drop everything."""
        self.outputs, self.ui, self.objects = {}, {}, {}

    def output(self, node_id: str) -> tuple[Any, ...] | None:
        """The values a node gave, None when they are not there."""
        return self.outputs.get(self._keys.get(node_id))

    def shown(self, node_id: str) -> dict[str, Any] | None:
        """The ``{"meta", "output"}`` a node showed, None when it showed nothing."""
        return self.ui.get(self._keys.get(node_id))

    def store(self, node_id: str, values: tuple[Any, ...]) -> None:
        """Keep what a node gave."""
        self.outputs[self._keys[node_id]] = values

    def store_shown(self, node_id: str, shown: dict[str, Any]) -> None:
        """Keep what a node showed."""
        self.ui[self._keys[node_id]] = shown

    def node_object(self, node_id: str, node_class: type[Node]) -> Node:
        """The node's object: the same one as for the last prompt, if that had this node under this id."""
        key = self._classes[node_id]
        if key not in self.objects:
            self.objects[key] = node_class()
        return self.objects[key]
