"""The tags of MP4 and WEBM files, as FFmpeg writes them for ComfyUI's SaveVideo and SaveWEBM.

The video nodes of custom packs put prompt and workflow together into one ``comment``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import BinaryIO

from settee.client.embedded import MOST_PARTS, Unreadable, decoded, exactly

_KEYS = ("prompt", "workflow", "comment")


def _tag(keyword: str, data: bytes) -> Iterator[tuple[str, str]]:
    """A tag of one of these names, or the two that a comment may hold."""
    if keyword != "comment":
        yield keyword, decoded(data)
        return
    try:
        comment = json.loads(data)
    except (ValueError, RecursionError):
        return  # somebody's words
    if isinstance(comment, dict):
        for name in ("prompt", "workflow"):
            if name in comment:
                yield name, comment[name] if isinstance(comment[name], str) else json.dumps(comment[name])


# --- MP4 ---------------------------------------------------------------------------------------------


def mp4(file: BinaryIO) -> Iterator[tuple[str, str]]:
    """moov / udta / meta (QuickTime: moov / meta), with names in ``keys`` and values in ``ilst``."""
    end = file.seek(0, os.SEEK_END)
    for kind, start, stop in _boxes(file, 0, end):
        if kind == b"moov":
            for place in _metas(file, start, stop):
                yield from _meta(file, *place)
            return


def _metas(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int]]:
    for kind, first, last in _boxes(file, start, end):
        if kind == b"meta":
            yield first, last
        elif kind == b"udta":
            yield from ((at, until) for inner, at, until in _boxes(file, first, last) if inner == b"meta")


def _boxes(file: BinaryIO, start: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """``(type, start, end)`` of the contents of every box in a stretch (ISO 14496-12, 4.2)."""
    for _ in range(MOST_PARTS):
        if end - start < 8:
            return
        file.seek(start)
        header = exactly(file, 8)
        size, head = int.from_bytes(header[:4], "big"), 8
        if size == 1:  # too long for four bytes
            size, head = int.from_bytes(exactly(file, 8), "big"), 16
        elif size == 0:  # to the end
            size = end - start
        if size < head or size > end - start:
            raise Unreadable("is damaged or cut off: a part of it is longer than the file")
        yield header[4:], start + head, start + size
        start += size


def _meta(file: BinaryIO, start: int, end: int) -> Iterator[tuple[str, str]]:
    file.seek(start)
    # QuickTime's begins with its parts, MP4's with four bytes of version and flags.
    if exactly(file, 8)[4:] != b"hdlr":
        start += 4
    names: list[str] = []
    for kind, first, last in _boxes(file, start, end):
        if kind == b"keys":
            # Version and flags, how many there are, and then boxes: their type is a namespace, their content a name.
            for _, at, until in _boxes(file, first + 8, last):
                file.seek(at)
                names.append(decoded(exactly(file, until - at)))
        elif kind == b"ilst":
            for item, at, until in _boxes(file, first, last):
                name = _name_of(item, names)
                if name in _KEYS:
                    yield from _values(file, name, at, until)


def _name_of(item: bytes, names: list[str]) -> str:
    """An item's type is its name's number, from 1, or a name of iTunes."""
    number = int.from_bytes(item, "big")
    if 1 <= number <= len(names):
        return names[number - 1].lower()
    return "comment" if item == b"\xa9cmt" else ""


def _values(file: BinaryIO, name: str, start: int, end: int) -> Iterator[tuple[str, str]]:
    for kind, first, last in _boxes(file, start, end):
        if kind == b"data" and last - first >= 8:
            file.seek(first + 8)  # after type and locale
            yield from _tag(name, exactly(file, last - first - 8))


# --- WEBM --------------------------------------------------------------------------------------------

_SEGMENT = 0x18538067
_TAGS, _TAG, _SIMPLE_TAG, _TAG_NAME, _TAG_STRING = 0x1254C367, 0x7373, 0x67C8, 0x45A3, 0x4487


def webm(file: BinaryIO) -> Iterator[tuple[str, str]]:
    """Segment / Tags / Tag / SimpleTag with TagName (FFmpeg writes capitals) and TagString (RFC 9559)."""
    end = file.seek(0, os.SEEK_END)
    for kind, start, stop in _elements(file, 0, end):
        if kind != _SEGMENT:
            continue
        for inner, first, last in _elements(file, start, stop):
            if inner == _TAGS:
                yield from _simple_tags(file, first, last)


def _simple_tags(file: BinaryIO, start: int, end: int) -> Iterator[tuple[str, str]]:
    for kind, begin, stop in _elements(file, start, end):
        if kind != _TAG:
            continue
        for inner, first, last in _elements(file, begin, stop):
            if inner != _SIMPLE_TAG:
                continue
            places = {part: (at, until) for part, at, until in _elements(file, first, last)}
            if _TAG_NAME in places and _TAG_STRING in places:
                name = decoded(_content(file, places[_TAG_NAME])).lower()
                if name in _KEYS:
                    yield from _tag(name, _content(file, places[_TAG_STRING]))


def _content(file: BinaryIO, place: tuple[int, int]) -> bytes:
    file.seek(place[0])
    return exactly(file, place[1] - place[0]).rstrip(b"\0")


def _elements(file: BinaryIO, start: int, end: int) -> Iterator[tuple[int, int, int]]:
    """``(id, start, end)`` of the contents of every element in a stretch (RFC 8794).

    One of unknown size goes on to the end; a stream's cluster is such a one, and what follows it is not looked for.
    """
    for _ in range(MOST_PARTS):
        if start >= end:
            return
        file.seek(start)
        header = file.read(12)
        id_length, size_length = _length(header[:1]), 0
        if 0 < id_length <= 4:
            size_length = _length(header[id_length : id_length + 1])
        body = id_length + size_length
        if not size_length or len(header) < body:
            raise Unreadable("is damaged: its metadata is not built as its format says")
        mask = (1 << 7 * size_length) - 1
        size = int.from_bytes(header[id_length:body], "big") & mask
        stop = end if size == mask else start + body + size
        if stop > end:
            raise Unreadable("is damaged or cut off: a part of it is longer than the file")
        yield int.from_bytes(header[:id_length], "big"), start + body, stop
        start = stop


def _length(first: bytes) -> int:
    """How many bytes a number has, by the zeroes that its first byte begins with; 0 for none."""
    return 9 - first[0].bit_length() if first and first[0] else 0
