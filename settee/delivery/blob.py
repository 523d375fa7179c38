"""The bytes to deliver: read in place, in pieces, as often as needed, and never all at once."""

from __future__ import annotations

import hashlib
import io
import os
import stat
import struct
import tempfile
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from settee.base.errors import DeliveryError, OutputMissing
from settee.comfyui.media import HEAD, format_of
from settee.s3.error_table import S3Error
from settee.s3.objects import UploadStopped

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    from settee.base.job import Artifact

#: A multiple of 3, so that each chunk's base64 joins the next one's without padding.
CHUNK = 3 << 17

#: Width and height, pixels.
Size = tuple[int, int]


class Span(NamedTuple):
    """A part of a blob: where it begins and how long it is, in bytes."""

    offset: int
    length: int


class Blob:
    """Bytes in memory, or a file. Close it after use.

    Safe to read from several threads: there is no file position.
    """

    def __init__(self, data: bytes = b"", *, fd: int = -1, size: int = 0) -> None:
        """``fd``: of the file, which is closed by this object; ``size``: its bytes."""
        self._data, self._fd = data, fd
        self.size = size if fd >= 0 else len(data)

    def read_into(self, buffer: WriteableBuffer, position: int) -> int:
        """Fill the buffer with the bytes at ``position``; return their number. Raises DeliveryError."""
        view = memoryview(buffer).cast("B")[: max(0, self.size - position)]
        if self._fd < 0:
            view[:] = memoryview(self._data)[position : position + len(view)]
            return len(view)
        filled = 0
        while filled < len(view):
            count = os.preadv(self._fd, [view[filled:]], position + filled)
            if count == 0:
                raise DeliveryError("an output file became shorter while it was being delivered")
            filled += count
        return filled

    def read_at(self, position: int, length: int) -> bytes:
        """Return at most ``length`` bytes from ``position``."""
        buffer = bytearray(max(0, min(length, self.size - position)))
        self.read_into(buffer, position)
        return bytes(buffer)

    def chunks(self, span: Span | None = None) -> Iterator[memoryview]:
        """Give all bytes, or a part, in chunks of CHUNK (the last is shorter), each valid until the next is taken."""
        position, end = (0, self.size) if span is None else (span.offset, min(sum(span), self.size))
        buffer = memoryview(bytearray(max(0, min(CHUNK, end - position))))
        while position < end:
            count = self.read_into(buffer[: end - position], position)
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
    """Bytes that are only read from front to back: ComfyUI's /view, or parts of a blob, which is closed with it.

    ``size``: below 1 when it is not known.
    """

    def __init__(self, read: Callable[[], Iterator[bytes | memoryview]], size: int, source: Blob | None = None) -> None:
        self._read, self.size, self._source = read, size, source

    def chunks(self) -> Iterator[bytes]:
        """Give all bytes in chunks whose lengths are multiples of CHUNK (but the last one's)."""
        rest = bytearray()
        for piece in self._read():
            rest += piece
            whole = len(rest) - len(rest) % CHUNK
            if whole:
                yield bytes(rest[:whole])
                del rest[:whole]
        if rest:
            yield bytes(rest)

    def spooled(self, folder: Path) -> Blob:
        """Return the same bytes, in a file without a name in ``folder``: to be read as often as needed."""
        with tempfile.TemporaryFile(dir=folder) as file:
            for chunk in self.chunks():
                file.write(chunk)
            file.flush()
            return Blob(fd=os.dup(file.fileno()), size=file.tell())

    def close(self) -> None:
        if self._source is not None:
            self._source.close()


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


def open_file(artifact: Artifact) -> Blob:
    """Open the file of an artifact. Raises OutputMissing when it is gone or is not a plain file.

    A link is refused: it would hand over a file that ComfyUI never made.
    """
    assert artifact.path is not None
    details = {"filename": artifact.filename, "node_id": artifact.node_id}
    name = f"the output file {artifact.filename} of node {artifact.node_id}"
    try:
        fd = os.open(artifact.path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise OutputMissing(f"{name} cannot be read: {error.strerror}", details=details) from error
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise OutputMissing(f"{name} is not a file", details=details)
    return Blob(fd=fd, size=status.st_size)


def delivery_error(error: S3Error) -> DeliveryError:
    """Return S3's failure as the job's."""
    return DeliveryError(error.message, details=error.details, retryable=error.retryable)


def image_size(head: bytes) -> Size | None:
    """Return width and height in pixels of a PNG, JPEG, WEBP, GIF or BMP, by its first bytes; None for anything else.

    Pillow would read all of a WEBP, and stop at a PNG whose workflow is longer than ``head``.
    """
    known = format_of(head[:HEAD])
    try:
        if known == "PNG":
            width, height = struct.unpack(">II", head[16:24])
        elif known == "WEBP":
            width, height = _webp(head)
        elif known in ("JPEG", "GIF", "BMP"):
            from PIL.BmpImagePlugin import BmpImageFile
            from PIL.GifImagePlugin import GifImageFile
            from PIL.JpegImagePlugin import JpegImageFile

            readers: dict[str, Any] = {"JPEG": JpegImageFile, "GIF": GifImageFile, "BMP": BmpImageFile}
            width, height = readers[known](io.BytesIO(head)).size
        else:
            return None
    except Exception:
        # Pillow's readers let out whatever a bad file makes them stumble over.
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
