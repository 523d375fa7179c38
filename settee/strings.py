"""Large strings, built without a second copy."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import chain

# CPython appends to a string in place when nobody else refers to it: since 3.11 only after the instruction below
# has run a few times and specialised itself. These get it there before the first large piece comes.
_WARM_UP = ("",) * 64


def join_ascii(pieces: Iterable[str]) -> str:
    """Like ``"".join`` for an iterator of large pieces, in memory for the result plus one piece.

    ``"".join`` keeps every piece until the result is whole: twice the memory. Here the result grows in place
    (``realloc``, which moves pages of large blocks instead of copying them).
    """
    text = ""
    for piece in chain(_WARM_UP, pieces):
        text += piece
    return text
