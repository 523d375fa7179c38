"""Files that are models, and files that only have a model's name."""

from __future__ import annotations

import io
import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from settee.models.folder.checks import MAX_HEADER_BYTES, model_problem

WEIGHT = {"dtype": "F16", "shape": [2, 3], "data_offsets": [0, 12]}
BIAS = {"dtype": "F32", "shape": [2], "data_offsets": [12, 20]}


def safetensors(header: Any, data: int | bytes) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + (bytes(data) if isinstance(data, int) else data)


GOOD = safetensors({"__metadata__": {"format": "pt"}, "bias": BIAS, "weight": WEIGHT}, 20)


def archive() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x02}." * 200)
    return buffer.getvalue()


@pytest.fixture
def write(tmp_path: Path) -> Any:
    def write(data: bytes, name: str = "m.safetensors") -> Path:
        path = tmp_path / name
        path.write_bytes(data)
        return path

    return write


@pytest.mark.parametrize(
    "data",
    [
        GOOD,
        safetensors({}, 0),
        safetensors(b'{"a": {"dtype":"U8","shape":[],"data_offsets":[0,1]}}   ', 1),
        safetensors({"a": WEIGHT, "none": {"dtype": "F16", "shape": [0, 9], "data_offsets": [12, 12]}}, 12),
        safetensors({"a": {"dtype": "F4", "shape": [6], "data_offsets": [0, 3]}}, 3),
        safetensors({"a": {"dtype": "newer than us", "shape": [6], "data_offsets": [0, 5]}}, 5),
    ],
)
def test_whole_safetensors(write: Any, data: bytes) -> None:
    path = write(data)
    assert model_problem(path) is None


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "is empty"),
        (b"\x01\x02", "cut short"),
        (GOOD[:30], "cut short"),
        (GOOD[:-1], "1 bytes are missing"),
        (GOOD + b"\0\0", "2 bytes too many"),
        (bytes(4096), "not a header length"),
        ((MAX_HEADER_BYTES + 1).to_bytes(8, "little") + bytes(64), "not a header length"),
        (safetensors(b"not json at all", 0), "not JSON"),
        (safetensors(b"[" * 100_000, 0), "not JSON"),
        (safetensors([], 0), "not a JSON object"),
        (safetensors({"a": 3}, 0), "without a place"),
        (safetensors({"a": {**WEIGHT, "data_offsets": [0]}}, 12), "without a place"),
        (safetensors({"a": {**WEIGHT, "data_offsets": [0, "12"]}}, 12), "without a place"),
        (safetensors({"a": WEIGHT, "b": {**BIAS, "data_offsets": [13, 21]}}, 20), "1 bytes are missing"),
    ],
)
def test_damaged_safetensors(write: Any, data: bytes, said: str) -> None:
    path = write(data)
    assert said in str(model_problem(path))


@given(cut=st.integers(0, len(GOOD) - 1))
@settings(max_examples=60)
def test_every_cut_is_noticed(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    path = tmp_path_factory.getbasetemp() / "cut.safetensors"
    path.write_bytes(GOOD[:cut])
    assert model_problem(path)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("m.gguf", b"GGUF\x03\0\0\0" + bytes(64)),
        ("m.pt", archive()),
        ("m.CKPT", archive()),
        ("m.pth", pickle.dumps({"a": 1}, protocol=2)),
        ("m.bin", os.urandom(64)),
        ("m.onnx", b"\x08\x07" + bytes(64)),
        ("config.json", b'{"error": "a file may well be named so"}'),
        ("vocab.txt", b"<html> is a token"),
        ("tokenizer.model", b"\n\x0e\n\x05<unk>"),
        ("m.bin", b"{" + os.urandom(64)),
    ],
)
def test_other_kinds_of_models(write: Any, name: str, data: bytes) -> None:
    assert model_problem(write(data, name)) is None


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("m.gguf", GOOD, "not a GGUF"),
        ("m.pt", GOOD, "not a PyTorch"),
        ("m.ckpt", archive()[:-40], "cut short"),
        ("m.pth", archive()[:100], "cut short"),
        ("m.bin", b"", "is empty"),
        ("config.json", b"", "is empty"),
        ("m.pt", b"\n <!DOCTYPE html><html>Log in", "web page"),
        ("m.bin", b"\xef\xbb\xbf<html>", "web page"),
        ("m.gguf", b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', "XML answer"),
        ("m.onnx", b'{"error": "Repository not found"}', "JSON text"),
        ("m.safetensors", b'  {"message": "rate limit"}', "JSON text"),
        ("m.pt", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-lfs pointer"),
        ("config.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n", "git-lfs pointer"),
    ],
)
def test_what_is_no_model_says_what_it_is(write: Any, name: str, data: bytes, said: str) -> None:
    assert said in str(model_problem(write(data, name)))


def test_a_part_is_checked_under_its_own_name(write: Any) -> None:
    path = write(GOOD[:-1], "m.safetensors.part")
    assert model_problem(path) is None
    assert "missing" in str(model_problem(path, "m.safetensors"))


def test_what_cannot_be_read_does_not_raise_or_block(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.safetensors")
    assert "cannot be read" in str(model_problem(tmp_path / "absent.safetensors"))
    assert "cannot be read (not a regular file)" in str(model_problem(tmp_path / "pipe.safetensors"))
    assert "cannot be read" in str(model_problem(tmp_path))


def test_only_the_header_is_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    path.write_bytes(safetensors({"a": {"dtype": "U8", "shape": [1 << 40], "data_offsets": [0, 1 << 40]}}, 0))
    begin = path.stat().st_size
    os.truncate(path, begin + (1 << 40))
    assert model_problem(path) is None
