"""Widgets that another node's widget feeds: a PrimitiveNode's, or one of a subgraph's node."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from typing import Any

from settee.client.convert import widgets
from settee.client.convert.editor_file import Edge, shown
from settee.client.convert.scopes import At, Scope
from settee.client.convert.widgets import Input, Misfit, exported, same

#: Of a number of steps that is meant to be whole.
_NEARLY = 1e-9


def primitive_value(at: At, item: Input) -> Any:
    """Return the value that the primitive puts into a widget. Raises Misfit, or UsageError that names the primitive."""
    node = at.node
    fed = _fed(at)
    listed = node.values
    if node.outputs != (item.type,) or not isinstance(listed, list) or not listed:
        raise Misfit(f"has an input {item.name} that the primitive {node.id} feeds, which has no {item.type}")
    given = exported(item, listed[0])
    if "%" in str(given) and node.properties.get("Run widget replace on values"):
        raise at.refused("replaces patterns in its value as it exports it")
    if item.type in ("INT", "FLOAT") and not _stays(given, fed, item.type):
        raise at.refused(f"has the value {shown(given)}, which the editor would fit to the inputs that it feeds")
    return given


def _fed(at: At) -> list[Input]:
    """Return the widgets that it feeds, also of muted and bypassed nodes: the first decides what the primitive is."""
    found = []
    for link in at.scope.graph.links.values():
        if link.origin == at.node.id:
            target = at.scope.graph.nodes[link.target]
            fed = At(at.scope, target).input(target.inputs[link.target_slot].name)
            if fed is None or not fed.is_widget:
                raise at.refused(f"feeds node {target.id}, where no widget takes its value")
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


# --- widgets of subgraphs -------------------------------------------------------------------------------------

#: In ``proxyWidgets``, the node that stands for an input of the subgraph.
_OWN_INPUT = "-1"
#: Editors that read no value of a subgraph's node.
_INNER_ONLY = ("1.41.", "1.42.", "1.43.", "1.44.", "1.45.")


class Inlet:
    """An input of a subgraph's node: what it feeds inside, and the widget that the node has for it."""

    def __init__(self, scope: Scope, edge: Edge) -> None:
        self._scope = scope
        self._edge = edge

    def _fed(self, link_id: int) -> tuple[At, str] | None:
        """Return the node and its input that a link goes to; None for an output of the subgraph."""
        link = self._scope.graph.links[link_id]
        target = self._scope.graph.nodes.get(link.target)
        return None if target is None else (At(self._scope, target), target.inputs[link.target_slot].name)

    @cached_property
    def is_widget(self) -> bool:
        """Return True if the node has a widget for this input: when the first thing it feeds is one."""
        first = self._fed(self._edge.links[0]) if self._edge.links else None
        return first is not None and _has_widget(*first)

    @cached_property
    def value(self) -> Any:
        """Return the value of the node's widget. Raises UsageError where editors disagree."""
        outer, name = self._scope.outer, self._edge.name
        assert outer is not None
        given = _given(self._scope, outer)
        if name in given:
            return given[name]
        # The first editors with subgraphs keep one value for all nodes of a subgraph while they load.
        file = outer.scope.registry.file
        nodes = [node for graph in (file.graph, *file.subgraphs.values()) for node in graph.nodes.values()]
        if any(node.values for node in nodes if node.type == outer.node.type):
            raise outer.refused("has no values for its widgets, which others of its subgraph have")
        inner = self.inner_values()
        if not inner or any(not same(inner[0], other) for other in inner):
            raise outer.refused(f"feeds several widgets from {shown(name)}, of different values")
        return inner[0]

    def inner_values(self) -> list[Any]:
        fed = [end for end in map(self._fed, self._edge.links) if end is not None]
        return [_value(at, name) for at, name in fed if _has_widget(at, name)]


def inlets(scope: Scope) -> dict[str, Inlet]:
    """Return the inputs of the subgraph's node by name; the same ones for the same node."""
    return {edge.name: inlet_of(scope, edge) for edge in scope.graph.inputs}


def inlet_of(scope: Scope, edge: Edge) -> Inlet:
    found: Inlet = scope.found.setdefault(edge.name, Inlet(scope, edge))
    return found


def _has_widget(at: At, name: str) -> bool:
    item = inlets(at.inside).get(name) if at.subgraph else at.input(name)
    return item is not None and item.is_widget


def _value(at: At, name: str) -> Any:
    if at.subgraph:
        return inlets(at.inside)[name].value
    try:
        return widgets.by_name(at.node, at.definition)[name]
    except Misfit as error:
        raise at.refused(str(error)) from error


def _given(scope: Scope, outer: At) -> Mapping[str, Any]:
    """Return the values that the subgraph's node itself has, by input."""
    listed, said = outer.node.values, outer.node.named_values
    if listed is None or listed == []:
        return {}
    own = {name: inlet for name, inlet in inlets(scope).items() if inlet.is_widget}
    if not isinstance(listed, list) or None in listed:
        raise outer.refused("has values for its widgets that are not complete")
    given = dict(zip(own, listed, strict=False))
    if proxies := outer.node.properties.get("proxyWidgets"):
        _check_proxies(scope, outer, proxies, given)
    elif len(listed) != len(own):
        raise outer.refused(f"has another number of values ({len(listed)}) than of widgets ({len(own)})")
    inner = {name: own[name].inner_values() for name in given}
    is_read = not scope.registry.file.editor.startswith(_INNER_ONLY)
    if not is_read and not all(same(held, other) for name, held in given.items() for other in inner[name]):
        raise outer.refused("has values of its own, which the editor that saved it does not read")
    if said is not None and not (
        isinstance(said, Mapping) and all(name in said and same(said[name], held) for name, held in given.items())
    ):
        raise outer.refused("has other values for its widgets by their names")
    return given


def _check_proxies(scope: Scope, outer: At, proxies: Any, given: Mapping[str, Any]) -> None:
    """Later editors read the values in the order of ``proxyWidgets``, and take some for widgets that are not inputs."""
    listed = outer.node.values
    agree = (
        isinstance(proxies, list)
        and all(isinstance(entry, list) and len(entry) >= 2 and isinstance(entry[1], str) for entry in proxies)
        and len(listed) <= len(proxies)
    )
    by_proxy: dict[str, Any] = {}
    for (identity, name, *_), held in zip(proxies if agree else (), listed, strict=False):
        if str(identity) == _OWN_INPUT:
            by_proxy[name] = held
        elif agree:
            target = scope.graph.nodes.get(str(identity))
            at = target and At(scope, target)
            item = at and at.input(name)
            # One that an input of the subgraph feeds counts for that input.
            agree = bool(at and item and item.is_widget and same(_value(at, name), held))
    if not agree or not same(by_proxy, dict(given)):
        raise outer.refused("has widgets that editors read in different orders")
