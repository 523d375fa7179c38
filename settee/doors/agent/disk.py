"""Small files that are whole or not there at all, also after a kill."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

_PART = ".part"


def write_whole(path: Path, content: bytes, *, mode: int = 0o600, is_lasting: bool = True) -> None:
    """Put ``content`` in the place of ``path``; with ``is_lasting`` it is on the disk on return, should the power
    fail. Follows no link. Raises OSError, and leaves what was there before."""
    part = path.with_name(path.name + _PART)
    try:
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
        with open(fd, "wb") as file:
            file.write(content)
            if is_lasting:
                file.flush()
                os.fsync(file.fileno())
        part.rename(path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink(missing_ok=True)
        raise
    if is_lasting:
        sync(path.parent)


def sweep(folder: Path) -> None:
    """Remove what a kill left half-written. Raises OSError."""
    for part in folder.glob(f"*{_PART}"):
        part.unlink(missing_ok=True)


def sync(folder: Path) -> None:
    """A rename or a removal lasts once its folder is on the disk. Raises OSError."""
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
