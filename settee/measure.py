"""What of a JSON value ComfyUI cannot take, for worker and client."""

from __future__ import annotations

import math
from typing import Any

#: Deeper values end ComfyUI's executor thread: its queue copies prompts recursively.
MAX_DEPTH = 64


def measure(value: Any) -> tuple[int, str | None]:
    """(characters of text inside, what of it ComfyUI could not take): nested too deeply, or no number for JSON.

    Level by level, not recursively: the value may be deeper than Python's stack.
    """
    size, level = 0, [value]
    for _ in range(MAX_DEPTH + 1):
        inside: list[Any] = []
        for item in level:
            if isinstance(item, str):
                size += len(item)
            elif isinstance(item, float) and not math.isfinite(item):
                return size, "holds a NaN or an infinite number, which JSON has no word for"
            elif isinstance(item, dict):
                inside += item
                inside += item.values()
            elif isinstance(item, list):
                inside += item
        if not inside:
            return size, None
        level = inside
    return size, f"nested more than {MAX_DEPTH} levels deep"
