"""Naming a place in a workflow: nodes by id or title, and the input where a value can really be set."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from settee.client.errors import Ambiguous, UsageError
from settee.client.inject.classes import NO_OUTPUT
from settee.comfyui.literals import Computed, Place, fed_by, literal_of, users
from settee.comfyui.workflow import ObjectInfo, Workflow, links, listed_nodes, shown_node, title

# --- nodes by name ---------------------------------------------------------------------------------------


def node_of(workflow: Workflow, text: str) -> str:
    """The id of the node that ``text`` names: an id ("12", "57:8"), else a title, else a class.

    A title counts exactly before it counts in any case; a class only where no title fits (a workflow written by hand
    has no titles). Raises Ambiguous for several, UsageError with near matches for none.
    """
    if text in workflow:
        return text
    folded = text.strip().casefold()
    attempts = (
        [i for i, node in workflow.items() if title(node) == text],
        [i for i, node in workflow.items() if title(node).strip().casefold() == folded],
        [i for i, node in workflow.items() if str(node["class_type"]).casefold() == folded],
    )
    found = next((ids for ids in attempts if ids and folded), [])
    if len(found) == 1:
        return found[0]
    if found:
        raise Ambiguous(f"{text!r} names {len(found)} nodes; use the id of one:\n{listed_nodes(workflow, found)}")
    near = _near_nodes(workflow, text)
    hint = f"; did you mean\n{listed_nodes(workflow, near)}" if near else ": give a node's id or its title"
    raise UsageError(f"the workflow has no node {text!r}{hint}")


def _near_nodes(workflow: Workflow, text: str) -> list[str]:
    """Up to three nodes whose id or title is like ``text``; an id of a subgraph's node without its prefix too."""
    inside = [i for i in workflow if re.split(r"[:.]", i)[-1] == text]
    names: dict[str, str] = {}
    for node_id, node in workflow.items():
        for name in (node_id, title(node), str(node["class_type"])):
            names.setdefault(name.casefold(), node_id)
    close = difflib.get_close_matches(text.casefold(), [name for name in names if name], n=3)
    return (inside or list(dict.fromkeys(names[name] for name in close)))[:3]


def near(text: str, names: Iterable[str]) -> str:
    """``did you mean 'a'`` for a message, or all the names when none is like it; "" without names."""
    known = sorted(names)
    close = difflib.get_close_matches(text, known, n=2)
    if close:
        return "did you mean " + " or ".join(map(repr, close)) + "?"
    return f"it has {', '.join(known[:20])}{', …' if len(known) > 20 else ''}" if known else ""


def declared(object_info: ObjectInfo | None, class_type: str) -> dict[str, list[Any]]:
    """The inputs that a registry declares for a class: name → ``[type or choices, options?]``; {} without."""
    entry = (object_info or {}).get(class_type)
    inputs = entry.get("input") if isinstance(entry, Mapping) else None
    groups = [inputs.get(group) for group in ("required", "optional")] if isinstance(inputs, Mapping) else []
    return {
        name: spec
        for group in groups
        if isinstance(group, Mapping)
        for name, spec in group.items()
        if isinstance(spec, list) and spec
    }


# --- what is connected -----------------------------------------------------------------------------------


def live_nodes(workflow: Workflow, object_info: ObjectInfo | None = None) -> set[str]:
    """Ids of the nodes that ComfyUI runs: those that an output is made from.

    A class that ``object_info`` does not know (API nodes; every class without it) counts as an output where nothing
    uses it, unless it is one of ComfyUI's own that is none. Where there is no output at all, every node counts: ComfyUI
    will say so itself.
    """
    used = users(workflow)
    pending = []
    for node_id, node in workflow.items():
        known = (object_info or {}).get(node["class_type"])
        if isinstance(known, Mapping):
            is_output = bool(known.get("output_node"))
        else:
            is_output = not used[node_id] and node["class_type"] not in NO_OUTPUT
        if is_output:
            pending.append(node_id)
    found: set[str] = set()
    while pending:
        node_id = pending.pop()
        if node_id in workflow and node_id not in found:
            found.add(node_id)
            pending += [source for _, source, _ in links(workflow[node_id])]
    return found or set(workflow)


# --- the place behind a link -----------------------------------------------------------------------------


def place_of(workflow: Workflow, node_id: str, name: str) -> Place:
    """Where the value of this input is written: there, or in the primitive that it is linked to, through reroutes.

    Raises UsageError when the link comes from a node that computes it, naming that node.
    """
    try:
        return literal_of(workflow, node_id, name)
    except Computed as error:
        source = error.source
        shown = shown_node(workflow, source) if source in workflow else f"{source}, which is not there"
        raise UsageError(
            f"{name!r} of node {shown_node(workflow, node_id)} is not a value but a link from node {shown}: "
            "set an input of that one, or unlink it in the editor"
        ) from error


def only_place(workflow: Workflow, node_id: str, name: str) -> Place:
    """As :func:`place_of`, where no other input gets the value too. Raises UsageError naming those that do."""
    asked, place = Place(node_id, name), place_of(workflow, node_id, name)
    others = [use for use in fed_by(workflow, place, users(workflow)) if use != asked] if place != asked else []
    if others:
        named = ", ".join(f"{use.node_id}.{use.input}" for use in others[:10])
        raise UsageError(
            f"the value of {node_id}.{name} comes from node {shown_node(workflow, place.node_id)}, which feeds {named} "
            f"too: if all of them are to change, --set {place.shown()}=…"
        )
    return place
