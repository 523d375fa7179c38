"""Progress of many transfers at once: bars on a terminal, a line now and then in a log.

    with Bars(sys.stderr) as bars:
        bars.update("checkpoints/sd15.safetensors", done, total, source="Hugging Face")
        bars.finish("checkpoints/sd15.safetensors", "downloaded in 12.3 s (84 MB/s)")

Nothing in here can fail a transfer: a stream that is gone is not written to any more. There are no colours.
"""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, TextIO, cast

from settee.base.text import for_terminal

if TYPE_CHECKING:
    from rich.live import Live

FRAME_S = 0.1
#: Bars are drawn this often though nothing came: the shown speed of a stalled transfer goes down.
IDLE_FRAME_S = 1.0
#: Speed is the average of this long.
SPEED_S = 5.0
#: Cells that a name, and a bar, have at least.
NAME_CELLS, BAR_CELLS = 16, 10
MAX_NAME_CELLS, MAX_BAR_CELLS = 48, 40


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
        if not self.points or now - self.points[-1][0] >= FRAME_S:
            self.points.append((now, done))
        while len(self.points) > 2 and self.points[1][0] <= now - SPEED_S:
            self.points.popleft()

    def facts(self, now: float) -> tuple[str, str, str, str]:
        """Return the share, the size, the speed and the time left, each empty when it is not known.

        The first number of bytes is where it began: a resumed transfer has had bytes before.
        """
        start, done = now, self.done
        for when, bytes_then in reversed(self.points):
            start, done = when, bytes_then
            if when <= now - SPEED_S:
                break
        speed = (self.done - done) / (now - start) if now > start else 0.0
        share = f"{min(100, self.done * 100 // self.total)}%" if self.total else ""
        left = ""
        if self.total is not None and speed > 0 and (left_s := (self.total - self.done) / speed) < 100 * 3600:
            left = f"{duration(max(0.0, left_s))} left"
        return share, _of_total(self.done, self.total), f"{amount(speed)}/s", left


class Bars:
    """A context manager; every method may be called from any thread.

    ``is_terminal`` decides between bars and lines (default: by the stream itself); ``size`` returns the terminal's
    columns and lines; ``interval_s`` is the time between two lines of one file in a log; ``log`` takes the lines of a
    log instead of the stream.
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
        self._stream, self._clock, self._interval_s, self._log = _Unfailing(stream), clock, interval_s, log
        self._is_terminal = stream.isatty() if is_terminal is None else is_terminal
        self._size = size or self._stream.size
        self._lock = threading.RLock()
        self._transfers: dict[str, _Transfer] = {}
        #: Lines that go above the bars with the next frame.
        self._above: list[str] = []
        self._live: Live | None = None
        self._drawn_at: float | None = None
        self._over = threading.Event()
        self._ticker: threading.Thread | None = None

    def update(self, key: str, done: int, total: int | None, source: str = "") -> None:
        """``done`` of ``total`` bytes (None: unknown) are in place. The first call starts the file's bar."""
        with self._lock:
            now = self._clock()
            transfer = self._transfers.get(key)
            if transfer is None:
                transfer = self._transfers[key] = _Transfer(self._text(key), logged_at=now)
                if not self._is_terminal:
                    size = "size unknown" if total is None else amount(total)
                    self._write_line(f"{transfer.name}: {size}{f' from {source}' if source else ''}")
            transfer.update(now, done, total)
            self._show(now, FRAME_S)

    def finish(self, key: str, outcome: str) -> None:
        """Replace the file's bar by ``key: outcome``. A file that needed no transfer may be finished at once."""
        with self._lock:
            self.forget(key)
            line = self._text(f"{key}: {outcome}")
            if self._is_terminal:
                self._above.append(line)
                self._show(self._clock(), FRAME_S)
            else:
                self._write_line(line)

    def forget(self, key: str) -> None:
        """Remove the file's bar without a line."""
        with self._lock:
            self._transfers.pop(key, None)

    def __enter__(self) -> Bars:
        self._ticker = threading.Thread(target=self._tick, name="progress-bars", daemon=True)
        self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        """Leave the last bars of unfinished files above the cursor."""
        self._over.set()
        if self._ticker is not None:
            self._ticker.join(1)
        with self._lock:
            if self._is_terminal and (self._live or self._above or self._transfers):
                self._draw(self._clock())
            if self._live is not None:
                # Bars are left; the empty line in their place is not.
                self._live.transient = not self._transfers
                self._live.stop()

    def _tick(self) -> None:
        """Go on with lines and bars while transfers stall."""
        while not self._over.wait(FRAME_S if self._is_terminal else min(1.0, self._interval_s)):
            with self._lock:
                self._show(self._clock(), FRAME_S if self._above else IDLE_FRAME_S)

    def _show(self, now: float, frame_s: float) -> None:
        if self._is_terminal:
            if self._drawn_at is None or now - self._drawn_at >= frame_s:
                self._draw(now)
            return
        for transfer in self._transfers.values():
            if now - transfer.logged_at >= self._interval_s:
                transfer.logged_at = now
                self._write_line(f"{transfer.name}: {', '.join(filter(None, transfer.facts(now)))}")

    def _draw(self, now: float) -> None:
        """Draw one frame: the lines of finished files, then the bars."""
        from rich.console import Console, ConsoleDimensions
        from rich.live import Live
        from rich.text import Text

        columns, lines = self._size()
        if self._live is None:
            console = Console(file=cast("IO[str]", self._stream), force_terminal=True, color_system=None)
            self._live = Live(console=console, auto_refresh=False, redirect_stdout=False, redirect_stderr=False)
            self._live.start()
        self._live.console.size = ConsoleDimensions(columns, lines)
        bars = self._bars(now, max(1, columns - 1))
        if len(bars) > (most := max(1, lines - 2)):
            bars[most - 1 :] = [f"and {len(bars) - most + 1} more"]
        with self._live.console:  # one write
            if self._above:
                self._live.console.print(Text("\n".join(self._above)), soft_wrap=True)
                self._above.clear()
            self._live.update(Text("\n".join(bars), no_wrap=True, overflow="crop", end=""), refresh=True)
        self._drawn_at = now

    def _bars(self, now: float, width: int) -> list[str]:
        """Return a line for each file, no wider than ``width`` cells: first the facts that fit, then the bar."""
        from rich.cells import cell_len

        active = list(self._transfers.values())
        longest = min(MAX_NAME_CELLS, max((cell_len(one.name) for one in active), default=0))
        full, empty, ellipsis = "█░…" if self._text("█░…") == "█░…" else ("#", ".", "...")
        lines = []
        for one in active:
            right, room = "", width - NAME_CELLS
            for fact, cells in zip(one.facts(now), (4, 17, 9, 10), strict=True):
                if room >= cells + 2:
                    right, room = f"{right}  {fact:>{cells}}", room - cells - 2
            if one.total and room >= BAR_CELLS + 2:
                length = min(MAX_BAR_CELLS, max(BAR_CELLS, room - 2 - max(0, longest - NAME_CELLS)))
                done = min(length, one.done * length // one.total)
                right = f"  {full * done}{empty * (length - done)}{right}"
            lines.append(_fitted(one.name, width - len(right), ellipsis) + right)
        return lines

    def _write_line(self, text: str) -> None:
        if self._log is not None:
            self._log(text)
        else:
            self._stream.write(f"{text}\n")
            self._stream.flush()

    def _text(self, text: str) -> str:
        return for_terminal(text, self._stream.encoding)


class _Unfailing:
    """A stream whose terminal or pipe may go away: nothing is raised then."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.encoding: str = getattr(stream, "encoding", None) or "utf-8"
        self._is_gone = False

    def write(self, text: str) -> None:
        self._tried(lambda: self._stream.write(text))

    def flush(self) -> None:
        self._tried(self._stream.flush)

    def _tried(self, call: Callable[[], object]) -> None:
        if not self._is_gone:
            try:
                call()
            except (OSError, ValueError):
                self._is_gone = True

    def size(self) -> tuple[int, int]:
        """Return the terminal's columns and lines."""
        try:
            columns, lines = os.get_terminal_size(self._stream.fileno())
        except (OSError, ValueError):
            return 80, 24
        return (columns or 80), (lines or 24)


def _fitted(name: str, width: int, ellipsis: str) -> str:
    """Return the name in exactly ``width`` cells: padded, or shortened in its middle, as its end tells files apart."""
    from rich.cells import cell_len, set_cell_size

    if cell_len(name) > width > len(ellipsis):
        space = width - len(ellipsis)
        name = set_cell_size(name, space - space // 2) + ellipsis + set_cell_size(name[::-1], space // 2)[::-1]
    return set_cell_size(name, width)


# --- words -------------------------------------------------------------------------------------------------


def amount(size: float) -> str:
    """Return bytes in decimal units, as disks and networks are sold: ``84 MB``, ``6.62 GB``."""
    if size < 1e6:
        return f"{size / 1e3:.0f} kB"
    return f"{size / 1e6:.0f} MB" if size < 1e9 else f"{size / 1e9:.2f} GB"


def _of_total(done: int, total: int | None) -> str:
    """Return both in the unit of the total: ``0.40 of 6.62 GB``."""
    if total is None:
        return amount(done)
    whole = amount(total)
    shown = {"kB": f"{done / 1e3:.0f}", "MB": f"{done / 1e6:.0f}", "GB": f"{done / 1e9:.2f}"}[whole[-2:]]
    return f"{shown} of {whole}"


def duration(seconds: float) -> str:
    """Return ``0:06``, ``12:30``, ``1:02:03``."""
    minutes, second = divmod(round(seconds), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
