"""A lane: what is to be sent of one job id, one request at a time, in the order of its runs.

Of each run its statuses go first, then the callback that must arrive. Lanes do not wait for each other, but a host has
only a few of their requests at once.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from urllib.parse import urlsplit

from settee.base import logs
from settee.base.job import Status
from settee.net.retry import Backoff
from settee.service.store import Callback, Ending, Store, StoreError
from settee.service.webhooks import Answer, Sender

log = logging.getLogger(__name__)

#: Of a status; a terminal callback waits as long as it is asked to.
_MAX_STATUS_PAUSE_S = 60.0
#: Requests to one host at a time.
_MAX_AT_ONCE = 4


@dataclass(eq=False)
class Run:
    """One attempt of a job, as far as its callbacks go."""

    attempt_id: str
    #: Those that wait, oldest first: the newest of each state.
    statuses: dict[Status, Callback] = field(default_factory=dict)
    #: It takes statuses, and an end.
    is_open: bool = True
    #: Once it has ended: until when its statuses may be sent before its terminal callback, by the clock.
    until: float | None = None
    terminal: Callback | None = None
    #: How it ended, while the disk has not taken that.
    unstored: Ending | None = None
    tries: int = 0
    #: The next try is not waited for any longer.
    is_due: bool = False

    @property
    def is_tried(self) -> bool:
        """Return True if what must arrive does not wait for its first try, which comes after all statuses."""
        return self.terminal is None or self.tries > 0

    def put(self, state: Status, callback: Callback) -> None:
        self.statuses.pop(state, None)
        self.statuses[state] = callback


@dataclass(kw_only=True)
class Sending:
    """Common to all lanes: how requests are sent, and sent again; and the ends of runs, with their terminal callbacks,
    in the store, or in memory until the disk takes them."""

    store: Store
    sender: Sender
    timeout_s: float
    #: Of statuses.
    max_retries: int
    backoff: Backoff
    rand: Callable[[], float]
    #: Guards lanes and runs, and is notified when one has changed.
    lock: threading.Condition = field(default_factory=threading.Condition)
    at_once: defaultdict[str, asyncio.Semaphore] = field(
        default_factory=lambda: defaultdict(lambda: asyncio.Semaphore(_MAX_AT_ONCE))
    )
    #: A receiver that is down is worth one line, not one for each heartbeat.
    has_failed: bool = False
    is_closing: bool = False
    _unstored: list[Run] = field(default_factory=list)
    #: Held while an end is stored, so that it is stored once.
    _storing: threading.Lock = field(default_factory=threading.Lock)

    def pause_s(self, failures: int) -> float:
        """Return a pause that doubles, and varies so that services do not call in step."""
        return self.backoff.pause_s(failures, rand=self.rand)

    def end(self, run: Run, ending: Ending) -> None:
        """Note how a run ended. With the lock held; :meth:`write` stores it."""
        run.is_open, run.unstored = False, ending
        self._unstored.append(run)

    def write(self, run: Run, *, forget_key: bool = False) -> None:
        """Have the disk take how a run ended, unless it has. Raises StoreError."""
        with self._storing:
            if run.unstored is None:
                return
            stored = self.store.end(run.attempt_id, run.unstored, run.terminal, forget_key=forget_key)
            with self.lock:
                run.unstored, run.terminal = None, stored
                self._unstored.remove(run)

    def write_all(self) -> None:
        """Have the disk take the ends of earlier jobs that it refused. Raises StoreError."""
        with self.lock:
            unstored = list(self._unstored)
        for run in unstored:
            self.write(run)

    def current(self, run: Run) -> Callback | None:
        """Return the callback as it is to be sent now: a command may have changed its address, or dropped it."""
        if run.terminal is None or not run.terminal.id:
            return run.terminal
        try:
            return self.store.pending_callback(run.terminal.id)
        except StoreError:
            return run.terminal

    def note(self, run: Run, key: str, answer: Answer) -> bool:
        """Note a try. Return True if it was the last: the callback is delivered, or refused for good."""
        is_last = answer.is_delivered or answer.is_refused
        if answer.is_refused:
            advice = "settee agent callbacks retry sends it again"
            log.error("the callback %s is refused for good: %s; %s", key, answer.why, advice)
        if answer.is_delivered and run.terminal is not None and not run.terminal.id:
            run.terminal = None  # what is delivered need not be stored, but how the job ended
        try:
            self.write(run)
            if run.terminal is not None and answer.is_delivered:
                self.store.remove([run.terminal.id])
            elif run.terminal is not None:
                self.store.failed(run.terminal.id, answer.why, is_refused=answer.is_refused)
            if is_last:
                run.terminal = None
        except StoreError as error:
            # After a restart it is sent again, under the same key.
            level = logging.ERROR if is_last else logging.DEBUG
            log.log(level, "what became of the callback %s is not in the state folder: %s", key, error.message)
        return is_last


class Lane:
    """Its fields are guarded by the lock of ``sending``; :meth:`work` is a task of the event loop."""

    def __init__(self, job_id: str, sending: Sending) -> None:
        self.job_id = job_id
        self.runs: deque[Run] = deque()
        #: Set in the loop, whenever something has changed.
        self.changed = asyncio.Event()
        #: Of :meth:`work`; asyncio itself keeps no strong reference to a task.
        self.task: Future[None] | None = None
        self._sending, self._lock = sending, sending.lock

    async def work(self, on_empty: Callable[[], object]) -> None:
        """Send what there is, until there is nothing; ``on_empty`` is called with the lock held then."""
        with logs.job(self.job_id):
            while True:
                with self._lock:
                    if not self.runs:
                        on_empty()
                        return
                    run = self.runs[0]
                try:
                    await self._send_statuses(run)
                    await self._send_terminal(run)
                except Exception:  # nothing would start the task again, and what must arrive would wait for a restart
                    log.exception("a callback was held up by a fault of the agent's own")
                    await asyncio.sleep(self._sending.backoff.longest_s)
                    continue
                with self._lock:
                    self.runs.popleft()
                    self._lock.notify_all()

    async def _wait(self, seconds: float | None, is_over: Callable[[], bool]) -> bool:
        """Wait so many seconds (None: indefinitely), or until ``is_over``; return what that is then."""
        until = None if seconds is None else time.monotonic() + seconds
        while not is_over():
            left_s = None if until is None else until - time.monotonic()
            self.changed.clear()
            try:
                await asyncio.wait_for(self.changed.wait(), left_s)
            except asyncio.TimeoutError:
                break
        self._check_closing()
        return is_over()

    def _check_closing(self) -> None:
        """A cancel that meets the end of what is awaited may be lost (before Python 3.12)."""
        if self._sending.is_closing:
            raise asyncio.CancelledError

    async def _post(self, callback: Callback, timeout_s: float) -> Answer:
        """A fault of the sender counts as no answer: the lane goes on."""
        try:
            answer = await self._sending.sender(callback, timeout_s)
        except Exception as error:
            # Its text may hold the address.
            log.error("the callback %s could not be sent: %s", callback.key, type(error).__name__)
            answer = Answer(why=f"the agent could not send it ({type(error).__name__})")
        if answer.status is None:
            self._check_closing()
        return answer

    async def _send_statuses(self, run: Run) -> None:
        """Send them until the run has ended; then each once, for no longer than one request may take."""
        sending = self._sending
        while True:
            await self._wait(None, lambda: bool(run.statuses) or run.until is not None)
            with self._lock:
                if run.until is not None and (not run.statuses or time.monotonic() >= run.until):
                    run.statuses.clear()
                    return
                state = next(iter(run.statuses))
                callback = run.statuses.pop(state)
            answer = await self._deliver(run, state, callback)
            if not answer.is_delivered:
                level = logging.DEBUG if sending.has_failed else logging.WARNING
                log.log(level, "the status callback %s is not delivered: %s", callback.key, answer.why)
            sending.has_failed = not answer.is_delivered

    async def _deliver(self, run: Run, state: Status, callback: Callback) -> Answer:
        sending, answer = self._sending, Answer(why="its job has ended")

        def is_stale() -> bool:
            """It is not worth another try: the job has ended, or a newer heartbeat states the same."""
            with self._lock:
                return run.until is not None or state in run.statuses

        for failures in range(1, sending.max_retries + 2):
            left_s = float("inf") if run.until is None else run.until - time.monotonic()
            if left_s <= 0:
                break
            answer = await self._post(callback, min(sending.timeout_s, left_s))
            if answer.is_delivered or answer.is_refused or failures > sending.max_retries:
                break
            # A receiver that asks to be left alone is, also by newer heartbeats; they gather meanwhile.
            asked_s = min(answer.retry_after_s, _MAX_STATUS_PAUSE_S)
            if await self._wait(asked_s, lambda: run.until is not None) or await self._wait(
                sending.pause_s(failures), is_stale
            ):
                break
        return answer

    async def _send_terminal(self, run: Run) -> None:
        sending = self._sending
        while (terminal := sending.current(run)) is not None:
            async with sending.at_once[_host(terminal.url)]:
                answer = await self._post(terminal, sending.timeout_s)
            with self._lock:
                run.tries += 1
                self._lock.notify_all()
            if sending.note(run, terminal.key, answer):
                return
            pause_s = max(sending.pause_s(run.tries), answer.retry_after_s)
            log.warning("the callback %s is not delivered: %s; again in %.1f s", terminal.key, answer.why, pause_s)
            await self._wait(pause_s, lambda: run.is_due)
            run.is_due = False


def _host(url: str) -> str:
    try:
        return urlsplit(url).netloc.rpartition("@")[2].lower()
    except ValueError:
        return ""
