"""RunPod's envelopes as they come, from settee's workers and from others."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import settee.base.errors
from settee.client.client_errors import ClientError, NetworkError
from settee.client.targets import Answer, Status
from settee.client.targets.runpod import CODES, job_id_in, read_envelope


def of(status: str, **rest: Any) -> Answer:
    return read_envelope({"id": "j-u1", "status": status, **rest}, name="endpoint e1")


def test_the_codes_are_those_of_the_workers_errors() -> None:
    kinds = [kind for kind in vars(settee.base.errors).values() if isinstance(kind, type)]
    codes = {kind.code for kind in kinds if issubclass(kind, settee.base.errors.SetteeError)}
    assert codes == CODES


@pytest.mark.parametrize("job_id", [None, "", 7, "a b", "a\x1b[2J", "..", "x" * 201, "a/b", "日本"])
def test_an_id_that_cannot_be_asked_for_is_none(job_id: Any) -> None:
    with pytest.raises(NetworkError, match="has no job id"):
        read_envelope({"id": job_id, "status": "IN_QUEUE"}, name="endpoint e1")


def test_queued_and_running() -> None:
    assert of("IN_QUEUE") == Answer("j-u1", Status.IN_QUEUE)
    progress = {"phase": "running", "percent": 12.5, "node": "5", "node_type": "KSampler", "step": 3, "max": 20}
    answer = of("IN_PROGRESS", output=progress, delayTime=120, workerId="w")
    assert answer.progress == progress
    assert answer.timings == {"delayTime": 120.0}
    assert answer.output is None


@pytest.mark.parametrize(
    ("output", "progress"),
    [
        (None, {}),
        ([1], {}),
        ("half", {"message": "half"}),
        ("x" * 9999, {"message": "x" * 500}),
        ({"percent": "50", "step": True, "max": float("nan"), "node": 5, "other": 1}, {"node": "5"}),
        ({"percent": 1e300, "message": ["a"], "phase": True}, {}),
        ({"percent": 10**400}, {}),
        ({"percent": True, "step": float("inf"), "max": -float("inf")}, {}),
        ({"node": {"x": 1}, "node_type": ["y"], "message": 5.5, "phase": None}, {}),
    ],
)
def test_progress_is_a_strangers_word(output: Any, progress: dict[str, Any]) -> None:
    assert of("IN_PROGRESS", output=output).progress == progress


def test_a_result() -> None:
    answer = of("COMPLETED", output={"images": []}, delayTime=1, executionTime=2.5)
    assert answer.output == {"images": []}
    assert answer.timings == {"delayTime": 1.0, "executionTime": 2.5}


@pytest.mark.parametrize(
    ("rest", "line", "code", "details"),
    [
        # settee: the line with its code, the rest in output; as the SDK posts it, and as its local API shows it
        ({"error": "node 3 [workflow_rejected]", "output": {"code": "workflow_rejected", "details": {"a": 1}}},
         "node 3", "workflow_rejected", {"a": 1}),
        ({"error": "node 3 [workflow_rejected]"}, "node 3", "workflow_rejected", {}),
        # as an object, and as its text
        ({"error": {"error": "node 3 [no_space]", "code": "no_space", "details": {"a": 1}}},
         "node 3", "no_space", {"a": 1}),
        ({"error": '{"error": "node 3", "code": "busy"}'}, "node 3", "busy", {}),
        # the SDK's own account of an exception
        ({"error": json.dumps({"error_type": "KeyError", "error_message": "'x'", "error_traceback": "Trace"})},
         "'x'", None, {}),
        # other workers
        ({"error": "a plain line"}, "a plain line", None, {}),
        ({"error": "missing [images]"}, "missing [images]", None, {}),
        ({"error": "missing [x]", "output": {"code": "x"}}, "missing", "x", {}),
        ({"error": ["one", "two", {}]}, "one; two", None, {}),
        ({"error": "{not json"}, "{not json", None, {}),
        ({"output": {"error": {"message": "deep", "code": "timeout"}}}, "deep", "timeout", {}),
        ({"output": {"errors": ["a", "b"]}}, "a; b", None, {}),
        ({}, None, None, {}),
        ({"error": 17, "output": "x"}, None, None, {}),
    ],
)  # fmt: skip
def test_a_failure(rest: dict[str, Any], line: str | None, code: str | None, details: dict[str, Any]) -> None:
    answer = of("FAILED", **rest)
    assert (answer.status, answer.error, answer.code, answer.details) == (Status.FAILED, line, code, details)
    assert "Trace" not in str(answer)


@pytest.mark.parametrize(
    ("output", "words"),
    [
        (None, "over RunPod's limit"),
        ({}, "over RunPod's limit"),
        ("text", "settee worker"),
        ([{"images": []}], "settee worker"),
        ({"error": "the handler said this [internal_error]", "code": "internal_error"}, "^the handler said this$"),
    ],
)
def test_completed_is_not_always_a_success(output: Any, words: str) -> None:
    answer = of("COMPLETED", output=output)
    assert answer.status is Status.FAILED
    assert answer.output is None
    assert re.search(words, answer.error or "")


@pytest.mark.parametrize(
    ("word", "status"),
    [
        ("CANCELLED", Status.CANCELLED),
        ("CANCELED", Status.CANCELLED),
        ("cancelled", Status.CANCELLED),
        ("TIMED_OUT", Status.TIMED_OUT),
    ],
)
def test_ended_by_runpod(word: str, status: Status) -> None:
    assert of(word, output={"percent": 40}).status is status


def test_timed_out_says_which_limits_there_are() -> None:
    assert "execution timeout" in str(of("TIMED_OUT").error)


def opened(sealed: Mapping[str, Any]) -> dict[str, Any]:
    assert sealed["encrypted_output"] == "token"
    return {"images": []}


def opened_error(sealed: Mapping[str, Any]) -> dict[str, Any]:
    return {"error": "node 3 is wrong [workflow_rejected]", "code": "workflow_rejected", "details": {"node": "3"}}


SEALED = {"encrypted_output": "token", "is_encrypted": True}


def test_a_sealed_result_is_opened() -> None:
    answer = read_envelope({"id": "j", "status": "COMPLETED", "output": SEALED}, name="n", unseal=opened)
    assert answer.output == {"images": []}


def test_without_a_key_it_stays_sealed() -> None:
    assert of("COMPLETED", output=SEALED).output == SEALED


def test_a_sealed_failure_is_told_in_its_own_words() -> None:
    outside = {"error": "ComfyUI does not accept the workflow. [workflow_rejected]", "status": "FAILED", "id": "j"}
    answer = read_envelope(
        {**outside, "output": {"code": "workflow_rejected", **SEALED}}, name="n", unseal=opened_error
    )
    assert (answer.error, answer.code) == ("node 3 is wrong", "workflow_rejected")
    assert answer.details == {"node": "3"}


@pytest.mark.parametrize(
    "data",
    [
        None,
        [],
        "x",
        {},
        {"id": "j"},
        {"status": "IN_QUEUE"},
        {"id": 5, "status": "IN_QUEUE"},
        {"id": "j", "status": "?"},
    ],
)
def test_what_is_no_envelope(data: Any) -> None:
    with pytest.raises(NetworkError, match="check the address"):
        read_envelope(data, name="endpoint e1")


@pytest.mark.parametrize(
    ("head", "job_id"),
    [
        (b'{"id":"abc-u1","sta', "abc-u1"),
        (b'{"delayTime": 5, "id": "sync-1-u1", "outp', "sync-1-u1"),
        (b'{"output":{"id":"inner"', None),
        (b'{"id":"abc', None),
        (b"<html>", None),
        (b"", None),
        (b'{"id":"a/../b"}', None),
    ],
)
def test_the_id_in_half_an_answer(head: bytes, job_id: str | None) -> None:
    assert job_id_in(head) == job_id


KEYS = st.sampled_from(["error", "code", "details", "message", "images", "percent", "node"])
ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=8,
)


@given(status=st.sampled_from([*Status, "?"]), error=ANYTHING, output=ANYTHING, times=ANYTHING)
def test_no_answer_breaks_it(status: str, error: Any, output: Any, times: Any) -> None:
    data = {"id": "j", "status": status, "error": error, "output": output, "delayTime": times}
    try:
        answer = read_envelope(json.loads(json.dumps(data)), name="n")
    except ClientError:
        assert status == "?"
    else:
        assert answer.error is None or answer.error.strip()
        json.dumps(answer.progress, allow_nan=False)
