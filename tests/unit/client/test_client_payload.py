"""The request is what the worker reads, fits what the target takes, and is refused before anything is sent if not."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from settee.base.json_io import decode_base64
from settee.base.sealing import Sealer as WorkersSealer
from settee.base.sealing import generate_key
from settee.base.settings import Settings
from settee.client import Endpoint, Environment, Prepared
from settee.client.client_errors import NetworkError, UsageError
from settee.client.inject import InputFile
from settee.client.payload import Request, _Part
from settee.client.sealed_jobs import Sealer
from settee.doors.runpod import render
from settee.engine import request

GRAPH: dict[str, Any] = {"1": {"class_type": "LoadImage", "inputs": {"image": "1_a.png"}, "_meta": {"title": "Grün"}}}


class Shelf:
    """Takes files as an Uploader does, and keeps them; ``full`` makes it fail at that many."""

    def __init__(self, full: int = 99) -> None:
        self.kept: dict[str, bytes] = {}
        self.removed = False
        self.full = full

    def put(self, name: str, content: Path | bytes) -> str:
        if len(self.kept) == self.full:
            raise NetworkError("S3 cannot be reached")
        self.kept[name] = content if isinstance(content, bytes) else content.read_bytes()
        return f"https://bucket.example/{name}?X-Amz-Signature={'0' * 400}&x=1"

    def remove(self) -> list[str]:
        self.removed = True
        return []


def file(path: Path, size: int = 100, kind: str = "image", name: str | None = None) -> InputFile:
    path.write_bytes(os.urandom(size))
    return InputFile(name or f"1_{path.name}", path, kind)


def build(files: list[InputFile], **how: Any) -> dict[str, Any]:
    return Request(GRAPH, files, **how).build()


def measured(built: dict[str, Any]) -> int:
    return len(json.dumps(built))


# --- what it says ------------------------------------------------------------------------------------


def test_a_workflow_alone() -> None:
    assert build([]) == {"input": {"workflow": GRAPH}}


def test_each_kind_of_file_is_where_the_worker_looks_for_it(tmp_path: Path) -> None:
    files = [
        file(tmp_path / "a.png", 1000),
        file(tmp_path / "m.png", 1001, "mask", "2_m.png"),
        file(tmp_path / "v.mp4", 1002, "video"),
        file(tmp_path / "s.wav", 0, "audio"),
    ]
    job = request.parse(build(files)["input"], Settings())
    assert [item.name for item in job.images] == ["1_a.png", "2_m.png"]
    assert [item.name for item in job.files] == ["1_v.mp4", "1_s.wav"]
    for item, given in zip((*job.images, *job.files), files, strict=True):
        assert b"".join(decode_base64(item.data, 0)) == given.path.read_bytes()


@pytest.mark.parametrize("size", [1, 2, 3, (3 << 17) - 1, 3 << 17, (3 << 17) + 1, 1_000_000])
def test_base64_in_pieces_is_base64(tmp_path: Path, size: int) -> None:
    given = file(tmp_path / "a.png", size)
    data = build([given])["input"]["images"][0]["image"]
    assert data == base64.b64encode(given.path.read_bytes()).decode()


def test_options_are_the_workers() -> None:
    options = {
        "delivery": {"mode": "base64"},
        "timeout_s": 5.0,
        "models": ["a/b:c.safetensors:loras"],
        "debug": False,
        "allow_partial": True,
        "comfy_org_api_key": "k",
        "extra_data": None,
    }
    built = build([], options=options)["input"]
    assert "extra_data" not in built
    job = request.parse(built, Settings())
    assert (job.timeout_s, job.allow_partial, job.debug, job.delivery.mode) == (5.0, True, False, "base64")


def test_an_option_that_json_cannot_express() -> None:
    with pytest.raises(UsageError, match="NaN"):
        build([], options={"timeout_s": float("inf")})


# --- what it may weigh -------------------------------------------------------------------------------


@pytest.mark.parametrize("seal", [None, Sealer(generate_key())])
def test_the_cap_is_meant_to_the_byte(tmp_path: Path, seal: Sealer | None) -> None:
    files = [file(tmp_path / "a.png", 5000), file(tmp_path / "ü.wav", 3001, "audio", '2_"ü.wav')]
    exact = measured(build(files, seal=seal))
    assert measured(build(files, cap=exact, seal=seal)) == exact
    Request(GRAPH, files, cap=exact, seal=seal).check()
    for attempt in (Request.build, Request.check):
        with pytest.raises(UsageError):
            attempt(Request(GRAPH, files, cap=exact - 1, seal=seal))


def test_too_large_says_sizes_and_ways_out(tmp_path: Path) -> None:
    files = [file(tmp_path / "small.png", 60_000), file(tmp_path / "large.png", 3_000_000)]
    with pytest.raises(UsageError) as error:
        build(files, cap=2_000_000)
    lines = error.value.message.splitlines()
    assert lines[0] == "the request would be 4.1 MB, and the target accepts at most 2.0 MB:"
    assert lines[1] == f"  {tmp_path / 'large.png'}: 3.0 MB, 4.0 MB as base64"
    assert "small.png: 0.1 MB" in lines[2]
    assert "--max-side" in lines[3]
    assert "--jpeg" in lines[3]
    assert "set BUCKET_ENDPOINT_URL" in lines[3]


def test_too_large_without_a_picture_or_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        build([file(tmp_path / "a.wav", 3000, "audio")], cap=2000)
    assert "--jpeg" not in error.value.message
    assert "BUCKET_ENDPOINT_URL" in error.value.message
    with pytest.raises(UsageError, match="make the workflow smaller"):
        build([], cap=50)
    with pytest.raises(UsageError, match="and 5 more"):
        build([file(tmp_path / f"{i}.png", 900) for i in range(15)], cap=1000)


def test_a_sealed_request_that_is_too_large_goes_nowhere_unsealed(tmp_path: Path) -> None:
    shelf = Shelf()
    with pytest.raises(UsageError, match="where they would be unsealed"):
        build([file(tmp_path / "a.png", 9000)], cap=9000, upload=shelf, seal=Sealer(generate_key()))
    assert not shelf.kept


# --- by S3 -------------------------------------------------------------------------------------------


def test_only_the_largest_files_are_uploaded_and_only_as_many_as_must_be(tmp_path: Path) -> None:
    files = [file(tmp_path / f"{size}.png", size) for size in (20_000, 90_000, 5_000, 60_000)]
    shelf = Shelf()
    built = build(files, cap=130_000, upload=shelf)
    assert measured(built) <= 130_000
    assert shelf.kept == {"1_90000.png": files[1].path.read_bytes()}
    images = built["input"]["images"]
    assert [item["name"] for item in images] == [item.name for item in files]
    assert images[1]["image"].startswith("https://bucket.example/1_90000.png?")
    assert base64.b64decode(images[3]["image"]) == files[3].path.read_bytes()
    assert not shelf.removed


def test_nothing_is_uploaded_that_fits(tmp_path: Path) -> None:
    shelf = Shelf()
    build([file(tmp_path / "a.png", 9000)], cap=20_000, upload=shelf)
    build([file(tmp_path / "a.png", 9000)], cap=None, upload=shelf)
    assert not shelf.kept


def test_a_smaller_picture_is_what_is_uploaded(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((400, 400), 90).save(path)
    shelf = Shelf()
    build([InputFile("1_a.png", path, "image")], cap=5000, max_side=200, upload=shelf)
    (content,) = shelf.kept.values()
    assert len(content) < path.stat().st_size


def test_nothing_is_uploaded_when_that_would_not_be_enough(tmp_path: Path) -> None:
    shelf = Shelf()
    with pytest.raises(UsageError, match="would be"):
        build([file(tmp_path / f"{i}.png", 4000) for i in range(9)], cap=10_000, upload=shelf)
    assert not shelf.kept


def test_what_was_uploaded_is_removed_when_the_next_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shelf = Shelf(full=1)
    files = tuple(file(tmp_path / f"{i}.png", 9000) for i in range(3))
    with Endpoint("http://127.0.0.1:1", environment=Environment()) as endpoint:
        monkeypatch.setattr(endpoint, "_uploader", lambda stop: shelf)
        monkeypatch.setattr(endpoint.target, "request_cap", 9000)
        with pytest.raises(NetworkError):
            endpoint.send(Prepared(GRAPH, files=files))
    assert len(shelf.kept) == 1
    assert shelf.removed


# --- smaller pictures --------------------------------------------------------------------------------


def test_pictures_and_masks_are_made_smaller_and_films_not(tmp_path: Path) -> None:
    noise = Image.effect_noise((400, 300), 90)
    for name in ("a.png", "m.png", "v.png"):
        noise.save(tmp_path / name)
    files = [InputFile(f"1_{kind}", tmp_path / f"{kind[0]}.png", kind) for kind in ("mask", "video")]
    files.insert(0, InputFile("1_a.png", tmp_path / "a.png", "image"))
    built = build(files, max_side=100, jpeg=50)["input"]
    (tmp_path / "sent").write_bytes(base64.b64decode(built["images"][0]["image"]))
    with Image.open(tmp_path / "sent") as image:
        assert (image.format, image.size) == ("JPEG", (100, 75))
    (tmp_path / "sent").write_bytes(base64.b64decode(built["images"][1]["image"]))
    with Image.open(tmp_path / "sent") as image:
        assert (image.format, image.size) == ("PNG", (100, 75)), "a mask is scaled with its picture, without loss"
    assert base64.b64decode(built["files"][0]["data"]) == (tmp_path / "v.png").read_bytes()


# --- sealed ------------------------------------------------------------------------------------------


def test_a_sealed_job_is_the_same_job_to_the_worker(tmp_path: Path) -> None:
    files = [
        file(tmp_path / "a.png", 700_000),
        file(tmp_path / "b.png", 10, "mask", 'ü"\\b.png'),
        file(tmp_path / "s.wav", 1000, "audio"),
    ]
    key = generate_key()
    options = {"timeout_s": 3}
    built = build(files, options=options, seal=Sealer(key))["input"]
    assert render.is_sealed(built)
    assert set(built) == {"encrypted_input", "is_encrypted"}
    opened = render.opened(built, WorkersSealer(key))
    assert opened == build(files, options=options)["input"]
    assert list(opened) == ["workflow", "timeout_s", "images", "files"]
    assert render.opened(build([], seal=Sealer(key))["input"], WorkersSealer(key)) == {"workflow": GRAPH}


# --- files that are not what they seemed -------------------------------------------------------------


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    with pytest.raises(UsageError) as error:
        build([InputFile("1_a.png", tmp_path / "a.png", "image")])
    assert error.value.message == f"{tmp_path / 'a.png'} cannot be read: No such file or directory"


def test_a_file_that_grows_while_it_is_read(tmp_path: Path) -> None:
    """Its last bytes come when its first have been read."""
    given = file(tmp_path / "a.wav", (3 << 17) + 5, "audio")
    pieces = _Part(given, given.path.stat().st_size).pieces()
    next(pieces)
    with given.path.open("ab") as more:
        more.write(b"more")
    with pytest.raises(UsageError, match="changed while it was read"):
        list(pieces)


# --- memory ------------------------------------------------------------------------------------------

_MEASURE = """
import sys
from pathlib import Path
from settee.client.inject import InputFile
from settee.client.payload import Request
from settee.base.sealing import generate_key
from settee.client.sealed_jobs import Sealer
from tests.support.memory import reset_peak, resident
seal = Sealer(generate_key()) if sys.argv[2] == "sealed" else None
files = [InputFile("1_a.bin", Path(sys.argv[1]), "video")]
Request({}, [], seal=seal).build()
before = reset_peak()
built = Request({}, files, cap=10**9, seal=seal).build()
print(resident("VmHWM") - before)
"""


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize(("how", "factor"), [("plain", 4 / 3), ("sealed", 16 / 9)])
def test_a_large_file_is_held_once(tmp_path: Path, how: str, factor: float) -> None:
    """As its base64, or its token; beside it there is room for the pieces only."""
    path = tmp_path / "a.bin"
    size = 48_000_000
    with path.open("wb") as large:
        large.truncate(size)
    done = subprocess.run(
        [sys.executable, "-c", _MEASURE, str(path), how],
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    assert int(done.stdout) < size * factor + 16_000_000
