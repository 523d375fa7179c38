"""The size of an image, read from the first bytes of what is delivered (a file, or bytes made from one)."""

from __future__ import annotations

import struct

from settee.delivery.blob import Blob

Size = tuple[int, int]

PNG = b"\x89PNG\r\n\x1a\n"


def image_size(blob: Blob) -> Size | None:
    """Width and height in pixels of a PNG, JPEG, WEBP, GIF or BMP as it will be shown; None for anything else."""
    head = blob.read_at(0, 32)
    try:
        if head.startswith(PNG):
            width, height = struct.unpack(">II", head[16:24])
        elif head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            width, height = _webp(head)
        elif head[:6] in (b"GIF87a", b"GIF89a"):
            width, height = struct.unpack("<HH", head[6:10])
        elif head[:2] == b"BM":
            width, height = struct.unpack("<ii", head[18:26])
            height = abs(height)  # negative: stored from the top
        elif head[:2] == b"\xff\xd8":
            return _jpeg(blob)
        else:
            return None
    except (struct.error, ValueError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _webp(head: bytes) -> Size:
    """Extended, lossless and lossy files keep their size in three ways (RFC 9649, 2.5 to 2.7)."""
    kind = head[12:16]
    if kind == b"VP8X":
        return int.from_bytes(head[24:27], "little") + 1, int.from_bytes(head[27:30], "little") + 1
    if kind == b"VP8L":
        bits = int.from_bytes(head[21:25], "little")
        return (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    if kind == b"VP8 ":
        width, height = struct.unpack("<HH", head[26:30])
        return width & 0x3FFF, height & 0x3FFF
    raise ValueError(kind)


def _jpeg(blob: Blob) -> Size | None:
    """Hop from segment to segment to the frame header (SOFn), which comes early in any real file."""
    position = 2
    for _ in range(1000):
        marker = blob.read_at(position, 9)
        if len(marker) < 9 or marker[0] != 0xFF:
            return None
        if marker[1] == 0xFF:  # a fill byte
            position += 1
            continue
        if 0xC0 <= marker[1] <= 0xCF and marker[1] not in (0xC4, 0xC8, 0xCC):
            height, width = struct.unpack(">HH", marker[5:9])
            return (width, height) if width and height else None
        position += 2 + int.from_bytes(marker[2:4], "big")
    return None
