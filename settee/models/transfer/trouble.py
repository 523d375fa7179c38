"""Failures of a download, by what is to be done about each; and the limits of a download.

Broken      this request failed; another one may not (settee.net.failures)
Refused     this URL will be refused again; a fresh one may not (settee.net.failures)
StartOver   the bytes in place are of no use; the download begins again, once for each reason
Stopped     the caller has given it up
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from enum import Enum

from settee.base.errors import DownloadFailed, SetteeError
from settee.base.settings import MIB
from settee.net.failures import Broken, Refused
from settee.net.retry import Backoff

_ADVICE = {
    401: "it wants credentials: give a token that may read it",
    403: "it is forbidden: check the token and the expiry of a signed address",
    404: "no such file: check its name and revision",
    407: "the proxy wants credentials: put them into HTTPS_PROXY",
    410: "the file is gone: give another address",
    416: "it has fewer bytes than it stated",
    451: "it is withheld for legal reasons",
}
_BACKOFF = Backoff(0.5, 30.0, jitter=1.0)


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds. A test may choose smaller ones."""

    #: What one request asks for.
    range_bytes: int = 16 * MIB
    #: Requests of one file at a time. More made it slower where it was measured.
    streams: int = 4
    connect_s: float = 10.0
    #: A connection that brings nothing for this long is given up.
    stall_s: float = 20.0
    #: So is one that brings less than this in such a time.
    stall_bytes: int = 20 * 1024
    #: Failures of one range in a row, with less than ``progress_bytes`` received between them.
    tries: int = 6
    progress_bytes: int = MIB
    backoff: Backoff = _BACKOFF
    redirects: int = 10
    #: How often received bytes are written and noted, however few.
    flush_s: float = 0.25
    #: How often progress is reported, and stop and deadline are looked at.
    tick_s: float = 0.1
    #: How long the end waits for threads that write.
    end_s: float = 5.0


class Reason(Enum):
    """Why a download begins again."""

    #: The file changed: the source is asked for its newest address.
    CHANGED = "changed"
    #: The server's ranges are wrong: all is asked for in one body.
    RANGES = "ranges"
    #: All bytes came, and they are not the file.
    CORRUPT = "corrupt"


class StartOver(Exception):
    """``verdict`` is raised when it was begun again for this reason before, or when this is final."""

    def __init__(self, verdict: SetteeError, reason: Reason = Reason.CHANGED, *, is_final: bool = False) -> None:
        super().__init__(verdict.message)
        self.verdict = verdict
        self.reason = reason
        self.is_final = is_final


def failed(where: str, reason: str, *, retryable: bool = True, status: int | None = None) -> DownloadFailed:
    """Return the error of a download. It has ``details["status"]`` when a status of HTTP decided it."""
    details = {} if status is None else {"status": status}
    return DownloadFailed(f"{where} cannot be downloaded: {reason}", details=details, retryable=retryable)


def changed(where: str) -> DownloadFailed:
    """Return the error for a file that becomes another one."""
    return failed(where, "the file changes on the server while it is downloaded")


def advised(refused: Refused) -> Refused:
    """Return the refusal with advice."""
    if not refused.status:
        return refused
    advice = _ADVICE.get(refused.status, "the server does not serve it")
    return Refused(f"{advice} ({refused.reason})", refused.status)


class Retries:
    """Counts failures in a row, and gives the pause after each."""

    def __init__(self, where: str, limits: Limits, deadline: float) -> None:
        self._where = where
        self._limits = limits
        self._deadline = deadline
        self._failures = 0

    def reset(self) -> None:
        """There was progress."""
        self._failures = 0

    def pause_s(self, trouble: Broken) -> float:
        """Return the seconds to wait before the next try. Raises DownloadFailed when there is to be none."""
        self._failures += 1
        if self._failures >= self._limits.tries:
            raise failed(self._where, f"{trouble.reason}, {self._failures} times in a row")
        wait = self._limits.backoff.pause_s(self._failures, trouble.wait_s)
        if time.monotonic() + wait > self._deadline:
            raise failed(self._where, f"{trouble.reason}, and MODELS_TIMEOUT_S leaves no time to wait {wait:.0f} s")
        return wait
