"""The ranges of a file, and the streams that fill them: ask for a range, receive it, write it, take the next.

With the limits of a download.
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

from settee.base.settings import MIB
from settee.models.transfer.route import failed
from settee.models.transfer.scheduler import Overtaken, Ticket
from settee.net.failures import Broken
from settee.net.http import Answer
from settee.net.retry import Backoff

if TYPE_CHECKING:
    from settee.models.transfer.attempt import Attempt


_BACKOFF = Backoff(0.5, 30.0, jitter=1.0)


@dataclass(frozen=True)
class Limits:
    """Sizes in bytes, times in seconds. A test may choose smaller ones."""

    #: What one request asks for.
    range_bytes: int = 16 * MIB
    #: Requests of one file at a time. More made it slower where it was measured.
    streams: int = 4
    connect_s: float = 10.0
    #: A connection that brings nothing for this long is given up.
    stall_s: float = 20.0
    #: So is one that brings less than this in such a time.
    stall_bytes: int = 20 * 1024
    #: Failures of one range in a row, with less than ``progress_bytes`` received between them.
    tries: int = 6
    progress_bytes: int = MIB
    backoff: Backoff = _BACKOFF
    #: How often received bytes are written and noted, however few.
    flush_s: float = 0.25
    #: How often progress is reported, and stop and deadline are looked at.
    tick_s: float = 0.1
    #: How long the end waits for threads that write.
    end_s: float = 5.0


class Retries:
    """Counts failures in a row, and gives the pause after each."""

    def __init__(self, where: str, limits: Limits, deadline: float) -> None:
        self._where = where
        self._limits = limits
        self._deadline = deadline
        self._failures = 0

    def reset(self) -> None:
        """There was progress."""
        self._failures = 0

    def pause_s(self, trouble: Broken) -> float:
        """Return the seconds to wait before the next try. Raises DownloadFailed when there is to be none."""
        self._failures += 1
        if self._failures >= self._limits.tries:
            raise failed(self._where, f"{trouble.reason}, {self._failures} times in a row")
        wait = self._limits.backoff.pause_s(self._failures, trouble.wait_s)
        if time.monotonic() + wait > self._deadline:
            raise failed(self._where, f"{trouble.reason}, and MODELS_TIMEOUT_S leaves no time to wait {wait:.0f} s")
        return wait


@dataclass
class Span:
    """One range. ``end`` is None in the single range of a file of unknown length."""

    index: int
    start: int
    end: int | None
    done: int = 0

    @property
    def position(self) -> int:
        """Return the offset of the next byte in the file."""
        return self.start + self.done

    @property
    def is_whole(self) -> bool:
        return self.position == self.end


class Ledger:
    """Which bytes are in place. Shared by the streams that fill ranges and the thread that hashes them in order."""

    def __init__(self, size: int | None, range_bytes: int, done: list[int] | None = None) -> None:
        """``size``: None where it is unknown. ``done``: bytes in place of each range, from its beginning on."""
        self._changed = threading.Condition()
        self._closed = False
        #: The range with the first gap, and how far the hashing thread wants to go on.
        self._front = self._wanted = 0
        starts = [0] if size is None else range(0, size, range_bytes)
        ends = [None if size is None else min(start + range_bytes, size) for start in starts]
        counts = done or [0] * len(starts)
        self.spans = [Span(i, *given) for i, given in enumerate(zip(starts, ends, counts, strict=True))]
        self.size = size
        #: Bytes in place, and those of them that an earlier download left.
        self.total = self.resumed = sum(counts)
        self._todo = [span for span in reversed(self.spans) if not span.is_whole]
        self._move_front()

    @property
    def is_whole(self) -> bool:
        """Return True if all bytes are in place."""
        return self.total == self.size

    def take(self) -> Span | None:
        """Return the first range that no stream has taken; it is the caller's until it is whole."""
        with self._changed:
            return self._todo.pop() if self._todo else None

    def advance(self, span: Span, count: int) -> None:
        """Note that so many more bytes of it are written."""
        with self._changed:
            span.done += count
            self.total += count
            if span is self.spans[self._front]:
                self._move_front()
                # Not for every chunk: the hashing thread states what is worth waking it.
                if self._frontier() >= self._wanted or self.is_whole:
                    self._changed.notify_all()

    def _move_front(self) -> None:
        while self._front < len(self.spans) - 1 and self.spans[self._front].is_whole:
            self._front += 1

    def make_plain(self, size: int | None) -> None:
        """All comes in one body: the first range, already taken, is the whole file."""
        with self._changed:
            first = self.spans[0]
            first.end = self.size = size
            self.spans, self._todo = [first], []

    def settle(self, span: Span) -> None:
        """The body of a file of unknown length ended here."""
        with self._changed:
            span.end = self.size = span.position
            self._changed.notify_all()

    def close(self) -> None:
        """No more bytes will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def wait_beyond(self, position: int, step: int) -> int | None:
        """Wait until ``step`` bytes beyond ``position``, or all, are in place without a gap; return how far that is.

        None when :meth:`close` came first.
        """
        with self._changed:
            self._wanted = position + step
            self._changed.wait_for(
                lambda: self._closed or self._frontier() >= self._wanted or self._frontier() == self.size
            )
            return None if self._closed else self._frontier()

    def _frontier(self) -> int:
        return self.spans[self._front].position if self.spans else 0


class Stream:
    """Fills ranges of its attempt's ledger until none is left."""

    def __init__(self, attempt: Attempt, ticket: Ticket, retries: Retries) -> None:
        self._attempt = attempt
        self._ticket = ticket
        self._retries = retries

    def run(self) -> None:
        """Raises what ends the whole download."""
        try:
            while (span := self._attempt.ledger.take()) is not None:
                self._fill(span)
        finally:
            self._ticket.give()

    def _fill(self, span: Span) -> None:
        while not span.is_whole:
            before = span.done
            try:
                self._fetch(span)
            except Overtaken:
                self._ticket.give()
            except Broken as trouble:
                self._ticket.give()
                if self._attempt.plain:
                    raise  # such a body cannot be resumed
                if span.done - before >= self._attempt.limits.progress_bytes:
                    self._retries.reset()
                self._attempt.pause(self._retries.pause_s(trouble))
            else:
                self._retries.reset()

    def _fetch(self, span: Span) -> None:
        """Ask for the missing bytes of the span, and write what comes. Raises Broken when too few come."""
        if self._ticket.buffer is None:
            self._ticket.take()
        else:
            self._ticket.yield_turn(between_ranges=True)
        attempt = self._attempt
        is_range = not attempt.plain and span.end is not None
        headers = {"Range": f"bytes={span.position}-{(span.end or 0) - 1}"} if is_range else {}
        answer = attempt.route.ask("GET", headers)
        try:
            with attempt.part.using(writes=True):
                expected = attempt.greet(answer, span)
                received = self._receive(answer, span, expected)
                if expected is None:
                    attempt.ledger.settle(span)
        finally:
            answer.done()
        if expected is not None and received < expected:
            raise Broken("the connection broke off")

    def _receive(self, answer: Answer, span: Span, expected: int | None) -> int:
        watch = _Watch(self._attempt.limits)
        received = filled = 0
        # A body that cannot be resumed is kept open.
        within_body = not self._attempt.plain
        buffer = self._ticket.yield_turn(within_body=within_body)
        try:
            while expected is None or received < expected:
                room = len(buffer) if expected is None else min(len(buffer), filled + expected - received)
                count = answer.receive(buffer[filled:room])
                if not count:
                    break
                received += count
                filled += count
                if within_body and self._ticket.is_overtaken:
                    raise Overtaken
                if watch.due(count) or filled == len(buffer):
                    filled = self._flush(buffer, filled, span)
                    with watch.excused():
                        buffer = self._ticket.yield_turn(within_body=within_body)
        finally:
            # Bytes that came before a connection broke are not fetched again.
            if filled and self._ticket.buffer is not None:
                self._flush(buffer, filled, span)
        return received

    def _flush(self, buffer: memoryview, filled: int, span: Span) -> int:
        self._attempt.part.write(buffer[:filled], span.position)
        self._attempt.noted(span, filled)
        return 0


class _Watch:
    """Decides whether a body comes fast enough, and when the received bytes are to be written."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._flushed = self._since = clock()
        self._bytes = 0

    @contextlib.contextmanager
    def excused(self) -> Iterator[None]:
        """Do not count the time of this block, which is not the server's."""
        began = self._clock()
        try:
            yield
        finally:
            self._since += self._clock() - began

    def due(self, count: int) -> bool:
        """Count received bytes. True when they should be written. Raises Broken for a server that sends too slowly."""
        now = self._clock()
        self._bytes += count
        if now - self._since >= self._limits.stall_s:
            if self._bytes < self._limits.stall_bytes:
                raise Broken("the server all but fell silent")
            self._since, self._bytes = now, 0
        if now - self._flushed < self._limits.flush_s:
            return False
        self._flushed = now
        return True
