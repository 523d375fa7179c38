"""Callbacks on their way out.

Terminal callbacks (completion, failure) are in the store before the first try and until they are delivered or refused
for good; they are tried again indefinitely, across restarts. Statuses are best-effort: tried a few times, and a newer
one takes the place of an older one of the same state that still waits. Of one job everything is sent in its order, and
nothing after its terminal callback. A job id that came again is one job to its dispatcher: of the later run nothing is
sent before the terminal callback of the earlier one. Jobs do not wait for each other.

    accept() ─▶ store     from here on a restart reports the job
    note()   ─▶ lane of the job id ─▶ POST
    finish() ─▶ store ─▶ lane ─▶ POST, once the job's statuses are through or have had their time

A lane is a task of one event loop, which has a thread of its own.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Sequence

from settee.base.job import Status
from settee.net.retry import Backoff
from settee.service.callback_lanes import Lane, Run, Sending
from settee.service.store import Attempt, Callback, Ending, Store, StoreError
from settee.service.webhooks import Sender

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 300.0
#: Where retry_backoff_seconds is 0: what is retried indefinitely must not be retried without a pause.
_MIN_PAUSE_S = 0.01
#: How often the store is asked whether a command has changed it, seconds.
_LOOK_S = 2.0
#: How long lanes may take to stop, seconds.
_STOP_S = 1.0


class Outbox:
    """One for a service. May be used from any thread; no method but :meth:`close` waits for the network."""

    def __init__(
        self,
        store: Store,
        *,
        sender: Sender,
        timeout_s: float = 10.0,
        max_retries: int = 3,
        retry_backoff_s: float = 1.0,
        longest_pause_s: float = _LONGEST_PAUSE_S,
        look_s: float = _LOOK_S,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """``max_retries`` is for statuses; what ends a job is retried indefinitely, at most ``longest_pause_s`` apart.

        ``look_s``: how often the store is asked for a command's changes.
        """
        self._store, self._look_s = store, look_s
        backoff = Backoff(max(retry_backoff_s, _MIN_PAUSE_S), longest_pause_s)
        self._sending = Sending(
            store=store, sender=sender, timeout_s=timeout_s, max_retries=max_retries, backoff=backoff, rand=rand
        )
        self._lock = self._sending.lock
        self._lanes: dict[str, Lane] = {}
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stop = lambda: None
        self._thread: threading.Thread | None = None

    # --- from start to end ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to deliver what the store holds. Raises StoreError."""
        stored, is_running = self._store.callbacks(), threading.Event()

        def work() -> None:
            try:
                asyncio.run(self._look(is_running))
            finally:
                is_running.set()  # also where no loop can be made

        self._thread = threading.Thread(target=work, name="settee-callbacks", daemon=True)
        self._thread.start()
        is_running.wait()
        if self._loop is None:
            raise StoreError("callbacks cannot be sent: see the log")
        self._take(stored)

    def close(self, grace_s: float = 0.0) -> None:
        """Stop. Within ``grace_s`` seconds what was never tried is tried once; the rest stays in the store."""
        if self._loop is None or self._thread is None:
            return
        with self._lock:
            self._lock.wait_for(
                lambda: all(not lane.runs or lane.runs[0].is_tried for lane in self._lanes.values()), grace_s
            )
        try:
            self._sending.write_all()
        except StoreError as error:
            log.error("how the last job ended is not in the state folder: %s", error.message)
        with self._lock:
            self._sending.is_closing = True
            loop, self._loop = self._loop, None
        loop.call_soon_threadsafe(self._stop)
        self._thread.join(self._sending.timeout_s + 1)

    async def _look(self, is_running: threading.Event) -> None:
        """Look for changes by a command until the end. It is another process: SQLite is asked whether there are any."""
        stop, known = asyncio.Event(), None
        self._loop, self._stop = asyncio.get_running_loop(), stop.set
        is_running.set()
        while not stop.is_set():
            try:
                changes = self._store.changes()
                if known is not None and changes != known:
                    self._take(self._store.callbacks())
                known = changes
            except Exception as error:  # lanes go on
                log.warning("the state folder cannot be read: %s", str(error) or type(error).__name__)
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(stop.wait(), self._look_s)
        # Lanes alone, which stop what they wait for: anyio never awaits a task that is canceled before it runs.
        with self._lock:
            for task in [lane.task for lane in self._lanes.values()]:
                if task is not None:
                    task.cancel()
        if left := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(left, timeout=_STOP_S)

    def _take(self, stored: Iterable[Callback]) -> None:
        """Have a run for every callback of the store; those that wait for another try are tried now."""
        with self._lock:
            runs = {(run.attempt_id, run.terminal.key): run for run in self._waiting() if run.terminal is not None}
            for run in runs.values():
                run.is_due = run.tries > 0
            for job_id in self._lanes:
                self._wake(job_id)
        for callback in stored:
            if (callback.attempt_id, callback.key) not in runs:
                self._add(callback.job_id, Run(callback.attempt_id, is_open=False, until=0.0, terminal=callback))

    def _waiting(self) -> list[Run]:
        return [run for lane in self._lanes.values() for run in lane.runs if run.terminal is not None]

    @property
    def pending(self) -> int:
        """The number of terminal callbacks that are not delivered yet."""
        with self._lock:
            return len(self._waiting())

    # --- one job ----------------------------------------------------------------------------------------------

    def accept(self, attempt: Attempt, key: str | None = None, digest: str = "") -> None:
        """Note that the job is accepted: from now on a restart reports it.

        Raises StoreError when the disk does not take part, which has the ends of earlier jobs then; the job should be
        refused.
        """
        self._sending.write_all()
        self._store.accept(attempt, key, digest)
        self._add(attempt.job_id, Run(attempt.id))

    def note(self, state: Status, callback: Callback) -> None:
        """Send a status when its turn comes. Nothing happens after :meth:`finish`. Never raises."""
        with self._lock:
            run = self._open_run(callback.job_id, callback.attempt_id)
            if run is not None:
                run.put(state, callback)
                self._wake(callback.job_id)

    def finish(
        self,
        attempt: Attempt,
        ending: Ending,
        callbacks: Sequence[Callback] = (),
        *,
        on_stored: Callable[[], None] = lambda: None,
        forget_key: bool = False,
    ) -> None:
        """Note how the job ended: the last of ``callbacks`` must arrive; one before it is the last status.

        Never raises. ``on_stored`` is called when how it ended is on the disk, before anything of that is sent; if the
        disk refuses, it is sent from memory.
        """
        with self._lock:
            run = self._open_run(attempt.job_id, attempt.id)
            if run is None:
                return
            for status in callbacks[:-1]:
                run.put(ending.state, status)
            run.terminal = callbacks[-1] if callbacks else None
            self._sending.end(run, ending)
        try:
            self._sending.write(run, forget_key=forget_key)
        except StoreError as error:
            log.error("how the job ended is kept in memory alone: %s", error.message)
        on_stored()
        with self._lock:
            run.until = time.monotonic() + self._sending.timeout_s
            self._wake(attempt.job_id)

    def _open_run(self, job_id: str, attempt_id: str) -> Run | None:
        runs = self._lanes[job_id].runs if job_id in self._lanes else ()
        return next((run for run in runs if run.attempt_id == attempt_id and run.is_open), None)

    def _add(self, job_id: str, run: Run) -> None:
        """Append a run to the lane of its job id."""
        assert self._loop is not None, "the outbox is not started"
        with self._lock:
            lane = self._lanes.get(job_id)
            if lane is None:
                lane = self._lanes[job_id] = Lane(job_id, self._sending)
                work = lane.work(on_empty=lambda: self._lanes.pop(job_id))
                lane.task = asyncio.run_coroutine_threadsafe(work, self._loop)
            lane.runs.append(run)
            self._wake(job_id)

    def _wake(self, job_id: str) -> None:
        lane, loop = self._lanes.get(job_id), self._loop
        if lane is not None and loop is not None:
            loop.call_soon_threadsafe(lane.changed.set)
        self._lock.notify_all()
