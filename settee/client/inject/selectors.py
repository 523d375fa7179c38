"""Naming a place in a workflow: nodes by id or title, the input where a value can really be set, and ``--set``."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any

from settee.base.text import one_line
from settee.client.client_errors import Ambiguous, UsageError
from settee.client.inject import Change
from settee.client.inject.vocabulary import NO_OUTPUT
from settee.comfyui.graph import Computed, Graph, Place
from settee.comfyui.problems import near_matches
from settee.comfyui.workflow import Workflow, is_link, listed_nodes, natural_key, shown_node, title, unwrapped


@contextmanager
def about(option: str) -> Iterator[None]:
    """Put the option that is dealt with before the message of a UsageError."""
    try:
        yield
    except UsageError as error:
        raise type(error)(f"{option}: {error.message}") from error


class LiveGraph(Graph):
    """A workflow in which nodes and places are looked for by what a caller calls them."""

    @cached_property
    def live(self) -> Workflow:
        """Return the nodes that an output is made from, in natural order.

        A class that the registry does not know (API nodes; every class without one) counts as an output where nothing
        uses it, unless it is one of ComfyUI's own that is not. Without any every node counts: ComfyUI will refuse it.
        """

        def is_end(node_id: str) -> bool:
            kind = self.class_of(node_id)
            if kind in self.registry:
                return self.registry.is_output(kind)
            return not self.users[node_id] and kind not in NO_OUTPUT

        ends = filter(is_end, self.workflow)
        return {i: self.workflow[i] for i in sorted(self.needed(ends) or self.workflow, key=natural_key)}

    def shown(self, node_id: str) -> str:
        return shown_node(self.workflow, node_id)

    # --- nodes by name ------------------------------------------------------------------------------------

    def named(self, text: str) -> str:
        """Return the id of the node that ``text`` names: an id ("12", "57:8"), else a title, else a class.

        A title counts exactly before it counts in any case; a class only where no title fits (a workflow written by
        hand has no titles). Raises Ambiguous for several, UsageError with near matches for none.
        """
        if text in self.workflow:
            return text
        nodes, folded = self.workflow.items(), text.strip().casefold()
        attempts = (
            [i for i, node in nodes if title(node) == text],
            [i for i, node in nodes if title(node).strip().casefold() == folded],
            [i for i, node in nodes if str(node["class_type"]).casefold() == folded],
        )
        found = next((ids for ids in attempts if ids and folded), [])
        if len(found) == 1:
            return found[0]
        if found:
            listed = listed_nodes(self.workflow, found)
            raise Ambiguous(f"{text!r} names {len(found)} nodes; use the id of one:\n{listed}")
        near = self._near(text)
        hint = f"; did you mean\n{listed_nodes(self.workflow, near)}" if near else ": give a node's id or its title"
        raise UsageError(f"the workflow has no node {text!r}{hint}")

    def _near(self, text: str) -> list[str]:
        """Return up to three nodes whose id (in a subgraph also without its prefix) or title is like ``text``."""
        inside = [i for i in self.workflow if re.split(r"[:.]", i)[-1] == text]
        names: dict[str, str] = {}
        for node_id, node in self.workflow.items():
            for name in (node_id, title(node), str(node["class_type"])):
                names.setdefault(name, node_id)
        close = near_matches(text, filter(None, names), are_files=False)
        return (inside or list(dict.fromkeys(names[name] for name in close)))[:3]

    # --- the place behind a link --------------------------------------------------------------------------

    def place(self, node_id: str, name: str) -> Place:
        """Return where the value of this input is written: there, or in the primitive behind its link.

        Raises UsageError when the link comes from a node that computes it, naming that node.
        """
        try:
            return self.literal(Place(node_id, name))
        except Computed as error:
            source = error.source
            shown = self.shown(source) if source in self.workflow else f"{source}, which is not there"
            raise UsageError(
                f"{name!r} of node {self.shown(node_id)} is not a value but a link from node {shown}: "
                "set an input of that one, or unlink it in the editor"
            ) from error

    def only_place(self, node_id: str, name: str, also: Sequence[str] = ()) -> Place:
        """Return :meth:`place`, where no other input gets the value, but those named ``also`` or after them
        (``target_width``). Raises UsageError naming those that do."""
        asked, place = Place(node_id, name), self.place(node_id, name)
        fed = self.fed_by(place) if place != asked else []
        others = [use for use in fed if use != asked and not any(f"_{use.input}".endswith(f"_{each}") for each in also)]
        if others:
            named = ", ".join(f"{use.node_id}.{use.input}" for use in others[:10])
            raise UsageError(
                f"{node_id}.{name} comes from node {self.shown(place.node_id)}, which feeds {named} too: "
                f"if all of them are to change, --set {place.shown()}=…"
            )
        return place


def near(text: str, names: Iterable[str]) -> str:
    """Return ``did you mean 'a'`` for a message, or all the names when none is like it; "" without names."""
    known = sorted(names)
    if close := near_matches(text, known, 2, are_files=False):
        return f"did you mean {' or '.join(map(repr, close))}?"
    return f"it has {', '.join(known[:20])}{', …' if len(known) > 20 else ''}" if known else ""


# --- --set ------------------------------------------------------------------------------------------------

_FORM = 'write NODE.INPUT=VALUE, such as 6.inputs.text=… or "Title.text=…"'
#: ComfyUI takes a fraction for these and cuts it off.
_WHOLE = ("seed", "noise_seed", "steps", "width", "height", "length", "batch_size", "start_at_step", "end_at_step")
_NOT_JSON = object()


def set_changes(workflow: Workflow, texts: Sequence[str]) -> list[Change]:
    """Return the changes that ``--set`` asks for, one each, in their order.

    ``6.inputs.text=…``, ``6.text=…``, ``Title.text=…``; titles and inputs may hold dots and equals signs themselves.
    A value keeps the type of the present one: a plain string for a string, else JSON. A linked input is set in the
    primitive that it comes from, if nothing else comes from it. Raises UsageError (Ambiguous) naming the option, the
    node and what to do.
    """
    graph = LiveGraph(workflow)
    changes = []
    for text in texts:
        asked, value = _split(graph, text)
        with about(f"--set {one_line(text, 80)}"):
            place = graph.only_place(asked.node_id, asked.input)
            present = workflow[place.node_id]["inputs"][place.input]
            changes.append(Change(place.node_id, place.input, _typed(present, value, place.input), "--set"))
    return changes


def _split(graph: LiveGraph, text: str) -> tuple[Place, str]:
    """Return (the named input, the value as a string): of the ways to read it, the first that names an input."""
    left, equals, _ = text.partition("=")
    if not equals:
        raise UsageError(f"--set {text}: {_FORM}")
    errors: dict[str, UsageError] = {}
    for end in (at for at, char in enumerate(text) if char == "="):
        for name, asked in _readings(text[:end].strip()):
            try:
                node_id = graph.named(name)
            except UsageError as error:
                errors.setdefault(name, error)
                continue
            for known in (asked, asked.removeprefix("inputs.")):
                if known in graph.workflow[node_id]["inputs"]:
                    return Place(node_id, known), text[end + 1 :]
    with about(f"--set {left.strip()}"):
        ambiguous = next((error for error in errors.values() if isinstance(error, Ambiguous)), None)
        raise ambiguous or _unknown(graph, left.strip(), errors)


def _readings(left: str) -> Iterator[tuple[str, str]]:
    yield from ((left[:at], left[at + 1 :]) for at, char in enumerate(left) if char == ".")


def _unknown(graph: LiveGraph, left: str, errors: dict[str, UsageError]) -> UsageError:
    """Return the error that names the wrong half of NODE.INPUT; ``errors`` are those of the nodes."""
    if "." not in left:
        having = [node_id for node_id, node in graph.workflow.items() if left in node["inputs"]]
        listed = listed_nodes(graph.workflow, having)
        where = f"; an input {left!r} have:\n{listed}" if left and having else ""
        return UsageError(f"which node? {_FORM}{where}")
    for name, asked in _readings(left):
        if name not in errors:
            node_id, asked = graph.named(name), asked.removeprefix("inputs.")
            known = near(asked, graph.workflow[node_id]["inputs"])
            return UsageError(f"node {graph.shown(node_id)} has no input {asked!r}; {known}".rstrip("; "))
    return errors.get(left.split(".inputs.")[0]) or next(iter(errors.values()))


def _typed(present: Any, text: str, name: str) -> Any:
    """Return ``text`` as a value of the present one's type. Raises UsageError."""
    if isinstance(present, str):
        return text
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=_finite)
    except (ValueError, RecursionError):
        value = _NOT_JSON
    inside, is_number = unwrapped(present), isinstance(value, (int, float)) and not isinstance(value, bool)
    if isinstance(inside, bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(inside, (int, float)):
        if is_number and isinstance(value, float) and value.is_integer() and isinstance(inside, int):
            value = int(value)
        is_cut = isinstance(value, float) and name in _WHOLE
        fits, wanted = is_number and not is_cut, "a whole number" if is_cut else "a number"
    elif isinstance(inside, list):
        fits, wanted = isinstance(value, list) and not is_link(value), "a JSON list (that is not a link)"
    elif isinstance(inside, dict):
        fits, wanted = isinstance(value, dict), "a JSON object"
    else:
        fits, wanted = value is not _NOT_JSON and not is_link(value), "JSON (a string in double quotes)"
    if not fits:
        now = json.dumps(inside, ensure_ascii=False)
        raise UsageError(f"must be {wanted}; it is {one_line(now, 60)} now")
    return {**present, "__value__": value} if inside is not present else value


def _finite(number: str) -> float:
    """Return a finite number; JSON has no others, which Python's reader accepts, also inside lists."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(number)
    return value
