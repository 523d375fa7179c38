"""How what is wrong with a job is told: all of it at once, as far as anybody reads."""

from __future__ import annotations

from collections.abc import Sequence

from settee.base.errors import InvalidRequest
from settee.comfyui.workflow import Problem

#: How many mistakes of one job are told.
MAX_PROBLEMS = 100


def refusal(problems: Sequence[Problem], what: str) -> InvalidRequest:
    """One error for all problems (at least one) of ``what``; the number of those beyond the first hundred."""
    told = list(problems[:MAX_PROBLEMS])
    if len(problems) > MAX_PROBLEMS:
        told.append({"path": "", "problem": f"and {len(problems) - MAX_PROBLEMS} more"})
    return InvalidRequest.from_problems(told, what)


__all__ = ["refusal"]
