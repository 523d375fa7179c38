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
from settee.base.text import one_line
from settee.doors.agent import contract
from settee.doors.agent.contract import Activity, LoraParams, Timing
from settee.doors.agent.reporting import JobCallbacks, as_json, reason_code
from settee.doors.agent.reporting import failure as failure_step
from settee.service import timestamps
from settee.service.events import Outcome, Step
from settee.service.store import Attempt, Callback

BEGUN = datetime(2026, 5, 4, 3, 2, 1, 123456, tzinfo=timezone.utc)
ENDED = BEGUN + timedelta(seconds=2, milliseconds=500)


def status(state: Status, seq: int, **said: Any) -> dict[str, Any]:
    """The body of the status after ``seq - 1`` others."""
    sent: list[Callback] = []
    details = {"client_id": "agent", "urls": {"status": "http://host/"}}
    attempt = Attempt(id="a", job_id="job-1", started_at=BEGUN, prompt_id=said.pop("prompt_id", None), details=details)
    callbacks = JobCallbacks(attempt, lambda _, post: sent.append(post), now=lambda: BEGUN, seq=seq - 1, heartbeat_s=60)
    callbacks(Step(state=state, moment=BEGUN, **said))
    assert sent[0].key == f"job-1-{contract.STATES[state]}-{seq}"
    found: dict[str, Any] = json.loads(sent[0].body)
    return found


def closed(step: Step, activity: Activity | None = None, prompt_id: str | None = "p") -> dict[str, Any]:
    """The body of the callback that must arrive."""
    details = {"client_id": "agent", "urls": dict.fromkeys(("completion", "failure"), "http://host/")}
    attempt = Attempt(id="a", job_id="job-1", started_at=BEGUN, prompt_id=prompt_id, details=details)
    callbacks = JobCallbacks(attempt)
    callbacks._activity = activity
    (terminal,) = callbacks.closing(step)
    found: dict[str, Any] = json.loads(terminal.body)
    return found


class TestStatus:
    def test_the_least(self) -> None:
        assert status(Status.QUEUED, 1) == {
            "job_id": "job-1",
            "client_id": "agent",
            "state": "QUEUED",
            "timestamp": "2026-05-04T03:02:01.123Z",
            "heartbeat_seq": 1,
        }

    def test_everything(self) -> None:
        progress = {"phase": "sampling", "percent": 40.0, "step": 40, "max": 80}
        said = {"prompt_id": "p", "message": "node 5", "progress": progress}
        body = status(Status.RUNNING, 4, **said)
        assert {name: body[name] for name in said} == said
        assert '"step": 40,' in json.dumps(body), "a whole number stays one"

    def test_every_state_has_its_word(self) -> None:
        words = [contract.STATES[state] for state in Status]
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


class TestCompletion:
    def test_params_are_all_there(self) -> None:
        lora = {"name": "a.safetensors", "key": "k", "strength_model": 1.0, "strength_clip": 0.5, "mine": None}
        params = {**dict.fromkeys(contract.Params.model_fields), "seed": 2**64 - 1, "loras": [lora]}
        timings = {"total": 1.0}
        meta = {
            "user": {"id": "u", "username": "n"},
            "workflow": {"id": "w"},
            "seed_drawn": False,
            "timings_ms": timings,
        }
        result = {"artifacts": [], "params": params, "meta": meta, "warnings": []}
        assert contract.JobResult.model_validate(result).shown() == result
        body = closed(Step(state=Status.SUCCEEDED, moment=ENDED, outcome=Outcome(body={"result": result})))
        assert (body["params"], body["meta"], body["artifacts"]) == (params, meta, [])
        assert body["timing"] == {
            "started_at": "2026-05-04T03:02:01.123Z",
            "finished_at": "2026-05-04T03:02:03.623Z",
            "duration_ms": 2500,
        }
        assert "warnings" not in body

    def test_what_json_has_no_word_for(self) -> None:
        """A receiver that reads JSON as others do refuses NaN, and the callback for good with it."""
        body = {"a": float("nan"), "b": BEGUN, "c": {"d": [2, float("inf")]}, "e": "\ud800日本"}
        read = json.loads(as_json(body), parse_constant=lambda word: pytest.fail(word))
        assert read == {"a": None, "b": str(BEGUN), "c": {"d": [2, None]}, "e": "\ud800日本"}

    def test_what_extra_says_of_a_lora_stays(self) -> None:
        given = {
            "name": "a",
            "key": "k",
            "strength_model": 1.0,
            "strength_clip": 1.0,
            "self": 1,
            "_x": [None],
            "json": 2,
        }
        assert LoraParams.model_validate(given).shown() == given


def failure(error: errors.SetteeError) -> dict[str, Any]:
    step = failure_step(error)
    return closed(step, Activity(running=1, pending=0, timestamp="2026-05-04T03:02:01.123Z"))


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
        assert body["last_activity"]["running"] == 1

    def test_every_error_of_the_tree_has_a_code(self) -> None:
        todo = [errors.SetteeError]
        while todo:
            kind = todo.pop()
            todo += kind.__subclasses__()
            assert reason_code(kind("x")) in (
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

    def test_what_an_exception_says_of_itself_costs_no_callback(self) -> None:
        details = {"node_id": "5", "exception_type": {"not": "a string"}, "exception_message": "bad"}
        body = failure(errors.ExecutionFailed("node 5 failed: bad", details=details))
        assert (body["reason"], "node_errors" in body) == ("node 5 failed: bad", False)

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
        body = closed(failure_step(errors.SetteeError("x")), prompt_id=None)
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
        assert Timing.between(ENDED, BEGUN).duration_ms == 0


@given(st.text(max_size=700))
def test_one_line_is_one(text: str) -> None:
    line = one_line(text, 500)
    assert len(line) <= 500
    assert line.isprintable() or not line
