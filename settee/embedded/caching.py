"""The nodes of a prompt that run, in which order, and those answered from the execution before."""

from __future__ import annotations

import json
import logging
import math
import uuid
from collections.abc import Callable, Iterable, Iterator
from graphlib import TopologicalSorter
from typing import Any, NamedTuple

from settee.base.files import digest_of
from settee.comfyui.workflow import is_link
from settee.embedded.folders import Folders
from settee.embedded.nodes import NODES
from settee.embedded.nodes.node import Node, Outcome

log = logging.getLogger("settee.embedded")

Prompt = dict[str, dict[str, Any]]


def execution_order(
    prompt: Prompt, outputs: Iterable[str], is_cached: Callable[[str], bool], is_output: Callable[[str], bool]
) -> Iterator[str]:
    """Yield the nodes that the outputs need and the cache does not have, each when those before it are done.

    Of several that are ready an output node goes first, as in ComfyUI: what it made is there even if others fail.
    """
    needs: dict[str, list[str]] = {}
    stack = list(outputs)[::-1]
    while stack:
        if (node_id := stack.pop()) not in needs:
            values = prompt[node_id]["inputs"].values()
            needs[node_id] = [value[0] for value in values if is_link(value) and not is_cached(value[0])]
            stack += needs[node_id]
    order = TopologicalSorter(needs)
    order.prepare()
    ready: list[str] = []
    while order.is_active():
        ready += order.get_ready()
        node_id = next(filter(is_output, ready), ready[0])
        ready.remove(node_id)
        yield node_id
        order.done(node_id)


def fingerprints(prompt: Prompt, folders: Folders) -> dict[str, str]:
    """Return the cache key of every node: a hash of its class and inputs, its ancestors' keys, and IS_CHANGED."""
    keys: dict[str, str] = {}

    def key(node_id: str) -> str:
        if node_id not in keys:
            keys[node_id] = uuid.uuid4().hex  # equal to no other: of a node that is missing, or that reads itself
            if node_id in prompt:
                prompted = prompt[node_id]
                node, inputs = NODES[prompted["class_type"]], dict(prompted["inputs"])
                for name, value in inputs.items():
                    if is_link(value):
                        inputs[name] = [key(value[0]), value[1]]
                own_id = node_id if any(each.kind == "UNIQUE_ID" for each in node.inputs.values()) else None
                described = [node.name, _is_changed(prompted, node, folders), own_id, inputs]
                keys[node_id] = digest_of(json.dumps(described, sort_keys=True))
        return keys[node_id]

    for node_id in prompt:
        key(node_id)
    return keys


def _is_changed(prompted: dict[str, Any], node: Node, folders: Folders) -> Any:
    if node.fingerprint is None:
        return False
    constants = {name: None if is_link(value) else value for name, value in prompted["inputs"].items()}
    try:
        # ComfyUI writes this into the graph itself, from where it reaches the metadata of saved files.
        prompted["is_changed"] = [node.fingerprint(folders, constants)]
    except Exception as error:  # as ComfyUI: whatever a node raises here is only a warning
        log.warning("WARNING: %s", error)
        prompted["is_changed"] = math.nan
        return uuid.uuid4().hex
    return prompted["is_changed"]


class Cached(NamedTuple):
    """A result, and the node that it was made by; another node with the same key gets it too."""

    outcome: Outcome
    node_id: str


class Cache:
    """Results of the last prompt by key, as ComfyUI keeps them with --cache-classic."""

    def __init__(self) -> None:
        self._keys: dict[str, str] = {}
        self._results: dict[str, Cached] = {}

    def start(self, keys: dict[str, str]) -> None:
        """Begin a prompt: what it does not contain is dropped."""
        used = self._results.keys() & keys.values()
        self._keys, self._results = keys, {key: self._results[key] for key in used}

    def clear(self) -> None:
        """Drop everything."""
        self._results = {}

    def get(self, node_id: str) -> Cached | None:
        """Return the result of a node, None when it has none."""
        return self._results.get(self._keys.get(node_id, ""))

    def store(self, node_id: str, outcome: Outcome) -> None:
        """Keep the result of a node."""
        self._results[self._keys[node_id]] = Cached(outcome, node_id)
