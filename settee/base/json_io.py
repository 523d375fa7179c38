"""JSON and base64 in the spellings that callers use.

orjson and pybase64 are the worker's: the client does without them.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import json
import re
from collections.abc import Iterable, Iterator
from types import ModuleType
from typing import Any
from urllib.parse import unquote, unquote_to_bytes

#: Characters of base64 decoded at a time; a multiple of four.
STEP = 1 << 20
#: The URL-safe alphabet's two own characters become the standard one's.
_STANDARD = bytes.maketrans(b"-_", b"+/")
_SPACES = " \t\r\n\v\f"
_NOT_BASE64 = re.compile(r"[^A-Za-z0-9+/_\- \t\r\n\v\f]")


def _orjson() -> Any:
    """Return orjson; None where it is not installed."""
    try:
        import orjson
    except ImportError:
        return None
    return orjson


def loads(content: bytes | str) -> Any:
    """Parse JSON, also in Python's dialect (Infinity, whole numbers of any size). Raises ValueError, however deep."""
    if orjson := _orjson():
        # What orjson alone refuses, or what is not JSON: the standard library decides.
        with contextlib.suppress(ValueError):
            return orjson.loads(content)
    try:
        return json.loads(content)
    except RecursionError as error:
        raise ValueError("JSON that is nested too deep") from error


def loads_strict(content: bytes) -> Any:
    """Parse JSON by the letter: neither NaN nor half a surrogate pair, where orjson is installed. Raises ValueError."""
    orjson = _orjson()
    return orjson.loads(content) if orjson else loads(content)


def dumps(value: Any) -> bytes:
    """Write JSON in UTF-8. Whatever orjson refuses (big integers, half surrogate pairs) the standard library writes."""
    if orjson := _orjson():
        with contextlib.suppress(TypeError):
            written: bytes = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)
            return written
    return json.dumps(value).encode("ascii")


class BadData(ValueError):
    """The data of one file is wrong, in the words of the message."""


def decode_data_uri(header: str, text: str, start: int) -> Iterable[bytes]:
    """Decode a data URI (RFC 2397) whose ``header`` is what stands between "data:" and the comma. Raises BadData."""
    if header.lower().rstrip().endswith(";base64"):
        if text.find("%", start) < 0:
            return decode_base64(text, start)
        return decode_base64(unquote(text[start:]), 0)
    try:
        return [unquote_to_bytes(text[start:])]
    except UnicodeEncodeError as error:
        raise BadData("this data URI has half a surrogate pair in it") from error


def decode_base64(text: str, start: int = 0) -> Iterator[bytes]:
    """Decode ``text`` from ``start`` on, about 768 KiB at a time, so that a file is never held decoded as a whole.

    Takes the standard and the URL-safe alphabet, white space anywhere, and missing padding. Raises BadData that
    names the position of what is neither.
    """
    decode = functools.partial(fast_base64().b64decode, validate=True)
    end = _without_padding(text, start)
    rest = b""
    try:
        for position in range(start, end, STEP):
            clean = rest + text[position : min(position + STEP, end)].encode("ascii")
            try:
                raw = decode(clean[: len(clean) // 4 * 4])
            except ValueError:  # white space, the other alphabet, or a mistake
                clean = clean.translate(_STANDARD, _SPACES.encode())
                raw = decode(clean[: len(clean) // 4 * 4])
            if b"=" in clean:
                raise ValueError
            rest = clean[len(clean) // 4 * 4 :]
            yield raw
        if rest := rest.translate(_STANDARD, _SPACES.encode()):
            yield decode(rest + b"=" * (-len(rest) % 4))
    except ValueError as error:
        raise _not_base64(text, start, end) from error


def fast_base64() -> ModuleType:
    """Return pybase64 where it is installed, else the standard library's base64."""
    try:
        import pybase64
    except ImportError:
        return base64
    return pybase64


def _not_base64(text: str, start: int, end: int) -> BadData:
    """Look for the first wrong character only when there is one: that takes longer than decoding."""
    wrong = _NOT_BASE64.search(text, start, end)
    if wrong is None:
        return BadData(f"this base64 was cut off: one character is too many or missing at character {end}")
    return BadData(
        "this is neither base64 nor an address (data:, http(s)://, s3://, volume://): "
        f"see {wrong[0]!a} at character {wrong.start()}"
    )


def _without_padding(text: str, start: int) -> int:
    """Return where the base64 ends when white space and up to two "=" are taken off its end."""
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
