"""The words of a progress bar: pure functions from numbers to text that fits."""

from __future__ import annotations

import unicodedata

#: A name has at least so many cells, and gives none of the others to the bar.
NAME_CELLS, MOST_NAME_CELLS = 16, 48
BAR_CELLS = 10
MOST_BAR_CELLS = 40


def cells(text: str) -> int:
    """Columns that a terminal gives the text: two for wide characters, none for combining ones."""
    return sum(_cells(char) for char in text)


def _cells(char: str) -> int:
    if unicodedata.category(char) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(char) in "WF" else 1


def fitted(text: str, width: int, ellipsis: str = "…") -> str:
    """The text in exactly ``width`` cells: padded, or shortened in its middle."""
    if cells(text) > width:
        space = max(0, width - len(ellipsis))
        text = _head(text, space - space // 2) + ellipsis + _head(text[::-1], space // 2)[::-1]
    text = _head(text, width)
    return text + " " * (width - cells(text))


def _head(text: str, width: int) -> str:
    """As many characters from the front as fit into ``width`` cells."""
    used = 0
    for index, char in enumerate(text):
        used += _cells(char)
        if used > width:
            return text[:index]
    return text


def amount(size: float) -> str:
    """Bytes in decimal units, as disks and networks are sold: ``84 MB``, ``6.62 GB``."""
    if size < 1e6:
        return f"{size / 1e3:.0f} kB"
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def duration(seconds: float) -> str:
    """``0:06``, ``12:30``, ``1:02:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"


def time_left(done: int, total: int | None, speed: float) -> str | None:
    """None when nobody can say."""
    if total is None or speed <= 0 or (left := (total - done) / speed) >= 100 * 3600:
        return None
    return f"{duration(max(0.0, left))} left"


def percent(done: int, total: int | None) -> str | None:
    """Never 100 % before the end."""
    return None if not total else f"{min(100, done * 100 // total)}%"


def of_total(done: int, total: int | None) -> str:
    """Both in the unit of the total: ``0.40 of 6.62 GB``."""
    if total is None:
        return amount(done)
    whole = amount(total)
    shown = {"kB": f"{done / 1e3:.0f}", "MB": f"{done / 1e6:.0f}", "GB": f"{done / 1e9:.2f}"}[whole[-2:]]
    return f"{shown} of {whole}"


def bar_line(
    name: str, done: int, total: int | None, speed: float, width: int, *, longest: int = 0, plain: bool = False
) -> str:
    """One file's bar, no wider than ``width`` cells. What does not fit is left out, the least needed first.

    ``longest`` is the width of the longest name: bars below each other begin at one column. ``plain`` keeps to
    ASCII, for a terminal that has no more.
    """
    columns = [
        (f"{percent(done, total) or '':>4}", 0),
        (f"{amount(speed) + '/s':>9}", 2),
        (f"{time_left(done, total, speed) or '':>10}", 3),
        (f"{of_total(done, total):>17}", 1),
    ]
    chosen: list[tuple[str, int]] = []
    room = width - NAME_CELLS
    for column in columns:
        if room >= len(column[0]) + 2:
            room -= len(column[0]) + 2
            chosen.append(column)
    right = "".join(f"  {text}" for text, _ in sorted(chosen, key=lambda column: column[1]))
    ellipsis = "..." if plain else "…"
    if total and room >= BAR_CELLS + 2:
        length = min(MOST_BAR_CELLS, max(BAR_CELLS, room - 2 - max(0, min(longest, MOST_NAME_CELLS) - NAME_CELLS)))
        full = min(length, done * length // total)
        bar = "#" * full + "." * (length - full) if plain else "█" * full + "░" * (length - full)
        right = f"  {bar}{right}"
    return fitted(name, max(0, width - len(right)), ellipsis) + right if width > len(right) else fitted(name, width)


def log_line(name: str, done: int, total: int | None, speed: float) -> str:
    """The same for a log."""
    parts = [percent(done, total), of_total(done, total), f"{amount(speed)}/s", time_left(done, total, speed)]
    return f"{name}: {', '.join(part for part in parts if part)}"


__all__ = ["amount", "bar_line", "cells", "duration", "fitted", "log_line"]
