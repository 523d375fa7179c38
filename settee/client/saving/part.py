"""A file on its way into the folder: under a name nobody looks for, counted, hashed, and gone if it does not arrive."""

from __future__ import annotations

import contextlib
import hashlib
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from settee.base.json_io import decode_base64
from settee.client.errors import JobFailed
from settee.client.results import Output

#: Characters of a text that are written at once.
_PIECE = 1024 * 1024


class Damaged(JobFailed):
    """An output that is not what the worker said it is."""


class Part:
    """A file that is written from its front. ``open_part`` makes them."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        #: Bytes so far.
        self.size = 0
        self._file = file
        self._sha256 = hashlib.sha256()

    @property
    def sha256(self) -> str:
        """Hex, of the bytes so far."""
        return self._sha256.hexdigest()

    def write(self, data: bytes) -> None:
        self._file.write(data)
        self._sha256.update(data)
        self.size += len(data)

    def start_over(self) -> None:
        self._file.seek(0)
        self._file.truncate()
        self._sha256 = hashlib.sha256()
        self.size = 0

    def finish(self) -> None:
        """Everything is with the system. Raises OSError: a full disk may say so only now."""
        self._file.close()


@contextlib.contextmanager
def open_part(folder: Path) -> Iterator[Part]:
    """A part in the folder. At the end it is removed, unless it was moved away. Raises OSError."""
    path = folder / f".settee-{secrets.token_hex(8)}.part"
    file = path.open("xb")
    try:
        yield Part(path, file)
    finally:
        # Closing writes what is buffered, which a full disk refuses a second time.
        with contextlib.suppress(OSError):
            file.close()
        with contextlib.suppress(OSError):
            path.unlink(missing_ok=True)


def check(part: Part, output: Output) -> None:
    """Raises Damaged when size or hash, as far as the worker gave them, are not those of the part."""
    if output.size is not None and part.size != output.size:
        raise Damaged(f"it has {part.size:,} bytes, and the worker said {output.size:,}")
    if output.sha256 is not None and part.sha256 != output.sha256.strip().lower():
        raise Damaged("its sha256 is not the one that the worker gave: it was damaged on its way")


def write_base64(data: str, part: Part) -> None:
    """Decode into the part, a piece at a time. Standard and URL-safe alphabet, white space, a ``data:`` prefix and
    missing padding are all taken; anything else raises Damaged."""
    start = data.index(",") + 1 if data[:5].lower() == "data:" and "," in data[:200] else 0
    try:
        for piece in decode_base64(data, start):
            part.write(piece)
    except ValueError as error:
        raise Damaged("its base64 is broken: it was cut or damaged on its way") from error


def write_text(text: str, part: Part) -> None:
    """As UTF-8, line ends as they are."""
    for position in range(0, len(text), _PIECE):
        # Half a surrogate pair is all that UTF-8 cannot take; cutting text into pieces makes no such halves.
        part.write(text[position : position + _PIECE].encode(errors="replace"))
