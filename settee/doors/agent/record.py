"""What anybody who asks may know of a job: where it stands, how far it is, what came of it. Followed as events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from settee.doors.agent.payloads import STATES
from settee.doors.agent.timestamps import stamp
from settee.job import Status

#: Events that somebody who comes late is told of.
_KEPT = 200

Event = dict[str, Any]


class Record:
    """One job. Every method may be called from any thread, and none waits."""

    def __init__(
        self,
        job_id: str,
        accepted_at: datetime,
        *,
        interval_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``interval_s``: the least time between two events within a state."""
        self.job_id = job_id
        self._accepted_at = accepted_at
        self._interval_s, self._clock = interval_s, clock
        self._lock = threading.Lock()
        self._state = Status.QUEUED
        self._said: dict[str, Any] = {}
        self._end: dict[str, Any] = {}
        # Of two jobs with one id, one after the other, each begins above the other's: Last-Event-ID stays true.
        self._number = int(accepted_at.timestamp() * 1000)
        self._published_at = 0.0
        self._events: list[Event] = []
        self._listeners: set[Callable[[], None]] = set()

    @property
    def is_over(self) -> bool:
        return self._state.is_terminal

    @property
    def last_number(self) -> int:
        """Of the latest event."""
        return self._number

    def tell(self, state: Status, **said: Any) -> None:
        """It stands so now. What is None is not known."""
        with self._lock:
            is_new = state is not self._state or not self._events
            self._state = state
            self._said = {name: value for name, value in said.items() if value is not None}
            if is_new or self._clock() - self._published_at >= self._interval_s:
                self._publish(is_new)

    def end(self, state: Status, body: dict[str, Any]) -> None:
        """It ended: ``body`` is the result or the error."""
        with self._lock:
            self._state, self._said, self._end = state, {}, body
            # What it went through may still be asked for; how far it was at each moment not.
            self._events = [event for event in self._events if event["is_new"]]
            self._publish(True)

    def shown(self) -> dict[str, Any]:
        """``{jobId, state, acceptedAt, progress?, …}``, with the result or the error when it has ended."""
        with self._lock:
            return self._shown()

    def _shown(self) -> dict[str, Any]:
        about = {"jobId": self.job_id, "state": STATES[self._state], "acceptedAt": stamp(self._accepted_at)}
        return {**about, **self._said, **self._end}

    def _publish(self, is_new: bool) -> None:
        self._number += 1
        self._published_at = self._clock()
        event = {"id": self._number, "is_new": is_new, "is_last": self._state.is_terminal, "data": self._shown()}
        self._events.append(event)
        if len(self._events) > _KEPT:
            # A state that was entered is news for longer than how far it once was.
            self._events.remove(next((each for each in self._events if not each["is_new"]), self._events[0]))
        for listener in self._listeners:
            listener()

    # --- following ---------------------------------------------------------------------------------------------

    def follow(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` at every event from now on; it must not wait, nor raise."""
        with self._lock:
            self._listeners.add(listener)

    def unfollow(self, listener: Callable[[], None]) -> None:
        with self._lock:
            self._listeners.discard(listener)

    def since(self, number: int) -> list[Event]:
        """Events with a number over this one, as far as they are kept."""
        with self._lock:
            return [event for event in self._events if event["id"] > number]
