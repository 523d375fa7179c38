"""Takes the prompt, the workflow and EXIF out of images without touching a pixel.

What a picture needs to look right stays: colour profiles, transparency, animation, and the orientation, which moves
into an EXIF block of its own.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator

from settee.delivery.blob import PNG, Blob

#: Chunks that say how to show the picture. A list of what may stay: ComfyUI's animated PNGs keep the workflow in a
#: chunk of its own invention (`comf`), and the next one will have another name.
_PNG_KEPT = frozenset(
    b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP cICP mDCV cLLI sBIT bKGD hIST pHYs sPLT acTL fcTL fdAT".split()
)
_WEBP_KEPT = frozenset([b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"])
_WEBP_EXIF, _WEBP_XMP = 0x08, 0x04
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)
#: No picture has more chunks or segments; walking a file made of nothing else would take minutes.
_MAX_PARTS = 200_000


class Unreadable(Exception):
    """The file is not built as its format says."""


def strip(blob: Blob) -> Blob | None:
    """Return the image without its metadata, in memory; None when its format is not one of PNG, JPEG and WEBP.

    Raises Unreadable for a file that is cut off or damaged.
    """
    head = blob.read_at(0, 16)
    parts: Callable[[bytes], Iterable[bytes | memoryview]]
    if head.startswith(PNG):
        parts = _png
    elif head[:3] == b"\xff\xd8\xff":
        parts = _jpeg
    elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
        parts = _webp
    else:
        return None
    return Blob(b"".join(parts(blob.read_at(0, blob.size))))


def _png(data: bytes) -> Iterator[bytes | memoryview]:
    view, position = memoryview(data), 8
    yield view[:8]
    for _ in range(_MAX_PARTS):
        header = data[position : position + 8]
        end, kind = position + int.from_bytes(header[:4], "big") + 12, header[4:]
        if len(header) < 8 or end > len(data):
            raise Unreadable("it ends before its last chunk")
        if kind in _PNG_KEPT:
            yield view[position:end]
        elif kind == b"eXIf" and (turned := _orientation(data[position + 8 : end - 4])):
            body = b"eXIf" + _exif(turned)
            yield struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        if kind == b"IEND":
            return
        position = end
    raise Unreadable("it has too many chunks")


def _jpeg(data: bytes) -> Iterator[bytes | memoryview]:
    view, position = memoryview(data), 2
    yield view[:2]
    for _ in range(_MAX_PARTS):
        header = data[position : position + 20]
        if len(header) < 4 or header[0] != 0xFF:
            raise Unreadable("its segments do not follow each other")
        code, end = header[1], position + int.from_bytes(header[2:4], "big") + 2
        if code == 0xFF:  # a fill byte
            position += 1
            continue
        if code == 0xDA:
            # Pixels from here to the end; what follows the end marker (motion photos, appended archives) goes.
            yield view[position : _jpeg_end(data, position)]
            return
        if end > len(data):
            raise Unreadable("it ends before its pixels")
        if code == 0xE1 and header[4:10] == b"Exif\0\0":
            if turned := _orientation(data[position + 10 : end]):
                body = b"Exif\0\0" + _exif(turned)
                yield b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body
        # APP0 is JFIF's density, APP2 the colour profile, APP14 Adobe's colour transform; other APPn and COM talk.
        elif not (0xE0 <= code <= 0xEF or code == 0xFE) or (
            (code == 0xE0 and header[4:9] == b"JFIF\0")
            or (code == 0xE2 and header[4:16] == b"ICC_PROFILE\0")
            or (code == 0xEE and header[4:9] == b"Adobe")
        ):
            yield view[position:end]
        position = end
    raise Unreadable("it has too many segments")


def _jpeg_end(data: bytes, position: int) -> int:
    """Return where the picture ends: after the end marker that follows its last scan.

    Between scans of a progressive file lie further segments; none of them carries text in practice, but a comment
    may, so a file that has one is refused rather than half cleaned.
    """
    for _ in range(_MAX_PARTS):
        header = data[position : position + 4]
        if len(header) < 4:
            break
        code = header[1]
        if 0xE0 <= code <= 0xEF or code == 0xFE:
            raise Unreadable("it has comments between its scans")
        position += 2 + int.from_bytes(header[2:4], "big")
        if code == 0xDA:
            # The first marker in entropy-coded data that is neither a stuffed byte nor a restart.
            found = _JPEG_MARKER.search(data, position)
            if found is None:
                break
            position = found.start()
            if found[0] == b"\xff\xd9":
                return position + 2
    raise Unreadable("it ends in the middle of its pixels")


def _webp(data: bytes) -> list[bytes | memoryview]:
    """Strip a WEBP: chunks are ``name, size, body``, padded to even; VP8X flags must not promise what is gone."""
    view, end = memoryview(data), min(len(data), 8 + int.from_bytes(data[4:8], "little"))
    kept: list[bytes | memoryview] = []
    orientation, flags_at, position = 0, -1, 12
    while position + 8 <= end:
        if len(kept) > _MAX_PARTS:
            raise Unreadable("it has too many chunks")
        kind, size = data[position : position + 4], int.from_bytes(data[position + 4 : position + 8], "little")
        if position + 8 + size > len(data):
            raise Unreadable("it ends before its last chunk")
        following = position + 8 + size + size % 2
        if kind == b"VP8X" and size >= 10:
            flags_at = len(kept)
        if kind == b"EXIF":
            orientation = _orientation(data[position + 8 : position + 8 + size])
        elif kind in _WEBP_KEPT:
            kept.append(view[position:following])
        position = following
    if flags_at >= 0:
        extended = bytearray(kept[flags_at])
        extended[8] &= ~(_WEBP_EXIF | _WEBP_XMP)
        if orientation:
            extended[8] |= _WEBP_EXIF
            body = _exif(orientation)
            kept.append(b"EXIF" + struct.pack("<I", len(body)) + body)
        kept[flags_at] = bytes(extended)
    return [b"RIFF" + struct.pack("<I", 4 + sum(map(len, kept))) + b"WEBP", *kept]


def _orientation(exif: bytes) -> int:
    """Return the orientation in an EXIF block (TIFF 6.0: tag 0x0112 of the first directory), 0 where it is upright."""
    exif = exif.removeprefix(b"Exif\0\0")
    order = {b"II*\0": "<", b"MM\0*": ">"}.get(exif[:4])
    if order is None:
        return 0
    try:
        (at,) = struct.unpack_from(f"{order}I", exif, 4)
        (count,) = struct.unpack_from(f"{order}H", exif, at)
        for entry in range(count):
            tag, kind, _, value = struct.unpack_from(f"{order}HHIH", exif, at + 2 + 12 * entry)
            if tag == 0x0112 and kind == 3 and 2 <= value <= 8:
                return int(value)
    except struct.error:
        return 0
    return 0


def _exif(orientation: int) -> bytes:
    """Return an EXIF block with nothing but the picture's orientation. 26 bytes, so it needs no padding."""
    return b"MM\0*" + struct.pack(">IHHHIHHI", 8, 1, 0x0112, 3, 1, orientation, 0, 0)
