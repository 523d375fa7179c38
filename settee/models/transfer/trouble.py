"""What can go wrong on the way, told apart by what is to be done about it.

Broken      this request failed; another one may not
Refused     this URL will go on saying no; a fresh one may not
StartOver   the bytes in place belong to something else; the file begins anew, once
Stopped     the caller wants no more of it
"""

from __future__ import annotations

import errno
import os
import ssl
import time
from pathlib import Path

from settee.errors import DownloadFailed, NoSpace, SetteeError, StagingError
from settee.models.transfer.limits import Limits
from settee.models.turns import Stopped
from settee.net.retry import is_transient

#: S3's words for what passes.
_LATER = ("SlowDown", "InternalError", "RequestTimeout", "ServiceUnavailable")
_ADVICE = {
    401: "it wants credentials: give a token that may read it",
    403: "it is forbidden: check the token, or whether the signed address has expired",
    404: "there is no such file: check its name and revision",
    407: "the proxy wants credentials: put them into HTTPS_PROXY",
    410: "the file is gone: give another address",
    416: "it has fewer bytes than it said",
    451: "it is withheld for legal reasons",
}


class Broken(Exception):
    """``wait_s`` is what the server asked for, where it did."""

    def __init__(self, reason: str, *, wait_s: float | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_s = wait_s


class Refused(Exception):
    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


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


def of_status(status: int, code: str = "", wait_s: float | None = None) -> Broken | Refused:
    """An answer that brings no bytes. ``code`` is S3's word for it (``AccessDenied``)."""
    said = f"HTTP {status}{' ' + code if code else ''}"
    if is_transient(status) or status == 409 or code in _LATER:
        return Broken(f"the server says {said}", wait_s=wait_s)
    advice = _ADVICE.get(status, "the server does not serve it")
    return Refused(f"{advice} ({said})", status)


def of_connection(error: BaseException) -> Broken | Refused:
    """The kind of failure; an exception's own text may hold the URL."""
    import urllib3.exceptions as http

    chain: list[BaseException] = []
    while error not in chain:
        chain.append(error)
        inner = next((arg for arg in error.args if isinstance(arg, BaseException)), None)
        error = inner or error.__cause__ or error
    if any(isinstance(link, ssl.SSLCertVerificationError) for link in chain):
        return Refused(
            "its TLS certificate is not trusted: if the server is your own, name its CA's file in REQUESTS_CA_BUNDLE", 0
        )
    # A connection that is cut within TLS is just cut.
    cut = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
    if any(isinstance(link, ssl.SSLError) and not isinstance(link, (*cut, TimeoutError)) for link in chain):
        return Refused("it speaks no TLS that this worker accepts: check the address (https or http, port)", 0)
    if any(isinstance(link, http.LocationValueError) for link in chain):
        return Refused("its address is not valid", 0)
    if any(isinstance(link, http.NameResolutionError) for link in chain):
        return Broken("its host name cannot be resolved")
    if any(isinstance(link, http.ProxyError) for link in chain):
        return Broken("the proxy cannot be reached (HTTPS_PROXY, HTTP_PROXY)")
    # Before timeouts: urllib3 has it for one.
    if any(isinstance(link, (http.NewConnectionError, ConnectionRefusedError)) for link in chain):
        return Broken("the server cannot be reached")
    if any(isinstance(link, (TimeoutError, http.TimeoutError)) for link in chain):
        return Broken("the server fell silent")
    return Broken("the connection broke off")


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
    "failed",
    "free_bytes",
    "of_connection",
    "of_disk",
    "of_status",
]
