"""Images on their way out: cleaned on request, and otherwise the very bytes that ComfyUI wrote."""

from __future__ import annotations

import contextlib
import io
import os
import struct
import tempfile
import time
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from settee.base.errors import DeliveryError
from settee.comfyui.media import Unreadable
from settee.delivery.blob import Blob, Span, image_size
from settee.delivery.strip import strip
from tests.support.delivering import only
from tests.support.pictures import ICC, PROMPT, clean, comfy_png, deliver_one, exif_block, opened, picture


def same_pixels(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


# --- passed through ----------------------------------------------------------------------------------


def test_nothing_asked_nothing_changed(tmp_path: Path) -> None:
    path = comfy_png(tmp_path / "a.png")
    delivered, data = deliver_one(path)
    assert data == path.read_bytes()
    assert (only(delivered).width, only(delivered).height) == (37, 23)
    assert not clean(data)
    assert delivered.warnings == ()


@pytest.mark.parametrize(("name", "wanted"), [("a.png", "png"), ("a.jpg", "jpeg"), ("a.webp", "webp")])
def test_an_image_that_has_the_format_already_is_not_encoded_again(tmp_path: Path, name: str, wanted: str) -> None:
    path = tmp_path / name
    picture().save(path)
    delivered, data = deliver_one(path, image_format=wanted, quality=10)
    assert data == path.read_bytes()
    assert only(delivered).filename == name


def test_quality_without_a_format_that_has_one_is_not_ignored_in_silence(tmp_path: Path) -> None:
    delivered, _ = deliver_one(comfy_png(tmp_path / "a.png"), quality=50)
    assert any("quality" in warning for warning in delivered.warnings)


# --- stripped ----------------------------------------------------------------------------------------


def _with_chunk(png: bytes, kind: bytes, body: bytes) -> bytes:
    """The PNG with one more chunk before its end."""
    chunk = struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
    return png[:-12] + chunk + png[-12:]


def test_a_png_loses_its_texts_and_no_pixel(tmp_path: Path) -> None:
    path = comfy_png(tmp_path / "a.png", icc_profile=ICC, exif=exif_block(), dpi=(72, 72))
    # ComfyUI's SaveAnimatedPNG writes the workflow into a chunk of its own, "comf".
    path.write_bytes(_with_chunk(path.read_bytes(), b"comf", b"prompt\0" + PROMPT.encode()))
    delivered, data = deliver_one(path, strip_metadata=True)
    assert clean(data)
    image = opened(data)
    assert same_pixels(image, picture())
    assert image.info["icc_profile"] == ICC
    assert image.info["dpi"] == pytest.approx((72, 72), abs=0.1)
    assert not image.getexif()
    assert delivered.warnings == ()
    assert only(delivered).size == len(data)


def test_transparency_and_animation_survive(tmp_path: Path) -> None:
    palette = tmp_path / "p.png"
    picture().convert("P").save(palette, transparency=3)
    assert opened(deliver_one(palette, strip_metadata=True)[1]).info["transparency"] == 3
    animated = comfy_png(
        tmp_path / "a.png", picture("RGBA"), save_all=True, append_images=[picture("RGBA").rotate(180)], duration=70
    )
    data = deliver_one(animated, strip_metadata=True)[1]
    assert clean(data)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0, "icc_profile": ICC}])
def test_a_jpeg_loses_its_texts_and_no_pixel(tmp_path: Path, options: dict[str, Any]) -> None:
    path = tmp_path / "a.jpg"
    xmp = b"<x:xmpmeta>geheim</x:xmpmeta>"
    picture().save(path, exif=exif_block(), comment=b"prompt: secret", xmp=xmp, **options)
    before = opened(path.read_bytes())
    path.write_bytes(path.read_bytes() + b"appended: secret")
    _, data = deliver_one(path, strip_metadata=True)
    assert clean(data)
    after = opened(data)
    assert same_pixels(after, before)
    assert after.info.get("icc_profile") == options.get("icc_profile")
    assert not after.getexif()
    assert data.endswith(b"\xff\xd9")


def test_a_cmyk_jpeg_keeps_the_marker_that_says_its_ink_is_inverted(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    picture("CMYK").save(path, comment=b"secret")
    before = opened(path.read_bytes())
    data = deliver_one(path, strip_metadata=True)[1]
    assert clean(data)
    assert same_pixels(opened(data), before)


@pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}, {"lossless": True, "icc_profile": ICC}])
@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_a_webp_loses_its_texts_and_no_pixel(tmp_path: Path, options: dict[str, Any], mode: str) -> None:
    path = tmp_path / "a.webp"
    picture(mode).save(path, exif=exif_block(), xmp=b"<x>geheim</x>", **options)
    before = opened(path.read_bytes())
    data = deliver_one(path, strip_metadata=True)[1]
    assert clean(data)
    after = opened(data)
    assert same_pixels(after, before)
    assert after.info.get("icc_profile") == options.get("icc_profile")
    assert int.from_bytes(data[4:8], "little") == len(data) - 8


def test_an_animated_webp_keeps_its_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    picture().save(path, save_all=True, append_images=[picture().rotate(180)], exif=exif_block(), duration=50)
    data = deliver_one(path, strip_metadata=True)[1]
    assert clean(data)
    with Image.open(io.BytesIO(data)) as image:
        assert image.n_frames == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_how_the_picture_is_turned_survives_alone(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    picture().save(path, exif=exif_block(orientation=6))
    data = deliver_one(path, strip_metadata=True)[1]
    assert clean(data)
    assert dict(opened(data).getexif()) == {0x0112: 6}


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp"])
def test_a_broken_image_is_never_half_cleaned(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    picture(size=(200, 200)).save(path, exif=exif_block())
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(DeliveryError, match="cannot be removed") as error:
        deliver_one(path, strip_metadata=True)
    assert error.value.details["filename"] == name


@pytest.mark.parametrize(
    "content",
    [
        b"\x89PNG\r\n\x1a\n" + (b"\0\0\0\0tEXt\0\0\0\0") * 1_000_000,
        b"\xff\xd8\xff" + b"\xff" * 10_000_000,
        b"\xff\xd8" + b"\xff\xfe\0\x02" * 3_000_000,
        b"RIFF\0\0\0\x0fWEBP" + b"ALPH\0\0\0\0" * 1_500_000,
    ],
    ids=["png", "jpeg-fill", "jpeg-comments", "webp"],
)
def test_a_file_of_nothing_but_chunks_holds_nobody_up(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    began = time.monotonic()
    with pytest.raises(DeliveryError, match="cannot be removed"):
        deliver_one(path, strip_metadata=True)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("name", ["film.mp4", "song.flac", "a.gif", "weights.safetensors", "drawing.svg"])
def test_what_cannot_be_cleaned_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"some bytes with a prompt")
    delivered, data = deliver_one(path, strip_metadata=True)
    assert data == path.read_bytes()
    assert any(name in warning and "not removed" in warning for warning in delivered.warnings)


@pytest.mark.parametrize("name", ["notes.txt", "table.csv", "a.bmp"])
def test_what_holds_no_metadata_needs_no_warning(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(b"content")
    assert deliver_one(path, strip_metadata=True)[0].warnings == ()


@given(st.binary(max_size=300), st.integers(0, 3))
def test_no_bytes_break_the_cleaning_but_in_its_own_way(data: bytes, which: int) -> None:
    start = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"RIFF\x40\0\0\0WEBP", b"")[which]
    cleaned = None
    with contextlib.suppress(Unreadable):
        cleaned = strip(Blob(start + data))
    assert cleaned is None or cleaned.size <= len(start + data) + 64
    image_size(start + data)


def test_a_large_file_is_cleaned_without_a_copy_of_it(tmp_path: Path) -> None:
    pixels = b"IDAT" + bytes(24_000_000)
    chunk = struct.pack(">I", len(pixels) - 4) + pixels + struct.pack(">I", zlib.crc32(pixels))
    path = comfy_png(tmp_path / "a.png")
    plain = path.read_bytes()
    at = plain.index(b"IDAT") - 4
    path.write_bytes(plain[:at] + chunk + plain[at:])
    tracemalloc.start()
    try:
        cleaned = strip(Blob(fd=os.open(path, os.O_RDONLY), size=path.stat().st_size))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert cleaned is not None
    assert b"KSampler" in plain
    assert b"KSampler" not in b"".join(bytes(part) for part in cleaned.chunks())
    cleaned.close()
    assert peak < 1_000_000


# --- parts of a file ---------------------------------------------------------------------------------


@given(st.binary(max_size=60), st.integers(0, 80), st.integers(0, 80))
def test_a_part_is_what_the_file_has_there(data: bytes, position: int, length: int) -> None:
    expected = data[position : position + length]
    with tempfile.TemporaryFile() as file:
        file.write(data)
        file.flush()
        for blob in (Blob(data), Blob(fd=os.dup(file.fileno()), size=len(data))):
            assert blob.read_at(position, length) == expected
            assert b"".join(map(bytes, blob.chunks(Span(position, length)))) == expected
            blob.close()


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_the_size_in_the_header(name: str, mode: str) -> None:
    if mode == "RGBA" and not name.endswith(("png", "webp", "bmp")):
        mode = "RGB"
    for options in ({"lossless": True}, {}):
        out = io.BytesIO()
        picture(mode, (301, 17)).save(out, format={"jpg": "JPEG"}.get(name[2:], name[2:].upper()), **options)
        assert image_size(out.getvalue()) == (301, 17)
