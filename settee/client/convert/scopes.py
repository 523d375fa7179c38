"""Where a node is (in the file's own graph, or inside a subgraph's node, with ids of its own), and what feeds it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from settee.client.client_errors import UsageError
from settee.client.convert.editor_file import INPUTS_EDGE, MAX_NODES, Edge, File, Graph, Link, Node, refused, shown
from settee.client.convert.widgets import BROWSER_WIDGETS, Definition, Input, Misfit, definition
from settee.comfyui.node_registry import NodeRegistry

MUTED, BYPASSED = 2, 4
REROUTE, PRIMITIVE = "Reroute", "PrimitiveNode"
#: Classes that only the editor has, and that are not exported.
EDITORS_OWN = frozenset([REROUTE, PRIMITIVE, "Note", "MarkdownNote"])
#: Subgraphs within subgraphs.
_MAX_DEPTH = 50


class Registry:
    """The file's subgraphs and the server's classes."""

    def __init__(self, file: File, classes: NodeRegistry, extensions: Iterable[str] | None) -> None:
        self.file = file
        self._classes = classes
        self._extensions = None if extensions is None else tuple(extensions)
        self._definitions: dict[str, Definition] = {}
        #: The insides of subgraphs' nodes, by their paths.
        self.insides: dict[str, Scope] = {}

    def definition(self, at: At) -> Definition:
        """Return a node's class. Raises UsageError when it is unknown, or cannot be relied on."""
        kind = at.node.type
        if kind not in self._definitions:
            if kind.startswith(("workflow>", "workflow/")):
                raise at.refused("is a group node")
            try:
                self._definitions[kind] = definition(kind, self._classes, self._extensions)
            except Misfit as error:
                raise at.refused(str(error)) from error
        return self._definitions[kind]


@dataclass(frozen=True, eq=False)
class Scope:
    registry: Registry
    graph: Graph
    #: What the ids of its nodes begin with when exported: ``""``, ``"57:"``, ``"57:6:"``.
    path: str = ""
    #: The node of which this is the inside.
    outer: At | None = None
    #: What was found out about its edges, which many inputs ask for.
    found: dict[str, Any] = field(default_factory=dict, repr=False)


@dataclass(frozen=True)
class At:
    """A node, where it is."""

    scope: Scope
    node: Node

    @property
    def id(self) -> str:
        return f"{self.scope.path}{self.node.id}"

    @property
    def subgraph(self) -> Graph | None:
        return self.scope.registry.file.subgraphs.get(self.node.type)

    @property
    def inside(self) -> Scope:
        """Return the scope of a subgraph's node; the same one for the same node."""
        known, path = self.scope.registry.insides, f"{self.id}:"
        if path not in known:
            if self.node.mode in (MUTED, BYPASSED):
                state = "muted" if self.node.mode == MUTED else "bypassed"
                raise self.refused(f"is a {state} subgraph, which editors export in different ways")
            if path.count(":") > _MAX_DEPTH or len(known) >= MAX_NODES:
                raise self.refused("is a subgraph nested too deep, or in itself")
            graph = self.scope.registry.file.subgraphs[self.node.type]
            known[path] = Scope(self.scope.registry, graph, path, self)
        return known[path]

    @property
    def definition(self) -> Definition:
        """Return its class. Raises UsageError when it is unknown, or cannot be relied on."""
        return self.scope.registry.definition(self)

    def input(self, name: str) -> Input | None:
        """Return a declared input of a node that the server knows; None for other nodes."""
        return None if self.node.type in EDITORS_OWN or self.subgraph else self.definition.input(name)

    def refused(self, why: str) -> UsageError:
        """Return the error that names the node as a person finds it in the editor."""
        node, subgraph = self.node, self.subgraph
        kind = f"subgraph {shown(subgraph.name)}" if subgraph else shown(node.type)[1:-1]
        is_titled = node.title and node.title not in (node.type, subgraph and subgraph.name)
        title = f" {shown(node.title)}" if is_titled else ""
        within = f" in subgraph {shown(self.scope.graph.name)}" if self.scope.outer else ""
        return refused(f"node {self.id} {kind}{title}{within}", why)


def types_meet(one: str, other: str) -> bool:
    """Return True if LiteGraph lets one type feed the other: "INT,FLOAT" is either, "*" any."""
    if "*" in (one, other):
        return True
    return not {part.lower() for part in one.split(",")}.isdisjoint(part.lower() for part in other.split(","))


# --- what feeds an input ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Source:
    """Where the link of an input leads to, through reroutes, bypassed nodes and the edges of subgraphs."""

    #: The node: it runs, is muted or a primitive. None where the way ends unlinked.
    at: At | None = None
    slot: int = 0
    #: Where it ends at an unlinked input of a subgraph's node, whose own widget may feed it: the inside, the input.
    inlet: tuple[Scope, Edge] | None = None
    #: It leads out of the subgraph of the input.
    is_outside: bool = False
    #: It crosses the edge of a subgraph, and passes a reroute or a bypassed node.
    is_across: bool = False
    is_detour: bool = False


def source(scope: Scope, link_id: int, wanted: str) -> Source:
    """Return the source of an input by its link; it takes ``wanted``. Raises UsageError where editors disagree."""
    seen = set()
    way = Source()
    following: int | None = link_id
    while following is not None:
        link = scope.graph.links[following]
        if link.origin == INPUTS_EDGE:
            _check_place(scope, link)
            edge, outer = scope.graph.inputs[link.origin_slot], scope.outer
            slot = outer.node.slot(edge.name) if outer else None
            if outer is None or slot is None or slot.link is None:
                return replace(way, inlet=(scope, edge))
            scope, following, wanted = outer.scope, slot.link, edge.type
            way = replace(way, is_outside=True, is_across=True)
            continue
        at = At(scope, scope.graph.nodes[link.origin])
        if (at.id, link.origin_slot) in seen:
            raise at.refused("feeds itself")
        seen.add((at.id, link.origin_slot))
        if at.subgraph:
            scope, following = _into(at, link.origin_slot)
            way = replace(way, is_across=True)
        elif at.node.type == REROUTE:
            following, way = _rerouted(at), replace(way, is_detour=True)
        elif at.node.type != PRIMITIVE and at.definition and at.node.mode == BYPASSED:
            chosen = _bypassed(at, link.origin_slot, wanted)
            taken = chosen and at.node.slot(chosen.name)
            following, way = taken.link if taken else None, replace(way, is_detour=True)
            wanted = chosen.type if chosen else wanted
        else:
            return replace(way, at=at, slot=link.origin_slot)
    return way


def _check_place(scope: Scope, link: Link) -> None:
    """Refuse inputs in another order than the server's: the first editors with subgraphs find them by their places."""
    target = scope.graph.nodes.get(link.target)
    if target is None or target.type == REROUTE or (at := At(scope, target)).subgraph:
        return
    names = [item.name for item in at.definition.slots]
    if names[link.target_slot : link.target_slot + 1] != [target.inputs[link.target_slot].name]:
        raise at.refused("has its inputs in another order than the server's class")


def _into(at: At, slot: int) -> tuple[Scope, int | None]:
    graph = at.inside.graph
    if slot >= len(graph.outputs):
        raise at.refused("has an output that its subgraph does not have")
    links = graph.outputs[slot].links
    # Editors leave the links of before behind; which one counts is not the same in all.
    if len({(link.origin, link.origin_slot) for link in map(graph.links.__getitem__, links)}) > 1:
        raise at.refused("has an output with several links inside")
    if links and graph.links[links[0]].origin == INPUTS_EDGE:
        # The editor fails to export this.
        raise at.refused("hands an input through to an output")
    return at.inside, links[0] if links else None


def _rerouted(at: At) -> int | None:
    if at.node.mode == MUTED:
        raise at.refused("is muted, which editors export in different ways")
    if len(at.node.inputs) != 1:
        raise at.refused("must have exactly one input")
    return at.node.inputs[0].link


def _bypassed(at: At, slot: int, wanted: str) -> Input | None:
    """Return the input that a bypassed node hands on: the one in the output's place when its type fits, else the first
    of the wanted type, else the first that fits; linked or not."""
    inputs = at.definition.slots
    known = {item.name for item in inputs}
    if any(extra.link is not None for extra in at.node.inputs if extra.name not in known):
        raise at.refused("is bypassed, with a linked input that the server does not know of it")
    types = [item.type for item in inputs]
    if wanted == "*" and (
        not inputs or any(item.type in BROWSER_WIDGETS or item.options.get("socketless") for item in inputs)
    ):
        # Without inputs the editor fails to export it.
        raise at.refused("is bypassed, and feeds an input of any type")
    chosen = _standing_in(types, slot, wanted)
    if chosen != _standing_in(types, slot, at.node.outputs[slot]):
        raise at.refused(f"is bypassed, and its output {slot} feeds an input of another type")
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
