"""How a file that is not converted is refused: with the node that prevents it, and the way that always works."""

from __future__ import annotations

import json

from settee.base.text import one_line
from settee.client.errors import UsageError

WAY_OUT = "open it in ComfyUI, use Workflow > Export (API) and send that file"


def refused(where: str, why: str) -> UsageError:
    """The error to raise. ``where`` names the node (or the link, or "the file") and ``why`` says what of it."""
    return UsageError(f"the editor's file cannot be converted: {where} {why}; {WAY_OUT}")


def shown(value: object, most: int = 60) -> str:
    """What the file says, in a message: one line, quoted, not too long."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    words = one_line(text)
    return f'"{words}"' if len(words) <= most else f'"{words[: most - 1]}…"'
