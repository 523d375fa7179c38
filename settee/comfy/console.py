"""What ComfyUI prints: passed on to the worker's log, kept for reports, and left out while a sealed job runs."""

from __future__ import annotations

import collections
import logging
import os
import select
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import IO

from settee.redact import neutral, without_tracebacks

log = logging.getLogger("comfyui")

_KEPT_LINES = 200
#: A longer line is passed on in pieces.
_MAX_LINE = 64 * 1024


class Console:
    """The output of one ComfyUI after another. Each has a thread that calls :meth:`follow`."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        """``on_line`` sees every line, sealed or not, and keeps none."""
        self._on_line = on_line
        self._lines: collections.deque[str] = collections.deque(maxlen=_KEPT_LINES)
        self._lock = threading.Lock()
        self._is_quiet = False
        self._pipe: IO[bytes] | None = None
        #: The beginning of a line whose end has not come, and whether any of it came while a sealed job ran.
        self._partial = b""
        self._partial_is_sealed = False

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
        """Keep everything printed meanwhile out of logs and reports."""
        with self._lock:
            self._is_quiet = True
            self._partial_is_sealed = True
        try:
            yield
        finally:
            with self._lock:
                # What is in the pipe now was printed for the sealed job.
                while self._pipe is not None and _readable(self._pipe) and self._read():
                    pass
                self._is_quiet = False

    def follow(self, pipe: IO[bytes]) -> None:
        """Read a process's output to its end."""
        with self._lock:
            self._pipe, self._partial = pipe, b""
        poll = select.poll()
        poll.register(pipe, select.POLLIN)
        with pipe:
            while True:
                poll.poll()
                with self._lock:
                    # Whoever ends a quiet time may have read it meanwhile.
                    if _readable(pipe) and not self._read():
                        self._pipe = None
                        return

    def _read(self) -> bool:
        """One piece of output; False at its end. Called with the lock held and something to read."""
        assert self._pipe is not None
        piece = os.read(self._pipe.fileno(), 65536)
        self._partial_is_sealed |= self._is_quiet
        *lines, self._partial = (self._partial + piece).split(b"\n")
        if not piece or len(self._partial) > _MAX_LINE:
            lines, self._partial = [*lines, self._partial], b""
        for line in lines:
            self._take(line)
        return bool(piece)

    def _take(self, raw: bytes) -> None:
        line = raw.decode("utf-8", "replace").rstrip()
        self._on_line(line)
        is_sealed, self._partial_is_sealed = self._partial_is_sealed, self._is_quiet
        if not is_sealed and line:
            self._lines.append(line)
            log.info("%s", line)


def _readable(pipe: IO[bytes]) -> bool:
    """poll, because select takes no descriptor above 1023."""
    poll = select.poll()
    poll.register(pipe, select.POLLIN)
    return bool(poll.poll(0))
