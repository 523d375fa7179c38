"""Calls that cannot be stopped, in threads that can be given up: daemons, which the end of Python does not wait for.

botocore, huggingface_hub, a name lookup or a slow server may hold a call for minutes. The thread that waits for
it must still notice a cancel or a deadline at once.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")

#: How often a wait calls ``check``: two things are awaited, a call and a cancel, and only one of them can wake us.
TICK_S = 0.1


class Stopped(Exception):
    """The waiting was given up: the result is not wanted any more, or the worker ends."""


class StillRunning(Exception):
    """The time is up, and the call has not ended."""


def _in_a_thread(run: Callable[[], None], name: str) -> None:
    threading.Thread(target=run, name=name, daemon=True).start()


class Call(Generic[T]):
    """A call in a thread of its own, which begins at once; or where ``start`` has it run."""

    def __init__(
        self,
        fn: Callable[[], T],
        *,
        name: str = "settee-call",
        start: Callable[[Callable[[], None], str], object] = _in_a_thread,
    ) -> None:
        self.ended = threading.Event()
        self._lock = threading.Lock()
        self._fn: Callable[[], T] | None = fn
        self._value: list[T] = []
        self._error: BaseException | None = None
        self._then: Callable[[], object] = lambda: None
        start(self._run, name)

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


class Pool:
    """At most ``width`` calls at a time, in threads that are used again. It is used from one thread.

    ``check`` is called during waits, at least ten times a second, and raises when no result is wanted any more. An
    error of a call is raised by the next wait. :meth:`close` it.
    """

    def __init__(self, width: int, check: Callable[[], object], *, name: str) -> None:
        self._width, self._check, self._name = width, check, name
        self._todo: queue.SimpleQueue[Callable[[], None] | None] = queue.SimpleQueue()
        self._threads = 0
        self._some_ended = threading.Event()
        #: The calls under way, and what follows each.
        self._pending: dict[Call[Any], Callable[[Any], object]] = {}

    def submit(
        self, fn: Callable[[], T], *, then: Callable[[T], object] = lambda value: None, width: int | None = None
    ) -> Call[T]:
        """Start a call once fewer than ``width`` are under way. ``then`` is called in this thread, with its result."""
        self.settle(min(width or self._width, self._width))
        if self._threads <= len(self._pending):
            self._threads += 1
            _in_a_thread(self._work, self._name)
        started: Call[T] = Call(fn, start=lambda run, name: self._todo.put(run))
        self._pending[started] = then
        started.when_ended(self._some_ended.set)
        return started

    def settle(self, below: int = 1) -> None:
        """Wait until fewer than ``below`` calls are under way. Raises what they and their ``then`` raise."""
        while len(self._pending) >= below:
            self._some_ended.wait(TICK_S)
            self._some_ended.clear()
            self._check()
            for ended in [each for each in self._pending if each.ended.is_set()]:
                self._pending.pop(ended)(ended.result())

    def result(self, started: Call[T]) -> T:
        """Return the result of one of the calls, which is needed before anything else can go on."""
        while started in self._pending:
            self.settle(len(self._pending))
        return started.result()

    def close(self, wait_s: float = 0.0) -> bool:
        """Let every thread end after its call; return True if all calls end within ``wait_s``. Never raises."""
        for _ in range(self._threads):
            self._todo.put(None)
        until = time.monotonic() + wait_s
        return all(each.ended.wait(max(0.0, until - time.monotonic())) for each in self._pending)

    def _work(self) -> None:
        for run in iter(self._todo.get, None):
            run()
