"""The editor's file, read strictly: contradictions about a link, and anything unreadable, are refused.

The editor repairs broken files in ways that changed between its versions, so none that needs repair is accepted. Read
are the schema 0.4 (links as lists) and 1 (links as objects), and the subgraphs of both.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from settee.base.text import one_line
from settee.client.client_errors import UsageError
from settee.comfyui.history import mapping

WAY_OUT = "open it in ComfyUI, use Workflow > Export (API) and send that file"


def refused(where: str, why: str) -> UsageError:
    """Return the error to raise. ``where`` names the node (or the link), and ``why`` continues the sentence."""
    return UsageError(f"the editor's file cannot be converted: {where} {why}; {WAY_OUT}")


def shown(value: object, most: int = 60) -> str:
    """Return a value of the file for a message: one line, quoted, not too long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return f'"{one_line(text, most)}"'


#: What the editor calls the two edges of a subgraph, in its links.
INPUTS_EDGE, OUTPUTS_EDGE = "-10", "-20"
#: No file is this large; a hostile one that nests subgraphs could become so.
MAX_NODES = 20_000


@dataclass(frozen=True)
class Slot:
    """One input of a node, as the file has it."""

    name: str
    link: int | None
    #: The file lists a widget for it.
    is_widget: bool


@dataclass(frozen=True)
class Node:
    id: str
    type: str
    #: 0 runs, 2 is muted, 4 is bypassed; any other runs too.
    mode: int
    title: str | None
    inputs: tuple[Slot, ...]
    #: Types of its outputs, and the links of each.
    outputs: tuple[str, ...]
    output_links: tuple[tuple[int, ...], ...]
    #: As in the file, whatever it is there; None when there are none.
    values: Any = field(repr=False)
    #: Of editors since 1.51: the same by name.
    named_values: Any = field(repr=False)
    properties: Mapping[str, Any] = field(repr=False)

    def slot(self, name: str) -> Slot | None:
        return next((slot for slot in self.inputs if slot.name == name), None)


@dataclass(frozen=True)
class Link:
    id: int
    origin: str
    origin_slot: int
    target: str
    target_slot: int


_Found = TypeVar("_Found", Node, Link)


@dataclass(frozen=True)
class Edge:
    """One input or output of a subgraph, with its links inside, the first first."""

    name: str
    type: str
    links: tuple[int, ...]


@dataclass(frozen=True)
class Graph:
    """The file's own graph, or that of a subgraph, whose ``name`` and edges are its own."""

    name: str
    nodes: Mapping[str, Node]
    links: Mapping[int, Link]
    inputs: tuple[Edge, ...] = ()
    outputs: tuple[Edge, ...] = ()


@dataclass(frozen=True)
class File:
    graph: Graph
    #: Subgraphs by id, which is the type of their nodes.
    subgraphs: Mapping[str, Graph]
    #: Version of the editor that saved it, ``1.27.10``; empty when it is not stated.
    editor: str


def is_editor_format(data: object) -> bool:
    """Return True if this is a workflow as the editor saves it, and not its API format."""
    return isinstance(data, Mapping) and isinstance(data.get("nodes"), list)


def read(editor: Mapping[str, Any]) -> File:
    """Return the checked file. Raises UsageError that names what is wrong."""
    if not is_editor_format(editor):
        raise refused("it", 'has no list of "nodes": is it a workflow at all?')
    extra = mapping(editor.get("extra"))
    if extra.get("ue_links"):
        raise refused("it", "has links that its Use Everywhere nodes make")
    subgraphs: dict[str, Graph] = {}
    found = mapping(editor.get("definitions")).get("subgraphs") or []
    if not isinstance(found, list):
        raise refused("its definitions", "are not readable")
    for item in found:
        name, identity = mapping(item).get("name"), mapping(item).get("id")
        if not isinstance(identity, str) or not is_editor_format(item) or identity in subgraphs:
            raise refused(f"the subgraph {shown(name)}", "is not readable, or exists twice")
        subgraphs[identity] = _graph(item, str(name or identity))
    return File(_graph(editor, ""), subgraphs, str(extra.get("frontendVersion") or ""))


def _graph(item: Mapping[str, Any], name: str) -> Graph:
    within = f" in subgraph {shown(name)}" if name else ""
    nodes = _by_id((_node(mapping(entry), within) for entry in item["nodes"]), "node", within)
    raw = item.get("links")
    if not isinstance(raw, list):
        raise refused("it" if not name else f"the subgraph {shown(name)}", 'has no list of "links"')
    links = _by_id((_link(entry, within) for entry in raw), "link", within)
    edges = [_edges(item.get(key), within) if name else () for key in ("inputs", "outputs")]
    graph = Graph(name, nodes, links, *edges)
    for where, why in _inconsistencies(graph):
        raise refused(f"{where}{within}", why)
    return graph


def _by_id(found: Iterable[_Found], kind: str, within: str) -> dict[Any, _Found]:
    known: dict[Any, _Found] = {}
    for each in found:
        if known.setdefault(each.id, each) is not each:
            raise refused(f"{kind} {each.id}{within}", "exists twice")
    return known


def _node(entry: Mapping[str, Any], within: str) -> Node:
    identity, kind = entry.get("id"), entry.get("type")
    if type(identity) is not int or identity < 0:
        raise refused(f"node {shown(identity)}{within}", "has no id that is a whole number")
    where = f"node {identity} {shown(kind)[1:-1]}{within}"
    if not isinstance(kind, str) or not kind:
        raise refused(where, "has no type")
    mode, title = entry.get("mode", 0), entry.get("title")
    if type(mode) is not int or (title is not None and not isinstance(title, str)):
        raise refused(where, "has an unreadable mode or title")
    slots = []
    for slot in _items(entry.get("inputs"), where):
        link = slot.get("link")
        if not isinstance(slot.get("name"), str) or (link is not None and type(link) is not int):
            raise refused(where, "has an unreadable input")
        slots.append(Slot(slot["name"], link, isinstance(slot.get("widget"), Mapping)))
    if len({slot.name for slot in slots}) != len(slots):
        raise refused(where, "has two inputs of one name")
    outputs = _items(entry.get("outputs"), where)
    return Node(
        id=str(identity),
        type=kind,
        mode=mode,
        title=title,
        inputs=tuple(slots),
        outputs=tuple(_type(output.get("type")) for output in outputs),
        output_links=tuple(_ids(output.get("links"), where) for output in outputs),
        values=entry.get("widgets_values"),
        named_values=entry.get("widgets_values_named"),
        properties=mapping(entry.get("properties")),
    )


def _link(entry: Any, within: str) -> Link:
    if isinstance(entry, Mapping):
        entry = [entry.get(key) for key in ("id", "origin_id", "origin_slot", "target_id", "target_slot")]
    # Its type is a sixth, where an editor has not left it out: that is in the slots too.
    if not isinstance(entry, list) or not 5 <= len(entry) <= 6 or any(type(part) is not int for part in entry[:5]):
        raise refused(f"a link{within}", "is not readable")
    identity, origin, origin_slot, target, target_slot = entry[:5]
    return Link(identity, str(origin), origin_slot, str(target), target_slot)


def _edges(raw: Any, within: str) -> tuple[Edge, ...]:
    edges = []
    for item in _items(raw, f"the edge{within}"):
        if not isinstance(item.get("name"), str):
            raise refused(f"an input or output{within}", "has no name")
        links = _ids(item.get("linkIds"), f"the edge{within}")
        edges.append(Edge(item["name"], _type(item.get("type")), links))
    if len({edge.name for edge in edges}) != len(edges):
        raise refused(f"an input or output{within}", "has the name of another")
    return tuple(edges)


def _inconsistencies(graph: Graph) -> Iterator[tuple[str, str]]:
    """Yield ``(where, why)`` for every disagreement between a link and its two ends."""
    #: Ends as the nodes and edges list them: (link, is it its beginning, node or edge, place) → (where, why).
    listed: dict[tuple[int, bool, str, int], tuple[str, str]] = {}
    for node in graph.nodes.values():
        where = f"node {node.id} {node.type}"
        for place, slot in enumerate(node.inputs):
            if slot.link is not None:
                why = f"has an input {shown(slot.name)} whose link {slot.link} does not exist"
                listed[slot.link, False, node.id, place] = where, why
        for place, identities in enumerate(node.output_links):
            for identity in identities:
                listed[identity, True, node.id, place] = where, f"has an output whose link {identity} does not exist"
    for is_origin, end, edges in ((True, INPUTS_EDGE, graph.inputs), (False, OUTPUTS_EDGE, graph.outputs)):
        for place, edge in enumerate(edges):
            for identity in edge.links:
                why = f"has a link {identity} that does not exist"
                listed[identity, is_origin, end, place] = f"the input or output {shown(edge.name)}", why
    for link in graph.links.values():
        begun = (link.id, True, link.origin, link.origin_slot)
        ended = (link.id, False, link.target, link.target_slot)
        origin = graph.nodes.get(link.origin)
        # An output need not list its links.
        has_output = origin is not None and 0 <= link.origin_slot < len(origin.outputs)
        if listed.pop(begun, None) is None and not has_output:
            yield f"link {link.id}", f"comes from an output that node {link.origin} does not have"
        if listed.pop(ended, None) is None:
            yield f"link {link.id}", f"goes to an input of node {link.target} that does not have it"
    yield from listed.values()


def _items(raw: Any, where: str) -> list[Mapping[str, Any]]:
    if raw is None:
        return []
    if not isinstance(raw, list) or not all(isinstance(item, Mapping) for item in raw):
        raise refused(where, "has an unreadable list")
    return raw


def _ids(raw: Any, where: str) -> tuple[int, ...]:
    if raw is None:
        return ()
    if not isinstance(raw, list) or any(type(identity) is not int for identity in raw):
        raise refused(where, "has an unreadable list of links")
    return tuple(raw)


def _type(raw: Any) -> str:
    # 0 and -1 are LiteGraph's own for "anything" and "an event".
    return raw if isinstance(raw, str) and raw else "*"
