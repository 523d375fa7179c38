"""Naming a place in a workflow: nodes by id or title, and the input where a value can really be set."""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

from settee.client.client_errors import Ambiguous, UsageError
from settee.client.inject import Change
from settee.client.inject.vocabulary import NO_OUTPUT
from settee.comfyui.literals import Computed, Place, fed_by, literal_of, users
from settee.comfyui.node_registry import UNKNOWN, NodeRegistry
from settee.comfyui.workflow import Workflow, is_link, links, listed_nodes, shown_node, title, unwrapped

# --- nodes by name ---------------------------------------------------------------------------------------


def node_of(workflow: Workflow, text: str) -> str:
    """Return the id of the node that ``text`` names: an id ("12", "57:8"), else a title, else a class.

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
    """Return up to three nodes whose id or title is like ``text``; an id of a subgraph's node without its prefix
    too."""
    inside = [i for i in workflow if re.split(r"[:.]", i)[-1] == text]
    names: dict[str, str] = {}
    for node_id, node in workflow.items():
        for name in (node_id, title(node), str(node["class_type"])):
            names.setdefault(name.casefold(), node_id)
    close = difflib.get_close_matches(text.casefold(), [name for name in names if name], n=3)
    return (inside or list(dict.fromkeys(names[name] for name in close)))[:3]


def near(text: str, names: Iterable[str]) -> str:
    """Return ``did you mean 'a'`` for a message, or all the names when none is like it; "" without names."""
    known = sorted(names)
    close = difflib.get_close_matches(text, known, n=2)
    if close:
        return "did you mean " + " or ".join(map(repr, close)) + "?"
    return f"it has {', '.join(known[:20])}{', …' if len(known) > 20 else ''}" if known else ""


# --- what is connected -----------------------------------------------------------------------------------


def live_nodes(workflow: Workflow, registry: NodeRegistry = UNKNOWN) -> set[str]:
    """Ids of the nodes that ComfyUI runs: those that an output is made from.

    A class that ``registry`` does not know (API nodes; every class without it) counts as an output where nothing
    uses it, unless it is one of ComfyUI's own that is not. Where there is no output at all, every node counts:
    ComfyUI will refuse it itself.
    """
    used = users(workflow)
    pending = []
    for node_id, node in workflow.items():
        class_type = str(node["class_type"])
        is_end = not used[node_id] and class_type not in NO_OUTPUT
        is_output = registry.is_output(class_type) if class_type in registry else is_end
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
    """Return where the value of this input is written: there, or in the primitive that it is linked to, through
    reroutes.

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
    """Return :func:`place_of`, where no other input gets the value too. Raises UsageError naming those that do."""
    asked, place = Place(node_id, name), place_of(workflow, node_id, name)
    others = [use for use in fed_by(workflow, place, users(workflow)) if use != asked] if place != asked else []
    if others:
        named = ", ".join(f"{use.node_id}.{use.input}" for use in others[:10])
        raise UsageError(
            f"the value of {node_id}.{name} comes from node {shown_node(workflow, place.node_id)}, which feeds {named} "
            f"too: if all of them are to change, --set {place.shown()}=…"
        )
    return place


_FORM = 'write NODE.INPUT=VALUE, such as 6.inputs.text=… or "Title.text=…"'
#: ComfyUI takes a fraction for these and cuts it off.
_WHOLE = ("seed", "noise_seed", "steps", "width", "height", "length", "batch_size", "start_at_step", "end_at_step")


def set_changes(workflow: Workflow, texts: Sequence[str]) -> list[Change]:
    """Return the changes that ``--set`` asks for, one each, in their order.

    ``6.inputs.text=…``, ``6.text=…``, ``Title.text=…``; titles and inputs may hold dots and equals signs themselves.
    A value keeps the type of the present one: a plain string for a string, else JSON. A linked input is set in the
    primitive that it comes from, if nothing else comes from it. Raises UsageError (Ambiguous) naming the option, the
    node and what to do.
    """
    changes = []
    for text in texts:
        place, value = _split(workflow, text)
        shown = f"--set {text if len(text) < 80 else text[:79] + '…'}"
        try:
            source = only_place(workflow, place.node_id, place.input)
        except UsageError as error:
            raise UsageError(f"{shown}: {error.message}") from error
        present = workflow[source.node_id]["inputs"][source.input]
        changes.append(Change(source.node_id, source.input, _typed(present, value, source, shown), "--set"))
    return changes


def _split(workflow: Workflow, text: str) -> tuple[Place, str]:
    """Return (the named input, the value as a string): of the ways to read it, the first that names an input."""
    ends = [at for at, char in enumerate(text) if char == "="]
    if not ends:
        raise UsageError(f"--set {text}: {_FORM}")
    ambiguous: Ambiguous | None = None
    for end in ends:
        left = text[:end].strip()
        for dot in (at for at, char in enumerate(left) if char == "."):
            try:
                node_id = node_of(workflow, left[:dot])
            except Ambiguous as error:
                ambiguous = ambiguous or error
                continue
            except UsageError:
                continue
            asked = left[dot + 1 :]
            for name in (asked, asked.removeprefix("inputs.")):
                if name in workflow[node_id]["inputs"]:
                    return Place(node_id, name), text[end + 1 :]
    if ambiguous:
        raise Ambiguous(f"--set {text[: ends[0]]}: {ambiguous.message}") from ambiguous
    raise _unknown(workflow, text[: ends[0]].strip())


def _unknown(workflow: Workflow, left: str) -> UsageError:
    """Return the error that names the wrong half of NODE.INPUT."""
    if "." not in left:
        having = [node_id for node_id, node in workflow.items() if left in node["inputs"]]
        where = f"; an input {left!r} have:\n{listed_nodes(workflow, having)}" if left and having else ""
        return UsageError(f"--set {left}: which node? {_FORM}{where}")
    wrong: dict[str, UsageError] = {}
    for dot in (at for at, char in enumerate(left) if char == "."):
        try:
            node_id = node_of(workflow, left[:dot])
        except UsageError as error:
            wrong[left[:dot]] = error
            continue
        name = left[dot + 1 :].removeprefix("inputs.")
        known = near(name, workflow[node_id]["inputs"])
        return UsageError(
            f"--set {left}: node {shown_node(workflow, node_id)} has no input {name!r}; {known}".rstrip("; ")
        )
    first = wrong.get(left.split(".inputs.")[0]) or next(iter(wrong.values()))
    return UsageError(f"--set {left}: {first.message}")


def _typed(present: Any, text: str, place: Place, shown: str) -> Any:
    """Return ``text`` as a value of the present one's type. Raises UsageError."""
    if isinstance(present, str):
        return text
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        value = _NOT_JSON
    inside = unwrapped(present)
    if isinstance(inside, bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(inside, (int, float)):
        fits, wanted = isinstance(value, (int, float)) and not isinstance(value, bool), "a number"
        if fits and isinstance(value, float) and value.is_integer() and isinstance(inside, int):
            value = int(value)
        if fits and isinstance(value, float) and place.input in _WHOLE:
            fits, wanted = False, "a whole number"
    elif isinstance(inside, list):
        fits, wanted = isinstance(value, list) and not is_link(value), "a JSON list (that is not a link)"
    elif isinstance(inside, dict):
        fits, wanted = isinstance(value, dict), "a JSON object"
    else:
        fits, wanted = value is not _NOT_JSON and not is_link(value), "JSON (a string in double quotes)"
    if not fits:
        now = json.dumps(inside, ensure_ascii=False)
        raise UsageError(f"{shown}: must be {wanted}; it is {now if len(now) < 60 else now[:59] + '…'} now")
    return {**present, "__value__": value} if inside is not present else value


_NOT_JSON = object()


def _finite(number: str) -> float:
    """Return a finite number; JSON has no others, which Python's reader accepts, also inside lists."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(number)
    return value
