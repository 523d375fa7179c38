"""The download scheduler of a process: which file is downloaded next, and which of its streams may send a request.

**Files.** A file that a job waits for begins at once; of the others the largest first, a few at a time.

**Requests.** All downloads together have a limited number in flight (MODELS_CONNECTIONS). A :class:`Ticket` is one
stream's right to send one. It comes with the buffer to receive into, so that memory is bounded however many downloads
wait. While an urgent lane asks for anything, all others hand their tickets back between two chunks; their connections
stay open, and a server that loses patience costs one more retry.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

from settee.base.threads import Stopped

#: Files downloaded at once; each has several connections.
MAX_FILES = 3
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
        self._changed = threading.Condition()
        self._max_files = max_files
        #: Lanes whose source is asked for the size, that wait to begin, and that download.
        self._asking: set[Lane] = set()
        self._queued: set[Lane] = set()
        self._running: set[Lane] = set()
        self._questions = threading.Semaphore(MAX_QUESTIONS)
        self._free = max(1, connections)
        self._buffers: list[memoryview] = []
        #: Tickets in order of arrival.
        self._waiting: list[Ticket] = []
        self._holding: set[Ticket] = set()
        #: An urgent lane holds or wants a ticket. Read without the lock: one chunk late is soon enough.
        self.has_urgent = False

    def lane(self, stop: threading.Event | None = None, size: int | None = None, *, urgent: bool = False) -> Lane:
        """Return a new download's place in the queue."""
        return Lane(self, stop or threading.Event(), size, urgent)

    def update(self) -> None:
        """Look again: a lane's ``urgent``, ``size`` or ``stop`` has changed."""
        with self._changed:
            self._grant()
            self._changed.notify_all()

    # --- files -----------------------------------------------------------------------------------------------

    @contextmanager
    def asking(self, lane: Lane) -> Iterator[None]:
        """Hold non-urgent files back while a size is asked for: the largest may not be known yet.

        A source that does not answer within seconds holds nothing back.
        """
        lane.asked_at = time.monotonic()
        with self._changed:
            self._asking.add(lane)
        try:
            with self._questions:
                yield
        finally:
            self._discard(self._asking, lane)

    @contextmanager
    def running(self, lane: Lane) -> Iterator[None]:
        """Wait for the file's turn, and hold it. Raises Stopped when ``lane.stop`` is set meanwhile."""
        with self._changed:
            self._queued.add(lane)
            try:
                while not (lane.stop.is_set() or self._is_next(lane)):
                    self._changed.wait(_ASKING_S if self._asking else None)
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
        with self._changed:
            lanes.discard(lane)
            self._changed.notify_all()

    def _is_next(self, lane: Lane) -> bool:
        if lane.urgent:
            return True
        asking = any(time.monotonic() - other.asked_at < _ASKING_S for other in self._asking)
        if asking or len(self._running) >= self._max_files or any(other.urgent for other in self._queued):
            return False
        return lane is max(self._queued, key=lambda other: other.size or 0)

    # --- requests --------------------------------------------------------------------------------------------

    def enter(self, ticket: Ticket) -> None:
        """Queue a ticket, which is granted when one is free."""
        with self._changed:
            if not ticket.cancelled:
                self._waiting.append(ticket)
                self._grant()

    def leave(self, ticket: Ticket) -> None:
        """Take a ticket out of the queue, or back from its holder."""
        with self._changed:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            if ticket in self._holding:
                self._holding.remove(ticket)
                if ticket.buffer is not None:
                    self._buffers.append(ticket.buffer)
                    ticket.buffer = None
                self._free += 1
            self._grant()

    def cancel(self, ticket: Ticket) -> None:
        """Wake a ticket's thread for good, from another thread."""
        with self._changed:
            ticket.cancelled = True
            ticket.ready.set()

    def _grant(self) -> None:
        """Hand out free tickets, the urgent ones first. The lock is held."""
        self.has_urgent = any(ticket.lane.urgent for ticket in (*self._holding, *self._waiting))
        while self._free and (ticket := next((t for t in self._waiting if self._may_go(t)), None)):
            self._waiting.remove(ticket)
            self._holding.add(ticket)
            self._free -= 1
            ticket.buffer = self._buffers.pop() if self._buffers else memoryview(bytearray(BUFFER_BYTES))
            ticket.ready.set()

    def _may_go(self, ticket: Ticket) -> bool:
        return ticket.lane.urgent or not self.has_urgent

    def others_wait(self, lane: Lane) -> bool:
        """Return True if another download would get a ticket that this one gave back."""
        return any(t.lane is not lane and self._may_go(t) for t in tuple(self._waiting))


class Lane:
    """One download's place: whether a job waits for it, its size, and the event that stops it."""

    def __init__(self, scheduler: Scheduler, stop: threading.Event, size: int | None, urgent: bool) -> None:
        self.scheduler = scheduler
        self.stop = stop
        #: Bytes; None while its source has not been asked.
        self.size = size
        #: ``time.monotonic()`` when its source was asked.
        self.asked_at = 0.0
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

    def take(self) -> memoryview:
        """Wait until it is granted; return the buffer. Raises Stopped when the ticket is cancelled meanwhile."""
        self.ready.clear()
        self.lane.scheduler.enter(self)
        if not self.cancelled:
            self.ready.wait()
        if self.cancelled or self.buffer is None:
            self.give()
            raise Stopped
        return self.buffer

    def give(self) -> None:
        """Hand it back, also where it was not granted."""
        self.lane.scheduler.leave(self)

    def cancel(self) -> None:
        """Wake its thread if it waits, from another thread. For good."""
        self.lane.scheduler.cancel(self)

    @property
    def is_overtaken(self) -> bool:
        """Return True if an urgent download wants the line."""
        return self.lane.scheduler.has_urgent and not self.lane.urgent

    def yield_turn(self, *, between_ranges: bool = False, within_body: bool = False) -> memoryview:
        """Let urgent downloads go first, and between ranges all others too. Return the buffer, perhaps another one.

        ``within_body``: raises Overtaken instead of waiting for an urgent one.
        """
        is_overtaken = self.is_overtaken
        if is_overtaken and within_body:
            raise Overtaken
        yields = is_overtaken or (between_ranges and self.lane.scheduler.others_wait(self.lane))
        if not yields and self.buffer is not None:
            return self.buffer
        self.give()
        return self.take()
