"""Widgets that another node's widget feeds: a PrimitiveNode's, or one of a subgraph's node."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from settee.client.convert import widgets
from settee.client.convert.editor_file import Edge, Node, shown
from settee.client.convert.scopes import Registry, Scope
from settee.client.convert.widgets import Input, Misfit, exported

#: Of a number of steps that is meant to be whole.
_NEARLY = 1e-9


def primitive_value(registry: Registry, scope: Scope, node: Node, item: Input) -> Any:
    """Return the value that the primitive puts into a widget that it feeds. Raises Misfit, or UsageError that names the
    primitive."""
    fed = _fed(registry, scope, node)
    listed = node.values
    if node.outputs != (item.type,) or not isinstance(listed, list) or not listed:
        raise Misfit(f"has an input {item.name} that the primitive {node.id} feeds, which has no {item.type}")
    given = exported(item, listed[0])
    if "%" in str(given) and node.properties.get("Run widget replace on values"):
        raise registry.refused(scope, node, "replaces patterns in its value as it exports it")
    if item.type in ("INT", "FLOAT") and not _stays(given, fed, item.type):
        why = f"has the value {shown(given)}, which the editor would fit to the inputs that it feeds"
        raise registry.refused(scope, node, why)
    return given


def _fed(registry: Registry, scope: Scope, node: Node) -> list[Input]:
    """Return the widgets that it feeds, also of muted and bypassed nodes: the first decides what the primitive is."""
    found = []
    for link in scope.graph.links.values():
        if link.origin != node.id:
            continue
        target = scope.graph.nodes[link.target]
        fed = registry.input(scope, target, target.inputs[link.target_slot].name)
        if fed is None or not fed.is_widget:
            raise registry.refused(scope, node, f"feeds node {target.id}, where no widget takes its value")
        found.append(fed)
    return found


def _stays(number: float, fed: list[Input], kind: str) -> bool:
    """Return True if the editor leaves a number as it is: in every range, and a whole number of each one's steps."""
    lows = [_number(item, "min") for item in fed]
    for item, low in zip(fed, lows, strict=True):
        high, step = _number(item, "max"), _number(item, "step", 1 if kind == "INT" else None)
        if low is None or high is None or step is None or not low <= number <= high:
            return False
        highest = max(other for other in lows if other is not None)
        for grid in (step, _number(item, "round") or step):
            if not all(_is_whole(offset, grid) for offset in (number, number - low, number - highest)):
                return False
    return True


def _number(item: Input, name: str, default: float | None = None) -> float | None:
    value = item.options.get(name, default)
    return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _is_whole(offset: float, grid: float) -> bool:
    return grid > 0 and abs(offset / grid - round(offset / grid)) < _NEARLY


#: In ``proxyWidgets``, the node that stands for an input of the subgraph.
_OWN_INPUT = "-1"
#: Editors that read no value of a subgraph's node.
_INNER_ONLY = ("1.41.", "1.42.", "1.43.", "1.44.", "1.45.")


def promoted_value(registry: Registry, scope: Scope, edge: Edge) -> Any:
    """Return the value of the widget for this input of the subgraph. Raises UsageError where editors disagree."""
    if ("value", edge.name) not in scope.found:
        scope.found["value", edge.name] = _promoted_value(registry, scope, edge)
    return scope.found["value", edge.name]


def _promoted_value(registry: Registry, scope: Scope, edge: Edge) -> Any:
    instance, parent = _outside(scope)
    given = _given(registry, scope)
    if edge.name in given:
        return given[edge.name]
    # The first editors with subgraphs keep one value for all nodes of a subgraph while they load.
    if any(other.values for other in registry.alike(instance)):
        raise registry.refused(parent, instance, "has no values for its widgets, which others of its subgraph have")
    found = inner_values(registry, scope, edge)
    if not found or any(not widgets.same(found[0], other) for other in found):
        raise registry.refused(parent, instance, f"feeds several widgets from {shown(edge.name)}, of different values")
    return found[0]


def is_widget(registry: Registry, scope: Scope, edge: Edge) -> bool:
    """Return True if the subgraph's node has a widget for this input: when the first thing it feeds is one."""
    if ("widget", edge.name) not in scope.found:
        scope.found["widget", edge.name] = _is_widget(registry, scope, edge)
    return bool(scope.found["widget", edge.name])


def _is_widget(registry: Registry, scope: Scope, edge: Edge) -> bool:
    if not edge.links:
        return False
    link = scope.graph.links[edge.links[0]]
    target = scope.graph.nodes.get(link.target)
    if target is None:
        return False
    name = target.inputs[link.target_slot].name
    if registry.subgraph(target):
        inside = registry.inside(scope, target)
        following = next((other for other in inside.graph.inputs if other.name == name), None)
        return following is not None and is_widget(registry, inside, following)
    item = registry.input(scope, target, name)
    return item is not None and item.is_widget


def inner_values(registry: Registry, scope: Scope, edge: Edge) -> list[Any]:
    """Return the values of the widgets inside that this input feeds, in order."""
    found = []
    for link_id in edge.links:
        link = scope.graph.links[link_id]
        target = scope.graph.nodes.get(link.target)
        if target is None:
            continue
        name = target.inputs[link.target_slot].name
        if registry.subgraph(target):
            inside = registry.inside(scope, target)
            following = next((other for other in inside.graph.inputs if other.name == name), None)
            if following is not None and is_widget(registry, inside, following):
                found.append(promoted_value(registry, inside, following))
            continue
        item = registry.input(scope, target, name)
        if item is not None and item.is_widget:
            found.append(_own_value(registry, scope, target, name))
    return found


def _outside(scope: Scope) -> tuple[Node, Scope]:
    assert scope.instance is not None
    assert scope.parent is not None
    return scope.instance, scope.parent


def _given(registry: Registry, scope: Scope) -> Mapping[str, Any]:
    """Return the values that the subgraph's node itself has, by input."""
    instance, parent = _outside(scope)
    listed = instance.values
    if listed is None or listed == []:
        return {}
    names = [edge.name for edge in scope.graph.inputs if is_widget(registry, scope, edge)]
    if not isinstance(listed, list) or None in listed:
        raise registry.refused(parent, instance, "has values for its widgets that are not complete")
    given = dict(zip(names, listed, strict=False))
    proxies = instance.properties.get("proxyWidgets")
    if proxies:
        _check_proxies(registry, scope, proxies, given)
    elif len(listed) != len(names):
        raise registry.refused(
            parent, instance, f"has another number of values ({len(listed)}) than of widgets ({len(names)})"
        )
    inner = {edge.name: inner_values(registry, scope, edge) for edge in scope.graph.inputs if edge.name in given}
    if registry.editor.startswith(_INNER_ONLY) and not all(
        widgets.same(held, other) for name, held in given.items() for other in inner[name]
    ):
        raise registry.refused(parent, instance, "has values of its own, which the editor that saved it does not read")
    said = instance.named_values
    if said is not None and not (
        isinstance(said, Mapping)
        and all(name in said and widgets.same(said[name], held) for name, held in given.items())
    ):
        raise registry.refused(parent, instance, "has other values for its widgets by their names")
    return given


def _check_proxies(registry: Registry, scope: Scope, proxies: Any, given: Mapping[str, Any]) -> None:
    """Later editors read the values in the order of ``proxyWidgets``, and take some for widgets that are not inputs."""
    instance, parent = _outside(scope)
    listed = instance.values
    readable = isinstance(proxies, list) and all(
        isinstance(entry, list) and len(entry) >= 2 and isinstance(entry[1], str) for entry in proxies
    )
    agree = readable and len(listed) <= len(proxies)
    by_proxy: dict[str, Any] = {}
    for (identity, name, *_), held in zip(proxies if agree else (), listed, strict=False):
        if str(identity) == _OWN_INPUT:
            by_proxy[name] = held
            continue
        target = scope.graph.nodes.get(str(identity))
        item = registry.input(scope, target, name) if target else None
        # One that an input of the subgraph feeds counts for that input.
        agree = agree and target is not None and item is not None and item.is_widget
        agree = agree and target is not None and widgets.same(_own_value(registry, scope, target, name), held)
    if not agree or not widgets.same(by_proxy, dict(given)):
        raise registry.refused(parent, instance, "has widgets that editors read in different orders")


def _own_value(registry: Registry, scope: Scope, node: Node, name: str) -> Any:
    try:
        return widgets.by_name(node, registry.definition(scope, node))[name]
    except widgets.Misfit as error:
        raise registry.refused(scope, node, str(error)) from error
