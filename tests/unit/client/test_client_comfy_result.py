"""What a bare ComfyUI's history comes to: as a real one was recorded, and as no sane one would write it."""

from __future__ import annotations

import contextlib
import hashlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from settee.base.errors import DeliveryError, OutputMissing, WorkflowRejected
from settee.base.job import Artifact
from settee.client.job_outputs import outputs_of
from settee.client.targets import Answer, Status, comfy_job
from settee.client.targets.comfy_api import File
from settee.comfyui.history import failure_of, mapping
from settee.comfyui.http_api import HttpApi, Reply, Request
from settee.comfyui.isolation import SALT_INPUT
from settee.comfyui.node_registry import UNKNOWN, NodeRegistry
from settee.comfyui.outputs import Collector, Ended
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


def graph(entry: dict[str, Any]) -> dict[str, Any]:
    prompt = entry.get("prompt")
    return comfy_job.read_back(prompt if isinstance(prompt, list) else [])[0].workflow


def failure(entry: dict[str, Any]) -> Answer | None:
    error = failure_of(mapping(entry.get("status")), graph(entry), UNKNOWN, {}, is_freed=False)
    return None if error is None else comfy_job.failed("j", error)


def artifacts(entry: dict[str, Any]) -> tuple[list[Artifact], list[str]]:
    return Collector(Ended(outputs=[mapping(entry.get("outputs"))]), graph(entry), UNKNOWN).collect(False)


def result(entry: dict[str, Any]) -> dict[str, Any]:
    made, warnings = artifacts(entry)
    took_ms = comfy_job.execution_ms(mapping(entry.get("status")))
    return comfy_job.output(made, lambda place: File(f"http://c/{place[2]}", 1), took_ms, warnings)


def test_recorded_failures_name_the_node_and_no_path() -> None:
    failed = [answer for answer in map(failure, entries("execution_errors")) if answer is not None]
    assert {answer.code for answer in failed} >= {"execution_failed"}
    assert all(answer.status is Status.FAILED and (answer.error or "").startswith("node ") for answer in failed)
    assert "/ComfyUI/" not in json.dumps([answer.details for answer in failed])
    assert any("cannot identify image file 'corrupt.png'" in (answer.error or "") for answer in failed)


def test_recorded_outputs() -> None:
    for name in ("success_simple", "batch_outputs"):
        for data in entries(name):
            assert failure(data) is None
            output = result(data)
            assert output["timings"]["execution"] >= 0
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
    made, warnings = artifacts({"outputs": outputs})
    assert [(each.comfy_subfolder, each.filename, each.node_id) for each in made if each.content is None] == [
        ("", "b.gif", "9"),
        ("v/sub", "a.mp4", "10"),
        ("3d", "c.glb", "57:8"),
        ("", "d.flac", "57:8"),
    ]
    words = [(each.node_id, each.content) for each in made if each.content is not None]
    assert words == [("57:8", b"camera.json")], "no file of a 3D preview's, so a word"
    assert warnings == []
    output = result({"outputs": outputs})
    assert {kind: len(output[kind]) for kind in ("images", "videos", "models_3d", "audio")} == {
        "images": 1,
        "videos": 1,
        "models_3d": 1,
        "audio": 1,
    }


def test_size_and_hash_of_a_text_are_those_of_what_is_returned() -> None:
    [text] = result({"outputs": {"9": {"text": ["half a \ud800 pair"]}}})["texts"]
    content = text["data"].encode()
    assert (text["size"], text["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())


def test_answers_of_another_shape_are_waited_for_no_longer_than_none() -> None:
    class Odd(HttpApi):
        def ask(self, request: Request) -> Reply:
            return Reply(400, {"error": "no", "node_errors": []}) if request.once else Reply(200, {"p": {}})

        def misshapen(self) -> Exception:
            return AssertionError()

    assert Odd().history("p") is None, "it was neither an end nor an absence, for ever"
    with pytest.raises(WorkflowRejected) as refused:
        Odd().submit({}, "p", "c", {}, 1.0)
    assert comfy_job.refusal(refused.value, {}, UNKNOWN).message == "ComfyUI refuses the workflow: refused by ComfyUI"
    ended = Ended()
    ended.refuse({"1": {"errors": None, "dependent_outputs": None}}, {}, UNKNOWN)
    assert ended.refused == {"1"}


def test_files_that_are_not_there_are_told_of() -> None:
    made, _ = artifacts({"outputs": {"9": {"images": [{"filename": name} for name in ("a.png", "b.png", "c.png")]}}})
    with pytest.raises(OutputMissing, match=r"does not have: b\.png \(node 9\), c\.png \(node 9\);"):
        comfy_job.output(made, lambda place: File("http://c/a", None) if place[2] == "a.png" else None, None, ())


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
    failure(data)
    with contextlib.suppress(OutputMissing, DeliveryError):
        outputs_of(result(data))


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
            error = WorkflowRejected(details={name: body[name] for name in ("error", "node_errors")})
            lines.append(comfy_job.refusal(error, whole, NodeRegistry(info)).message)
    assert len(lines) > 8
    assert all(line.startswith("ComfyUI refuses the workflow:") and len(line) > 35 for line in lines)
    assert any("nope.safetensors" in line for line in lines)
