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
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from settee.base.files import WAIT_S, Lock
from settee.base.threads import Stopped
from settee.errors import IntegrityError, StagingError
from settee.models.aside import set_aside
from settee.models.checks import model_problem
from settee.models.entry import ModelEntry
from settee.models.hashing import hash_file
from settee.models.judging import Content, Look, State, difference, is_kept_from, look_at, unprovable
from settee.models.linking import blob_sha256, link_in_place, source_of, symlink
from settee.models.names import namesakes
from settee.models.places import relative
from settee.models.records import Placed, Records, identity
from settee.models.refusals import taken, unusable
from settee.models.removing import is_downloading
from settee.models.users import Users

log = logging.getLogger(__name__)

#: The longest download (MODELS_TIMEOUT_S may say less: the caller's deadline and stop event count).
_FOREVER_S = 86_400.0
#: Between two looks at the stop event.
_STEP_S = 0.1


def _nobody(count: int) -> None:
    """Who hears of the bytes when nobody asked to."""


class Shelf:
    """One models folder. It need not exist yet, and may be read-only. Every method may be called from any thread."""

    def __init__(self, models_dir: Path) -> None:
        self.models_dir = models_dir
        #: The same, absolute, as text: what lies below is looked at often.
        self.root = os.path.abspath(models_dir)
        self._records = Records(self.root)
        self._users = Users(self.root, self._records)

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

    def content_of(self, entry: ModelEntry) -> Content | None:
        """What the entry's name holds now, to be compared with what it holds later; None when it holds nothing."""
        found = (self._content(str(place)) for place in namesakes(entry.path))
        return next((content for content in found if content is not None), None)

    def _content(self, rel: str) -> Content | None:
        try:
            info = os.stat(f"{self.root}/{rel}")
        except OSError:
            return None
        placed, known = self._records.read(rel), None
        if placed is not None and placed.size == info.st_size and placed.same_time(info.st_mtime_ns):
            known = placed.sha256 or placed.xxh3
        return Content(known, (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns))

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
        problem = model_problem(path) or (unprovable(entry, look) if entry.sha256 is None else None)
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
            if problem := difference(found, wanted, fast):
                return problem
            if (found.size, found.mtime_ns) != (look.size, look.mtime_ns):
                return "was replaced while it was read"
        xxh3 = found.xxh3 if found and look.link is None else None
        known = self._placed(entry, look, sha256=wanted, xxh3=xxh3, is_adopted=True)
        # Another process may have put another file there meanwhile, and its record must not become this one.
        if not self._records.rewrite(old, known, is_still=lambda: self.look(entry) == look):
            return None if self.state(entry) is State.RIGHT else "was replaced while it was looked at"
        return None

    @contextlib.contextmanager
    def claim(
        self, entry: ModelEntry, *, stop: threading.Event | None = None, wait_s: float = _FOREVER_S
    ) -> Iterator[bool]:
        """Around a download and its :meth:`record`: :meth:`make_way`, and a note of what is being placed.

        One process at a time places a file: this waits for another one that does, until ``stop`` is set. False when
        the file is right by then: nothing is left to do. Should this process die between the
        download's last rename and its record, the file is known for what it is by the note; a failure brings the
        earlier record back. Raises what :meth:`make_way` does, Stopped, and StagingError after ``wait_s``.
        """
        rel = relative(entry)
        with self._placing(entry, stop, wait_s):
            if self.state(entry) is State.RIGHT:
                yield False
                return
            self.make_way(entry)
            before = self._records.read(rel)
            if not self._write(entry, self.look(entry), pending=True):
                self._records.forget(rel)
                raise taken(entry, "is in use by a running job", retryable=True)
            try:
                yield True
            except BaseException:
                now = self._records.read(rel)
                if now is not None and now.pending:
                    if before is not None:
                        self._records.rewrite(now, before, wait_s=WAIT_S)
                    else:
                        with contextlib.suppress(OSError):
                            self._records.delete(rel)
                raise

    @contextlib.contextmanager
    def _placing(self, entry: ModelEntry, stop: threading.Event | None, wait_s: float) -> Iterator[bool]:
        """Gives whether somebody else was at it before."""
        deadline, had_to_wait = time.monotonic() + wait_s, False
        while True:
            with self._records.placing(relative(entry), _STEP_S) as lock:
                if lock is not Lock.BUSY:
                    yield had_to_wait
                    return
            had_to_wait = True
            if stop is not None and stop.is_set():
                raise Stopped
            if time.monotonic() > deadline:
                raise StagingError(
                    f"{entry.path} is being placed by another process, which does not end", retryable=True
                )

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
            if is_kept_from(entry, look):
                raise taken(entry, "is a model that the worker's MODELS placed")
        else:
            self._take_from_operator(entry, look)
        if self.in_use(rel):
            raise taken(entry, "is in use by a running job", retryable=True)
        self._make_way_for_name(entry)

    def _make_way_for_name(self, entry: ModelEntry) -> None:
        """ComfyUI would take a file of this name in another folder of the same kind: a job's goes, no other does."""
        for other in map(str, namesakes(entry.path)):
            if other == relative(entry) or not os.path.lexists(f"{self.root}/{other}"):
                continue
            placed = self._records.read(other)
            if placed is not None and placed.from_job:
                try:
                    if self.remove(placed) is None:
                        raise taken(entry, f"goes by the name of {other}, which a running job uses", retryable=True)
                except OSError as error:
                    raise unusable(entry, error) from error
            elif entry.from_job:
                raise taken(entry, f"goes by the name of {other}, a model of the worker's")

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
        set_aside(entry, path)

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
        seen = self._records.read(relative(entry))
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
                details={"model": str(entry.path), "expected_sha256": entry.sha256, "sha256": sha256},
            )
        link = link_in_place(path, info, aim)
        look = Look(State.RIGHT, "", None, info.st_size, info.st_mtime_ns, link)
        if link != aim:

            def is_still() -> bool:
                now = self.look(entry)
                return (now.size, now.mtime_ns, now.link) == (look.size, look.mtime_ns, look.link)

            if not self._records.rewrite(seen, self._placed(entry, look, sha256=sha256), is_still=is_still):
                raise taken(entry, "was replaced while it was looked at", retryable=True)
            return
        with self._placing(entry, stop, _FOREVER_S) as had_to_wait:
            if had_to_wait and self.state(entry) is State.RIGHT:
                return
            self.make_way(entry)
            # Nobody may begin to use the old file between this and its replacement.
            with self._records.lock(relative(entry), exclusive=True) as lock:
                if lock is Lock.BUSY:
                    raise taken(entry, "is in use by a running job", retryable=True)
                placed = self._placed(entry, look, sha256=sha256)
                symlink(entry, path, aim)
                self._records.write_locked(placed)

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
        # Whoever looks at the note meanwhile lets go of it at once.
        self._write(entry, look, sha256=sha256, xxh3=xxh3, wait_s=WAIT_S)

    def keep(self, entry: ModelEntry) -> None:
        """A file that a job brought is one of MODELS now: it is not evicted any more. Costs nothing when it is."""
        placed = self._records.read(relative(entry))
        if placed is not None and placed.from_job and not entry.from_job:
            self._records.rewrite(placed, replace(placed, from_job=False))

    def _write(self, entry: ModelEntry, look: Look, *, wait_s: float = 0.0, **known: Any) -> bool:
        return self._records.write(self._placed(entry, look, **known), wait_s=wait_s)

    def _placed(
        self,
        entry: ModelEntry,
        look: Look,
        *,
        sha256: str | None = None,
        xxh3: str | None = None,
        pending: bool = False,
        is_adopted: bool = False,
    ) -> Placed:
        rel, source = relative(entry), identity(entry.source)
        old = self._records.read(rel)
        # What MODELS placed stays MODELS' when a job asks for the same.
        is_models = old is not None and not old.from_job and (is_adopted or old.source == source)
        # A file that was there before us is the operator's: no eviction may take it.
        is_operators = old is None and is_adopted
        return Placed(
            path=rel,
            source=old.source if old and is_models and entry.from_job else source,
            size=look.size,
            mtime_ns=look.mtime_ns,
            sha256=sha256.lower() if sha256 else None,
            xxh3=xxh3,
            link=look.link,
            from_job=entry.from_job and not is_models and not is_operators,
            sealed=entry.sealed and not is_models and not is_operators,
            pending=pending,
            placed_at=time.time(),
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
        with self._users.use(names, lambda number: self.state(entries[number]) is State.RIGHT) as gone:
            yield tuple(entries[number] for number in gone)

    def in_use(self, rel: str) -> bool:
        """Whether a running job uses the file, in this process or another."""
        return self._users.in_use(rel)

    def remove(self, placed: Placed) -> int | None:
        """Remove a recorded file and its record: the bytes that this freed, or None when a running job uses it.

        None too when it was placed anew since. Of a link only the link. A file that is not the recorded one any more
        stays. Raises OSError.
        """
        return self._users.remove(placed)

    def wipe(self, entry: ModelEntry) -> bool:
        """Overwrite and remove what a sealed job brought, after its :meth:`use` has ended. MODELS' files stay.

        What it left half downloaded goes as well. False, which is logged, when something is left: in use by another
        job, or not to be removed.
        """
        return self._users.wipe(relative(entry))

    def wipe_left(self) -> None:
        """Wipe what sealed jobs left here when their worker was killed; not what another worker's job uses now."""
        for placed in [placed for placed in self.records() if placed.sealed]:
            if not is_downloading(f"{self.root}/{placed.path}") and not self.in_use(placed.path):
                self._users.wipe(placed.path)
