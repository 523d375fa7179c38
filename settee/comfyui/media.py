"""Media files: their kind by name, a picture's format by its first bytes, and the parts that they consist of. Pure.

ComfyUI reports movies and animations under ``images`` and custom nodes invent keys of their own, so the key means
nothing. The table is ours: ``mimetypes`` follows the machine's files, and images differ in those.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import PurePosixPath
from typing import NamedTuple

from settee.base.job import Kind

_OCTETS = "application/octet-stream"

#: (kind, form of the media types, suffixes); ``jpg=jpeg`` where the form takes another word than the suffix.
_ROWS = (
    (Kind.IMAGE, "image/{}", "png apng jpg=jpeg jpeg jfif=jpeg webp gif avif heic jxl bmp tiff tif=tiff tga=x-tga"),
    (Kind.IMAGE, "image/{}", "svg=svg+xml exr=x-exr hdr=vnd.radiance"),
    (Kind.VIDEO, "video/{}", "mp4 m4v=x-m4v webm mov=quicktime mkv=x-matroska avi=x-msvideo"),
    (Kind.AUDIO, "audio/{}", "flac mp3=mpeg wav ogg opus=ogg m4a=mp4 aac"),
    (Kind.MODEL_3D, "model/{}", "glb=gltf-binary gltf=gltf+json obj mtl ply stl usdz=vnd.usdz+zip"),
    (Kind.MODEL_3D, _OCTETS, "fbx spz splat ksplat"),
    (Kind.TEXT, "text/{}; charset=utf-8", "txt=plain md=markdown"),
    (Kind.TEXT, "{}", "srt=application/x-subrip vtt=text/vtt"),
    (Kind.FILE, "application/{}", "json yaml yml=yaml zip pdf"),
    (Kind.FILE, "text/{}; charset=utf-8", "csv"),
)
_BY_SUFFIX = {
    suffix: (kind, form.format(word or suffix))
    for kind, form, suffixes in _ROWS
    for suffix, _, word in (each.partition("=") for each in suffixes.split())
}


def kind_of(filename: str) -> tuple[Kind, str]:
    """Return the kind of a file and its media type. Anything unknown (latents, weights) is a FILE of plain octets."""
    return _BY_SUFFIX.get(PurePosixPath(filename).suffix[1:].lower(), (Kind.FILE, _OCTETS))


def suffix_of(media_type: str) -> str | None:
    """Return the usual suffix of a media type, without its dot; None for an unknown type and for plain octets."""
    plain = media_type.split(";")[0].strip().lower()
    suffixes = (suffix for suffix, (_, known) in _BY_SUFFIX.items() if known.split(";")[0] == plain != _OCTETS)
    return next(suffixes, None)


# --- first bytes --------------------------------------------------------------------------------------------------

#: Bytes at a file's start that its format is known by.
HEAD = 64
#: PostScript is among them to be refused: Pillow, and so LoadImage, runs Ghostscript on it.
_FORMATS = (
    ("PNG", rb"\x89PNG\r\n\x1a\n"),
    ("JPEG", rb"\xff\xd8\xff"),
    ("WEBP", rb"RIFF....WEBP"),
    ("GIF", rb"GIF8[79]a"),
    # "BM" alone begins other files too. After sizes and offsets comes the length of one of the headers Pillow knows.
    ("BMP", rb"BM.{12}[\x0c\x28\x34\x38\x40\x6c\x7c]\0"),
    ("TIFF", rb"II[*+]\0|MM\0[*+]"),
    # Pillow opens none without a plugin, and ComfyUI 0.33 (PyAV) only the first tile: 512 × 512 pixels, without a word.
    ("HEIC", rb"....ftyp(?:he[iv][cxms]|m[is]f1.{4,44}?he[iv][cxms])"),
    ("AVIF", rb"....ftyp(?:avif|avis|mif1|msf1)"),
    ("JPEG2000", rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"),
    ("PostScript", rb"%!PS|\xc5\xd0\xd3\xc6"),
    ("web page", rb"(?i:\s*<(?:!doctype html|html))"),
)


def format_of(head: bytes) -> str | None:
    """Return the format of a file that starts with ``head`` (HEAD bytes are enough), where it is one of these."""
    return next((name for name, magic in _FORMATS if re.match(magic, head, re.DOTALL)), None)


# --- parts --------------------------------------------------------------------------------------------------------

# Found from head to head: chunks of PNG and RIFF, and whatever else a head describes. Files may be hostile: every size
# is checked, and every walk ends.

#: Takes a place and a number of bytes, of which it returns fewer at the end of the file.
ReadAt = Callable[[int, int], bytes]
#: Takes the first bytes of a part: its type, the size of its head, of its content (None: all that is left) and of what
#: follows that. None at the end.
Head = Callable[[bytes], "tuple[bytes, int, int | None, int] | None"]

#: Bytes that a head is read from.
_PART_HEAD = 16
#: No picture has more.
MAX_PARTS = 200_000


class Unreadable(Exception):
    """The file is not built as its format says; the message continues a sentence that begins with its name."""


class Part(NamedTuple):
    kind: bytes
    start: int
    #: Where its content begins and ends.
    first: int
    last: int
    #: Where the next part begins.
    end: int


def parts(read_at: ReadAt, head: Head, start: int, end: int, *, most: int = MAX_PARTS) -> Iterator[Part]:
    """Yield every part in a stretch of the file. Raises Unreadable for one that is longer than it, and for too many."""
    for _ in range(most):
        if (found := head(read_at(start, max(0, min(_PART_HEAD, end - start))))) is None:
            return
        kind, before, size, after = found
        first, last = start + before, end if size is None else start + before + size
        if last > end:
            raise Unreadable("is damaged or cut off: a part of it is longer than the file")
        yield Part(kind, start, first, last, last + after)
        start = last + after
    raise Unreadable("has too many parts for a real file")


def png_chunks(read_at: ReadAt, end: int = sys.maxsize, *, most: int = MAX_PARTS) -> Iterator[Part]:
    """Yield the chunks of a PNG as far as they go, IEND included: length (4), type (4), data, CRC of type and data (4).

    ``end`` is the file's size where a chunk that is cut off, or its CRC, must raise Unreadable.
    """
    for part in parts(read_at, _png_head, 8, end, most=most):
        if part.end > end:
            raise Unreadable("is cut off: a checksum is missing")
        yield part
        if part.kind == b"IEND":
            return


def riff_chunks(read_at: ReadAt, end: int = sys.maxsize) -> Iterator[Part]:
    """Yield the chunks of a RIFF file, such as a WEBP: type (4), length (4, little-endian), data, padded to even."""
    return parts(read_at, _riff_head, 12, end)


def _png_head(head: bytes) -> tuple[bytes, int, int, int] | None:
    return (head[4:8], 8, int.from_bytes(head[:4], "big"), 4) if len(head) >= 8 else None


def _riff_head(head: bytes) -> tuple[bytes, int, int, int] | None:
    size = int.from_bytes(head[4:8], "little")
    return (head[:4], 8, size, size % 2) if len(head) >= 8 else None
