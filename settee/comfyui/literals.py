"""Where the value of a node's input is written: there, or in the primitive that it is linked to. Pure; for worker and
client."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from settee.comfyui.workflow import Workflow, is_link, links, natural_key, unwrapped

#: Inputs that hold the value of a node made for nothing else (PrimitiveInt, INTConstant, Text Multiline, …).
_VALUE_INPUTS = ("value", "number", "int", "integer", "float", "bool", "boolean", "string", "text", "seed")
#: A class with such a word in its name does something with its text (StringLength, LoadText, ShowText).
_COMPUTING = re.compile(
    "length|trim|case|convert|replace|split|load|show|path|file|encod|contain|compar|match|substring|regex|extract|"
    "count|hash|parse",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Place:
    """One input of one node."""

    node_id: str
    input: str

    def shown(self) -> str:
        """As ``--set`` takes it."""
        return f"{self.node_id}.inputs.{self.input}"


@dataclass(frozen=True)
class Use:
    """Output ``slot`` of a node goes into this input of another."""

    slot: int
    node_id: str
    input: str


class Computed(LookupError):
    """The value of an input is written nowhere: the node ``source`` computes it."""

    def __init__(self, source: str) -> None:
        super().__init__(source)
        self.source = source


def with_values(workflow: Workflow, values: Mapping[Place, Any]) -> Workflow:
    """A copy with these values."""
    changed = dict(workflow)
    for place, value in values.items():
        node = changed[place.node_id]
        changed[place.node_id] = {**node, "inputs": {**node["inputs"], place.input: value}}
    return changed


def users(workflow: Workflow) -> dict[str, list[Use]]:
    """For every node, where its outputs go."""
    found: dict[str, list[Use]] = {node_id: [] for node_id in workflow}
    for node_id, node in workflow.items():
        for name, source, slot in links(node):
            if source in found:
                found[source].append(Use(slot, node_id, name))
    return found


def value_input(node: dict[str, Any]) -> str | None:
    """The input of a node that holds one literal and hands it on, as the Primitive classes do; else None."""
    inputs = node["inputs"]
    if any(is_link(unwrapped(value)) for value in inputs.values()):
        return None
    named = [name for name in inputs if name.casefold() in _VALUE_INPUTS]
    rest = [value for name, value in inputs.items() if name not in named]
    # StringConstantMultiline and the like have switches beside their text.
    if len(named) != 1 or not all(isinstance(value, bool) for value in rest) or _COMPUTING.search(node["class_type"]):
        return None
    return named[0] if isinstance(inputs[named[0]], (str, int, float)) else None


def literal_of(workflow: Workflow, node_id: str, name: str) -> Place:
    """Where the value of this input is written: there, or in the primitive that it is linked to, through reroutes.

    Raises Computed when the link comes from any other node.
    """
    place, seen = Place(node_id, name), {node_id}
    while is_link(value := unwrapped(workflow[place.node_id]["inputs"][place.input])):
        source = value[0]
        node = workflow.get(source)
        inner = _inner(node) if node is not None and source not in seen else None
        if inner is None:
            raise Computed(source)
        seen.add(source)
        place = Place(source, inner)
    return place


def _inner(node: dict[str, Any]) -> str | None:
    """The input that a node hands on unchanged."""
    if "reroute" in str(node["class_type"]).casefold() and len(node["inputs"]) == 1:
        return str(next(iter(node["inputs"])))
    return value_input(node)


def fed_by(workflow: Workflow, place: Place, used: dict[str, list[Use]]) -> list[Place]:
    """The inputs that get the value of a primitive, in natural order, through reroutes; for no primitive, itself."""
    if value_input(workflow[place.node_id]) != place.input or not used[place.node_id]:
        return [place]
    found, pending, seen = [], [place.node_id], set()
    while pending:
        node_id = pending.pop()
        seen.add(node_id)
        for use in used[node_id]:
            if "reroute" in str(workflow[use.node_id]["class_type"]).casefold():
                pending += [use.node_id] if use.node_id not in seen else []
            else:
                found.append(Place(use.node_id, use.input))
    return sorted(set(found), key=lambda found: (natural_key(found.node_id), found.input))
