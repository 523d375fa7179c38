"""How jobs stand while they run: rows that are redrawn on a terminal, a line for every change of status elsewhere.

    with Display(sys.stderr) as display:
        follow(target, answer, on_update=display.update, …)

There are no colours, so there is nothing for NO_COLOR to switch off. Nothing in here can fail a job: a stream that is
gone is written to no more.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable, Iterator
from typing import TextIO

from settee.base.text import for_terminal
from settee.client.display.rows import Counts, Shown, job_row, log_line, summary_row
from settee.client.display.text import cells
from settee.client.targets.target import Answer, Status

FRAME_S = 0.1
#: Rows are redrawn this often though nothing came: the time goes on.
IDLE_FRAME_S = 0.5
#: Of many jobs, those under way get a row each while they are no more than this.
MOST_ROWS = 4
#: Rows do not wrap while they are written, whatever the terminal makes of a character's width.
NO_WRAP, WRAP = "\x1b[?7l", "\x1b[?7h"
CLEAR_LINE, CLEAR_BELOW = "\x1b[K", "\x1b[J"


class Display:
    """A context manager; every method may be called from any thread. On leaving, a terminal is clean again.

    ``is_terminal`` decides between rows and lines (default: what the stream says of itself). ``width`` is the
    terminal's, in columns, asked before every frame (default: the stream's own). ``total`` is how many jobs there
    will be: with more than one there is a summary, and every job is named. ``quiet``: only :meth:`line` writes.
    """

    def __init__(
        self,
        stream: TextIO,
        *,
        is_terminal: bool | None = None,
        width: int | Callable[[], int] | None = None,
        quiet: bool = False,
        total: int = 1,
        done: int = 0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._stream, self._clock, self._quiet = stream, clock, quiet
        self._is_terminal = stream.isatty() if is_terminal is None else is_terminal
        self._width = width
        self._encoding = getattr(stream, "encoding", None) or "utf-8"
        self._lock = threading.RLock()
        self._jobs: dict[str, Shown] = {}
        self._total, self._done_before, self._begun = total, done, clock()
        #: Of the jobs that have ended, whether they did well.
        self._ends: dict[str, bool] = {}
        #: Cells of the rows that stand on the terminal.
        self._drawn: list[int] = []
        self._drawn_at: float | None = None
        self._is_stale = False
        #: How many want the rows away.
        self._hidden = 0
        self._is_broken = False
        self._over = threading.Event()
        self._ticker: threading.Thread | None = None

    def update(self, answer: Answer, name: str | None = None) -> None:
        """How a job stands now; the first call begins its row. ``name``: what it is called (default: its id)."""
        key = name if name is not None else answer.job_id
        with self._lock:
            now = self._clock()
            job = self._jobs.get(key)
            before = job.answer.status if job is not None else None
            if job is None:
                job = Shown(key, answer, now)
            job.answer = answer
            if answer.status.is_terminal:
                self._jobs.pop(key, None)
                self._ends[key] = answer.status is Status.COMPLETED
            else:
                self._jobs[key] = job
            if self._quiet:
                return
            if self._is_terminal:
                self._is_stale = True
                self._tell(now)
            elif answer.status is not before:
                self._write(f"{log_line(job, now, self._encoding)}\n")

    def lost(self, name: str) -> None:
        """What an error made of a job: it is followed no more, or never was, or its outputs are not saved.

        It counts as failed, and once, also when it has ended already.
        """
        with self._lock:
            self._jobs.pop(name, None)
            self._ends[name] = False
            self._is_stale = True

    def line(self, text: str) -> None:
        """Text above the rows, also with ``quiet``: one line or more, indented as they are.

        Nobody else may write to the terminal meanwhile.
        """
        lines = text.split("\n")
        indents = [line[: len(line) - len(line.lstrip(" "))] for line in lines]
        text = "\n".join(
            f"{indent}{for_terminal(line, self._encoding)}" for indent, line in zip(indents, lines, strict=True)
        )
        with self._lock:
            if self._is_terminal and self._drawn:
                self._write(f"{self._back()}{CLEAR_BELOW}{text}\n")
                self._drawn = []
                self._draw(self._clock())
            else:
                self._write(f"{text}\n")

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """The rows are away, for a question or for somebody else's output to the same terminal."""
        with self._lock:
            self._clear()
            self._hidden += 1
        try:
            yield
        finally:
            with self._lock:
                self._hidden -= 1
                self._is_stale = True

    def __enter__(self) -> Display:
        if self._is_terminal and not self._quiet:
            self._ticker = threading.Thread(target=self._tick, name="display", daemon=True)
            self._ticker.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        if self._ticker is not None:
            self._ticker.join(1)
        with self._lock:
            self._clear()
            self._hidden += 1

    # --- when to write ------------------------------------------------------------------------------------

    def _tick(self) -> None:
        """Time goes on, and what came too soon after a frame is drawn."""
        while not self._over.wait(FRAME_S):
            with self._lock:
                self._tell(self._clock())

    def _tell(self, now: float) -> None:
        since = None if self._drawn_at is None else now - self._drawn_at
        if since is None or since >= (FRAME_S if self._is_stale else IDLE_FRAME_S):
            self._draw(now)

    # --- writing ------------------------------------------------------------------------------------------

    def _rows(self, now: float, width: int) -> list[str]:
        many = self._total > 1
        rows = []
        counts = Counts(
            total=self._total,
            done=self._done_before + len(self._ends),
            failed=sum(not well for well in self._ends.values()),
            begun=self._begun,
        )
        if many and (self._jobs or counts.done < counts.total):
            rows.append(summary_row(counts, self._jobs.values(), now, width, self._encoding))
        if not many or len(self._jobs) <= MOST_ROWS:
            rows += [job_row(job, now, width, self._encoding, named=many) for job in self._jobs.values()]
        return rows[: MOST_ROWS + 1]

    def _draw(self, now: float) -> None:
        """One frame in one write: back to the first row, each row over the old one, nothing below the last."""
        if self._hidden or self._quiet:
            return
        # A terminal may go to the next line when the last column is filled.
        rows = self._rows(now, max(1, self._columns() - 1))
        if not rows and not self._drawn:
            return
        body = f"{CLEAR_LINE}\n".join(rows)
        self._write(f"{self._back()}{NO_WRAP}{body}{CLEAR_LINE if rows else ''}{CLEAR_BELOW}{WRAP}")
        self._drawn, self._drawn_at, self._is_stale = [cells(row) for row in rows], now, False

    def _clear(self) -> None:
        if self._drawn:
            self._write(f"{self._back()}{CLEAR_BELOW}")
            self._drawn = []

    def _back(self) -> str:
        """To the front of the first row. A terminal that became narrower has broken rows into several lines each."""
        columns = max(1, self._columns())
        up = sum(max(1, -(-length // columns)) for length in self._drawn) - 1
        return f"\r\x1b[{up}A" if up > 0 else "\r"

    def _write(self, text: str) -> None:
        if self._is_broken:
            return
        try:
            self._stream.write(text)
            self._stream.flush()
        except (OSError, ValueError):  # the terminal or the pipe is gone; the jobs are not
            self._is_broken = True

    def _columns(self) -> int:
        if callable(self._width):
            return self._width()
        if self._width is not None:
            return self._width
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return 80
