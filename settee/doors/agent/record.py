"""What anybody who asks may know of a job: where it stands, how far it is, what came of it. Followed as events."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from datetime import datetime
from typing import Any

from settee.base.job import Status
from settee.doors.agent.callbacks.payloads import STATES
from settee.doors.agent.timestamps import parsed, stamp

#: Events that somebody who comes late is told of.
_KEPT = 200

_ENDS = {name: state for state, name in STATES.items() if state.is_terminal}

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

    @classmethod
    def ended(cls, shown: dict[str, Any], number: int) -> Record:
        """The one that :meth:`shown_at_end` was said of, with its last event's number. Raises ValueError, KeyError,
        TypeError or AttributeError for what was not."""
        record = cls(shown["jobId"], parsed(shown["acceptedAt"]))
        record._state = _ENDS[shown["state"]]
        record._end = {name: value for name, value in shown.items() if name not in record._about(record._state)}
        record._number = int(number) - 1
        record._publish(True)
        return record

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

    def end(self, state: Status, moment: datetime, body: dict[str, Any]) -> None:
        """It ended: ``body`` is the result or the error."""
        with self._lock:
            self._state, self._said, self._end = state, {}, self._ending(moment, body)
            # What it went through may still be asked for; how far it was at each moment not.
            self._events = [event for event in self._events if event["is_new"]]
            self._publish(True)

    def shown(self) -> dict[str, Any]:
        """``{jobId, state, acceptedAt, progress?, …}``; ended, with finishedAt, and the result or the error."""
        with self._lock:
            return self._shown()

    def shown_at_end(self, state: Status, moment: datetime, body: dict[str, Any]) -> dict[str, Any]:
        """What :meth:`shown` will say after such an :meth:`end`."""
        with self._lock:
            return {**self._about(state), **self._ending(moment, body)}

    def _shown(self) -> dict[str, Any]:
        return {**self._about(self._state), **self._said, **self._end}

    def _about(self, state: Status) -> dict[str, Any]:
        return {"jobId": self.job_id, "state": STATES[state], "acceptedAt": stamp(self._accepted_at)}

    def _ending(self, moment: datetime, body: dict[str, Any]) -> dict[str, Any]:
        prompt = {"promptId": self._said["promptId"]} if "promptId" in self._said else {}
        return {"finishedAt": stamp(moment), **prompt, **body}

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
