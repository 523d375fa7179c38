"""Where a node is: in the file's own graph, or in that of a subgraph's node, which has its own ids and values."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from settee.client.convert.definitions import Definition, Input, definition
from settee.client.convert.graph import MAX_NODES, File, Graph, Node
from settee.client.convert.refusal import refused, shown
from settee.client.errors import UsageError
from settee.comfyui.workflow import ObjectInfo

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

    def __init__(self, file: File, object_info: ObjectInfo, extensions: Iterable[str] | None) -> None:
        self._file = file
        #: The version of the editor that saved the file.
        self.editor = file.editor
        self._object_info = object_info
        self._extensions = None if extensions is None else tuple(extensions)
        self._definitions: dict[str, Definition] = {}
        self._inside: dict[str, Scope] = {}

    def subgraph(self, node: Node) -> Graph | None:
        return self._file.subgraphs.get(node.type)

    def alike(self, node: Node) -> list[Node]:
        """All nodes of the file, wherever they are, of a node's type."""
        graphs = [self._file.graph, *self._file.subgraphs.values()]
        return [other for graph in graphs for other in graph.nodes.values() if other.type == node.type]

    def inside(self, scope: Scope, node: Node) -> Scope:
        """The scope of a subgraph's node; the same one for the same node."""
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
        """A node's class. Raises UsageError when it is not known, or not to be trusted."""
        if node.type not in self._definitions:
            if node.type.startswith(("workflow>", "workflow/")):
                raise self.refused(scope, node, "is a group node")
            found = definition(node.type, self._object_info, self._extensions)
            if found is None:
                raise self.refused(scope, node, "is of a class that the server does not know")
            if found.scripted:
                raise self.refused(scope, node, found.scripted)
            self._definitions[node.type] = found
        return self._definitions[node.type]

    def input(self, scope: Scope, node: Node, name: str) -> Input | None:
        """A declared input of a node of the server's; None of others."""
        if node.type in EDITORS_OWN or self.subgraph(node):
            return None
        return self.definition(scope, node).input(name)

    def refused(self, scope: Scope, node: Node, why: str) -> UsageError:
        """The error that names a node as a person finds it in the editor."""
        subgraph = self.subgraph(node)
        kind = f"subgraph {shown(subgraph.name)}" if subgraph else shown(node.type)[1:-1]
        title = (
            f" {shown(node.title)}" if node.title and node.title not in (node.type, subgraph and subgraph.name) else ""
        )
        within = f" in subgraph {shown(scope.graph.name)}" if scope.parent else ""
        return refused(f"node {scope.path}{node.id} {kind}{title}{within}", why)


def types_meet(one: str, other: str) -> bool:
    """Whether LiteGraph lets an output of one type feed an input of the other: "INT,FLOAT" is either, "*" any."""
    if "*" in (one, other):
        return True
    return not {part.lower() for part in one.split(",")}.isdisjoint(part.lower() for part in other.split(","))
