"""What is drawn on a terminal: rows that rich redraws, on a stream that may go away, in characters that it can take."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, TextIO, cast

from settee.base.text import encodable, for_terminal

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text
    from typing_extensions import Self

FRAMES_PER_S = 10


class Stream:
    """A stream that takes every character, and nothing once it is gone. Every write is flushed."""

    def __init__(self, stream: TextIO) -> None:
        self._stream, self._is_gone = stream, False
        self.encoding: str = getattr(stream, "encoding", None) or "utf-8"

    def write(self, text: str) -> int:
        if not self._is_gone:
            try:
                self._stream.write(encodable(text, self.encoding))
                self._stream.flush()
            except (OSError, ValueError):  # the terminal or the pipe is gone; the work goes on
                self._is_gone = True
        return len(text)

    def flush(self) -> None: ...

    def columns(self, otherwise: int = 80) -> int:
        """Return the terminal's width; ``otherwise`` where it is not one."""
        try:
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        except (OSError, ValueError):
            return otherwise


class Rows:
    """Rows at the bottom of a terminal, which rich redraws, and lines above them; elsewhere lines alone. No colours.

    A context manager; every method may be called from any thread. On leaving, a terminal is clean again. ``width``:
    columns (default: those that the terminal has now).
    """

    def __init__(self, stream: TextIO, *, has_rows: bool, width: int | None = None) -> None:
        self._stream, self._has_rows, self._width = Stream(stream), has_rows, width
        self._writing = threading.RLock()
        self._live: Live | None = None
        #: How many callers want the rows hidden.
        self._hidden = 0

    def rows(self, width: int) -> list[str]:
        """Return what the next frame shows; a row that is too wide loses its end. Called by a thread of rich's own."""
        raise NotImplementedError

    def line(self, text: str) -> None:
        """Write one line or more above the rows, indented as they are."""
        lines = [f"{line[: len(line) - len(line.lstrip(' '))]}{for_terminal(line)}" for line in text.split("\n")]
        with self._writing:
            if self._live is None:
                self._stream.write("\n".join(lines) + "\n")
            else:
                self._live.console.out("\n".join(lines), highlight=False)

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Take the rows away, for a question or for other output to the same terminal."""
        self._draw(hidden=1)
        try:
            yield
        finally:
            self._draw(hidden=-1)

    def __enter__(self) -> Self:
        self._draw(hidden=0)
        return self

    def __exit__(self, *_: object) -> None:
        self._draw(hidden=1)

    def _draw(self, hidden: int) -> None:
        """Show the rows, or take them away: so many callers more want them hidden."""
        with self._writing:
            self._hidden += hidden
            if self._live is not None and self._hidden:
                self._live.stop()
                self._live = None
            elif self._live is None and self._has_rows and not self._hidden:
                self._live = self._new()
                self._live.start()

    def _new(self) -> Live:
        from rich.console import Console
        from rich.live import Live
        from rich.text import Text

        console = Console(
            file=cast(IO[str], self._stream), force_terminal=True, force_interactive=True, color_system=None
        )

        def frame() -> Text:
            # rich would look at standard input first, which may be another terminal.
            console.width = self._width or self._stream.columns()
            return Text("\n".join(self.rows(console.width)), no_wrap=True, overflow="ellipsis")

        return Live(
            get_renderable=frame,
            console=console,
            refresh_per_second=FRAMES_PER_S,
            transient=True,
            redirect_stdout=False,
            redirect_stderr=False,
            vertical_overflow="crop",
        )


def bar(share: float) -> str:
    """Return a bar of which ``share`` (0 to 1) is full."""
    filled = min(16, int(16 * share))
    return "█" * filled + "░" * (16 - filled)


def duration(seconds: float) -> str:
    """Return ``0:06``, ``12:30``, ``1:02:03``."""
    minutes, second = divmod(int(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
