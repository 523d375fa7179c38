"""Texts that the editor changes as it exports them: dynamic prompts, and patterns in file names."""

from __future__ import annotations

import re

#: Comments in dynamic prompts. JavaScript's "." stops at these four line ends, and Python's only at the first.
_COMMENT = re.compile(r"/\*[\s\S]*?\*/|//[^\n\r\u2028\u2029]*")
_ESCAPED = re.compile(r"\\([{}|])")
#: ``%KSampler.seed%``; anything else between two % is for comfyui.rewrite (a date) or the server (``%width%``).
_PATTERN = re.compile(r"%[^%.]+\.[^%.]+%")


def dynamic(text: str) -> str | None:
    """A dynamic prompt as it is exported: without comments, escapes undone. None where the editor draws by chance
    (``{a|b}``), or so nearly that what it does is not worth knowing."""
    text = _COMMENT.sub("", text)
    if re.search(r"(?<!\\)\{", text) or "\\\\" in text:
        return None
    return _ESCAPED.sub(r"\1", text)


def has_pattern(text: str) -> bool:
    """Whether the editor would put another node's value into this file name, by a name that its export lacks."""
    return _PATTERN.search(text) is not None
