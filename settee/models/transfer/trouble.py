"""What can go wrong on the way, told apart by what is to be done about it.

Broken      this request failed; another one may not (settee.net.failures)
Refused     this URL will be refused again; a fresh one may not (settee.net.failures)
StartOver   the bytes in place belong to something else; the file begins anew, once
Stopped     the caller wants no more of it
"""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path

from settee.base.threads import Stopped
from settee.errors import DownloadFailed, NoSpace, SetteeError, StagingError
from settee.models.transfer.limits import Limits
from settee.net.failures import Broken, Refused

_ADVICE = {
    401: "it wants credentials: give a token that may read it",
    403: "it is forbidden: check the token, or whether the signed address has expired",
    404: "there is no such file: check its name and revision",
    407: "the proxy wants credentials: put them into HTTPS_PROXY",
    410: "the file is gone: give another address",
    416: "it has fewer bytes than it said",
    451: "it is withheld for legal reasons",
}


class StartOver(Exception):
    """``plain``: without ranges this time. ``verdict`` is raised when it was begun anew before."""

    def __init__(self, verdict: SetteeError, *, plain: bool = False) -> None:
        super().__init__(verdict.message)
        self.verdict = verdict
        self.plain = plain


def failed(where: str, reason: str, *, retryable: bool = True, status: int | None = None) -> DownloadFailed:
    """``details["status"]`` is there when a status of HTTP decided it."""
    details = {} if status is None else {"status": status}
    return DownloadFailed(f"{where} cannot be downloaded: {reason}", details=details, retryable=retryable)


def advised(refused: Refused) -> Refused:
    """Return the refusal with what to do about it."""
    if not refused.status:
        return refused
    advice = _ADVICE.get(refused.status, "the server does not serve it")
    return Refused(f"{advice} ({refused.reason})", refused.status)


def of_disk(error: OSError, path: Path, needed: int | None) -> SetteeError:
    """Ours for a failed write, without the folder's name."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        free = free_bytes(path.parent)
        numbers = "" if needed is None else f" it needs {needed:,} bytes more,"
        return NoSpace(
            f"there is no room for {path.name} on the worker's disk:{numbers} {free:,} bytes are free. "
            "Free some, set MODELS_DISK_BUDGET_GB, or give the worker a larger disk",
            details={"file": path.name, "needed": needed, "free": free},
        )
    why = os.strerror(error.errno) if error.errno else "it failed"
    return StagingError(f"{path.name} cannot be written to the models folder: {why}")


def free_bytes(folder: Path) -> int:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return 0
    return disk.f_bavail * disk.f_frsize


class Patience:
    """Failures in a row, and how long to wait after each."""

    def __init__(self, where: str, limits: Limits, deadline: float) -> None:
        self._where = where
        self._limits = limits
        self._deadline = deadline
        self._failures = 0

    def renew(self) -> None:
        """There was progress."""
        self._failures = 0

    def after(self, trouble: Broken) -> float:
        """Seconds to wait before the next try. Raises DownloadFailed when there is to be none."""
        self._failures += 1
        if self._failures >= self._limits.tries:
            raise failed(self._where, f"{trouble.reason}, {self._failures} times in a row")
        wait = self._limits.backoff.pause_s(self._failures, trouble.wait_s)
        if time.monotonic() + wait > self._deadline:
            raise failed(self._where, f"{trouble.reason}, and MODELS_TIMEOUT_S leaves no time to wait {wait:.0f} s")
        return wait


__all__ = [
    "Broken",
    "Patience",
    "Refused",
    "StartOver",
    "Stopped",
    "advised",
    "failed",
    "free_bytes",
    "of_disk",
]
