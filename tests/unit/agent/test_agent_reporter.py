"""A job's callbacks from the first state to the last, to a real receiver."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from settee.doors.agent.callbacks.outbox import Outbox
from settee.doors.agent.callbacks.posting import Poster
from settee.doors.agent.callbacks.reporter import RenderParams, Reporter, UploadedArtifact, Urls
from settee.errors import InvalidRequest, JobCanceled, SetteeError
from settee.job import Status
from tests.support.receiver import Receiver
from tests.support.waiting import eventually

ARTIFACT = UploadedArtifact(
    kind="images",
    node_id="9",
    filename="a.png",
    subfolder="",
    rel_path="a.png",
    abs_path="/srv/outputs/a.png",
    mime="image/png",
    bucket="out",
    key="p/01_7.png",
    url="https://s3.example/out/p/01_7.png",
    sha256="ab" * 32,
    bytes=7,
)


@pytest.fixture
def outbox(tmp_path: Path) -> Iterator[Outbox]:
    outbox = Outbox(tmp_path / "outbox", sender=Poster(), timeout_s=2, retry_backoff_s=0.02)
    outbox.start()
    yield outbox
    outbox.close()


def begun(receiver: Receiver, outbox: Outbox, **given: float) -> Reporter:
    reporter = Reporter("job-1", "client", Urls(**receiver.urls()), outbox, prompt_id="p-1", **given)  # type: ignore[arg-type]
    reporter.begin()
    return reporter


def test_a_job_that_succeeds(receiver: Receiver, outbox: Outbox) -> None:
    reporter = begun(receiver, outbox)
    for state in (Status.QUEUED, Status.PREPARING, Status.RUNNING, Status.UPLOADING):
        reporter.state(state)
    assert reporter.completed(artifacts=[ARTIFACT], params=RenderParams(seed=7), warnings=["slow"])
    body = receiver.wait_for_key("job-1-SUCCESS").body
    assert receiver.keys == [
        "job-1-QUEUED-1",
        "job-1-PREPARING-2",
        "job-1-RUNNING-3",
        "job-1-UPLOADING-4",
        "job-1-SUCCESS-5",
        "job-1-SUCCESS",
    ]
    assert body["artifacts"][0]["s3"] == {"bucket": "out", "key": "p/01_7.png", "url": ARTIFACT.url}
    assert body["params"]["seed"] == 7
    assert body["prompt_id"] == "p-1"
    assert body["warnings"] == ["slow"]
    assert set(body["timing"]) == {"started_at", "finished_at", "duration_ms"}


@pytest.mark.parametrize(
    ("error", "state", "code"),
    [
        (InvalidRequest("no such node"), "FAILED", "VALIDATION_ERROR"),
        (JobCanceled(), "CANCELED", "CANCELED"),
        (SetteeError("broken"), "FAILED", "SYSTEM_ERROR"),
    ],
)
def test_a_job_that_does_not(receiver: Receiver, outbox: Outbox, error: SetteeError, state: str, code: str) -> None:
    reporter = begun(receiver, outbox)
    reporter.state(Status.PREPARING)
    assert reporter.failed(error)
    body = receiver.wait_for_key(f"job-1-{state}").body
    assert body["reason_code"] == code
    assert body["reason"] == error.message
    assert receiver.keys == ["job-1-PREPARING-1", f"job-1-{state}-2", f"job-1-{state}"]


def test_a_job_ends_once(receiver: Receiver, outbox: Outbox) -> None:
    reporter = begun(receiver, outbox)
    assert reporter.failed(JobCanceled())
    assert not reporter.completed(artifacts=[], params=RenderParams())
    reporter.state(Status.RUNNING)
    receiver.wait_for_key("job-1-CANCELED")
    outbox.close(2)
    assert receiver.keys == ["job-1-CANCELED-1", "job-1-CANCELED"]


def test_heartbeats_repeat_while_a_state_lasts(receiver: Receiver, outbox: Outbox) -> None:
    reporter = begun(receiver, outbox, heartbeat_s=0.02)
    reporter.state(Status.RUNNING, progress={"phase": "sampling", "percent": 10.0})
    reporter.state(Status.RUNNING, progress={"phase": "sampling", "percent": 20.0})
    eventually(lambda: len(receiver.delivered) >= 3)
    reporter.failed(JobCanceled())
    receiver.wait_for_key("job-1-CANCELED")
    sequence = [call.body["heartbeat_seq"] for call in receiver.delivered[:-1]]
    assert sequence == sorted(set(sequence))
    assert receiver.delivered[-3].body["progress"] == {"phase": "sampling", "percent": 20.0}
