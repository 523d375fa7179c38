"""The kind of a file by its name, and the format of a picture by its first bytes.

ComfyUI reports movies and animations under ``images`` and custom nodes invent keys of their own, so the key means
nothing. The table is ours: ``mimetypes`` follows the machine's files, and images differ in those.
"""

from __future__ import annotations

import re
from pathlib import PurePosixPath

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
