"""Requests side by side, while the thread that waits for them keeps an eye on the job's cancel and deadline."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import Any

#: How often a cancel is looked for while requests are under way.
POLL_S = 0.1
#: How long requests under way may take to notice that the job is over.
GRACE_S = 5.0


#: Threads of requests, by how their names begin.
UPLOAD, CLEAN_UP = "upload", "clean-up"


def are_stuck() -> bool:
    """Whether requests that were given up still run: Python would wait for them at its end, a minute if need be."""
    return any(thread.name.startswith((f"{UPLOAD}_", f"{CLEAN_UP}_")) for thread in threading.enumerate())


class Lanes:
    """At most ``width`` calls at a time, each in a thread. Used from one thread.

    ``check`` raises when the job is over; ``notify`` is told of each call started with ``tell`` once it has
    succeeded. Calls are asked to stop through ``stop``.
    """

    def __init__(self, width: int, check: Callable[[], None], notify: Callable[[], None]) -> None:
        self._width = width
        self._check = check
        self._notify = notify
        self._pool = ThreadPoolExecutor(width, thread_name_prefix=UPLOAD)
        #: With each, whether to tell of it.
        self._pending: dict[Future[Any], bool] = {}
        self.stop = threading.Event()

    def submit(self, call: Callable[..., Any], *args: Any, tell: bool = False, width: int | None = None) -> Future[Any]:
        """Start a call once there is a lane for it (of ``width``, if less). Raises what earlier calls raised."""
        self.settle(below=min(width or self._width, self._width))
        future = self._pool.submit(call, *args)
        self._pending[future] = tell
        return future

    def settle(self, below: int = 1) -> None:
        """Wait until fewer than ``below`` calls are under way. Raises what they raise, and what ``check`` raises."""
        while len(self._pending) >= below:
            # Two things are awaited, a call and a cancel, and only one of them can wake us.
            done, _ = wait(self._pending, timeout=POLL_S, return_when=FIRST_COMPLETED)
            self._check()
            for future in done:
                tell = self._pending.pop(future)
                future.result()
                if tell:
                    self._notify()

    def room(self) -> None:
        """Wait until another call could start."""
        self.settle(below=self._width)

    def result(self, future: Future[Any]) -> Any:
        """What one of the calls returns, needed before anything else can go on."""
        while future in self._pending:
            self.settle(below=len(self._pending))
        return future.result()

    def halt(self) -> None:
        """Ask all calls to stop and give them GRACE_S to do so. Never raises."""
        self.stop.set()
        for future in self._pending:
            future.cancel()
        wait(self._pending, timeout=GRACE_S)

    def close(self) -> None:
        """Let go of the threads; one that is stuck in a request ends with that."""
        self._pool.shutdown(wait=False, cancel_futures=True)
