"""What a caller finds in a picture is the workflow that was sent."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from settee.comfyui.isolation import blanked, isolate, restore
from settee.comfyui.node_registry import NodeRegistry

REGISTRY = {
    "SaveImage": {"output_node": True, "python_module": "nodes"},
    "Other": {"output_node": True},
    "Hidden": {"output_node": True, "input": {"hidden": {"unique_id": "UNIQUE_ID"}}},
}
GRAPHS: list[dict[str, Any]] = [
    {"2": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": 'a/ü " b'}}},
    {"2": {"class_type": "Other", "inputs": {"images": ["1", 0]}}, "3": {"class_type": "Other", "inputs": {}}},
    {"2": {"class_type": "Hidden", "inputs": {"images": ["1", 0]}}, "3": {"class_type": "Hidden", "inputs": {}}},
]


@pytest.mark.parametrize("graph", GRAPHS)
def test_the_text_is_json_of_the_graph_again(graph: dict[str, Any]) -> None:
    written = json.dumps(isolate(graph, NodeRegistry(REGISTRY), "settee-0a1b")).encode()
    restored = blanked(written, "settee-0a1b")
    assert len(restored) == len(written)
    assert json.loads(restored) == graph
    assert b"settee" not in restored


def test_another_jobs_prefix_stays() -> None:
    assert blanked(b'{"x": "settee-other/a"}', "settee-mine") == b'{"x": "settee-other/a"}'


@pytest.mark.parametrize("suffix", ["png", "webp"])
@pytest.mark.parametrize("text", ["plain", "ünï 猫"])
def test_files_stay_whole(tmp_path: Path, suffix: str, text: str) -> None:
    graph = {"2": {"class_type": "SaveImage", "inputs": {"filename_prefix": "made", "text": text}}}
    prompt = json.dumps(isolate(graph, NodeRegistry(REGISTRY), "settee-1"), ensure_ascii=False)
    path = tmp_path / f"x.{suffix}"
    image = Image.radial_gradient("L").convert("RGB")
    if suffix == "png":
        info = PngInfo()
        info.add_text("prompt", prompt)
        image.save(path, pnginfo=info)
    else:
        exif = image.getexif()
        exif[0x0110] = f"prompt:{json.dumps(json.loads(prompt))}"
        image.save(path, exif=exif, lossless=True)
    size = path.stat().st_size
    assert restore(path, "settee-1")
    assert path.stat().st_size == size
    with Image.open(path) as opened:
        opened.load()  # checks every CRC
        assert opened.convert("RGB").tobytes() == image.tobytes()
        found = opened.info["prompt"] if suffix == "png" else opened.getexif()[0x0110].removeprefix("prompt:")
    assert json.loads(found) == graph
    assert not restore(path, "settee-1")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\x89PNG\r\n\x1a\n",
        b"\x89PNG\r\n\x1a\n\xff\xff\xff\xfftEXtprompt",
        b"RIFF\0\0\0\0WEBPEXIF\xff\xff\xff\xff",
        b"text",
    ],
)
def test_what_is_no_picture_is_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.png"
    path.write_bytes(content)
    assert not restore(path, "settee-1")
    assert path.read_bytes() == content
