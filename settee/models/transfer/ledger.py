"""Which bytes of the file are in place, range by range."""

from __future__ import annotations

import threading
from dataclasses import dataclass


@dataclass
class Span:
    """One range. ``end`` is None in the single range of a file whose length nobody said."""

    index: int
    start: int
    end: int | None
    done: int = 0

    @property
    def position(self) -> int:
        return self.start + self.done

    @property
    def missing(self) -> int | None:
        return None if self.end is None else self.end - self.position


class Ledger:
    """Shared by the streams that fill ranges and the follower that hashes them in order."""

    def __init__(self, size: int | None, range_bytes: int, done: list[int] | None = None) -> None:
        self._changed = threading.Condition()
        self._closed = False
        self._front = 0
        self._wanted = 0
        if size is None:
            self.spans = [Span(0, 0, None)]
        else:
            starts = range(0, size, range_bytes)
            counts = done or [0] * len(starts)
            self.spans = [
                Span(i, start, min(start + range_bytes, size), count)
                for i, (start, count) in enumerate(zip(starts, counts, strict=True))
            ]
        self.size = size
        #: Bytes in place, and those of them that an earlier download left.
        self.total = self.resumed = sum(span.done for span in self.spans)
        self._todo = [span for span in reversed(self.spans) if span.missing != 0]
        self._move_front()

    def take(self) -> Span | None:
        """The first range that nobody has taken; it is the taker's until it is whole."""
        with self._changed:
            return self._todo.pop() if self._todo else None

    def advance(self, span: Span, count: int) -> None:
        """So many more bytes of it are written."""
        with self._changed:
            span.done += count
            self.total += count
            if span is self.spans[self._front]:
                self._move_front()
                # Not for every chunk: the follower says what is worth waking it.
                if self._frontier() >= self._wanted or self.total == self.size:
                    self._changed.notify_all()

    def _move_front(self) -> None:
        while self._front < len(self.spans) - 1 and self.spans[self._front].missing == 0:
            self._front += 1

    def make_plain(self, size: int | None) -> None:
        """All comes in one body: the first range, already taken, is the whole file."""
        with self._changed:
            first = self.spans[0]
            first.end = size
            self.spans = [first]
            self._todo = []
            self.size = size

    def settle(self, span: Span) -> None:
        """The body of a file of unknown length ended here."""
        with self._changed:
            span.end = self.size = span.position
            self._changed.notify_all()

    def close(self) -> None:
        """Nothing more will come."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    @property
    def is_whole(self) -> bool:
        return self.size is not None and self.total == self.size

    def wait_beyond(self, position: int, step: int) -> int | None:
        """Wait until ``step`` bytes beyond ``position``, or all, are in place without a gap; returns how far that is.

        None when :meth:`close` came first.
        """

        def ready() -> bool:
            return self._closed or self._frontier() >= position + step or self._frontier() == self.size

        with self._changed:
            self._wanted = position + step
            self._changed.wait_for(ready)
            return None if self._closed else self._frontier()

    def _frontier(self) -> int:
        return self.spans[self._front].position if self.spans else 0
