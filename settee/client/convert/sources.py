"""What feeds an input: its link followed through reroutes, bypassed nodes and the edges of subgraphs."""

from __future__ import annotations

from dataclasses import dataclass

from settee.client.convert.definitions import BROWSER_WIDGETS, Input
from settee.client.convert.graph import INPUTS_EDGE, Edge, Link, Node
from settee.client.convert.scopes import BYPASSED, MUTED, PRIMITIVE, REROUTE, Registry, Scope, types_meet


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
    """What feeds the input that has this link and takes ``wanted``. Raises UsageError where editors disagree."""
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
    """The first editors with subgraphs look up what an edge feeds by the place in the file, which they do not correct
    when their node has its inputs in another order."""
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
        raise registry.refused(scope, node, "has not one input")
    return node.inputs[0].link


def _bypassed(registry: Registry, scope: Scope, node: Node, slot: int, wanted: str) -> Input | None:
    """The input that a bypassed node hands on: the one beside the output when its type fits, else the
    first of the wanted type, else the first that fits; linked or not."""
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
    chosen = _beside(types, slot, wanted)
    if chosen != _beside(types, slot, node.outputs[slot]):
        raise registry.refused(scope, node, f"is bypassed, and its output {slot} feeds an input of another type")
    return None if chosen is None else inputs[chosen]


def _beside(types: list[str], slot: int, wanted: str) -> int | None:
    """Which of a bypassed node's inputs stands for its output ``slot``."""
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
