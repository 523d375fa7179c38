"""Workflows that load pictures, and files for their loaders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import Image


def graph(**nodes: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """``n57_8=("LoadImage", {...})`` is node 57:8; titles come with ``_title``."""
    found = {}
    for name, (class_type, inputs) in nodes.items():
        inputs = dict(inputs)
        node: dict[str, Any] = {"class_type": class_type}
        if "_title" in inputs:
            node["_meta"] = {"title": inputs.pop("_title")}
        found[name[1:].replace("_", ":")] = {**node, "inputs": inputs}
    return found


def two_pictures() -> dict[str, Any]:
    """Two loaders whose ids do not sort as text, one inside a subgraph."""
    return graph(
        n57_8=("LoadImage", {"image": "b.png", "_title": "Background"}),
        n9=("LoadImage", {"image": "a.png", "_title": "Person"}),
        n100=("ImageBatch", {"image1": ["9", 0], "image2": ["57:8", 0]}),
        n101=("SaveImage", {"images": ["100", 0], "filename_prefix": "x"}),
    )


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(path)
    return path


def file_of(kind: str, folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{ {'image': 'png', 'mask': 'png', 'video': 'mp4', 'audio': 'mp3'}[kind] }"
    if kind in ("image", "mask"):
        Image.new("L", (2, 2)).save(path)
    else:
        path.write_bytes(b"not looked at")
    return path


def sent(changes: list[Any]) -> dict[str, str]:
    return {f"{change.node_id}.{change.input}": change.value for change in changes}


def inpainting(*slots: int) -> dict[str, Any]:
    used = {("pixels", "mask")[slot]: ["1", slot] for slot in slots}
    return graph(
        n1=("LoadImage", {"image": "a.png"}),
        n2=("VAEEncodeForInpaint", {**used, "vae": ["3", 2]}),
        n3=("CheckpointLoaderSimple", {"ckpt_name": "x"}),
        n4=("SaveLatent", {"samples": ["2", 0]}),
    )
