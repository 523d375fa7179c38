"""What is drawn on a terminal: rows that rich redraws, on a stream that may go away, in characters that it can take."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, TextIO, cast

from settee.base.text import encodable

if TYPE_CHECKING:
    from rich.live import Live
    from rich.text import Text

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


def live(stream: Stream, rows: Callable[[int], Text], width: int | None = None) -> Live:
    """Return what redraws ``rows`` until it is stopped, and then leaves nothing of them. Without colours.

    ``rows`` is called with the columns that there are now (or always ``width``), by a thread of rich's own. Lines go
    above the rows through the console.
    """
    from rich.console import Console
    from rich.live import Live

    console = Console(
        file=cast(IO[str], stream),
        force_terminal=True,
        force_interactive=True,
        color_system=None,
        markup=False,
        emoji=False,
        highlight=False,
    )

    def frame() -> Text:
        # rich would look at standard input first, which may be another terminal.
        console.width = width or stream.columns()
        return rows(console.width)

    return Live(
        get_renderable=frame,
        console=console,
        refresh_per_second=FRAMES_PER_S,
        transient=True,
        redirect_stdout=False,
        redirect_stderr=False,
        vertical_overflow="crop",
    )


def bar(share: float, cells: int = 16) -> str:
    """Return a bar of which ``share`` (0 to 1) is full."""
    filled = min(cells, int(cells * share))
    return "█" * filled + "░" * (cells - filled)


def duration(seconds: float) -> str:
    """Return ``0:06``, ``12:30``, ``1:02:03``."""
    minutes, second = divmod(int(max(0.0, seconds)), 60)
    hours, minute = divmod(minutes, 60)
    return f"{hours}:{minute:02}:{second:02}" if hours else f"{minute}:{second:02}"
