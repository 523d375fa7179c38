"""The workflow that ComfyUI writes into the pictures and films it saves.

Its place in each: PNG, as the text chunks ``prompt`` and ``workflow`` (SaveAnimatedPNG: in ``comf`` chunks of
ComfyUI's own invention); WEBP, in EXIF strings that begin with ``prompt:`` and ``workflow:``; MP4 and WEBM, in the
tags that FFmpeg writes. ``prompt`` is API format, ``workflow`` the editor's.

A file is walked from part to part; the rest is skipped, and at most ``MAX_TEXT`` is held in memory. Pillow cannot do
this: it decodes all pixels before it has the ``comf`` chunks, refuses a WEBP whose pixels are cut off, and a compressed
text of over a megabyte.
"""

from __future__ import annotations

import json
import os
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

from settee.comfyui.media import HEAD, Head, Part, ReadAt, Unreadable, parts, png_chunks, riff_chunks
from settee.comfyui.media import format_of as picture_format

#: Bytes of a prompt. Real ones are below a megabyte.
MAX_TEXT = 64 * 1024 * 1024
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"comf")
_KEYWORDS = ("prompt", "workflow")
_TAGS = (*_KEYWORDS, "comment")
_EXIF_TEXT = re.compile(r"\s*(prompt|workflow)\s*:", re.IGNORECASE)


def format_of(head: bytes) -> str | None:
    """Return the name of a file's format by its first bytes, where it is one that a workflow can be read from."""
    if head[4:8] == b"ftyp":
        return "MP4"
    known = "WEBM" if head[:4] == b"\x1aE\xdf\xa3" else picture_format(head)
    return known if known in _WALKS else None


def texts(file: BinaryIO) -> dict[str, str]:
    """Return the JSON texts in a seekable file: ``prompt``, or else ``workflow``, or neither. Raises Unreadable."""
    end = file.seek(0, os.SEEK_END)

    def read_at(at: int, size: int) -> bytes:
        file.seek(at)
        return file.read(size)

    found: dict[str, str] = {}
    known = format_of(read_at(0, HEAD))
    if known is None:
        raise Unreadable("is not a picture or video that a workflow can be read from")
    try:
        for keyword, text in _WALKS[known](read_at, end):
            found.setdefault(keyword, text)
            if keyword == "prompt":
                break
    except (struct.error, OverflowError) as error:
        # A size that points beyond anything, or a part too short for what it should hold.
        raise Unreadable("is damaged: its metadata does not have its format's structure") from error
    return found


# --- parts -------------------------------------------------------------------------------------------


def _within(read_at: ReadAt, head: Head, start: int, end: int, *path: bytes) -> Iterator[Part]:
    """Yield the parts within parts that this path of types leads to."""
    for part in parts(read_at, head, start, end):
        if part.kind == path[0]:
            yield from _within(read_at, head, part.first, part.last, *path[1:]) if len(path) > 1 else [part]


def _content(read_at: ReadAt, start: int, end: int) -> bytes:
    """Return the metadata there. Raises Unreadable where bytes are missing, or too many."""
    if end - start > MAX_TEXT:
        raise Unreadable(f"holds {(end - start) / 1e6:,.0f} MB of metadata, too much for a workflow")
    data = read_at(start, end - start)
    if len(data) < end - start:
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


def _png(read_at: ReadAt, _end: int) -> Iterator[tuple[str, str]]:
    # One of each: a file of nothing but texts that inflate to a thousand times their size would take hours.
    missing = set(_KEYWORDS)
    for kind, _, start, end, _ in png_chunks(read_at):
        if kind not in _PNG_TEXTS:
            continue
        keyword = read_at(start, min(end - start, 80)).partition(b"\0")[0].decode("latin-1")
        if keyword in missing:
            missing.remove(keyword)
            data = _content(read_at, start, end)
            if zlib.crc32(kind + data) != int.from_bytes(_content(read_at, end, end + 4), "big"):
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


def _webp(read_at: ReadAt, _end: int) -> Iterator[tuple[str, str]]:
    for part in riff_chunks(read_at):
        if part.kind == b"EXIF":
            yield from _exif(_content(read_at, part.first, part.last))


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


def _box(head: bytes) -> tuple[bytes, int, int | None, int] | None:
    """Boxes are length (4) and type (4) before their content (ISO 14496-12, 4.2)."""
    if len(head) < 8:
        return None
    size, kind = struct.unpack_from(">I4s", head)
    if size == 0:
        return kind, 8, None, 0
    before = 8
    if size == 1:  # too long for four bytes
        (size,), before = struct.unpack_from(">Q", head, 8), 16
    if size < before:
        raise Unreadable("is damaged: a part of it is shorter than its head")
    return kind, before, size - before, 0


def _mp4(read_at: ReadAt, end: int) -> Iterator[tuple[str, str]]:
    """moov / udta / meta (QuickTime: moov / meta), with names in ``keys`` and values in ``ilst``."""
    for path in ((b"moov", b"udta", b"meta"), (b"moov", b"meta")):
        for part in _within(read_at, _box, 0, end, *path):
            # QuickTime's begins with its parts, MP4's with four bytes of version and flags.
            is_quicktime = _content(read_at, part.first, part.first + 8)[4:] == b"hdlr"
            yield from _meta(read_at, part.first if is_quicktime else part.first + 4, part.last)


def _meta(read_at: ReadAt, start: int, end: int) -> Iterator[tuple[str, str]]:
    names: list[str] = []
    for kind, _, first, last, _ in parts(read_at, _box, start, end):
        if kind == b"keys":
            # Version and flags, how many there are, and then boxes: their type is a namespace, their content a name.
            named = parts(read_at, _box, first + 8, last)
            names += [_decoded(_content(read_at, one.first, one.last)).lower() for one in named]
        elif kind == b"ilst":
            for item in parts(read_at, _box, first, last):
                # An item's type is the number of its name, from 1, or a name of iTunes.
                number = int.from_bytes(item.kind, "big")
                name = names[number - 1] if 1 <= number <= len(names) else {b"\xa9cmt": "comment"}.get(item.kind)
                for data in _within(read_at, _box, item.first, item.last, b"data") if name in _TAGS else ():
                    at = data.first + 8  # after type and locale
                    yield from _tag(str(name), _content(read_at, at, max(at, data.last)))


# --- WEBM --------------------------------------------------------------------------------------------

_SIMPLE_TAGS = (b"\x18\x53\x80\x67", b"\x12\x54\xc3\x67", b"\x73\x73", b"\x67\xc8")
_TAG_NAME, _TAG_STRING = b"\x45\xa3", b"\x44\x87"


def _element(head: bytes) -> tuple[bytes, int, int | None, int] | None:
    """Elements are id and size before their content; the first byte of each tells its length (RFC 8794).

    One of unknown size goes on to the end; a stream's cluster has none, and what follows it is not read.
    """
    if not head:
        return None
    # By the zeroes that it begins with.
    id_length = 9 - head[0].bit_length()
    first = head[id_length] if len(head) > id_length else 0
    before = id_length + 9 - first.bit_length()
    if id_length > 4 or not first or len(head) < before:
        raise Unreadable("is damaged: its metadata does not have its format's structure")
    mask = (1 << 7 * (before - id_length)) - 1
    size = int.from_bytes(head[id_length:before], "big") & mask
    return head[:id_length], before, None if size == mask else size, 0


def _webm(read_at: ReadAt, end: int) -> Iterator[tuple[str, str]]:
    """Segment / Tags / Tag / SimpleTag with TagName (FFmpeg writes capitals) and TagString (RFC 9559)."""
    for tag in _within(read_at, _element, 0, end, *_SIMPLE_TAGS):
        found = {part.kind: part for part in parts(read_at, _element, tag.first, tag.last)}
        if (name := found.get(_TAG_NAME)) and (text := found.get(_TAG_STRING)):
            keyword = _decoded(_content(read_at, name.first, name.last).rstrip(b"\0")).lower()
            if keyword in _TAGS:
                yield from _tag(keyword, _content(read_at, text.first, text.last).rstrip(b"\0"))


_WALKS = {"PNG": _png, "WEBP": _webp, "MP4": _mp4, "WEBM": _webm}
