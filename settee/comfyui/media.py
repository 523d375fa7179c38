"""What a file is, told from its name.

ComfyUI reports movies and animations under ``images`` and custom nodes invent keys of their own, so the key says
nothing. The table is ours: ``mimetypes`` follows the machine's files, and images differ in those.
"""

from __future__ import annotations

from pathlib import PurePosixPath

from settee.base.job import Kind

_OCTETS = "application/octet-stream"

_TYPES: dict[Kind, dict[str, str]] = {
    Kind.IMAGE: {
        "png": "image/png",
        "apng": "image/apng",
        "jpg": "image/jpeg",
        "jpeg": "image/jpeg",
        "jfif": "image/jpeg",
        "webp": "image/webp",
        "gif": "image/gif",
        "avif": "image/avif",
        "heic": "image/heic",
        "jxl": "image/jxl",
        "bmp": "image/bmp",
        "tiff": "image/tiff",
        "tif": "image/tiff",
        "tga": "image/x-tga",
        "svg": "image/svg+xml",
        "exr": "image/x-exr",
        "hdr": "image/vnd.radiance",
    },
    Kind.VIDEO: {
        "mp4": "video/mp4",
        "m4v": "video/x-m4v",
        "webm": "video/webm",
        "mov": "video/quicktime",
        "mkv": "video/x-matroska",
        "avi": "video/x-msvideo",
    },
    Kind.AUDIO: {
        "flac": "audio/flac",
        "mp3": "audio/mpeg",
        "wav": "audio/wav",
        "ogg": "audio/ogg",
        "opus": "audio/ogg",
        "m4a": "audio/mp4",
        "aac": "audio/aac",
    },
    Kind.MODEL_3D: {
        "glb": "model/gltf-binary",
        "gltf": "model/gltf+json",
        "obj": "model/obj",
        "mtl": "model/mtl",
        "ply": "model/ply",
        "stl": "model/stl",
        "fbx": _OCTETS,
        "usdz": "model/vnd.usdz+zip",
        "spz": _OCTETS,
        "splat": _OCTETS,
        "ksplat": _OCTETS,
    },
    Kind.TEXT: {
        "txt": "text/plain; charset=utf-8",
        "md": "text/markdown; charset=utf-8",
        "srt": "application/x-subrip",
        "vtt": "text/vtt",
    },
    Kind.FILE: {
        "json": "application/json",
        "csv": "text/csv; charset=utf-8",
        "yaml": "application/yaml",
        "yml": "application/yaml",
        "zip": "application/zip",
        "pdf": "application/pdf",
    },
}

_BY_SUFFIX = {suffix: (kind, media) for kind, types in _TYPES.items() for suffix, media in types.items()}


def kind_of(filename: str) -> tuple[Kind, str]:
    """The kind of a file and its media type. Anything unknown (latents, weights) is a FILE of plain octets."""
    return _BY_SUFFIX.get(PurePosixPath(filename).suffix[1:].lower(), (Kind.FILE, _OCTETS))


def suffix_of(media_type: str) -> str | None:
    """Return the usual suffix of a media type, without its dot; None for an unknown type and for plain octets."""
    plain = media_type.split(";")[0].strip().lower()
    suffixes = (suffix for suffix, (_, known) in _BY_SUFFIX.items() if known.split(";")[0] == plain != _OCTETS)
    return next(suffixes, None)
