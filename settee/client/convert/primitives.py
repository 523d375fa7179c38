"""PrimitiveNode: a widget outside the nodes that it feeds. Its value goes before theirs, whatever its mode is.

The editor gives it the bounds of all the widgets that it feeds and moves its number into them, which it does not do
with a node's own.
"""

from __future__ import annotations

from typing import Any

from settee.client.convert.definitions import Input
from settee.client.convert.graph import Node
from settee.client.convert.refusal import shown
from settee.client.convert.scopes import Registry, Scope
from settee.client.convert.values import Misfit, exported

#: Of a number of steps that is meant to be whole.
_NEARLY = 1e-9


def value(registry: Registry, scope: Scope, node: Node, item: Input) -> Any:
    """What the primitive puts into a widget that it feeds. Raises Misfit, or UsageError that names the primitive."""
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
    """The widgets that it feeds, those of muted and bypassed nodes too: the first makes its own."""
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
    """Whether the editor leaves a number as it is: in every range, and a whole number of each one's steps."""
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
