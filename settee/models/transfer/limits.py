"""The numbers of a download, in one place so that a test may choose smaller ones."""

from __future__ import annotations

from dataclasses import dataclass

from settee.net.retry import Backoff
from settee.settings import MIB

_BACKOFF = Backoff(0.5, 30.0, jitter=1.0)


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds."""

    #: What one request asks for.
    range_bytes: int = 16 * MIB
    #: Requests of one file at a time. More made it slower where it was measured.
    streams: int = 4
    connect_s: float = 10.0
    #: A connection that brings nothing for this long is given up.
    stall_s: float = 20.0
    #: So is one that brings less than this in such a time.
    stall_bytes: int = 20 * 1024
    #: Failures of one range in a row, with less than ``progress_bytes`` won between them.
    tries: int = 6
    progress_bytes: int = MIB
    backoff: Backoff = _BACKOFF
    redirects: int = 10
    #: How often bytes received are written and noted, however few.
    flush_s: float = 0.25
    #: How often progress is told, and stop and deadline are looked at.
    tick_s: float = 0.1
    #: How long the end waits for threads that write.
    end_s: float = 5.0
