"""What a bare ComfyUI's history comes to: as a real one was recorded, and as no sane one would write it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from settee.client.job_outputs import outputs_of
from settee.client.targets import Status, comfy_job
from settee.client.targets.comfy_api import File
from settee.client.targets.comfy_job import Entry
from settee.comfyui.isolation import SALT_INPUT
from settee.comfyui.node_registry import UNKNOWN, NodeRegistry
from tests.contract.recording import http_events, load


def entries(name: str) -> list[dict[str, Any]]:
    """The history entries in a recording."""
    found = []
    for event in http_events(name):
        body = event["response_body"]
        if event["path"].startswith("/history/") and isinstance(body, dict):
            found += [entry for entry in body.values() if isinstance(entry, dict)]
    assert found
    return found


def result(entry: Entry, look: Any = lambda place: File(f"http://c/{place[2]}", 1)) -> dict[str, Any]:
    output, missing = comfy_job.output(
        comfy_job.found_in(entry, UNKNOWN), file_at=look, pictures=(), execution_ms=entry.execution_ms, warnings=()
    )
    assert not missing
    return output


def test_recorded_failures_name_the_node_and_no_path() -> None:
    answers = [comfy_job.failure("j", Entry(entry)) for entry in entries("execution_errors")]
    failed = [answer for answer in answers if answer is not None]
    assert {answer.code for answer in failed} >= {"execution_failed"}
    assert all(answer.status is Status.FAILED and (answer.error or "").startswith("node ") for answer in failed)
    assert "/ComfyUI/" not in json.dumps([answer.details for answer in failed])
    assert any("cannot identify image file 'corrupt.png'" in (answer.error or "") for answer in failed)


def test_a_recorded_interrupt_is_a_cancel() -> None:
    answers = [comfy_job.failure("j", Entry(entry)) for entry in entries("interrupt_prompt_id")]
    assert [answer.status for answer in answers if answer is not None] == [Status.CANCELLED]


def test_recorded_outputs() -> None:
    for name in ("success_simple", "batch_outputs"):
        for data in entries(name):
            entry = Entry(data)
            assert comfy_job.failure("j", entry) is None
            assert entry.execution_ms is not None
            output = result(entry)
            images = [image for node in data["outputs"].values() for image in node.get("images", ())]
            count = sum(image["type"] == "output" for image in images)
            assert len(output["images"]) == count > 0
            assert len(outputs_of(output)) == count


def test_kinds_are_told_by_suffix_and_names_are_split() -> None:
    outputs = {
        "10": {"images": [{"filename": "sub/a.mp4", "subfolder": "v", "type": "output"}], "animated": [True]},
        "9": {"gifs": [{"filename": "b.gif", "subfolder": "", "type": "output"}, {"filename": "b.gif"}]},
        "57:8": {"result": ["3d/c.glb", None, "camera.json"], "audio": [{"filename": "d.flac", "type": "output"}]},
    }
    found = comfy_job.found_in(Entry({"outputs": outputs}), UNKNOWN)
    assert [*found.files.items()] == [
        (("output", "", "b.gif"), "9"),
        (("output", "v/sub", "a.mp4"), "10"),
        (("output", "3d", "c.glb"), "57:8"),
        (("output", "", "d.flac"), "57:8"),
    ]
    assert found.named == {("output", "3d", "c.glb"): "3d/c.glb"}
    assert found.texts == [("57:8", "camera.json")], "no file of a 3D preview's, so a word"
    assert found.warnings == []
    output = result(Entry({"outputs": outputs}))
    assert {kind: len(output[kind]) for kind in ("images", "videos", "models_3d", "audio")} == {
        "images": 1,
        "videos": 1,
        "models_3d": 1,
        "audio": 1,
    }


def test_files_that_are_not_there_are_told_of() -> None:
    entry = Entry({"outputs": {"9": {"images": [{"filename": "a.png"}, {"filename": "b.png"}]}}})
    output, missing = comfy_job.output(
        comfy_job.found_in(entry, UNKNOWN),
        file_at=lambda place: None if place[2] == "b.png" else File("http://c/a", None),
        pictures=(),
        execution_ms=None,
        warnings=["w"],
    )
    assert missing == ["b.png (node 9)"]
    assert [item["filename"] for item in output["images"]] == ["a.png"]
    assert output["warnings"] == ["w"]


_KEYS = ["prompt", "outputs", "status", "messages", "status_str", "images", "text", "result", "filename", "type"]
_WORDS = some.sampled_from(
    [*_KEYS, "execution_error", "execution_start", "timestamp", "success", "", "..", "a\0b", "9"]
)
_JSON = some.recursive(
    some.none() | some.booleans() | some.integers() | some.floats(allow_nan=False) | _WORDS,
    lambda inner: some.lists(inner, max_size=5) | some.dictionaries(_WORDS, inner, max_size=5),
    max_leaves=30,
)


@settings(max_examples=100)
@given(some.dictionaries(_WORDS, _JSON, max_size=5))
def test_whatever_stands_in_history_is_read(data: dict[str, Any]) -> None:
    entry = Entry(data)
    comfy_job.failure("j", entry)
    outputs_of(result(entry))


def test_every_end_of_a_graph_is_salted_and_nothing_else() -> None:
    graph = {
        "1": {"class_type": "Load", "inputs": {}},
        "2": {"class_type": "Show", "inputs": {"a": ["1", 0]}},
        "3": {"class_type": "Unknown", "inputs": {"a": ["2", 0], "text": "kept"}},
    }
    salted = comfy_job.salted(graph, NodeRegistry({"Show": {"output_node": True}, "Load": {}}), "s")
    assert {node_id for node_id, node in salted.items() if SALT_INPUT in node["inputs"]} == {"2", "3"}
    assert salted["3"]["inputs"] == {"a": ["2", 0], "text": "kept", SALT_INPUT: "s"}
    assert SALT_INPUT not in graph["3"]["inputs"], "the caller's graph is not changed"


@pytest.mark.parametrize("version", ["0.3.64", "0.33.0"])
def test_recorded_refusals_are_readable(version: str) -> None:
    """Every refusal that a real ComfyUI was recorded to make names a node, or says what it says."""
    info = load("object_info", version)
    info = info if "SaveImage" in info else {}
    lines = []
    for event in http_events("validation_errors", version):
        body = event["response_body"]
        if event["path"] == "/prompt" and event["status"] == 400 and isinstance(body, dict):
            asked = event["request_body"].get("prompt") if isinstance(event["request_body"], dict) else None
            graph = asked if isinstance(asked, dict) else {}
            whole = {i: n for i, n in graph.items() if isinstance(n, dict) and isinstance(n.get("inputs"), dict)}
            if len(whole) < len(graph) or any(not isinstance(node.get("class_type"), str) for node in whole.values()):
                continue  # shape_problems refuses these before they are sent
            line, _ = comfy_job.refusal(body["error"], body["node_errors"], whole, NodeRegistry(info))
            lines.append(line)
    assert len(lines) > 8
    assert all(line.startswith("ComfyUI refuses the workflow:") and len(line) > 35 for line in lines)
    assert any("nope.safetensors" in line for line in lines)
