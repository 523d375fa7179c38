"""Who downloads next: what a job waits for at once, then the largest first, a few at a time."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from settee.base.threads import Stopped

#: How long a source may take to say a file's size before others begin, seconds.
_PATIENCE_S = 3.0
#: Downloads at once; each has several connections, and the Gate bounds those of all together.
AT_ONCE = 3


@dataclass(eq=False)
class Turn:
    """One file's place in the queue."""

    stop: threading.Event
    #: Bytes; None while its source has not been asked.
    size: int | None = None
    urgent: bool = False
    #: When its source was asked.
    asked_at: float = 0.0


class Turns:
    """A queue in which the largest file goes first, once it is known which that is."""

    def __init__(self, at_once: int = AT_ONCE) -> None:
        self._at_once = at_once
        self._changed = threading.Condition()
        self._asking: set[Turn] = set()
        self._waiting: set[Turn] = set()
        self._running: set[Turn] = set()

    @contextmanager
    def asking(self, turn: Turn) -> Iterator[None]:
        """While sizes are asked for, nothing that is not urgent begins: the largest may not be known yet.

        A source that does not answer within seconds holds nobody up.
        """
        turn.asked_at = time.monotonic()
        with self._changed:
            self._asking.add(turn)
        try:
            yield
        finally:
            with self._changed:
                self._asking.discard(turn)
                self._changed.notify_all()

    @contextmanager
    def taken(self, turn: Turn) -> Iterator[None]:
        """Wait for the turn, and hold it. Raises Stopped when ``turn.stop`` is set meanwhile."""
        with self._changed:
            self._waiting.add(turn)
            try:
                while not (turn.stop.is_set() or self._is_next(turn)):
                    self._changed.wait(_PATIENCE_S if self._asking else None)
            finally:
                self._waiting.discard(turn)
                self._changed.notify_all()
            if turn.stop.is_set():
                raise Stopped
            self._running.add(turn)
        try:
            yield
        finally:
            with self._changed:
                self._running.discard(turn)
                self._changed.notify_all()

    def _is_next(self, turn: Turn) -> bool:
        if turn.urgent:
            return True
        asking = any(time.monotonic() - other.asked_at < _PATIENCE_S for other in self._asking)
        if asking or len(self._running) >= self._at_once or any(other.urgent for other in self._waiting):
            return False
        return turn is max(self._waiting, key=lambda other: other.size or 0)

    def changed(self) -> None:
        """A turn became urgent, or was stopped."""
        with self._changed:
            self._changed.notify_all()
