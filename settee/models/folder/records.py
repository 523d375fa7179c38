"""The record of each placed file: a small JSON file of its own, in a hidden folder of the models folder.

``checkpoints/sd15.safetensors`` has its record in ``.settee/checkpoints/sd15.safetensors.json``. A record is written
whole or not at all (temporary name, rename); one that is not valid is ignored. Its modification time is when the file
was last used, and a shared flock on it means that a job uses the file now.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import orjson
from pydantic import ConfigDict, TypeAdapter

from settee.base.files import WAIT_S, Lock, closing_fd, hold, write_whole
from settee.models.folder.place import JOURNAL, PART, temporary_name, walk
from settee.staging.wipe import wipe_file

log = logging.getLogger(__name__)

#: In the models folder. ComfyUI looks in named folders only and never lists it.
FOLDER = ".settee"
#: Ends the lock, next to the record, of the process that places the file.
PLACING = ".placing"
#: A record has some 400 bytes; a larger file is not a record.
_MAX_BYTES = 16 * 1024


@dataclass(frozen=True, kw_only=True)
class Placed:
    """The record of one file."""

    __pydantic_config__ = ConfigDict(extra="forbid")

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
    #: so that the download's result can be told apart, even when the process was killed before it could record it.
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


@functools.cache
def _adapter() -> TypeAdapter[Placed]:
    return TypeAdapter(Placed)  # takes milliseconds, which an import must not


class Records:
    """The records below one models folder, and the users of its files, in all processes that share it.

    Everything here may be called from any thread. Names are relative: ``checkpoints/sd15.safetensors``.
    """

    def __init__(self, models_dir: str) -> None:
        self._models, self._root = models_dir, f"{models_dir}/{FOLDER}"
        #: Records that could not be written (a read-only folder) or must not be replaced just now (in use), each with
        #: the record on disk at that time: another process's later record takes precedence.
        self._unwritten: dict[str, tuple[Placed, Placed | None]] = {}
        self._has_warned = False
        #: How many running jobs of this process use a file.
        self._counts: Counter[str] = Counter()
        self._mutex = threading.RLock()

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
            with closing_fd(os.open(self.file(rel), os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)) as fd:
                placed = _adapter().validate_json(os.read(fd, _MAX_BYTES), strict=True)
                return replace(placed, last_used=os.fstat(fd).st_mtime) if placed.path == rel else None
        except (OSError, ValueError):
            return None

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
        """Replace the record. The caller holds the exclusive lock.

        If the folder is read-only, it is kept for this process only, with one warning.
        """
        file = self.file(placed.path)
        folder = os.path.dirname(file)
        data = {name: value for name, value in vars(placed).items() if name != "last_used"}
        content = orjson.dumps(data, option=orjson.OPT_INDENT_2)
        try:
            os.makedirs(folder, exist_ok=True)
            # Not synced: a record lost in a power cut costs one check of the file, and 1,000 syncs would cost seconds.
            write_whole(file, content, is_lasting=False, part=f"{folder}/{temporary_name()}")
        except OSError as error:
            self._remember(placed, self._read(placed.path))
            if not self._has_warned:
                self._has_warned = True
                why = "they will be checked again at every start"
                log.warning("placed models cannot be recorded in the models folder (%s): %s", error.strerror, why)
            return
        self._unwritten.pop(placed.path, None)

    def _remember(self, placed: Placed, on_disk: Placed | None) -> None:
        self._unwritten[placed.path] = (replace(placed, last_used=time.time()), on_disk)

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
        names = {name.removesuffix(".json") for name in walk(self._root) if name.endswith(".json")}
        for rel in sorted(names | self._unwritten.keys()):
            if placed := self.read(rel):
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
    def placing(self, rel: str, wait_s: float, *, create: bool = True) -> Iterator[Lock]:
        """Hold the right to put a file there, among all processes."""
        path = f"{self._root}/{rel}{PLACING}"
        with contextlib.suppress(OSError):
            if create:
                os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.ExitStack() as stack:
            lock = hold(stack, path, exclusive=True, wait_s=wait_s, create=create)
            try:
                yield lock
            finally:
                if lock is Lock.HELD:
                    # While it is held: a waiting process sees that it is gone, and makes its own.
                    with contextlib.suppress(OSError):
                        os.unlink(path)

    # --- users, and what has none -----------------------------------------------------------------------------

    @contextlib.contextmanager
    def use(self, rel: str) -> Iterator[bool]:
        """Keep a file from being removed or replaced. Yields False when another process does just that.

        Where the file system has no locks, only this process is kept from it.
        """
        with self._mutex:
            self._counts[rel] += 1
        try:
            with self.lock(rel, exclusive=False) as lock:
                yield lock is not Lock.BUSY
        finally:
            with self._mutex:
                self._counts[rel] -= 1

    def remove_part(self, rel: str, *, wipe: bool = False) -> bool:
        """Remove a download's part and journal. False while a process goes on with it. Raises OSError."""
        part, journal = f"{self._models}/{rel}{PART}", f"{self._models}/{rel}{JOURNAL}"
        if not os.path.lexists(part) and not os.path.lexists(journal):
            return True
        with self.placing(rel, 0.0) as lock:
            if lock is Lock.BUSY or os.path.islink(part):  # a link is not one of settee's
                return False
            for path in (journal, part):
                with contextlib.suppress(FileNotFoundError):
                    (overwrite if wipe else os.unlink)(path)
        return True

    def is_placing(self, rel: str) -> bool:
        """Return True if some process is placing this file."""
        with self.placing(rel, 0.0, create=False) as lock:
            return lock is Lock.BUSY

    def in_use(self, rel: str) -> bool:
        """Return True if a running job uses the file, in this process or another."""
        with self._mutex:
            if self._counts[rel] > 0:
                return True
            with self.lock(rel, exclusive=True) as lock:
                return lock is Lock.BUSY

    def remove(self, placed: Placed, *, wipe: bool = False) -> bool:
        """Remove a recorded file and its record. Return False while a running job uses it.

        False too when its record has changed since: the file was placed again. Of a link only the link is removed. A
        file that is not the recorded one any more stays. ``wipe`` overwrites the bytes. Raises OSError.
        """
        path, put_aside = f"{self._models}/{placed.path}", None
        with self._mutex:
            if self._counts[placed.path] > 0:
                return False
            with self.lock(placed.path, exclusive=True) as lock:
                # Size and time alone prove nothing: files written one after the other may share both.
                if lock is Lock.BUSY or self.read(placed.path) != placed:
                    return False
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    # Overwriting takes seconds, for which no lock may be held: the file is first renamed away.
                    put_aside = _remove_recorded(path, placed, put_away=wipe)
                self.delete(placed.path)
        if put_aside is not None:
            overwrite(put_aside)
        return True

    def discard(self, rel: str, *, wipe: bool = False) -> bool:
        """Remove what a job brought, whole or half downloaded. MODELS' files stay. ``wipe`` overwrites the bytes.

        False, which is logged, when something is left: used or fetched by another job, or not removable.
        """
        try:
            placed = self.read(rel)
            removed = placed is None or not placed.from_job or self.remove(placed, wipe=wipe)
            is_gone, why = self.remove_part(rel, wipe=wipe) and removed, "another job uses or fetches it"
        except OSError as error:
            is_gone, why = False, str(error.strerror)
        if not is_gone:
            log.log(logging.ERROR if wipe else logging.WARNING, "a job's model could not be removed: %s", why)
        return is_gone


def _remove_recorded(path: str, placed: Placed, *, put_away: bool) -> str | None:
    """Remove the file or link that the record describes, and nothing else. Raises OSError.

    ``put_away`` renames a file to a hidden name instead, which is returned for :func:`overwrite`.
    """
    info = os.lstat(path)
    if placed.link is not None:
        if stat.S_ISLNK(info.st_mode) and os.readlink(path) == placed.link:
            os.unlink(path)
        return None
    # Where a job's download had begun, the file is either its result or what it was to replace: both a job's.
    is_ours = (placed.pending and placed.from_job) or placed.matches(info.st_size, info.st_mtime_ns, None)
    if not (stat.S_ISREG(info.st_mode) and is_ours):
        return None
    if not put_away:
        os.unlink(path)
        return None
    hidden = f"{os.path.dirname(path)}/{temporary_name()}"
    os.rename(path, hidden)
    return hidden


def overwrite(path: str) -> None:
    """Overwrite a file in place and remove it. Raises OSError."""
    folder, name = os.path.split(path)
    with closing_fd(os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)) as fd:
        wipe_file(name, dir_fd=fd)
