"""A job's callbacks: its states as they are entered, a heartbeat while each lasts, and how it ended.

    reporter = Reporter(job_id, client_id, urls, outbox)
    reporter.begin()                                    # before the dispatcher hears that the job is accepted
    reporter.state(Status.PREPARING)
    reporter.state(Status.RUNNING, progress={"phase": "sampling", "percent": 40.0})
    reporter.completed(artifacts=…, params=…, meta=…)   # or reporter.failed(error)

Where they go is addressing.py's, what they say payloads.py's, how they get there outbox.py's.
"""

from __future__ import annotations

import logging
import math
import threading
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from settee.base import logs
from settee.base.errors import SetteeError
from settee.base.job import Status
from settee.doors.agent import timestamps
from settee.doors.agent.callbacks import payloads
from settee.doors.agent.callbacks.addressing import Urls, addressed, allowed
from settee.doors.agent.callbacks.letters import Running
from settee.doors.agent.callbacks.outbox import Outbox
from settee.doors.agent.callbacks.payloads import About, RenderParams, UploadedArtifact
from settee.doors.agent.callbacks.posting import Post

if TYPE_CHECKING:
    from collections.abc import Iterator

log = logging.getLogger(__name__)

__all__ = ["RenderParams", "Reporter", "UploadedArtifact", "Urls", "addressed", "allowed"]

Activity = Callable[[], Mapping[str, Any] | None]


class Reporter:
    """One for a job. May be used from any thread; no method waits for the network."""

    def __init__(
        self,
        job_id: str,
        client_id: str,
        urls: Urls,
        outbox: Outbox,
        *,
        prompt_id: str | None = None,
        heartbeat_s: float = 5.0,
        activity: Activity | None = None,
        now: Callable[[], datetime] = timestamps.now,
    ) -> None:
        """``activity`` is asked for a snapshot before each heartbeat, in a thread of its own; it may take a moment."""
        self._about = About(job_id=job_id, client_id=client_id)
        self._urls = urls
        self._outbox = outbox
        self._heartbeat_s = heartbeat_s
        self._ask_activity = activity
        self._now = now
        self._running = Running(
            run_id=str(uuid.uuid4()),
            job_id=job_id,
            client_id=client_id,
            started_at=now(),
            prompt_id=prompt_id,
            urls=urls,
        )
        self._lock = threading.Condition()
        self._seq = 0
        self._state: Status | None = None
        self._message: str | None = None
        self._progress: dict[str, Any] | None = None
        self._prompt_id = prompt_id
        self._activity: dict[str, Any] | None = None
        self._has_begun = False
        self._has_ended = False
        self._thread: threading.Thread | None = None

    @property
    def started_at(self) -> datetime:
        """When this was made: when the job was accepted."""
        return self._running.started_at

    def begin(self) -> None:
        """Note the job on the disk: from now on it ends in a terminal callback, come what may. Raises StagingError."""
        self._outbox.begin(self._running)
        self._has_begun = True

    def state(
        self,
        state: Status,
        message: str | None = None,
        progress: Mapping[str, Any] | None = None,
        prompt_id: str | None = None,
        activity: Mapping[str, Any] | None = None,
    ) -> None:
        """The job is in this state. Sent at once when it is a new one; else the next heartbeat says it.

        ``message`` and ``progress`` (``{phase, percent?}``) are of this state; ``prompt_id`` and ``activity`` stay
        until there are others. Nothing happens once the job has ended.
        """
        assert self._has_begun, "begin() notes the job first"
        assert not state.is_terminal, "completed() and failed() end a job"
        with self._lock:
            if self._has_ended:
                return
            is_new = state is not self._state
            self._state = state
            self._message = message if is_new or message is not None else self._message
            self._progress = _progress(progress) if is_new or progress is not None else self._progress
            self._prompt_id = prompt_id or self._prompt_id
            self._activity = dict(activity) if activity is not None else self._activity
            if is_new:
                self._note()
                self._lock.notify_all()  # the heartbeat counts from here

    def completed(
        self,
        *,
        artifacts: Sequence[UploadedArtifact],
        params: RenderParams,
        meta: Mapping[str, Any] | None = None,
        warnings: Sequence[str] = (),
        finished_at: datetime | None = None,
    ) -> bool:
        """The job succeeded. False when it had already ended, and nothing is sent."""
        with self._ending() as is_first:
            if is_first:
                moment = finished_at or self._now()
                body = payloads.completion(
                    self._about,
                    moment,
                    self.started_at,
                    artifacts=artifacts,
                    params=params,
                    meta=meta or {},
                    prompt_id=self._prompt_id,
                    warnings=warnings,
                )
                self._finish(Status.SUCCEEDED, moment, self._urls.completion, body)
        return is_first

    def failed(self, error: SetteeError, *, finished_at: datetime | None = None) -> bool:
        """The job failed, or was canceled (JobCanceled). False when it had already ended, and nothing is sent."""
        with self._ending() as is_first:
            if is_first:
                moment = finished_at or self._now()
                body = payloads.failure(
                    self._about,
                    moment,
                    self.started_at,
                    error,
                    prompt_id=self._prompt_id,
                    last_activity=self._activity,
                )
                self._finish(payloads.ended(error), moment, self._urls.failure, body, payloads.reason(error))
        return is_first

    # --- inside -------------------------------------------------------------------------------------------------

    @contextmanager
    def _ending(self) -> Iterator[bool]:
        assert self._has_begun, "begin() notes the job first"
        with self._lock:
            is_first, self._has_ended = not self._has_ended, True
            self._lock.notify_all()
            if not is_first:
                log.error("job %s ended twice: its first end stands", self._about.job_id)
            yield is_first

    def _finish(
        self, state: Status, moment: datetime, url: str | None, body: Mapping[str, Any], reason: str | None = None
    ) -> None:
        last = self._status(state, moment, reason=reason)
        terminal = None
        if url is not None:
            terminal = Post(url, payloads.terminal_key(self._about.job_id, state), payloads.as_json(body))
        self._outbox.finish(self._running, None if last is None else (state, last), terminal)

    def _note(self) -> None:
        assert self._state is not None
        post = self._status(self._state, self._now(), message=self._message, progress=self._progress)
        if post is None:
            return
        self._outbox.note(self._running, self._state, post)
        if self._thread is None:
            thread = threading.Thread(target=self._beat, name="settee-heartbeat", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # "can't start new thread"
                log.error("no thread can be started for heartbeats: the next state tries again")
                return
            self._thread = thread

    def _status(self, state: Status, moment: datetime, **said: Any) -> Post | None:
        """The next status; None when nobody wants any."""
        if self._urls.status is None:
            return None
        self._seq += 1
        body = payloads.status(
            self._about, state, self._seq, moment, prompt_id=self._prompt_id, activity=self._activity, **said
        )
        key = payloads.status_key(self._about.job_id, state, self._seq)
        return Post(self._urls.status, key, payloads.as_json(body))

    def _beat(self) -> None:
        """A heartbeat for as long as a state lasts."""
        with logs.job(self._about.job_id):
            while True:
                with self._lock:
                    state = self._state
                    if self._lock.wait_for(lambda s=state: self._has_ended or self._state is not s, self._heartbeat_s):  # type: ignore[misc]
                        if self._has_ended:
                            return
                        continue
                activity = self._snapshot()
                with self._lock:
                    if self._has_ended:
                        return
                    self._activity = activity if activity is not None else self._activity
                    if self._state is state:
                        self._note()

    def _snapshot(self) -> dict[str, Any] | None:
        if self._ask_activity is None:
            return None
        try:
            found = self._ask_activity()
        except Exception as error:  # heartbeats go on, whatever ComfyUI makes of the question
            log.debug("no activity snapshot: %s", type(error).__name__)
            return None
        return None if found is None else dict(found)


def _progress(progress: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """``percent`` within 0 and 100, or left out."""
    if progress is None:
        return None
    percent = progress.get("percent")
    kept = {name: value for name, value in progress.items() if name != "percent"}
    if isinstance(percent, (int, float)) and math.isfinite(percent):
        kept["percent"] = min(100.0, max(0.0, float(percent)))
    return kept
