"""One of a download's threads: asks for a range, receives it, writes it, takes the next."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from typing import Protocol

from settee.models.transfer.gate import Overtaken, Ticket
from settee.models.transfer.ledger import Ledger, Span
from settee.models.transfer.limits import Limits
from settee.models.transfer.part import Part
from settee.models.transfer.route import Route
from settee.models.transfer.trouble import Patience
from settee.net.failures import Broken
from settee.net.http import Answer


class Shared(Protocol):
    """What a download's streams have in common."""

    route: Route
    part: Part
    limits: Limits
    #: No Range is sent: one body brings all.
    plain: bool

    @property
    def ledger(self) -> Ledger: ...

    def greet(self, answer: Answer, span: Span) -> int | None:
        """Check an answer's head; how many bytes of the span its body has (None: until it ends)."""

    def noted(self, span: Span, count: int) -> None:
        """So many bytes more of the span are written."""

    def pause(self, seconds: float) -> None:
        """Wait, for as long as the download goes on. Raises Stopped."""


class Stream:
    def __init__(self, shared: Shared, ticket: Ticket, patience: Patience) -> None:
        self._shared = shared
        self._ticket = ticket
        self._patience = patience

    def run(self) -> None:
        """Fill ranges until none is left. Raises what ends the whole download."""
        try:
            while (span := self._shared.ledger.take()) is not None:
                self._fill(span)
        finally:
            self._ticket.give()

    def _fill(self, span: Span) -> None:
        limits = self._shared.limits
        while span.missing != 0:
            before = span.done
            try:
                self._fetch(span)
            except Overtaken:
                self._ticket.give()
            except Broken as trouble:
                self._ticket.give()
                if self._shared.plain:
                    raise  # such a body cannot be gone on with
                if span.done - before >= limits.progress_bytes:
                    self._patience.renew()
                self._shared.pause(self._patience.after(trouble))
            else:
                self._patience.renew()

    def _fetch(self, span: Span) -> None:
        """Ask for what is missing of the span, and write what comes. Raises Broken when less comes than was said."""
        if self._ticket.buffer is None:
            self._ticket.take()
        else:
            self._ticket.breathe(between_ranges=True)
        shared = self._shared
        headers = {}
        if not shared.plain and span.end is not None:
            headers["Range"] = f"bytes={span.position}-{span.end - 1}"
        answer, _ = shared.route.ask("GET", headers)
        try:
            with shared.part.writing():
                expected = shared.greet(answer, span)
                received = self._receive(answer, span, expected)
                if expected is None:
                    shared.ledger.settle(span)
        finally:
            answer.done()
        if expected is not None and received < expected:
            raise Broken("the connection broke off")

    def _receive(self, answer: Answer, span: Span, expected: int | None) -> int:
        watch = _Watch(self._shared.limits)
        received = filled = 0
        # A body that cannot be gone on with is kept open, whoever comes.
        within_body = not self._shared.plain
        buffer = self._ticket.breathe(within_body=within_body)
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
                        buffer = self._ticket.breathe(within_body=within_body)
        finally:
            # What came before a connection broke need not come again.
            if filled and self._ticket.buffer is not None:
                self._flush(buffer, filled, span)
        return received

    def _flush(self, buffer: memoryview, filled: int, span: Span) -> int:
        self._shared.part.write(buffer[:filled], span.position)
        self._shared.noted(span, filled)
        return 0


class _Watch:
    """Whether a body comes fast enough, and when what came of it is to be written."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self._limits = limits
        self._clock = clock
        self._flushed = self._since = clock()
        self._bytes = 0

    @contextlib.contextmanager
    def excused(self) -> Iterator[None]:
        """Time that the server is not to blame for."""
        began = self._clock()
        try:
            yield
        finally:
            self._since += self._clock() - began

    def due(self, count: int) -> bool:
        """Bytes came. Raises Broken for a server that gives some now and then."""
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
