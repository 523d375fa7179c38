"""The parts that media files consist of, from head to head: chunks of PNG and RIFF, and whatever a head describes.

Files may be hostile: every size is checked, and every walk ends. Pure; for worker and client.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from typing import NamedTuple

#: Takes a place and a number of bytes, of which it returns fewer at the end of the file.
ReadAt = Callable[[int, int], bytes]
#: Takes the first bytes of a part: its type, the size of its head, of its content (None: all that is left) and of what
#: follows that. None at the end.
Head = Callable[[bytes], "tuple[bytes, int, int | None, int] | None"]

#: Bytes that a head is read from.
_HEAD = 16
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
        if (found := head(read_at(start, max(0, min(_HEAD, end - start))))) is None:
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
