"""Calls that cannot be stopped, in threads that can be given up: daemons, which the end of Python does not wait for.

botocore, huggingface_hub, a name lookup or a slow server may hold a call for minutes. The thread that waits for
it must still notice a cancel or a deadline at once.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

T = TypeVar("T")

#: How often a wait calls ``check``: two things are awaited, a call and a cancel, and only one of them can wake us.
TICK_S = 0.1


class Stopped(Exception):
    """The waiting was given up: the result is not wanted any more, or the worker ends."""


class StillRunning(Exception):
    """The time is up, and the call has not ended."""


class Call(Generic[T]):
    """A call in a thread of its own, which begins at once."""

    def __init__(self, fn: Callable[[], T], *, name: str = "settee-call") -> None:
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._fn: Callable[[], T] | None = fn
        self._value: list[T] = []
        self._error: BaseException | None = None
        self._then: Callable[[], object] = lambda: None
        threading.Thread(target=self._run, name=name, daemon=True).start()

    def _run(self) -> None:
        # Neither the call nor what it was given outlives it: that may be a part of a file.
        fn, self._fn = self._fn, None
        assert fn is not None
        try:
            self._value.append(fn())
        except BaseException as error:  # raised in the thread that waits
            self._error = error
        del fn
        with self._lock:
            self.ended.set()
        self._then()

    def when_ended(self, then: Callable[[], object]) -> None:
        """Call ``then`` when the call has ended: now, or in its thread."""
        with self._lock:
            if not self.ended.is_set():
                self._then = then
                return
        then()

    def result(self, timeout_s: float | None = None, check: Callable[[], object] = lambda: None) -> T:
        """Wait, and return what the call returned.

        Raises what it raised; StillRunning, and what ``check`` raises (called ten times a second): the call goes on.
        """
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while not self.ended.wait(TICK_S):
            check()
            if until is not None and time.monotonic() >= until:
                raise StillRunning
        if self._error is not None:
            raise self._error
        return self._value[0]


def call(
    fn: Callable[[], T],
    timeout_s: float | None = None,
    check: Callable[[], object] = lambda: None,
    *,
    name: str = "settee-call",
) -> T:
    """Return what ``fn`` returns, called in a thread that is given up at ``timeout_s`` or when ``check`` raises."""
    return Call(fn, name=name).result(timeout_s, check)
