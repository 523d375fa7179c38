"""Callbacks on their way out.

Terminal callbacks (completion, failure) lie on the disk before the first attempt and until they are delivered or
refused for good; they are tried again for ever, across restarts. Status callbacks are best-effort (status_lane.py). Of
one job everything goes out in its order, and nothing after its terminal callback. A job id that came again is one job
to its dispatcher: of the later run nothing goes before the terminal callback of the earlier one.

    note()   → queue → statuses thread
    finish() → disk  → letters thread, once the job's statuses are through or have had their time

A job's journal (``running.json``) is written by :meth:`Outbox.begin`. :meth:`Outbox.finish` removes it when the
terminal callback is on the disk, and sends that only then. So a job is reported as interrupted exactly when a restart
finds its journal and no terminal callback of the same run, wherever the kill fell.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from settee.base import logs
from settee.base.errors import ConfigError, StagingError
from settee.base.files import Lock, try_lock
from settee.base.job import Status
from settee.doors.agent import timestamps
from settee.doors.agent.callbacks import interruption
from settee.doors.agent.callbacks.letters import Letter, Running, Shelf
from settee.doors.agent.callbacks.posting import Answer, Post, Sender, sent
from settee.doors.agent.callbacks.status_lane import StatusLane, StatusPost
from settee.net.retry import Backoff

log = logging.getLogger(__name__)

_LONGEST_PAUSE_S = 300.0
#: Where retry_backoff_seconds is 0: what is retried for ever must not be retried without a pause.
_LEAST_PAUSE_S = 0.01


@dataclass
class _Waiting:
    """A terminal callback, and when it is tried next."""

    letter: Letter
    #: None while the disk has not taken it.
    path: Path | None
    #: By the clock.
    due: float = 0.0
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
        self._backoff_s = retry_backoff_s
        self._longest_pause_s = longest_pause_s
        self._clock, self._now, self._rand = clock, now, rand
        self._changed = threading.Condition()
        self._statuses = StatusLane(
            self._changed,
            sender,
            timeout_s=timeout_s,
            max_retries=max_retries,
            pause_s=self._pause_s,
            clock=clock,
            is_held=self._is_held,
        )
        #: Oldest first.
        self._waiting: list[_Waiting] = []
        self._lock_fd = -1
        self._is_closing = False
        self._threads: list[threading.Thread] = []

    # --- from start to end ----------------------------------------------------------------------------------

    def start(self) -> Running | None:
        """Take the folder, and begin to deliver what an earlier agent left.

        Returns the job that was interrupted, whose failure (SYSTEM_ERROR) is then among that; None when there was
        none. Raises ConfigError when the folder cannot be used.
        """
        try:
            self._lock()
            self._shelf.open()
            self._waiting = [_Waiting(letter, path) for path, letter in self._shelf.letters()]
            interrupted = self._recover()
        except OSError as error:
            self._unlock()
            raise ConfigError(
                f"the agent's state folder cannot be used ({error.strerror}): set state_dir to a folder that it may "
                "write, on a disk that is not full"
            ) from error
        for name, work in (("statuses", self._statuses.work), ("letters", self._work)):
            thread = threading.Thread(target=work, name=f"settee-{name}", daemon=True)
            thread.start()
            self._threads.append(thread)
        return interrupted

    def close(self, grace_s: float = 0.0) -> None:
        """Stop. Within ``grace_s`` seconds what was never tried is tried once; the rest stays on the disk."""
        with self._changed:
            self._changed.wait_for(
                lambda: self._statuses.is_idle and all(each.attempts for each in self._heads().values()), grace_s
            )
            self._is_closing = True
            self._statuses.stop()
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
        """Note that the job is accepted: from now on a restart reports it.

        Raises StagingError when the disk does not take part; the job should be refused then.
        """
        try:
            with self._changed:
                # The journal of a job whose end could not be written must not give way before it is.
                for waiting in self._waiting:
                    waiting.path = waiting.path or self._shelf.put(waiting.letter)
                self._shelf.begin(running)
                self._statuses.open(running.run_id)
        except OSError as error:
            raise StagingError(
                f"the job cannot be noted in the agent's state folder ({error.strerror}): make room on its disk",
                retryable=True,
            ) from error

    def note(self, running: Running, state: Status, post: Post) -> None:
        """Send a status when its turn comes. Nothing happens after :meth:`finish`. Never raises."""
        with self._changed:
            if self._statuses.is_open(running.run_id):
                self._statuses.put(StatusPost(running.run_id, running.job_id, state, post))

    def finish(self, running: Running, last: tuple[Status, Post] | None, terminal: Post | None) -> None:
        """The job ended: ``last`` is its last status, ``terminal`` the callback that must arrive. Never raises.

        Without ``terminal`` nobody but the last status tells the dispatcher, so that must arrive. When this returns,
        what must arrive is on the disk; if the disk refuses, it is sent from memory.
        """
        with self._changed:
            if not self._statuses.is_open(running.run_id):
                return
            if last is not None and terminal is not None:
                self._statuses.put(StatusPost(running.run_id, running.job_id, *last))
            elif last is not None:
                terminal = last[1]
            self._statuses.end(running.run_id, is_followed=terminal is not None)
            if terminal is None:
                self._end_journal()
                return
            waiting = _Waiting(Letter(run_id=running.run_id, job_id=running.job_id, post=terminal), None)
            self._store(waiting)
            self._waiting.append(waiting)
            self._changed.notify_all()

    def _store(self, waiting: _Waiting) -> None:
        """To the disk, and the journal goes once it is there."""
        try:
            waiting.path = self._shelf.put(waiting.letter)
        except OSError as error:
            log.error(
                "the callback %s cannot be written to the state folder (%s): it is sent from memory",
                waiting.letter.post.key,
                error.strerror,
            )
            return
        self._end_journal()

    def _end_journal(self) -> None:
        try:
            self._shelf.end()
        except OSError as error:
            log.error("running.json cannot be removed from the state folder (%s)", error.strerror)

    # --- after a restart ------------------------------------------------------------------------------------------

    def _recover(self) -> Running | None:
        running = self._shelf.running()
        if running is not None and any(each.letter.run_id == running.run_id for each in self._waiting):
            running = None  # it was killed between the two steps of _store
        if running is not None and (post := interruption.report(running, self._now())) is not None:
            letter = Letter(run_id=running.run_id, job_id=running.job_id, post=post)
            self._waiting.append(_Waiting(letter, self._shelf.put(letter)))
        self._shelf.end()
        return running

    def _lock(self) -> None:
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock_fd = os.open(self._folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        if try_lock(self._lock_fd) is not Lock.HELD:
            self._unlock()
            raise ConfigError(
                "another agent uses this state folder, and both would send the same callbacks: "
                "set state_dir to a folder of its own"
            )

    def _unlock(self) -> None:
        if self._lock_fd >= 0:
            os.close(self._lock_fd)
            self._lock_fd = -1

    # --- terminal callbacks, in a thread -------------------------------------------------------------------------

    def _work(self) -> None:
        while True:
            with self._changed:
                while (waiting := self._next()) is None and not self._is_closing:
                    self._changed.wait(self._idle_s())
                if self._is_closing or waiting is None:
                    return
            with logs.job(waiting.letter.job_id):
                answer = sent(self._sender, waiting.letter.post, self._timeout_s)
                with self._changed:
                    self._settle(waiting, answer)
                    self._changed.notify_all()

    def _next(self) -> _Waiting | None:
        """Of those that are due the one tried least: a receiver that is down does not hold up a new one."""
        now, heads = self._clock(), self._heads().values()
        due = [each for each in heads if each.due <= now and self._statuses.is_clear(each.letter.run_id)]
        return min(due, key=lambda each: each.attempts, default=None)

    def _heads(self) -> dict[str, _Waiting]:
        """Of each job id the oldest that waits: the only one that may go."""
        return {each.letter.job_id: each for each in reversed(self._waiting)}

    def _is_held(self, status: StatusPost) -> bool:
        """Whether an earlier run of its job id has a terminal callback that must arrive before it."""
        head = self._heads().get(status.job_id)
        return head is not None and head.letter.run_id != status.run_id

    def _idle_s(self) -> float | None:
        """Until something may become due. None: until somebody notifies."""
        now = self._clock()
        return min((each.due - now for each in self._heads().values() if each.due > now), default=None)

    def _settle(self, waiting: _Waiting, answer: Answer) -> None:
        waiting.attempts += 1
        if answer.is_delivered or answer.is_refused:
            self._waiting.remove(waiting)
            self._remove(waiting, answer)
            return
        pause_s = max(self._pause_s(waiting.attempts - 1), answer.retry_after_s)
        waiting.due = self._clock() + pause_s
        if waiting.path is None:
            self._store(waiting)
        log.warning(
            "the callback %s is not delivered: %s; again in %.1f s", waiting.letter.post.key, answer.why, pause_s
        )

    def _remove(self, waiting: _Waiting, answer: Answer) -> None:
        key = waiting.letter.post.key
        if answer.is_refused:
            log.error("the callback %s is refused for good: %s; it is kept in refused/", key, answer.why)
        if waiting.path is None:
            self._end_journal()
            return
        try:
            if answer.is_delivered:
                self._shelf.remove(waiting.path)
            else:
                self._shelf.refuse(waiting.path)
        except OSError as error:
            # After a restart it is sent once more, under the same key.
            log.error("the callback %s cannot be removed from the state folder (%s)", key, error.strerror)

    def _pause_s(self, attempt: int) -> float:
        """Return the pause after attempt ``attempt``, counted from 0."""
        first_s = max(self._backoff_s, _LEAST_PAUSE_S)
        return Backoff(first_s, self._longest_pause_s).pause_s(attempt + 1, rand=self._rand)
