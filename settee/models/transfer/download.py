"""The whole way of one file: locked, fetched, checked, renamed; begun anew at most once for each reason."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from settee.base.threads import Stopped
from settee.errors import DownloadFailed, IntegrityError, SetteeError
from settee.models.address import Address
from settee.models.checks import model_problem
from settee.models.transfer.attempt import Attempt, Progress
from settee.models.transfer.follower import Digests, digests_of
from settee.models.transfer.gate import Lane
from settee.models.transfer.given import Given, How, wrong_hash, wrong_size
from settee.models.transfer.library import LIBRARY_STATUS, by_library
from settee.models.transfer.limits import Limits
from settee.models.transfer.part import Part, open_part
from settee.models.transfer.probe import Facts
from settee.models.transfer.trouble import Patience, StartOver, of_disk
from settee.net.failures import Broken

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Fetched:
    """What lies at the target now."""

    size: int
    #: Hex; None where nobody knew which to expect.
    sha256: str | None
    #: Hex, of 64 bits, for checks of what is placed.
    xxh3: str
    #: ETag, or whatever the address knew.
    validator: str | None


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

    ``deadline`` is of ``time.monotonic``. ``on_progress(bytes in place, all or None)`` is called in this thread, at
    most ten times a second. ``sha256`` and ``size`` go before the address's own. What is there already of an earlier
    download of the same file, in ``<target>.part`` by ``<target>.part.json``, is not fetched again.

    Raises Stopped (within a second of ``stop``), DownloadFailed (``retryable`` or not), IntegrityError, NoSpace,
    StagingError for a folder that cannot be written, InvalidRequest for a caller's address that is not public, and
    what the address's own ``renew`` and ``by_library`` raise.
    """
    given = Given(size, sha256)
    want = given.with_address(address)
    before = _identity(target)
    part, waited = open_part(target, address, stop, deadline)
    try:
        if waited and (brought := _brought(target, want, before, stop)):
            part.discard()
            return brought
        return _Download(address, given, part, lane, stop, deadline, on_progress, limits or Limits()).run()
    except BaseException:
        part.tidy()
        raise
    finally:
        part.close()


@dataclass
class _Download:
    address: Address
    given: Given
    part: Part
    lane: Lane
    stop: threading.Event
    deadline: float
    on_progress: Progress
    limits: Limits

    def run(self) -> Fetched:
        try:
            digests, validator = self._fetched()
        except DownloadFailed as error:
            fetch = self.address.by_library
            if fetch is None or error.details.get("status") not in LIBRARY_STATUS:
                raise
            logger.info("%s: left to its source's own library", self.address.logged)
            return self._by_library(fetch)
        self.part.finish()
        return _fetched(digests, validator)

    def _fetched(self) -> tuple[Digests, str | None]:
        """The part, whole and right; each reason to begin anew counts once."""
        patience = Patience(self.address.where, self.limits, self.deadline)
        changed = corrupt = False
        how = How()
        while True:
            attempt = Attempt(self.address, self.given, self.part, self.lane, self.limits, self.deadline, how)
            try:
                digests = attempt.run(self.stop, self.on_progress)
                self._check(self.part.path, digests, attempt.facts.size, attempt.facts.sha256)
                return digests, attempt.facts.validator
            except Broken as trouble:
                # Of one body for all: it cannot be gone on with.
                how = replace(how, plain=True)
                self._pause(patience.after(trouble))
            except StartOver as again:
                if again.plain and not how.plain:
                    how = replace(how, plain=True)
                elif changed:
                    self.part.discard()
                    raise again.verdict from again
                else:
                    changed = True
                    how = replace(how, renew=True)
            except _Corrupt as error:
                if corrupt or error.is_final:
                    self.part.discard()
                    raise error.verdict from error
                corrupt = True
                logger.warning("%s is not what it should be; it is fetched once more", self.address.logged)
            self.part.reset()

    def _check(self, path: Path, digests: Digests, size: int | None, sha256: str | None) -> None:
        if size is not None and digests.size != size:
            raise _Corrupt(wrong_size(self.address.where, size, digests.size))
        if sha256 is not None and digests.sha256 != sha256:
            raise _Corrupt(wrong_hash(self.address.where, sha256, digests.sha256 or "?"))
        if problem := model_problem(path, self.part.target.name):
            # With the hash that was asked for, another download would bring the same.
            problem = problem.partition(": delete it")[0]
            verdict = IntegrityError(
                f"{self.address.where} {problem}: check the entry's address", details={"problem": problem}
            )
            raise _Corrupt(verdict, is_final=sha256 is not None)

    def _by_library(self, fetch: Callable[[Path], Path]) -> Fetched:
        target, where = self.part.target, self.address.where
        want = self.given.with_address(self.address)
        with by_library(
            fetch, target, where, stop=self.stop, deadline=self.deadline, on_progress=self.on_progress
        ) as found:
            try:
                digests = digests_of(found, self.stop, with_sha256=want.sha256 is not None)
            except OSError as error:
                raise of_disk(error, target, None) from error
            try:
                self._check(found, digests, want.size, want.sha256)
            except _Corrupt as error:
                raise error.verdict from error
            self.on_progress(digests.size, digests.size)
            self.part.finish(found)
        return _fetched(digests, want.validator)

    def _pause(self, seconds: float) -> None:
        if self.stop.wait(seconds):
            raise Stopped


class _Corrupt(Exception):
    """All bytes came, and they are not the file."""

    def __init__(self, verdict: SetteeError, *, is_final: bool = False) -> None:
        super().__init__(verdict.message)
        self.verdict = verdict
        self.is_final = is_final


def _fetched(digests: Digests, validator: str | None) -> Fetched:
    return Fetched(digests.size, digests.sha256, digests.xxh3, validator)


def _brought(target: Path, want: Facts, before: tuple[int, int] | None, stop: threading.Event) -> Fetched | None:
    """The file, if the process that was waited for put the right one there."""
    if _identity(target) in (None, before) or (want.size is None and want.sha256 is None):
        return None
    try:
        digests = digests_of(target, stop, with_sha256=want.sha256 is not None)
    except OSError:
        return None
    if want.size not in (None, digests.size) or want.sha256 != digests.sha256:
        return None
    return _fetched(digests, want.validator)


def _identity(target: Path) -> tuple[int, int] | None:
    try:
        found = target.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns


__all__ = ["Fetched", "download"]
