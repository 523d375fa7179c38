"""Images on their way out: re-encoded or cleaned on request, and otherwise the very bytes that ComfyUI wrote."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import struct
import time
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from settee.delivery import Delivered
from settee.delivery.blob import Blob, Span
from settee.delivery.header import image_size
from settee.delivery.strip import Unreadable, strip
from settee.errors import DeliveryError
from tests.support.delivering import file_artifact, make_job, make_settings, only, run

PROMPT = json.dumps({"3": {"class_type": "KSampler", "inputs": {"text": "geheim 秘密"}}})
WORKFLOW = json.dumps({"nodes": ["secret"]})
ICC = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def picture(mode: str = "RGB", size: tuple[int, int] = (37, 23)) -> Image.Image:
    """A picture in which every pixel differs from its neighbours."""
    base = Image.linear_gradient("L").resize(size)
    channels = [base.rotate(90 * turn).resize(size) for turn in range(len(Image.new(mode, (1, 1)).getbands()))]
    return Image.merge(mode, channels)


def comfy_png(path: Path, image: Image.Image | None = None, **options: Any) -> Path:
    """A PNG with the texts that SaveImage writes."""
    info = PngInfo()
    info.add_text("prompt", PROMPT)
    info.add_text("workflow", WORKFLOW, zip=True)
    info.add_itxt("note", "geheim 秘密")
    (image or picture()).save(path, pnginfo=info, **options)
    return path


def exif_block(orientation: int | None = None) -> bytes:
    exif = Image.Exif()
    exif[0x010F] = f"workflow:{WORKFLOW}"
    exif[0x0110] = "prompt: geheim"
    if orientation:
        exif[0x0112] = orientation
    return exif.tobytes()


def deliver_one(path: Path, **delivery: Any) -> tuple[Delivered, bytes]:
    delivered = run([file_artifact(path)], make_job({"mode": "base64", **delivery}), make_settings())
    return delivered, base64.b64decode(only(delivered).data or "", validate=True)


def opened(data: bytes) -> Image.Image:
    image = Image.open(io.BytesIO(data))
    image.load()
    return image


def same_pixels(one: Image.Image, other: Image.Image) -> bool:
    return one.mode == other.mode and one.size == other.size and one.tobytes() == other.tobytes()


def clean(data: bytes) -> bool:
    """Whether nothing of the prompt can be found, in whatever encoding the file holds it."""
    inflated = b""
    position = 8
    while data.startswith(b"\x89PNG") and position < len(data):
        (length,) = struct.unpack_from(">I", data, position)
        if data[position + 4 : position + 8] == b"zTXt":
            inflated += zlib.decompress(data[position + 8 : position + 8 + length].split(b"\0\0", 1)[1])
        position += 12 + length
    words = (b"geheim", b"secret", b"KSampler", "秘密".encode(), b"workflow", b"prompt")
    return not any(word in data + inflated for word in words)


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
    assert time.monotonic() - began < 10


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
        cleaned = strip(Blob([start + data]))
    assert cleaned is None or cleaned.size <= len(start + data) + 64
    image_size(Blob([start + data]))


# --- a file in pieces --------------------------------------------------------------------------------


@given(
    st.binary(min_size=1, max_size=60),
    st.lists(st.one_of(st.binary(max_size=9), st.tuples(st.integers(0, 59), st.integers(0, 30))), max_size=6),
    st.integers(0, 80),
    st.integers(0, 80),
)
def test_pieces_read_like_their_concatenation(data: bytes, parts: list[Any], position: int, length: int) -> None:
    spans = [part if isinstance(part, bytes) else Span(min(part[0], len(data)), part[1]) for part in parts]
    spans = [
        Span(part.offset, min(part.length, len(data) - part.offset)) if isinstance(part, Span) else part
        for part in spans
    ]
    expected = b"".join(
        data[part.offset : part.offset + part.length] if isinstance(part, Span) else part for part in spans
    )
    blob = Blob([data[:7], data[7:]]).rearranged(spans)
    assert blob.size == len(expected)
    assert b"".join(bytes(chunk) for chunk in blob.chunks()) == expected
    assert blob.read_at(position, length) == expected[position : position + length]
    twice = blob.rearranged([Span(0, blob.size), b"!", Span(0, blob.size)])
    assert twice.read_at(0, twice.size) == expected + b"!" + expected


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.gif", "a.bmp"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA"])
def test_the_size_in_the_header(name: str, mode: str) -> None:
    if mode == "RGBA" and not name.endswith(("png", "webp", "bmp")):
        mode = "RGB"
    for options in ({"lossless": True}, {}):
        out = io.BytesIO()
        picture(mode, (301, 17)).save(out, format={"jpg": "JPEG"}.get(name[2:], name[2:].upper()), **options)
        assert image_size(Blob([out.getvalue()])) == (301, 17)


# --- converted ---------------------------------------------------------------------------------------


def test_png_to_webp_is_smaller_looks_the_same_and_keeps_the_workflow(tmp_path: Path) -> None:
    path = comfy_png(tmp_path / "ComfyUI_00001_.png", icc_profile=ICC)
    delivered, data = deliver_one(path, image_format="webp", quality=95)
    output = only(delivered)
    assert (output.filename, output.media_type, output.size) == ("ComfyUI_00001_.webp", "image/webp", len(data))
    assert (output.width, output.height) == (37, 23)
    image = opened(data)
    assert image.format == "WEBP"
    assert image.info["icc_profile"] == ICC
    exif = image.getexif()
    # Where ComfyUI itself puts and looks for them in a WEBP.
    assert exif[0x0110] == f"prompt:{PROMPT}"
    assert exif[0x010F] == f"workflow:{WORKFLOW}"


@pytest.mark.parametrize("wanted", ["webp", "jpeg"])
def test_converted_and_cleaned(tmp_path: Path, wanted: str) -> None:
    delivered, data = deliver_one(comfy_png(tmp_path / "a.png"), image_format=wanted, strip_metadata=True)
    assert clean(data)
    assert opened(data).format == wanted.upper()
    assert delivered.warnings == ()


def test_quality_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.effect_noise((128, 128), 80).save(path)
    sizes = [only(deliver_one(path, image_format="jpeg", quality=quality)[0]).size for quality in (10, 50, 95)]
    assert sizes == sorted(sizes)
    assert sizes[0] * 2 < sizes[2]


def test_transparency_on_its_way_to_jpeg_becomes_white_and_is_mentioned(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGBA", (16, 16), (255, 0, 0, 0)).save(path)
    delivered, data = deliver_one(path, image_format="jpeg")
    pixel = opened(data).getpixel((8, 8))
    assert isinstance(pixel, tuple)
    assert all(value > 250 for value in pixel)
    assert any("transparency" in warning for warning in delivered.warnings)


def test_an_alpha_channel_that_hides_nothing_is_dropped_without_a_word(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGBA", (16, 16), (10, 200, 30, 255)).save(path)
    delivered, data = deliver_one(path, image_format="jpeg")
    assert delivered.warnings == ()
    assert opened(data).getpixel((8, 8)) == pytest.approx((10, 200, 30), abs=4)


def test_transparency_survives_webp(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    picture("RGBA").save(path)
    assert opened(deliver_one(path, image_format="webp")[1]).mode == "RGBA"


def test_sixteen_bits_are_scaled_not_clipped(tmp_path: Path) -> None:
    path = tmp_path / "depth.png"
    Image.new("I;16", (16, 16), 0x8000).save(path)
    delivered, data = deliver_one(path, image_format="jpeg")
    assert opened(data).convert("L").getpixel((8, 8)) == pytest.approx(128, abs=2)
    assert any("16 to 8 bits" in warning for warning in delivered.warnings)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("wanted", ["png", "webp", "jpeg"])
def test_every_mode_goes_into_every_format(tmp_path: Path, mode: str, wanted: str) -> None:
    path = tmp_path / "a.tiff"
    if mode == "I;16":
        Image.new("I;16", (8, 8), 1000).save(path)
    else:
        picture("RGB" if mode == "CMYK" else "L").convert(mode).save(path)
    delivered, data = deliver_one(path, image_format=wanted)
    assert opened(data).format == wanted.upper()
    assert not any("not converted" in warning for warning in delivered.warnings)


def test_a_turned_picture_is_set_upright(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    picture(size=(40, 20)).save(path, exif=exif_block(orientation=6))
    delivered, data = deliver_one(path, image_format="webp")
    assert (only(delivered).width, only(delivered).height) == (20, 40)
    assert 0x0112 not in opened(data).getexif()


def test_an_animation_stays_one(tmp_path: Path) -> None:
    path = tmp_path / "a.webp"
    picture().save(path, save_all=True, append_images=[picture().rotate(180)])
    delivered, data = deliver_one(path, image_format="jpeg")
    assert data == path.read_bytes()
    assert only(delivered).filename == "a.webp"
    assert any("a.webp" in warning and "animated" in warning for warning in delivered.warnings)


def test_what_pillow_cannot_read_stays_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "depth.exr"
    path.write_bytes(b"v/1\x01 not really")
    delivered, data = deliver_one(path, image_format="png")
    assert data == path.read_bytes()
    assert any("depth.exr was not converted" in warning for warning in delivered.warnings)


def test_a_picture_over_max_pixels_is_not_decoded(tmp_path: Path) -> None:
    path = comfy_png(tmp_path / "a.png")
    job = make_job({"mode": "base64", "image_format": "webp"})
    delivered = run([file_artifact(path)], job, make_settings(max_pixels=100))
    assert only(delivered).filename == "a.png"
    assert any("MAX_PIXELS" in warning for warning in delivered.warnings)


def test_too_large_a_side_for_webp(tmp_path: Path) -> None:
    path = tmp_path / "wide.png"
    Image.new("L", (16_400, 2)).save(path)
    delivered, _ = deliver_one(path, image_format="webp")
    assert only(delivered).filename == "wide.png"
    assert any("16383" in warning for warning in delivered.warnings)


def test_a_workflow_too_large_for_a_jpeg_is_left_out_aloud(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    info = PngInfo()
    info.add_text("workflow", json.dumps({"nodes": ["x" * 80_000]}))
    picture().save(path, pnginfo=info)
    delivered, data = deliver_one(path, image_format="jpeg")
    assert opened(data).format == "JPEG"
    assert any("64 KiB" in warning for warning in delivered.warnings)


def test_only_images_are_converted(tmp_path: Path) -> None:
    path = tmp_path / "film.mp4"
    path.write_bytes(b"film")
    delivered, data = deliver_one(path, image_format="webp")
    assert data == b"film"
    assert delivered.warnings == ()


def test_bytes_in_memory_and_fetched_ones_are_converted_too(tmp_path: Path) -> None:
    path = comfy_png(tmp_path / "a.png")
    content = path.read_bytes()
    job = make_job({"mode": "base64", "image_format": "webp", "strip_metadata": True})
    artifacts = [
        file_artifact(path),
        file_artifact(path, path=None, content=content),
        file_artifact(path, path=None),
    ]
    delivered = run(artifacts, job, make_settings(), fetch=lambda artifact: iter([content[:100], content[100:]]))
    assert len({output.sha256 for output in delivered.outputs}) == 1
    assert {output.filename for output in delivered.outputs} == {"a.webp"}
