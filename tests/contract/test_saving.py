"""What saving nodes write: names, folders, metadata, kinds."""

from __future__ import annotations

import json
import uuid
from datetime import datetime
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from tests.contract import generations, recording
from tests.contract.driver import Comfy, Graph, empty_to_save


def saved(comfy: Comfy, prefix: str, batch: int = 3) -> list[tuple[str, str]]:
    """Subfolder and file name of each picture saved under a prefix."""
    files = comfy.run(empty_to_save(prefix, batch))["outputs"]["2"]["images"]
    return [(file["subfolder"], file["filename"]) for file in files]


def test_prefixes_name_folders_and_files(comfy: Comfy) -> None:
    top = f"p{uuid.uuid4().hex[:6]}"
    year = f"{datetime.now().astimezone():%Y}"
    assert saved(comfy, f"{top}/abc/out") == [(f"{top}/abc", f"out_{n:05}_.png") for n in (1, 2, 3)]
    assert saved(comfy, f"{top}/abc/out") == [(f"{top}/abc", f"out_{n:05}_.png") for n in (4, 5, 6)]
    assert saved(comfy, f"{top}/%width%x%height%_%batch_num%") == [
        (top, f"64x64_{n}_{n + 1:05}_.png") for n in range(3)
    ]
    assert saved(comfy, f"{top}/%year%-x", 1) == [(top, f"{year}-x_00001_.png")]
    assert saved(comfy, f"{top}/a b/ünï", 1) == [(f"{top}/a b", "ünï_00001_.png")]


def test_a_trailing_slash_starts_at_one_again(comfy: Comfy) -> None:
    """As recorded: jobs/dir/ saves jobs/dir_00001_.png every time, over the one before."""
    top = f"p{uuid.uuid4().hex[:6]}"
    assert saved(comfy, f"{top}/dir/", 1) == saved(comfy, f"{top}/dir/", 1) == [(top, "dir_00001_.png")]


def test_extra_data_goes_to_history_and_files(comfy: Comfy) -> None:
    submitted = next(e for e in recording.http_events("extra_data") if e["path"] == "/prompt")["request_body"]
    graph = empty_to_save()
    entry = comfy.run(graph, extra_data=submitted["extra_data"], client_id="me", unknown_top_level=5)
    extra = submitted["extra_data"]
    assert recording.brought(entry["prompt"][3]) == {
        "extra_pnginfo": extra["extra_pnginfo"],
        "my_key": extra["my_key"],
        "client_id": "me",
    }
    with Image.open(BytesIO(comfy.view(entry["outputs"]["2"]["images"][0]))) as image:
        texts = {key: json.loads(text) for key, text in image.text.items()}  # type: ignore[attr-defined]
    assert texts == {"prompt": graph, "workflow": extra["extra_pnginfo"]["workflow"]}


def test_a_client_id_in_extra_data_counts(comfy: Comfy) -> None:
    listener = comfy.listen()
    prompt_id = comfy.submit(empty_to_save(), extra_data={"client_id": listener.client_id})
    listener.wait_end(prompt_id)
    assert listener.labels() == recording.labels("success_simple")


@pytest.mark.parametrize("extra_data", [[1], None])
def test_a_broken_extra_data_with_client_id_is_500(comfy: Comfy, extra_data: Any) -> None:
    body = {"prompt": empty_to_save(), "client_id": "me", "extra_data": extra_data}
    assert comfy.post("/prompt", json=body).status_code == 500


def test_the_graph_in_a_file_has_the_hash_of_its_input(comfy: Comfy) -> None:
    """is_changed is added while running: the file's metadata has it, history does not."""
    buffer = BytesIO()
    Image.new("RGB", (4, 4)).save(buffer, "PNG")
    comfy.upload("hashed.png", buffer.getvalue())
    graph = empty_to_save()
    graph["1"] = {"class_type": "LoadImage", "inputs": {"image": "hashed.png"}}
    comfy.post("/free", json={"free_memory": True})
    graph["2"]["inputs"]["filename_prefix"] = uuid.uuid4().hex
    entry = comfy.run(graph)
    assert entry["prompt"][2] == graph
    with Image.open(BytesIO(comfy.view(entry["outputs"]["2"]["images"][0]))) as image:
        (digest,) = json.loads(image.text["prompt"])["1"]["is_changed"]  # type: ignore[attr-defined]
    assert len(digest) == 64


@pytest.mark.parametrize(
    ("class_type", "inputs", "kind", "suffix"),
    [
        ("SaveAnimatedWEBP", {"lossless": False, "quality": 50, "method": "fastest"}, "WEBP", "webp"),
        ("SaveAnimatedPNG", {"compress_level": 1}, "PNG", "png"),
    ],
)
def test_animations(comfy: Comfy, class_type: str, inputs: dict[str, Any], kind: str, suffix: str) -> None:
    buffer = BytesIO()
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "green", "blue")]
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    comfy.upload("frames.webp", buffer.getvalue())
    shared = {"images": ["1", 0], "filename_prefix": uuid.uuid4().hex, "fps": 10.0}
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "frames.webp"}},
        "2": {"class_type": class_type, "inputs": {**shared, **inputs}},
    }
    shown = comfy.run(graph, extra_data={"extra_pnginfo": {"workflow": {"a": 1}}})["outputs"]["2"]
    assert shown["animated"] == [True]
    assert shown["images"][0]["filename"].endswith(f"_00001_.{suffix}")
    with Image.open(BytesIO(comfy.view(shown["images"][0]))) as image:
        assert (image.format, image.n_frames) == (kind, 3)  # type: ignore[attr-defined]
        if kind == "WEBP":
            assert image.getexif()[0x010F] == 'workflow:{"a": 1}'


def test_values_are_shown_as_text(comfy: Comfy) -> None:
    graph: Graph = {
        "1": {"class_type": "PrimitiveInt", "inputs": {"value": 7}},
        "2": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}},
        "3": {"class_type": "PreviewAny", "inputs": {"source": {"a": 1}}},
        "4": {"class_type": "PrimitiveBoolean", "inputs": {"value": True}},
        "5": {"class_type": "PreviewAny", "inputs": {"source": ["4", 0]}},
        "6": {"class_type": "PrimitiveFloat", "inputs": {"value": 1}},
        "7": {"class_type": "PreviewAny", "inputs": {"source": ["6", 0]}},
    }
    outputs = comfy.run(graph)["outputs"]
    assert outputs == {
        "2": {"text": ["7"]},
        "3": {"text": [json.dumps({"a": 1}, indent=generations.under_test().json_indent)]},
        "5": {"text": ["True"]},
        "7": {"text": ["1.0"]},
    }
