"""A job's callbacks: its states as they are entered, a heartbeat while each lasts, and how it ended.

    callbacks = JobCallbacks(attempt, urls, client_id, outbox)   # once the outbox has accepted the attempt
    events = JobEvents(callbacks, …)                             # every step is passed to it
    outbox.finish(attempt, ending, *callbacks.closing(step))     # the last step is not: it is stored first

Where they go is service/callback_urls.py's, what they state contract.py's, how they get there service/callbacks.py's.
"""

from __future__ import annotations

import json
import logging
import math
import threading
from collections.abc import Callable, Mapping
from datetime import datetime
from typing import Any

from settee.base import logs
from settee.base.errors import SetteeError
from settee.base.job import Status
from settee.base.text import one_line
from settee.doors.agent import contract
from settee.doors.agent.contract import Activity, CompletionCallback, FailureCallback, StatusCallback, Timing
from settee.doors.agent.reasons import MAX_REASON, job_error
from settee.service import timestamps
from settee.service.callback_urls import Urls
from settee.service.callbacks import Outbox
from settee.service.events import Step
from settee.service.store import Attempt
from settee.service.webhooks import Post

log = logging.getLogger(__name__)

#: The heartbeat_seq of an interrupted job's last status: above that of any heartbeat before, which was not kept.
INTERRUPTED_SEQ = 1_000_000_000

Closing = tuple["tuple[Status, Post] | None", "Post | None"]


class AgentRestarted(SetteeError):
    """The agent was stopped while the job ran, and nothing of it was kept: send it again."""


class JobCallbacks:
    """One for a job. May be used from any thread; no method waits for the network."""

    def __init__(
        self,
        attempt: Attempt,
        urls: Urls,
        client_id: str,
        outbox: Outbox,
        *,
        heartbeat_s: float = 5.0,
        activity: Callable[[], Mapping[str, Any] | None] = lambda: None,
        now: Callable[[], datetime] = timestamps.now,
    ) -> None:
        """``activity`` is asked for a snapshot before each heartbeat, in a thread of its own; it may take a moment."""
        self._attempt, self._urls, self._outbox = attempt, urls, outbox
        self._about = {"job_id": attempt.job_id, "client_id": client_id}
        self._heartbeat_s, self._ask_activity, self._now = heartbeat_s, activity, now
        self._lock = threading.Condition()
        self._seq = 0
        self._state: Status | None = None
        self._said: dict[str, Any] = {}
        self._activity: Activity | None = None
        self._has_ended = False
        self._thread: threading.Thread | None = None

    def __call__(self, step: Step) -> None:
        """Take a step: it is sent at once when its state is a new one, else the next heartbeat states it."""
        if step.outcome is not None:
            return
        with self._lock:
            if self._has_ended:
                return
            is_new = step.state is not self._state
            self._state = step.state
            said = {"message": _message(step.message), "progress": _progress(step.progress)}
            # Both are of this state, and last until there are others.
            self._said = said if is_new else {name: said[name] or self._said.get(name) for name in said}
            if is_new:
                self._note()
                self._lock.notify_all()  # the heartbeat counts from here

    def closing(self, step: Step) -> Closing:
        """Return the last status, and the callback that must arrive. No heartbeat comes after it."""
        assert step.outcome is not None, "the step must be the last"
        with self._lock:
            self._has_ended = True
            self._lock.notify_all()
            body, timing = step.outcome.body, Timing.between(self._attempt.started_at, step.moment)
            about: dict[str, Any] = {**self._about, "state": contract.STATES[step.state]}
            about |= {"timestamp": timestamps.stamp(step.moment), "timing": timing}
            about |= {"prompt_id": self._attempt.prompt_id}
            error = body.get("error") or {}
            last = self._status(step.state, step.moment, reason=error.get("reason"))
            callback: contract.Part
            if step.state is Status.SUCCEEDED:
                url, result = self._urls.completion, body["result"]
                callback = CompletionCallback(**about, **{**result, "warnings": list(result["warnings"]) or None})
            else:
                url, callback = self._urls.failure, FailureCallback(**about, **error, last_activity=self._activity)
        terminal = _post(url, contract.terminal_key(self._attempt.job_id, step.state), callback)
        return None if last is None else (step.state, last), terminal

    def _note(self) -> None:
        assert self._state is not None
        post = self._status(self._state, self._now(), **self._said)
        if post is None:
            return
        self._outbox.note(self._attempt, self._state, post)
        if self._thread is None:
            thread = threading.Thread(target=self._beat, name="settee-heartbeat", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # "can't start new thread"
                log.error("no thread can be started for heartbeats: the next state tries again")
                return
            self._thread = thread

    def _status(self, state: Status, moment: datetime, **said: Any) -> Post | None:
        """Return the next status; None when there is no address for it."""
        if self._urls.status is None:
            return None
        self._seq += 1
        found = {"prompt_id": self._attempt.prompt_id, "activity_snapshot": self._activity, **said}
        return status_post(self._urls.status, self._about, state, self._seq, moment, **found)

    def _beat(self) -> None:
        """Send a heartbeat for as long as a state lasts."""
        with logs.job(self._attempt.job_id):
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

    def _snapshot(self) -> Activity | None:
        try:
            found = self._ask_activity()
            return None if found is None else Activity.model_validate(found)
        except Exception as error:  # heartbeats go on, whatever ComfyUI makes of the question
            log.debug("no activity snapshot: %s", type(error).__name__)
            return None


def status_post(url: str, about: Mapping[str, str], state: Status, seq: int, moment: datetime, **said: Any) -> Post:
    body = StatusCallback.model_validate(
        {
            **about,
            "state": contract.STATES[state],
            "timestamp": timestamps.stamp(moment),
            "heartbeat_seq": seq,
            **said,
        }
    )
    return Post(url, contract.status_key(about["job_id"], state, seq), as_json(body.shown()))


def interrupted(attempt: Attempt, moment: datetime) -> Post | None:
    """Return the report of a job that ended with its agent: FAILED with SYSTEM_ERROR.

    It goes to the status address when there is none for failures; None without either.
    """
    urls = Urls.from_dict(attempt.details.get("urls") or {})
    about = {"job_id": attempt.job_id, "client_id": str(attempt.details.get("client_id") or "")}
    error = job_error(AgentRestarted())
    if urls.failure is not None:
        body = FailureCallback(
            **about,
            **dict(error),
            state="FAILED",
            timestamp=timestamps.stamp(moment),
            timing=Timing.between(attempt.started_at, moment),
            prompt_id=attempt.prompt_id,
        )
        return _post(urls.failure, contract.terminal_key(attempt.job_id, Status.FAILED), body)
    if urls.status is not None:
        said = {"prompt_id": attempt.prompt_id, "reason": error.reason}
        return status_post(urls.status, about, Status.FAILED, INTERRUPTED_SEQ, moment, **said)
    return None


def _post(url: str | None, key: str, body: contract.Part) -> Post | None:
    return None if url is None else Post(url, key, as_json(body.shown()))


def _message(message: str | None) -> str | None:
    return None if message is None else one_line(message, MAX_REASON)


def _progress(progress: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """``percent`` within 0 and 100, or left out."""
    if progress is None:
        return None
    percent = progress.get("percent")
    kept = {name: value for name, value in progress.items() if name != "percent"}
    if isinstance(percent, (int, float)) and math.isfinite(percent):
        kept["percent"] = min(100.0, max(0.0, float(percent)))
    return kept


def as_json(body: Mapping[str, Any]) -> bytes:
    """Return what is sent. A value that JSON cannot hold (NaN, say) must not lose a callback."""
    try:
        text = json.dumps(body, allow_nan=False)
    except (ValueError, TypeError):
        text = json.dumps(_plain(body), allow_nan=False)
    return text.encode("ascii")


def _plain(value: Any, depth: int = 0) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float)):
        return value
    if depth < 50:
        if isinstance(value, Mapping):
            return {str(key): _plain(each, depth + 1) for key, each in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [_plain(each, depth + 1) for each in value]
    return str(value)[:200]
