"""Who uses the files of a models folder, and the end of those that nobody does."""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence

from settee.base.files import Lock
from settee.models.records import Placed, Records
from settee.models.removing import overwrite, put_away, remove_file, remove_part

log = logging.getLogger(__name__)


class Users:
    """The users of one models folder, of this process and of all others that share it. Safe from any thread.

    ``root`` is the folder's absolute path. Names are relative to it: ``checkpoints/sd15.safetensors``.
    """

    def __init__(self, root: str, records: Records) -> None:
        self._root, self._records = root, records
        #: How many running jobs of this process use a file.
        self._counts: Counter[str] = Counter()
        self._mutex = threading.RLock()

    @contextlib.contextmanager
    def use(self, names: Sequence[str], is_right: Callable[[int], bool]) -> Iterator[tuple[int, ...]]:
        """Use these files: nobody removes or replaces them meanwhile. Gives the places in ``names`` of those that
        cannot be used, as ``is_right``, asked with its place once a file cannot go any more, says no.

        Where the file system has no locks, only this process is kept from removing them.
        """
        with contextlib.ExitStack() as stack:
            with self._mutex:
                self._counts.update(names)
            stack.callback(self._leave, names)
            gone = []
            for number, rel in enumerate(names):
                with contextlib.ExitStack() as one:
                    lock = one.enter_context(self._records.lock(rel, exclusive=False))
                    if lock is Lock.BUSY or not is_right(number):
                        gone.append(number)
                        continue
                    self._records.touch(rel)
                    stack.push(one.pop_all())
            yield tuple(gone)

    def _leave(self, names: Sequence[str]) -> None:
        with self._mutex:
            self._counts.subtract(names)
            self._counts += Counter()  # drops the zeroes

    def in_use(self, rel: str) -> bool:
        """Whether a running job uses the file, in this process or another."""
        with self._mutex:
            if self._counts[rel] > 0:
                return True
            with self._records.lock(rel, exclusive=True) as lock:
                return lock is Lock.BUSY

    def remove(self, placed: Placed, *, wipe: bool = False) -> int | None:
        """Remove a recorded file and its record: the bytes that this freed, or None when a running job uses it.

        None too when its record is another by now: somebody has placed the file anew. Of a link only the link. A file
        that is not the recorded one any more stays. ``wipe`` overwrites the bytes. Raises OSError.
        """
        path, put_aside = f"{self._root}/{placed.path}", None
        with self._mutex:
            if self._counts[placed.path] > 0:
                return None
            with self._records.lock(placed.path, exclusive=True) as lock:
                # Size and time are no proof of their own: files that are written one after the other may share both.
                if lock is Lock.BUSY or self._records.read(placed.path) != placed:
                    return None
                freed = 0
                with contextlib.suppress(FileNotFoundError, NotADirectoryError):
                    # Overwriting takes seconds, for which nobody else's lock may be held up: first out of the way.
                    freed, put_aside = put_away(path, placed) if wipe else (remove_file(path, placed), None)
                self._records.delete(placed.path)
        if put_aside is not None:
            overwrite(put_aside)
        return freed

    def wipe(self, rel: str) -> bool:
        """Overwrite and remove what a sealed job brought, and what it left half downloaded. MODELS' files stay.

        False, which is logged, when something is left: in use by another job, or not to be removed.
        """
        try:
            placed = self._records.read(rel)
            removed = placed is None or not placed.from_job or self.remove(placed, wipe=True) is not None
            is_gone = remove_part(f"{self._root}/{rel}", wipe=True) and removed
        except OSError as error:
            log.error("a job's model could not be wiped: %s", error.strerror)
            return False
        if not is_gone:
            log.error("a job's model could not be wiped: another job uses or fetches it")
        return is_gone
