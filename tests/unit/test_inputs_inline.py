"""Input files whose data is in the request: its spellings, their names, and what is wrong with them."""

from __future__ import annotations

import base64
import hashlib
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st

from settee.base import json_io
from settee.base.errors import JobCanceled, JobTimeout, PayloadTooLarge, UnsafePath
from settee.base.json_io import decode_base64
from tests.support.staging import PNG, PNG64, Stage

# --- inline data -----------------------------------------------------------------------------------------

RAW = bytes(range(256)) * 5 + b"\xfb\xff\xfe"
B64 = base64.b64encode(RAW).decode()


@pytest.mark.parametrize(
    "data",
    [
        B64,
        B64.rstrip("="),
        base64.urlsafe_b64encode(RAW).decode(),
        base64.urlsafe_b64encode(RAW).decode().rstrip("="),
        base64.encodebytes(RAW).decode(),
        base64.encodebytes(RAW).decode().replace("\n", "\r\n"),
        f"  \n{B64}\t \n",
        f"data:application/octet-stream;base64,{B64}",
        f"data:;base64,{B64}",
        f"DATA:image/png;name=a;BASE64,{B64}",
        "data:a/b;base64," + B64.replace("+", "%2B").replace("=", "%3d").replace("/", "%2F"),
        "data:application/octet-stream," + "".join(f"%{byte:02x}" for byte in RAW),
        f" data:;base64,{B64}",
    ],
)
def test_data_in_every_accepted_spelling(put: Stage, data: str) -> None:
    assert put.bytes_of(data) == RAW


@pytest.mark.parametrize("size", range(9))
@pytest.mark.parametrize("strip", [True, False])
def test_every_length(put: Stage, size: int, strip: bool) -> None:
    text = base64.b64encode(RAW[:size]).decode()
    if size:
        assert put.bytes_of(text.rstrip("=") if strip else text) == RAW[:size]


def test_text_in_a_data_uri(put: Stage) -> None:
    assert put.bytes_of("data:,a%20b+cü") == "a b+cü".encode()
    assert put({"empty.txt": "data:,"})["empty.txt"].size == 0


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("", "no data"),
        (" \n\t", "no data"),
        ("photo.png", "'.' at character 5"),
        ("AAAA\u00e9AAA", "'\\xe9' at character 4"),
        ("AAAA\ud800AA", "'\\ud800' at character 4"),
        ("AAAAA", "one character is too many or missing"),
        ("AA==AA==", "'=' at character 2"),
        ("A===", "'='"),
        ("====", "'='"),
        ("AAAA\0", "'\\x00' at character 4"),
        ("data:image/png;base64,AAA!", "'!' at character 25"),
        ("data:image/png;base64", "neither base64 nor an address"),
        ("data:,\ud800", "surrogate"),
        ("volume://a.png", "INPUT_VOLUME_DIR is not set"),
        ("ftp://host/file", "ftp:// addresses are not fetched"),
        ("file:///etc/passwd", "file:// addresses are not fetched"),
        ("/etc/passwd.png", "'.' at character 11"),
        ("http://", "not a valid http(s) URL"),
        ("http:///path", "not a valid http(s) URL"),
        ("http://[::1", "URL"),
        ("https://ho st/", "not a valid http(s) URL"),
        ("http://host/" + "a" * 20_000, "too long"),
        ("s3://bucket", "s3://bucket/key"),
        ("s3:///key", "s3://bucket/key"),
        ("s3://bucket/key", "set BUCKET_ENDPOINT_URL"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_bad_data_is_told_with_its_place(put: Stage, data: str, says: str) -> None:
    error = put.refused({"bad.bin": data})
    assert says in error.message
    assert "'bad.bin'" in error.message
    assert len(error.message) < 400


def test_a_mistake_far_into_large_data_is_found_at_its_place(put: Stage) -> None:
    data = list("QUJD" * 1_000_000)
    data[3_333_333] = "*"
    assert "'*' at character 3333333" in put.refused({"bad.bin": "".join(data)}).message
    data[3_333_333] = "="
    assert "'=' at character 3333333" in put.refused({"bad.bin": "".join(data)}).message


@examples(max_examples=300, derandomize=True)
@given(raw=st.binary(max_size=200), wrap=st.integers(1, 80), step=st.sampled_from([4, 8, 64]), url_safe=st.booleans())
def test_base64_in_pieces_of_any_size(raw: bytes, wrap: int, step: int, url_safe: bool) -> None:
    """The pieces of large data meet white space, padding and both alphabets at any place."""
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(raw).decode()
    wrapped = "\n".join(text[start : start + wrap] for start in range(0, len(text), wrap))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_io, "STEP", step)
        assert b"".join(decode_base64(wrapped, 0)) == raw
        assert b"".join(decode_base64("xx" + text.rstrip("="), 2)) == raw


@examples(max_examples=500, derandomize=True)
@given(text=st.text(alphabet="AQgw+/-_=\n !é", max_size=24), step=st.sampled_from([4, 8]))
def test_base64_is_decoded_as_the_standard_library_does_or_refused(text: str, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(json_io, "STEP", step)
        try:
            raw = b"".join(decode_base64(text, 0))
        except ValueError as error:
            assert "character" in str(error)  # noqa: PT017 - both ends are right
            return
    plain = "".join(text.split()).rstrip("=")
    assert base64.urlsafe_b64decode(plain.replace("+", "-").replace("/", "_") + "=" * (-len(plain) % 4)) == raw


def test_large_data_is_never_held_decoded(put: Stage) -> None:
    text = "QUJD" * 4_000_000
    tracemalloc.start()
    try:
        put({"large.bin": text})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (put.workspace.folders.input / "large.bin").stat().st_size == 12_000_000
    assert peak < 8 << 20


def test_the_size_limit(put: Stage) -> None:
    put.settings["max_file_mb"] = 0.001
    assert isinstance(put.refused({"bad.bin": B64}, kind=PayloadTooLarge), PayloadTooLarge)
    assert "MAX_FILE_MB" in put.refused({"bad.txt": "data:," + "a" * 2000}, kind=PayloadTooLarge).message


# --- names and problems ----------------------------------------------------------------------------------


def test_files_first_then_images_and_progress(put: Stage) -> None:
    staged = put({"a/b.bin": "QUJD", "notes.txt": "data:,hi"}, {"a/c.png": PNG64})
    assert list(staged) == ["a/b.bin", "notes.txt", "a/c.png"]
    picture = staged["a/c.png"]
    assert (picture.name, picture.path) == ("a/c.png", put.workspace.folders.input / "a/c.png")
    assert (picture.size, picture.sha256) == (len(PNG), hashlib.sha256(PNG).hexdigest())
    assert put.done == [(1, 3), (2, 3), (3, 3)]


def test_no_files_at_all(put: Stage) -> None:
    assert put() == {}


def test_all_bad_names_at_once_and_nothing_written(put: Stage) -> None:
    error = put.refused({"../up": "QUJD", "fine": "QUJD"}, {"/abs.png": PNG64, "nul": "???"}, kind=UnsafePath)
    assert error.code == "unsafe_path"
    problems = error.details["problems"]
    assert [(problem["path"], problem["code"]) for problem in problems] == [("images", "unsafe_path")] * 3
    assert "'../up'" in error.message
    assert list(put.workspace.folders.input.iterdir()) == []


def test_a_name_given_twice(put: Stage) -> None:
    """Also in another Unicode spelling, and once in files and once in images."""
    error = put.refused({"a.png": "QUJD", "\u00e9.png": PNG64}, {"a.png": PNG64, "e\u0301.png": PNG64})
    assert [problem["problem"].count("given twice") for problem in error.details["problems"]] == [1, 1]


def test_a_file_that_is_the_folder_of_another(put: Stage) -> None:
    error = put.refused({"a": "QUJD", "a/b/c": "QUJD", "d": "QUJD"})
    assert "cannot also be a folder" in error.message
    assert list(put.workspace.folders.input.iterdir()) == []


def test_all_broken_data_at_once(put: Stage) -> None:
    error = put.refused(
        {"bad1": "*", "good": "QUJD", "bad2": "ftp://x/"}, {"bad3.png": base64.b64encode(PNG[:60]).decode()}
    )
    assert [problem["path"] for problem in error.details["problems"]] == ["'bad1'", "'bad2'", "'bad3.png'"]
    assert "truncated" in error.details["problems"][2]["problem"]


def test_files_that_load_image_would_read_are_checked_too(put: Stage) -> None:
    half = base64.b64encode(PNG[: len(PNG) // 2]).decode()
    assert "truncated" in put.refused({"bad.png": half}).message
    assert put({"mask.png": PNG64})["mask.png"].size == len(PNG)
    # No image by its bytes: none of LoadImage's business.
    assert put({"latent.png": "QUJD"})["latent.png"].size == 3
    assert "truncated" in put.refused({"half.bin": half}).message


def test_pixels(put: Stage) -> None:
    put.settings["max_pixels"] = 63
    error = put.refused({}, {"bad.png": PNG64}, kind=PayloadTooLarge)
    assert "MAX_PIXELS" in error.message


def test_the_job_can_be_over_before_it_begins(put: Stage) -> None:
    put.seconds = -1
    put.refused({"a": "QUJD"}, kind=JobTimeout)
    put.seconds = 10
    put.cancel.set()
    put.refused({"a": "QUJD"}, kind=JobCanceled)
