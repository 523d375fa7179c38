"""ComfyUI's models folder as settee knows it: what lies there, and whether it is what somebody asks for.

Every file that settee placed, or has checked, has a record (:mod:`settee.models.records`). Whether it is right is then
told by a look at its size and time: nothing is read at a warm start.

Whose a file is decides what may happen to it:

- a file that a job brought may be replaced by any other entry, and evicted, while no running job uses it;
- a file that MODELS placed is replaced by MODELS only, and never evicted;
- a file without a record is the operator's own. No job replaces it. MODELS does when it is no whole model (a download
  that something else left half done); a whole model that is not the one asked for is set aside under another name.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from settee.errors import IntegrityError, StagingError
from settee.models.checks import model_problem
from settee.models.entry import ModelEntry
from settee.models.hashing import Hashes, hash_file
from settee.models.judging import Look, State, look_at, unprovable
from settee.models.linking import blob_sha256, link_in_place, source_of, symlink
from settee.models.locks import Lock
from settee.models.places import ASIDE, relative
from settee.models.records import Placed, Records, identity
from settee.models.refusals import taken, unusable, words
from settee.models.removing import remove_file, remove_part

log = logging.getLogger(__name__)

_MOST_ASIDE = 100


def _nobody(count: int) -> None:
    """Who hears of the bytes when nobody asked to."""


class Shelf:
    """One models folder. It need not exist yet, and may be read-only. Every method may be called from any thread."""

    def __init__(self, models_dir: Path) -> None:
        self.models_dir = models_dir
        #: The same, absolute, as text: what lies below is looked at often.
        self.root = os.path.abspath(models_dir)
        self._records = Records(self.root)
        #: How many running jobs of this process use a file.
        self._users: Counter[str] = Counter()
        self._mutex = threading.RLock()

    # --- looking -------------------------------------------------------------------------------------------

    def path_of(self, entry: ModelEntry) -> Path:
        """Where the entry's file belongs. Raises UnsafePath."""
        return Path(self.root, relative(entry))

    def state(self, entry: ModelEntry) -> State:
        """How the entry stands: a look at the file and a read of its record, some 30 µs. Raises UnsafePath."""
        return self.look(entry).state

    def look(self, entry: ModelEntry) -> Look:
        """The same, with the reason."""
        rel = relative(entry)
        return look_at(f"{self.root}/{rel}", rel, entry, self._records.read(rel))

    def content_of(self, entry: ModelEntry) -> tuple[object, ...] | None:
        """What the entry's name holds now, to be compared with what it holds later; None when it holds nothing."""
        rel = relative(entry)
        try:
            info = os.stat(f"{self.root}/{rel}")
        except OSError:
            return None
        placed = self._records.read(rel)
        if placed is not None and placed.size == info.st_size and placed.same_time(info.st_mtime_ns):
            known = placed.sha256 or placed.xxh3
            if known:
                return (known,)
        return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)

    def records(self) -> Iterator[Placed]:
        """Every record, sorted by path. Its file may be gone."""
        return iter(self._records)

    # --- putting there ---------------------------------------------------------------------------------------

    def adopt(
        self,
        entry: ModelEntry,
        *,
        size: int | None = None,
        sha256: str | None = None,
        stop: threading.Event | None = None,
        on_bytes: Callable[[int], None] = _nobody,
    ) -> str | None:
        """Find out whether an UNKNOWN file is the entry's, and record it if so. Else what is wrong with it.

        ``size`` and ``sha256`` are what the source says, where the entry itself says nothing. With a sha256 the file
        is read once. Without one, a file that MODELS asks for is taken when its size and its head are right; a job's
        only when it was placed for the same source. The problem follows the file's name in a sentence. Raises Stopped.
        """
        entry = replace(entry, size=entry.size or size, sha256=entry.sha256 or sha256)
        look = self.look(entry)
        if look.state is not State.UNKNOWN:
            return None if look.state is State.RIGHT else look.reason
        path, old = self.path_of(entry), look.placed
        problem = model_problem(path) or (unprovable(entry, old) if entry.sha256 is None else None)
        if problem:
            return problem
        wanted = entry.sha256 or (old.sha256 if old else None)
        # The bytes that were right once are right again, and XXH3 knows them at six times the speed.
        fast = old.xxh3 if old and old.sha256 == wanted else None
        found = None
        if wanted or fast:
            try:
                found = hash_file(path, sha256=fast is None, stop=stop, on_bytes=on_bytes)
            except OSError as error:
                return f"cannot be read ({error.strerror})"
            if problem := _difference(found, wanted, fast):
                return problem
            if (found.size, found.mtime_ns) != (look.size, look.mtime_ns):
                return "was replaced while it was read"
        xxh3 = found.xxh3 if found and look.link is None else None
        self._write(entry, look, sha256=wanted, xxh3=xxh3, is_adopted=True)
        return None

    @contextlib.contextmanager
    def claim(self, entry: ModelEntry) -> Iterator[None]:
        """Around a download and its :meth:`record`: :meth:`make_way`, and a note of what is being placed.

        Should this process die between the download's last rename and its record, the file is known for what it is
        by that note. A failure brings the earlier record back. Raises what :meth:`make_way` does.
        """
        self.make_way(entry)
        rel = relative(entry)
        before = self._records.read(rel)
        self._write(entry, self.look(entry), pending=True)
        try:
            yield
        except BaseException:
            now = self._records.read(rel)
            if now is not None and now.pending:
                if before is None:
                    with contextlib.suppress(OSError):
                        self._records.delete(rel)
                else:
                    self._records.write(before)
            raise

    def make_way(self, entry: ModelEntry) -> None:
        """See that the place is the entry's to take, and that its folder is there.

        The rule is this module's docstring. What may be replaced stays until it is. Raises InvalidRequest (a job's
        entry) or IntegrityError when the place is somebody else's, StagingError when it cannot be used.
        """
        rel, look = relative(entry), self.look(entry)
        if look.state is State.ABSENT:
            self._make_folder(rel)
        elif look.is_strange:
            raise taken(entry, "is a folder, or something else that is no file")
        elif look.is_ours:
            if _is_kept_from(entry, look):
                raise taken(entry, "is a model that the worker's MODELS placed")
        else:
            self._take_from_operator(entry, look)
        if self.in_use(rel):
            raise taken(entry, "is in use by a running job", retryable=True)

    def _take_from_operator(self, entry: ModelEntry, look: Look) -> None:
        """What lies there has no record, or is not what was recorded."""
        path = self.path_of(entry)
        broken = model_problem(path) if look.link is None else None
        if entry.from_job and not (broken and look.placed is not None and look.placed.from_job):
            raise taken(entry, "is a model that the worker did not place")
        if broken:
            if not entry.from_job:  # what a job names may be private
                log.warning("%s %s: it is replaced", entry.path, broken)
            return
        for number in range(_MOST_ASIDE):
            aside = path.with_name(f"{path.name}{ASIDE}{f'-{number}' if number else ''}")
            if os.path.lexists(aside):
                continue
            try:
                os.rename(path, aside)
            except OSError as error:
                raise unusable(entry, error) from error
            log.warning("%s is not the model that %s asks for: it is kept as %s", *words(entry), aside.name)
            return
        raise taken(entry, f"is another model, and {_MOST_ASIDE} were set aside before it (…{ASIDE})")

    def link(
        self,
        entry: ModelEntry,
        source: Path,
        *,
        sha256: str | None = None,
        stop: threading.Event | None = None,
        on_bytes: Callable[[int], None] = _nobody,
    ) -> None:
        """Show the model where ComfyUI looks: an absolute symbolic link to ``source``, and its record.

        ``sha256`` is what is known of the source's bytes; the Hub's cache says it in the file's name. Where the entry
        has one and nobody knows the source's, the source is read once. One rename: there is no moment without a file.
        Raises what :meth:`make_way` does, IntegrityError when the source is not the entry's model, StagingError when
        it is not there, Stopped.
        """
        path, aim = self.path_of(entry), os.path.abspath(source)
        info = source_of(entry, aim)
        sha256 = sha256 or blob_sha256(aim)
        if sha256 is None and entry.sha256 is not None:
            try:
                sha256 = hash_file(aim, sha256=True, stop=stop, on_bytes=on_bytes).sha256
            except OSError as error:
                raise StagingError(f"{entry.path}: its source cannot be read ({error.strerror})") from error
        if entry.sha256 is not None and sha256 != entry.sha256:
            raise IntegrityError(
                f"{entry.path}: the file on this host has the sha256 {sha256} instead of {entry.sha256}",
                details={"model": str(entry.path), "expected": entry.sha256, "found": sha256},
            )
        link = link_in_place(path, info, aim)
        if link == aim:
            self.make_way(entry)
            symlink(entry, path, aim)
        look = Look(State.RIGHT, "", None, info.st_size, info.st_mtime_ns, link)
        self._write(entry, look, sha256=sha256)

    def record(self, entry: ModelEntry, *, size: int, sha256: str | None, xxh3: str | None) -> None:
        """Remember a download that was just renamed into place. Raises IntegrityError when something else is there."""
        rel = relative(entry)
        try:
            info = os.lstat(f"{self.root}/{rel}")
        except OSError as error:
            raise IntegrityError(f"{entry.path} was downloaded, and is gone again ({error.strerror})") from error
        if not stat.S_ISREG(info.st_mode) or info.st_size != size:
            raise IntegrityError(f"{entry.path} was downloaded, and something else put another file in its place")
        look = Look(State.RIGHT, "", None, info.st_size, info.st_mtime_ns, None)
        self._write(entry, look, sha256=sha256, xxh3=xxh3)

    def keep(self, entry: ModelEntry) -> None:
        """A file that a job brought is one of MODELS now: it is not evicted any more. Costs nothing when it is."""
        placed = self._records.read(relative(entry))
        if placed is not None and placed.from_job and not entry.from_job:
            self._records.write(replace(placed, from_job=False))

    def _write(
        self,
        entry: ModelEntry,
        look: Look,
        *,
        sha256: str | None = None,
        xxh3: str | None = None,
        pending: bool = False,
        is_adopted: bool = False,
    ) -> None:
        rel, source = relative(entry), identity(entry.source)
        old = self._records.read(rel)
        # What MODELS placed stays MODELS' when a job asks for the same.
        is_models = old is not None and not old.from_job and (is_adopted or old.source == source)
        # A file that was there before us is the operator's: no eviction may take it.
        is_operators = old is None and is_adopted
        self._records.write(
            Placed(
                path=rel,
                source=old.source if old and is_models and entry.from_job else source,
                size=look.size,
                mtime_ns=look.mtime_ns,
                sha256=sha256.lower() if sha256 else None,
                xxh3=xxh3,
                link=look.link,
                from_job=entry.from_job and not is_models and not is_operators,
                pending=pending,
                placed_at=time.time(),
            )
        )

    def _make_folder(self, rel: str) -> None:
        folder = f"{self.root}/{rel}".rpartition("/")[0]
        try:
            os.makedirs(folder, exist_ok=True)
        except OSError as error:
            below = rel.rpartition("/")[0]
            raise StagingError(
                f"the folder {below!r} of the models folder cannot be made ({error.strerror}): let MODELS_DIR name a "
                "folder that the worker may write; if this one is a link to a volume, see that it is mounted"
            ) from error

    # --- using and removing ----------------------------------------------------------------------------------

    @contextlib.contextmanager
    def use(self, entries: Iterable[ModelEntry]) -> Iterator[tuple[ModelEntry, ...]]:
        """While a job runs: its models stay where they are, for all processes that share the folder.

        Gives the entries that are not right any more (removed between their placing and now, mostly none): place
        those and come again. Where the file system has no locks, only this process is kept from removing them.
        """
        entries = tuple(entries)
        names = [relative(entry) for entry in entries]
        with contextlib.ExitStack() as stack:
            with self._mutex:
                self._users.update(names)
            stack.callback(self._unuse, names)
            gone = []
            for entry, rel in zip(entries, names, strict=True):
                lock = stack.enter_context(self._records.lock(rel, exclusive=False))
                if lock is Lock.BUSY or self.state(entry) is not State.RIGHT:
                    gone.append(entry)
                self._records.touch(rel)
            yield tuple(gone)

    def _unuse(self, names: list[str]) -> None:
        with self._mutex:
            self._users.subtract(names)
            self._users += Counter()  # drops the zeroes

    def in_use(self, rel: str) -> bool:
        """Whether a running job uses the file, in this process or another."""
        with self._mutex:
            if self._users[rel] > 0:
                return True
            with self._records.lock(rel, exclusive=True) as lock:
                return lock is Lock.BUSY

    def remove(self, placed: Placed, *, wipe: bool = False) -> int | None:
        """Remove a recorded file and its record: the bytes that this freed, or None when a running job uses it.

        Of a link only the link. A file that is not the recorded one any more stays. ``wipe`` overwrites the bytes
        first. Raises OSError.
        """
        path = f"{self.root}/{placed.path}"
        with self._mutex:
            if self._users[placed.path] > 0:
                return None
            with self._records.lock(placed.path, exclusive=True) as lock:
                if lock is Lock.BUSY:
                    return None
                freed = 0
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    freed = remove_file(path, placed, wipe)
                self._records.delete(placed.path)
                return freed

    def wipe(self, entry: ModelEntry) -> bool:
        """Overwrite and remove what a sealed job brought, and what it left half downloaded. MODELS' files stay.

        After the job's :meth:`use` has ended. False when something is left: in use by another job, or not to be
        removed (which is logged).
        """
        rel = relative(entry)
        try:
            placed = self._records.read(rel)
            removed = placed is None or not placed.from_job or self.remove(placed, wipe=True) is not None
            return remove_part(f"{self.root}/{rel}", wipe=True) and removed
        except OSError as error:
            log.error("a job's model could not be wiped: %s", error.strerror)
            return False


def _is_kept_from(entry: ModelEntry, look: Look) -> bool:
    """A job takes MODELS' place only to put the same file where a link has come to lead nowhere."""
    if not entry.from_job or look.placed is None or look.placed.from_job:
        return False
    return look.size >= 0 or look.placed.source != identity(entry.source)


def _difference(found: Hashes, sha256: str | None, xxh3: str | None) -> str | None:
    if xxh3 is not None:
        return None if found.xxh3 == xxh3 else "was changed since it was placed"
    return None if found.sha256 == sha256 else f"has the sha256 {found.sha256} instead of {sha256}"
