"""What callbacks say."""

from __future__ import annotations

import json
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settee.base import errors
from settee.base.job import Status
from settee.doors.agent import timestamps
from settee.doors.agent.callbacks import payloads
from settee.doors.agent.callbacks.payloads import About, RenderParams

ABOUT = About(job_id="job-1", client_id="agent")
BEGUN = datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=timezone.utc)
ENDED = BEGUN + timedelta(seconds=2, milliseconds=500)


class TestStatus:
    def test_the_least(self) -> None:
        assert payloads.status(ABOUT, Status.QUEUED, 1, BEGUN) == {
            "job_id": "job-1",
            "client_id": "agent",
            "state": "QUEUED",
            "timestamp": "2026-05-04T03:02:01.123Z",
            "heartbeat_seq": 1,
        }

    def test_everything(self) -> None:
        body = payloads.status(
            ABOUT,
            Status.RUNNING,
            4,
            BEGUN,
            prompt_id="p",
            message="node\n5",
            progress={"phase": "sampling", "percent": 40.0},
            reason="why " * 300,
            activity={"running": 1},
        )
        assert body["message"] == "node 5"
        assert body["progress"] == {"phase": "sampling", "percent": 40.0}
        assert len(body["reason"]) == 500
        assert body["activity_snapshot"] == {"running": 1}

    def test_every_state_has_its_word(self) -> None:
        words = [payloads.STATES[state] for state in Status]
        assert words == (
            [
                "QUEUED",
                "PREPARING",
                "MATERIALIZING",
                "SUBMITTED",
                "RUNNING",
                "UPLOADING",
                "SUCCESS",
                "FAILED",
                "CANCELED",
            ]
        )

    def test_keys(self) -> None:
        assert payloads.status_key("job-1", Status.RUNNING, 12) == "job-1-RUNNING-12"
        assert payloads.terminal_key("job-1", Status.SUCCEEDED) == "job-1-SUCCESS"


class TestCompletion:
    def test_params_are_all_there(self) -> None:
        lora = {"name": "a.safetensors", "strength_model": 1.0, "strength_clip": 0.5}
        body = payloads.completion(
            ABOUT,
            ENDED,
            BEGUN,
            artifacts=[],
            params=RenderParams(seed=2**64 - 1, loras=(lora,)),
            meta={"workflow": "x"},
            prompt_id="p",
        )
        assert set(body["params"]) == {
            "model",
            "vae",
            "clip",
            "seed",
            "steps",
            "cfg",
            "sampler",
            "scheduler",
            "denoise",
            "width",
            "height",
            "loras",
        }
        assert body["params"]["loras"] == [lora]
        assert body["timing"] == {
            "started_at": "2026-05-04T03:02:01.123Z",
            "finished_at": "2026-05-04T03:02:03.623Z",
            "duration_ms": 2500,
        }
        assert "warnings" not in body

    def test_what_json_has_no_word_for(self) -> None:
        endless: list[Any] = []
        endless.append(endless)
        body = {"a": float("nan"), "b": BEGUN, "c": {1: (2, float("inf"))}, "d": endless, "e": "\ud800日本"}
        assert json.loads(payloads.as_json(body))["c"] == {"1": [2, None]}
        assert json.loads(payloads.as_json({"e": "\ud800日本"})) == {"e": "\ud800日本"}


def failure(error: errors.SetteeError) -> dict[str, Any]:
    return payloads.failure(ABOUT, ENDED, BEGUN, error, prompt_id="p", last_activity={"running": 1})


class TestFailure:
    @pytest.mark.parametrize(
        ("error", "code"),
        [
            (errors.InvalidRequest(), "VALIDATION_ERROR"),
            (errors.UnsafePath(), "VALIDATION_ERROR"),
            (errors.PayloadTooLarge(), "VALIDATION_ERROR"),
            (errors.WorkflowRejected(), "VALIDATION_ERROR"),
            (errors.ModelMissing(), "VALIDATION_ERROR"),
            (errors.JobTimeout(), "TIMEOUT"),
            (errors.JobCanceled(), "CANCELED"),
            (errors.DownloadFailed(), "TRANSIENT_ERROR"),
            (errors.DownloadFailed(retryable=False), "SYSTEM_ERROR"),
            (errors.ComfyUnavailable(), "TRANSIENT_ERROR"),
            (errors.PromptLost(), "TRANSIENT_ERROR"),
            (errors.DeliveryError(retryable=True), "TRANSIENT_ERROR"),
            (errors.DeliveryError(), "SYSTEM_ERROR"),
            (errors.IntegrityError(), "SYSTEM_ERROR"),
            (errors.NoSpace(), "SYSTEM_ERROR"),
            (errors.ExecutionFailed(), "SYSTEM_ERROR"),
            (errors.OutOfMemory(), "SYSTEM_ERROR"),
            (errors.OutputMissing(), "SYSTEM_ERROR"),
            (errors.SetteeError(), "SYSTEM_ERROR"),
        ],
    )
    def test_reason_codes(self, error: errors.SetteeError, code: str) -> None:
        body = failure(error)
        assert body["reason_code"] == code
        assert body["state"] == ("CANCELED" if code == "CANCELED" else "FAILED")
        assert body["error_type"] == type(error).__name__
        assert body["last_activity"] == {"running": 1}

    def test_every_error_of_the_tree_has_a_code(self) -> None:
        todo = [errors.SetteeError]
        while todo:
            kind = todo.pop()
            todo += kind.__subclasses__()
            assert payloads.reason_code(kind("x")) in (
                "VALIDATION_ERROR",
                "TRANSIENT_ERROR",
                "TIMEOUT",
                "CANCELED",
                "SYSTEM_ERROR",
            )

    def test_the_reason_is_one_short_line_without_host_paths(self) -> None:
        body = failure(errors.SetteeError("cannot read /srv/models/checkpoints/a.safetensors\n" + "x" * 900))
        assert body["reason"].startswith("cannot read a.safetensors xxx")
        assert len(body["reason"]) == 500

    def test_a_node_that_failed(self) -> None:
        details = {"node_id": "57:8", "class_type": "KSampler", "exception_type": "ValueError"}
        body = failure(errors.ExecutionFailed("node 57:8 failed: bad", details={**details, "exception_message": "bad"}))
        assert body["node_errors"] == {
            "57:8": {"class_type": "KSampler", "errors": [{"message": "bad", "exception_type": "ValueError"}]}
        }

    def test_nodes_that_were_refused(self) -> None:
        problems = [
            {"path": "workflow.4.inputs.ckpt_name", "node_id": "4", "class_type": "L", "input": "a", "problem": "no"},
            {
                "path": "workflow.4.inputs.b",
                "node_id": "4",
                "class_type": "L",
                "input": "b",
                "problem": "nor",
                "near": [],
            },
            {"path": "workflow", "problem": "all"},
        ]
        body = failure(errors.WorkflowRejected.from_problems(problems, "workflow"))
        assert list(body["node_errors"]) == ["4"]
        assert [each["message"] for each in body["node_errors"]["4"]["errors"]] == ["no", "nor"]

    def test_what_is_not_known_is_left_out(self) -> None:
        body = payloads.failure(ABOUT, ENDED, BEGUN, errors.SetteeError("x"))
        assert not {"prompt_id", "node_errors", "last_activity"} & set(body)


class TestTimestamps:
    def test_other_zones_and_none(self) -> None:
        assert timestamps.stamp(BEGUN.astimezone(timezone(timedelta(hours=5)))) == "2026-05-04T03:02:01.123Z"
        assert timestamps.stamp(datetime(2026, 1, 1)) == "2026-01-01T00:00:00.000Z"  # noqa: DTZ001
        assert timestamps.file_stamp(BEGUN) == "20260504T030201.123Z"

    @given(st.datetimes(min_value=datetime(1970, 1, 2), max_value=datetime(2200, 1, 1)))  # noqa: DTZ001
    def test_there_and_back(self, moment: datetime) -> None:
        moment = moment.replace(tzinfo=timezone.utc)
        assert abs(timestamps.parsed(timestamps.stamp(moment)) - moment) < timedelta(milliseconds=1)

    def test_a_clock_that_was_put_back(self) -> None:
        assert payloads.timing(ENDED, BEGUN)["duration_ms"] == 0


@given(st.text(max_size=700))
def test_one_line_is_one(text: str) -> None:
    line = payloads.one_line(text, 500)
    assert len(line) <= 500
    assert line.isprintable() or not line
