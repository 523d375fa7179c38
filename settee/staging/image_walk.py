"""Walks through image files, byte by byte: is the file as long as it says, and how large is the picture?

Decoders are lenient where they must not be here: Pillow decodes a JPEG that ends at its last pixel, a GIF without its
trailer, a TIFF without its last directory's end, and a JPEG 2000 file without any picture. Each walk below goes by its
format's specification to the very end and raises :class:`Broken` where that is missing. What lies in between is
decoded by Pillow afterwards, except for PNGs: their walk decodes too, in a fraction of Pillow's time.
"""

from __future__ import annotations

import functools
import importlib
import mmap
import re
import struct
import zlib
from collections.abc import Iterator
from typing import Any

#: Width, height and frames, in pixels.
Extent = tuple[int, int, int]

PNG = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
#: Adam7: x offset, y offset, x step, y step of each pass (PNG specification, 8.2).
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
#: Compressed bytes inflated at a time: at deflate's best ratio 16 MiB come out.
_INFLATE_STEP = 16 * 1024

#: What ends a stretch of a JPEG's entropy-coded data: a marker that is no stuffed 0xff, restart or fill byte.
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]", re.DOTALL)
#: Chunks, segments or blocks of one file. Real ones have thousands at most; a crafted one of 2 GiB has enough of them
#: to keep Python busy for minutes.
_MOST_PARTS = 1_000_000
_MOST_FRAMES = 10_000
#: Scans of one JPEG: encoders make about ten, and each one costs a decoder a pass over all pixels.
_JPEG_SCANS = 200
#: Scans that the largest image permitted may have; smaller ones more, for the same work.
_JPEG_USUAL_SCANS = 20


class Broken(Exception):
    """What is wrong with an image file, to follow "this PNG"."""


class TooManyPixels(Exception):
    """How many there are, to follow "this PNG has"."""


def within(max_pixels: int, extent: Extent) -> None:
    """Raise TooManyPixels when width × height × frames is over ``max_pixels``, Broken for frames beyond reason."""
    width, height, frames = extent
    if width * height * frames > max_pixels:
        raise TooManyPixels(f"{width} × {height}" + (f" × {frames}" if frames > 1 else ""))
    if frames > _MOST_FRAMES:
        raise Broken(f"has {frames} frames; more than {_MOST_FRAMES} are not decoded")


# --- PNG ---------------------------------------------------------------------------------------------


def walk_png(data: mmap.mmap, max_pixels: int) -> Extent:
    """Compare all checksums and inflate all pixels, keeping none; of an animated PNG only the first frame's."""
    pixels: _PngPixels | None = None
    width = height = 0
    frames = 1
    for kind, body in _png_chunks(data):
        if pixels is None:
            if kind != b"IHDR" or len(body) != 13:
                raise Broken("does not start with its header (IHDR)")
            width, height, depth, colour, method, filters, interlace = struct.unpack(">IIBBBBB", body)
            if not (width and height) or depth not in _DEPTHS.get(colour, ()) or method or filters or interlace > 1:
                raise Broken("has a header that no PNG may have")
            within(max_pixels, (width, height, 1))
            pixels = _PngPixels(width, height, depth * _CHANNELS[colour], interlace == 1)
        elif kind == b"acTL" and len(body) == 8:
            frames = max(1, int.from_bytes(body[:4], "big"))
            within(max_pixels, (width, height, frames))
        elif kind == b"IDAT":
            pixels.inflate(body)
    if pixels is None or pixels.passes:
        raise Broken("is truncated: some of its pixels are missing")
    return width, height, frames


def _png_chunks(data: mmap.mmap) -> Iterator[tuple[bytes, memoryview]]:
    """``(type, body)`` of each chunk up to IEND, its checksum compared."""
    crc32 = _fast_zlib().crc32
    with memoryview(data) as view:
        position = len(PNG)
        for _ in range(_MOST_PARTS):
            header = data[position : position + 8]
            end = position + 12 + int.from_bytes(header[:4], "big")
            if len(header) < 8 or end > len(data):
                raise Broken("is truncated: it ends before its last chunk (IEND)")
            kind = header[4:]
            with view[position + 4 : end - 4] as summed, summed[4:] as body:
                if crc32(summed) != int.from_bytes(data[end - 4 : end], "big"):
                    raise Broken(f"is damaged: the checksum of its chunk {kind!r} does not fit")
                yield kind, body
            if kind == b"IEND":
                return
            position = end
    raise Broken("has too many chunks")


class _PngPixels:
    """Counts a PNG's inflated pixels off, row by row."""

    def __init__(self, width: int, height: int, bits: int, interlaced: bool) -> None:
        #: ``[bytes still to come, bytes of a row, bytes until the next row starts]`` of each pass not yet complete.
        self.passes: list[list[int]] = []
        for x, y, dx, dy in _ADAM7 if interlaced else ((0, 0, 1, 1),):
            columns, rows = _ceil(width - x, dx), _ceil(height - y, dy)
            if columns > 0 and rows > 0:
                stride = 1 + _ceil(columns * bits, 8)
                self.passes.append([rows * stride, stride, 0])
        self._zlib = _fast_zlib()
        self._inflater = self._zlib.decompressobj()

    def inflate(self, body: memoryview) -> None:
        for start in range(0, len(body), _INFLATE_STEP):
            if not self.passes:
                return  # as decoders do: what follows the last row is ignored
            try:
                rows = self._inflater.decompress(body[start : start + _INFLATE_STEP])
            except (zlib.error, self._zlib.error) as error:
                raise Broken("is damaged: its pixels do not inflate") from error
            self._count(rows)

    def _count(self, rows: bytes) -> None:
        position = 0
        while position < len(rows) and self.passes:
            left, stride, skip = self.passes[0]
            count = min(left, len(rows) - position)
            # Every row starts with the number of its filter. At an unknown one a decoder stops.
            if max(rows[position + skip : position + count : stride], default=0) > 4:
                raise Broken("is damaged: it has a row with an unknown filter")
            position += count
            if count == left:
                del self.passes[0]
            else:
                self.passes[0] = [left - count, stride, (skip - count) % stride]


def _ceil(value: int, step: int) -> int:
    return -(-value // step)


@functools.cache
def _fast_zlib() -> Any:
    """ISA-L's zlib where it is installed (1024² photo: 6 ms to Python's own 19 ms)."""
    try:
        return importlib.import_module("isal.isal_zlib")
    except ImportError:
        return zlib


# --- JPEG --------------------------------------------------------------------------------------------


def walk_jpeg(data: mmap.mmap, max_pixels: int) -> Extent:
    """Follow the segments (ITU T.81, annex B) to the end of image."""
    position = 2
    extent: Extent | None = None
    scans = 0
    for _ in range(_MOST_PARTS):
        code, position = _jpeg_marker(data, position)
        if code == 0xD9:
            if extent is None:
                raise Broken("has no picture in it")
            return extent
        if code == 0x01 or 0xD0 <= code <= 0xD8:
            continue  # these stand alone
        length = int.from_bytes(data[position : position + 2], "big")
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC) and len(data) >= position + 7:
            height, width = struct.unpack(">HH", data[position + 3 : position + 7])
            extent = (width, height, 1)
            within(max_pixels, extent)
        position += max(length, 2)
        if code == 0xDA:
            scans += 1
            found = _JPEG_MARKER.search(data, position)
            if found is None:
                raise Broken("is truncated: it ends in the middle of its pixels")
            if scans > _JPEG_SCANS:
                raise Broken(f"has more than {_JPEG_SCANS} scans")
            if extent is not None and extent[0] * extent[1] * scans > _JPEG_USUAL_SCANS * max_pixels:
                raise Broken(f"has {scans} scans, too many for {extent[0]} × {extent[1]} pixels")
            position = found.start()
    raise Broken("has too many segments")


def _jpeg_marker(data: mmap.mmap, position: int) -> tuple[int, int]:
    """The marker's code at ``position``, any number of fill bytes before it, and where it ends."""
    start = position
    while data[position : position + 1] == b"\xff":
        position += 1
    if position >= len(data):
        raise Broken("is truncated: it ends before its end marker (EOI)")
    if position == start:
        raise Broken("is damaged: something else stands where a segment must start")
    return data[position], position + 1


# --- GIF, WEBP, TIFF, JPEG 2000 ------------------------------------------------------------------------


def walk_gif(data: mmap.mmap) -> Extent:
    """Follow the blocks to the trailer (GIF89a, appendix B)."""
    try:
        width, height = struct.unpack("<HH", data[6:10])
        position = 13 + _colour_table(data[10])
        frames = blocks = 0
        while blocks < _MOST_PARTS:
            block = data[position]
            if block == 0x3B:
                if not frames:
                    raise Broken("has no picture in it")
                return width, height, frames
            if block == 0x2C:
                frames += 1
                position += 11 + _colour_table(data[position + 9])
            elif block == 0x21:
                position += 2
            else:
                raise Broken("is damaged: something else stands where a block must start")
            while blocks < _MOST_PARTS and (size := data[position]):
                position += 1 + size
                blocks += 1
            position += 1
            blocks += 1
    except (IndexError, struct.error) as error:
        raise Broken("is truncated: it ends before its trailer") from error
    raise Broken("has too many blocks")


def _colour_table(flags: int) -> int:
    """Bytes of the colour table that ``flags`` announces."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


def walk_webp(data: mmap.mmap) -> Extent:
    """Read the size and count the frames (RFC 9649). That nothing is missing is for libwebp to see: it does."""
    width = height = frames = 0
    position = 12
    for _ in range(_MOST_PARTS):
        kind, start = data[position : position + 4], position + 8
        if len(data) < start:
            break
        position = start + (int.from_bytes(data[position + 4 : start], "little") + 1) // 2 * 2
        if kind == b"VP8X":
            width = 1 + int.from_bytes(data[start + 4 : start + 7], "little")
            height = 1 + int.from_bytes(data[start + 7 : start + 10], "little")
        elif kind == b"VP8 " and not width:
            width = int.from_bytes(data[start + 6 : start + 8], "little") & 0x3FFF
            height = int.from_bytes(data[start + 8 : start + 10], "little") & 0x3FFF
        elif kind == b"VP8L" and not width:
            bits = int.from_bytes(data[start + 1 : start + 5], "little")
            width, height = 1 + (bits & 0x3FFF), 1 + (bits >> 14 & 0x3FFF)
        frames += kind == b"ANMF"
    return width, height, max(frames, 1)


def walk_tiff(data: mmap.mmap) -> None:
    """Every directory must lie within the file (TIFF 6.0, section 2); libtiff misses no strip."""
    order: Any = "little" if data[:2] == b"II" else "big"
    big = data[2:4] in (b"+\0", b"\0+")
    count_size, entry_size, offset_size = (8, 20, 8) if big else (2, 12, 4)
    offset = int.from_bytes(data[8:16] if big else data[4:8], order)
    seen: set[int] = set()
    while offset and offset not in seen:
        seen.add(offset)
        if len(seen) > _MOST_FRAMES:
            raise Broken(f"has more than {_MOST_FRAMES} pictures")
        entries = int.from_bytes(data[offset : offset + count_size], order)
        following = offset + count_size + entries * entry_size
        if following + offset_size > len(data):
            raise Broken("is truncated: it ends before its last directory")
        offset = int.from_bytes(data[following : following + offset_size], order)


def walk_jpeg2000(data: mmap.mmap) -> None:
    """The end of codestream (0xffd9) must be there; coded data cannot contain it (ITU T.800, annex A)."""
    if data.rfind(b"\xff\xd9") < 0:
        raise Broken("is truncated: its end of codestream (EOC) is missing")
