"""Takes the prompt, the workflow and EXIF out of images without touching a pixel.

The result is a stream of the file's parts that stay, so it costs no copy. What a picture needs to look right stays:
colour profiles, transparency, animation, and the orientation, which moves into an EXIF block of its own.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator

from settee.comfyui.media import HEAD, MAX_PARTS, Unreadable, format_of, png_chunks, riff_chunks
from settee.delivery.blob import Blob, Span, Stream

#: Chunks that say how to show the picture. A list of what may stay: ComfyUI's animated PNGs keep the workflow in a
#: chunk of its own invention (`comf`), and the next one will have another name.
_PNG_KEPT = frozenset(
    b"IHDR PLTE IDAT IEND tRNS gAMA cHRM sRGB iCCP cICP mDCV cLLI sBIT bKGD hIST pHYs sPLT acTL fcTL fdAT".split()
)
_WEBP_KEPT = frozenset([b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ANIM", b"ANMF", b"ICCP"])
_WEBP_EXIF, _WEBP_XMP = 0x08, 0x04
#: How application segments begin that a picture needs: JFIF's density, the colour profile, Adobe's colour transform.
_JPEG_KEPT = {0xE0: b"JFIF\0", 0xE2: b"ICC_PROFILE\0", 0xEE: b"Adobe"}
_JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]", re.DOTALL)


def strip(blob: Blob) -> Stream | None:
    """Return the image without its metadata, or None when its format is not one of PNG, JPEG and WEBP.

    Takes the blob over when it returns a stream. Raises Unreadable for a file that is cut off or damaged.
    """
    walk = {"PNG": _png, "JPEG": _jpeg, "WEBP": _webp}.get(format_of(blob.read_at(0, HEAD)) or "")
    if walk is None:
        return None
    parts = walk(blob)

    def read() -> Iterator[bytes | memoryview]:
        for part in parts:
            yield from blob.chunks(part) if isinstance(part, Span) else [part]

    return Stream(read, _length(parts), blob)


def _length(parts: list[bytes | Span]) -> int:
    return sum(part.length if isinstance(part, Span) else len(part) for part in parts)


def _png(blob: Blob) -> list[bytes | Span]:
    kept: list[bytes | Span] = [Span(0, 8)]
    for part in png_chunks(blob.read_at, blob.size):
        if part.kind in _PNG_KEPT:
            kept.append(Span(part.start, part.end - part.start))
        elif part.kind == b"eXIf" and (turned := _orientation(blob.read_at(part.first, part.last - part.first))):
            body = b"eXIf" + _exif(turned)
            kept.append(struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body)))
        if part.kind == b"IEND":
            return kept
    raise Unreadable("ends before its last chunk")


def _jpeg(blob: Blob) -> list[bytes | Span]:
    parts: list[bytes | Span] = [Span(0, 2)]
    position = 2
    for _ in range(MAX_PARTS):
        header = blob.read_at(position, 20)
        if len(header) < 4 or header[0] != 0xFF:
            raise Unreadable("has segments that do not follow each other")
        code, length = header[1], int.from_bytes(header[2:4], "big") + 2
        if code == 0xFF:  # a fill byte
            position += 1
            continue
        if code == 0xDA:
            # Pixels from here to the end; what follows the end marker (motion photos, appended archives) goes.
            parts.append(Span(position, _jpeg_end(blob, position) - position))
            return parts
        if position + length > blob.size:
            raise Unreadable("ends before its pixels")
        if code == 0xE1 and header[4:10] == b"Exif\0\0":
            turned = _orientation(blob.read_at(position + 10, length - 10))
            if turned:
                body = b"Exif\0\0" + _exif(turned)
                parts.append(b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body)
        # Any other APPn, and COM, may hold text.
        elif not (0xE0 <= code <= 0xEF or code == 0xFE) or (
            code in _JPEG_KEPT and header.startswith(_JPEG_KEPT[code], 4)
        ):
            parts.append(Span(position, length))
        position += length
    raise Unreadable("has too many segments")


def _jpeg_end(blob: Blob, position: int) -> int:
    """Return where the picture ends: after the end marker that follows its last scan.

    Between scans of a progressive file lie further segments; none of them carries text in practice, but a comment
    may, so a file that has one is refused rather than half cleaned.
    """
    for _ in range(MAX_PARTS):
        header = blob.read_at(position, 4)
        if len(header) < 4:
            raise Unreadable("ends in the middle of its pixels")
        code = header[1]
        if 0xE0 <= code <= 0xEF or code == 0xFE:
            raise Unreadable("has comments between its scans")
        position += 2 + int.from_bytes(header[2:4], "big")
        if code == 0xDA:
            position = _jpeg_marker(blob, position)
            if blob.read_at(position, 2) == b"\xff\xd9":
                return position + 2
    raise Unreadable("has too many segments")


def _jpeg_marker(blob: Blob, position: int) -> int:
    """Find the first marker in entropy-coded data that is neither a stuffed byte nor a restart."""
    step = 1 << 18
    while position < blob.size - 1:
        data = blob.read_at(position, step)
        found = _JPEG_MARKER.search(data)
        if found:
            return position + found.start()
        position += len(data) - 1  # a marker may lie across two reads
    raise Unreadable("ends in the middle of its pixels")


def _webp(blob: Blob) -> list[bytes | Span]:
    """Strip a WEBP: its VP8X flags must not promise what is gone."""
    end = min(blob.size, 8 + int.from_bytes(blob.read_at(4, 4), "little"))
    kept: list[bytes | Span] = []
    orientation, flags_at, flags = 0, 0, bytearray()
    for part in riff_chunks(blob.read_at, end):
        if part.kind == b"VP8X" and part.last - part.first >= 10:
            flags_at, flags = len(kept), bytearray(blob.read_at(part.start, part.end - part.start))
            kept.append(Span(part.start, 0))
        elif part.kind == b"EXIF":
            orientation = _orientation(blob.read_at(part.first, part.last - part.first))
        elif part.kind in _WEBP_KEPT:
            kept.append(Span(part.start, min(part.end, blob.size) - part.start))
    if flags:
        flags[8] &= ~(_WEBP_EXIF | _WEBP_XMP)
        if orientation:
            flags[8] |= _WEBP_EXIF
            body = _exif(orientation)
            kept.append(b"EXIF" + struct.pack("<I", len(body)) + body)
        kept[flags_at] = bytes(flags)
    return [b"RIFF" + struct.pack("<I", 4 + _length(kept)) + b"WEBP", *kept]


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
