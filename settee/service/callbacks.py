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
import logging
import random
import threading
import time
from collections.abc import Callable

from settee.base.job import Status
from settee.net.retry import Backoff
from settee.service.callback_lanes import Ends, Lane, Rules, Run
from settee.service.store import Attempt, Ending, PendingCallback, Store, StoreError
from settee.service.webhooks import Post, Sender

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 300.0
#: Where retry_backoff_seconds is 0: what is retried indefinitely must not be retried without a pause.
_MIN_PAUSE_S = 0.01
#: How often the store is asked whether a command has changed it, seconds.
_LOOK_S = 2.0


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
        self._rules = Rules(sender=sender, timeout_s=timeout_s, max_retries=max_retries, backoff=backoff, rand=rand)
        #: Guards the lanes, and is notified when one has changed.
        self._lock = threading.Condition()
        self._lanes: dict[str, Lane] = {}
        self._ends = Ends(store, self._lock)
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread: threading.Thread | None = None

    # --- from start to end ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Begin to deliver what the store holds. Raises StoreError."""
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._work, args=(self._loop,), name="settee-callbacks", daemon=True)
        self._take_stored()
        self._thread.start()

    def close(self, grace_s: float = 0.0) -> None:
        """Stop. Within ``grace_s`` seconds what was never tried is tried once; the rest stays in the store."""
        if self._loop is None or self._thread is None:
            return
        with self._lock:
            self._lock.wait_for(
                lambda: all(not lane.runs or lane.runs[0].is_tried for lane in self._lanes.values()), grace_s
            )
        try:
            self._ends.write_all()
        except StoreError as error:
            log.error("how the last job ended is not in the state folder: %s", error.message)
        with self._lock:
            self._rules.is_closing = True
            loop, thread, self._loop, self._thread = self._loop, self._thread, None, None
        loop.call_soon_threadsafe(loop.stop)
        thread.join(self._rules.timeout_s + 1)

    def _work(self, loop: asyncio.AbstractEventLoop) -> None:
        asyncio.set_event_loop(loop)
        looking = loop.create_task(self._look())
        try:
            loop.run_forever()
        finally:
            looking.cancel()
            left = asyncio.all_tasks(loop)
            for task in left:
                task.cancel()
            loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
            loop.run_until_complete(loop.shutdown_asyncgens())
            loop.close()

    @property
    def pending(self) -> int:
        """The number of terminal callbacks that are not delivered yet."""
        with self._lock:
            return sum(run.terminal is not None for lane in self._lanes.values() for run in lane.runs)

    # --- one job ----------------------------------------------------------------------------------------------

    def accept(self, attempt: Attempt, key: str | None = None, digest: str = "") -> None:
        """Note that the job is accepted: from now on a restart reports it.

        Raises StoreError when the disk does not take part; the job should be refused then.
        """
        self._ends.write_all()
        self._store.accept(attempt, key, digest)
        self._add(attempt.job_id, Run(attempt.id))

    def note(self, attempt: Attempt, state: Status, post: Post) -> None:
        """Send a status when its turn comes. Nothing happens after :meth:`finish`. Never raises."""
        with self._lock:
            run = self._open_run(attempt)
            if run is not None:
                run.put(state, post)
                self._wake(attempt.job_id)

    def finish(
        self,
        attempt: Attempt,
        ending: Ending,
        last: tuple[Status, Post] | None = None,
        terminal: Post | None = None,
        *,
        on_stored: Callable[[], None] = lambda: None,
        forget_key: bool = False,
    ) -> None:
        """Note how the job ended: ``last`` is its last status, ``terminal`` the callback that must arrive.

        Never raises. Without ``terminal`` the last status is all that reports the end, so that must arrive.
        ``on_stored`` is called when how it ended is on the disk, before anything of that is sent; if the disk refuses,
        it is sent from memory.
        """
        with self._lock:
            run = self._open_run(attempt)
            if run is None:
                return
            if last is not None and terminal is not None:
                run.put(*last)
            elif last is not None:
                terminal = last[1]
            if terminal is not None:
                run.terminal = pending(attempt, terminal)
            self._ends.add(run, ending)
        try:
            self._ends.write(run, forget_key=forget_key)
        except StoreError as error:
            log.error("how the job ended is kept in memory alone: %s", error.message)
        on_stored()
        with self._lock:
            run.until = time.monotonic() + self._rules.timeout_s
            self._wake(attempt.job_id)

    def _open_run(self, attempt: Attempt) -> Run | None:
        lane = self._lanes.get(attempt.job_id)
        runs = lane.runs if lane is not None else ()
        return next((run for run in runs if run.attempt_id == attempt.id and run.is_open), None)

    def _add(self, job_id: str, run: Run) -> None:
        """Append a run to the lane of its job id."""
        assert self._loop is not None, "the outbox is not started"
        with self._lock:
            lane = self._lanes.get(job_id)
            if lane is None:
                lane = self._lanes[job_id] = Lane(job_id, self._rules, self._ends, self._lock)
                work = lane.work(on_empty=lambda: self._lanes.pop(job_id))
                lane.task = asyncio.run_coroutine_threadsafe(work, self._loop)
            lane.runs.append(run)
            self._wake(job_id)

    def _wake(self, job_id: str) -> None:
        lane, loop = self._lanes.get(job_id), self._loop
        if lane is not None and loop is not None:
            loop.call_soon_threadsafe(lane.changed.set)
        self._lock.notify_all()

    # --- the store, changed by a command ----------------------------------------------------------------------

    async def _look(self) -> None:
        """A command is another process, whose changes nothing announces: SQLite is asked whether there are any."""
        known = None
        while True:
            try:
                changes = self._store.changes()
                if known is not None and changes != known:
                    self._take_stored()
                known = changes
            except StoreError as error:
                log.warning("the state folder cannot be read: %s", error.message)
            await asyncio.sleep(self._look_s)

    def _take_stored(self) -> None:
        """Have a run for every callback of the store; those that wait for another try are tried now."""
        with self._lock:
            runs = [run for lane in self._lanes.values() for run in lane.runs if run.terminal is not None]
            known = {(run.attempt_id, run.terminal.key) for run in runs if run.terminal is not None}
            for run in runs:
                run.is_due = run.tries > 0
                self._wake(run.terminal.job_id if run.terminal else "")
        for callback in self._store.callbacks():
            if (callback.attempt_id, callback.key) not in known:
                self._add(callback.job_id, Run(callback.attempt_id, is_open=False, until=0.0, terminal=callback))


def pending(attempt: Attempt, post: Post) -> PendingCallback:
    """Return the callback that must arrive, for the store."""
    return PendingCallback(attempt_id=attempt.id, job_id=attempt.job_id, key=post.key, url=post.url, body=post.body)
