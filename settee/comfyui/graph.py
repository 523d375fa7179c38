"""A workflow as a graph: which inputs take an output, what an output needs, where a value is written. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

from settee.comfyui.node_registry import UNKNOWN, NodeRegistry
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
    changed = dict(workflow)
    for place, value in values.items():
        node = changed[place.node_id]
        changed[place.node_id] = {**node, "inputs": {**node["inputs"], place.input: value}}
    return changed


_T = TypeVar("_T")


def reached(starts: Iterable[_T], beyond: Callable[[_T], Iterable[_T]]) -> list[_T]:
    """Return these and all that is found behind them; ``beyond`` is asked once for each, so that loops end."""
    found = dict.fromkeys(starts)
    waiting = list(found)
    while waiting:
        new = dict.fromkeys(each for each in beyond(waiting.pop()) if each not in found)
        found |= new
        waiting += new
    return list(found)


class Graph:
    """The nodes of a workflow and their links. ``registry`` describes the classes that it has."""

    def __init__(self, workflow: Workflow, registry: NodeRegistry = UNKNOWN) -> None:
        self.workflow = workflow
        self.registry = registry

    def class_of(self, node_id: str) -> str:
        return str(self.workflow[node_id]["class_type"])

    @cached_property
    def users(self) -> dict[str, list[Use]]:
        """For every node, where its outputs go."""
        found: dict[str, list[Use]] = {node_id: [] for node_id in self.workflow}
        for node_id, node in self.workflow.items():
            for name, source, slot in links(node):
                if source in found:
                    found[source].append(Use(slot, node_id, name))
        return found

    def needed(self, node_ids: Iterable[str]) -> set[str]:
        """Return these nodes and all that they are made from."""
        known = [node_id for node_id in node_ids if node_id in self.workflow]
        return set(reached(known, self.sources))

    def sources(self, node_id: str) -> list[str]:
        """Return the nodes whose outputs a node takes."""
        return [source for _, source, _ in links(self.workflow[node_id]) if source in self.workflow]

    @cached_property
    def live(self) -> Workflow:
        """Return the nodes that lead to an output: ComfyUI looks at no others.

        An unknown class may be an output too, where it has links and none to it. Without a known output all count.
        """
        ends = self.registry.output_nodes(self.workflow)
        if not ends:
            return self.workflow
        unknown = [i for i, node in self.workflow.items() if node["class_type"] not in self.registry]
        needed = self.needed([*ends, *(i for i in unknown if not self.users[i] and any(links(self.workflow[i])))])
        return {node_id: node for node_id, node in self.workflow.items() if node_id in needed}

    def live_uses(self, node_id: str, slot: int | None = None) -> list[Use]:
        """Return where an output goes, or all of a node's, as far as it matters."""
        return [use for use in self.users[node_id] if use.node_id in self.live and slot in (None, use.slot)]

    # --- values -------------------------------------------------------------------------------------------

    def value(self, place: Place) -> Any:
        """Return what the workflow has at a place, a link included; None where there is no such input."""
        return unwrapped(self.workflow[place.node_id]["inputs"].get(place.input))

    def spec(self, place: Place) -> Any:
        """Return what the registry declares of an input; None where it does not know it."""
        return self.registry.spec(self.class_of(place.node_id), place.input)

    def literal(self, place: Place) -> Place:
        """Return where the value of this input is written: there, or in the primitive behind its link and reroutes.

        Raises Computed when the link comes from any other node.
        """
        seen = {place.node_id}
        while is_link(value := self.value(place)):
            source = value[0]
            inner = self._handed_on(source) if source in self.workflow and source not in seen else None
            if inner is None:
                raise Computed(source)
            seen.add(source)
            place = Place(source, inner)
        return place

    def fed_by(self, place: Place) -> list[Place]:
        """Return the inputs that get a primitive's value, in natural order, through reroutes; else the place itself."""
        if _value_input(self.workflow[place.node_id]) != place.input or not self.users[place.node_id]:
            return [place]

        def reroutes(node_id: str) -> list[str]:
            return [use.node_id for use in self.users[node_id] if self.is_reroute(use.node_id)]

        uses = [use for node_id in reached([place.node_id], reroutes) for use in self.users[node_id]]
        found = {Place(use.node_id, use.input) for use in uses if not self.is_reroute(use.node_id)}
        return sorted(found, key=lambda found: (natural_key(found.node_id), found.input))

    def is_reroute(self, node_id: str) -> bool:
        return "reroute" in self.class_of(node_id).casefold()

    def _handed_on(self, node_id: str) -> str | None:
        """Return the input that a node hands on unchanged."""
        node = self.workflow[node_id]
        if self.is_reroute(node_id) and len(node["inputs"]) == 1:
            return str(next(iter(node["inputs"])))
        return _value_input(node)


def _value_input(node: dict[str, Any]) -> str | None:
    """Return the input of a node that holds one literal and hands it on, as the Primitive classes do; else None."""
    inputs = node["inputs"]
    if any(is_link(unwrapped(value)) for value in inputs.values()):
        return None
    named = [name for name in inputs if name.casefold() in _VALUE_INPUTS]
    rest = [value for name, value in inputs.items() if name not in named]
    # StringConstantMultiline and the like have switches next to their text.
    if len(named) != 1 or not all(isinstance(value, bool) for value in rest) or _COMPUTING.search(node["class_type"]):
        return None
    return named[0] if isinstance(inputs[named[0]], (str, int, float)) else None
