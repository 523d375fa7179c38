"""When a failed request is sent again: growing pauses with jitter, and the server's Retry-After."""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

T = TypeVar("T")

#: 501 and 505 state what the server cannot do at all.
_FINAL = frozenset((501, 505))


def is_transient(status: int) -> bool:
    """Return True if the same request may succeed later, by the HTTP status of its answer."""
    return status in (408, 425, 429) or (status >= 500 and status not in _FINAL)


def retry_after_s(text: str | None, limit_s: float = 1e9) -> float | None:
    """Return the seconds that a Retry-After header asks for, at most ``limit_s``; None if it is missing or unreadable.

    RFC 9110, 10.2.3: a number of seconds, or a date. Some servers send fractions.
    """
    text = (text or "").strip()
    if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
        return min(float(text[:12]), limit_s)
    import email.utils  # the client's --help does without it

    try:
        wait_s = email.utils.parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, IndexError, OverflowError, OSError):
        return None
    return min(max(0.0, wait_s), limit_s)


@dataclass(frozen=True)
class Backoff:
    """Pauses between tries, in seconds: the first, doubled after every failure in a row, up to the longest.

    ``jitter`` is the share of a pause that is left to chance: clients that failed together come back apart.
    """

    first_s: float
    longest_s: float
    jitter: float = 0.5

    def pause_s(
        self, failures: int, asked_s: float | None = None, *, rand: Callable[[], float] = random.random
    ) -> float:
        """Return the pause after so many failures in a row (from 1), never shorter than the server ``asked``."""
        base = min(self.longest_s, self.first_s * 2.0 ** min(failures - 1, 60))
        chance = rand()
        pause = base * (1 - self.jitter * (1 - chance))
        # Clients that were asked the same come back apart as well.
        return pause if asked_s is None else max(pause, asked_s + chance * min(base, 1.0))


def retried(
    call: Callable[[], T],
    backoff: Backoff,
    *,
    may_pass: Callable[[Exception], bool] = lambda error: bool(getattr(error, "retryable", False)),
    tries: int | None = None,
    within_s: float | None = None,
    stop: threading.Event | None = None,
) -> T:
    """Return the answer of ``call``, which is called again after errors that ``may_pass``.

    Raises its last error: after ``tries`` calls, when ``within_s`` seconds have passed since the first, or at once when
    ``stop`` is set.
    """
    stop = stop or threading.Event()
    began, failures = time.monotonic(), 0
    while True:
        try:
            return call()
        except Exception as error:
            failures += 1
            is_last = failures == tries or (within_s is not None and time.monotonic() - began > within_s)
            if is_last or not may_pass(error) or stop.wait(backoff.pause_s(failures)):
                raise
