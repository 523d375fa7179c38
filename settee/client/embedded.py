"""The workflow that ComfyUI writes into the pictures and films it saves.

Where it lies in each: PNG, as the text chunks ``prompt`` and ``workflow`` (SaveAnimatedPNG: in ``comf`` chunks of
ComfyUI's own invention); WEBP, in EXIF strings that begin with ``prompt:`` and ``workflow:``; MP4 and WEBM, in the
tags that FFmpeg writes (:mod:`settee.client.embedded_films`). ``prompt`` is API format, ``workflow`` the editor's.

A file is walked from part to part; what lies between is skipped, and no more than ``MAX_TEXT`` of it is ever held.
Files may be hostile: every size is checked, every loop ends.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from collections.abc import Iterator
from typing import BinaryIO

#: Bytes of a prompt. Real ones are below a megabyte.
MAX_TEXT = 64 * 1024 * 1024
#: Chunks, boxes or elements that are looked at in one file.
MOST_PARTS = 200_000

#: Bytes that :func:`format_of` must see.
HEAD = 16

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_TEXTS = (b"tEXt", b"zTXt", b"iTXt", b"comf")
_KEYWORDS = ("prompt", "workflow")
_EXIF_TEXT = re.compile(r"\s*(prompt|workflow)\s*:", re.IGNORECASE)


class Unreadable(Exception):
    """What is wrong with a file, to follow its name."""


def format_of(head: bytes) -> str | None:
    """The name of a file's format by its first bytes, where it is one that a workflow can be read from."""
    if head.startswith(_PNG):
        return "PNG"
    if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        return "WEBP"
    if head[4:8] == b"ftyp":
        return "MP4"
    return "WEBM" if head[:4] == b"\x1aE\xdf\xa3" else None


def texts(file: BinaryIO) -> dict[str, str]:
    """The JSON texts in a seekable file: ``prompt``, or else ``workflow``, or neither. Raises Unreadable."""
    from settee.client import embedded_films

    file.seek(0)
    found: dict[str, str] = {}
    walks = {"PNG": _png, "WEBP": _webp, "MP4": embedded_films.mp4, "WEBM": embedded_films.webm}
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
        raise Unreadable("is damaged: its metadata is not built as its format says") from error
    return found


def exactly(file: BinaryIO, size: int) -> bytes:
    """The next ``size`` bytes of metadata. Raises Unreadable where they are missing, or too many."""
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
    for _ in range(MOST_PARTS):
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
                raise Unreadable(f"is damaged: the checksum of its {keyword} does not fit")
            yield keyword, _png_text(kind, data[len(keyword) + 1 :])
        file.seek(start + size + 4)


def _png_text(kind: bytes, data: bytes) -> str:
    """What follows the keyword of a text chunk (PNG specification, 11.3.3)."""
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
    for _ in range(MOST_PARTS):
        header = file.read(8)
        if len(header) < 8:
            return
        kind, size = struct.unpack("<4sI", header)
        following = file.tell() + size + size % 2
        if kind == b"EXIF":
            yield from _exif(exactly(file, size))
        file.seek(following)


def _exif(data: bytes) -> Iterator[tuple[str, str]]:
    """The strings of the first directory (TIFF 6.0, section 2) that say what they are."""
    data = data.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(data[:4])
    if order is None:
        raise Unreadable("is damaged: its EXIF block is none")
    (at,) = struct.unpack_from(f"{order}I", data, 4)
    (count,) = struct.unpack_from(f"{order}H", data, at)
    missing = set(_KEYWORDS)  # the strings may overlap: one of each
    # From the back: ComfyUI counts down from the tag of the prompt, which so comes before the editor's graph.
    for entry in reversed(range(count)):
        _tag, kind, length, value = struct.unpack_from(f"{order}HHII", data, at + 2 + 12 * entry)
        # A string of up to four bytes lies in the entry itself, and is none of ours.
        if kind != 2 or length <= 4:
            continue
        named = _EXIF_TEXT.match(data[value : value + min(length, 32)].decode("latin-1"))
        if named and (keyword := named[1].lower()) in missing:
            missing.remove(keyword)
            yield keyword, decoded(data[value + named.end() : value + length].rstrip(b"\0"))
