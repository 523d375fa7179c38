"""The partial file next to the target, and the journal of what is in place of it.

**The part** has one writer in the whole machine (:meth:`settee.models.folder.model_folder.ModelFolder.claim`), and is
renamed once it is right. Its descriptor lives as long as a
thread uses it: one that waits for a silent server may outlast its download, and must not find another file under the
same number.

**The journal** is JSON in which every range's count of bytes has a line of fixed width, so that noting progress is one
write of a few bytes, in place. Bytes are written before they are noted, and after SIGKILL the kernel keeps both, so a
killed download loses what was in its buffers and nothing more. After a power cut (or on another machine, where the
folder is on a network) the note may exist without the bytes: the journal names its boot, and after another boot it
counts only when the file's sha256 is known and will tell.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import os
import threading
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from settee.base.files import is_at, sync_folder, write_whole
from settee.base.threads import Stopped
from settee.models.folder.place import JOURNAL, PART, free_at, of_disk
from settee.models.transfer.address import Address

_FORMAT = 1
_WIDTH = 15


class Part:
    """The partial file of one download, open."""

    def __init__(self, target: Path) -> None:
        """Open it, and make it where there is none. Raises StagingError for a folder that cannot be written."""
        self.target = target
        self.path, self.journal_path = target.with_name(target.name + PART), target.with_name(target.name + JOURNAL)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            self.fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
        except OSError as error:
            raise of_disk(error, target) from error
        self._lock = threading.Condition()
        self._writers = 0
        self._users = 1
        self._closing = False

    def resize(self, size: int) -> None:
        """Give the file its size. Raises NoSpace, StagingError."""
        needed = self.check_room(size)
        try:
            os.ftruncate(self.fd, size)
        except OSError as error:
            raise of_disk(error, self.target, needed) from error

    def check_room(self, size: int) -> int:
        """Return how many bytes more a file of that size takes. Raises NoSpace when the disk has fewer."""
        needed = max(0, size - os.fstat(self.fd).st_blocks * 512)
        if needed > free_at(str(self.target)):
            raise of_disk(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), self.target, needed)
        return needed

    def write(self, data: memoryview, offset: int) -> None:
        """Raises NoSpace, StagingError, Stopped once the part is being closed."""
        if self._closing:
            raise Stopped
        try:
            while data:
                count = os.pwrite(self.fd, data, offset)
                data, offset = data[count:], offset + count
        except OSError as error:
            raise of_disk(error, self.target) from error

    def reset(self) -> None:
        """Drop all bytes. Raises StagingError."""
        try:
            _remove_journal(self.journal_path)
            os.ftruncate(self.fd, 0)
        except OSError as error:
            raise of_disk(error, self.target) from error

    def tidy(self) -> None:
        """Remove a failed download's files unless a later one can go on with them."""
        found = load(self.journal_path)
        if found is None or not any(found[1]):
            self.discard()

    def discard(self) -> None:
        """Remove both files; not what another process put there since."""
        if not is_at(self.fd, self.path):
            return
        with contextlib.suppress(OSError):
            _remove_journal(self.journal_path)
        with contextlib.suppress(OSError):
            self.path.unlink(missing_ok=True)

    def finish(self, instead: Path | None = None) -> None:
        """Rename the part, which is synced already, to the target, or a file ``instead`` of it.

        It survives a power cut from here on. Raises StagingError.
        """
        try:
            if instead is not None:
                with open(instead, "rb") as file:
                    os.fsync(file.fileno())
            # First: a journal without its part is harmless, one next to another download's part would be wrong.
            _remove_journal(self.journal_path)
            (instead or self.path).replace(self.target)
            if instead is not None:
                self.path.unlink(missing_ok=True)
            sync_folder(self.target.parent)
        except OSError as error:
            raise of_disk(error, self.target) from error

    @contextlib.contextmanager
    def using(self, *, writes: bool) -> Iterator[None]:
        """For a thread that reads or syncs, and may be left alone with that, or writes: :meth:`settle` waits for it.

        Raises Stopped when it is too late.
        """
        with self._lock:
            if self._closing:
                raise Stopped
            self._users += 1
            self._writers += writes
        try:
            yield
        finally:
            self._leave(writes)

    def settle(self, timeout_s: float) -> None:
        """Wait until no thread writes."""
        with self._lock:
            self._lock.wait_for(lambda: not self._writers, timeout_s)

    def close(self) -> None:
        """Release the descriptor with its last user."""
        self._closing = True
        self._leave(False)

    def _leave(self, writes: bool) -> None:
        with self._lock:
            self._users -= 1
            self._writers -= writes
            last = not self._users
            self._lock.notify_all()
        if last:
            os.close(self.fd)


# --- the journal -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Head:
    """The file that a journal's bytes belong to."""

    #: Its address, without a query.
    where: str
    validator: str | None
    #: The ETag that the server that sends the bytes gives to this state of the file.
    etag: str | None
    #: Hex, expected.
    sha256: str | None
    size: int
    range_bytes: int

    def admits(self, file: Address) -> bool:
        """Return True if a download of that file may go on with these bytes: only when they are known to be its."""
        if file.size != self.size:
            return False
        if file.sha256 is not None and self.sha256 is not None:
            return file.sha256 == self.sha256
        return file.validator is not None and file.validator == self.validator and file.where == self.where


class Journal:
    """An open journal."""

    def __init__(self, path: Path, head: Head, done: list[int]) -> None:
        """Write it whole, in place of any older one. Raises OSError."""
        fields = json.dumps({"format": _FORMAT, "boot": boot(), **asdict(head)})
        begin = f'{fields[:-1]},\n"done": [\n'.encode()
        lines = ",\n".join(f"{count:{_WIDTH}d}" for count in done).encode()
        self._offset = len(begin)
        write_whole(path, begin + lines + b"\n]}\n", is_lasting=False, part=_fresh_path(path))
        self._fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)

    def note(self, index: int, count: int) -> None:
        """Range ``index`` has ``count`` bytes in place, from its beginning on. Raises OSError."""
        os.pwrite(self._fd, b"%*d" % (_WIDTH, count), self._offset + index * (_WIDTH + 2))

    def close(self) -> None:
        """Close the file, which stays. A thread that is late notes nothing any more."""
        fd, self._fd = self._fd, -1
        os.close(fd)


def _fresh_path(path: Path) -> Path:
    """Return where a journal is written before it takes its name."""
    return path.with_name(path.name + "~")


def _remove_journal(path: Path) -> None:
    """Raises OSError, but not when there is none."""
    path.unlink(missing_ok=True)
    _fresh_path(path).unlink(missing_ok=True)


def load(path: Path) -> tuple[Head, list[int], bool] | None:
    """Return head, bytes in place per range, and True if this boot wrote it. None when there is no valid journal."""
    try:
        data = json.loads(path.read_bytes())
        is_ours, same_boot, done = data.pop("format") == _FORMAT, data.pop("boot") == boot() != "", data.pop("done")
        head = Head(**data)
        starts = range(0, head.size, head.range_bytes)
        lengths = [min(head.range_bytes, head.size - start) for start in starts]
        is_sound = is_ours and all(0 <= count <= most for count, most in zip(done, lengths, strict=True))
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return (head, done, same_boot) if is_sound else None


@functools.lru_cache(maxsize=1)
def boot() -> str:
    """Return the id of this boot of this machine; empty where the system has none."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    return ""
