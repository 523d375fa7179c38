"""Progress of many transfers at once: rows that rich redraws on a terminal, or a line now and then in a log.

    with Bars(sys.stderr) as bars:
        bars.update("checkpoints/sd15.safetensors", done, total, source="Hugging Face")
        bars.finish("checkpoints/sd15.safetensors", "downloaded in 12.3 s (84 MB/s)")

Nothing in here can fail a transfer: a stream that is gone is not written to any more. There are no colours.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from settee.base import terminal
from settee.base.text import for_terminal

#: Speed is the average of this long.
_SPEED_S = 5.0


@dataclass
class _Transfer:
    name: str
    done: int = 0
    total: int | None = None
    logged_at: float = 0.0
    #: (when, bytes in place) of the last seconds, oldest first.
    points: deque[tuple[float, int]] = field(default_factory=deque)

    def update(self, now: float, done: int, total: int | None) -> None:
        if self.points and done < self.done:  # it began again
            self.points.clear()
        self.done, self.total = done, total
        if not self.points or now - self.points[-1][0] >= 0.1:
            self.points.append((now, done))
        while len(self.points) > 2 and self.points[1][0] <= now - _SPEED_S:
            self.points.popleft()

    def facts(self, now: float) -> str:
        """Return share, size, speed and the time left, as far as they are known.

        The first number of bytes is where it began: a resumed transfer has had bytes before.
        """
        start, before = next((point for point in reversed(self.points) if point[0] <= now - _SPEED_S), self.points[0])
        speed = (self.done - before) / (now - start) if now > start else 0.0
        if not self.total:
            return f"{amount(self.done)}, {amount(speed)}/s"
        share, size = min(100, self.done * 100 // self.total), amount(self.done, unit_of=self.total).split()[0]
        left_s = (self.total - self.done) / speed if speed > 0 else float("inf")
        left = f", {terminal.duration(round(left_s))} left" if left_s < 100 * 3600 else ""
        return f"{share}%, {size} of {amount(self.total)}, {amount(speed)}/s{left}"


class Bars(terminal.Rows):
    """A row for each transfer on a terminal; elsewhere a line when it begins, and one now and then.

    ``is_terminal`` decides between the two (default: by the stream itself); ``interval_s`` is the time between two
    lines of one file; ``log`` takes the lines instead of the stream.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        is_terminal: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
        interval_s: float = 5.0,
        log: Callable[[str], None] | None = None,
    ) -> None:
        super().__init__(stream, has_rows=stream.isatty() if is_terminal is None else is_terminal)
        self._clock, self._interval_s, self._log = clock, interval_s, log or self.line
        #: A frame takes it, so nothing is printed while it is held.
        self._lock = threading.Lock()
        self._transfers: dict[str, _Transfer] = {}

    def update(self, key: str, done: int, total: int | None, source: str = "") -> None:
        """``done`` of ``total`` bytes (None: unknown) are in place. The first call starts the file's row."""
        lines = []
        with self._lock:
            now = self._clock()
            transfer = self._transfers.get(key)
            if transfer is None:
                transfer = self._transfers[key] = _Transfer(for_terminal(key), logged_at=now)
                size = "size unknown" if total is None else amount(total)
                lines.append(f"{transfer.name}: {size}{f' from {source}' if source else ''}")
            transfer.update(now, done, total)
            for other in self._transfers.values():
                if now - other.logged_at >= self._interval_s:
                    other.logged_at = now
                    lines.append(f"{other.name}: {other.facts(now)}")
        for line in () if self._has_rows else lines:
            self._log(line)

    def finish(self, key: str, outcome: str) -> None:
        """Replace the file's row by ``key: outcome``. A file that needed no transfer may be finished at once."""
        self.forget(key)
        self._log(for_terminal(f"{key}: {outcome}"))

    def forget(self, key: str) -> None:
        """Remove the file's row without a line."""
        with self._lock:
            self._transfers.pop(key, None)

    def rows(self, width: int) -> list[str]:
        """Return a row for each file: one that is too long loses the end of its name."""
        with self._lock:
            now, all_ = self._clock(), self._transfers.values()
            return [f"{terminal.bar(one.done / (one.total or 1e99))}  {one.facts(now)}  {one.name}" for one in all_]


# --- words -------------------------------------------------------------------------------------------------


def amount(size: float, *, unit_of: float | None = None) -> str:
    """Return bytes in decimal units, as disks and networks are sold: ``84 MB``, ``6.62 GB``.

    ``unit_of``: the size whose unit is taken.
    """
    scale = size if unit_of is None else unit_of
    if scale < 1e6:
        return f"{size / 1e3:.0f} kB"
    return f"{size / 1e6:.0f} MB" if scale < 1e9 else f"{size / 1e9:.2f} GB"
