"""A job's steps, published once: what GET shows, followers, callbacks, the archive and the metrics here subscribe.

    Step ─▶ publish ─┬─▶ EventLog     numbered events: what GET shows and followers read
                     ├─▶ callbacks    the dispatcher is notified
                     └─▶ archive, metrics

A door renders its steps (:data:`Render`); everything else here is the same for every door.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from settee.base.job import Status
from settee.service.store import Ending, Store

log = logging.getLogger(__name__)

#: Events that a follower who comes late still gets.
_MAX_EVENTS = 200
#: Of the histogram of phases, seconds; a render takes from a second to an hour.
_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 900, 1800, 3600)


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """How a job ended, in the door's own JSON and in numbers."""

    #: What is shown: ``{"result": …}`` or ``{"error": …}``.
    body: Mapping[str, Any] = field(repr=False)
    #: The door's code for a failure; empty after a success.
    reason_code: str = ""
    #: Milliseconds by phase.
    timings: Mapping[str, float] = field(default_factory=dict)
    delivered_bytes: int = 0


@dataclass(frozen=True, kw_only=True)
class Step:
    """A job is in this state now; with ``outcome`` it has ended."""

    state: Status
    moment: datetime
    message: str | None = None
    #: The door's own: ``{phase, percent, …}``.
    progress: Mapping[str, Any] | None = None
    outcome: Outcome | None = None


Subscriber = Callable[[Step], None]
#: A step as the door shows it: the JSON of GET, and of an event.
Render = Callable[[Step], dict[str, Any]]


def publish(step: Step, *subscribers: Subscriber) -> None:
    """Pass the step to every subscriber, in their order. A fault of one does not reach the job, nor the others."""
    for subscriber in subscribers:
        try:
            subscriber(step)
        except Exception:
            log.exception("a step of the job (%s) was not passed on", step.state.value)


@dataclass(frozen=True)
class Event:
    """A step as it was shown to followers."""

    number: int
    data: Mapping[str, Any]
    is_new: bool = True
    is_last: bool = False


class EventLog:
    """One job as it stands, and its numbered events. May be used from any thread; no method waits."""

    def __init__(
        self,
        job_id: str,
        first: int,
        render: Render,
        *,
        shown: Mapping[str, Any] | None = None,
        interval_s: float = 0.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``first``: events are numbered from the next one on. ``shown``: before its first step. ``interval_s``: the
        least time between two events within a state."""
        self.job_id = job_id
        self._render, self._interval_s, self._clock = render, interval_s, clock
        self._lock = threading.Lock()
        #: Of the latest event.
        self.last_number = first
        #: The job as it stands, in the door's JSON.
        self.shown: Mapping[str, Any] = shown or {}
        self.is_over = False
        self._state: Status | None = None
        self._events: list[Event] = []
        self._published_at = 0.0
        self._listeners: set[Callable[[], None]] = set()

    @classmethod
    def stored(cls, store: Store, job_id: str) -> EventLog | None:
        """Return the log of the latest job of this id that has ended; None if the store does not know one any more.

        Raises StoreError.
        """
        events = store.ended(job_id)
        if events is None:
            return None
        number, shown = events[-1]
        found = cls(job_id, number, lambda step: {})
        found._events = [Event(at, data) for at, data in events[:-1]] + [Event(number, shown, is_last=True)]
        found.shown, found.is_over = shown, True
        return found

    def __call__(self, step: Step) -> None:
        """Take a step: a subscriber of :func:`publish`."""
        shown = self._render(step)
        with self._lock:
            if self.is_over:
                return
            is_new = step.state is not self._state
            self._state, self.shown, self.is_over = step.state, shown, step.outcome is not None
            if self.is_over:
                # Its states may still be asked for; how far it was at each moment is not.
                self._events = [event for event in self._events if event.is_new]
            if is_new or self._clock() - self._published_at >= self._interval_s:
                self._add(Event(self.last_number + 1, shown, is_new, self.is_over))

    def ending(self, step: Step) -> Ending:
        """Return what the store keeps of an end that is about to be published."""
        with self._lock:
            events = tuple((event.number, event.data) for event in self._events if event.is_new)
            shown, number = self._render(step), self.last_number + 1
            return Ending(state=step.state, moment=step.moment, number=number, shown=shown, events=events)

    def _add(self, event: Event) -> None:
        self.last_number, self._published_at = event.number, self._clock()
        self._events.append(event)
        if len(self._events) > _MAX_EVENTS:
            # A state that was entered is news for longer than how far it once was.
            self._events.remove(next((each for each in self._events if not each.is_new), self._events[0]))
        for listener in self._listeners:
            listener()

    # --- following --------------------------------------------------------------------------------------------

    def follow(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` at every event from now on; it must not wait, nor raise."""
        with self._lock:
            self._listeners.add(listener)

    def unfollow(self, listener: Callable[[], None]) -> None:
        with self._lock:
            self._listeners.discard(listener)

    def since(self, number: int) -> list[Event]:
        """Return the events with a number over this one, as far as they are kept."""
        with self._lock:
            return [event for event in self._events if event.number > number]


# --- metrics --------------------------------------------------------------------------------------------------


class Metrics:
    """Counters and gauges for Prometheus, as GET /metrics shows them. May be used from any thread."""

    def __init__(self, *, restarts: Callable[[], int], depth: Callable[[], int], callbacks: Callable[[], int]) -> None:
        """They are asked for the present values at every scrape."""
        self._registry = registry = CollectorRegistry()
        self.jobs = Counter(
            "settee_jobs_total", "Jobs that ended, by outcome", ["outcome", "reason"], registry=registry
        )
        self.refused = Counter(
            "settee_refused_total", "Dispatches that were refused, by status", ["status"], registry=registry
        )
        self._phases = Histogram(
            "settee_phase_seconds", "Time of each phase", ["phase"], registry=registry, buckets=_BUCKETS
        )
        self.staged = Counter("settee_staged_bytes_total", "Bytes of models fetched for jobs", registry=registry)
        self.delivered = Counter("settee_delivered_bytes_total", "Bytes of outputs uploaded", registry=registry)
        for name, text, present in (
            ("settee_comfyui_restarts", "Times that ComfyUI was started again", restarts),
            ("settee_queue_depth", "Jobs that are accepted and have not ended", depth),
            ("settee_callbacks_pending", "Terminal callbacks that are not delivered yet", callbacks),
        ):
            Gauge(name, text, registry=registry).set_function(present)

    def on_step(self, step: Step) -> None:
        """Count a job that ended."""
        outcome = step.outcome
        if outcome is not None:
            name = "SUCCESS" if step.state is Status.SUCCEEDED else step.state.name
            self.jobs.labels(name, outcome.reason_code).inc()
            self.phases(outcome.timings)
            self.delivered.inc(outcome.delivered_bytes)

    def phases(self, timings: Mapping[str, float]) -> None:
        """``timings`` are milliseconds by phase, as in a Result."""
        for phase, milliseconds in timings.items():
            self._phases.labels(phase).observe(milliseconds / 1000)

    def text(self) -> bytes:
        """Return them in Prometheus' text format 0.0.4."""
        return generate_latest(self._registry)
