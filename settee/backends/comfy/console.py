"""What ComfyUI prints: passed on to the worker's log, kept for reports, and dropped once it may be of a sealed job."""

from __future__ import annotations

import collections
import logging
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from settee.base.text import neutral, uncoloured

log = logging.getLogger("comfyui")

_KEPT_LINES = 200
#: Characters of a line that a caller sees: a crash lists every module that is loaded.
_MAX_SHOWN = 500
#: A longer line comes in pieces.
_MAX_LINE = 64 * 1024
#: How often a progress bar is shown, seconds.
_BAR_S = 10.0


class Console:
    """The output of one ComfyUI process after another. Each has a thread that calls :meth:`follow`."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        """``on_line`` sees every line, and must keep and log none."""
        self._on_line = on_line
        self._lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._lock = threading.Lock()
        self._is_quiet = False
        self._is_mute = False

    def tail(self, lines: int = 20) -> list[str]:
        """Return the last lines since :meth:`forget`, fit for a caller: no tracebacks, no paths of this host."""
        with self._lock:
            kept = "\n".join(self._lines)
        return [line[:_MAX_SHOWN] for line in neutral(kept).splitlines()[-lines:]]

    def forget(self) -> None:
        """A job begins: what was printed for an earlier one is not its caller's business."""
        with self._lock:
            self._lines.clear()

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """A sealed job runs: drop what this process prints from now on, to its end.

        Not only while the job runs: ComfyUI holds what a node prints back in blocks of 8 KiB (app/logger.py wraps
        stdout), so the words of a sealed job may come out during any later one.
        """
        with self._lock:
            self._is_quiet = self._is_mute = True
        try:
            yield
        finally:
            with self._lock:
                self._is_quiet = False

    def follow(self, pipe: IO[bytes]) -> None:
        """Read a new process's output to its end."""
        with self._lock:
            self._is_mute = self._is_quiet
        with pipe:
            for raw, is_over in _lines(pipe):
                # Its indentation stays: frames of a traceback are known by it.
                line = uncoloured(raw.decode("utf-8", "replace")).rstrip()
                self._on_line(line)
                with self._lock:
                    if self._is_mute or not line:
                        continue
                    if is_over:
                        self._lines.append(line)
                log.info("%s", line)


def _lines(pipe: IO[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Line by line, and whether each is over. A progress bar draws one line again and again, with carriage returns in
    between: its last state is shown every few seconds, and at its end.
    """
    rest, shown = b"", time.monotonic()
    while chunk := pipe.read1(_MAX_LINE):  # type: ignore[attr-defined]  # Popen's pipe is a buffered reader
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            yield _last_state(line), True
        if b"\r" in rest:
            state, is_drawn_over = _last_state(rest), rest.endswith(b"\r")
            rest = b"\r" + state + (b"\r" if is_drawn_over else b"")
            if state and time.monotonic() - shown >= _BAR_S:
                shown = time.monotonic()
                yield state, False
        if len(rest) >= _MAX_LINE:
            yield rest, True
            rest = b""
    if rest:
        yield _last_state(rest), True


def _last_state(line: bytes) -> bytes:
    _, redrawn, state = line.rstrip(b"\r").rpartition(b"\r")
    return state.strip() if redrawn else state
