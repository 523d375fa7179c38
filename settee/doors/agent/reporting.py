"""Reports to a job's dispatcher: its states as they are entered, heartbeats, and its end with the reason of a failure.

    callbacks = JobCallbacks(attempt, note)                      # once the outbox has accepted the attempt
    events = JobEvents(callbacks, …)                             # every step is passed to it
    outbox.finish(attempt, ending, callbacks.closing(step))      # the last step is not: it is stored first

Reasons are without paths of this host, and in the words of the agent's own configuration. Where callbacks go is
service/callback_urls.py's, what they state contract.py's, how they get there service/callbacks.py's.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from settee.base import errors, logs
from settee.base.errors import SetteeError
from settee.base.job import Status
from settee.base.text import neutral, one_line
from settee.doors.agent.contract import (
    STATES,
    Activity,
    CompletionCallback,
    FailureCallback,
    JobError,
    Part,
    ReasonCode,
    StatusCallback,
    Timing,
)
from settee.doors.agent.engine_settings import spelled
from settee.service import timestamps
from settee.service.events import Outcome, Step
from settee.service.store import Attempt, Callback

log = logging.getLogger(__name__)

#: Characters of `reason`, of a message, and of one problem.
MAX_REASON = 500
_MAX_PATH = 200
#: The caller's own mistakes: the same dispatch fails again wherever it is sent.
_CALLERS = (errors.InvalidRequest, errors.WorkflowRejected, errors.ModelMissing)
#: The heartbeat_seq of an interrupted job's last status: above that of any heartbeat before, which was not kept.
INTERRUPTED_SEQ = 1_000_000_000


class AgentRestarted(SetteeError):
    """The agent was stopped while the job ran, and nothing of it was kept: send it again."""


# --- failures ---------------------------------------------------------------------------------------------------


def failure(error: SetteeError) -> Step:
    """Return the last step of a job that failed, or was canceled."""
    timings = error.details.get("timings")
    outcome = Outcome(
        body={"error": job_error(error).shown()},
        reason_code=reason_code(error),
        timings=timings if isinstance(timings, dict) else {},
    )
    state = Status.CANCELED if isinstance(error, errors.JobCanceled) else Status.FAILED
    return Step(state=state, moment=timestamps.now(), outcome=outcome)


def job_error(error: SetteeError) -> JobError:
    """Return a job's error as its callback, GET /jobs/{id} and the archive state it."""
    found: dict[str, Any] = {
        "reason_code": reason_code(error),
        "reason": reason(error),
        "error_type": type(error).__name__,
        "problems": _problems(error) or None,
    }
    try:
        return JobError.model_validate({**found, "node_errors": _node_errors(error) or None})
    except ValidationError:  # what a node's exception says of itself is the node's
        return JobError.model_validate(found)


def reason_code(error: SetteeError) -> ReasonCode:
    """Return one of the contract's five. A TRANSIENT_ERROR may well go away when the same job is sent again."""
    if isinstance(error, errors.JobCanceled):
        return "CANCELED"
    if isinstance(error, errors.JobTimeout):
        return "TIMEOUT"
    # A hash is compared only when all bytes are there; a short file is reported by its size.
    is_another_file = isinstance(error, errors.IntegrityError) and error.details.get("expected_sha256") is not None
    # The bucket is the dispatch's as well.
    if isinstance(error, _CALLERS) or is_another_file or error.details.get("s3_code") == "NoSuchBucket":
        return "VALIDATION_ERROR"
    return "TRANSIENT_ERROR" if error.retryable else "SYSTEM_ERROR"


def reason(error: SetteeError) -> str:
    """Return one line: of several problems as many as have room in it."""
    rest = [_shown(each) for each in error.lines()[1:]]
    # The message has the first; what it ends in speaks of details, which this door's answers do not have.
    line = one_line(_shown(error.message.removesuffix(errors.more(len(rest)))))
    while rest and len(f"{line}; {rest[0]}{_more(rest[1:])}") <= MAX_REASON:
        line, rest = f"{line}; {rest[0]}", rest[1:]
    return one_line(line, MAX_REASON - len(_more(rest))) + _more(rest)


def _more(rest: Sequence[object]) -> str:
    return f"; and {len(rest)} more" if rest else ""


def _details(error: SetteeError) -> list[dict[str, Any]]:
    found = error.details.get("problems")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _problems(error: SetteeError) -> list[dict[str, str]]:
    """Return ``{path, problem}`` for each that the error has."""
    found = []
    for each in _details(error):
        path = one_line(_shown(str(each.get("path") or "")), _MAX_PATH)
        text = errors.problem_line({"problem": each.get("problem", ""), "near": each.get("near")})
        found.append({"path": path, "problem": one_line(_shown(text), MAX_REASON)})
    return found


def _node_errors(error: SetteeError) -> dict[str, Any]:
    """Return what is known by node id: ``{class_type?, errors: [{message, …}]}``. Empty when no node is at fault."""
    found: dict[str, dict[str, Any]] = {}
    about, names = _details(error), ("path", "input", "value", "near")
    if all(each.get("node_id") is None for each in about):
        message = error.details.get("exception_message") or error.message
        about, names = [{**error.details, "problem": message}], ("exception_type", "title", "input", "")
    for each in about:
        if each.get("node_id") is None:
            continue
        node = found.setdefault(str(each["node_id"]), {"errors": []})
        if each.get("class_type"):
            node["class_type"] = each["class_type"]
        said = {"message": str(each.get("problem", "")), **{name: each[name] for name in names if each.get(name)}}
        node["errors"].append(_shown(said))
    return found


def _shown(value: Any) -> Any:
    """Return it with every string without absolute paths of this machine, and with the agent's options."""
    if isinstance(value, str):
        return spelled(neutral(value))
    if isinstance(value, (list, tuple)):
        return [_shown(each) for each in value]
    if isinstance(value, dict):
        return {_shown(name): _shown(each) for name, each in value.items()}
    return value


# --- callbacks --------------------------------------------------------------------------------------------------


class JobCallbacks:
    """One for a job. May be used from any thread; no method waits for the network."""

    def __init__(
        self,
        attempt: Attempt,
        note: Callable[[Status, Callback], None] = lambda state, callback: None,
        *,
        heartbeat_s: float = 5.0,
        activity: Callable[[], Mapping[str, Any] | None] = lambda: None,
        now: Callable[[], datetime] = timestamps.now,
        seq: int = 0,
    ) -> None:
        """``note`` sends a status. ``activity`` is asked for a snapshot before each heartbeat, in a thread of its own;
        it may take a moment. ``seq``: the number of the latest status before."""
        self._attempt, self._send, self._seq = attempt, note, seq
        self._urls: dict[str, str] = attempt.details.get("urls") or {}
        self._about: dict[str, Any] = {"job_id": attempt.job_id, "prompt_id": attempt.prompt_id}
        self._about["client_id"] = str(attempt.details.get("client_id") or "")
        self._heartbeat_s, self._ask_activity, self._now = heartbeat_s, activity, now
        self._lock = threading.Condition()
        self._state: Status | None = None
        self._said: dict[str, Any] = {}
        self._activity: Activity | None = None
        self._has_ended = False
        self._thread: threading.Thread | None = None

    def __call__(self, step: Step) -> None:
        """Take a step: it is sent at once when its state is a new one, else the next heartbeat states it."""
        with self._lock:
            if self._has_ended or step.outcome is not None:
                return
            is_new, self._state = step.state is not self._state, step.state
            message = None if step.message is None else one_line(step.message, MAX_REASON)
            said = {"message": message, "progress": step.progress}
            # Both are of this state, and last until there are others.
            self._said = said if is_new else {name: said[name] or self._said.get(name) for name in said}
            if is_new:
                self._note()
                self._lock.notify_all()  # the heartbeat counts from here

    def closing(self, step: Step) -> list[Callback]:
        """Return what reports the end, in its order: the last of it must arrive. No heartbeat comes after it.

        Without an address for a completion or a failure that is the last status.
        """
        assert step.outcome is not None, "the step must be the last"
        with self._lock:
            self._has_ended = True
            self._lock.notify_all()
            body = step.outcome.body
            error = body.get("error") or {}
            last = self._status(step.state, step.moment, reason=error.get("reason"))
            state, kind = STATES[step.state], "failure"
            model: type[Part] = FailureCallback
            about = {**self._about, **error, "last_activity": self._activity}
            if step.state is Status.SUCCEEDED:
                model, kind = CompletionCallback, "completion"
                about = {**self._about, **body["result"], "warnings": body["result"]["warnings"] or None}
        about |= {"state": state, "timestamp": timestamps.stamp(step.moment)}
        about["timing"] = Timing.between(self._attempt.started_at, step.moment)
        terminal = self._callback(kind, state, model.model_validate(about))
        return [each for each in (last, terminal) if each is not None]

    def _note(self) -> None:
        assert self._state is not None
        callback = self._status(self._state, self._now(), **self._said)
        if callback is None:
            return
        self._send(self._state, callback)
        if self._thread is None:
            thread = threading.Thread(target=self._beat, name="settee-heartbeat", daemon=True)
            try:
                thread.start()
            except RuntimeError:  # "can't start new thread"
                log.error("no thread can be started for heartbeats: the next state tries again")
                return
            self._thread = thread

    def _status(self, state: Status, moment: datetime, **said: Any) -> Callback | None:
        """Return the next status; None when there is no address for it."""
        self._seq += 1
        about = {**self._about, "state": STATES[state], "timestamp": timestamps.stamp(moment)}
        about |= {"heartbeat_seq": self._seq, "activity_snapshot": self._activity, **said}
        return self._callback("status", f"{STATES[state]}-{self._seq}", StatusCallback.model_validate(about))

    def _callback(self, kind: str, what: str, body: Part) -> Callback | None:
        if (url := self._urls.get(kind)) is None:
            return None
        attempt, content = self._attempt, as_json(body.shown())
        key = f"{attempt.job_id}-{what}"
        return Callback(attempt_id=attempt.id, job_id=attempt.job_id, url=url, key=key, body=content)

    def _beat(self) -> None:
        """Send a heartbeat for as long as a state lasts."""
        with logs.job(self._attempt.job_id):
            while True:
                with self._lock:
                    if self._has_ended:
                        return
                    if self._lock.wait(self._heartbeat_s):
                        continue  # a new state, or the end
                    state = self._state
                activity = self._snapshot()
                with self._lock:
                    self._activity = activity or self._activity
                    if self._state is state and not self._has_ended:
                        self._note()

    def _snapshot(self) -> Activity | None:
        try:
            found = self._ask_activity()
            return None if found is None else Activity.model_validate(found)
        except Exception as error:  # heartbeats go on, whatever ComfyUI makes of the question
            log.debug("no activity snapshot: %s", type(error).__name__)
            return None


def as_json(body: Mapping[str, Any]) -> bytes:
    """Return what is sent. A value that JSON cannot hold (NaN, say) must not lose a callback."""
    try:
        text = json.dumps(body, default=str, allow_nan=False)
    except ValueError:
        text = json.dumps(json.loads(json.dumps(body, default=str), parse_constant=lambda _: None))
    return text.encode("ascii")
