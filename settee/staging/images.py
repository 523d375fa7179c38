"""Images: is this file whole, and how large is it?

ComfyUI loads half a PNG or JPEG without a word: its ``node_helpers.pillow`` answers a truncated file by switching
Pillow's LOAD_TRUNCATED_IMAGES on. So inputs are looked through to their last byte here
(:mod:`settee.staging.image_walk`), and every pixel is decoded in the cheapest way that still notices what is missing.
"""

from __future__ import annotations

import importlib
import mmap
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from settee.base.errors import InvalidRequest, PayloadTooLarge
from settee.staging.image_walk import (
    PNG,
    Broken,
    Extent,
    TooManyPixels,
    walk_gif,
    walk_jpeg,
    walk_jpeg2000,
    walk_png,
    walk_tiff,
    walk_webp,
    within,
)

#: First bytes by format. PostScript is among them to be refused: Pillow, and so LoadImage, runs Ghostscript on it.
_MAGIC = (
    ("PNG", re.compile(re.escape(PNG))),
    ("JPEG", re.compile(rb"\xff\xd8\xff")),
    ("WEBP", re.compile(rb"RIFF....WEBP", re.DOTALL)),
    ("GIF", re.compile(rb"GIF8[79]a")),
    # "BM" alone begins other files too. After sizes and offsets comes the length of one of the headers Pillow knows.
    ("BMP", re.compile(rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0", re.DOTALL)),
    ("TIFF", re.compile(rb"II\*\0|MM\0\*|II\+\0|MM\0\+")),
    # Pillow opens none without a plugin, and ComfyUI 0.33 (PyAV) only the first tile: 512 × 512 pixels, without a word.
    ("HEIC", re.compile(rb"....ftyp(?:he[iv][cxms]|m[is]f1.{4,44}?he[iv][cxms])", re.DOTALL)),
    ("AVIF", re.compile(rb"....ftyp(?:avif|avis|mif1|msf1)", re.DOTALL)),
    ("JPEG2000", re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51")),
    ("PostScript", re.compile(rb"%!PS|\xc5\xd0\xd3\xc6")),
    ("web page", re.compile(rb"\s*<(?:!doctype html|html)", re.IGNORECASE)),
)
#: Modules of Pillow that open a format: importing one takes a tenth of the time that Pillow's search of all takes.
_PLUGINS = {"WEBP": "WebP", "TIFF": "Tiff", "AVIF": "Avif", "JPEG2000": "Jpeg2K"}
#: Known to be told what to do instead.
_REFUSED = {
    "HEIC": "is not what ComfyUI's image nodes load whole: convert it to JPEG or PNG first",
    "PostScript": "is none that may be loaded",
    "web page": "is not a picture: its address may want a login, or lead to a page about it; give the picture's own",
}
#: Formats without a clear first byte, or rare ones, that Pillow may try: none of them starts a program.
_OTHERS = ("DIB", "ICO", "PPM", "PSD", "QOI", "TGA")

#: Bytes at a file's start that its format is known by.
HEAD = 64


def looks_like_image(head: bytes) -> bool:
    """Return True if a file that starts with ``head`` (HEAD bytes are enough) is meant to be an image to be loaded."""
    return _format(head) not in (None, "HEIC", "web page")


def unloadable(path: Path) -> str | None:
    """Return why ComfyUI's own loaders make nothing, or half a picture, of a file; None where they know its format."""
    with path.open("rb") as file:
        known = _format(file.read(HEAD))
    return f"this {known} {_REFUSED[known]}" if known in _REFUSED else None


def _format(head: bytes) -> str | None:
    return next((name for name, magic in _MAGIC if magic.match(head)), None)


def check_image(path: Path, max_pixels: int) -> tuple[int, int]:
    """Decode the image far enough to know that all of it is there; return its width and height in pixels.

    ``max_pixels`` bounds width × height × frames, and is looked at before anything of that size is decoded. The
    suffix need not fit the format. Raises InvalidRequest for what is broken, truncated or no image, PayloadTooLarge
    for too many pixels; both name the file, its format and what is wrong. Call it from one thread at a time: it
    silences Pillow's warnings meanwhile.
    """
    name = "file"
    try:
        with _mapped(path) as data:
            if data is None:
                raise Broken("is empty")
            known = _format(data[:HEAD])
            name = known or name
            extent = _check(data, path, known, max_pixels)
    except Broken as broken:
        problem = f"this {name} {broken}"
        raise InvalidRequest.from_problems([{"path": path.name, "problem": problem}], "image") from broken
    except TooManyPixels as large:
        problem = f"this {name} has {large} pixels; MAX_PIXELS allows {max_pixels}"
        raise PayloadTooLarge.from_problems([{"path": path.name, "problem": problem}], "image") from large
    return extent[:2]


@contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap | None]:
    """The file as memory, not copied; None when it is empty."""
    with path.open("rb") as file:
        if not file.seek(0, 2):
            yield None
            return
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data


def _check(data: mmap.mmap, path: Path, known: str | None, max_pixels: int) -> Extent:
    """Walk the file where there is a walk for it, then decode it. Raises Broken or TooManyPixels."""
    if known == "PNG":
        extent = walk_png(data, max_pixels)
        if extent[2] == 1:
            return extent
    elif known == "JPEG":
        walk_jpeg(data, max_pixels)
    elif known == "GIF":
        within(max_pixels, walk_gif(data))
    elif known == "WEBP":
        within(max_pixels, walk_webp(data))
    elif known == "TIFF":
        walk_tiff(data)
    elif known == "JPEG2000":
        walk_jpeg2000(data)
    elif known == "BMP" and int.from_bytes(data[2:6], "little") > len(data):
        raise Broken("is truncated: it ends before its header says")
    return _decode(path, known, max_pixels)


def _decode(path: Path, known: str | None, max_pixels: int) -> Extent:
    """Decode every frame with Pillow. A JPEG at an eighth of its size: all of it is still read and unpacked."""
    with _opened(path, known) as image:
        width, height = image.size
        frames = getattr(image, "n_frames", 1)
        seen = 0
        for frame in range(frames):
            if frame:
                image.seek(frame)
            seen += image.width * image.height
            if seen > max_pixels:
                raise TooManyPixels(f"{width} × {height}" + (f" and more in {frames} frames" if frame else ""))
            if image.format == "JPEG":  # one with several pictures calls itself MPO, and loses its place
                image.draft("L", (max(1, width // 8), max(1, height // 8)))
            image.load()
        return width, height, frames


@contextmanager
def _opened(path: Path, known: str | None) -> Iterator[Any]:
    """An image opened by Pillow, whose many ways to fail on a bad file become Broken or TooManyPixels."""
    if known in _REFUSED:
        raise Broken(_REFUSED[known])
    from PIL import Image, UnidentifiedImageError

    if known in _PLUGINS:
        importlib.import_module(f"PIL.{_PLUGINS[known]}ImagePlugin")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of sizes (max_pixels is our limit) and of slightly odd files
        try:
            with Image.open(path, formats=(known,) if known else _OTHERS) as image:
                yield image
        except (Broken, TooManyPixels):
            raise
        except Image.DecompressionBombError as error:
            raise TooManyPixels("more than Pillow, and so ComfyUI, opens:") from error
        except UnidentifiedImageError as error:
            problem = "has a damaged header" if known else "is not an image: send it under `files`"
            raise Broken(problem) from error
        except Exception as error:
            # Pillow's readers let out whatever a bad file makes them stumble over: struct.error, SyntaxError, KeyError…
            reason = str(error) if isinstance(error, OSError) and error.strerror is None else type(error).__name__
            raise Broken(f"cannot be decoded ({reason[:100]})") from error
