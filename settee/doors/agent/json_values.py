"""What JSON can hold and the rest of the way cannot: checked once for a whole document."""

from __future__ import annotations

import math
from typing import Any

from settee.measure import MAX_DEPTH
from settee.workflow import Problem

#: orjson, and most others, write no other whole numbers.
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
#: More is not told.
_MOST = 20


def value_problems(document: Any) -> list[Problem]:
    """Every value nested too deeply, every number JSON or a reader of it cannot hold, every text no UTF-8 can.

    Paths are the document's own: ``parameters.extra.loras[0].strength``. Level by level, not recursively: the document
    may be deeper than Python's stack.
    """
    problems: list[Problem] = []
    level: list[tuple[str, Any]] = [("", document)]
    for _ in range(MAX_DEPTH + 1):
        inside: list[tuple[str, Any]] = []
        for path, value in level:
            if len(problems) >= _MOST:
                return problems
            problem = _of_one(value)
            if problem:
                problems.append({"path": path, "problem": problem})
            elif isinstance(value, dict):
                inside += [(_below(path, key), item) for key, item in value.items()]
                problems += [
                    {"path": path, "problem": "has a key that is no valid Unicode"} for key in value if _is_broken(key)
                ]
            elif isinstance(value, list):
                inside += [(f"{path}[{at}]", item) for at, item in enumerate(value)]
        if not inside:
            return problems
        level = inside
    return [*problems, {"path": level[0][0][:200], "problem": f"is nested more than {MAX_DEPTH} levels deep"}]


def _below(path: str, key: Any) -> str:
    name = str(key)[:100].encode(errors="replace").decode()
    return f"{path}.{name}" if path else name


def _of_one(value: Any) -> str | None:
    if isinstance(value, float) and not math.isfinite(value):
        return "is no finite number"
    if isinstance(value, int) and not _SMALLEST <= value <= _LARGEST:
        return "is a whole number of more than 64 bits"
    return "is no valid Unicode: it has half of a surrogate pair" if _is_broken(value) else None


def _is_broken(value: Any) -> bool:
    """Whether a text holds what UTF-8 cannot: JSON's ``"\\ud800"`` decodes to it."""
    if not isinstance(value, str) or value.isascii():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False


__all__ = ["value_problems"]
