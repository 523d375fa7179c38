"""An outbox of callbacks on a store, the receiver that they go to, and jobs that report through it."""

from __future__ import annotations

import asyncio
import inspect
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import SetteeError
from settee.base.job import Status
from settee.doors.agent.contract import JobResult, Meta, Params, UserShown, WorkflowShown
from settee.doors.agent.intake import event_log
from settee.doors.agent.reporting import JobCallbacks, failure
from settee.service import timestamps
from settee.service.callbacks import Outbox
from settee.service.events import Outcome, Step
from settee.service.store import Attempt, Callback, Store
from settee.service.webhooks import Answer, Sender, WebhookSender
from tests.support.receiver import Receiver

Make = Callable[..., Outbox]
NO_PARAMS = dict.fromkeys(Params.model_fields, None)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


def in_loop(sender: Callable[[Callback, float], Any]) -> Sender:
    """A sender that is asked in the outbox's loop; a plain function answers at once."""

    async def send(post: Callback, timeout_s: float) -> Answer:
        found = sender(post, timeout_s)
        return await found if inspect.isawaitable(found) else found

    return send


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A started outbox; all use one folder, so one at a time."""
    made: list[Outbox] = []

    def make(**given: Any) -> Outbox:
        close(made)
        options = {"timeout_s": 1.0, "retry_backoff_s": 0.01, "longest_pause_s": 0.05, **given}
        store = Store(tmp_path / "outbox")
        store.open()
        outbox = Outbox(store, **{"sender": WebhookSender(), **options, **_wrapped(given)})
        made.append(outbox)
        outbox.start()
        return outbox

    yield make
    close(made)


def _wrapped(given: Mapping[str, Any]) -> dict[str, Any]:
    return {"sender": in_loop(given["sender"])} if "sender" in given else {}


def close(made: list[Outbox]) -> None:
    for outbox in made:
        outbox.close()
        outbox._store.close()
    made.clear()


class ReportedJob:
    """A job whose steps are reported to an outbox that has accepted it."""

    def __init__(self, outbox: Outbox, urls: Mapping[str, str], job_id: str = "job", **given: Any) -> None:
        self.attempt = Attempt(
            id=str(uuid.uuid4()),
            job_id=job_id,
            started_at=timestamps.now(),
            prompt_id=given.pop("prompt_id", None),
            details={"client_id": "agent", "urls": dict(urls)},
        )
        self.outbox = outbox
        outbox.accept(self.attempt)
        self.callbacks = JobCallbacks(self.attempt, outbox.note, **given)
        self.log = event_log(self.attempt)

    @property
    def seq(self) -> int:
        """The number of its latest status."""
        return self.callbacks._seq

    def state(self, state: Status, message: str | None = None, progress: Mapping[str, Any] | None = None) -> None:
        step = Step(state=state, moment=timestamps.now(), message=message, progress=progress)
        self.callbacks(step)
        self.log(step)

    def completed(self, artifacts: list[Any] | None = None, warnings: list[str] | None = None, **params: Any) -> None:
        meta = Meta(
            user=UserShown(id="u", username="n"), workflow=WorkflowShown(id="w"), seed_drawn=False, timings_ms={}
        )
        known = Params.model_validate({**NO_PARAMS, "loras": [], **params})
        result = JobResult(artifacts=artifacts or [], params=known, meta=meta, warnings=warnings or [])
        body = {"result": result.shown()}
        self._end(Step(state=Status.SUCCEEDED, moment=timestamps.now(), outcome=Outcome(body=body)))

    def failed(self, error: SetteeError) -> None:
        self._end(failure(error))

    def _end(self, step: Step) -> None:
        callbacks = self.callbacks.closing(step)
        self.outbox.finish(self.attempt, self.log.ending(step), callbacks)
        self.log(step)


def begun(outbox: Outbox, urls: Mapping[str, str], job_id: str = "job", **given: Any) -> ReportedJob:
    return ReportedJob(outbox, urls, job_id, **given)


def succeed(job: ReportedJob) -> None:
    job.completed(seed=3)


def stored(outbox: Outbox, *, is_refused: bool = False) -> list[Callback]:
    """The callbacks in its store."""
    return outbox._store.callbacks(is_refused=is_refused)


def tries(outbox: Outbox) -> list[int]:
    """How often each terminal callback that waits was tried, by the order in which its job's lane began."""
    with outbox._lock:
        return [run.tries for lane in outbox._lanes.values() for run in lane.runs if run.terminal is not None]


def post(url: str, key: str = "job-1-SUCCESS", body: bytes = b'{"state": "SUCCESS"}') -> Callback:
    return Callback(url=url, key=key, body=body)


def ask(sender: WebhookSender, post: Callback, timeout_s: float) -> Answer:
    """One try, in a loop of its own."""
    return asyncio.run(sender(post, timeout_s))
