"""Images: is this file whole, and how large is it?

ComfyUI loads half a PNG or JPEG without a word: its ``node_helpers.pillow`` answers a truncated file by switching
Pillow's LOAD_TRUNCATED_IMAGES on. So inputs are checked here, to the last byte that an image needs. The structure of
the common formats is walked by hand (Pillow itself does not miss a JPEG's or a GIF's end), and then every pixel is
decoded in the cheapest way that still notices what is missing.
"""

from __future__ import annotations

import importlib
import mmap
import re
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from settee.errors import InvalidRequest, PayloadTooLarge

#: First bytes of what LoadImage would try to open. PostScript is among them to be refused: Pillow runs Ghostscript
#: on it.
_MAGIC = re.compile(
    rb"\x89PNG\r\n\x1a\n|\xff\xd8\xff|GIF8[79]a|RIFF....WEBP|BM|II\*\0|MM\0\*|II\+\0|MM\0\+"
    rb"|....ftyp(?:avif|avis|mif1|heic)|\0\0\0\x0cjP  |\xff\x4f\xff\x51|8BPS|%!PS|\xc5\xd0\xd3\xc6",
    re.DOTALL,
)
#: What Pillow may decode here: formats whose readers neither start programs nor read further files.
_PILLOW_FORMATS = (
    *("PNG", "JPEG", "MPO", "WEBP", "GIF", "BMP", "DIB", "TIFF", "AVIF", "JPEG2000"),
    *("PPM", "TGA", "ICO", "ICNS", "PSD", "QOI", "DDS", "PCX", "SGI"),
)

_PNG = b"\x89PNG\r\n\x1a\n"
_PNG_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_PNG_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
#: Adam7: x offset, y offset, x step, y step of each pass (PNG specification, 8.2).
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
#: Compressed bytes inflated at a time: deflate's best ratio makes 16 MiB of them.
_INFLATE_STEP = 16 * 1024

#: In a JPEG's entropy-coded data, a marker that ends it: not a stuffed 0xff, a restart or a fill byte.
_JPEG_MARKER = re.compile(rb"\xff+[^\x00\xd0-\xd7\xff]", re.DOTALL)


class _Broken(Exception):
    """What is wrong with an image, to follow its format's name."""


class _TooManyPixels(Exception):
    pass


Size = tuple[int, int]


def looks_like_image(head: bytes) -> bool:
    """Whether a file that starts with ``head`` (16 bytes are enough) is meant to be an image."""
    return _MAGIC.match(head) is not None


def check_image(path: Path, max_pixels: int) -> Size:
    """Decode the image far enough to know that all of it is there; return its width and height in pixels.

    ``max_pixels`` bounds width × height × frames, and is checked before anything of that size is decoded. The
    suffix need not fit the format. Raises InvalidRequest for what is broken, truncated or no image, PayloadTooLarge
    for too many pixels; both name the file, its format and what is wrong.
    """
    name = "image"
    try:
        with path.open("rb") as file:
            if not file.seek(0, 2):
                raise _Broken("is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                name = _format(data)
                return _check(data, path, max_pixels)
    except _Broken as broken:
        problem = f"this {name} {broken}"
        raise InvalidRequest.from_problems([{"path": path.name, "problem": problem}], "image") from broken
    except _TooManyPixels as large:
        problem = f"this {name} has {large} pixels; MAX_PIXELS allows {max_pixels}"
        raise PayloadTooLarge.from_problems([{"path": path.name, "problem": problem}], "image") from large


def probe_size(path: Path) -> Size | None:
    """Width and height in pixels from the header alone; None for what is not an image. Raises OSError."""
    with path.open("rb") as file:
        if not file.seek(0, 2):
            return None
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            if not looks_like_image(data[:16]):
                return None
            try:
                if data[:8] == _PNG:
                    width, height = struct.unpack(">II", data[16:24])
                    return width, height
                if data[:3] == b"GIF":
                    width, height = struct.unpack("<HH", data[6:10])
                    return width, height
                if data[:2] == b"\xff\xd8":
                    return _walk_jpeg(data, header_only=True)
                with _Pillow(path) as image:
                    size: Size = image.size
                    return size
            except (_Broken, _TooManyPixels, struct.error):
                return None


def _format(data: mmap.mmap) -> str:
    head = data[:16]
    for magic, name in ((_PNG, "PNG"), (b"\xff\xd8\xff", "JPEG"), (b"GIF8", "GIF"), (b"BM", "BMP")):
        if head.startswith(magic):
            return name
    if head[8:12] == b"WEBP":
        return "WEBP"
    return "TIFF" if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+") else "image"


def _check(data: mmap.mmap, path: Path, max_pixels: int) -> Size:
    head = data[:16]
    if head.startswith(_PNG):
        size, frames = _walk_png(data, max_pixels)
        if frames == 1:
            return size
    elif head.startswith(b"\xff\xd8\xff"):
        _within(max_pixels, *_walk_jpeg(data))
    elif head.startswith(b"GIF8"):
        width, height, frames = _walk_gif(data)
        _within(max_pixels, width, height, frames)
    elif head[8:12] == b"WEBP":
        if 8 + int.from_bytes(data[4:8], "little") > len(data):
            raise _Broken("is truncated: it ends before its RIFF size says")
    elif head.startswith(b"BM") and int.from_bytes(data[2:6], "little") > len(data):
        raise _Broken("is truncated: it ends before its header says")
    return _decode(path, len(data), max_pixels)


def _within(max_pixels: int, width: int, height: int, frames: int = 1) -> None:
    if width * height * frames > max_pixels:
        raise _TooManyPixels(f"{width} × {height}" + (f" × {frames} frames" if frames > 1 else ""))


# --- PNG ---------------------------------------------------------------------------------------------


def _png_chunks(data: mmap.mmap) -> Iterator[tuple[bytes, memoryview]]:
    """``(type, body)`` of each chunk up to IEND, checksums compared."""
    crc32 = _zlib().crc32
    with memoryview(data) as view:
        position = 8
        while True:
            header = data[position : position + 8]
            end = position + 12 + int.from_bytes(header[:4], "big")
            if len(header) < 8 or end > len(data):
                raise _Broken("is truncated: it ends before its last chunk (IEND)")
            kind = header[4:]
            with view[position + 8 : end - 4] as body, view[position + 4 : end - 4] as summed:
                if crc32(summed) != int.from_bytes(data[end - 4 : end], "big"):
                    raise _Broken(f"is damaged: the checksum of its chunk {kind!r} does not fit")
                yield kind, body
            if kind == b"IEND":
                return
            position = end


def _walk_png(data: mmap.mmap, max_pixels: int) -> tuple[Size, int]:
    """Compare all checksums and inflate all pixels of a PNG; returns its size and number of frames.

    An animated one is only walked: its frames are Pillow's to decode.
    """
    pixels: _PngPixels | None = None
    size, frames = (0, 0), 1
    for kind, body in _png_chunks(data):
        if pixels is None:
            if kind != b"IHDR" or len(body) != 13:
                raise _Broken("does not start with its header (IHDR)")
            width, height, depth, colour, method, filters, interlace = struct.unpack(">IIBBBBB", body)
            if (
                not width
                or not height
                or depth not in _PNG_DEPTHS.get(colour, ())
                or method
                or filters
                or interlace > 1
            ):
                raise _Broken("has a header that no PNG may have")
            size = (width, height)
            _within(max_pixels, width, height)
            pixels = _PngPixels(size, depth * _PNG_CHANNELS[colour], interlace == 1)
        elif kind == b"acTL" and len(body) == 8:
            frames = max(1, int.from_bytes(body[:4], "big"))
            _within(max_pixels, *size, frames)
        elif kind == b"IDAT":
            pixels.inflate(body)
    if pixels is None or pixels.passes:
        raise _Broken("is truncated: some of its pixels are missing")
    return size, frames


class _PngPixels:
    """Inflates a PNG's pixels without keeping them, and counts them off row by row."""

    def __init__(self, size: Size, bits: int, interlaced: bool) -> None:
        width, height = size
        parts = [
            (-(-(width - x) // dx), -(-(height - y) // dy))
            for x, y, dx, dy in (_ADAM7 if interlaced else ((0, 0, 1, 1),))
            if width > x and height > y
        ]
        #: ``[bytes left, bytes of a row, bytes until the next row starts]`` of each pass still to come.
        self.passes = [
            [rows * (1 + -(-columns * bits // 8)), 1 + -(-columns * bits // 8), 0] for columns, rows in parts
        ]
        self._zlib = _zlib()
        self._inflater = self._zlib.decompressobj()

    def inflate(self, body: memoryview) -> None:
        for start in range(0, len(body), _INFLATE_STEP):
            if not self.passes:
                return  # decoders ignore what comes after the last row
            try:
                self._count(self._inflater.decompress(body[start : start + _INFLATE_STEP]))
            except (zlib.error, self._zlib.error) as error:
                raise _Broken("is damaged: its pixels do not inflate") from error

    def _count(self, rows: bytes) -> None:
        position = 0
        while position < len(rows) and self.passes:
            left, stride, skip = self.passes[0]
            count = min(left, len(rows) - position)
            # Each row starts with its filter; Pillow stops at an unknown one, which ComfyUI would not mind.
            if max(rows[position + skip : position + count : stride], default=0) > 4:
                raise _Broken("is damaged: it has a row with an unknown filter")
            position += count
            if count == left:
                del self.passes[0]
            else:
                self.passes[0] = [left - count, stride, (skip - count) % stride]


def _zlib() -> Any:
    """ISA-L's inflate where it is installed (1024² photo: 6 ms instead of 19), else Python's own."""
    try:
        return importlib.import_module("isal.isal_zlib")
    except ImportError:
        return zlib


# --- JPEG --------------------------------------------------------------------------------------------


def _walk_jpeg(data: mmap.mmap, *, header_only: bool = False) -> Size:
    """Follow a JPEG's segments to its end marker, which no decoder insists on. Returns its size."""
    position = 2
    size: Size | None = None
    while True:
        start = position
        while data[position : position + 1] == b"\xff":
            position += 1
        marker = data[position : position + 1]
        if not marker:
            raise _Broken("is truncated: it ends before its end marker (EOI)")
        if position == start:
            raise _Broken("is damaged: something else stands where a segment must start")
        position += 1
        code = marker[0]
        if code == 0xD9:
            if size is None:
                raise _Broken("has no picture in it")
            return size
        if code == 0x01 or 0xD0 <= code <= 0xD8:
            continue
        length = int.from_bytes(data[position : position + 2], "big")
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC) and len(data) >= position + 7:
            height, width = struct.unpack(">HH", data[position + 3 : position + 7])
            size = (width, height)
            if header_only:
                return size
        position += max(length, 2)
        if code == 0xDA:
            found = _JPEG_MARKER.search(data, position)
            if found is None:
                raise _Broken("is truncated: it ends in the middle of its pixels")
            position = found.start()


# --- GIF ---------------------------------------------------------------------------------------------


def _walk_gif(data: mmap.mmap) -> tuple[int, int, int]:
    """Follow a GIF's blocks to its trailer. Returns width, height and frames."""
    try:
        width, height = struct.unpack("<HH", data[6:10])
        position = 13 + _colours(data[10])
        frames = 0
        while True:
            block = data[position]
            if block == 0x3B:
                if not frames:
                    raise _Broken("has no picture in it")
                return width, height, frames
            if block == 0x2C:
                frames += 1
                position += 11 + _colours(data[position + 9])
            elif block == 0x21:
                position += 2
            else:
                raise _Broken("is damaged: something else stands where a block must start")
            while data[position]:
                position += 1 + data[position]
            position += 1
    except (IndexError, struct.error) as error:
        raise _Broken("is truncated: it ends before its trailer") from error


def _colours(flags: int) -> int:
    """Bytes of the colour table that ``flags`` announces."""
    return 3 << ((flags & 7) + 1) if flags & 0x80 else 0


# --- Pillow ------------------------------------------------------------------------------------------


class _Pillow:
    """An image opened by Pillow, whose many ways to fail on a bad file become one."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Any:
        import warnings

        from PIL import Image

        self._bomb = Image.DecompressionBombError
        self._quiet = warnings.catch_warnings()
        self._quiet.__enter__()
        warnings.simplefilter("ignore")  # about large or slightly odd files; max_pixels is our limit
        try:
            self._image = Image.open(self._path, formats=_PILLOW_FORMATS)
        except BaseException as error:
            self.__exit__(type(error), error, None)
            raise
        return self._image

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._quiet.__exit__(None, None, None)
        if hasattr(self, "_image"):
            self._image.close()
        if isinstance(error, self._bomb):
            raise _TooManyPixels("more than Pillow opens") from error
        if isinstance(error, Exception) and not isinstance(error, (_Broken, _TooManyPixels)):
            # Pillow's readers let anything out on a bad file: struct.error, SyntaxError, KeyError, …
            from PIL import UnidentifiedImageError

            if isinstance(error, UnidentifiedImageError):
                raise _Broken("is none that can be read: its header is unknown or damaged") from error
            raise _Broken(f"cannot be decoded ({str(error)[:100] or type(error).__name__})") from error


def _decode(path: Path, length: int, max_pixels: int) -> Size:
    """Decode every frame with Pillow. A JPEG at an eighth of its size: all of it is still read and unpacked."""
    with _Pillow(path) as image:
        size: Size = image.size
        frames = getattr(image, "n_frames", 1)
        _within(max_pixels, *size, frames)
        seen = 0
        for frame in range(frames):
            if frame:
                image.seek(frame)
            seen += image.width * image.height
            if seen > max_pixels:
                raise _TooManyPixels(str(seen))
            if image.format == "TIFF":
                _check_strips(image, length)
            if image.format == "JPEG":
                image.draft("L", (max(1, size[0] // 8), max(1, size[1] // 8)))
            image.load()
    return size


def _check_strips(image: Any, length: int) -> None:
    """Every strip or tile of a TIFF's frame must lie within the file: libtiff fills missing ones up in silence."""
    tags = image.tag_v2
    for offsets, sizes in ((273, 279), (324, 325)):
        for offset, size in zip(tags.get(offsets, ()), tags.get(sizes, ()), strict=False):
            if offset + size > length:
                raise _Broken("is truncated: it ends before its last strip")
