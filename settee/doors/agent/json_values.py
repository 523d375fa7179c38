"""Values that JSON can hold and the rest of the way cannot, checked once for a whole document; and how all that is
wrong with a job is reported at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from settee.base.errors import InvalidRequest
from settee.comfyui.workflow import MAX_DEPTH, Problem

#: orjson, and most others, write no other whole numbers.
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
#: More is not told.
_MOST = 20


#: How many mistakes of one job are told.
MAX_PROBLEMS = 100


class _At(NamedTuple):
    """A value, and the way to it. Its path is written only when there is something to say."""

    holder: _At | None
    key: str | int
    value: Any

    def path(self) -> str:
        names: list[str] = []
        at: _At | None = self
        while at is not None and at.holder is not None:
            names.append(f"[{at.key}]" if isinstance(at.key, int) else f".{_shown(at.key)}")
            at = at.holder
        return "".join(reversed(names)).removeprefix(".")


def kind_of(value: Any) -> str:
    """Return the kind of a value, in JSON's words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a text"
    return "a list" if isinstance(value, list) else "an object"


def value_problems(document: Any) -> list[Problem]:
    """Every value nested too deeply, every number JSON or a reader of it cannot hold, every text no UTF-8 can.

    Paths are the document's own: ``parameters.extra.loras[0].strength``. Level by level, not recursively: the document
    may be deeper than Python's stack.
    """
    top = _of_one(document)
    if top or not isinstance(document, (dict, list)):
        return [{"path": "", "problem": top}] if top else []
    problems: list[Problem] = []
    level = [_At(None, "", document)]
    for _ in range(MAX_DEPTH):
        inside: list[_At] = []
        for at in level:
            value = at.value
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                problem = _of_one(item)
                if problem:
                    problems.append({"path": _At(at, key, item).path(), "problem": problem})
                    if len(problems) >= _MOST:
                        return problems
                elif isinstance(item, (dict, list)):
                    inside.append(_At(at, key, item))
        if not inside:
            return problems
        level = inside
    # One as an example: all of a level may be too deep.
    return [*problems, {"path": level[0].path()[:200], "problem": f"is nested more than {MAX_DEPTH} levels deep"}]


def _shown(key: str) -> str:
    return key[:100].encode(errors="replace").decode()


def _of_one(value: Any) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else "is not a finite number"
    if isinstance(value, int):
        return None if _SMALLEST <= value <= _LARGEST else "is a whole number of more than 64 bits"
    if isinstance(value, str):
        return "is not valid Unicode: it has half of a surrogate pair" if _is_broken(value) else None
    if isinstance(value, dict) and any(_is_broken(key) for key in value):
        return "has a key that is not valid Unicode"
    return None


def _is_broken(text: str) -> bool:
    """Return True if a string holds what UTF-8 cannot: JSON's ``"\\ud800"`` decodes to it."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def refusal(problems: Sequence[Problem], what: str) -> InvalidRequest:
    """One error for all problems (at least one) of ``what``; the number of those beyond the first hundred."""
    told = list(problems[:MAX_PROBLEMS])
    if len(problems) > MAX_PROBLEMS:
        told.append({"path": "", "problem": f"and {len(problems) - MAX_PROBLEMS} more"})
    return InvalidRequest.from_problems(told, what)


__all__ = ["MAX_PROBLEMS", "kind_of", "refusal", "value_problems"]
