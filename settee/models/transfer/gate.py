"""How many requests run at once, of all downloads together, and whose turn it is.

A ticket is one stream's right to ask. It comes with the buffer to receive into, so that memory is bounded by the
gate however many downloads wait. While a lane is urgent and asks for anything, all others hand theirs back between
two chunks; their connections stay open, and if the server loses patience, that is one more retry.
"""

from __future__ import annotations

import threading

from settee.base.threads import Stopped

#: Small enough for a core's cache, so that what is received is still there when it is written; half of it cost 40 %
#: more CPU on loopback, twice of it saved nothing.
BUFFER_BYTES = 512 * 1024


class Overtaken(Exception):
    """Somebody who goes first wants the line. A body that is left open would take its share of it all the same, until
    the buffers on both sides are full: so it is closed, and asked for again from where it was."""


class Gate:
    """A limit on requests in flight (MODELS_CONNECTIONS), shared by all downloads of the process."""

    def __init__(self, connections: int) -> None:
        self._lock = threading.Lock()
        self._free = max(1, connections)
        self._buffers: list[memoryview] = []
        #: In order of arrival.
        self._waiting: list[Ticket] = []
        self._holding: set[Ticket] = set()
        #: Whether urgent lanes hold or want anything. Read without the lock: one chunk late is soon enough.
        self.rush = False

    def lane(self, *, urgent: bool = False) -> Lane:
        return Lane(self, urgent)

    def _enter(self, ticket: Ticket) -> None:
        with self._lock:
            if ticket.cancelled:
                return
            self._waiting.append(ticket)
            self._settle()

    def _leave(self, ticket: Ticket) -> None:
        with self._lock:
            if ticket in self._waiting:
                self._waiting.remove(ticket)
            if ticket in self._holding:
                self._holding.remove(ticket)
                if ticket.buffer is not None:
                    self._buffers.append(ticket.buffer)
                    ticket.buffer = None
                self._free += 1
            self._settle()

    def _settle(self) -> None:
        """Look at who is urgent, and hand out what is free. The lock is held."""
        self.rush = any(t.lane.urgent for t in self._holding) or any(t.lane.urgent for t in self._waiting)
        while self._free and (ticket := next((t for t in self._waiting if t.lane.urgent or not self.rush), None)):
            self._waiting.remove(ticket)
            self._holding.add(ticket)
            self._free -= 1
            ticket.buffer = self._buffers.pop() if self._buffers else memoryview(bytearray(BUFFER_BYTES))
            ticket.ready.set()

    def settle(self) -> None:
        """A lane became urgent, or no longer is."""
        with self._lock:
            self._settle()

    def others_wait(self, lane: Lane) -> bool:
        """Whether another download would get the turn that this one gave back."""
        return any(t.lane is not lane and (t.lane.urgent or not self.rush) for t in tuple(self._waiting))


class Lane:
    """One download's place at the gate."""

    def __init__(self, gate: Gate, urgent: bool) -> None:
        self.gate = gate
        self._urgent = urgent

    @property
    def urgent(self) -> bool:
        """Whether a job waits for it. May be set at any time, from any thread."""
        return self._urgent

    @urgent.setter
    def urgent(self, value: bool) -> None:
        self._urgent = value
        self.gate.settle()

    def ticket(self) -> Ticket:
        return Ticket(self)


class Ticket:
    """One stream's turn. Used by its own thread, but for :meth:`cancel`."""

    def __init__(self, lane: Lane) -> None:
        self.lane = lane
        self.buffer: memoryview | None = None
        self.ready = threading.Event()
        self.cancelled = False

    def take(self) -> memoryview:
        """Wait for a turn; returns the buffer. Raises Stopped when the ticket is cancelled meanwhile."""
        self.ready.clear()
        self.lane.gate._enter(self)
        if not self.cancelled:
            self.ready.wait()
        if self.cancelled or self.buffer is None:
            self.give()
            raise Stopped
        return self.buffer

    def give(self) -> None:
        """Hand the turn back, whether or not there was one."""
        self.lane.gate._leave(self)

    @property
    def is_overtaken(self) -> bool:
        """Whether somebody who goes first wants the line."""
        return self.lane.gate.rush and not self.lane.urgent

    def breathe(self, *, between_ranges: bool = False, within_body: bool = False) -> memoryview:
        """Let whoever goes first go first; returns the buffer, which may be another one now.

        ``within_body``: raises Overtaken instead of waiting for an urgent one.
        """
        gate = self.lane.gate
        is_overtaken = self.is_overtaken
        if is_overtaken and within_body:
            raise Overtaken
        yields = is_overtaken or (between_ranges and gate.others_wait(self.lane))
        if not yields and self.buffer is not None:
            return self.buffer
        self.give()
        return self.take()

    def cancel(self) -> None:
        """Wake its thread if it waits, from another thread. For good."""
        with self.lane.gate._lock:
            self.cancelled = True
            self.ready.set()
