"""Where a node is: in the file's own graph, or in that of a subgraph's node, which has its own ids and values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from settee.client.client_errors import UsageError
from settee.client.convert.editor_file import INPUTS_EDGE, MAX_NODES, Edge, File, Graph, Link, Node, refused, shown
from settee.client.convert.widgets import BROWSER_WIDGETS, Definition, Input, definition
from settee.comfyui.node_registry import NodeRegistry

MUTED, BYPASSED = 2, 4
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
#: Classes that only the editor has, and that are not exported.
EDITORS_OWN = frozenset([REROUTE, PRIMITIVE, "Note", "MarkdownNote"])
#: Subgraphs within subgraphs.
_MAX_DEPTH = 50


@dataclass(frozen=True, eq=False)
class Scope:
    graph: Graph
    #: What the ids of its nodes begin with when exported: ``""``, ``"57:"``, ``"57:6:"``.
    path: str = ""
    #: The node of which this is the inside, and where that is.
    instance: Node | None = None
    parent: Scope | None = None
    #: What was found out about its edges, which many inputs ask for.
    found: dict[tuple[str, str], Any] = field(default_factory=dict, repr=False)

    @cached_property
    def depth(self) -> int:
        return 0 if self.parent is None else self.parent.depth + 1


class Registry:
    """The file's subgraphs and the server's classes, looked up by a node's type."""

    def __init__(self, file: File, classes: NodeRegistry, extensions: Iterable[str] | None) -> None:
        self._file = file
        #: The version of the editor that saved the file.
        self.editor = file.editor
        self._classes = classes
        self._extensions = None if extensions is None else tuple(extensions)
        self._definitions: dict[str, Definition] = {}
        self._inside: dict[str, Scope] = {}

    def subgraph(self, node: Node) -> Graph | None:
        return self._file.subgraphs.get(node.type)

    def alike(self, node: Node) -> list[Node]:
        """Return all nodes of the file, wherever they are, of a node's type."""
        graphs = [self._file.graph, *self._file.subgraphs.values()]
        return [other for graph in graphs for other in graph.nodes.values() if other.type == node.type]

    def inside(self, scope: Scope, node: Node) -> Scope:
        """Return the scope of a subgraph's node; the same one for the same node."""
        path = f"{scope.path}{node.id}:"
        if path not in self._inside:
            if node.mode in (MUTED, BYPASSED):
                state = "muted" if node.mode == MUTED else "bypassed"
                raise self.refused(scope, node, f"is a {state} subgraph, which editors export in different ways")
            if scope.depth >= _MAX_DEPTH or len(self._inside) >= MAX_NODES:
                raise self.refused(scope, node, "is a subgraph nested too deep, or in itself")
            self._inside[path] = Scope(self._file.subgraphs[node.type], path, node, scope)
        return self._inside[path]

    def definition(self, scope: Scope, node: Node) -> Definition:
        """Return a node's class. Raises UsageError when it is unknown, or cannot be relied on."""
        if node.type not in self._definitions:
            if node.type.startswith(("workflow>", "workflow/")):
                raise self.refused(scope, node, "is a group node")
            found = definition(node.type, self._classes, self._extensions)
            if found is None:
                raise self.refused(scope, node, "is of a class that the server does not know")
            if found.scripted:
                raise self.refused(scope, node, found.scripted)
            self._definitions[node.type] = found
        return self._definitions[node.type]

    def input(self, scope: Scope, node: Node, name: str) -> Input | None:
        """Return a declared input of a node that the server knows; None for other nodes."""
        if node.type in EDITORS_OWN or self.subgraph(node):
            return None
        return self.definition(scope, node).input(name)

    def refused(self, scope: Scope, node: Node, why: str) -> UsageError:
        """Return the error that names a node as a person finds it in the editor."""
        subgraph = self.subgraph(node)
        kind = f"subgraph {shown(subgraph.name)}" if subgraph else shown(node.type)[1:-1]
        title = (
            f" {shown(node.title)}" if node.title and node.title not in (node.type, subgraph and subgraph.name) else ""
        )
        within = f" in subgraph {shown(scope.graph.name)}" if scope.parent else ""
        return refused(f"node {scope.path}{node.id} {kind}{title}{within}", why)


def types_meet(one: str, other: str) -> bool:
    """Return True if LiteGraph lets an output of one type feed an input of the other: "INT,FLOAT" is either, "*"
    any."""
    if "*" in (one, other):
        return True
    return not {part.lower() for part in one.split(",")}.isdisjoint(part.lower() for part in other.split(","))


@dataclass(frozen=True)
class Output:
    """The output of a node that runs, by its exported id."""

    id: str
    slot: int
    #: As the server declares it.
    type: str


@dataclass(frozen=True)
class Nothing:
    """An unlinked end: a reroute's, a bypassed node's or an unlinked output of a subgraph."""

    #: Whether it is outside the subgraph of the input.
    is_outside: bool = False


@dataclass(frozen=True)
class Muted:
    node: Node


@dataclass(frozen=True)
class Primitive:
    node: Node
    #: Whether nothing stands between it and the input.
    is_next: bool


@dataclass(frozen=True)
class Promoted:
    """An input of a subgraph's node that is not linked there: its own widget may feed it."""

    #: The subgraph's inside.
    scope: Scope
    edge: Edge
    #: Whether nothing but edges of subgraphs stands between it and the input.
    is_next: bool


Source = Output | Nothing | Muted | Primitive | Promoted


def source(registry: Registry, scope: Scope, link_id: int, wanted: str) -> Source:
    """Return the source of the input that has this link and takes ``wanted``. Raises UsageError where editors
    disagree."""
    seen = set()
    outside, crossed, passed = False, False, False
    while True:
        link = scope.graph.links[link_id]
        if link.origin == INPUTS_EDGE:
            _check_place(registry, scope, link)
            edge = scope.graph.inputs[link.origin_slot]
            slot = scope.instance.slot(edge.name) if scope.instance else None
            if slot is None or slot.link is None or scope.parent is None:
                return Promoted(scope, edge, not passed)
            scope, link_id, wanted = scope.parent, slot.link, edge.type
            outside = crossed = True
            continue
        node = scope.graph.nodes[link.origin]
        if (scope.path, node.id, link.origin_slot) in seen:
            raise registry.refused(scope, node, "feeds itself")
        seen.add((scope.path, node.id, link.origin_slot))
        if registry.subgraph(node):
            scope, following = _into(registry, scope, node, link.origin_slot)
            crossed = True
        elif node.type == REROUTE:
            following, passed = _rerouted(registry, scope, node), True
        elif node.type == PRIMITIVE:
            return Primitive(node, not crossed and not passed)
        elif node.mode == MUTED:
            registry.definition(scope, node)
            return Muted(node)
        elif node.mode == BYPASSED:
            chosen = _bypassed(registry, scope, node, link.origin_slot, wanted)
            taken = chosen and node.slot(chosen.name)
            following, passed = taken.link if taken else None, True
            wanted = chosen.type if chosen else wanted
        else:
            return _output(registry, scope, node, link.origin_slot)
        if following is None:
            return Nothing(outside)
        link_id = following


def _check_place(registry: Registry, scope: Scope, link: Link) -> None:
    """Refuse inputs in another order than the server's: the first editors with subgraphs look up what an edge feeds by
    its place in the file."""
    target = scope.graph.nodes.get(link.target)
    if target is None or target.type == REROUTE or registry.subgraph(target):
        return
    names = [item.name for item in registry.definition(scope, target).slots]
    if names[link.target_slot : link.target_slot + 1] != [target.inputs[link.target_slot].name]:
        raise registry.refused(scope, target, "has its inputs in another order than the server's class")


def _into(registry: Registry, scope: Scope, node: Node, slot: int) -> tuple[Scope, int | None]:
    inside = registry.inside(scope, node)
    if slot >= len(inside.graph.outputs):
        raise registry.refused(scope, node, "has an output that its subgraph does not have")
    links = inside.graph.outputs[slot].links
    # Editors leave the links of before behind; which one counts is not the same in all.
    if len({(link.origin, link.origin_slot) for link in map(inside.graph.links.__getitem__, links)}) > 1:
        raise registry.refused(scope, node, "has an output with several links inside")
    if links and inside.graph.links[links[0]].origin == INPUTS_EDGE:
        # The editor fails to export this.
        raise registry.refused(scope, node, "hands an input through to an output")
    return inside, links[0] if links else None


def _rerouted(registry: Registry, scope: Scope, node: Node) -> int | None:
    if node.mode == MUTED:
        raise registry.refused(scope, node, "is muted, which editors export in different ways")
    if len(node.inputs) != 1:
        raise registry.refused(scope, node, "must have exactly one input")
    return node.inputs[0].link


def _bypassed(registry: Registry, scope: Scope, node: Node, slot: int, wanted: str) -> Input | None:
    """Return the input that a bypassed node hands on: the one in the output's place when its type fits, else the first
    of the wanted type, else the first that fits; linked or not."""
    definition = registry.definition(scope, node)
    known = {item.name for item in definition.inputs}
    if any(extra.link is not None for extra in node.inputs if extra.name not in known):
        raise registry.refused(scope, node, "is bypassed, with a linked input that the server does not know of it")
    inputs = definition.slots
    types = [item.type for item in inputs]
    if wanted == "*" and (
        not inputs or any(item.type in BROWSER_WIDGETS or item.options.get("socketless") for item in inputs)
    ):
        # Without inputs the editor fails to export it.
        raise registry.refused(scope, node, "is bypassed, and feeds an input of any type")
    chosen = _standing_in(types, slot, wanted)
    if chosen != _standing_in(types, slot, node.outputs[slot]):
        raise registry.refused(scope, node, f"is bypassed, and its output {slot} feeds an input of another type")
    return None if chosen is None else inputs[chosen]


def _standing_in(types: list[str], slot: int, wanted: str) -> int | None:
    """Return the place of the bypassed node's input that stands for its output ``slot``."""
    if wanted == "*":
        return slot if slot < len(types) else 0
    if slot < len(types) and types_meet(types[slot], wanted):
        return slot
    exact = [place for place, kind in enumerate(types) if kind == wanted]
    fitting = [place for place, kind in enumerate(types) if types_meet(kind, wanted)]
    return next(iter([*exact, *fitting]), None)


def _output(registry: Registry, scope: Scope, node: Node, slot: int) -> Output:
    declared = registry.definition(scope, node).outputs
    if slot >= len(declared) or not types_meet(declared[slot], node.outputs[slot]):
        raise registry.refused(scope, node, f"has an output {slot} that the server does not know of it")
    return Output(f"{scope.path}{node.id}", slot, declared[slot])
