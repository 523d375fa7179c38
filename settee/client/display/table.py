"""The changes of a workflow as a short table, before it is sent."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from settee.base.text import for_terminal
from settee.client.changes import Change
from settee.client.display.text import cells, cut, padded
from settee.comfyui.workflow import Workflow, shown_node

_GAP = "  "
#: Cells of these columns at most; the value gets what is left of the width, and at least so much.
_MOST_WHY, _MOST_INPUT, _LEAST_VALUE = 12, 24, 12
#: Of a value, more than this is never shown, however wide the terminal.
_MOST_CHARACTERS = 2000


def table(workflow: Workflow, changes: Iterable[Change], width: int, encoding: str = "utf-8") -> str:
    """One line for every input that changes, none wider than ``width`` cells: what asks for it, node, input, new value.

    Of several changes to one input the last counts, as in :func:`settee.client.changes.applied`. Values are cut at
    their end and shown as one line. "" without changes. No colours, no control codes.
    """
    last = {(change.node_id, change.input): change for change in changes}
    rows = []
    for change in last.values():
        texts = (change.why, shown_node(workflow, change.node_id), change.input, _value(change.value))
        rows.append([for_terminal(text, encoding, most=_MOST_CHARACTERS) for text in texts])
    if not rows:
        return ""
    longest = [max(cells(row[column]) for row in rows) for column in range(4)]
    why_width, input_width = min(longest[0], _MOST_WHY), min(longest[2], _MOST_INPUT)
    left = width - why_width - input_width - 3 * len(_GAP)
    # The value is what one looks for; the node may have what it does not need, and half of the rest in any case.
    node_width = max(4, min(longest[1], max(left // 2, left - longest[3])))
    value_width = max(_LEAST_VALUE, left - node_width)
    lines = []
    for why, node, name, value in rows:
        front = (
            padded(why, why_width, encoding),
            padded(node, node_width, encoding),
            padded(name, input_width, encoding),
        )
        lines.append(cut(_GAP.join((*front, cut(value, value_width, encoding))), width, encoding))
    return "\n".join(lines)


def _value(value: Any) -> str:
    """As it is written in the workflow, but text without quotes; an empty one with them, to be seen."""
    if isinstance(value, str) and value.strip():
        return value[:_MOST_CHARACTERS]
    return json.dumps(value, ensure_ascii=False, default=str)[:_MOST_CHARACTERS]
