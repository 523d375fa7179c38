"""Requests: every shape that is taken, every mistake named at once, and nothing of the caller's in an error."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settee.base.errors import InvalidRequest, PayloadTooLarge, SetteeError
from settee.base.settings import Settings, load
from settee.engine.request import decode, parse

GRAPH = {"1": {"class_type": "A", "inputs": {}}}


@pytest.fixture(scope="module")
def settings() -> Settings:
    return load(max_files=3, max_request_mb=1, max_job_timeout_s=100)


def paths(error: SetteeError) -> list[str]:
    return [problem["path"] for problem in error.details["problems"]]


@pytest.mark.parametrize(
    "images",
    [
        {"a.png": "eA=="},
        [{"name": "a.png", "image": "eA=="}],
        [{"name": "a.png", "data": "eA=="}],
    ],
)
def test_both_shapes_of_images(images: Any, settings: Settings) -> None:
    request = parse({"workflow": GRAPH, "images": images}, settings)
    assert [(file.name, file.data) for file in request.images] == [("a.png", "eA==")]


@pytest.mark.parametrize(
    "payload", [{"workflow": GRAPH}, json.dumps({"workflow": GRAPH}), {"workflow": json.dumps(GRAPH)}]
)
def test_objects_and_their_json_text(payload: Any, settings: Settings) -> None:
    assert parse(payload, settings).workflow == GRAPH


def test_what_the_official_worker_takes(settings: Settings) -> None:
    """Its documented input, null for what is not given included."""
    payload = {"workflow": GRAPH, "images": None, "comfy_org_api_key": "k"}
    request = parse(payload, settings)
    assert request.images == ()
    assert request.comfy_org_api_key is not None


@pytest.mark.parametrize("delivery", [None, "s3", {"mode": "s3", "prefix": "x/{job_id}", "expires_s": 60}])
def test_delivery_as_text_or_object(delivery: Any, settings: Settings) -> None:
    assert parse({"workflow": GRAPH, "delivery": delivery}, settings).delivery.mode == ("s3" if delivery else None)


def test_all_mistakes_at_once(settings: Settings) -> None:
    payload = {
        "workflow": {"1": {"inputs": {}}, "2": {"class_type": "A", "inputs": {"x": ["3", 0]}}},
        "imges": [],
        "images": [{"name": "a"}, {"name": "b", "image": "", "extra": 1}],
        "delivery": {"mode": "ftp", "quality": 200},
        "timeout_s": 0,
    }
    with pytest.raises(InvalidRequest) as caught:
        parse(payload, settings)
    assert {"imges", "workflow.1", "images.0.data", "images.1.extra", "delivery.mode", "timeout_s"} <= set(
        paths(caught.value)
    )
    assert "'near': ['images']" in str(caught.value.details)


@pytest.mark.parametrize(
    ("payload", "says"),
    [
        (None, "not nothing"),
        (3, "not int"),
        ([], "not list"),
        ("{", "not JSON"),
        ("[1]", "not list"),
        ({}, "workflow: missing"),
        ({"workflow": None}, "workflow: missing"),
        ({"workflow": []}, "should be an object"),
        ({"workflow": "nope"}, "not JSON"),
        ({"workflow": GRAPH, "extra_data": [1]}, "extra_data"),
        ({"workflow": GRAPH, "timeout_s": 1000}, "MAX_JOB_TIMEOUT_S"),
        ({"workflow": GRAPH, "timeout_s": float("nan")}, "timeout_s"),
        ({"workflow": GRAPH, "images": [{"name": "a", "image": ""}] * 2}, "given twice"),
        ({"workflow": GRAPH, "bucket": {}}, "unknown key"),
        ({"prompt": GRAPH}, "prompt: is called `workflow` here"),
        ({"workflow": GRAPH, "s3Config": {}}, "s3Config: belongs next to `input`"),
    ],
)
def test_one_clear_line(payload: Any, says: str, settings: Settings) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse(payload, settings)
    assert says in f"{caught.value} {caught.value.details}"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "payload",
    [
        {"workflow": GRAPH, "files": {str(index): "" for index in range(4)}},
        {"workflow": GRAPH, "images": {"a": "x" * (1 << 20) + "y"}},
        " " * ((1 << 20) + 1),
    ],
)
def test_over_a_limit(payload: Any, settings: Settings) -> None:
    with pytest.raises(PayloadTooLarge, match="MAX_"):
        parse(payload, settings)


def test_a_key_known_from_elsewhere_is_the_one_mistake(settings: Settings) -> None:
    with pytest.raises(InvalidRequest) as caught:
        parse({"prompt": GRAPH}, settings)
    assert paths(caught.value) == ["prompt"]


def test_what_makes_a_request_too_large_is_named(settings: Settings) -> None:
    large = {"1": {"class_type": "A", "inputs": {"image": "x" * (1 << 20)}}}
    for payload, where in (
        ({"workflow": large}, "workflow"),
        ({"workflow": GRAPH, "files": {"a": "x" * (1 << 20)}}, "images"),
    ):
        with pytest.raises(PayloadTooLarge) as caught:
            parse(payload, settings)
        assert paths(caught.value) == [where]


def test_extra_data_null_never_reaches_comfyui_as_null(settings: Settings) -> None:
    assert parse({"workflow": GRAPH, "extra_data": None}, settings).extra_data == {}


def test_secrets_and_prompts_are_not_printed(settings: Settings) -> None:
    graph = {"1": {"class_type": "A", "inputs": {"text": "PRIVATE"}}}
    bucket = {"accessId": "PRIVATE", "accessSecret": "PRIVATE", "bucketName": "b", "endpointUrl": "http://x"}
    request = parse(
        {"workflow": graph, "images": {"a": "PRIVATE"}, "comfy_org_api_key": "PRIVATE"}, settings, bucket=bucket
    )
    assert "PRIVATE" not in repr(request)
    with pytest.raises(InvalidRequest) as caught:
        parse({"workflow": graph, "comfy_org_api_key": {"PRIVATE": 1}, "images": "PRIVATE"}, settings)
    assert "PRIVATE" not in f"{caught.value} {caught.value.details}"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=12), inner, max_size=4),
    max_leaves=20,
)
KEYED = st.fixed_dictionaries(
    {},
    optional={
        "workflow": JSON
        | st.just(GRAPH)
        | st.dictionaries(st.text(max_size=4), st.fixed_dictionaries({"class_type": JSON, "inputs": JSON}), max_size=4),
        "images": JSON,
        "files": JSON,
        "delivery": JSON,
        "timeout_s": JSON,
        "debug": JSON,
        "extra_data": JSON,
        "comfy_org_api_key": JSON,
        "allow_partial": JSON,
    },
)


@given(payload=JSON | KEYED)
def test_whatever_is_sent_is_taken_or_refused_clearly(payload: Any) -> None:
    settings = load()
    error = None
    try:
        parse(payload, settings)
    except InvalidRequest as refused:
        error = refused
    if error is not None:
        assert error.message
        assert "\n" not in error.message
        json.dumps([error.message, error.details])


def test_json_nested_beyond_reason(settings: Settings) -> None:
    with pytest.raises(InvalidRequest):
        decode("[" * 100_000, settings)
