"""A file on its way into the folder: counted, hashed, then given its name, or removed if it does not arrive."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

from settee.base.json_io import decode_base64
from settee.client.client_errors import JobFailed
from settee.client.job_outputs import Output, numbered, same

#: Characters of a string that are written at once.
_PIECE = 1024 * 1024


class Damaged(JobFailed):
    """An output that differs from what the worker stated."""


class Part:
    """A file that is written from its front. ``open_part`` makes them."""

    def __init__(self, path: Path, file: BinaryIO) -> None:
        self.path = path
        #: Bytes so far.
        self.size = 0
        #: Identifies this version of the file on its server, where that is known.
        self.validator: str | None = None
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
        self._sha256, self.size, self.validator = hashlib.sha256(), 0, None

    def finish(self) -> None:
        """Close the file. Raises OSError: a full disk may be reported only now."""
        self._file.close()


@contextlib.contextmanager
def open_part(folder: Path) -> Iterator[Part]:
    """Open a part in the folder. At the end it is removed, unless it was moved away. Raises OSError."""
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
    """Check the part. Raises Damaged when its size or hash differs from what the worker stated."""
    if output.size is not None and part.size != output.size:
        raise Damaged(f"it has {part.size:,} bytes, and the worker stated {output.size:,}")
    if output.sha256 is not None and part.sha256 != output.sha256.strip().lower():
        raise Damaged("its sha256 differs from the one that the worker stated: it was damaged on its way")


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
    """Write the string as UTF-8, line ends as they are."""
    for position in range(0, len(text), _PIECE):
        # Half a surrogate pair is all that UTF-8 cannot take; cutting text into pieces makes no such halves.
        part.write(text[position : position + _PIECE].encode(errors="replace"))


#: Appended to the whole name of a file: ``a.png`` and ``a.mp4`` of one job do not collide.
NOTE_SUFFIX = ".json"


def place(
    part: Path, folder: Path, name: str, taken: set[str], *, overwrite: bool, note: Callable[[str], bytes] | None
) -> Path:
    """Move the part to its name, or to the next free one: ``a-2.png``. Returns where it is now. Raises OSError.

    What was there before stays, unless ``overwrite``; names in ``taken`` (of this job, as :func:`names.same` has
    them) are never used twice, and the ones used are added. ``note`` makes the JSON to write next to a file of a name;
    with one, its name must be free too.
    """
    move = _replaced if overwrite else _taken
    for candidate in numbered(name):
        names = [candidate, candidate + NOTE_SUFFIX] if note else [candidate]
        paths = [folder / one for one in names]
        is_blocked = Path.is_dir if overwrite else os.path.lexists
        if any(same(one) in taken for one in names) or any(map(is_blocked, paths)):
            continue
        with open_part(folder) if note else contextlib.nullcontext() as written:
            if written and note:
                written.write(note(candidate))
                written.finish()
                if not move(written.path, paths[1]):
                    continue
        if move(part, paths[0]):
            taken.update(same(one) for one in names)
            return paths[0]
        if note:
            paths[1].unlink(missing_ok=True)
    raise AssertionError("numbers end")


def _replaced(source: Path, target: Path) -> bool:
    os.replace(source, target)
    return True


def _taken(source: Path, target: Path) -> bool:
    """Give the file this name as well, or instead; False when the name was taken, also by another process at the same
    time."""
    with contextlib.suppress(FileExistsError):
        try:
            os.link(source, target)
        except FileExistsError:
            raise
        except OSError:
            # FAT, many network shares and Android have no hard links: take the name with an empty file, then fill it.
            target.open("xb").close()
            try:
                os.replace(source, target)
            except OSError:
                target.unlink(missing_ok=True)
                raise
        return True
    return False
