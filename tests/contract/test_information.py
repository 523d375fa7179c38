"""What the server says of itself and its nodes."""

from __future__ import annotations

from typing import Any

import pytest

from settee import __version__
from settee.embedded.nodes import NODES
from tests.contract import recording
from tests.contract.driver import Comfy

SHARED = sorted(recording.load("object_info"))
MODEL_FILES = {"ckpt_name", "lora_name", "vae_name"}


def without_files(info: dict[str, Any]) -> Any:
    """An entry of /object_info without prose and without the files that happen to be there."""
    info = recording.neutral(info)
    info.pop("description", None)
    info.pop("output_tooltips", None)
    info.pop("settee_stand_in", None)
    for inputs in info["input"].values():
        for name, declared in inputs.items():
            if isinstance(declared, list) and declared[1:] == [{}]:
                declared = inputs[name] = declared[:1]  # there was nothing but prose
            is_upload = isinstance(declared, list) and len(declared) == 2 and "image_upload" in declared[1]
            if is_upload or name in MODEL_FILES:
                inputs[name] = ["FILES" if isinstance(declared[0], list) else declared[0], *declared[1:]]
    return info


@pytest.mark.parametrize("name", SHARED)
def test_a_class_is_described_as_recorded(comfy: Comfy, name: str) -> None:
    got = comfy.get(f"/object_info/{name}").json()
    assert list(got) == [name]
    want = recording.load("object_info")[name]
    assert without_files(got[name]) == without_files(want)
    assert list(got[name]["input"].get("required", {})) == list(want["input"].get("required", {}))


def test_all_classes_are_comfyuis() -> None:
    assert set(NODES) <= set(recording.load("object_info", "0.33.0"))


def test_all_classes_at_once(comfy: Comfy) -> None:
    everything = comfy.get("/object_info").json()
    assert set(SHARED) <= set(everything)
    assert everything["SaveImage"] == comfy.get("/object_info/SaveImage").json()["SaveImage"]
    assert comfy.get("/object_info/NoSuch").json() == {}


def test_an_uploaded_image_becomes_a_choice(comfy: Comfy) -> None:
    comfy.upload("choice.png", b"x")
    comfy.upload("choice.txt", b"x")
    required = comfy.get("/object_info/LoadImage").json()["LoadImage"]["input"]["required"]
    assert "choice.png" in required["image"][0]
    assert "choice.txt" not in required["image"][0]


PATHS = [
    event
    for event in recording.http_events("info_endpoints")
    if event["path"].split("?")[0]
    in {
        *("/queue", "/prompt", "/features", "/embeddings", "/models", "/models/nope", "/nope", "/api/nope"),
        *("/interrupt", "/api/queue", "/health"),
    }
]


@pytest.mark.parametrize("event", PATHS, ids=[f"{e['method']} {e['path']} {e['request_headers']}" for e in PATHS])
def test_a_path_is_answered_as_recorded(comfy: Comfy, event: dict[str, Any]) -> None:
    answer = comfy.session.request(
        event["method"], comfy.url + event["path"], headers=event["request_headers"], timeout=10
    )
    assert answer.status_code == event["status"]
    body = event["response_body"]
    assert (answer.text if isinstance(body, str) else answer.json()) == body
    for name in ("Content-Type", "Allow", "Transfer-Encoding"):
        assert answer.headers.get(name) == (event["response_headers"] or {}).get(name) or not event["response_headers"]


def test_system_stats_have_the_recorded_keys(comfy: Comfy) -> None:
    want = next(e for e in recording.http_events("info_endpoints") if e["path"] == "/system_stats")["response_body"]
    got = comfy.get("/system_stats").json()
    assert set(got) == set(want)
    assert set(got["system"]) >= set(want["system"])
    assert set(got["devices"][0]) == set(want["devices"][0])
    assert comfy.get("/api/system_stats").json()["system"]["argv"] == got["system"]["argv"]


def test_the_embedded_server_says_what_it_is(comfy: Comfy) -> None:
    if comfy.is_real:
        pytest.skip("a real ComfyUI does not say so")
    system = comfy.get("/system_stats").json()["system"]
    assert (system["comfyui_version"], system["settee_embedded"]) == ("0.33.0", __version__)
    assert "--port" in system["argv"]


def test_pages_of_other_sites_are_refused(comfy: Comfy) -> None:
    assert comfy.get("/queue", headers={"Origin": "http://evil.example"}).status_code == 403
    assert comfy.get("/queue", headers={"Origin": comfy.url}).status_code == 200
    assert comfy.get("/", headers={}).status_code == 200
