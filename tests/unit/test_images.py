"""Images are whole or refused: every format is cut at every byte, and crafted to be larger than it says."""

from __future__ import annotations

import io
import os
import random
import struct
import subprocess
import sys
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from settee.base.errors import InvalidRequest, PayloadTooLarge
from settee.staging import images as images_module
from settee.staging.images import check_image, looks_like_image

SIDE = 12
MANY = 10**6


def picture(seed: int = 0, mode: str = "RGB") -> Image.Image:
    """A small picture that no encoder makes nothing of."""
    noise = random.Random(seed).randbytes(3 * 9)
    image = Image.frombytes("RGB", (3, 3), noise).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
    return image.convert(mode)


def encode(image: Image.Image, kind: str, frames: int = 1, **options: object) -> bytes:
    target = io.BytesIO()
    if frames > 1:
        options |= {"save_all": True, "append_images": [picture(seed, image.mode) for seed in range(1, frames)]}
    image.save(target, kind, **options)
    return target.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(
    rows: bytes, *, size: tuple[int, int] = (SIDE, SIDE), depth: int = 8, colour: int = 2, interlace: int = 0
) -> bytes:
    """A PNG made by hand, so that it can be wrong in one way at a time."""
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, interlace)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def rows(columns: int = SIDE, count: int = SIDE, bits: int = 24) -> bytes:
    return (b"\0" + b"\x55" * ((columns * bits + 7) // 8)) * count


def interlaced(width: int, height: int, bits: int) -> bytes:
    """Adam7's seven passes, as the PNG specification lays them out."""
    passes = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2), (0, 1, 1, 2))
    data = b""
    for x, y, dx, dy in passes:
        columns, lines = len(range(x, width, dx)), len(range(y, height, dy))
        if columns and lines:
            data += rows(columns, lines, bits)
    return data


FORMATS = {
    **{f"png-{mode}": encode(picture(mode=mode), "PNG") for mode in ("RGB", "LA", "1")},
    "png-16": encode(Image.new("I;16", (SIDE, SIDE), 777), "PNG"),
    "png-interlaced": png(interlaced(SIDE, SIDE, 24), interlace=1),
    "png-animated": encode(picture(), "PNG", 3),
    **{f"jpeg-{mode}": encode(picture(mode=mode), "JPEG") for mode in ("RGB", "L", "CMYK")},
    "jpeg-progressive": encode(picture(), "JPEG", progressive=True),
    "jpeg-restart": encode(picture(), "JPEG", restart_marker_blocks=1),
    "jpeg-several": encode(picture(), "MPO", 2),
    "webp": encode(picture(), "WEBP"),
    "webp-lossless": encode(picture(mode="RGBA"), "WEBP", lossless=True),
    "webp-alpha": encode(picture(mode="RGBA"), "WEBP"),
    "webp-animated": encode(picture(), "WEBP", 3),
    "gif": encode(picture(mode="P"), "GIF"),
    "gif-animated": encode(picture(), "GIF", 3),
    "bmp": encode(picture(), "BMP"),
    "bmp-P": encode(picture(mode="P"), "BMP"),
    "tiff": encode(picture(), "TIFF"),
    "tiff-lzw": encode(picture(), "TIFF", compression="tiff_lzw"),
    "tiff-deflate": encode(picture(), "TIFF", compression="tiff_adobe_deflate"),
    "tiff-jpeg": encode(picture(), "TIFF", compression="jpeg"),
    "tiff-several": encode(picture(), "TIFF", 3)[:-4],  # which fill up to a multiple of 16
    "tiff-group4": encode(picture(mode="1"), "TIFF", compression="group4"),
    "avif": encode(picture(), "AVIF"),
    "jpeg2000": encode(picture(), "JPEG2000"),
}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "picture.bin"


def refused(file: Path, data: bytes) -> str:
    """The error's message for ``data``."""
    file.write_bytes(data)
    with pytest.raises(InvalidRequest) as caught:
        check_image(file, MANY)
    assert str(file.parent) not in str([caught.value.message, caught.value.details])
    return caught.value.message


# --- whole, or not ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_whole_images_are_taken_and_measured(name: str, file: Path) -> None:
    file.write_bytes(FORMATS[name])
    assert check_image(file, MANY) == (SIDE, SIDE)
    assert looks_like_image(FORMATS[name][:16])


@pytest.mark.parametrize("name", FORMATS)
def test_images_cut_at_any_byte_are_refused(name: str, file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    data = FORMATS[name]
    taken = []
    for length in range(len(data)):
        file.write_bytes(data[:length])
        try:
            check_image(file, MANY)
        except InvalidRequest:
            continue
        taken.append(length)
    assert taken == []


@pytest.mark.parametrize("data", [b"", b"text", b"\0\0\0\x20ftypisom", b"RIFF\x10\0\0\0WAVEfmt "])
def test_what_does_not_look_like_an_image(data: bytes) -> None:
    assert not looks_like_image(data)


@pytest.mark.parametrize("name", ["png-RGB", "jpeg-RGB", "jpeg-progressive", "gif"])
def test_a_tail_of_zeroes_is_no_image(name: str, file: Path) -> None:
    """What a download into a preallocated file leaves when it breaks off."""
    data = FORMATS[name]
    for length in range(0, len(data), 7):
        assert "picture.bin" in refused(file, data[:length].ljust(len(data), b"\0"))


@pytest.mark.parametrize("name", ["png-RGB", "jpeg-RGB", "gif", "webp", "bmp"])
def test_what_follows_the_image_is_no_matter(name: str, file: Path) -> None:
    file.write_bytes(FORMATS[name] + b"\0trailing bytes, as cameras and editors write them")
    assert check_image(file, MANY) == (SIDE, SIDE)


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "empty"),
        (b"hello, world", "not an image"),
        (
            b"\0\0\0\x18ftypheic\0\0\0\0mif1heic",
            "this HEIC is not what ComfyUI's image nodes load whole: convert it to JPEG or PNG first",
        ),
        (b"\0\0\0\x18ftypmif1\0\0\0\0miafheic", "this HEIC"),
        (b"\n<!DOCTYPE html>\n<html><body>log in", "this web page is not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n", "PostScript"),
        (FORMATS["png-RGB"][:-12], "truncated"),
        (FORMATS["jpeg-RGB"][:-2], "truncated"),
        (FORMATS["gif"][:-1], "trailer"),
        (FORMATS["png-RGB"][:60] + b"\xff" + FORMATS["png-RGB"][61:], "checksum"),
        (b"\xff\xd8\xff\xd9", "no picture"),
        (b"GIF89a" + bytes(7) + b";", "this GIF"),
    ],
)
def test_errors_name_the_file_the_format_and_the_fault(data: bytes, says: str, file: Path) -> None:
    message = refused(file, data)
    assert message.startswith("invalid image: picture.bin: this ")
    assert says in message


# --- PNG: every pixel ------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 1), (1, 9), (8, 8), (13, 7), (33, 65)])
@pytest.mark.parametrize(("depth", "colour", "bits"), [(1, 0, 1), (4, 0, 4), (8, 2, 24), (16, 6, 64), (8, 4, 16)])
def test_png_pixels_are_counted_as_pillow_reads_them(
    size: tuple[int, int], depth: int, colour: int, bits: int, file: Path
) -> None:
    for interlace, data in ((0, rows(*size, bits)), (1, interlaced(*size, bits))):
        whole = png(data, size=size, depth=depth, colour=colour, interlace=interlace)
        with Image.open(io.BytesIO(whole)) as image:
            image.load()
        file.write_bytes(whole)
        assert check_image(file, MANY) == size
        # One byte less, in a file that is otherwise without fault.
        short = png(data[:-1], size=size, depth=depth, colour=colour, interlace=interlace)
        assert "pixels are missing" in refused(file, short)


def test_a_png_whose_pixels_were_cut_before_it_was_packed(file: Path) -> None:
    """Whole as a file, checksums and all; ComfyUI would load it with a black half."""
    stream = zlib.compress(os.urandom(0) + rows())
    half = stream[: len(stream) // 2]
    head = png(b"")[: 8 + 25]
    assert "missing" in refused(file, head + chunk(b"IDAT", half) + chunk(b"IEND", b""))
    assert "missing" in refused(file, head + chunk(b"IEND", b""))


def test_a_png_whose_pixels_do_not_inflate(file: Path) -> None:
    head = png(b"")[: 8 + 25]
    assert "inflate" in refused(file, head + chunk(b"IDAT", b"no zlib") + chunk(b"IEND", b""))


def test_a_png_in_many_small_chunks(file: Path) -> None:
    stream = zlib.compress(rows())
    parts = b"".join(chunk(b"IDAT", stream[start : start + 3]) for start in range(0, len(stream), 3))
    file.write_bytes(png(b"")[: 8 + 25] + chunk(b"IDAT", b"") + parts + chunk(b"IEND", b""))
    assert check_image(file, MANY) == (SIDE, SIDE)


@pytest.mark.parametrize("row", [0, 1, SIDE - 1])
def test_a_png_with_an_unknown_filter(row: int, file: Path) -> None:
    data = bytearray(rows())
    data[row * (1 + SIDE * 3)] = 5
    assert "filter" in refused(file, png(bytes(data)))


@pytest.mark.parametrize("change", [{"size": (0, 5)}, {"depth": 3}, {"colour": 1}, {"depth": 16, "colour": 3}])
def test_png_headers_that_cannot_be(change: dict[str, int], file: Path) -> None:
    assert "header" in refused(file, png(rows(), **change))  # type: ignore[arg-type]


def test_without_isal_the_check_is_the_same(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "_fast_zlib", lambda: zlib)
    file.write_bytes(FORMATS["png-RGB"])
    assert check_image(file, MANY) == (SIDE, SIDE)
    assert "inflate" in refused(file, png(b"")[:33] + chunk(b"IDAT", b"no zlib") + chunk(b"IEND", b""))


# --- JPEG ------------------------------------------------------------------------------------------------


def test_a_jpeg_with_a_thumbnail_is_not_ended_by_it(file: Path) -> None:
    """The thumbnail's own end marker lies in a segment, and the picture's is missing."""
    data = FORMATS["jpeg-RGB"]
    segment = b"\xff\xe1" + struct.pack(">H", 2 + len(data)) + data
    file.write_bytes(data[:2] + segment + data[2:])
    assert check_image(file, MANY) == (SIDE, SIDE)
    assert "truncated" in refused(file, data[:2] + segment + data[2:-2])


def test_a_jpeg_of_endless_scans(file: Path) -> None:
    """Each scan costs a decoder a pass over all pixels; a few bytes each would keep it busy for hours."""
    data = FORMATS["jpeg-progressive"]
    start = data.index(b"\xff\xda")
    scan = data[start : data.index(b"\xff\xc4", start)] if b"\xff\xc4" in data[start:] else data[start:-2]
    assert "scans" in refused(file, data[:start] + scan * 300 + data[start:])


# --- sizes -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FORMATS)
def test_pixels_are_limited_over_all_frames(name: str, file: Path) -> None:
    file.write_bytes(FORMATS[name])
    frames = 3 if name.endswith(("animated", "tiff-several")) else 2 if name == "jpeg-several" else 1
    assert check_image(file, SIDE * SIDE * frames) == (SIDE, SIDE)
    with pytest.raises(PayloadTooLarge, match=r"pixels; MAX_PIXELS allows"):
        check_image(file, SIDE * SIDE * frames - 1)


BOMBS = {
    "png": png(b"", size=(60_000, 60_000)),
    "png-animated": png(rows())[:33] + chunk(b"acTL", struct.pack(">II", 2**31 - 1, 0)) + png(rows())[33:],
    "jpeg": FORMATS["jpeg-RGB"].replace(struct.pack(">HH", SIDE, SIDE), b"\xff\xff\xff\xff", 1),
    "gif": FORMATS["gif"][:6] + b"\xff\xff\xff\xff" + FORMATS["gif"][10:],
    "webp": FORMATS["webp-animated"].replace(
        struct.pack("<HBHB", SIDE - 1, 0, SIDE - 1, 0), b"\xff\x3f\0\xff\x3f\0", 1
    ),
    "bmp": FORMATS["bmp"][:18] + struct.pack("<ii", 60_000, 60_000) + FORMATS["bmp"][26:],
}


def test_bombs_are_refused_before_they_are_decoded(tmp_path: Path) -> None:
    for name, data in BOMBS.items():
        (tmp_path / name).write_bytes(data)
    program = (
        "import sys, resource; from pathlib import Path; from PIL import Image\n"
        "from settee.staging.images import check_image; from settee.base.errors import PayloadTooLarge\n"
        "limit = 300 << 20; resource.setrlimit(resource.RLIMIT_AS, (limit, limit))\n"
        "for path in map(Path, sys.argv[1:]):\n"
        "    try: check_image(path, 10**8)\n"
        "    except PayloadTooLarge as error: print(path.name, error.message)\n"
        "    except Exception as error: print(path.name, repr(error))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, *(str(tmp_path / name) for name in BOMBS)],
        env={"PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        timeout=60,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == len(BOMBS), done.stderr
    assert [line for line in lines if "MAX_PIXELS" not in line] == []


CROWDS = {
    "png": png(b"")[:33] + chunk(b"tEXt", b"") * 2000,
    "jpeg": b"\xff\xd8" + b"\xff\xfe\0\2" * 2000,
    "gif": FORMATS["gif"][:-1] + b"!\xfe\1x\0" * 2000,
    "gif-blocks": FORMATS["gif"][:-1] + b"!\xfe" + b"\1x" * 2000,
    "gif-empty": FORMATS["gif"][:-1] + b"!\xfe\0" * 2000,
}


@pytest.mark.parametrize("name", CROWDS)
def test_files_of_countless_parts_are_given_up(name: str, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Walking through 2 GiB of empty chunks would take minutes."""
    monkeypatch.setattr(images_module, "_MAX_PARTS", 1000)
    assert "too many" in refused(file, CROWDS[name])


def test_frames_are_limited_whatever_their_size(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images_module, "_MAX_FRAMES", 2)
    for name in ("gif-animated", "webp-animated", "png-animated"):
        assert "more than 2 frames" in refused(file, FORMATS[name])
    assert "more than 2 frames" in refused(file, encode(picture(), "TIFF", 3))


def test_a_gifs_frames_are_counted_before_pillow_walks_through_them(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That took an hour for the 12-byte frames of 2 GiB."""
    monkeypatch.setattr(images_module, "_MAX_FRAMES", 2)
    monkeypatch.setattr(images_module, "_decode", lambda *_: pytest.fail("it is not opened"))
    assert "more than 2 frames" in refused(file, FORMATS["gif-animated"])


def test_a_deflate_bomb_stops_at_the_size_that_the_png_names(file: Path) -> None:
    stream = zlib.compress(rows() + bytes(200_000_000), 9)
    file.write_bytes(png(b"")[:33] + chunk(b"IDAT", stream) + chunk(b"IEND", b""))
    assert check_image(file, MANY) == (SIDE, SIDE)


# --- anything at all -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def scratch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("images") / "any.bin"


@contextmanager
def quiet() -> Iterator[None]:
    """Without Pillow's warnings of slightly odd files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@settings(max_examples=400, derandomize=True)
@given(
    st.sampled_from(sorted(FORMATS)),
    st.lists(st.tuples(st.integers(0, 2000), st.binary(min_size=1, max_size=6)), min_size=1, max_size=4),
)
def test_damage_is_refused_or_harmless_and_never_an_error_of_another_kind(
    scratch: Path, name: str, damage: list[tuple[int, bytes]]
) -> None:
    data = bytearray(FORMATS[name])
    for position, change in damage:
        position %= len(data)
        data[position : position + len(change)] = change
    scratch.write_bytes(data)
    try:
        size = check_image(scratch, MANY)
    except InvalidRequest as error:
        shown = str([error.message, error.details])
    else:
        shown = ""
        with quiet(), Image.open(io.BytesIO(data)) as image:
            assert image.size == size
    assert str(scratch.parent) not in shown
