"""The workflow that ComfyUI writes into the pictures and films it saves.

Its place in each: PNG, as the text chunks ``prompt`` and ``workflow`` (SaveAnimatedPNG: in ``comf`` chunks of
ComfyUI's own invention); WEBP, in EXIF strings that begin with ``prompt:`` and ``workflow:``; MP4 and WEBM, in the
tags that FFmpeg writes. ``prompt`` is API format, ``workflow`` the editor's.

A file is walked from part to part; the rest is skipped, and at most ``MAX_TEXT`` is held in memory. Files may be
hostile: every size is checked, every loop ends. Pillow cannot do this: it decodes all pixels before it has the ``comf``
chunks, refuses a WEBP whose pixels are cut off, and a compressed text of over a megabyte.
"""

from __future__ import annotations

import json
import os
import re
import struct
import sys
import zlib
from collections.abc import Callable, Iterator
from typing import BinaryIO

#: Bytes of a prompt. Real ones are below a megabyte.
MAX_TEXT = 64 * 1024 * 1024
#: Chunks, boxes or elements that are looked at in one file.
MAX_PARTS = 200_000

#: Bytes that :func:`format_of` must see.
HEAD = 16

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"comf")
_KEYWORDS = ("prompt", "workflow")
_TAGS = (*_KEYWORDS, "comment")
_EXIF_TEXT = re.compile(r"\s*(prompt|workflow)\s*:", re.IGNORECASE)


class Unreadable(Exception):
    """The file cannot be read; the message continues a sentence that begins with its name."""


def format_of(head: bytes) -> str | None:
    """Return the name of a file's format by its first bytes, where it is one that a workflow can be read from."""
    if head.startswith(_PNG):
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return "MP4"
    return "WEBM" if head[:4] == b"\x1aE\xdf\xa3" else None


def texts(file: BinaryIO) -> dict[str, str]:
    """Return the JSON texts in a seekable file: ``prompt``, or else ``workflow``, or neither. Raises Unreadable."""
    end = file.seek(0, os.SEEK_END)
    file.seek(0)
    found: dict[str, str] = {}
    walks = {"PNG": _png, "WEBP": _webp, "MP4": _mp4, "WEBM": _webm}
    walk = walks.get(format_of(file.read(HEAD)) or "")
    if walk is None:
        raise Unreadable("is not a picture or video that a workflow can be read from")
    try:
        for keyword, text in walk(file, end):
            found.setdefault(keyword, text)
            if keyword == "prompt":
                break
    except (struct.error, OverflowError) as error:
        # A size that points beyond anything, or a part too short for what it should hold.
        raise Unreadable("is damaged: its metadata does not have its format's structure") from error
    return found


# --- parts -------------------------------------------------------------------------------------------

#: Where the content of a part begins and ends.
_Place = tuple[int, int]
#: Reads the head of a part, where at most so many bytes are left: its type, the size of its head, of its content (None:
#: all that is left) and of what follows. None at the end.
_Head = Callable[[BinaryIO, int], "tuple[bytes, int, int | None, int] | None"]


def _parts(file: BinaryIO, head: _Head, place: _Place) -> Iterator[tuple[bytes, _Place]]:
    """Yield type and place of every part in a stretch of the file. Raises Unreadable for one that is longer than it."""
    start, end = place
    for _ in range(MAX_PARTS):
        file.seek(start)
        if (found := head(file, end - start)) is None:
            return
        kind, before, size, after = found
        first, last = start + before, end if size is None else start + before + size
        if last > end:
            raise Unreadable("is damaged or cut off: a part of it is longer than the file")
        yield kind, (first, last)
        start = last + after


def _at(file: BinaryIO, head: _Head, place: _Place, *path: bytes) -> Iterator[_Place]:
    """Yield the places of the parts within parts that this path of types leads to."""
    for kind, inner in _parts(file, head, place):
        if kind == path[0]:
            yield from _at(file, head, inner, *path[1:]) if len(path) > 1 else [inner]


def _content(file: BinaryIO, place: _Place) -> bytes:
    """Return the metadata there. Raises Unreadable where bytes are missing, or too many."""
    file.seek(place[0])
    size = place[1] - place[0]
    if size > MAX_TEXT:
        raise Unreadable(f"holds {size / 1e6:,.0f} MB of metadata, too much for a workflow")
    data = file.read(size)
    if len(data) < size:
        raise Unreadable("is cut off in the middle of its metadata")
    return data


def _decoded(data: bytes) -> str:
    """Decode UTF-8, or Latin-1, as PNG's specification has it, where it is not."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


def _tag(keyword: str, data: bytes) -> Iterator[tuple[str, str]]:
    """Yield a tag of one of these names, or the two that a comment may hold."""
    if keyword != "comment":
        yield keyword, _decoded(data)
        return
    try:
        comment = json.loads(data)
    except (ValueError, RecursionError):
        return  # a comment of the user's
    for name in _KEYWORDS:
        if isinstance(comment, dict) and name in comment:
            yield name, comment[name] if isinstance(comment[name], str) else json.dumps(comment[name])


# --- PNG ---------------------------------------------------------------------------------------------


def _chunk(file: BinaryIO, _room: int) -> tuple[bytes, int, int, int] | None:
    """Chunks are length (4), type (4), data, CRC of type and data (4). What is missing at the end is not missed."""
    header = file.read(8)
    size, kind = struct.unpack(">I4s", header) if len(header) == 8 else (0, b"IEND")
    return None if kind == b"IEND" else (kind, 8, size, 4)


def _png(file: BinaryIO, _end: int) -> Iterator[tuple[str, str]]:
    # One of each: a file of nothing but texts that inflate to a thousand times their size would take hours.
    missing = set(_KEYWORDS)
    for kind, (start, end) in _parts(file, _chunk, (len(_PNG), sys.maxsize)):
        if kind not in _PNG_TEXTS:
            continue
        file.seek(start)
        keyword = file.read(min(end - start, 80)).partition(b"\0")[0].decode("latin-1")
        if keyword in missing:
            missing.remove(keyword)
            data = _content(file, (start, end))
            if zlib.crc32(kind + data) != int.from_bytes(_content(file, (end, end + 4)), "big"):
                raise Unreadable(f"is damaged: the checksum of its {keyword} does not match")
            yield keyword, _png_text(kind, data[len(keyword) + 1 :])


def _png_text(kind: bytes, data: bytes) -> str:
    """Return the text after the keyword of a text chunk (PNG specification, 11.3.3)."""
    if kind == b"zTXt":
        return _decoded(_inflated(data[1:]))  # after the compression method, of which there is one
    if kind == b"iTXt":
        compressed, (_language, _, rest) = data[:1], data[2:].partition(b"\0")
        text = rest.partition(b"\0")[2]  # after the translated keyword
        return _decoded(_inflated(text) if compressed == b"\1" else text)
    return _decoded(data)


def _inflated(data: bytes) -> bytes:
    inflater = zlib.decompressobj()
    try:
        text = inflater.decompress(data, MAX_TEXT)
    except zlib.error as error:
        raise Unreadable("is damaged: its metadata does not inflate") from error
    if not inflater.eof:
        raise Unreadable("has compressed metadata that is cut off, or too much of it for a workflow")
    return text


# --- WEBP --------------------------------------------------------------------------------------------


def _riff_chunk(file: BinaryIO, _room: int) -> tuple[bytes, int, int, int] | None:
    """RIFF chunks are type (4), length (4, little-endian), data, padded to even."""
    header = file.read(8)
    if len(header) < 8:
        return None
    kind, size = struct.unpack("<4sI", header)
    return kind, 8, size, size % 2


def _webp(file: BinaryIO, _end: int) -> Iterator[tuple[str, str]]:
    for place in _at(file, _riff_chunk, (12, sys.maxsize), b"EXIF"):
        yield from _exif(_content(file, place))


def _exif(data: bytes) -> Iterator[tuple[str, str]]:
    """Yield the strings of the first directory (TIFF 6.0, section 2) that begin with a keyword."""
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        raise Unreadable("is damaged: its EXIF block is invalid")
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    missing = set(_KEYWORDS)  # the strings may overlap: one of each
    # From the back: ComfyUI counts down from the tag of the prompt, which so comes before the editor's graph.
    for entry in reversed(range(count)):
        _number, kind, length, value = struct.unpack_from(f"{order}HHII", data, at + 2 + 12 * entry)
        # A string of up to four bytes is in the entry itself, and too short for a workflow.
        if kind != 2 or length <= 4:
            continue
        named = _EXIF_TEXT.match(data[value : value + min(length, 32)].decode("latin-1"))
        if named and (keyword := named[1].lower()) in missing:
            missing.remove(keyword)
            yield keyword, _decoded(data[value + named.end() : value + length].rstrip(b"\0"))


# --- MP4 ---------------------------------------------------------------------------------------------


def _box(file: BinaryIO, room: int) -> tuple[bytes, int, int | None, int] | None:
    """Boxes are length (4) and type (4) before their content (ISO 14496-12, 4.2)."""
    if room < 8:
        return None
    size, kind = struct.unpack(">I4s", file.read(8))
    if size == 0:
        return kind, 8, None, 0
    before = 8
    if size == 1:  # too long for four bytes
        (size,), before = struct.unpack(">Q", file.read(8)), 16
    if size < before:
        raise Unreadable("is damaged: a part of it is shorter than its head")
    return kind, before, size - before, 0


def _mp4(file: BinaryIO, end: int) -> Iterator[tuple[str, str]]:
    """moov / udta / meta (QuickTime: moov / meta), with names in ``keys`` and values in ``ilst``."""
    for path in ((b"moov", b"udta", b"meta"), (b"moov", b"meta")):
        for place in _at(file, _box, (0, end), *path):
            yield from _meta(file, place)


def _meta(file: BinaryIO, place: _Place) -> Iterator[tuple[str, str]]:
    start, end = place
    # QuickTime's begins with its parts, MP4's with four bytes of version and flags.
    if _content(file, (start, start + 8))[4:] != b"hdlr":
        start += 4
    names: list[str] = []
    for kind, (first, last) in _parts(file, _box, (start, end)):
        if kind == b"keys":
            # Version and flags, how many there are, and then boxes: their type is a namespace, their content a name.
            names += [_decoded(_content(file, inner)).lower() for _, inner in _parts(file, _box, (first + 8, last))]
        elif kind == b"ilst":
            for item, inner in _parts(file, _box, (first, last)):
                # An item's type is the number of its name, from 1, or a name of iTunes.
                number = int.from_bytes(item, "big")
                name = names[number - 1] if 1 <= number <= len(names) else {b"\xa9cmt": "comment"}.get(item)
                for at, until in _at(file, _box, inner, b"data") if name in _TAGS else ():
                    yield from _tag(str(name), _content(file, (at + 8, max(at + 8, until))))  # after type and locale


# --- WEBM --------------------------------------------------------------------------------------------

_SIMPLE_TAGS = (b"\x18\x53\x80\x67", b"\x12\x54\xc3\x67", b"\x73\x73", b"\x67\xc8")
_TAG_NAME, _TAG_STRING = b"\x45\xa3", b"\x44\x87"


def _element(file: BinaryIO, room: int) -> tuple[bytes, int, int | None, int] | None:
    """Elements are id and size before their content; the first byte of each tells its length (RFC 8794).

    One of unknown size goes on to the end; a stream's cluster has none, and what follows it is not read.
    """
    if room <= 0:
        return None
    header = file.read(12)
    # By the zeroes that it begins with.
    id_length = 9 - header[0].bit_length() if header else 9
    first = header[id_length] if len(header) > id_length else 0
    before = id_length + 9 - first.bit_length()
    if id_length > 4 or not first or len(header) < before:
        raise Unreadable("is damaged: its metadata does not have its format's structure")
    mask = (1 << 7 * (before - id_length)) - 1
    size = int.from_bytes(header[id_length:before], "big") & mask
    return header[:id_length], before, None if size == mask else size, 0


def _webm(file: BinaryIO, end: int) -> Iterator[tuple[str, str]]:
    """Segment / Tags / Tag / SimpleTag with TagName (FFmpeg writes capitals) and TagString (RFC 9559)."""
    for place in _at(file, _element, (0, end), *_SIMPLE_TAGS):
        places = dict(_parts(file, _element, place))
        if _TAG_NAME in places and _TAG_STRING in places:
            name = _decoded(_content(file, places[_TAG_NAME]).rstrip(b"\0")).lower()
            if name in _TAGS:
                yield from _tag(name, _content(file, places[_TAG_STRING]).rstrip(b"\0"))
