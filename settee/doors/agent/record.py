"""What anybody who asks may know of a job: where it stands, how far it is, what came of it. Followed as events."""

from __future__ import annotations

import threading
from collections import deque
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

    def __init__(self, job_id: str, accepted_at: datetime) -> None:
        self.job_id = job_id
        self._accepted_at = accepted_at
        self._lock = threading.Lock()
        self._state = Status.QUEUED
        self._said: dict[str, Any] = {}
        self._end: dict[str, Any] = {}
        self._number = 0
        self._events: deque[Event] = deque(maxlen=_KEPT)
        self._listeners: set[Callable[[Event], None]] = set()

    @property
    def is_over(self) -> bool:
        return self._state.is_terminal

    def tell(self, state: Status, **said: Any) -> None:
        """It stands so now. What is None is not known."""
        with self._lock:
            self._state = state
            self._said = {name: value for name, value in said.items() if value is not None}
            self._publish()

    def end(self, state: Status, body: dict[str, Any]) -> None:
        """It ended: ``body`` is the result or the error."""
        with self._lock:
            self._state, self._said, self._end = state, {}, body
            self._publish()

    def shown(self) -> dict[str, Any]:
        """``{jobId, state, acceptedAt, progress?, …}``, with the result or the error when it has ended."""
        with self._lock:
            return self._shown()

    def _shown(self) -> dict[str, Any]:
        about = {"jobId": self.job_id, "state": STATES[self._state], "acceptedAt": stamp(self._accepted_at)}
        return {**about, **self._said, **self._end}

    def _publish(self) -> None:
        self._number += 1
        event = {"id": self._number, "is_last": self._state.is_terminal, "data": self._shown()}
        self._events.append(event)
        for listener in self._listeners:
            listener(event)

    # --- following ---------------------------------------------------------------------------------------------

    def follow(self, listener: Callable[[Event], None], after: int = 0) -> list[Event]:
        """Tell ``listener`` of every event from now on; returns those before, with a number over ``after``."""
        with self._lock:
            self._listeners.add(listener)
            past = [event for event in self._events if event["id"] > after]
            return past or [{"id": self._number, "is_last": self.is_over, "data": self._shown()}]

    def unfollow(self, listener: Callable[[Event], None]) -> None:
        with self._lock:
            self._listeners.discard(listener)
