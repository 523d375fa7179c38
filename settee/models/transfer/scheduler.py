"""The download scheduler of a process: which file is downloaded next, and which of its streams may send a request.

**Files.** A file that a job waits for begins at once; of the others the largest first, a few at a time.

**Requests.** All downloads together have a limited number in flight (MODELS_CONNECTIONS). A :class:`Ticket` is one
stream's right to send one. It comes with the buffer to receive into, so that memory is bounded however many downloads
wait. While an urgent lane asks for anything, all others hand their tickets back between two chunks; their connections
stay open, and a server that gives up costs one more retry.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

from settee.base.threads import Stopped

#: Files downloaded at once; each has several connections.
MAX_FILES = 3
#: Models that are linked, or checked, at once.
MAX_LINKS = 4
#: Sources that are asked about their files at once.
MAX_QUESTIONS = 8
#: How long a source may take to state a file's size before others begin, seconds.
_ASKING_S = 3.0
#: Small enough for a core's cache, so that what is received is still there when it is written; half of it cost 40 %
#: more CPU on loopback, twice of it saved nothing.
BUFFER_BYTES = 512 * 1024


class Overtaken(Exception):
    """An urgent download wants the line. A body that is left open would take its share of it all the same, until the
    buffers on both sides are full: so it is closed, and requested again from where it was."""


class Scheduler:
    """One for all downloads of the process. Safe to use from any thread."""

    def __init__(self, connections: int, max_files: int = MAX_FILES) -> None:
        self.changed = threading.Condition()
        self._max_files = max_files
        #: Lanes whose file is linked or checked, whose source is asked for the size, that wait to begin, that download.
        self._linking: set[Lane] = set()
        self._asking: set[Lane] = set()
        self._queued: set[Lane] = set()
        self._running: set[Lane] = set()
        self.free = max(1, connections)
        self.buffers: list[memoryview] = []
        #: Tickets: those that wait, in order of arrival, and those that were granted.
        self.waiting: list[Ticket] = []
        self.holding: set[Ticket] = set()
        #: An urgent lane holds or wants a ticket. Read without the lock: one chunk late is soon enough.
        self.has_urgent = False

    def lane(self, stop: threading.Event | None = None, size: int | None = None, *, urgent: bool = False) -> Lane:
        """Return a new download's place in the queue."""
        return Lane(self, stop or threading.Event(), size, urgent)

    def update(self) -> None:
        """Look again: a lane's ``urgent``, ``size`` or ``stop`` has changed."""
        with self.changed:
            self.grant()
            self.changed.notify_all()

    # --- files -----------------------------------------------------------------------------------------------

    def linking(self, lane: Lane) -> AbstractContextManager[None]:
        """Hold one of a few turns to look for a file on this host."""
        return self._turn(lane, self._linking, MAX_LINKS)

    def asking(self, lane: Lane) -> AbstractContextManager[None]:
        """Hold one of some turns to ask a source; non-urgent files wait meanwhile: the largest may not be known yet.

        A source that does not answer within seconds holds nothing back.
        """
        return self._turn(lane, self._asking, MAX_QUESTIONS)

    @contextmanager
    def _turn(self, lane: Lane, lanes: set[Lane], most: int) -> Iterator[None]:
        """Be one of the lanes, of which there are so many at most; an urgent one does not wait. Raises Stopped."""
        with self.changed:
            self.changed.wait_for(lambda: lane.stop.is_set() or lane.urgent or len(lanes) < most)
            if lane.stop.is_set():
                raise Stopped
            lane.since = time.monotonic()
            lanes.add(lane)
        try:
            yield
        finally:
            self._discard(lanes, lane)

    @contextmanager
    def running(self, lane: Lane) -> Iterator[None]:
        """Wait for the file's turn, and hold it. Raises Stopped when ``lane.stop`` is set meanwhile."""
        with self.changed:
            self._queued.add(lane)
            try:
                while not (lane.stop.is_set() or self._is_next(lane)):
                    self.changed.wait(_ASKING_S if self._asking else None)
            finally:
                self._discard(self._queued, lane)
            if lane.stop.is_set():
                raise Stopped
            self._running.add(lane)
        try:
            yield
        finally:
            self._discard(self._running, lane)

    def _discard(self, lanes: set[Lane], lane: Lane) -> None:
        with self.changed:
            lanes.discard(lane)
            self.changed.notify_all()

    def _is_next(self, lane: Lane) -> bool:
        if lane.urgent:
            return True
        asking = any(time.monotonic() - other.since < _ASKING_S for other in self._asking)
        if asking or len(self._running) >= self._max_files or any(other.urgent for other in self._queued):
            return False
        return lane is max(self._queued, key=lambda other: other.size or 0)

    # --- requests --------------------------------------------------------------------------------------------

    def grant(self) -> None:
        """Hand out free tickets, the urgent ones first. :attr:`changed` is held."""
        self.has_urgent = any(ticket.lane.urgent for ticket in (*self.holding, *self.waiting))
        while self.free and (ticket := next((t for t in self.waiting if self.may_go(t)), None)):
            self.waiting.remove(ticket)
            self.holding.add(ticket)
            self.free -= 1
            ticket.buffer = self.buffers.pop() if self.buffers else memoryview(bytearray(BUFFER_BYTES))
            ticket.ready.set()

    def may_go(self, ticket: Ticket) -> bool:
        """Return True if it is this one's turn as soon as a ticket is free."""
        return ticket.lane.urgent or not self.has_urgent


class Lane:
    """One download's place: whether a job waits for it, its size, and the event that stops it."""

    def __init__(self, scheduler: Scheduler, stop: threading.Event, size: int | None, urgent: bool) -> None:
        self.scheduler = scheduler
        self.stop = stop
        #: Bytes; None while its source has not been asked.
        self.size = size
        #: ``time.monotonic()`` of its last turn.
        self.since = 0.0
        self._urgent = urgent

    @property
    def urgent(self) -> bool:
        """Return True if a job waits for it. May be set at any time, from any thread."""
        return self._urgent

    @urgent.setter
    def urgent(self, value: bool) -> None:
        self._urgent = value
        self.scheduler.update()

    def ticket(self) -> Ticket:
        """Return a ticket for one of its streams."""
        return Ticket(self)


class Ticket:
    """One stream's right to send a request. Used by its own thread, but for :meth:`cancel`."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.buffer: memoryview | None = None
        self.ready = threading.Event()
        self.cancelled = False
        self._scheduler = lane.scheduler

    def take(self) -> memoryview:
        """Wait until it is granted; return the buffer. Raises Stopped when the ticket is cancelled meanwhile."""
        self.ready.clear()
        with self._scheduler.changed:
            if not self.cancelled:
                self._scheduler.waiting.append(self)
                self._scheduler.grant()
        if not self.cancelled:
            self.ready.wait()
        if self.cancelled or self.buffer is None:
            self.give()
            raise Stopped
        return self.buffer

    def give(self) -> None:
        """Hand it back, also where it was not granted."""
        scheduler = self._scheduler
        with scheduler.changed:
            if self in scheduler.waiting:
                scheduler.waiting.remove(self)
            if self.buffer is not None:
                scheduler.holding.remove(self)
                scheduler.buffers.append(self.buffer)
                scheduler.free += 1
                self.buffer = None
            scheduler.grant()

    def cancel(self) -> None:
        """Wake its thread if it waits, from another thread. For good."""
        with self._scheduler.changed:
            self.cancelled = True
            self.ready.set()

    @property
    def is_overtaken(self) -> bool:
        """Return True if an urgent download wants the line."""
        return self._scheduler.has_urgent and not self.lane.urgent

    def yield_turn(self, *, between_ranges: bool = False, within_body: bool = False) -> memoryview:
        """Let urgent downloads go first, and between ranges all others too. Return the buffer, perhaps another one.

        ``within_body``: raises Overtaken instead of waiting for an urgent one.
        """
        is_overtaken = self.is_overtaken
        if is_overtaken and within_body:
            raise Overtaken
        scheduler = self._scheduler
        others = between_ranges and any(t.lane is not self.lane and scheduler.may_go(t) for t in (*scheduler.waiting,))
        if not (is_overtaken or others) and self.buffer is not None:
            return self.buffer
        self.give()
        return self.take()
