"""Callbacks on their way out.

Terminal callbacks (completion, failure) lie on the disk before the first attempt and until they are delivered or
refused for good; they are tried again for ever, across restarts. Status callbacks are best-effort: in order, a few
attempts each, and a newer heartbeat takes the place of an older one of the same state that still waits.

Of one job everything goes out in its order, and nothing after its terminal callback. When that is there, statuses
that still wait are tried once each, for as long as one request may take; then it goes.

    statuses thread   note() → queue → sender
    letters thread    finish() → disk → queue → sender → disk

A job's journal (``running.json``) is written by :meth:`Outbox.begin` and removed by :meth:`Outbox.finish` once the
terminal callback is on the disk, and before anybody can see that: so a job is reported as interrupted exactly when
there is a journal and no terminal callback of the same run.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import random
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from settee import logs
from settee.doors.agent import payloads, timestamps
from settee.doors.agent.letters import Letter, Running, Shelf
from settee.doors.agent.posting import Answer, Post, Sender
from settee.errors import ConfigError, SetteeError, StagingError
from settee.job import Status

log = logging.getLogger(__name__)

#: Statuses that wait; a job has nine states.
_MAX_STATUSES = 100
_LONGEST_PAUSE_S = 300.0
#: The heartbeat_seq of an interrupted job's last status: above that of any heartbeat before, which nobody wrote down.
INTERRUPTED_SEQ = 1_000_000_000


class AgentRestarted(SetteeError):
    """The agent was stopped while the job ran, and nothing of it was kept: send it again."""


@dataclass(frozen=True)
class _Status:
    run_id: str
    job_id: str
    state: Status
    post: Post


@dataclass
class _Waiting:
    """A terminal callback, and when it is tried next."""

    letter: Letter
    #: None while the disk did not take it.
    path: Path | None
    #: By the clock. Statuses of its run go first until ``statuses_until``.
    due: float
    statuses_until: float
    attempts: int = 0


class Outbox:
    """One for an agent. Nothing is touched before :meth:`start`."""

    def __init__(
        self,
        folder: Path,
        *,
        sender: Sender,
        timeout_s: float = 10.0,
        max_retries: int = 3,
        retry_backoff_s: float = 1.0,
        longest_pause_s: float = _LONGEST_PAUSE_S,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], datetime] = timestamps.now,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """``max_retries`` is for statuses; what ends a job is retried for ever, at most ``longest_pause_s`` apart."""
        self._folder = folder
        self._shelf = Shelf(folder)
        self._sender = sender
        self._timeout_s = timeout_s
        self._max_retries = max_retries
        self._backoff_s = retry_backoff_s
        self._longest_pause_s = longest_pause_s
        self._clock, self._now, self._rand = clock, now, rand
        self._changed = threading.Condition()
        self._statuses: deque[_Status] = deque()
        self._in_flight: _Status | None = None
        self._waiting: list[_Waiting] = []
        #: Runs that may still have statuses posted.
        self._open_runs: set[str] = set()
        self._lock_fd = -1
        self._is_closing = False
        self._threads: list[threading.Thread] = []

    # --- from start to end ----------------------------------------------------------------------------------

    def start(self) -> Running | None:
        """Take the folder, and begin to deliver what an earlier agent left.

        Returns the job that was interrupted, for which FAILED with SYSTEM_ERROR is then in the outbox; None when
        there was none. Raises ConfigError when the folder cannot be used.
        """
        try:
            self._shelf.open()
            self._lock()
            self._waiting = [_Waiting(letter, path, 0.0, 0.0) for path, letter in self._shelf.letters()]
            interrupted = self._recover()
        except OSError as error:
            self._unlock()
            raise ConfigError(
                f"the agent's state folder cannot be used ({error.strerror}): "
                "set state_dir to a folder that it may write"
            ) from error
        for work in (self._post_statuses, self._post_letters):
            thread = threading.Thread(target=work, name=f"settee-outbox{work.__name__}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return interrupted

    def close(self, grace_s: float = 0.0) -> None:
        """Stop. Within ``grace_s`` seconds what was never tried is tried once; the rest stays on the disk."""
        with self._changed:
            self._changed.wait_for(
                lambda: (
                    not self._statuses
                    and self._in_flight is None
                    and all(waiting.attempts for waiting in self._waiting)
                ),
                grace_s,
            )
            self._is_closing = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(self._timeout_s + 1)
        self._threads.clear()
        self._unlock()

    @property
    def pending(self) -> int:
        """Terminal callbacks that are not delivered yet."""
        with self._changed:
            return len(self._waiting)

    # --- one job ------------------------------------------------------------------------------------------------

    def begin(self, running: Running) -> None:
        """Note that the job is accepted: from now on a restart reports it. Raises StagingError."""
        try:
            with self._changed:
                self._shelf.begin(running)
                self._open_runs.add(running.run_id)
        except OSError as error:
            raise StagingError(
                f"the job cannot be noted in the agent's state folder ({error.strerror}): look at its disk",
                retryable=True,
            ) from error

    def note(self, running: Running, state: Status, post: Post) -> None:
        """Send a status when its turn comes; never blocks, never raises. Nothing happens after :meth:`finish`."""
        with self._changed:
            if running.run_id in self._open_runs:
                self._queue(_Status(running.run_id, running.job_id, state, post))

    def finish(self, running: Running, last: tuple[Status, Post] | None, terminal: Post | None) -> None:
        """The job ended. ``last`` is its last status, ``terminal`` the callback that must arrive.

        When it returns, that is on the disk (or, when the disk refuses, at least on its way). Never raises.
        """
        with self._changed:
            if running.run_id not in self._open_runs:
                return
            self._open_runs.discard(running.run_id)
            if last is not None and terminal is not None:
                self._queue(_Status(running.run_id, running.job_id, *last))
            elif last is not None:
                # Nobody else tells the dispatcher: then this one must arrive.
                terminal = last[1]
            if terminal is not None:
                self._put(Letter(run_id=running.run_id, job_id=running.job_id, post=terminal))
            else:
                self._end_journal()
            self._changed.notify_all()

    def _queue(self, status: _Status) -> None:
        before = self._statuses[-1] if self._statuses else None
        if before is not None and (before.run_id, before.state) == (status.run_id, status.state):
            self._statuses.pop()
        elif len(self._statuses) >= _MAX_STATUSES:
            self._statuses.popleft()
        self._statuses.append(status)
        self._changed.notify_all()

    def _put(self, letter: Letter) -> None:
        """To the disk first; the journal goes once it is there."""
        path = self._stored(letter)
        if path is not None:
            self._end_journal()
        now = self._clock()
        self._waiting.append(_Waiting(letter, path, now, now + self._timeout_s))

    def _stored(self, letter: Letter) -> Path | None:
        try:
            return self._shelf.put(letter)
        except OSError as error:
            log.error(
                "job %s: its terminal callback cannot be written to the state folder (%s); it is sent from memory",
                letter.job_id,
                error.strerror,
            )
            return None

    def _end_journal(self) -> None:
        try:
            self._shelf.end()
        except OSError as error:
            log.error("running.json cannot be removed from the state folder (%s)", error.strerror)

    # --- after a restart ------------------------------------------------------------------------------------------

    def _recover(self) -> Running | None:
        running = self._shelf.running()
        interrupted = running is not None and all(waiting.letter.run_id != running.run_id for waiting in self._waiting)
        if running is None or not interrupted:
            self._shelf.end()
            return None
        error, now = AgentRestarted(), self._now()
        about = payloads.About(job_id=running.job_id, client_id=running.client_id)
        post = None
        if running.urls.failure is not None:
            body = payloads.failure(about, now, running.started_at, error, prompt_id=running.prompt_id)
            key = payloads.terminal_key(running.job_id, Status.FAILED)
            post = Post(running.urls.failure, key, payloads.as_json(body))
        elif running.urls.status is not None:
            body = payloads.status(
                about,
                Status.FAILED,
                INTERRUPTED_SEQ,
                now,
                prompt_id=running.prompt_id,
                reason=error.message,
            )
            key = payloads.status_key(running.job_id, Status.FAILED, INTERRUPTED_SEQ)
            post = Post(running.urls.status, key, payloads.as_json(body))
        if post is not None:
            letter = Letter(run_id=running.run_id, job_id=running.job_id, post=post)
            self._waiting.append(_Waiting(letter, self._shelf.put(letter), 0.0, 0.0))
        self._shelf.end()
        return running

    def _lock(self) -> None:
        self._lock_fd = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._unlock()
            raise ConfigError(
                "another agent uses this state folder, and both would send the same callbacks: "
                "set state_dir to a folder of its own"
            ) from error

    def _unlock(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # --- statuses -----------------------------------------------------------------------------------------------

    def _post_statuses(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._statuses or self._is_closing)
                if self._is_closing:
                    return
                self._in_flight = status = self._statuses.popleft()
            with logs.job(status.job_id):
                self._post_status(status)
            with self._changed:
                self._in_flight = None
                self._changed.notify_all()

    def _post_status(self, status: _Status) -> None:
        answer = Answer(why="its job ended first")
        for attempt in range(self._max_retries + 1):
            limit_s = self._limit(status)
            if limit_s <= 0:
                break
            answer = self._sender(status.post, limit_s)
            if answer.is_delivered:
                return
            if answer.is_refused or attempt == self._max_retries:
                break
            pause_s = max(self._pause_s(attempt), answer.retry_after_s)
            with self._changed:
                if self._changed.wait_for(lambda: self._is_stale(status), pause_s):
                    break
        log.warning("the status callback %s is not delivered: %s", status.state.value, answer.why)

    def _limit(self, status: _Status) -> float:
        """Seconds that an attempt may take: the job's terminal callback waits for no more than one request."""
        with self._changed:
            ends = [each.statuses_until for each in self._waiting if each.letter.run_id == status.run_id]
        return min([self._timeout_s, *(end - self._clock() for end in ends)])

    def _is_stale(self, status: _Status) -> bool:
        """Not worth another attempt: the job has ended, or a newer heartbeat says the same."""
        after = self._statuses[0] if self._statuses else None
        replaced = after is not None and (after.run_id, after.state) == (status.run_id, status.state)
        return self._is_closing or replaced or status.run_id not in self._open_runs

    # --- terminal callbacks -----------------------------------------------------------------------------------------

    def _post_letters(self) -> None:
        while True:
            with self._changed:
                while not self._is_closing and (waiting := self._next()) is None:
                    self._changed.wait(self._until_next())
                if self._is_closing or waiting is None:
                    return
            with logs.job(waiting.letter.job_id):
                answer = self._sender(waiting.letter.post, self._timeout_s)
                with self._changed:
                    self._settle(waiting, answer)
                    self._changed.notify_all()

    def _next(self) -> _Waiting | None:
        """Of those that are due the one tried least: a receiver that is down does not hold up a new one."""
        now = self._clock()
        due = [each for each in self._waiting if each.due <= now and not self._statuses_first(each, now)]
        return min(due, key=lambda each: each.attempts, default=None)

    def _statuses_first(self, waiting: _Waiting, now: float) -> bool:
        run_id = waiting.letter.run_id
        if self._in_flight is not None and self._in_flight.run_id == run_id:
            return True
        if now >= waiting.statuses_until:
            self._statuses = deque(each for each in self._statuses if each.run_id != run_id)
        return any(each.run_id == run_id for each in self._statuses)

    def _until_next(self) -> float | None:
        now = self._clock()
        moments = [each.due if each.due > now else each.statuses_until for each in self._waiting]
        # One whose last status is just being posted is woken for by that thread.
        ahead = [moment - now for moment in moments if moment > now]
        return min(ahead, default=None)

    def _settle(self, waiting: _Waiting, answer: Answer) -> None:
        key = waiting.letter.post.key
        waiting.attempts += 1
        if not (answer.is_delivered or answer.is_refused):
            pause_s = max(self._pause_s(waiting.attempts - 1), answer.retry_after_s)
            waiting.due = self._clock() + pause_s
            if waiting.path is None:
                waiting.path = self._stored(waiting.letter)
                if waiting.path is not None:
                    self._end_journal()
            log.warning("the callback %s is not delivered: %s; again in %.0f s", key, answer.why, pause_s)
            return
        self._waiting.remove(waiting)
        if answer.is_refused:
            log.error("the callback %s is refused for good: %s; it is kept in refused/", key, answer.why)
        if waiting.path is None:
            self._end_journal()
            return
        with contextlib.suppress(OSError):  # then it is sent once more after a restart, with the same key
            (self._shelf.remove if answer.is_delivered else self._shelf.refuse)(waiting.path)

    def _pause_s(self, attempt: int) -> float:
        longest = min(self._longest_pause_s, self._backoff_s * 2.0 ** min(attempt, 30))
        return longest * (0.5 + 0.5 * self._rand())
