"""The whole way of one file: locked, fetched, checked, renamed; begun again at most once for each reason."""

from __future__ import annotations

import contextlib
import glob
import logging
import os
import shutil
import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from settee.base.errors import DownloadFailed, IntegrityError, SetteeError
from settee.base.threads import Call, Stopped
from settee.models.folder.checks import model_problem
from settee.models.transfer.address import Address, Facts, wrong_hash, wrong_size
from settee.models.transfer.attempt import Attempt, Fetched, Mode, Progress, hashed
from settee.models.transfer.part import Part, open_part
from settee.models.transfer.scheduler import Lane
from settee.models.transfer.trouble import Limits, Retries, StartOver, failed, of_disk
from settee.net.failures import Broken

log = logging.getLogger(__name__)

#: Refusals that may mean that only Xet serves it.
_LIBRARY_STATUS = frozenset((403, 404, 405, 406, 410, 415, 421, 426, 501))


def download(
    address: Address,
    target: Path,
    *,
    lane: Lane,
    stop: threading.Event,
    deadline: float,
    on_progress: Progress,
    sha256: str | None = None,
    size: int | None = None,
    limits: Limits | None = None,
) -> Fetched:
    """Fetch ``address`` to ``target``, whole and checked, or leave nothing there.

    ``deadline`` is in ``time.monotonic()``. ``on_progress(bytes in place, all or None)`` is called in this thread, at
    most ten times a second. ``sha256`` and ``size`` take precedence over the address's own. Bytes of an earlier
    download of the same file, in ``<target>.part`` by ``<target>.part.json``, are not fetched again.

    Raises Stopped (within a second of ``stop``), DownloadFailed (``retryable`` or not), IntegrityError, NoSpace,
    StagingError for a folder that cannot be written, InvalidRequest for a caller's address that is not public, and
    the errors of the address's own ``renew`` and ``by_library``.
    """
    known = Facts(size, sha256=sha256)
    want = known.with_address(address)
    before = _identity(target)
    part, waited = open_part(target, address, stop, deadline)
    try:
        if waited and (brought := _brought(target, want, before, stop)):
            part.discard()
            return brought
        return _Download(address, known, part, lane, stop, deadline, on_progress, limits or Limits()).run()
    except BaseException:
        part.tidy()
        raise
    finally:
        part.close()


@dataclass
class _Download:
    address: Address
    known: Facts
    part: Part
    lane: Lane
    stop: threading.Event
    deadline: float
    on_progress: Progress
    limits: Limits

    def run(self) -> Fetched:
        try:
            fetched = self._fetched()
        except DownloadFailed as error:
            fetch = self.address.by_library
            if fetch is None or error.details.get("status") not in _LIBRARY_STATUS:
                raise
            log.info("%s: left to its source's own library", self.address.logged)
            return self._by_library(fetch)
        self.part.finish()
        return fetched

    def _fetched(self) -> Fetched:
        """Fetch the part, whole and right; each reason to begin again counts once."""
        retries = Retries(self.address.where, self.limits, self.deadline)
        has_changed = was_corrupt = False
        mode = Mode()
        while True:
            attempt = Attempt(self.address, self.known, self.part, self.lane, self.limits, self.deadline, mode)
            try:
                fetched = attempt.run(self.stop, self.on_progress)
                self._check(self.part.path, fetched, attempt.facts)
                return fetched
            except Broken as trouble:
                # One body for all: it cannot be resumed.
                mode = replace(mode, plain=True)
                if self.stop.wait(retries.pause_s(trouble)):
                    raise Stopped from None
            except StartOver as again:
                if again.plain and not mode.plain:
                    mode = replace(mode, plain=True)
                elif has_changed:
                    self.part.discard()
                    raise again.verdict from again
                else:
                    has_changed = True
                    mode = replace(mode, renew=True)
            except _Corrupt as error:
                if was_corrupt or error.is_final:
                    self.part.discard()
                    raise error.verdict from error
                was_corrupt = True
                log.warning("%s is not what it should be; it is fetched once more", self.address.logged)
            self.part.reset()

    def _check(self, path: Path, fetched: Fetched, want: Facts) -> None:
        """Raise _Corrupt when the file is not the wanted one, or not a whole model."""
        if want.size is not None and fetched.size != want.size:
            raise _Corrupt(wrong_size(self.address.where, want.size, fetched.size))
        if want.sha256 is not None and fetched.sha256 != want.sha256:
            raise _Corrupt(wrong_hash(self.address.where, want.sha256, fetched.sha256 or "?"))
        if problem := model_problem(path, self.part.target.name):
            # With the right hash, another download would bring the same.
            problem = problem.partition(": delete it")[0]
            verdict = IntegrityError(
                f"{self.address.where} {problem}: check the entry's address", details={"problem": problem}
            )
            raise _Corrupt(verdict, is_final=want.sha256 is not None)

    def _by_library(self, fetch: Callable[[Path], Path]) -> Fetched:
        """Have the source's own library fetch it: the way out where no plain HTTP serves it.

        The Hub's Xet storage is asked by plain HTTP first, which its bridge serves.
        """
        target, want = self.part.target, self.known.with_address(self.address)
        prefix = f".{target.name[:200]}.library-"
        try:
            for stale in target.parent.glob(f"{glob.escape(prefix)}*"):
                shutil.rmtree(stale, ignore_errors=True)
            folder = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
        except OSError as error:
            raise of_disk(error, target, None) from error
        call = Call(lambda: fetch(folder), name="settee-library")
        try:
            found = self._awaited(call, folder)
            fetched = hashed(found, self.stop, with_sha256=want.sha256 is not None)
            self._check(found, fetched, want)
            self.on_progress(fetched.size, fetched.size)
            self.part.finish(found)
        except OSError as error:
            raise of_disk(error, target, None) from error
        except _Corrupt as error:
            raise error.verdict from error
        finally:
            # A library cannot be told to stop: one that is left alone has its folder removed when it is done.
            call.when_ended(lambda: shutil.rmtree(folder, ignore_errors=True))
        return replace(fetched, validator=want.validator)

    def _awaited(self, call: Call[Path], folder: Path) -> Path:
        def check() -> None:
            if self.stop.is_set():
                raise Stopped
            if time.monotonic() > self.deadline:
                raise failed(self.address.where, "it took longer than MODELS_TIMEOUT_S")
            self.on_progress(_bytes_below(folder), None)

        try:
            found = call.result(check=check)
        except (SetteeError, Stopped):
            raise
        except Exception as error:
            raise self._no_library() from error
        if not found.is_file():
            raise self._no_library()
        return found.resolve()

    def _no_library(self) -> DownloadFailed:
        return failed(self.address.where, "its source's own library could not fetch it either")


class _Corrupt(Exception):
    """All bytes came, and they are not the file."""

    def __init__(self, verdict: SetteeError, *, is_final: bool = False) -> None:
        super().__init__(verdict.message)
        self.verdict = verdict
        self.is_final = is_final


def _brought(target: Path, want: Facts, before: tuple[int, int] | None, stop: threading.Event) -> Fetched | None:
    """Return the file, if the process that was waited for put the right one there."""
    if _identity(target) in (None, before) or (want.size is None and want.sha256 is None):
        return None
    try:
        fetched = hashed(target, stop, with_sha256=want.sha256 is not None)
    except OSError:
        return None
    if want.size not in (None, fetched.size) or want.sha256 != fetched.sha256:
        return None
    return replace(fetched, validator=want.validator)


def _identity(target: Path) -> tuple[int, int] | None:
    try:
        found = target.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


def _bytes_below(folder: Path) -> int:
    total = 0
    for root, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(root, name)).st_size
    return total
