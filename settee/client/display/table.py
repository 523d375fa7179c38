"""The changes of a workflow as a short table, before it is sent."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any

from settee.client.changes import Change, shown_node
from settee.client.display.text import cells, cut, padded, printable
from settee.workflow import Workflow

_GAP = "  "
#: Cells of the columns at most; the value gets what is left of the width, and at least so much.
_MOST_INPUT, _MOST_WHY, _LEAST_VALUE = 24, 12, 12
#: Of a value, more than this is never shown, however wide the terminal.
_MOST_CHARACTERS = 2000


def table(workflow: Workflow, changes: Iterable[Change], width: int, encoding: str = "utf-8") -> str:
    """One line for every input that changes, none wider than ``width`` cells: node, input, new value, what asks for it.

    Of several changes to one input the last counts, as in :func:`settee.client.changes.applied`. Values are cut at
    their end and shown as one line. "" without changes. No colours, no control codes.
    """
    last = {(change.node_id, change.input): change for change in changes}
    rows = [
        (
            printable(shown_node(workflow, change.node_id), encoding, most=_MOST_CHARACTERS),
            printable(change.input, encoding, most=_MOST_CHARACTERS),
            printable(_value(change.value), encoding, most=_MOST_CHARACTERS),
            printable(change.why, encoding, most=_MOST_CHARACTERS),
        )
        for change in last.values()
    ]
    if not rows:
        return ""
    longest = [max(cells(row[column]) for row in rows) for column in range(4)]
    input_width, why_width = min(longest[1], _MOST_INPUT), min(longest[3], _MOST_WHY)
    left = width - input_width - why_width - 3 * len(_GAP)
    # The value is what one looks for; the node may have what it does not need, and half of the rest in any case.
    node_width = max(4, min(longest[0], max(left // 2, left - longest[2])))
    value_width = max(_LEAST_VALUE, min(longest[2], left - node_width))
    widths = (node_width, input_width, value_width)
    lines = []
    for row in rows:
        columns = [padded(text, size, encoding) for text, size in zip(row, widths, strict=False)]
        line = _GAP.join([*columns, cut(row[3], why_width, encoding)])
        lines.append(cut(line.rstrip(), width, encoding))
    return "\n".join(lines)


def _value(value: Any) -> str:
    """As it is written in the workflow, but text without quotes; an empty one with them, to be seen."""
    if isinstance(value, str) and value.strip():
        return value[:_MOST_CHARACTERS]
    return json.dumps(value, ensure_ascii=False, default=str)[:_MOST_CHARACTERS]
