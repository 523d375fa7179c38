"""File data that comes inside a request: base64 in the spellings that callers use, and data URIs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from urllib.parse import unquote, unquote_to_bytes

#: Characters of base64 decoded at a time; a multiple of four.
_STEP = 1 << 20
#: The URL-safe alphabet's two own characters become the standard one's.
_STANDARD = bytes.maketrans(b"-_", b"+/")
_SPACES = " \t\r\n\v\f"
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/_\- \t\r\n\v\f]")


class BadData(ValueError):
    """What is wrong with the data of one file."""


def decode_data_uri(header: str, text: str, start: int) -> Iterable[bytes]:
    """The data of a data URI (RFC 2397) whose ``header`` is what stands between "data:" and the comma."""
    if header.lower().rstrip().endswith(";base64"):
        if text.find("%", start) < 0:
            return decode_base64(text, start)
        return decode_base64(unquote(text[start:]), 0)
    try:
        return [unquote_to_bytes(text[start:])]
    except UnicodeEncodeError as error:
        raise BadData("this data URI has half a surrogate pair in it") from error


def decode_base64(text: str, start: int) -> Iterator[bytes]:
    """Decode ``text`` from ``start`` on, about 768 KiB at a time, so that a file is never held decoded as a whole.

    Takes the standard and the URL-safe alphabet, white space anywhere, and missing padding. Raises BadData that
    names the position of what is neither.
    """
    import pybase64

    end = _without_padding(text, start)
    rest = b""
    for position in range(start, end, _STEP):
        piece = text[position : min(position + _STEP, end)]
        if not rest:
            try:
                raw = pybase64.b64decode(piece + "=" * (-len(piece) % 4), validate=True)
            except ValueError:
                pass  # white space, the other alphabet, or a mistake: see below
            else:
                if "=" not in piece:
                    yield raw
                    continue
        try:
            clean = rest + piece.encode("ascii").translate(_STANDARD, _SPACES.encode())
            whole = len(clean) // 4 * 4
            raw = pybase64.b64decode(clean[:whole], validate=True)
        except ValueError as error:
            raise _not_base64(text, start, end) from error
        if b"=" in clean:
            raise _not_base64(text, start, end)
        rest = clean[whole:]
        yield raw
    if rest:
        try:
            yield pybase64.b64decode(rest + b"=" * (-len(rest) % 4), validate=True)
        except ValueError as error:
            raise _not_base64(text, start, end) from error


def _not_base64(text: str, start: int, end: int) -> BadData:
    """Looks for the first wrong character only when there is one: that takes longer than decoding."""
    wrong = _NOT_BASE64.search(text, start, end)
    if wrong is None:
        return BadData(f"this base64 was cut off: one character is too many or missing at character {end}")
    return BadData(
        "this is neither base64 nor an address (data:, http(s)://, s3://, volume://): "
        f"see {wrong[0]!a} at character {wrong.start()}"
    )


def _without_padding(text: str, start: int) -> int:
    """Where the base64 ends when white space and up to two "=" are taken off its end."""
    end = len(text)
    while end > start and text[end - 1] in _SPACES:
        tail = text[max(start, end - 4096) : end]  # not the whole text: that would copy it
        end -= len(tail) - len(tail.rstrip(_SPACES))
    for _ in range(2):
        if end > start and text[end - 1] == "=":
            end -= 1
            for _ in range(2):  # a line may end before each "="
                end -= end > start and text[end - 1] in _SPACES
    return end
