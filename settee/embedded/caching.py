"""The nodes of a prompt that run, in which order, and those answered from the execution before."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from settee.comfyui.workflow import is_link
from settee.embedded.folders import Folders
from settee.embedded.nodes import NODES
from settee.embedded.nodes.node import Node, Outcome

log = logging.getLogger("settee.embedded")


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
        """Return the node to run now. Not all of them wait: validation refuses cycles."""
        ready = [node_id for node_id, needs in self._waits_for.items() if not needs]
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
        """Take a node that is done out of the order."""
        del self._waits_for[node_id]
        for after in self._awaited_by.pop(node_id):
            self._waits_for[after].discard(node_id)


Prompt = dict[str, dict[str, Any]]


class NeverEqual:
    """Stands for a value that cannot be compared, so that its node is never taken from the cache."""


def hashable(value: Any) -> Any:
    """Return a hashable form of a JSON value that is equal exactly when the values are."""
    if value is None or isinstance(value, (int, float, str, bool)):
        return value
    if isinstance(value, Mapping):
        return frozenset((key, hashable(item)) for key, item in value.items())
    if isinstance(value, Sequence):
        return tuple(hashable(item) for item in value)
    return NeverEqual()


class Fingerprints:
    """The cache key of every node of one prompt: its class and inputs, those of its ancestors, and IS_CHANGED."""

    def __init__(self, prompt: Prompt, folders: Folders) -> None:
        self._prompt = prompt
        self._folders = folders
        self._changed: dict[str, Any] = {}
        self.keys = {node_id: self._key(node_id) for node_id in prompt}

    def _key(self, node_id: str) -> Any:
        ancestors = list(self._ancestors(node_id, set()))
        position = {ancestor: index for index, ancestor in enumerate(ancestors)}
        return tuple(self._describe(each, position) for each in (node_id, *ancestors))

    def _ancestors(self, node_id: str, seen: set[str]) -> Iterator[str]:
        """Yield ancestors depth first, by sorted input name, each once."""
        inputs = self._prompt[node_id]["inputs"] if node_id in self._prompt else {}
        for name in sorted(inputs):
            source = inputs[name][0] if is_link(inputs[name]) else None
            if source is not None and source not in seen:
                seen.add(source)
                yield source
                yield from self._ancestors(source, seen)

    def _describe(self, node_id: str, position: Mapping[str, int]) -> Any:
        if node_id not in self._prompt:
            return math.nan, NeverEqual()
        prompted = self._prompt[node_id]
        node = NODES[prompted["class_type"]]
        own_id = node_id if any(each.kind == "UNIQUE_ID" for each in node.inputs.values()) else None
        if node_id not in self._changed:
            self._changed[node_id] = hashable(self._is_changed(prompted, node))
        parts: list[Any] = [node.name, self._changed[node_id], own_id]
        for name in sorted(prompted["inputs"]):
            value = prompted["inputs"][name]
            if is_link(value):
                parts.append((name, "ANCESTOR", position[value[0]], value[1]))
            else:
                parts.append((name, hashable(value)))
        return tuple(parts)

    def _is_changed(self, prompted: dict[str, Any], node: Node) -> Any:
        if node.fingerprint is None:
            return False
        constants = {name: None if is_link(value) else value for name, value in prompted["inputs"].items()}
        try:
            # ComfyUI writes this into the graph itself, from where it reaches the metadata of saved files.
            prompted["is_changed"] = [node.fingerprint(self._folders, constants)]
        except Exception as error:  # as ComfyUI: whatever a node raises here is only a warning
            log.warning("WARNING: %s", error)
            prompted["is_changed"] = math.nan
        return prompted["is_changed"]


class Cached(NamedTuple):
    """A result, and the node that it was made by; another node with the same key gets it too."""

    outcome: Outcome
    node_id: str


class Cache:
    """Results by key, and what nodes keep for their next run.

    ``kept`` are the results that stay besides those of the newest prompt, which are at most a cache's all: 0 for
    ComfyUI's classic cache, None for no cache at all. ComfyUI's default drops the oldest when memory runs short.
    """

    def __init__(self, kept: int | None) -> None:
        self._kept = kept
        self._keys: Mapping[str, Any] = {}
        self._results: dict[Any, Cached] = {}
        self._states: dict[tuple[str, str], dict[str, Any]] = {}

    def start(self, prompt: Prompt, keys: Mapping[str, Any]) -> None:
        """Begin a prompt: the oldest of what it does not contain is dropped."""
        self._keys = keys
        if self._kept is None:
            self.clear()
        used = set(keys.values())
        others = [key for key in self._results if key not in used]
        for key in others[: max(0, len(others) - (self._kept or 0))]:
            del self._results[key]
        places = [(node_id, node["class_type"]) for node_id, node in prompt.items()]
        self._states = {place: self._states.get(place, {}) for place in places}

    def clear(self) -> None:
        """Drop everything."""
        self._results, self._states = {}, {}

    def get(self, node_id: str) -> Cached | None:
        """Return the result of a node, None when it has none."""
        return self._results.get(self._keys.get(node_id))

    def store(self, node_id: str, outcome: Outcome) -> None:
        """Keep the result of a node."""
        self._results[self._keys[node_id]] = Cached(outcome, node_id)

    def state(self, node_id: str, class_type: str) -> dict[str, Any]:
        """Return what a node keeps: the same as for the last prompt, if that had this class under this id."""
        return self._states.setdefault((node_id, class_type), {})
