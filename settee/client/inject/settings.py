"""``--set NODE.INPUT=VALUE``: any input, by name."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from settee.client.changes import Change
from settee.client.errors import Ambiguous, UsageError
from settee.client.inject.selectors import near, node_of, only_place
from settee.comfyui.literals import Place
from settee.comfyui.workflow import Workflow, is_link, listed_nodes, shown_node, unwrapped

_FORM = 'write NODE.INPUT=VALUE, such as 6.inputs.text=… or "Title.text=…"'
#: ComfyUI takes a fraction for these and cuts it off.
_WHOLE = ("seed", "noise_seed", "steps", "width", "height", "length", "batch_size", "start_at_step", "end_at_step")


def set_changes(workflow: Workflow, texts: Sequence[str]) -> list[Change]:
    """The changes that ``--set`` asks for, one each, in their order.

    ``6.inputs.text=…``, ``6.text=…``, ``Title.text=…``; titles and inputs may hold dots and equals signs themselves.
    A value keeps the type of the present one: plain text for a text, else JSON. A linked input is set in the
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
    """(the input that is named, the value as text). Of the ways to read it, the first that names an input."""
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
    """Says which half of NODE.INPUT is wrong."""
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
    """``text`` as a value of the present one's type. Raises UsageError."""
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
        fits, wanted = value is not _NOT_JSON and not is_link(value), "JSON (a text in double quotes)"
    if not fits:
        now = json.dumps(inside, ensure_ascii=False)
        raise UsageError(f"{shown}: must be {wanted}; it is {now if len(now) < 60 else now[:59] + '…'} now")
    return {**present, "__value__": value} if inside is not present else value


_NOT_JSON = object()


def _finite(number: str) -> float:
    """JSON has no word for others, which Python's reader takes; inside lists too."""
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(number)
    return value
