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
import zlib
from collections.abc import Iterator
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
    file.seek(0)
    found: dict[str, str] = {}
    walks = {"PNG": _png, "WEBP": _webp, "MP4": _mp4, "WEBM": _webm}
    walk = walks.get(format_of(file.read(HEAD)) or "")
    if walk is None:
        raise Unreadable("is not a picture or film that a workflow can be read from")
    try:
        for keyword, text in walk(file):
            found.setdefault(keyword, text)
            if keyword == "prompt":
                break
    except (struct.error, OverflowError) as error:
        # A size that points beyond anything, or a part too short for what it should hold.
        raise Unreadable("is damaged: its metadata does not have its format's structure") from error
    return found


def exactly(file: BinaryIO, size: int) -> bytes:
    """Return the next ``size`` bytes of metadata. Raises Unreadable where they are missing, or too many."""
    if size > MAX_TEXT:
        raise Unreadable(f"holds {size / 1e6:,.0f} MB of metadata, too much for a workflow")
    data = file.read(size)
    if len(data) < size:
        raise Unreadable("is cut off in the middle of its metadata")
    return data


def decoded(data: bytes) -> str:
    """Text of a file: UTF-8, or Latin-1, as PNG's specification has it, where it is not."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("latin-1")


# --- PNG ---------------------------------------------------------------------------------------------


def _png(file: BinaryIO) -> Iterator[tuple[str, str]]:
    """Chunks are length (4), type (4), data, CRC of type and data (4). What is missing at the end is not missed."""
    file.seek(len(_PNG))
    # One of each: a file of nothing but texts that inflate to a thousand times their size would take hours.
    missing = set(_KEYWORDS)
    for _ in range(MAX_PARTS):
        header = file.read(8)
        if len(header) < 8:
            return
        size, kind = struct.unpack(">I4s", header)
        if kind == b"IEND":
            return
        if kind not in _PNG_TEXTS:
            file.seek(size + 4, os.SEEK_CUR)
            continue
        start = file.tell()
        keyword = file.read(min(size, 80)).partition(b"\0")[0].decode("latin-1")
        if keyword in missing:
            missing.remove(keyword)
            file.seek(start)
            data = exactly(file, size)
            if zlib.crc32(kind + data) != int.from_bytes(exactly(file, 4), "big"):
                raise Unreadable(f"is damaged: the checksum of its {keyword} does not match")
            yield keyword, _png_text(kind, data[len(keyword) + 1 :])
        file.seek(start + size + 4)


def _png_text(kind: bytes, data: bytes) -> str:
    """Return the text after the keyword of a text chunk (PNG specification, 11.3.3)."""
    if kind == b"zTXt":
        return decoded(_inflated(data[1:]))  # after the compression method, of which there is one
    if kind == b"iTXt":
        compressed, (_language, _, rest) = data[:1], data[2:].partition(b"\0")
        text = rest.partition(b"\0")[2]  # after the translated keyword
        return decoded(_inflated(text) if compressed == b"\1" else text)
    return decoded(data)


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


def _webp(file: BinaryIO) -> Iterator[tuple[str, str]]:
    """RIFF chunks are type (4), length (4, little-endian), data, padded to even."""
    file.seek(12)
    for _ in range(MAX_PARTS):
        header = file.read(8)
        if len(header) < 8:
            return
        kind, size = struct.unpack("<4sI", header)
        following = file.tell() + size + size % 2
        if kind == b"EXIF":
            yield from _exif(exactly(file, size))
        file.seek(following)


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
        _tag, kind, length, value = struct.unpack_from(f"{order}HHII", data, at + 2 + 12 * entry)
        # A string of up to four bytes is in the entry itself, and too short for a workflow.
        if kind != 2 or length <= 4:
            continue
        named = _EXIF_TEXT.match(data[value : value + min(length, 32)].decode("latin-1"))
        if named and (keyword := named[1].lower()) in missing:
            missing.remove(keyword)
            yield keyword, decoded(data[value + named.end() : value + length].rstrip(b"\0"))


_KEYS = ("prompt", "workflow", "comment")


def _tag(keyword: str, data: bytes) -> Iterator[tuple[str, str]]:
    """Yield a tag of one of these names, or the two that a comment may hold."""
    if keyword != "comment":
        yield keyword, decoded(data)
        return
    try:
        comment = json.loads(data)
    except (ValueError, RecursionError):
        return  # a comment of the user's
    if isinstance(comment, dict):
        for name in ("prompt", "workflow"):
            if name in comment:
                yield name, comment[name] if isinstance(comment[name], str) else json.dumps(comment[name])


# --- MP4 ---------------------------------------------------------------------------------------------


def _mp4(file: BinaryIO) -> Iterator[tuple[str, str]]:
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
    """Yield ``(type, start, end)`` of the contents of every box in a stretch (ISO 14496-12, 4.2)."""
    for _ in range(MAX_PARTS):
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
    """Return an item's name: its type is the number of the name, from 1, or a name of iTunes."""
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


def _webm(file: BinaryIO) -> Iterator[tuple[str, str]]:
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
    """Yield ``(id, start, end)`` of the contents of every element in a stretch (RFC 8794).

    One of unknown size goes on to the end; a stream's cluster has none, and what follows it is not read.
    """
    for _ in range(MAX_PARTS):
        if start >= end:
            return
        file.seek(start)
        header = file.read(12)
        id_length, size_length = _length(header[:1]), 0
        if 0 < id_length <= 4:
            size_length = _length(header[id_length : id_length + 1])
        body = id_length + size_length
        if not size_length or len(header) < body:
            raise Unreadable("is damaged: its metadata does not have its format's structure")
        mask = (1 << 7 * size_length) - 1
        size = int.from_bytes(header[id_length:body], "big") & mask
        stop = end if size == mask else start + body + size
        if stop > end:
            raise Unreadable("is damaged or cut off: a part of it is longer than the file")
        yield int.from_bytes(header[:id_length], "big"), start + body, stop
        start = stop


def _length(first: bytes) -> int:
    """Return a number's length in bytes, by the zeroes that its first byte begins with; 0 for an invalid one."""
    return 9 - first[0].bit_length() if first and first[0] else 0
