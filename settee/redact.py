"""What may be shown to a caller of text that a program on this host printed."""

from __future__ import annotations

import re
from collections.abc import Iterable

#: Absolute paths of two parts and more, also behind a colon or file://, but not the path of an http URL.
_PATHS = re.compile(r"(?:(?<=file://)|(?<![\w/.]))(?:/[\w.+@~%-]+){2,}/?")


def neutral(text: str) -> str:
    """The text with absolute paths of this host cut to their last part."""
    return _PATHS.sub(lambda match: match[0].rstrip("/").rsplit("/", 1)[-1], text)


def without_tracebacks(lines: Iterable[str]) -> list[str]:
    """The lines without Python's tracebacks, whose last line, the error itself, stays."""
    kept, inside = [], False
    for line in lines:
        if line.lstrip().startswith("Traceback (most recent call last)"):
            inside = True
        elif not (inside and (line[:1].isspace() or not line)):
            inside = False
            kept.append(line)
    return kept
