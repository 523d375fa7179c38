"""The record of each placed file: a small JSON file of its own, in a hidden folder of the models folder.

``checkpoints/sd15.safetensors`` has its record in ``.settee/checkpoints/sd15.safetensors.json``. A record is written
whole or not at all (temporary name, rename); one that is not valid is ignored. Its modification time is when the file
was last used, and a shared flock on it means that a job uses the file now.
"""

from __future__ import annotations

import contextlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import Any

import orjson

from settee.base.files import WAIT_S, Lock, hold, write_whole

log = logging.getLogger(__name__)

#: In the models folder. ComfyUI looks in named folders only and never lists it.
FOLDER = ".settee"
#: Begins temporary names, here and next to models. No entry may have a hidden name.
TEMPORARY = ".settee-"
#: Ends the lock, next to the record, of the process that places the file.
PLACING = ".placing"
#: A record has some 400 bytes; a larger file is not a record.
_MAX_BYTES = 16 * 1024
_counter = itertools.count()


@dataclass(frozen=True, kw_only=True)
class Placed:
    """The record of one file."""

    #: Below the models folder: ``checkpoints/sd15.safetensors``.
    path: str
    #: :func:`settee.models.entry.identity` of the requested source.
    source: str
    #: Bytes of the file, or of the file that the link leads to.
    size: int
    mtime_ns: int
    #: Hex; None when it was neither computed nor known from a trusted source.
    sha256: str | None = None
    #: Hex of the 64-bit XXH3 of the right bytes; None for links and for files that were never read whole.
    xxh3: str | None = None
    #: The symbolic link's target; None for a plain file.
    link: str | None = None
    #: Brought by a job: may be evicted.
    from_job: bool = False
    #: Brought by a sealed job: to be wiped when no job uses it.
    sealed: bool = False
    #: Not placed yet: a download for it has begun. Size, time and link are those of the earlier file (size -1: none),
    #: so that the download's result is told from it, even when the process was killed before it could record it.
    pending: bool = False
    #: ``time.time()`` of the placing.
    placed_at: float = 0.0
    #: ``time.time()`` of the last use. Not written: it is the record file's modification time.
    last_used: float = field(default=0.0, compare=False)

    def matches(self, size: int, mtime_ns: int, link: str | None) -> bool:
        """Return True if a file with these facts is still the recorded one."""
        return self.size == size and self.link == link and self.same_time(mtime_ns)

    def same_time(self, mtime_ns: int) -> bool:
        """Compare times. Layers of images, where baked models are, have whole seconds only (Docker's archiver)."""
        return mtime_ns in (self.mtime_ns, self.mtime_ns // 10**9 * 10**9)


_TYPES: dict[str, tuple[type, ...]] = {
    "path": (str,),
    "source": (str,),
    "size": (int,),
    "mtime_ns": (int,),
    "sha256": (str, type(None)),
    "xxh3": (str, type(None)),
    "link": (str, type(None)),
    "from_job": (bool,),
    "sealed": (bool,),
    "pending": (bool,),
    "placed_at": (float, int),
}
assert set(_TYPES) == {item.name for item in fields(Placed)} - {"last_used"}


def _parse(text: bytes, rel: str, last_used: float) -> Placed | None:
    """Return None for anything but a record of this very file."""
    try:
        data = orjson.loads(text)
    except ValueError:
        return None
    if not isinstance(data, dict) or data.keys() != _TYPES.keys() or data["path"] != rel:
        return None
    if any(type(value) not in _TYPES[name] for name, value in data.items()):
        return None
    return Placed(**data, last_used=last_used)


class Records:
    """The records below one models folder. Everything here may be called from any thread."""

    def __init__(self, models_dir: str) -> None:
        self._root = f"{models_dir}/{FOLDER}"
        #: Records that could not be written (a read-only folder) or must not be replaced just now (in use), each with
        #: the record on disk at that time: another process's later record takes precedence.
        self._unwritten: dict[str, tuple[Placed, Placed | None]] = {}
        self._has_warned = False

    def file(self, rel: str) -> str:
        """Return the path of the record of ``checkpoints/sd15.safetensors``, which need not exist."""
        return f"{self._root}/{rel}.json"

    def read(self, rel: str) -> Placed | None:
        """Return the record, or None. One open, one read."""
        written = self._read(rel)
        remembered = self._unwritten.get(rel)
        if remembered is None:
            return written
        if remembered[1] == written:
            return remembered[0]
        self._unwritten.pop(rel, None)
        return written

    def _read(self, rel: str) -> Placed | None:
        try:
            fd = os.open(self.file(rel), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError:
            return None
        try:
            return _parse(os.read(fd, _MAX_BYTES), rel, os.fstat(fd).st_mtime)
        except OSError:
            return None
        finally:
            os.close(fd)

    def write(self, placed: Placed, *, wait_s: float = 0.0) -> bool:
        """Replace the record. If the folder is read-only, it is kept for this process only, with one warning.

        False when running jobs hold the lock of the existing record for longer than ``wait_s``.
        """
        with self.lock(placed.path, exclusive=True, wait_s=wait_s) as lock:
            if lock is Lock.BUSY:
                self._remember(placed, self._read(placed.path))
                return False
            self.write_locked(placed)
            return True

    def rewrite(
        self, seen: Placed | None, placed: Placed, *, is_still: Callable[[], bool] = lambda: True, wait_s: float = 0.0
    ) -> bool:
        """Replace the record that ``placed`` was derived from. False, and no change, when it has changed since.

        The same when ``is_still``, called while the record is locked, returns False. While running jobs hold the
        record's lock, the new one is kept for this process, for as long as the record stays the one that was seen.
        """
        remembered = self._unwritten.get(placed.path)
        on_disk = remembered[1] if remembered is not None and remembered[0] == seen else seen
        with self.lock(placed.path, exclusive=True, wait_s=wait_s) as lock:
            if self.read(placed.path) != seen or not is_still():
                return False
            if lock is Lock.BUSY:
                self._remember(placed, on_disk)
            else:
                self.write_locked(placed)
            return True

    def write_locked(self, placed: Placed) -> None:
        """Replace the record. The caller holds the exclusive lock."""
        file = self.file(placed.path)
        folder, _, _ = file.rpartition("/")
        try:
            # Not synced: a record lost in a power cut costs one check of the file, and 1,000 syncs would cost seconds.
            write = partial(write_whole, file, _render(placed), is_lasting=False, part=f"{folder}/{temporary_name()}")
            try:
                write()
            except FileNotFoundError:
                os.makedirs(folder, exist_ok=True)
                write()
        except OSError as error:
            self._remember(placed, self._read(placed.path))
            self._warn(error)
            return
        self._unwritten.pop(placed.path, None)

    def _remember(self, placed: Placed, on_disk: Placed | None) -> None:
        self._unwritten[placed.path] = (replace(placed, last_used=time.time()), on_disk)

    def forget(self, rel: str) -> None:
        """Drop a record that only this process has."""
        self._unwritten.pop(rel, None)

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "placed models cannot be recorded in the models folder (%s): they will be checked again at every start",
                error.strerror,
            )

    def delete(self, rel: str) -> None:
        """Delete a record. Raises OSError; one that stays does no harm, as it no longer matches the file."""
        self._unwritten.pop(rel, None)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self.file(rel))

    def touch(self, rel: str) -> None:
        """Note that the file is used now."""
        remembered = self._unwritten.get(rel)
        if remembered is not None:
            self._remember(*remembered)
        with contextlib.suppress(OSError):
            os.utime(self.file(rel))

    def __iter__(self) -> Iterator[Placed]:
        """Yield all valid records, sorted by path."""
        names = set(self._unwritten)
        for folder, _, files in os.walk(self._root):
            below = folder[len(self._root) + 1 :]
            for name in files:
                if name.endswith(".json") and not name.startswith("."):
                    names.add(f"{below}/{name[:-5]}" if below else name[:-5])
        for rel in sorted(names):
            placed = self.read(rel)
            if placed is not None:
                yield placed

    @contextlib.contextmanager
    def lock(self, rel: str, *, exclusive: bool, wait_s: float = 0.0) -> Iterator[Lock]:
        """Hold the lock of a record: shared to use the file, exclusive to remove or replace it.

        An exclusive one waits for users no longer than ``wait_s``, not for a job's end. Both wait for the moment that
        a removal takes. Locks of the same process exclude one another too. The block is entered with BUSY and NONE as
        well, and decides what they mean.
        """
        with contextlib.ExitStack() as stack:
            # One exclusive lock at a time in the whole folder: any other holder of this one is a user.
            if exclusive:
                whole = hold(stack, f"{self._root}/.lock", exclusive=True, wait_s=WAIT_S, create=True)
                if whole is Lock.BUSY:
                    yield Lock.BUSY
                    return
            yield hold(stack, self.file(rel), exclusive=exclusive, wait_s=wait_s if exclusive else WAIT_S)

    @contextlib.contextmanager
    def placing(self, rel: str, wait_s: float) -> Iterator[Lock]:
        """Hold the right to put a file there, among all processes."""
        path = f"{self._root}/{rel}{PLACING}"
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.ExitStack() as stack:
            lock = hold(stack, path, exclusive=True, wait_s=wait_s, create=True)
            try:
                yield lock
            finally:
                if lock is Lock.HELD:
                    # While it is held: a waiting process sees that it is gone, and makes its own.
                    with contextlib.suppress(OSError):
                        os.unlink(path)


def temporary_name() -> str:
    """Return a name that no other process or thread uses."""
    return f"{TEMPORARY}{os.getpid()}-{time.monotonic_ns():x}-{next(_counter)}.tmp"


def _render(placed: Placed) -> bytes:
    data: dict[str, Any] = {name: getattr(placed, name) for name in _TYPES}
    return orjson.dumps(data, option=orjson.OPT_INDENT_2)
