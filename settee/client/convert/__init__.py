"""A workflow as ComfyUI's editor saves it → API format, exactly as the editor exports it, or a refusal.

    workflow = converted(editor, classes)

Whatever could make the graph differ is a UsageError that names the node; nothing is guessed. The rules were found by
asking the real editor: comfyui-frontend-package 1.27.10, whose export is the reference, and later ones up to 1.58.1.
Where these disagree about a file, it is refused (tests/data/editor-pairs/README.md).

A node's way: ``editor_file`` reads it, ``scopes`` finds what feeds its inputs, ``widgets`` which of its values belongs
to which input, and ``fed_widgets`` what another node's widget puts there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from settee.client.convert import widgets
from settee.client.convert.editor_file import MAX_NODES, is_editor_format, read, refused, shown
from settee.client.convert.fed_widgets import inlet_of, primitive_value
from settee.client.convert.scopes import (
    BYPASSED,
    EDITORS_OWN,
    MUTED,
    PRIMITIVE,
    At,
    Registry,
    Scope,
    Source,
    source,
    types_meet,
)
from settee.client.convert.widgets import Input, Misfit, exported
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.workflow import Workflow, natural_key

__all__ = ["converted", "is_editor_format"]


def converted(editor: Mapping[str, Any], classes: NodeRegistry, *, extensions: Iterable[str] | None = None) -> Workflow:
    """Return the API format of a workflow as the editor saves it, with titles, in natural order of its ids.

    ``classes`` are those of the server that is to run it. ``extensions`` is what that server's
    ``GET /extensions`` answers; without it, custom nodes are refused, for their packs may bring scripts that change
    what the editor exports. Inputs that only the editor knows (previews) are left out.

    Raises UsageError that names the node which prevents it.
    """
    file = read(editor)
    workflow: Workflow = {}
    for at in _running(Scope(Registry(file, classes, extensions), file.graph)):
        try:
            at.definition.check()
            inputs = _inputs(at)
        except Misfit as error:
            raise at.refused(str(error)) from error
        title = at.node.title or at.definition.display_name
        workflow[at.id] = {"class_type": at.node.type, "inputs": inputs, "_meta": {"title": title}}
        if len(workflow) > MAX_NODES:
            raise refused("it", f"has more than {MAX_NODES} nodes")
    if not workflow:
        raise refused("it", "has no node that runs")
    return {node_id: workflow[node_id] for node_id in sorted(workflow, key=natural_key)}


def _running(scope: Scope) -> Iterator[At]:
    """Yield every node that is exported, those of subgraphs too. Raises for unknown classes, also of muted nodes."""
    for node in scope.graph.nodes.values():
        at = At(scope, node)
        if at.subgraph:
            yield from _running(at.inside)
        elif node.type not in EDITORS_OWN and at.definition and node.mode not in (MUTED, BYPASSED):
            yield at


def _inputs(at: At) -> dict[str, Any]:
    node, definition = at.node, at.definition
    held = widgets.by_name(node, definition)
    for slot in node.inputs:
        item = definition.input(slot.name)
        if item is None and slot.link is not None:
            raise Misfit(f"has a linked input {shown(slot.name)} that the server does not know of it")
        if item is not None and slot.is_widget and not item.is_widget:
            raise Misfit(f"has a widget for {slot.name}, which the server does not know as one")
    inputs = {}
    for item in definition.inputs:
        file_slot = node.slot(item.name)
        link = file_slot.link if file_slot else None
        feeds = Source() if link is None else source(at.scope, link, item.type)
        if feeds.at and feeds.at.node.type != PRIMITIVE and feeds.at.node.mode != MUTED:
            inputs[item.name] = _link(item, feeds.at, feeds.slot)
        elif item.is_widget:
            inputs[item.name] = _widget(at.scope, item, held[item.name], feeds)
        else:
            _check_unfed(item, feeds)
    return inputs


def _link(item: Input, origin: At, slot: int) -> list[Any]:
    declared = origin.definition.outputs
    if slot >= len(declared) or not types_meet(declared[slot], origin.node.outputs[slot]):
        raise origin.refused(f"has an output {slot} that the server does not know of it")
    if not types_meet(declared[slot], item.type):
        # Some editors leave such a link out.
        raise Misfit(f"has an input {item.name} of type {item.type}, fed by an output of type {declared[slot]}")
    return [origin.id, slot]


def _widget(scope: Scope, item: Input, held: Any, feeds: Source) -> Any:
    """Return the value of a widget that no running node feeds."""
    where = f"has an input {item.name} that"
    if feeds.at and feeds.at.node.type == PRIMITIVE:
        if scope.outer is not None or feeds.is_across or feeds.is_detour:
            raise Misfit(f"{where} the primitive {feeds.at.node.id} feeds by a detour or in a subgraph")
        return primitive_value(feeds.at, item)
    if feeds.at:
        # The first editors with subgraphs leave the input out; others take the widget's value.
        raise Misfit(f"{where} the muted node {feeds.at.node.id} feeds")
    if feeds.inlet:
        inlet = inlet_of(*feeds.inlet)
        if feeds.is_detour or not inlet.is_widget:
            raise Misfit(f"{where} a widget outside its subgraph feeds by a detour")
        return exported(item, inlet.value, raw=True)
    if feeds.is_outside:
        raise Misfit(f"{where} is linked to nothing outside its subgraph")
    return exported(item, held)


def _check_unfed(item: Input, feeds: Source) -> None:
    """Refuse an input without a widget that a widget feeds; one that nothing feeds is not exported."""
    if feeds.at and feeds.at.node.type == PRIMITIVE:
        raise Misfit(f"has an input {item.name}, no widget, that the primitive {feeds.at.node.id} feeds")
    if feeds.inlet and inlet_of(*feeds.inlet).is_widget:
        raise Misfit(f"has an input {item.name}, no widget, that a widget outside its subgraph feeds")
