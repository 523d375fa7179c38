"""ComfyUI's models folder: which files exist there, and whether each is the one that an entry asks for.

Every file that settee placed, or has checked, has a record (:mod:`settee.models.folder.records`). Whether it is right
is then decided by its size and time: nothing is read at a warm start.

The owner of a file decides what may happen to it:

- a file that a job brought may be replaced by any other entry, and evicted, while no running job uses it;
- a file that MODELS placed is replaced by MODELS only, and never evicted;
- a file without a record is the operator's own. No job replaces it. MODELS does when it is not a whole model (a
  download that something else left unfinished); a whole model that is not the requested one is set aside.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
import time
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

from settee.base.errors import IntegrityError, StagingError
from settee.base.files import WAIT_S, Lock
from settee.base.threads import Stopped
from settee.comfyui.model_folders import namesakes
from settee.models.entry import ModelEntry, identity
from settee.models.folder.checks import hash_file, model_problem
from settee.models.folder.file_state import FileState, Inspection, inspect, unprovable
from settee.models.folder.place import (
    blob_sha256,
    check_source,
    is_itself,
    of_disk,
    relative,
    set_aside,
    symlink,
    taken,
)
from settee.models.folder.records import Placed, Records

log = logging.getLogger(__name__)

#: The longest wait for another process's download (the caller's stop event ends it earlier).
_MAX_WAIT_S = 86_400.0
#: Between two looks at the stop event.
_STEP_S = 0.1


class ModelFolder:
    """One models folder. It need not exist yet, and may be read-only. Every method may be called from any thread."""

    def __init__(self, models_dir: Path) -> None:
        self.models_dir = models_dir
        #: The same, absolute, as a string: paths below are built often.
        self.root = os.path.abspath(models_dir)
        #: And the users of its files.
        self.records = Records(self.root)

    # --- looking -------------------------------------------------------------------------------------------

    def path_of(self, entry: ModelEntry) -> Path:
        """Return where the entry's file belongs. Raises UnsafePath."""
        return Path(self.root, relative(entry))

    def state(self, entry: ModelEntry) -> FileState:
        """Return the state of the entry's file: a stat and a read of its record, some 30 µs. Raises UnsafePath."""
        return self.inspect(entry).state

    def inspect(self, entry: ModelEntry) -> Inspection:
        """Return the state with its reason."""
        rel = relative(entry)
        return inspect(f"{self.root}/{rel}", entry, self.records.read(rel))

    def content_of(self, entry: ModelEntry) -> frozenset[object]:
        """Return the facts that identify the content of the entry's name: two contents are one if they share a fact.

        Empty when no file has the name.
        """
        for rel in map(str, namesakes(entry.path)):
            with contextlib.suppress(OSError):
                info = os.stat(f"{self.root}/{rel}")
                placed = self.records.read(rel)
                is_known = placed and placed.size == info.st_size and placed.same_time(info.st_mtime_ns)
                known = (placed.sha256 or placed.xxh3) if placed and is_known else None
                file = (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns)
                return frozenset((file, known) if known else (file,))
        return frozenset()

    # --- putting there ---------------------------------------------------------------------------------------

    def adopt(self, entry: ModelEntry, *, stop: threading.Event | None = None) -> str | None:
        """Find out whether an UNKNOWN file is the entry's, and record it if so. Return what is wrong with it, or None.

        With a sha256 the file is read once. Without one, a file that MODELS asks for is accepted when its size and its
        head are right; a job's only when it was placed for the same source. The problem follows the file's name in a
        sentence. Raises Stopped.
        """
        before = self.inspect(entry)
        if before.state is not FileState.UNKNOWN:
            return None if before.state is FileState.RIGHT else before.reason
        path, old = self.path_of(entry), before.placed
        problem = model_problem(path) or (unprovable(entry, before) if entry.sha256 is None else None)
        if problem:
            return problem
        wanted = entry.sha256 or (old.sha256 if old else None)
        # The bytes that were right once are right again, and XXH3 identifies them at six times the speed.
        fast = old.xxh3 if old and old.sha256 == wanted else None
        found = None
        if wanted or fast:
            try:
                found = hash_file(path, sha256=fast is None, stop=stop)
            except OSError as error:
                return f"cannot be read ({error.strerror})"
            if fast and found.xxh3 != fast:
                return "was changed since it was placed"
            if not fast and found.sha256 != wanted:
                return f"has the sha256 {found.sha256} instead of {wanted}"
        xxh3 = found.xxh3 if found and before.link is None else None
        known = self._placed(entry, before, sha256=wanted, xxh3=xxh3, is_adopted=True)
        # Another process may have put another file there meanwhile: its record must stay.
        if not self.records.rewrite(old, known, is_still=lambda: self.inspect(entry) == before):
            return None if self.state(entry) is FileState.RIGHT else "was replaced while it was looked at"
        return None

    @contextlib.contextmanager
    def claim(self, entry: ModelEntry, *, stop: threading.Event | None = None) -> Iterator[bool]:
        """Hold the place around a download and its :meth:`record`. Yields False when the file is right by then.

        One process at a time places a file: this waits for another one, until ``stop`` is set. A pending record
        identifies the file should this process die between the download's last rename and its record; a failure
        restores the earlier record. Raises what :meth:`make_way` does, Stopped, and StagingError after a day.
        """
        rel = relative(entry)
        with self._placing(entry, stop):
            if self.state(entry) is FileState.RIGHT:
                yield False
                return
            self.make_way(entry)
            before = self.records.read(rel)
            with self.records.lock(rel, exclusive=True) as lock:
                if lock is Lock.BUSY:
                    raise taken(entry, "is in use by a running job", retryable=True)
                self.records.write_locked(self._placed(entry, self.inspect(entry), pending=True))
            try:
                yield True
            except BaseException:
                now = self.records.read(rel)
                if now is not None and now.pending:
                    if before is not None:
                        self.records.rewrite(now, before, wait_s=WAIT_S)
                    else:
                        with contextlib.suppress(OSError):
                            self.records.delete(rel)
                raise

    @contextlib.contextmanager
    def _placing(self, entry: ModelEntry, stop: threading.Event | None) -> Iterator[None]:
        """Be the only one to place this entry."""
        deadline = time.monotonic() + _MAX_WAIT_S
        while True:
            with self.records.placing(relative(entry), _STEP_S) as lock:
                if lock is not Lock.BUSY:
                    yield
                    return
            if stop is not None and stop.is_set():
                raise Stopped
            if time.monotonic() > deadline:
                raise StagingError(
                    f"{entry.path} is being placed by another process, which does not end", retryable=True
                )

    def make_way(self, entry: ModelEntry) -> None:
        """Check that the entry may take its place (this module's docstring has the rule), and make its folder.

        A file that may be replaced stays until it is. Raises InvalidRequest (a job's entry) or IntegrityError when
        the place is taken, StagingError when it cannot be used.
        """
        rel, found = relative(entry), self.inspect(entry)
        if found.state is FileState.ABSENT:
            self._make_folder(rel)
        elif found.is_strange:
            raise taken(entry, "is a folder, or something else that is not a file")
        elif found.is_ours:
            of_models = found.placed is not None and not found.placed.from_job and found.placed
            # A job may only put the same file where a link of MODELS has come to lead nowhere.
            if of_models and entry.from_job and (found.size >= 0 or of_models.source != identity(entry.source)):
                raise taken(entry, "is a model that the worker's MODELS placed")
        else:
            self._take_from_operator(entry, found)
        if self.records.in_use(rel):
            raise taken(entry, "is in use by a running job", retryable=True)
        self._make_way_for_name(entry)

    def _make_way_for_name(self, entry: ModelEntry) -> None:
        """Remove a job's file of this name in another folder of the same kind, which ComfyUI would take instead.

        Raises InvalidRequest, IntegrityError for any other file there, StagingError.
        """
        for other in map(str, namesakes(entry.path)):
            if other == relative(entry) or not os.path.lexists(f"{self.root}/{other}"):
                continue
            placed = self.records.read(other)
            if placed is not None and placed.from_job:
                try:
                    if not self.records.remove(placed):
                        raise taken(entry, f"goes by the name of {other}, which a running job uses", retryable=True)
                except OSError as error:
                    raise of_disk(error, Path(other)) from error
            elif entry.from_job:
                raise taken(entry, f"goes by the name of {other}, a model of the worker's")

    def _take_from_operator(self, entry: ModelEntry, found: Inspection) -> None:
        """Handle a file without a record, or one that is not the recorded one."""
        path = self.path_of(entry)
        broken = model_problem(path) if found.link is None else None
        if entry.from_job and not (broken and found.placed is not None and found.placed.from_job):
            raise taken(entry, "is a model that the worker did not place")
        if broken:
            if not entry.from_job:  # the name of a job's model may be private
                log.warning("%s %s: it is replaced", entry.path, broken)
            return
        set_aside(entry, path)

    def link(self, entry: ModelEntry, source: Path, *, stop: threading.Event | None = None) -> None:
        """Make the entry's place an absolute symbolic link to ``source``, and record it.

        The Hub's cache has the source's sha256 in its name. If only the entry has one, the source is read once. One
        rename: there is no moment without a file. An operator's file that is its own source is recorded as it is.
        Raises what :meth:`make_way` does, IntegrityError when the source is not the entry's model, StagingError when
        it does not exist or is another entry's file in this place, Stopped.
        """
        path, aim = self.path_of(entry), os.path.abspath(source)
        info = check_source(entry, aim)
        sha256 = blob_sha256(aim)
        if sha256 is None and entry.sha256 is not None:
            try:
                sha256 = hash_file(aim, sha256=True, stop=stop).sha256
            except OSError as error:
                raise StagingError(f"{entry.path}: its source cannot be read ({error.strerror})") from error
        if entry.sha256 is not None and sha256 != entry.sha256:
            raise IntegrityError(
                f"{entry.path}: the file on this host has the sha256 {sha256} instead of {entry.sha256}",
                details={"model": str(entry.path), "expected_sha256": entry.sha256, "sha256": sha256},
            )
        if is_itself(path, aim):
            before = self.inspect(entry)
            known = self._placed(entry, before, sha256=sha256, is_adopted=True)
            if before.placed or not self.records.rewrite(None, known, is_still=lambda: self.inspect(entry) == before):
                raise StagingError(f"{entry.path} cannot be linked: it would lead to itself")
            return
        with self._placing(entry, stop):
            if self.state(entry) is FileState.RIGHT:
                return
            self.make_way(entry)
            # No job may begin to use the old file between this and its replacement.
            with self.records.lock(relative(entry), exclusive=True) as lock:
                if lock is Lock.BUSY:
                    raise taken(entry, "is in use by a running job", retryable=True)
                linked = Inspection(FileState.RIGHT, size=info.st_size, mtime_ns=info.st_mtime_ns, link=aim)
                placed = self._placed(entry, linked, sha256=sha256)
                symlink(path, aim)
                self.records.write_locked(placed)

    def record(self, entry: ModelEntry, *, size: int, sha256: str | None, xxh3: str | None) -> None:
        """Record a download that was just renamed into place. Raises IntegrityError when another file is there."""
        rel = relative(entry)
        try:
            info = os.lstat(f"{self.root}/{rel}")
        except OSError as error:
            raise IntegrityError(f"{entry.path} was downloaded, and is gone again ({error.strerror})") from error
        if not stat.S_ISREG(info.st_mode) or info.st_size != size:
            raise IntegrityError(f"{entry.path} was downloaded, and something else put another file in its place")
        found = Inspection(FileState.RIGHT, size=info.st_size, mtime_ns=info.st_mtime_ns)
        placed = self._placed(entry, found, sha256=sha256, xxh3=xxh3)
        # Any reader of the pending record releases its lock at once.
        self.records.rewrite(self.records.read(rel), placed, wait_s=WAIT_S)

    def keep(self, entry: ModelEntry) -> None:
        """Make a job's file one of MODELS', which is not evicted. Costs nothing when it is already."""
        placed = self.records.read(relative(entry))
        if placed is not None and placed.from_job and not entry.from_job:
            self.records.rewrite(placed, replace(placed, from_job=False))

    def _placed(
        self,
        entry: ModelEntry,
        found: Inspection,
        *,
        sha256: str | None = None,
        xxh3: str | None = None,
        pending: bool = False,
        is_adopted: bool = False,
    ) -> Placed:
        rel, source = relative(entry), identity(entry.source)
        old = self.records.read(rel)
        # A file that MODELS placed stays MODELS' when a job asks for the same.
        is_models = old is not None and not old.from_job and (is_adopted or old.source == source)
        # A file that existed before is the operator's: it must not be evicted.
        is_operators = old is None and is_adopted
        return Placed(
            path=rel,
            source=old.source if old and is_models and entry.from_job else source,
            size=found.size,
            mtime_ns=found.mtime_ns,
            sha256=sha256.lower() if sha256 else None,
            xxh3=xxh3,
            link=found.link,
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

    # --- using and wiping ------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def use(self, entries: Iterable[ModelEntry]) -> Iterator[tuple[ModelEntry, ...]]:
        """Keep a running job's models in place, for all processes that share the folder.

        Yields the entries that are no longer right (removed since they were placed, rarely any): place those and try
        again. Where the file system has no locks, only this process is kept from removing them.
        """
        gone = []
        with contextlib.ExitStack() as stack:
            for entry in entries:
                is_kept = stack.enter_context(self.records.use(relative(entry)))
                if is_kept and self.state(entry) is FileState.RIGHT:
                    self.records.touch(relative(entry))
                else:
                    gone.append(entry)
            yield tuple(gone)

    def wipe_left(self) -> None:
        """Wipe models of sealed jobs whose worker was killed; not those that another worker's job uses now."""
        for placed in [placed for placed in self.records if placed.sealed]:
            if not self.records.is_placing(placed.path) and not self.records.in_use(placed.path):
                self.records.discard(placed.path, wipe=True)
