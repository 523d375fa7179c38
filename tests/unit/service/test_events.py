"""A job's steps: published once, shown, and counted as events."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from settee.base.job import Status
from settee.doors.agent.app import stream
from settee.doors.agent.intake import event_log
from settee.service.events import EventLog, Outcome, Step, publish
from settee.service.store import MAX_JOBS, Attempt, Store
from tests.support.clock import Clock

NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)


def log_of(job_id: str = "job", at: datetime = NOON, **more: Any) -> EventLog:
    return event_log(Attempt(id=f"{job_id} {at}", job_id=job_id, started_at=at, prompt_id="a prompt"), **more)


def running(percent: float) -> Step:
    return Step(state=Status.RUNNING, moment=NOON, progress={"phase": "running", "percent": percent})


def ended(state: Status = Status.SUCCEEDED, **body: Any) -> Step:
    return Step(state=state, moment=NOON, outcome=Outcome(body=body or {"result": {}}))


def test_progress_is_throttled_but_states_are_not() -> None:
    clock = Clock()
    log = log_of(interval_s=2, clock=clock)
    log(Step(state=Status.QUEUED, moment=NOON))
    for step in range(100):
        clock.now += 0.125
        log(running(step))
    log(Step(state=Status.UPLOADING, moment=NOON))
    told = [(event.data["state"], event.data.get("progress", {}).get("percent")) for event in log.since(0)]
    assert [state for state, _ in told] == ["QUEUED", *["RUNNING"] * 7, "UPLOADING"]
    assert [percent for state, percent in told if state == "RUNNING"] == [0, 16, 32, 48, 64, 80, 96]


def test_the_present_is_shown() -> None:
    log = log_of(interval_s=1000)
    for step in range(100):
        log(running(step))
    assert log.shown["progress"]["percent"] == 99


def test_numbers_of_a_later_job_are_higher() -> None:
    first, second = log_of(), log_of(at=NOON + timedelta(seconds=60))
    for log in (first, second):
        for step in range(1000):
            log(running(step))
        log(ended())
    assert second.since(0)[0].number > first.last_number
    assert len(first.since(0)) == 2, "of an ended job only its states are kept"


def test_a_client_that_reads_slowly_holds_nothing() -> None:
    """It misses what came meanwhile, but not the end; and one that leaves is forgotten."""
    log = log_of()
    log(Step(state=Status.QUEUED, moment=NOON))

    async def follow() -> list[dict[str, Any]]:
        lines, found = stream(log, 0, 0.01), []
        async for text in lines:
            if text.startswith(":"):
                for step in range(5000):
                    log(running(step))
                log(ended(Status.FAILED, error={}))
                continue
            found.append(json.loads(text.split("data: ")[1]))
        left = stream(log, 0, 0.01)
        await left.__anext__()
        await left.aclose()  # type: ignore[attr-defined]
        return found

    found = asyncio.run(asyncio.wait_for(follow(), 10))
    assert [each["state"] for each in found][-1] == "FAILED"
    assert len(found) < 10
    assert not log._listeners


def test_nothing_comes_after_the_end() -> None:
    log = log_of()
    log(ended(result={"artifacts": []}))
    log(running(1))
    assert (log.shown["state"], log.shown["result"], len(log.since(0))) == ("SUCCESS", {"artifacts": []}, 1)


def test_a_fault_of_one_subscriber_does_not_reach_the_others(caplog: pytest.LogCaptureFixture) -> None:
    seen: list[Status] = []

    def broken(step: Step) -> None:
        raise KeyError("a fault")

    publish(running(1), broken, lambda step: seen.append(step.state))
    assert seen == [Status.RUNNING]
    assert "was not passed on" in caplog.text


class TestAfterARestart:
    def ended_in(self, store: Store, job_id: str, minutes: int = 0, **body: Any) -> EventLog:
        at = NOON + timedelta(minutes=minutes)
        attempt = Attempt(id=f"{job_id} {minutes}", job_id=job_id, started_at=at, prompt_id="a prompt")
        store.accept(attempt)
        log = event_log(attempt)
        for step in (Step(state=Status.QUEUED, moment=at), running(5), ended(**body)):
            if step.outcome is not None:
                store.end(attempt.id, log.ending(step))
            log(step)
        return log

    @pytest.mark.parametrize("job_id", ["plain", "../../etc/passwd", "日本/\N{PILE OF POO}"])
    def test_a_result_survives(self, job_id: str, tmp_path: Path) -> None:
        store = Store(tmp_path)
        store.open()
        before = self.ended_in(store, job_id, result={"artifacts": [{"kind": "image"}]})
        store.close()
        store.open()
        after = EventLog.stored(store, job_id)
        assert after is not None
        assert after.shown == before.shown
        assert (after.is_over, after.last_number) == (True, before.last_number)
        # Its states, too, so a follower that comes late still learns of them.
        assert [event.data["state"] for event in after.since(0)] == ["QUEUED", "RUNNING", "SUCCESS"]
        assert [event.number for event in after.since(0)] == [event.number for event in before.since(0)]
        store.close()

    def test_the_latest_of_an_id_is_shown(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        store.open()
        self.ended_in(store, "job", 0, error={"reason": "first"})
        self.ended_in(store, "job", 1, result={})
        found = EventLog.stored(store, "job")
        assert found is not None
        assert "result" in found.shown
        store.close()

    def test_the_oldest_go(self, tmp_path: Path) -> None:
        store = Store(tmp_path)
        store.open()
        for number in range(MAX_JOBS + 2):
            self.ended_in(store, str(number), number)
        assert [job_id for job_id in "0123" if EventLog.stored(store, job_id)] == ["2", "3"]
        store.close()
