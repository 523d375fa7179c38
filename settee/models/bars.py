"""Progress of many transfers at once: bars on a terminal, a line now and then in a log.

    with Bars(sys.stderr) as bars:
        bars.update("checkpoints/sd15.safetensors", done, total, source="Hugging Face")
        bars.finish("checkpoints/sd15.safetensors", "downloaded in 12.3 s (84 MB/s)")

Nothing in here can fail a transfer: a stream that is gone is written to no more. There are no colours.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TextIO

from settee.base.text import for_terminal
from settee.models.bar_text import amount, bar_line, cells, log_line

FRAME_S = 0.1
#: Bars are redrawn this often though nothing came: a stalled transfer's speed goes down before one's eyes.
IDLE_FRAME_S = 1.0
#: Speed is the average of this long.
SPEED_S = 5.0
#: Lines do not wrap inside a frame, whatever the terminal makes of a character's width.
NO_WRAP, WRAP = "\x1b[?7l", "\x1b[?7h"
CLEAR_LINE, CLEAR_BELOW = "\x1b[K", "\x1b[J"


@dataclass
class _Transfer:
    name: str
    done: int = 0
    total: int | None = None
    told: float = 0.0
    #: (when, bytes in place) of the last seconds, oldest first.
    points: deque[tuple[float, int]] = field(default_factory=deque)

    def update(self, now: float, done: int, total: int | None) -> None:
        if self.points and done < self.done:  # it began again
            self.points.clear()
        self.done, self.total = done, total
        if not self.points or now - self.points[-1][0] >= FRAME_S:
            self.points.append((now, done))
        while len(self.points) > 2 and self.points[1][0] <= now - SPEED_S:
            self.points.popleft()

    def speed(self, now: float) -> float:
        """Bytes per second. The first number is where it began: a resumed transfer has had bytes before."""
        start, done = now, self.done
        for when, bytes_then in reversed(self.points):
            start, done = when, bytes_then
            if when <= now - SPEED_S:
                break
        return (self.done - done) / (now - start) if now > start else 0.0


class Bars:
    """A context manager; every method may be called from any thread.

    ``is_terminal`` decides between bars and lines (default: what the stream says of itself); ``size`` gives the
    terminal's columns and lines; ``interval_s`` is the time between two lines of one file in a log; ``log`` takes
    the lines of a log instead of the stream.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        is_terminal: bool | None = None,
        size: Callable[[], tuple[int, int]] | None = None,
        clock: Callable[[], float] = time.monotonic,
        interval_s: float = 5.0,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self._stream, self._clock, self._interval_s, self._log = stream, clock, interval_s, log
        self._is_terminal = stream.isatty() if is_terminal is None else is_terminal
        self._size = size or self._terminal_size
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._plain = for_terminal("█…", self._encoding) != "█…"
        self._lock = threading.RLock()
        self._transfers: dict[str, _Transfer] = {}
        self._ended: list[str] = []
        self._drawn: list[int] = []
        self._drawn_at: float | None = None
        self._broken = False
        self._over = threading.Event()
        self._ticker: threading.Thread | None = None

    def update(self, key: str, done: int, total: int | None, source: str = "") -> None:
        """``done`` of ``total`` bytes (None: unknown) are in place. The first call starts the file's bar."""
        with self._lock:
            now = self._clock()
            transfer = self._transfers.get(key)
            if transfer is None:
                transfer = self._transfers[key] = _Transfer(self._text(key), told=now)
                if not self._is_terminal:
                    size = "size unknown" if total is None else amount(total)
                    self._write_line(f"{transfer.name}: {size}{f' from {source}' if source else ''}")
            transfer.update(now, done, total)
            self._tell(now, FRAME_S)

    def finish(self, key: str, outcome: str) -> None:
        """The file's bar gives way to ``key: outcome``. A file that needed no transfer may be finished at once."""
        self.line(f"{key}: {outcome}", ends=key)

    def forget(self, key: str) -> None:
        """The file's bar goes, without a word."""
        with self._lock:
            self._transfers.pop(key, None)

    def line(self, text: str, *, ends: str | None = None) -> None:
        """A line of text above the bars; on a terminal nobody else may write to it meanwhile."""
        with self._lock:
            if ends is not None:
                self._transfers.pop(ends, None)
            if self._is_terminal:
                self._ended.append(self._text(text))
                self._tell(self._clock(), FRAME_S)
            else:
                self._write_line(self._text(text))

    def __enter__(self) -> Bars:
        self._ticker = threading.Thread(target=self._tick, name="progress-bars", daemon=True)
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        """What has not ended stays as its last bar; the cursor is below everything."""
        self._over.set()
        if self._ticker is not None:
            self._ticker.join(1)
        with self._lock:
            if self._is_terminal:
                self._draw(self._clock())
                self._drawn = []

    # --- when to write -----------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Lines and bars go on when transfers say nothing."""
        while not self._over.wait(FRAME_S if self._is_terminal else min(1.0, self._interval_s)):
            with self._lock:
                self._tell(self._clock(), FRAME_S if self._ended else IDLE_FRAME_S)

    def _tell(self, now: float, frame_s: float) -> None:
        if self._is_terminal:
            if self._drawn_at is None or now - self._drawn_at >= frame_s:
                self._draw(now)
            return
        for transfer in self._transfers.values():
            if now - transfer.told >= self._interval_s:
                transfer.told = now
                self._write_line(log_line(transfer.name, transfer.done, transfer.total, transfer.speed(now)))

    # --- writing -----------------------------------------------------------------------------------------

    def _draw(self, now: float) -> None:
        """One frame in one write: back to the first bar, the ended files' lines, then the bars again."""
        if not self._ended and not self._transfers and not self._drawn:
            return
        columns, lines = self._size()
        width = max(1, columns - 1)
        # Where the terminal became narrower, it broke the bars that stood there into several lines each.
        up = sum(max(1, -(-length // columns)) for length in self._drawn)
        active = self._transfers.values()
        longest = max((cells(one.name) for one in active), default=0)
        bars = [
            bar_line(one.name, one.done, one.total, one.speed(now), width, longest=longest, plain=self._plain)
            for one in active
        ]
        if len(bars) > (most := max(1, lines - 2)):
            bars[most - 1 :] = [f"and {len(bars) - most + 1} more"[:width]]
        above = "".join(f"{text}{CLEAR_LINE}\n" for text in self._ended)
        below = "".join(f"{text}{CLEAR_LINE}\n" for text in bars)
        back = f"\x1b[{up}A\r" if up else "\r"
        self._write(f"{back}{CLEAR_BELOW if up > len(self._drawn) else ''}{above}{NO_WRAP}{below}{CLEAR_BELOW}{WRAP}")
        self._drawn, self._drawn_at = [cells(text) for text in bars], now
        self._ended.clear()

    def _write_line(self, text: str) -> None:
        if self._log is not None:
            self._log(text)
        else:
            self._write(f"{text}\n")

    def _write(self, text: str) -> None:
        if self._broken:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal or the pipe is gone; the transfers are not
            self._broken = True

    def _text(self, text: str) -> str:
        return for_terminal(text, self._encoding)

    def _terminal_size(self) -> tuple[int, int]:
        try:
            columns, lines = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return 80, 24
        return (columns or 80), (lines or 24)


__all__ = ["Bars"]
