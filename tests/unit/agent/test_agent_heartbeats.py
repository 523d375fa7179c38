"""A job's callbacks from the first state to the last, to a real receiver."""

from __future__ import annotations

from typing import Any

import pytest

from settee.base.errors import (
    ExecutionFailed,
    IntegrityError,
    InvalidRequest,
    JobCanceled,
    SetteeError,
    WorkflowRejected,
)
from settee.base.job import Status
from settee.doors.agent.contract import Artifact, S3Place
from settee.doors.agent.reporting import job_error, reason_code
from settee.models.transfer.address import wrong_hash, wrong_size
from settee.service.callbacks import Outbox
from tests.support.outbox import Make, ReportedJob
from tests.support.receiver import Receiver
from tests.support.waiting import eventually

ARTIFACT = Artifact(
    kind="images",
    node_id="9",
    filename="a.png",
    subfolder="",
    rel_path="a.png",
    abs_path="/srv/outputs/a.png",
    mime="image/png",
    s3=S3Place(bucket="out", key="p/01_7.png", url="https://s3.example/out/p/01_7.png"),
    sha256="ab" * 32,
    bytes=7,
)


@pytest.fixture
def outbox(make: Make) -> Outbox:
    return make(timeout_s=2, retry_backoff_s=0.02)


def begun(receiver: Receiver, outbox: Outbox, **given: Any) -> ReportedJob:
    return ReportedJob(outbox, receiver.urls(), "job-1", prompt_id="p-1", **given)


def test_a_job_that_succeeds(receiver: Receiver, outbox: Outbox) -> None:
    reporter = begun(receiver, outbox)
    for state in (Status.QUEUED, Status.PREPARING, Status.RUNNING, Status.UPLOADING):
        reporter.state(state)
    reporter.completed(artifacts=[ARTIFACT], seed=7, warnings=["slow"])
    body = receiver.wait_for_key("job-1-SUCCESS").body
    assert receiver.keys == [
        "job-1-QUEUED-1",
        "job-1-PREPARING-2",
        "job-1-RUNNING-3",
        "job-1-UPLOADING-4",
        "job-1-SUCCESS-5",
        "job-1-SUCCESS",
    ]
    assert body["artifacts"][0]["s3"] == {"bucket": "out", "key": "p/01_7.png", "url": ARTIFACT.s3.url}
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
    reporter.failed(error)
    body = receiver.wait_for_key(f"job-1-{state}").body
    assert body["reason_code"] == code
    assert body["reason"] == error.message
    assert receiver.keys == ["job-1-PREPARING-1", f"job-1-{state}-2", f"job-1-{state}"]


def test_a_job_ends_once(receiver: Receiver, outbox: Outbox) -> None:
    reporter = begun(receiver, outbox)
    reporter.failed(JobCanceled())
    reporter.completed()
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


def told(receiver: Receiver, outbox: Outbox, error: SetteeError) -> dict[str, Any]:
    """The body of its failure callback."""
    begun(receiver, outbox).failed(error)
    body: dict[str, Any] = receiver.wait_for_key("job-1-FAILED").body
    assert {name: body[name] for name in job_error(error).shown()} == job_error(error).shown()
    return body


def shown_of(error: SetteeError) -> dict[str, Any]:
    return job_error(error).shown()


def problems(count: int, text: str = "is not there") -> list[dict[str, Any]]:
    return [{"path": f"loras[{number}]", "problem": text} for number in range(count)]


class TestFailures:
    def test_every_problem_is_told(self, receiver: Receiver, outbox: Outbox) -> None:
        found = [
            {"path": "parameters.steps", "problem": "must be positive"},
            {"path": "", "problem": "one\nof no place"},
            {"path": "loras[1]", "problem": "no such name", "near": ["a.safetensors", "b.safetensors"]},
        ]
        body = told(receiver, outbox, InvalidRequest.from_problems(found))
        near = "no such name; did you mean 'a.safetensors' or 'b.safetensors'?"
        assert body["reason"] == (
            f"invalid request: parameters.steps: must be positive; one of no place; loras[1]: {near}"
        )
        assert body["problems"] == [
            {"path": "parameters.steps", "problem": "must be positive"},
            {"path": "", "problem": "one of no place"},
            {"path": "loras[1]", "problem": near},
        ]
        assert "node_errors" not in body

    @pytest.mark.parametrize("count", [2, 10, 15, 16, 17, 18, 30, 100])
    def test_the_reason_has_as_many_as_have_room(self, count: int) -> None:
        shown = shown_of(InvalidRequest.from_problems(problems(count)))
        parts = shown["reason"].removeprefix("invalid request: ").split("; ")
        listed, left = len([part for part in parts if part.endswith(": is not there")]), 0
        if parts[-1].startswith("and "):
            left = int(parts[-1].split()[1])
            assert len(shown["reason"]) > 500 - len("; loras[100]: is not there") - len("; and 240 more")
        assert len(shown["reason"]) <= 500
        assert listed + left == count
        assert [each["path"] for each in shown["problems"]] == [f"loras[{n}]" for n in range(min(count, 100))]
        assert "details" not in shown["reason"]

    def test_nor_does_a_long_first_one_hide_the_rest(self) -> None:
        shown = shown_of(InvalidRequest.from_problems(problems(3, "x" * 900)))
        assert len(shown["reason"]) == 500
        assert shown["reason"].endswith("x…; and 2 more")
        assert [len(each["problem"]) for each in shown["problems"]] == [500] * 3

    def test_one_problem_is_told_as_before(self) -> None:
        shown = shown_of(InvalidRequest.from_problems(problems(1)))
        assert shown["reason"] == "invalid request: loras[0]: is not there"

    def test_no_path_of_the_host_is_told(self, receiver: Receiver, outbox: Outbox) -> None:
        path = "/srv/comfy/models/checkpoints/x.safetensors"
        found = [
            {
                "path": "workflow.1.inputs.ckpt_name",
                "node_id": "1",
                "class_type": "CheckpointLoaderSimple",
                "input": "ckpt_name",
                "value": value,
                "problem": f"there is no {path!r}",
                "near": [path],
            }
            for value in (path, [path, {"deep": path}])
        ]
        body = told(receiver, outbox, WorkflowRejected.from_problems(found, "workflow"))
        assert "/srv" not in str(body)
        errors = body["node_errors"]["1"]["errors"]
        assert errors[0]["value"] == "x.safetensors"
        assert errors[1]["value"] == ["x.safetensors", {"deep": "x.safetensors"}]
        assert errors[0]["message"] == "there is no 'x.safetensors'"

    def test_nor_by_a_node_that_failed(self) -> None:
        said = {"exception_message": "cannot open /srv/comfy/input/a.png", "title": "of /srv/comfy/input/a.png"}
        error = ExecutionFailed("node 3 failed", details={"node_id": "3", "class_type": "LoadImage", **said})
        assert "/srv" not in str(shown_of(error))

    def test_settings_have_the_names_of_the_agents_own(self, receiver: Receiver, outbox: Outbox) -> None:
        text = "set BUCKET_ENDPOINT_URL, BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY, not COMFY_STALL_S"
        found = [{"path": "delivery", "problem": text, "node_id": "3"}, {"path": "b", "problem": "look at COMFY_URL"}]
        body = told(receiver, outbox, InvalidRequest.from_problems(found))
        ours = "set minio.endpoint, minio.access_key and minio.secret_key, not COMFY_STALL_S"
        assert body["reason"] == f"invalid request: delivery: {ours}; b: look at comfyui.api_url"
        assert [each["problem"] for each in body["problems"]] == [ours, "look at comfyui.api_url"]
        assert body["node_errors"]["3"]["errors"][0]["message"] == ours

    def test_another_file_than_the_checksums_is_the_callers_fault(self) -> None:
        """Sending it again changes nothing, which it may where bytes are missing."""
        assert reason_code(wrong_hash("s3://b/k", "0" * 64, "1" * 64)) == "VALIDATION_ERROR"
        assert reason_code(wrong_size("s3://b/k", 2, 1)) == "SYSTEM_ERROR"
        assert reason_code(IntegrityError(details={"problem": "is no safetensors"})) == "SYSTEM_ERROR"
