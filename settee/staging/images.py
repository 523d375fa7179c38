"""Images: is this file whole, and how large is it?

ComfyUI loads half a PNG or JPEG without a word: its ``node_helpers.pillow`` answers a truncated file by switching
Pillow's LOAD_TRUNCATED_IMAGES on. So Pillow decodes inputs strictly here, in the cheapest way that still notices what
is missing. Ahead of it go checks of what Pillow does not notice: bytes of a PNG that changed, ends that are missing,
and files made to keep a decoder busy. A PNG's check decodes too, in a quarter of Pillow's time.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
import itertools
import mmap
import re
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from settee.base.errors import InvalidRequest, PayloadTooLarge
from settee.comfyui.media import HEAD, Unreadable, format_of, png_chunks

#: Modules of Pillow that open a format: importing one takes a tenth of the time that Pillow's search of all takes.
_PLUGINS = {"WEBP": "WebP", "TIFF": "Tiff", "AVIF": "Avif", "JPEG2000": "Jpeg2K"}
#: Known so that the error can state what to do instead.
_REFUSED = {
    "HEIC": "is not what ComfyUI's image nodes load whole: convert it to JPEG or PNG first",
    "PostScript": "is not a format that may be loaded",
    "web page": "is not a picture: its address may want a login, or lead to a page about it; give the picture's own",
}
#: Formats without a clear first byte, or rare ones, that Pillow may try: none of them starts a program.
_OTHERS = ("DIB", "ICO", "PPM", "PSD", "QOI", "TGA")

#: Chunks or blocks of one file. Real ones have thousands at most; a crafted one of 2 GiB has enough of them to keep
#: Python busy for minutes.
_MAX_PARTS = 1_000_000
_MAX_FRAMES = 10_000
#: Scans of one JPEG: encoders make about ten, and each one costs a decoder a pass over all pixels.
_MAX_SCANS = 200
#: Scans that the largest image permitted may have; smaller ones more, for the same work.
_USUAL_SCANS = 20
#: The start of a JPEG's segment, any number of fill bytes ahead of its code, and of a scan, as no pixels can be read
#: (ITU T.81, B.1.1 and B.2.3).
_MARKER = re.compile(rb"\xff+([^\0\xff])", re.DOTALL)
_SCAN = re.compile(rb"\xff\xda\0(?:\x08\x01|\x0a\x02|\x0c\x03|\x0e\x04)")

_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
_DEPTHS = {0: (1, 2, 4, 8, 16), 2: (8, 16), 3: (1, 2, 4, 8), 4: (8, 16), 6: (8, 16)}
#: Adam7: x offset, y offset, x step, y step of each pass (PNG specification, 8.2).
_ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
#: Compressed bytes inflated at a time: at deflate's best ratio 16 MiB come out.
_INFLATE_STEP = 16 * 1024


class TooManyPixels(Exception):
    """Their number, to follow "this PNG has"."""


def looks_like_image(head: bytes) -> bool:
    """Return True if a file that starts with ``head`` (HEAD bytes are enough) is meant to be an image to be loaded."""
    return format_of(head) not in (None, "HEIC", "web page")


def unloadable(head: bytes) -> str | None:
    """Return why ComfyUI's own loaders make nothing, or half a picture, of a file that starts so; else None."""
    known = format_of(head)
    return f"this {known} {_REFUSED[known]}" if known in _REFUSED else None


def check_image(path: Path, max_pixels: int) -> tuple[int, int]:
    """Decode the image far enough to know that all of it is there; return its width and height in pixels.

    ``max_pixels`` bounds width × height × frames, and is looked at before anything of that size is decoded. The
    suffix need not fit the format. Raises InvalidRequest for what is broken, truncated or not an image, PayloadTooLarge
    for too many pixels; both name the file, its format and what is wrong. Call it from one thread at a time: it
    silences Pillow's warnings meanwhile.
    """
    name = "file"
    try:
        with path.open("rb") as file:
            if not file.seek(0, 2):
                raise Unreadable("is empty")
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                known = format_of(data[:HEAD])
                name = known or name
                size = _CHECKS[known](data, max_pixels) if known in _CHECKS else None
        return size or _decode(path, known, max_pixels)
    except Unreadable as broken:
        problem = f"this {name} {broken}"
        raise InvalidRequest.from_problems([{"path": path.name, "problem": problem}], "image") from broken
    except TooManyPixels as large:
        problem = f"this {name} has {large} pixels; MAX_PIXELS allows {max_pixels}"
        raise PayloadTooLarge.from_problems([{"path": path.name, "problem": problem}], "image") from large


def _limit(max_pixels: int, width: int, height: int, frames: int = 1) -> None:
    if width * height * frames > max_pixels:
        raise TooManyPixels(f"{width} × {height}" + (f" × {frames}" if frames > 1 else ""))
    if frames > _MAX_FRAMES:
        raise Unreadable(f"has more than {_MAX_FRAMES} frames")


# --- ahead of the decoder ------------------------------------------------------------------------------------


def _check_png(data: mmap.mmap, max_pixels: int) -> tuple[int, int] | None:
    """Compare all checksums and inflate all pixels, keeping none; return the size, or None for an animated PNG."""
    pixels: _PngPixels | None = None
    size = 0, 0
    is_animated = False
    for kind, body in _png_chunks(data):
        if pixels is None:
            if kind != b"IHDR" or len(body) != 13:
                raise Unreadable("does not start with its header (IHDR)")
            width, height, depth, colour, method, filters, interlace = struct.unpack(">IIBBBBB", body)
            if not (width and height) or depth not in _DEPTHS.get(colour, ()) or method or filters or interlace > 1:
                raise Unreadable("has a header that no PNG may have")
            _limit(max_pixels, width, height)
            size = width, height
            pixels = _PngPixels(width, height, depth * _CHANNELS[colour], interlace == 1)
        elif kind == b"IDAT":
            pixels.inflate(body)
        is_animated |= kind == b"acTL"
    if pixels is None or pixels.passes:
        raise Unreadable("is truncated: some of its pixels are missing")
    return None if is_animated else size


def _png_chunks(data: mmap.mmap) -> Iterator[tuple[bytes, memoryview]]:
    """Give ``(type, body)`` of each chunk up to IEND, its checksum compared."""
    crc32 = _fast_zlib().crc32
    with memoryview(data) as view:
        for part in png_chunks(lambda at, count: data[at : at + count], most=_MAX_PARTS):
            if part.end > len(data):
                break
            with view[part.start + 4 : part.last] as summed, summed[4:] as body:
                if crc32(summed) != int.from_bytes(data[part.last : part.end], "big"):
                    raise Unreadable(f"is damaged: the checksum of its chunk {part.kind!r} does not fit")
                yield part.kind, body
            if part.kind == b"IEND":
                return
    raise Unreadable("is truncated: it ends before its last chunk (IEND)")


class _PngPixels:
    """Counts a PNG's inflated pixels off, row by row."""

    def __init__(self, width: int, height: int, bits: int, interlaced: bool) -> None:
        #: ``[bytes still to come, bytes of a row, bytes until the next row starts]`` of each pass not yet complete.
        self.passes: list[list[int]] = []
        for x, y, dx, dy in _ADAM7 if interlaced else ((0, 0, 1, 1),):
            columns, rows = -(-(width - x) // dx), -(-(height - y) // dy)
            if columns > 0 and rows > 0:
                stride = 1 - (-columns * bits // 8)
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
                raise Unreadable("is damaged: its pixels do not inflate") from error
            self._count(rows)

    def _count(self, rows: bytes) -> None:
        position = 0
        while position < len(rows) and self.passes:
            left, stride, skip = self.passes[0]
            count = min(left, len(rows) - position)
            # Every row starts with the number of its filter. At an unknown one a decoder stops.
            if max(rows[position + skip : position + count : stride], default=0) > 4:
                raise Unreadable("is damaged: it has a row with an unknown filter")
            position += count
            if count == left:
                del self.passes[0]
            else:
                self.passes[0] = [left - count, stride, (skip - count) % stride]


@functools.cache
def _fast_zlib() -> Any:
    """Return ISA-L's zlib where it is installed (1024² photo: 6 ms to Python's own 19 ms)."""
    try:
        return importlib.import_module("isal.isal_zlib")
    except ImportError:
        return zlib


def _check_jpeg(data: mmap.mmap, max_pixels: int) -> None:
    """Follow the segments to the first scan, count all scans, and see that the end of image (EOI) follows the last.

    Without that, zeroes in the place of the missing end would pass for grey pixels.
    """
    position, pixels = 2, 0
    for _ in range(_MAX_PARTS):
        marker = _MARKER.match(data, position)
        if marker is None:
            raise Unreadable("is truncated or damaged: something else stands where a segment must start")
        code, position = marker[1][0], marker.end()
        if code == 0xD9:
            raise Unreadable("has no picture in it")
        if code == 0x01 or 0xD0 <= code <= 0xD8:
            continue  # these stand alone
        if 0xC0 <= code <= 0xCF and code not in (0xC4, 0xC8, 0xCC) and len(data) >= position + 7:
            height, width = struct.unpack(">HH", data[position + 3 : position + 7])
            pixels = width * height
        position += max(2, int.from_bytes(data[position : position + 2], "big"))
        if code == 0xDA:
            break
    else:
        raise Unreadable("has too many segments")
    scans = [position, *(found.end() for found in itertools.islice(_SCAN.finditer(data, position), _MAX_SCANS))]
    if len(scans) > _MAX_SCANS or pixels * len(scans) > _USUAL_SCANS * max_pixels >= _USUAL_SCANS * pixels:
        raise Unreadable(f"has {len(scans)} scans or more, too many for its size")
    if data.find(b"\xff\xd9", scans[-1]) < 0:
        raise Unreadable("is truncated: it ends before its end marker (EOI)")


def _check_gif(data: mmap.mmap, max_pixels: int) -> None:
    """Follow the blocks to the trailer (GIF89a, appendix B): Pillow takes a lost frame for the end."""

    def colour_table(flags: int) -> int:
        return 3 << ((flags & 7) + 1) if flags & 0x80 else 0

    try:
        position, blocks, frames = 13 + colour_table(data[10]), 0, 0
        while (kind := data[position]) != 0x3B:
            if kind not in (0x21, 0x2C):
                raise Unreadable("is damaged: something else stands where a block must start")
            frames += kind == 0x2C
            if frames > _MAX_FRAMES:  # Pillow walks through them all to count them
                raise Unreadable(f"has more than {_MAX_FRAMES} frames")
            position += 11 + colour_table(data[position + 9]) if kind == 0x2C else 2
            while blocks <= _MAX_PARTS and (size := data[position]):
                position, blocks = position + 1 + size, blocks + 1
            position, blocks = position + 1, blocks + 1
            if blocks > _MAX_PARTS:
                raise Unreadable("has too many blocks")
    except IndexError as error:
        raise Unreadable("is truncated: it ends before its trailer") from error


def _check_webp(data: mmap.mmap, max_pixels: int) -> None:
    """Look at the size of the canvas (RFC 9649, 2.7), for which Pillow asks memory as soon as it opens the file."""
    if data[12:16] == b"VP8X":
        _limit(max_pixels, *(1 + int.from_bytes(data[at : at + 3], "little") for at in (24, 27)))


def _check_jpeg2000(data: mmap.mmap, max_pixels: int) -> None:
    """See that the end of codestream is there; coded data cannot contain it (ITU T.800, annex A)."""
    if data.rfind(b"\xff\xd9") < 0:
        raise Unreadable("is truncated: its end of codestream (EOC) is missing")


_CHECKS: dict[str | None, Callable[[mmap.mmap, int], tuple[int, int] | None]] = {
    "PNG": _check_png,
    "JPEG": _check_jpeg,
    "GIF": _check_gif,
    "WEBP": _check_webp,
    "JPEG2000": _check_jpeg2000,
}


# --- decoded -------------------------------------------------------------------------------------------------


def _decode(path: Path, known: str | None, max_pixels: int) -> tuple[int, int]:
    """Decode every frame with Pillow. A JPEG at an eighth of its size: all of it is still read and unpacked."""
    with _opened(path, known) as image:
        width, height = image.size
        _limit(max_pixels, width, height)
        if known == "TIFF":  # whose frames are counted by walking through them all
            with contextlib.suppress(EOFError):
                for frame in range(_MAX_FRAMES + 1):
                    image.seek(frame)
                raise Unreadable(f"has more than {_MAX_FRAMES} frames")
        frames = getattr(image, "n_frames", 1)
        _limit(max_pixels, width, height, frames)
        seen = 0
        for frame in range(frames):
            image.seek(frame)
            seen += image.width * image.height
            if seen > max_pixels:
                raise TooManyPixels(f"{width} × {height} and more in {frames} frames")
            if image.format == "JPEG":  # one with several pictures calls itself MPO, and loses its place
                image.draft("L", (max(1, width // 8), max(1, height // 8)))
            image.load()
        return width, height


@contextlib.contextmanager
def _opened(path: Path, known: str | None) -> Iterator[Any]:
    """Open an image with Pillow, whose many ways to fail on a bad file become Unreadable or TooManyPixels."""
    if known in _REFUSED:
        raise Unreadable(_REFUSED[known])
    from PIL import Image, UnidentifiedImageError

    if known in _PLUGINS:
        importlib.import_module(f"PIL.{_PLUGINS[known]}ImagePlugin")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes (max_pixels is our limit) and of slightly odd files
        if known == "TIFF":  # of a directory that ends early, and with it the pictures
            warnings.filterwarnings("error", "Corrupt EXIF data")
        try:
            with Image.open(path, formats=(known,) if known else _OTHERS) as image:
                yield image
        except (Unreadable, TooManyPixels):
            raise
        except Image.DecompressionBombError as error:
            raise TooManyPixels("more than Pillow, and so ComfyUI, opens:") from error
        except UnidentifiedImageError as error:
            problem = "has a damaged header" if known else "is not an image: send it under `files`"
            raise Unreadable(problem) from error
        except Exception as error:
            # Pillow's readers let out whatever a bad file makes them stumble over: struct.error, SyntaxError, KeyError…
            reason = str(error) if isinstance(error, OSError) and error.strerror is None else type(error).__name__
            raise Unreadable(f"cannot be decoded ({reason[:100]})") from error
