"""Text that fits into a terminal's cells and does not steer it."""

from __future__ import annotations

import unicodedata

#: Makes the character before it an emoji, two cells wide.
_AS_EMOJI = "\ufe0f"


def cells(text: str) -> int:
    """Columns that a terminal gives to the text, or a few more: terminals differ about emoji of several characters."""
    return sum(width for _, width in _measured(text))


def cut(text: str, width: int, encoding: str = "utf-8") -> str:
    """The text in at most ``width`` cells, with a mark at its end when there was more of it."""
    if cells(text) <= width:
        return text
    mark = symbol("…", "...", encoding)[: max(0, width)]
    return _front(text, width - len(mark)).rstrip() + mark


def padded(text: str, width: int, encoding: str = "utf-8") -> str:
    """The text in exactly ``width`` cells."""
    text = cut(text, width, encoding)
    return text + " " * (width - cells(text))


def symbol(nice: str, plain: str, encoding: str) -> str:
    """A sign, or what stands for it in a stream that has none such."""
    try:
        nice.encode(encoding)
    except (UnicodeError, LookupError):
        return plain
    return nice


def duration(seconds: float) -> str:
    """``0:06``, ``12:30``, ``1:02:03``."""
    minutes, second = divmod(int(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def _measured(text: str) -> list[tuple[int, int]]:
    """Index and cells of every character."""
    found: list[tuple[int, int]] = []
    base = 0
    for index, char in enumerate(text):
        if char == _AS_EMOJI:
            width, base = (1, 2) if base == 1 else (0, base)
        elif unicodedata.category(char) in ("Mn", "Me", "Cf"):
            width = 0
        else:
            width = base = 2 if unicodedata.east_asian_width(char) in "WF" else 1
        found.append((index, width))
    return found


def _front(text: str, width: int) -> str:
    """As much from the front as fits, marks with the characters they belong to."""
    used = 0
    for index, more in _measured(text):
        used += more
        if used > width:
            # What makes a character wider may not fit where the character itself did.
            return text[: index - 1] if text[index] == _AS_EMOJI else text[:index]
    return text
