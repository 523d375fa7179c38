"""Images on their way out, re-encoded on request."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from tests.support.delivering import file_artifact, make_job, make_settings, only, run
from tests.support.pictures import ICC, PROMPT, WORKFLOW, clean, comfy_png, deliver_one, exif_block, opened, picture


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
