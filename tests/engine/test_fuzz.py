"""Hundreds of malformed jobs: each ends in one clear error or a result, and leaves nothing behind."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from settee.base.errors import SetteeError
from tests.support.rig import EXTERNAL, Rig, b64, empty, files_below, png

NAMES = st.sampled_from(
    ["a.png", "sub/a.png", "../evil.png", "/etc/evil", "a\0b", "..", ".", "", "CON", "a" * 300, "x\\y.png", "猫.png"]
) | st.text(max_size=12)
DATA = st.sampled_from(
    [
        b64(png()),
        b64(png())[:40],
        b64(png()[:60]),
        "not base64 ?",
        "",
        "data:image/png;base64,",
        "file:///etc/passwd",
        "http://127.0.0.1:1/x.png",
        "http://169.254.169.254/latest",
        "s3://bucket/key",
        "ftp://example.com/x",
    ]
)
VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["/etc/passwd", "../../x", "a.png [output]", "nearest-exact", "\ud800", 2**64, -(2**70)]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=5,
)
LINKS = st.tuples(st.sampled_from(["1", "2", "9", "57:8", "nope"]), st.sampled_from([0, 1, -1, 7, 0.0])).map(list)
INPUTS = st.dictionaries(
    st.sampled_from(
        ["image", "images", "width", "height", "batch_size", "color", "filename_prefix", "upscale_method", "?"]
    ),
    VALUES | LINKS,
    max_size=5,
)
CLASSES = st.sampled_from(
    [
        "EmptyImage",
        "LoadImage",
        "ImageScale",
        "ImageInvert",
        "SaveImage",
        "PreviewImage",
        "PreviewAny",
        "Nothing",
        "",
        "猫",
    ]
)
NODES = st.fixed_dictionaries({"class_type": CLASSES, "inputs": INPUTS}) | VALUES
GRAPHS = st.dictionaries(st.sampled_from(["1", "2", "9", "57:8", "é", "", "a/b"]), NODES, max_size=5)


@st.composite
def changed(draw: st.DrawFn) -> dict[str, Any]:
    """A good graph with one or two things wrong."""
    graph: dict[str, Any] = empty(draw(st.integers(0, 2**24 - 1)))
    for _ in range(draw(st.integers(1, 2))):
        node = graph[draw(st.sampled_from(sorted(graph)))]
        node["inputs"][draw(st.sampled_from([*sorted(node["inputs"]), "extra"]))] = draw(VALUES | LINKS)
    return graph


REQUESTS = st.fixed_dictionaries(
    {"workflow": changed() | GRAPHS},
    optional={
        "images": st.dictionaries(NAMES, DATA, max_size=3),
        "files": st.lists(st.fixed_dictionaries({"name": NAMES, "data": DATA}), max_size=3),
        "delivery": st.sampled_from(["base64", "s3", {"image_format": "webp", "quality": 1}, {"prefix": "../{nope}"}]),
        "extra_data": st.dictionaries(st.sampled_from(["client_id", "extra_pnginfo", "a"]), VALUES, max_size=2),
        "allow_partial": st.booleans(),
    },
)
FORBIDDEN = re.compile(r"Traceback|File \"|site-packages|/home/|/root/|/tmp/")


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("fuzz"), max_pixels=4_000_000) as rig:
        yield rig


def outside(rig: Rig) -> set[Path]:
    inside = set(rig.folders)
    return {path for path in rig.root.rglob("*") if not inside & {path, *path.parents}}


@settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(request=REQUESTS)
def test_whatever_is_asked_for(fuzzed: Rig, request: dict[str, Any]) -> None:
    before = outside(fuzzed)
    refused: SetteeError | None = None
    try:
        shown = json.dumps(fuzzed.run(request.pop("workflow"), timeout_s=20, **request).warnings)
    except SetteeError as error:
        refused, shown = error, json.dumps([error.message, error.details])
    if refused is not None:
        assert refused.code != "internal_error"
        assert refused.message
        assert "\n" not in refused.message
    assert not FORBIDDEN.search(shown), shown
    assert outside(fuzzed) == before
    assert files_below(*fuzzed.folders) == []


def test_the_next_good_job_succeeds(fuzzed: Rig) -> None:
    """Runs after the test above, on the same ComfyUI."""
    generation = fuzzed.server.generation
    assert fuzzed.run(empty(77)).outputs
    assert EXTERNAL or generation == 1, "something that was sent killed ComfyUI"
