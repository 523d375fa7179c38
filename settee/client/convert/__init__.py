"""A workflow as ComfyUI's editor saves it → API format, exactly as the editor exports it, or a refusal.

    workflow = converted(editor, classes)

Whatever could make the graph differ is a UsageError that names the node; nothing is guessed. The rules were found by
asking the real editor: comfyui-frontend-package 1.27.10, whose export is the reference, and later ones up to 1.58.1.
Where these disagree about a file, it is refused (tests/data/editor-pairs/README.md).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from settee.client.convert import widgets
from settee.client.convert.editor_file import MAX_NODES, Node, is_editor_format, read, refused, shown
from settee.client.convert.fed_widgets import is_widget, primitive_value, promoted_value
from settee.client.convert.scopes import (
    BYPASSED,
    EDITORS_OWN,
    MUTED,
    Muted,
    Nothing,
    Output,
    Primitive,
    Promoted,
    Registry,
    Scope,
    Source,
    source,
    types_meet,
)
from settee.client.convert.widgets import Definition, Input
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
    registry = Registry(file, classes, extensions)
    workflow: Workflow = {}
    for scope, node in _running(registry, Scope(file.graph)):
        definition = registry.definition(scope, node)
        if definition.browser_made:
            raise registry.refused(scope, node, definition.browser_made)
        try:
            inputs = _inputs(registry, scope, node, definition)
        except widgets.Misfit as error:
            raise registry.refused(scope, node, str(error)) from error
        workflow[f"{scope.path}{node.id}"] = {
            "class_type": node.type,
            "inputs": inputs,
            "_meta": {"title": node.title or definition.display_name},
        }
        if len(workflow) > MAX_NODES:
            raise refused("it", f"has more than {MAX_NODES} nodes")
    if not workflow:
        raise refused("it", "has no node that runs")
    return {node_id: workflow[node_id] for node_id in sorted(workflow, key=natural_key)}


def _running(registry: Registry, scope: Scope) -> Iterator[tuple[Scope, Node]]:
    """Yield every node that is exported, those of subgraphs too. Raises for unknown classes, also of muted nodes."""
    for node in scope.graph.nodes.values():
        if registry.subgraph(node):
            yield from _running(registry, registry.inside(scope, node))
        elif node.type not in EDITORS_OWN:
            registry.definition(scope, node)
            if node.mode not in (MUTED, BYPASSED):
                yield scope, node


def _inputs(registry: Registry, scope: Scope, node: Node, definition: Definition) -> dict[str, Any]:
    held = widgets.by_name(node, definition)
    for slot in node.inputs:
        item = definition.input(slot.name)
        if item is None and slot.link is not None:
            raise widgets.Misfit(f"has a linked input {shown(slot.name)} that the server does not know of it")
        if item is not None and slot.is_widget and not item.is_widget:
            raise widgets.Misfit(f"has a widget for {slot.name}, which the server does not know as one")
    inputs = {}
    for item in definition.inputs:
        file_slot = node.slot(item.name)
        link = file_slot.link if file_slot else None
        feeds: Source = Nothing() if link is None else source(registry, scope, link, item.type)
        if isinstance(feeds, Output):
            if not types_meet(feeds.type, item.type):
                # Some editors leave such a link out.
                raise widgets.Misfit(
                    f"has an input {item.name} of type {item.type}, fed by an output of type {feeds.type}"
                )
            inputs[item.name] = [feeds.id, feeds.slot]
        elif item.is_widget:
            inputs[item.name] = _widget(registry, scope, item, held[item.name], feeds)
        else:
            _check_unfed(registry, item, feeds)
    return inputs


def _widget(registry: Registry, scope: Scope, item: Input, held: Any, feeds: Source) -> Any:
    """Return the value of a widget that no running node feeds."""
    if isinstance(feeds, Nothing):
        if feeds.is_outside:
            raise widgets.Misfit(f"has an input {item.name} that is linked to nothing outside its subgraph")
        return widgets.exported(item, held)
    if isinstance(feeds, Primitive):
        if scope.parent is not None or not feeds.is_next:
            raise widgets.Misfit(
                f"has an input {item.name} that the primitive {feeds.node.id} feeds by a detour or in a subgraph"
            )
        return primitive_value(registry, scope, feeds.node, item)
    if isinstance(feeds, Promoted):
        if not feeds.is_next or not is_widget(registry, feeds.scope, feeds.edge):
            raise widgets.Misfit(f"has an input {item.name} that a widget outside its subgraph feeds by a detour")
        return widgets.exported(item, promoted_value(registry, feeds.scope, feeds.edge), raw=True)
    assert isinstance(feeds, Muted)
    # The first editors with subgraphs leave the input out; others take the widget's value.
    raise widgets.Misfit(f"has an input {item.name} that the muted node {feeds.node.id} feeds")


def _check_unfed(registry: Registry, item: Input, feeds: Source) -> None:
    """Refuse an input without a widget that a widget feeds; one that nothing feeds is not exported."""
    if isinstance(feeds, Primitive):
        raise widgets.Misfit(f"has an input {item.name}, no widget, that the primitive {feeds.node.id} feeds")
    if isinstance(feeds, Promoted) and is_widget(registry, feeds.scope, feeds.edge):
        raise widgets.Misfit(f"has an input {item.name}, no widget, that a widget outside its subgraph feeds")
    assert isinstance(feeds, (Nothing, Muted, Promoted))
