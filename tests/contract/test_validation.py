"""What POST /prompt refuses, and with which body."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from tests.contract import generations, recording
from tests.contract.driver import Comfy

CASES = dict(recording.cases("validation_errors"))


def comparable(body: Any) -> Any:
    """An answer without ids and numbers; ComfyUI looks at inputs in chance order, so errors are sorted."""
    body = recording.neutral(body)
    if isinstance(body, dict):
        for node in body.get("node_errors", {}).values():
            node["errors"].sort(key=lambda error: (error["type"], error["details"]))
        if "number" in body:
            body["number"] = "NUMBER"
    return body


@pytest.mark.parametrize("name", list(CASES))
def test_the_answer_is_the_recorded_one(comfy: Comfy, name: str) -> None:
    event = CASES[name]
    body = copy.deepcopy(event["request_body"])
    if isinstance(body, str):
        answer = comfy.post("/prompt", data=body.encode(), headers=event["request_headers"])
    else:
        answer = comfy.post("/prompt", json=body)
    assert answer.status_code == event["status"]
    if event["status"] == 500:
        assert answer.text == event["response_body"]
    else:
        assert comparable(answer.json()) == comparable(event["response_body"])
    assert answer.headers["Content-Type"] == event["response_headers"]["Content-Type"]


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({"image": "nope.png"}, ["custom_validation_failed"]),
        ({}, ["exception_during_inner_validation"]),
        ({"image": ["9", 0]}, ["exception_during_inner_validation"]),
    ],
)
def test_load_image_judges_its_own_file(comfy: Comfy, inputs: dict[str, Any], expected: list[str]) -> None:
    graph = {
        "1": {"class_type": "LoadImage", "inputs": inputs},
        "2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "v"}},
        "9": {"class_type": "PrimitiveString", "inputs": {"value": "a.png"}},
    }
    answer = comfy.post("/prompt", json={"prompt": graph})
    errors = answer.json()["node_errors"]["1"]["errors"]
    assert sorted(error["type"] for error in errors) == sorted(expected)


@pytest.mark.parametrize(
    ("class_type", "inputs", "expected"),
    [
        ("ImageScale", {"upscale_method": "magic"}, "value_not_in_list"),
        ("ImageScale", {"width": -1}, "value_smaller_than_min"),
        ("ImageScale", {"width": {"__value__": [1]}}, "invalid_input_type"),
        ("ImageScale", {"width": None}, "invalid_input_type"),
        ("ImageScale", {"image": ["2", 0]}, "return_type_mismatch"),
    ],
)
def test_values_are_checked(comfy: Comfy, class_type: str, inputs: dict[str, Any], expected: str) -> None:
    good = {"image": ["1", 0], "upscale_method": "area", "width": 8, "height": 8, "crop": "disabled"}
    graph = {
        "1": {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}},
        "2": {"class_type": "PrimitiveInt", "inputs": {"value": 1}},
        "3": {"class_type": class_type, "inputs": {**good, **inputs}},
        "4": {"class_type": "PreviewImage", "inputs": {"images": ["3", 0]}},
    }
    answer = comfy.post("/prompt", json={"prompt": graph})
    assert answer.status_code == 400
    (error,) = answer.json()["node_errors"]["3"]["errors"]
    assert error["type"] == expected
    assert error["extra_info"]["input_name"] == next(iter(inputs))


@pytest.mark.skipif(generations.under_test().checks_newer_choices, reason="this generation looks at them before")
def test_choices_of_the_newer_schema_are_not_checked(comfy: Comfy) -> None:
    """ComfyUI looks into lists only, and the newer schema says COMBO: a bad value fails while running."""
    image = {"class_type": "EmptyImage", "inputs": {"width": 8, "height": 8, "batch_size": 1, "color": 0}}
    blend = {"image1": ["1", 0], "image2": ["1", 0], "blend_factor": 0.5, "blend_mode": "magic"}
    graph = {
        "1": image,
        "2": {"class_type": "ImageBlend", "inputs": blend},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    entry = comfy.run(graph)
    kind, error = entry["status"]["messages"][-1]
    assert (kind, error["exception_type"]) == ("execution_error", "ValueError")
    assert error["exception_message"] == "Unsupported blend mode: magic\n"
