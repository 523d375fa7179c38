"""What is known of jobs that have ended, also after a restart."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import JobTimeout
from settee.base.job import Status
from settee.doors.agent.callbacks.letters import Running
from settee.doors.agent.record import Record
from settee.doors.agent.records import Records

NOON = datetime(2026, 1, 1, 12, tzinfo=timezone.utc)
IDS = ["plain", "../../etc/passwd", "日本/\N{PILE OF POO}", "half \ud800"]


def record(job_id: str, minutes: int = 0) -> Record:
    made = Record(job_id, NOON + timedelta(minutes=minutes))
    made.tell(Status.RUNNING, promptId="a prompt", progress={"percent": 5})
    return made


def finished(records: Records, job_id: str, body: dict[str, Any] | None = None, minutes: int = 0) -> Record:
    made = record(job_id, minutes)
    records.add(made)
    records.end(made, Status.SUCCEEDED, body or {"result": {"artifacts": []}}, lambda moment: None)
    return made


def restarted(folder: Path, **more: Any) -> Records:
    records = Records(folder, **more)
    records.load()
    return records


@pytest.mark.parametrize("job_id", IDS)
def test_a_result_survives_a_restart(job_id: str, tmp_path: Path) -> None:
    before = finished(Records(tmp_path / "jobs"), job_id, {"result": {"artifacts": [{"kind": "image"}]}})
    after = restarted(tmp_path / "jobs").get(job_id)
    assert after is not None
    assert after.shown() == before.shown()
    assert (after.is_over, after.last_number) == (True, before.last_number)
    assert [event["data"] for event in after.since(0)] == [before.shown()]
    assert [path.parent.name for path in tmp_path.rglob("*.json")] == ["jobs"]


def test_a_failure_survives_too(tmp_path: Path) -> None:
    records, made = Records(tmp_path), record("job")
    records.end_failed(made, JobTimeout("it took too long"), lambda moment: None)
    after = restarted(tmp_path).get("job")
    assert after is not None
    assert (after.shown()["state"], after.shown()["error"]["reason_code"]) == ("FAILED", "TIMEOUT")
    assert after.shown()["promptId"] == "a prompt"


def test_it_is_on_the_disk_before_the_callback_is(tmp_path: Path) -> None:
    """A kill there makes it an interrupted job, and so it is told then."""
    records, made = Records(tmp_path), record("job")

    class Killed(BaseException):
        pass

    def kill(_: datetime) -> None:
        assert len(list(tmp_path.iterdir())) == 1
        raise Killed

    with pytest.raises(Killed):
        records.end(made, Status.SUCCEEDED, {"result": {}}, kill)
    again = restarted(tmp_path)
    again.interrupted(Running(run_id="r", job_id="job", client_id="c", started_at=NOON, prompt_id="a prompt"))
    for known in (again, restarted(tmp_path)):
        found = known.get("job")
        assert found is not None
        assert (found.shown()["state"], found.shown()["error"]["reason_code"]) == ("FAILED", "SYSTEM_ERROR")
        assert "result" not in found.shown()


def test_the_oldest_go(tmp_path: Path) -> None:
    records = Records(tmp_path, kept=3)
    for number in range(5):
        finished(records, str(number), minutes=number)
    for known in (records, restarted(tmp_path, kept=3)):
        assert [job_id for job_id in "01234" if known.get(job_id)] == ["2", "3", "4"]
    assert len(list(tmp_path.iterdir())) == 3
    assert [job_id for job_id in "01234" if restarted(tmp_path, kept=1).get(job_id)] == ["4"]


@pytest.mark.parametrize(
    "text",
    ["", "{", "[]", "null", '{"version": 2}', '{"version": 1, "number": 1, "shown": {"jobId": "x", "state": "QUEUED"}}',
     '{"version": 1, "number": "?", "shown": {"jobId": "x", "state": "SUCCESS", "acceptedAt": "2026-01-01T00:00Z"}}'],
)  # fmt: skip
def test_a_damaged_file_costs_its_job_alone(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    finished(Records(tmp_path), "job")
    (tmp_path / "damaged.json").write_text(text)
    (tmp_path / "half.json.part").write_text("{")
    assert restarted(tmp_path).get("job") is not None
    assert "damaged.json" in caplog.text
    assert not (tmp_path / "half.json.part").exists()


def test_a_disk_that_takes_nothing_costs_only_the_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "jobs").write_text("no folder")
    told = []
    records, made = Records(tmp_path / "jobs"), record("job")
    records.add(made)
    records.end(made, Status.SUCCEEDED, {"result": {}}, told.append)
    assert made.is_over
    assert len(told) == 1
    assert "not remembered" in caplog.text


def test_only_the_agent_may_read_them(tmp_path: Path) -> None:
    finished(Records(tmp_path / "jobs"), "job")
    [path] = (tmp_path / "jobs").iterdir()
    assert (path.stat().st_mode | path.parent.stat().st_mode) & 0o077 == 0
    assert "jobId" in json.loads(path.read_text())["shown"]
