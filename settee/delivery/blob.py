"""The bytes to deliver: read in place, in pieces, as often as needed, and never all at once."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import tempfile
import threading
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from settee.base.errors import DeliveryError, OutputMissing
from settee.s3.error_table import S3Error
from settee.s3.objects import UploadStopped

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from settee.base.job import Artifact

#: A multiple of 3, so that each chunk's base64 joins the next one's without padding.
CHUNK = 3 << 17
PNG = b"\x89PNG\r\n\x1a\n"

#: Width and height, pixels.
Size = tuple[int, int]


class Span(NamedTuple):
    """A part of a blob: where it begins and how long it is, in bytes."""

    offset: int
    length: int


class Blob:
    """Bytes in memory, a file, or a file with parts left out or put in (see ``strip``). Close it after use.

    Safe to read from several threads: there is no file position.
    """

    def __init__(self, data: bytes = b"", *, fd: int = -1, size: int = 0) -> None:
        """``fd``: of the file, which is closed by this object; ``size``: its bytes."""
        self._fd = fd
        self._consist_of([Span(0, size)] if fd >= 0 else [data])

    def _consist_of(self, pieces: Sequence[bytes | Span]) -> None:
        self._pieces = [piece for piece in pieces if (piece.length if isinstance(piece, Span) else len(piece))]
        self._ends = list(accumulate(piece.length if isinstance(piece, Span) else len(piece) for piece in self._pieces))
        self.size = self._ends[-1] if self._ends else 0

    def rearranged(self, parts: Sequence[bytes | Span]) -> Blob:
        """Return other bytes made of parts of this one (spans count in its own bytes), which gives its file away."""
        pieces: list[bytes | Span] = []
        for part in parts:
            for piece in self._cut(part) if isinstance(part, Span) else [part]:
                last = pieces[-1] if pieces else None
                # A PNG has a chunk every few kilobytes: neighbours are read together.
                if isinstance(last, Span) and isinstance(piece, Span) and sum(last) == piece.offset:
                    pieces[-1] = Span(last.offset, last.length + piece.length)
                else:
                    pieces.append(piece)
        made = Blob()
        made._fd, self._fd = self._fd, -1
        made._consist_of(pieces)
        return made

    def _cut(self, span: Span) -> Iterator[bytes | Span]:
        start = 0
        for piece, end in zip(self._pieces, self._ends, strict=True):
            low, high = max(span.offset, start) - start, min(span.offset + span.length, end) - start
            if low < high:
                yield Span(piece.offset + low, high - low) if isinstance(piece, Span) else piece[low:high]
            start = end

    def read_into(self, buffer: WriteableBuffer, position: int) -> int:
        """Fill the buffer with the bytes at ``position``; return their number. Raises DeliveryError."""
        view = memoryview(buffer).cast("B")
        index, filled = bisect_right(self._ends, position), 0
        while filled < len(view) and index < len(self._pieces):
            piece = self._pieces[index]
            left = self._ends[index] - position
            part = view[filled : filled + left]
            if isinstance(piece, Span):
                count = os.preadv(self._fd, [part], piece.offset + piece.length - left)
                if count == 0:
                    raise DeliveryError("an output file became shorter while it was being delivered")
            else:
                count = len(part)
                part[:] = memoryview(piece)[len(piece) - left :][:count]
            filled += count
            position += count
            if count == left:
                index += 1
        return filled

    def read_at(self, position: int, length: int) -> bytes:
        """Return at most ``length`` bytes from ``position``."""
        buffer = bytearray(max(0, min(length, self.size - position)))
        self.read_into(buffer, position)
        return bytes(buffer)

    def chunks(self) -> Iterator[memoryview]:
        """Give all bytes in chunks of CHUNK (the last is shorter). Each is valid until the next one is taken."""
        buffer = memoryview(bytearray(min(CHUNK, self.size)))
        position = 0
        while position < self.size:
            count = self.read_into(buffer, position)
            yield buffer[:count]
            position += count

    def close(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def __del__(self) -> None:
        # For uploads given up on: closing under the thread that still reads could hand it another file's bytes.
        self.close()


class Stream:
    """Bytes that come once, from ComfyUI's /view. ``size``: as announced; below 1 when it is not known."""

    def __init__(self, artifact: Artifact, fetch: Callable[[Artifact], Iterator[bytes]]) -> None:
        self._artifact = artifact
        self._fetch = fetch
        self.size = artifact.size

    def chunks(self) -> Iterator[bytes]:
        """Give all bytes. Raises DeliveryError when there are fewer or more of them than were announced."""
        count = 0
        for chunk in self._fetch(self._artifact):
            count += len(chunk)
            yield chunk
        if self.size > 0 and count != self.size:
            raise DeliveryError(
                f"ComfyUI sent {count} of the {self.size} bytes of {self._artifact.filename}",
                details={"filename": self._artifact.filename, "node_id": self._artifact.node_id},
                retryable=True,
            )

    def spooled(self, folder: Path) -> Blob:
        """Return the same bytes, in a file without a name in ``folder``: to be read as often as needed."""
        with tempfile.TemporaryFile(dir=folder) as file:
            for chunk in self.chunks():
                file.write(chunk)
            file.flush()
            return Blob(fd=os.dup(file.fileno()), size=file.tell())

    def close(self) -> None:
        """Do nothing: no descriptor is held between reads."""


@dataclass
class Prepared:
    """An artifact's bytes as they will be delivered. Use as a context manager: it may hold an open file."""

    content: Blob | Stream
    filename: str
    media_type: str

    def __enter__(self) -> Prepared:
        return self

    def __exit__(self, *exc: object) -> None:
        self.content.close()


class Digest:
    """A counter that passes chunks on: ``size`` and ``sha256`` are those of all the bytes once they are through.

    ``pixels`` are those of an image whose first chunk has its size.
    """

    def __init__(self, check: Callable[[], None]) -> None:
        self._hash = hashlib.sha256()
        self._check = check
        self.size = 0
        self.pixels: Size | None = None

    def through(self, chunks: Iterator[bytes] | Iterator[memoryview]) -> Iterator[bytes | memoryview]:
        for chunk in chunks:
            self._check()
            if not self.size:
                self.pixels = image_size(bytes(chunk))
            self._hash.update(chunk)
            self.size += len(chunk)
            yield chunk

    def consume(self, chunks: Iterator[bytes] | Iterator[memoryview]) -> None:
        for _ in self.through(chunks):
            pass

    @property
    def sha256(self) -> str:
        return self._hash.hexdigest()


class Window(io.RawIOBase):
    """A part of a blob as a seekable file. Raises UploadStopped from its reads once ``stop`` is set."""

    def __init__(self, blob: Blob, offset: int = 0, length: int | None = None, stop: threading.Event | None = None):
        super().__init__()
        self._blob = blob
        self._offset = offset
        self._length = blob.size - offset if length is None else length
        self._position = 0
        self._stop = stop

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def readinto(self, buffer: WriteableBuffer) -> int:
        if self._stop is not None and self._stop.is_set():
            raise UploadStopped
        view = memoryview(buffer).cast("B")[: max(0, self._length - self._position)]
        count = self._blob.read_into(view, self._offset + self._position)
        self._position += count
        return count

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._length}[whence]
        self._position = max(0, start + offset)
        return self._position

    def tell(self) -> int:
        return self._position


def open_file(artifact: Artifact) -> Blob:
    """Open the file of an artifact. Raises OutputMissing when it is gone or is not a plain file.

    A link is refused: it would hand over a file that ComfyUI never made.
    """
    assert artifact.path is not None
    details = {"filename": artifact.filename, "node_id": artifact.node_id}
    try:
        fd = os.open(artifact.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise OutputMissing(
            f"the output file {artifact.filename} of node {artifact.node_id} cannot be read: {error.strerror}",
            details=details,
        ) from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise OutputMissing(f"the output {artifact.filename} of node {artifact.node_id} is not a file", details=details)
    return Blob(fd=fd, size=status.st_size)


def delivery_error(error: S3Error) -> DeliveryError:
    """Return S3's failure as the job's."""
    return DeliveryError(error.message, details=error.details, retryable=error.retryable)


def image_size(head: bytes) -> Size | None:
    """Return width and height in pixels of a PNG, JPEG, WEBP, GIF or BMP, by its first bytes; None for anything else.

    ``Image.open`` would read all of a WEBP, and stop at a PNG whose workflow is longer than ``head``.
    """
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
            return _jpeg(head)
        else:
            return None
    except (struct.error, ValueError):
        return None
    return (width, height) if width > 0 and height > 0 else None


def _webp(head: bytes) -> Size:
    """Read the size: extended, lossless and lossy files keep their size in three ways (RFC 9649, 2.5 to 2.7)."""
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


def _jpeg(head: bytes) -> Size | None:
    """Hop from segment to segment to the frame header (SOFn), which comes early in any real file."""
    position = 2
    for _ in range(1000):
        marker = head[position : position + 9]
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
