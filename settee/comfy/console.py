"""What ComfyUI prints: passed on to the worker's log, kept for reports, and dropped once it may be of a sealed job."""

from __future__ import annotations

import collections
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from settee.redact import neutral, without_tracebacks

log = logging.getLogger("comfyui")

_KEPT_LINES = 200
#: A longer line comes in pieces.
_MAX_LINE = 64 * 1024


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
        """The last lines since :meth:`forget`, fit for a caller: no tracebacks, no paths of this host."""
        with self._lock:
            kept = list(self._lines)
        return [neutral(line) for line in without_tracebacks(kept)[-lines:]]

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
            while raw := pipe.readline(_MAX_LINE):
                line = raw.decode("utf-8", "replace").rstrip()
                self._on_line(line)
                with self._lock:
                    if self._is_mute or not line:
                        continue
                    self._lines.append(line)
                log.info("%s", line)
