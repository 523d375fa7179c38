"""The whole way of one file: fetched, checked, renamed; begun again at most once for each reason."""

from __future__ import annotations

import glob
import logging
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from settee.base.errors import DownloadFailed, IntegrityError, SetteeError
from settee.base.threads import Call, Stopped
from settee.models.folder.checks import Hashes, hash_file, model_problem
from settee.models.folder.place import of_disk
from settee.models.transfer.address import Address, wrong_hash, wrong_size
from settee.models.transfer.attempt import Attempt, Task
from settee.models.transfer.part import Part
from settee.models.transfer.route import Reason, StartOver, failed
from settee.models.transfer.scheduler import Lane
from settee.models.transfer.stream import Limits
from settee.net.failures import Broken

log = logging.getLogger(__name__)

#: Refusals that may mean that only Xet serves it.
_LIBRARY_STATUS = frozenset((403, 404, 405, 406, 410, 415, 421, 426, 501))


def download(
    address: Address,
    target: Path,
    *,
    lane: Lane,
    deadline: float,
    on_progress: Callable[[int, int | None], None],
    limits: Limits | None = None,
) -> Hashes:
    """Fetch ``address`` to ``target``, whole and checked, or leave nothing there.

    ``deadline`` is in ``time.monotonic()``. ``on_progress(bytes in place, all or None)`` is called in this thread, at
    most ten times a second. Bytes of an earlier download of the same file, in ``<target>.part`` by
    ``<target>.part.json``, are not fetched again. No other process may download to ``target`` meanwhile.

    Raises Stopped (within a second of ``lane.stop``), DownloadFailed (``retryable`` or not), IntegrityError, NoSpace,
    StagingError for a folder that cannot be written, InvalidRequest for a caller's address that is not public, and
    the errors of the address's own ``renew`` and ``by_library``.
    """
    part = Part(target)
    task = Task(address, part, lane, deadline, on_progress, limits or Limits())
    try:
        try:
            fetched = _fetched(task)
        except DownloadFailed as error:
            if address.by_library is None or error.details.get("status") not in _LIBRARY_STATUS:
                raise
            log.info("%s: left to its source's own library", address.logged)
            return _by_library(task, address.by_library)
        part.finish()
        return fetched
    except BaseException:
        part.tidy()
        raise
    finally:
        part.close()


def _fetched(task: Task) -> Hashes:
    """Fetch the part, whole and right; each reason to begin again counts once."""
    retries = task.retries()
    reasons: set[Reason] = set()
    while True:
        attempt = Attempt(task, plain=Reason.RANGES in reasons, renew=Reason.CHANGED in reasons)
        try:
            fetched = attempt.run()
            _check(task.part.path, fetched, attempt.file, task.part.target.name)
            return fetched
        except Broken as trouble:
            # One body for all: it cannot be resumed.
            reasons.add(Reason.RANGES)
            if task.lane.stop.wait(retries.pause_s(trouble)):
                raise Stopped from None
        except StartOver as again:
            if again.reason in reasons or again.is_final:
                task.part.discard()
                raise again.verdict from again
            reasons.add(again.reason)
            if again.reason is Reason.CORRUPT:
                log.warning("%s does not match its hash or size; it is fetched again", task.address.logged)
        task.part.reset()


def _check(path: Path, fetched: Hashes, want: Address, name: str) -> None:
    """Raise StartOver when the file is not the wanted one, or not a whole model (by the suffix of ``name``)."""
    if want.size is not None and fetched.size != want.size:
        raise StartOver(wrong_size(want.where, want.size, fetched.size), Reason.CORRUPT)
    if want.sha256 is not None and fetched.sha256 != want.sha256:
        raise StartOver(wrong_hash(want.where, want.sha256, fetched.sha256), Reason.CORRUPT)
    if problem := model_problem(path, name):
        problem = problem.partition(": delete it")[0]
        verdict = IntegrityError(f"{want.where} {problem}: check the entry's address", details={"problem": problem})
        # With the right hash, another download would bring the same.
        raise StartOver(verdict, Reason.CORRUPT, is_final=want.sha256 is not None)


def _by_library(task: Task, fetch: Callable[[Path], Path]) -> Hashes:
    """Have the source's own library fetch it: the way out where no plain HTTP serves it.

    The Hub's Xet storage is asked by plain HTTP first, which its bridge serves.
    """
    target, want = task.part.target, task.address
    prefix = f".{target.name[:200]}.library-"
    try:
        for stale in target.parent.glob(f"{glob.escape(prefix)}*"):
            shutil.rmtree(stale, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    except OSError as error:
        raise of_disk(error, target) from error

    task.on_progress(0, want.size)
    call = Call(lambda: fetch(folder), name="settee-library")
    try:
        try:
            found = call.result(check=task.check).resolve(strict=True)
        except (SetteeError, Stopped):
            raise
        except Exception as error:
            raise failed(want.where, "its source's own library could not fetch it either") from error
        fetched = hash_file(found, sha256=want.sha256 is not None, stop=task.lane.stop)
        _check(found, fetched, want, target.name)
        task.on_progress(fetched.size, fetched.size)
        task.part.finish(found)
    except OSError as error:
        raise of_disk(error, target) from error
    except StartOver as corrupt:
        raise corrupt.verdict from corrupt
    finally:
        # A library cannot be told to stop: one that is left alone has its folder removed when it is done.
        call.when_ended(lambda: shutil.rmtree(folder, ignore_errors=True))
    return fetched
