"""What of a partial download is in place, in a file beside it that outlives the process.

The file is JSON in which every range's count of bytes has a line of fixed width, so that noting progress is one write
of a few bytes, in place. Bytes are written before they are noted, and what SIGKILL leaves of both is in the kernel's
hands, so a killed download loses what was in its buffers and nothing more. A power cut (or another machine, where the
folder is on a network) may know the note and not the bytes: the journal names the boot it belongs to, and after
another boot it only counts when the file's sha256 is known and will tell.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

_FORMAT = 1
_WIDTH = 15


@dataclass(frozen=True)
class Head:
    """Whose bytes they are."""

    #: Of the address, no query.
    where: str
    validator: str | None
    #: What the server that sends the bytes calls this state of the file.
    etag: str | None
    #: Hex, expected.
    sha256: str | None
    size: int
    range_bytes: int

    def admits(self, where: str, validator: str | None, sha256: str | None, size: int) -> bool:
        """Whether a download of that may go on from here. None of the old bytes is believed without a reason."""
        if size != self.size:
            return False
        if sha256 is not None and self.sha256 is not None:
            return sha256 == self.sha256
        return validator is not None and validator == self.validator and where == self.where


class Journal:
    """Open for notes."""

    def __init__(self, path: Path, fd: int, offset: int) -> None:
        self._path = path
        self._fd = fd
        self._offset = offset

    @classmethod
    def create(cls, path: Path, head: Head, done: list[int]) -> Journal:
        """Write it whole, in place of any older one. Raises OSError."""
        fields = json.dumps({"format": _FORMAT, "boot": boot(), **asdict(head)})
        begin = f'{fields[:-1]},\n"done": [\n'.encode()
        lines = ",\n".join(f"{count:{_WIDTH}d}" for count in done)
        fresh = fresh_path(path)
        fd = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            text = begin + lines.encode() + b"\n]}\n"
            if os.write(fd, text) != len(text):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            fresh.replace(path)
        except BaseException:
            os.close(fd)
            raise
        return cls(path, fd, len(begin))

    def note(self, index: int, count: int) -> None:
        """Range ``index`` has ``count`` bytes in place, from its beginning on. Raises OSError."""
        os.pwrite(self._fd, b"%*d" % (_WIDTH, count), self._offset + index * (_WIDTH + 2))

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def fresh_path(path: Path) -> Path:
    """Where a journal is written before it takes its name."""
    return path.with_name(path.name + "~")


def remove(path: Path) -> None:
    """Raises OSError, but not when there is none."""
    path.unlink(missing_ok=True)
    fresh_path(path).unlink(missing_ok=True)


def load(path: Path) -> tuple[Head, list[int], bool] | None:
    """Head, bytes in place per range, and whether this boot wrote it. None when there is none that can be read."""
    try:
        data = json.loads(path.read_bytes())
        if data.pop("format") != _FORMAT:
            return None
        same_boot = data.pop("boot") == boot() != ""
        done = data.pop("done")
        head = Head(**data)
        if not _sound(head, done):
            return None
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return head, done, same_boot


def _sound(head: Head, done: Any) -> bool:
    if not (isinstance(head.size, int) and isinstance(head.range_bytes, int) and head.range_bytes > 0):
        return False
    starts = range(0, head.size, head.range_bytes)
    if not isinstance(done, list) or len(done) != len(starts):
        return False
    lengths = (min(head.range_bytes, head.size - start) for start in starts)
    return all(isinstance(count, int) and 0 <= count <= length for count, length in zip(done, lengths, strict=True))


@functools.lru_cache(maxsize=1)
def boot() -> str:
    """What tells this boot of this machine from any other; empty where the system does not say."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""
