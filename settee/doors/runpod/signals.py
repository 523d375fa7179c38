"""SIGTERM and SIGINT around those who also handle them: the SDK's loop and the local API's server.

Each of them installs its own handlers when it starts, over ours. :meth:`Signals.wrap`, called once they run,
puts ours around theirs.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType
from typing import Any

SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Signals:
    """Calls ``on_stop`` for a signal, then whoever handled it before.

    With nobody there it leaves with SystemExit, unless ``on_stop`` says that the process will end by itself.
    """

    def __init__(self, on_stop: Callable[[], bool]) -> None:
        self._on_stop = on_stop
        self._pid = os.getpid()
        self._inner: dict[int, Any] = {}
        self._is_held = False

    def install(self) -> None:
        """Handle both signals from now on, alone: the worker is starting, or between two hosts' loops."""
        for number in SIGNALS:
            signal.signal(number, self._handle)

    def wrap(self) -> None:
        """Put our handler around the one that is there now, unless it is ours. Main thread only."""
        for number in SIGNALS:
            current = signal.getsignal(number)
            if current != self._handle:
                self._inner[number] = current
                signal.signal(number, self._handle)

    def hold(self) -> None:
        """Only remember a signal, for the host's loop to find when it starts: it forks before, and an exception that
        meets Python's fork hooks is printed and lost."""
        self._is_held = True

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._pid:
            # The SDK's ping process is forked from this one and inherits the handler; it has nothing to tidy up.
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
            return
        will_end = self._on_stop()
        if self._is_held:
            return
        inner = self._inner.get(number)
        if callable(inner):
            inner(number, frame)
        elif not will_end:
            raise SystemExit(0)
