"""What is remembered of each placed file: a small JSON file of its own, in a hidden folder of the models folder.

``checkpoints/sd15.safetensors`` has its record in ``.settee/checkpoints/sd15.safetensors.json``. A record is written
whole or not at all (temporary name, rename) and believed only when it makes sense; one that does not is none. Its
modification time is when the file was last used, and a shared flock on it says that a job uses the file now.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import orjson

from settee.base.files import WAIT_S, Lock, hold, write_whole
from settee.models.entry import HubFile, S3Object, Source

log = logging.getLogger(__name__)

#: In the models folder. ComfyUI looks in named folders only and never lists it.
FOLDER = ".settee"
#: How a temporary name of ours begins, here and beside models. No entry may have a hidden name.
TEMPORARY = ".settee-"
#: The lock, beside the record, of who places the file.
PLACING = ".placing"
#: A record is some 400 bytes; what is larger is none of ours.
_MOST_BYTES = 16 * 1024
_counter = itertools.count()


def identity(source: Source) -> str:
    """Which file of which revision was asked for. No secret: of a URL's credentials and query only a hash is kept."""
    if isinstance(source, HubFile):
        return f"hf:{source.repo}@{source.revision}:{source.filename}"
    if isinstance(source, S3Object):
        host = f"@{_host(source.endpoint)}" if source.endpoint else ""
        return f"{source.where}{host}{f'#{source.version}' if source.version else ''}"
    parts = urlsplit(source.url)
    private = f"{parts.netloc.rpartition('@')[0]}?{parts.query}"
    mark = "" if private == "?" else f"?{hashlib.sha256(private.encode()).hexdigest()[:32]}"
    return f"{source.where}{mark}"


def _host(url: str) -> str:
    """Without credentials, which an endpoint's address may hold."""
    return urlsplit(url).netloc.rpartition("@")[2].lower()


@dataclass(frozen=True, kw_only=True)
class Placed:
    """The record of one file."""

    #: Below the models folder: ``checkpoints/sd15.safetensors``.
    path: str
    #: :func:`identity` of what was asked for.
    source: str
    #: Of the file, or of the file that the link leads to.
    size: int
    mtime_ns: int
    #: Hex; None when nobody has computed it, or known it from a trusted place.
    sha256: str | None = None
    #: Hex of the 64-bit XXH3 of the bytes that were right; None for links and for what was never read whole.
    xxh3: str | None = None
    #: What the symbolic link says; None for a plain file.
    link: str | None = None
    #: Brought by a job: may be evicted.
    from_job: bool = False
    #: Brought by a sealed job: to be wiped when no job uses it.
    sealed: bool = False
    #: Not placed yet: a download for it has begun. Size, time and link are those of what lay there before (size -1:
    #: nothing), so that what the download leaves there is told from it, even when nobody lived to record it.
    pending: bool = False
    #: ``time.time()`` of the placing.
    placed_at: float = 0.0
    #: The same of its last use. Not written: it is the record file's modification time.
    last_used: float = field(default=0.0, compare=False)

    def matches(self, size: int, mtime_ns: int, link: str | None) -> bool:
        """Whether what lies there now is still what was recorded."""
        return self.size == size and self.link == link and self.same_time(mtime_ns)

    def same_time(self, mtime_ns: int) -> bool:
        """Image layers keep whole seconds only (Docker's archiver truncates them), and baked models are in layers."""
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
    """None for what is no record of this very file."""
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
        #: Those that could not be written (a read-only folder) or must not be replaced just now (in use).
        #: With each, what the disk said then: another process's later word counts for more.
        self._unwritten: dict[str, tuple[Placed, Placed | None]] = {}
        self._has_warned = False

    def file(self, rel: str) -> str:
        """Where the record of ``checkpoints/sd15.safetensors`` is, or would be."""
        return f"{self._root}/{rel}.json"

    def read(self, rel: str) -> Placed | None:
        """The record, or None. One open, one read."""
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
            return _parse(os.read(fd, _MOST_BYTES), rel, os.fstat(fd).st_mtime)
        except OSError:
            return None
        finally:
            os.close(fd)

    def write(self, placed: Placed, *, wait_s: float = 0.0) -> bool:
        """Replace the record. Where that cannot be, it is kept for this process only, with a warning, once.

        False when users are in the way (for longer than ``wait_s``), whose lock is on the record that is there.
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
        """The same, for what was concluded from the record ``seen``: nothing, and False, when it is another by now.

        Nor when ``is_still`` says no, which is asked while nobody else may change the record. With users in the way it
        is kept for this process, for as long as the record stays the one that was seen.
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
        """The same, for who has the exclusive lock."""
        file = self.file(placed.path)
        folder, _, _ = file.rpartition("/")
        try:
            os.makedirs(folder, exist_ok=True)
            # Not synced: a record lost in a power cut costs one check of the file, and 1,000 syncs would cost seconds.
            write_whole(Path(file), _render(placed), is_lasting=False, part=Path(folder, temporary_name()))
        except OSError as error:
            self._remember(placed, self._read(placed.path))
            self._warn(error)
            return
        self._unwritten.pop(placed.path, None)

    def _remember(self, placed: Placed, on_disk: Placed | None) -> None:
        self._unwritten[placed.path] = (replace(placed, last_used=time.time()), on_disk)

    def forget(self, rel: str) -> None:
        """Let go of what only this process knows of a file."""
        self._unwritten.pop(rel, None)

    def _warn(self, error: OSError) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "what is placed cannot be recorded in the models folder (%s): it will be checked again at every start",
                error.strerror,
            )

    def delete(self, rel: str) -> None:
        """Forget a file. Raises OSError; a record that stays does no harm, as it no longer fits what lies there."""
        self._unwritten.pop(rel, None)
        with contextlib.suppress(FileNotFoundError, NotADirectoryError):
            os.unlink(self.file(rel))

    def touch(self, rel: str) -> None:
        """The file is used now."""
        remembered = self._unwritten.get(rel)
        if remembered is not None:
            self._remember(*remembered)
        with contextlib.suppress(OSError):
            os.utime(self.file(rel))

    def __iter__(self) -> Iterator[Placed]:
        """All records that make sense, sorted by path."""
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
        """Hold the lock of a record: shared by who uses the file, exclusive to remove or replace it.

        Nobody waits for a job's end: an exclusive one is not had while there are users for longer than ``wait_s``.
        Both wait for the moment that a removal takes. Locks of the same process exclude one another too. BUSY and
        NONE enter the block as well: what they mean is up to it.
        """
        with contextlib.ExitStack() as stack:
            # One exclusive lock at a time in the whole folder: so whoever still is in the way is a user.
            if exclusive:
                whole = hold(stack, f"{self._root}/.lock", exclusive=True, wait_s=WAIT_S, create=True)
                if whole is Lock.BUSY:
                    yield Lock.BUSY
                    return
            yield hold(stack, self.file(rel), exclusive=exclusive, wait_s=wait_s if exclusive else WAIT_S)

    @contextlib.contextmanager
    def placing(self, rel: str, wait_s: float) -> Iterator[Lock]:
        """Be the only one who puts a file there, among all processes."""
        path = f"{self._root}/{rel}{PLACING}"
        with contextlib.suppress(OSError):
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with contextlib.ExitStack() as stack:
            lock = hold(stack, path, exclusive=True, wait_s=wait_s, create=True)
            try:
                yield lock
            finally:
                if lock is Lock.HELD:
                    # While it is held: who waits for it sees that it is gone, and makes its own.
                    with contextlib.suppress(OSError):
                        os.unlink(path)


def temporary_name() -> str:
    """A name that nobody else uses: other processes and threads may write beside."""
    return f"{TEMPORARY}{os.getpid()}-{time.monotonic_ns():x}-{next(_counter)}.tmp"


def _render(placed: Placed) -> bytes:
    data: dict[str, Any] = {name: getattr(placed, name) for name in _TYPES}
    return orjson.dumps(data, option=orjson.OPT_INDENT_2)
