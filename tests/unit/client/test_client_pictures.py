"""Pictures are made smaller without losing what a workflow reads in them: size, orientation, masks, colours."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import pytest
from PIL import Image, ImageChops

from settee.client.client_errors import UsageError
from settee.client.payload import fitted


def photo(size: tuple[int, int] = (320, 200)) -> Image.Image:
    """Something with many colours and soft edges."""
    bands = [Image.radial_gradient("L").resize(size), Image.linear_gradient("L").resize(size)]
    return Image.merge("RGB", [bands[0], bands[1], ImageChops.invert(bands[0])])


def saved(path: Path, image: Image.Image, **options: object) -> Path:
    image.save(path, **options)  # type: ignore[arg-type]
    return path


def opened(content: bytes | None) -> Image.Image:
    assert content is not None
    image = Image.open(io.BytesIO(content))
    image.load()
    return image


def far_apart(one: Image.Image, other: Image.Image) -> int:
    """The largest difference of any band anywhere."""
    extrema = ImageChops.difference(one.convert("RGB"), other.convert("RGB")).getextrema()
    return max(int(high) for _, high in extrema)  # type: ignore[misc]


# --- what is left alone ------------------------------------------------------------------------------


def test_nothing_asked_for_is_nothing_done(tmp_path: Path) -> None:
    assert fitted(tmp_path / "not even there.png", max_side=None, jpeg=None) is None


@pytest.mark.parametrize("max_side", [320, 321, 60000])
def test_a_picture_that_fits_is_never_scaled_up(tmp_path: Path, max_side: int) -> None:
    assert fitted(saved(tmp_path / "a.png", photo()), max_side=max_side, jpeg=None) is None


def test_a_jpeg_that_would_only_grow_stays(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", photo(), quality=40)
    assert fitted(path, max_side=None, jpeg=95) is None
    assert fitted(path, max_side=400, jpeg=95) is None


def test_what_moves_is_left_alone(tmp_path: Path) -> None:
    frames = [photo(), photo().rotate(180)]
    for name in ("a.gif", "a.webp", "a.png"):
        path = saved(tmp_path / name, frames[0], save_all=True, append_images=frames[1:])
        assert fitted(path, max_side=50, jpeg=50) is None, name


# --- smaller -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        ("a.png", {}, "PNG"),
        ("a.jpg", {"quality": 90}, "JPEG"),
        ("a.webp", {"quality": 90}, "WEBP"),
        ("a.webp", {"lossless": True}, "WEBP"),
        ("a.bmp", {}, "PNG"),
        ("a.tif", {}, "PNG"),
    ],
)
def test_scaled_in_a_format_of_its_kind(tmp_path: Path, name: str, options: dict[str, int], expected: str) -> None:
    content = fitted(saved(tmp_path / name, photo(), **options), max_side=80, jpeg=None)
    image = opened(content)
    assert image.format == expected
    assert image.size == (80, 50)
    assert far_apart(image, photo((80, 50))) < 16


def test_a_lossless_webp_stays_lossless(tmp_path: Path) -> None:
    lossless = fitted(saved(tmp_path / "a.webp", photo(), lossless=True), max_side=80, jpeg=None)
    assert lossless is not None
    assert b"VP8L" in lossless[:64]
    exact = fitted(saved(tmp_path / "a.png", photo()), max_side=80, jpeg=None)
    assert opened(lossless).convert("RGB").tobytes() == opened(exact).tobytes()


@pytest.mark.parametrize("size", [(1, 300), (300, 1)])
def test_a_line_keeps_its_one_pixel(tmp_path: Path, size: tuple[int, int]) -> None:
    image = opened(fitted(saved(tmp_path / "a.png", photo(size)), max_side=10, jpeg=None))
    assert sorted(image.size) == [1, 10]


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I", "CMYK", "F"])
def test_every_mode_can_be_scaled(tmp_path: Path, mode: str) -> None:
    if mode in ("I;16", "I", "F"):
        image = photo().convert("L").convert("I").point(lambda value: value * 257)
        image = image.convert(mode) if mode != "I" else image
    else:
        image = photo().convert(mode)
    suffix = {"CMYK": "tif", "F": "tif", "I": "tif"}.get(mode, "png")
    content = fitted(saved(tmp_path / f"a.{suffix}", image), max_side=80, jpeg=None)
    assert opened(content).size == (80, 50)


def test_sixteen_bits_stay_sixteen(tmp_path: Path) -> None:
    deep = Image.frombytes("I;16", (64, 64), b"".join(struct.pack("<H", 1000 + 7 * (i % 64)) for i in range(64 * 64)))
    image = opened(fitted(saved(tmp_path / "a.png", deep), max_side=32, jpeg=None))
    low, high = image.getextrema()
    assert 1000 <= low < 1010  # type: ignore[operator]
    assert 1430 < high <= 1441  # type: ignore[operator]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_goes_into_the_pixels(tmp_path: Path, orientation: int) -> None:
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    path = saved(tmp_path / "a.jpg", photo(), exif=exif, quality=95)
    with Image.open(path) as image:
        upright = ImageOps.exif_transpose(image)
    for how in ({"max_side": 160, "jpeg": None}, {"max_side": None, "jpeg": 60}):
        result = opened(fitted(path, **how))
        assert not result.getexif()
        assert (result.width > result.height) == (upright.width > upright.height)
        assert far_apart(result, upright.resize(result.size)) < 24


def test_a_phones_picture_is_its_first(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.mpo", photo(), save_all=True, append_images=[photo().rotate(180)])
    image = opened(fitted(path, max_side=80, jpeg=None))
    assert (image.format, image.size) == ("JPEG", (80, 50))
    assert far_apart(image, photo((80, 50))) < 24


def test_the_colour_profile_stays_and_all_else_goes(tmp_path: Path) -> None:
    from PIL import ImageCms
    from PIL.PngImagePlugin import PngInfo

    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    info = PngInfo()
    info.add_text("prompt", "{}")
    path = saved(tmp_path / "a.png", photo(), icc_profile=profile, pnginfo=info)
    for how in ({"max_side": 80, "jpeg": None}, {"max_side": None, "jpeg": 90}):
        image = opened(fitted(path, **how))
        assert image.info["icc_profile"] == profile
        assert "prompt" not in image.info
    printed = saved(tmp_path / "a.jpg", photo().convert("CMYK"), icc_profile=profile)
    assert "icc_profile" not in opened(fitted(printed, max_side=80, jpeg=None)).info


# --- transparency ------------------------------------------------------------------------------------


def masked(mode: str = "RGBA") -> Image.Image:
    """Red all over, and transparent on the left, as an editor of masks leaves it."""
    image = Image.new("RGBA", (200, 100), (255, 0, 0, 255))
    image.paste((255, 0, 0, 0), (0, 0, 100, 100))
    return image.convert(mode)


@pytest.mark.parametrize("name", ["a.png", "a.webp"])
def test_colours_under_a_mask_survive(tmp_path: Path, name: str) -> None:
    options = {"lossless": True, "exact": True} if name.endswith("webp") else {}
    image = opened(fitted(saved(tmp_path / name, masked(), **options), max_side=50, jpeg=None)).convert("RGBA")
    assert image.getpixel((5, 10)) == (255, 0, 0, 0)
    assert image.getpixel((45, 10)) == (255, 0, 0, 255)


@pytest.mark.parametrize("mode", ["RGBA", "LA"])
def test_what_is_transparent_never_becomes_a_jpeg(tmp_path: Path, mode: str) -> None:
    path = saved(tmp_path / "a.png", masked(mode))
    assert fitted(path, max_side=None, jpeg=50) is None
    image = opened(fitted(path, max_side=50, jpeg=50))
    assert image.format == "PNG"
    assert image.getchannel("A").getextrema() == (0, 255)


def test_a_palette_with_a_transparent_colour(tmp_path: Path) -> None:
    palette = photo().quantize(8)
    path = saved(tmp_path / "a.png", palette, transparency=0)
    image = opened(fitted(path, max_side=50, jpeg=90))
    assert (image.format, image.mode) == ("PNG", "RGBA")
    assert image.getchannel("A").getextrema()[0] == 0


@pytest.mark.parametrize("mode", ["RGBA", "LA", "RGB", "L", "P", "1"])
def test_what_is_opaque_becomes_a_jpeg(tmp_path: Path, mode: str) -> None:
    noise = Image.effect_noise((300, 200), 60)
    source = Image.merge("RGB", [noise, noise.rotate(90, expand=True).resize((300, 200)), noise])
    path = saved(tmp_path / "a.png", source.convert(mode))
    content = fitted(path, max_side=None, jpeg=60)
    if mode == "1":
        assert content is None, "one bit a pixel is smaller than any JPEG of it"
        return
    image = opened(content)
    assert (image.format, image.size) == ("JPEG", (300, 200))
    assert content is not None
    assert len(content) < path.stat().st_size


# --- mistakes ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({"max_side": 0}, "--max-side 0"),
        ({"max_side": -5}, "--max-side -5"),
        ({"max_side": 1 << 20}, "--max-side 1048576"),
        ({"jpeg": 0}, "--jpeg 0"),
        ({"jpeg": 101}, "--jpeg 101"),
    ],
)
def test_values_that_mean_nothing(tmp_path: Path, how: dict[str, int], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        fitted(tmp_path / "a.png", **{"max_side": None, "jpeg": None, **how})


def test_what_cannot_be_read(tmp_path: Path) -> None:
    whole = saved(tmp_path / "whole.png", photo()).read_bytes()
    for name, content, words in (
        ("half.png", whole[: len(whole) // 2], "damaged or cut off"),
        ("text.png", b"no picture at all", "not a picture that Pillow can read"),
        ("empty.png", b"", "not a picture that Pillow can read"),
    ):
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UsageError) as error:
            fitted(path, max_side=50, jpeg=None)
        assert words in error.value.message
        assert error.value.message.startswith(str(path))
    with pytest.raises(UsageError, match="is not there"):
        fitted(tmp_path / "none.png", max_side=50, jpeg=None)


def test_a_picture_of_too_many_pixels(tmp_path: Path) -> None:
    def png(width: int, height: int) -> Path:
        import zlib

        header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
        content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        content += struct.pack(">I", 9) + b"IDAT"
        path = tmp_path / f"{width}.png"
        path.write_bytes(content)
        return path

    with pytest.raises(UsageError, match="too many pixels"):
        fitted(png(60000, 60000), max_side=50, jpeg=None)
    # Pillow's warning about half of that is an error in these tests; a caller is not warned of what they chose.
    assert fitted(png(10000, 10000), max_side=20000, jpeg=None) is None
