"""What is told of a job while it runs, and how its events are counted."""

from __future__ import annotations

import asyncio
import json
from datetime import datetime, timedelta, timezone
from typing import Any

from settee.base.job import Status
from settee.doors.agent.following import stream
from settee.doors.agent.record import Record
from tests.support.clock import Clock

NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)


def test_progress_is_throttled_but_states_are_not() -> None:
    clock = Clock()
    record = Record("job", NOON, interval_s=2, clock=clock)
    record.tell(Status.QUEUED)
    for step in range(100):
        clock.now += 0.125
        record.tell(Status.RUNNING, progress={"percent": step})
    record.tell(Status.UPLOADING)
    told = [(event["data"]["state"], event["data"].get("progress", {}).get("percent")) for event in record.since(0)]
    assert [state for state, _ in told] == ["QUEUED", *["RUNNING"] * 7, "UPLOADING"]
    assert [percent for state, percent in told if state == "RUNNING"] == [0, 16, 32, 48, 64, 80, 96]


def test_who_asks_is_told_the_present() -> None:
    record = Record("job", NOON, interval_s=1000)
    for step in range(100):
        record.tell(Status.RUNNING, progress={"percent": step})
    assert record.shown()["progress"] == {"percent": 99}


def test_numbers_of_a_later_job_are_higher() -> None:
    first, second = Record("job", NOON), Record("job", NOON + timedelta(seconds=60))
    for record in (first, second):
        for step in range(1000):
            record.tell(Status.RUNNING, progress={"percent": step})
        record.end(Status.SUCCEEDED, NOON, {"result": {}})
    assert second.since(0)[0]["id"] > first.last_number
    assert len(first.since(0)) == 2, "of an ended job only its states are kept"


def test_a_client_that_reads_slowly_holds_nothing() -> None:
    """It misses what came meanwhile, but not the end; and who leaves is forgotten."""
    record = Record("job", NOON)
    record.tell(Status.QUEUED)

    async def follow() -> list[dict[str, Any]]:
        lines, found = stream(record, 0, 0.01), []
        async for text in lines:
            if text.startswith(":"):
                for step in range(5000):
                    record.tell(Status.RUNNING, progress={"percent": step})
                record.end(Status.FAILED, NOON, {"error": {}})
                continue
            found.append(json.loads(text.split("data: ")[1]))
        left = stream(record, 0, 0.01)
        await left.__anext__()
        await left.aclose()  # type: ignore[attr-defined]
        return found

    found = asyncio.run(asyncio.wait_for(follow(), 10))
    assert [each["state"] for each in found][-1] == "FAILED"
    assert len(found) < 10
    assert not record._listeners
