"""Status callbacks on their way out: best-effort, in order, one at a time.

A newer heartbeat takes the place of an older one of the same state that still waits. Once a job's terminal callback is
there, no more of its statuses are accepted, those that wait are tried once each, and after the time of one request
what is left of them is dropped. Those that are held wait in their places, and others go past them.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from settee.base import logs
from settee.base.job import Status
from settee.doors.agent.callbacks.posting import Answer, Post, Sender, sent

log = logging.getLogger(__name__)

#: That wait; a job has nine states, and only the newest heartbeat of each.
_MAX_WAITING = 100
#: Retry-After is respected up to this, seconds.
_LONGEST_PAUSE_S = 60.0


@dataclass(frozen=True)
class StatusPost:
    run_id: str
    job_id: str
    state: Status
    post: Post

    def says_as(self, other: StatusPost) -> bool:
        """The same state of the same job, at another moment."""
        return (self.run_id, self.state) == (other.run_id, other.state)


class StatusLane:
    """Its methods are called with ``changed`` held, but for :meth:`work`, which a thread of its own runs."""

    def __init__(
        self,
        changed: threading.Condition,
        sender: Sender,
        *,
        timeout_s: float,
        max_retries: int,
        pause_s: Callable[[int], float],
        clock: Callable[[], float],
        is_held: Callable[[StatusPost], bool],
    ) -> None:
        """``pause_s(n)``: how long to wait after attempt n, which begin at 0. ``is_held``: whether one may not go
        now; when that changes, ``changed`` is notified."""
        self._changed = changed
        self._sender = sender
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._pause_s = pause_s
        self._clock = clock
        self._is_held = is_held
        self._waiting: deque[StatusPost] = deque()
        self._in_flight: StatusPost | None = None
        self._open: set[str] = set()
        #: By run: until when its statuses may go before its terminal callback, by the clock.
        self._until: dict[str, float] = {}
        self._is_stopped = False
        self._has_failed = False

    def open(self, run_id: str) -> None:
        self._open.add(run_id)

    def is_open(self, run_id: str) -> bool:
        return run_id in self._open

    def end(self, run_id: str, *, is_followed: bool) -> None:
        """Accept nothing more. With a terminal callback to follow, what waits has the time of one request."""
        self._open.discard(run_id)
        if is_followed:
            self._until[run_id] = self._clock() + self._timeout_s
        self._changed.notify_all()

    def put(self, status: StatusPost) -> None:
        if self._waiting and self._waiting[-1].says_as(status):
            self._waiting.pop()
        elif len(self._waiting) >= _MAX_WAITING:
            self._waiting.popleft()
        self._waiting.append(status)
        self._changed.notify_all()

    def is_clear(self, run_id: str) -> bool:
        """Whether the run's terminal callback may go: it does in the time of one request, for which see _limit_s."""
        if self._in_flight is not None and self._in_flight.run_id == run_id:
            return False
        if any(each.run_id == run_id for each in self._waiting):
            return False
        self._until.pop(run_id, None)
        return True

    @property
    def is_idle(self) -> bool:
        """Nothing goes, and nothing may."""
        return self._in_flight is None and self._next() is None

    def stop(self) -> None:
        """Drop what waits."""
        self._is_stopped = True
        self._changed.notify_all()

    # --- in its thread ------------------------------------------------------------------------------------------

    def work(self) -> None:
        while True:
            with self._changed:
                while (status := self._next()) is None and not self._is_stopped:
                    self._changed.wait()
                if self._is_stopped or status is None:
                    return
                self._waiting.remove(status)
                self._in_flight = status
            with logs.job(status.job_id):
                self._report(status, self._deliver(status))
            with self._changed:
                self._in_flight = None
                self._changed.notify_all()

    def _next(self) -> StatusPost | None:
        return next((each for each in self._waiting if not self._is_held(each)), None)

    def _deliver(self, status: StatusPost) -> Answer:
        answer = Answer(why="its job has ended")
        for attempt in range(self._max_retries + 1):
            limit_s = self._limit_s(status.run_id)
            if limit_s <= 0:
                break
            answer = sent(self._sender, status.post, limit_s)
            if answer.is_delivered or answer.is_refused or attempt == self._max_retries:
                break
            with self._changed:
                # A receiver that asks to be left alone is, also by newer heartbeats; they gather meanwhile.
                asked_s = min(answer.retry_after_s, _LONGEST_PAUSE_S)
                if self._changed.wait_for(lambda: self._has_ended(status), asked_s):
                    break
                if self._changed.wait_for(lambda: self._is_stale(status), self._pause_s(attempt)):
                    break
        return answer

    def _limit_s(self, run_id: str) -> float:
        """What an attempt may take. The terminal callback waits no longer than one request may take."""
        with self._changed:
            until = self._until.get(run_id)
        return self._timeout_s if until is None else min(self._timeout_s, until - self._clock())

    def _is_stale(self, status: StatusPost) -> bool:
        """Not worth another attempt: the job has ended, or a newer heartbeat says the same."""
        newer = self._next()
        return (newer is not None and newer.says_as(status)) or self._has_ended(status)

    def _has_ended(self, status: StatusPost) -> bool:
        return self._is_stopped or status.run_id not in self._open

    def _report(self, status: StatusPost, answer: Answer) -> None:
        """A receiver that is down is worth one line, not one for each heartbeat."""
        if not answer.is_delivered:
            level = logging.DEBUG if self._has_failed else logging.WARNING
            log.log(level, "the status callback %s is not delivered: %s", status.post.key, answer.why)
        self._has_failed = not answer.is_delivered
