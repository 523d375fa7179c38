"""Pictures agree with those of a real server to within one step of 255."""

from __future__ import annotations

import json

import PIL
import pytest

from tests.contract.driver import Comfy
from tests.contract.record_pixels import UPLOADS, graphs, pixels
from tests.contract.recording import RECORDINGS

RECORDED = json.loads((RECORDINGS / "pixels.json").read_text(encoding="utf-8"))
GRAPHS = graphs()


@pytest.fixture
def uploaded(comfy: Comfy) -> Comfy:
    for name, data in UPLOADS.items():
        comfy.upload(name, data)
    return comfy


@pytest.mark.parametrize("name", RECORDED)
def test_a_graph_gives_the_recorded_pixels(uploaded: Comfy, name: str) -> None:
    if "lanczos" in name and int(PIL.__version__.split(".")[0]) < 13:
        pytest.skip("Pillow 12, the last for Python 3.10, weighs pixels otherwise than the Pillow of the recording")
    got, want = pixels(uploaded, GRAPHS[name]), RECORDED[name]
    assert [(p["size"], p["mode"]) for p in got] == [(p["size"], p["mode"]) for p in want]
    for mine, theirs in zip(got, want, strict=True):
        pairs = zip(bytes.fromhex(mine["bytes"]), bytes.fromhex(theirs["bytes"]), strict=True)
        assert max(abs(a - b) for a, b in pairs) <= 1


def test_every_graph_is_recorded() -> None:
    assert set(RECORDED) == set(GRAPHS)
