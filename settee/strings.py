"""Large strings, built without a second copy."""

from __future__ import annotations

from collections.abc import Iterable


def join_ascii(pieces: Iterable[str]) -> str:
    """Like ``"".join`` for an iterator of many pieces, in memory for the result plus one piece.

    ``"".join`` keeps every piece until the result is whole: twice the memory. CPython appends in place to a string
    that nobody else refers to (``realloc``, which moves pages of large blocks instead of copying them); since 3.11
    only once the instruction has specialised itself, so let the pieces be small beside the whole.
    """
    text = ""
    for piece in pieces:
        text += piece
    return text
