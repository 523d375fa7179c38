"""Takes the traces of isolation out of a picture's metadata.

ComfyUI writes the whole prompt into the files it saves, with the `filename_prefix` and the salt that isolation put
there (workflow.isolate). A caller who opens such a picture in ComfyUI must find the workflow that was sent, and the
same job must give the same bytes. JSON allows spaces between its tokens, so the traces are blanked in place: the file
keeps its length, and nothing is copied.
"""

from __future__ import annotations

import os
import re
import struct
import zlib
from pathlib import Path

from settee.workflow import SALT_INPUT

_SALT = re.compile(rb'(?:, )?(?:"%b": "[\w-]*"|"[\w.-]+": "%b:[\w-]*")' % (SALT_INPUT.encode(), SALT_INPUT.encode()))
_PNG = b"\x89PNG\r\n\x1a\n"
#: Texts, and the chunk of ComfyUI's own that SaveAnimatedPNG writes behind the first picture.
_PNG_TEXTS = {b"tEXt", b"iTXt", b"comf"}
#: Metadata beyond this is not a prompt.
_MAX_CHUNK = 16 * 1024 * 1024
#: An animation of more frames keeps the traces; a file of zeroes is not walked byte by byte.
_MAX_CHUNKS = 10_000


def restore(path: Path, prefix: str) -> bool:
    """Blank what isolation with ``prefix`` left in a PNG or WEBP file; True when there was something.

    Other formats are left alone, and so is anything that does not look as expected.
    """
    fd = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        head = os.pread(fd, 16, 0)
        if head.startswith(_PNG):
            return _png(fd, prefix)
        if head[:4] == b"RIFF" and head[8:12] == b"WEBP":
            return _webp(fd, prefix)
        return False
    finally:
        os.close(fd)


def blanked(text: bytes, prefix: str) -> bytes:
    """The JSON text with this job's prefix and salt replaced by spaces; as long as before."""
    text = _SALT.sub(lambda match: b" " * len(match[0]), text)
    trace = b'"%b/' % prefix.encode()
    return text.replace(trace, b" " * (len(trace) - 1) + b'"')


def _png(fd: int, prefix: str) -> bool:
    """Chunks are length (4), type (4), data, CRC of type and data (4)."""
    at, found = len(_PNG), False
    for _ in range(_MAX_CHUNKS):
        header = os.pread(fd, 8, at)
        if len(header) < 8:
            break
        size, kind = struct.unpack(">I4s", header)
        if kind == b"IEND":
            break
        if kind in _PNG_TEXTS and size <= _MAX_CHUNK:
            data = os.pread(fd, size, at + 8)
            changed = blanked(data, prefix)
            if changed != data:
                os.pwrite(fd, changed + struct.pack(">I", zlib.crc32(kind + changed)), at + 8)
                found = True
        at += size + 12
    return found


def _webp(fd: int, prefix: str) -> bool:
    """RIFF chunks are type (4), length (4, little-endian), data, padded to even; EXIF follows the pictures."""
    at, found = 12, False
    for _ in range(_MAX_CHUNKS):
        header = os.pread(fd, 8, at)
        if len(header) < 8:
            break
        kind, size = struct.unpack("<4sI", header)
        if kind == b"EXIF" and size <= _MAX_CHUNK:
            data = os.pread(fd, size, at + 8)
            changed = blanked(data, prefix)
            if changed != data:
                os.pwrite(fd, changed, at + 8)
                found = True
        at += 8 + size + size % 2
    return found
