"""Re-encode an image, when the caller asks for another format than ComfyUI saved.

One image at a time is decoded. What cannot be converted without losing something that was not offered (frames, a
picture that Pillow cannot read) is delivered as it is, with a warning.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Any

from settee.base.json_io import loads
from settee.delivery.blob import Blob, Prepared, Window

if TYPE_CHECKING:
    from PIL import Image

    from settee.engine.request import Delivery

#: Format → suffix, media type, longest side in pixels.
FORMATS: dict[str, tuple[str, str, int]] = {
    "png": (".png", "image/png", 2**31 - 1),
    "jpeg": (".jpg", "image/jpeg", 65_500),
    "webp": (".webp", "image/webp", 16_383),
}
DEFAULT_QUALITY = 90
_READABLE = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
_ORIENTATION = 0x0112
#: A JPEG segment holds 65,533 bytes, "Exif\0\0" included.
_JPEG_EXIF = 65_000
#: zlib's level for PNGs: 4 is ComfyUI's own choice, half the time of 6 for some 2 % more bytes.
_PNG_LEVEL = 4


class NotConverted(Exception):
    """Why an image stays as it is; to follow its name in a warning."""


def convert(blob: Blob, filename: str, wanted: Delivery, max_pixels: int, warnings: list[str]) -> Prepared:
    """Return the image in the format that is ``wanted``, or raise NotConverted. The blob is only read.

    Colour profiles stay, the orientation is applied to the pixels, and unless metadata is to go the prompt and the
    workflow move along; ``warnings`` get what did not. PNGs are lossless whatever ``quality`` says.
    """
    image_format, strip_metadata = wanted.image_format, wanted.strip_metadata
    assert image_format is not None
    suffix, media_type, longest = FORMATS[image_format]
    with _opened(blob, max_pixels) as image:
        if max(image.size) > longest:
            raise NotConverted(f"has a side of more than the {longest} pixels that {image_format} can have")
        # ComfyUI writes `prompt`, and `workflow` and others from extra_pnginfo.
        text = {} if strip_metadata else {str(k): str(v) for k, v in getattr(image, "text", {}).items()}
        exif = None if strip_metadata else image.getexif()
        pixels, flattened = _pixels(image, image_format)
        options: dict[str, Any] = {"icc_profile": _profile(image, pixels, image_format)}
        if flattened:
            warnings.append(f"{filename}: {flattened}")
        _add_metadata(options, image_format, text, exif, warnings, filename)
        if image_format == "png":
            options["compress_level"] = _PNG_LEVEL
        else:
            options["quality"] = wanted.quality or DEFAULT_QUALITY
        out = io.BytesIO()
        try:
            pixels.save(out, format=image_format.upper(), **options)
        except (OSError, ValueError) as error:
            raise NotConverted(f"cannot be written as {image_format}") from error
    name = str(PurePosixPath(filename).with_suffix(suffix)) if PurePosixPath(filename).stem else filename
    return Prepared(Blob(out.getvalue()), name, media_type)


@contextlib.contextmanager
def _opened(blob: Blob, max_pixels: int) -> Iterator[Image.Image]:
    """Decode a still image. Whatever Pillow raises for a bad file (it has many ways) becomes NotConverted."""
    import warnings

    from PIL import Image

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # on large files; max_pixels is our limit
        try:
            image = Image.open(io.BufferedReader(Window(blob)), formats=_READABLE)
            if getattr(image, "n_frames", 1) > 1:
                raise NotConverted("is animated")
            if image.width * image.height > max_pixels:
                raise NotConverted(f"has more than the {max_pixels} pixels of MAX_PIXELS")
            image.load()
        except NotConverted:
            raise
        except Exception as error:
            raise NotConverted("cannot be decoded") from error
        with image:
            yield image


def _pixels(image: Image.Image, image_format: str) -> tuple[Image.Image, str]:
    """Return the image upright and in a mode that the format can hold; what that cost, if anything."""
    from PIL import Image, ImageOps

    note = ""
    ImageOps.exif_transpose(image, in_place=True)
    if image_format == "png":
        return (image.convert("RGB") if image.mode in ("CMYK", "YCbCr", "LAB", "HSV", "F") else image), note
    if image.mode.startswith("I"):
        # 16 bits: Pillow's own conversion to L clips instead of scaling.
        image = image.convert("I").point(lambda value: value * (1 / 256)).convert("L")
        note = "reduced from 16 to 8 bits per channel"
    if image.mode in ("P", "PA", "LA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
    if image.mode == "RGBA" and image.getchannel("A").getextrema() == (255, 255):
        image = image.convert("RGB")
    if image.mode == "RGBA" and image_format == "jpeg":
        page = Image.new("RGB", image.size, (255, 255, 255))
        page.paste(image, mask=image.getchannel("A"))
        image, note = page, "its transparency was flattened onto white: JPEG has none"
    if image.mode not in ("L", "RGB", "RGBA"):
        image = image.convert("RGB")
    return image, note


def _profile(before: Image.Image, after: Image.Image, image_format: str) -> bytes | None:
    """Return the colour profile, if it still fits: one for CMYK or grey does not apply to RGB."""
    profile: bytes | None = before.info.get("icc_profile")
    was_grey = before.mode in ("1", "L", "LA") or before.mode.startswith("I")
    is_grey = after.mode in ("1", "L", "LA") or after.mode.startswith("I")
    if was_grey != (is_grey and image_format != "webp") or before.mode in ("CMYK", "YCbCr", "LAB"):
        return None
    return profile


def _add_metadata(
    options: dict[str, Any], image_format: str, text: dict[str, str], exif: Any, warnings: list[str], filename: str
) -> None:
    """Put the texts where ComfyUI looks for them in this format."""
    if image_format == "png":
        if text:
            from PIL.PngImagePlugin import PngInfo

            options["pnginfo"] = PngInfo()
            for key, value in text.items():
                options["pnginfo"].add_text(key, value)
        if exif:
            exif.pop(_ORIENTATION, None)
            options["exif"] = exif.tobytes()
        return
    if exif is None:
        return
    # As ComfyUI's SaveAnimatedWEBP does it: the prompt under 0x0110, the others from 0x010f downwards.
    tag = 0x010F
    for key, value in text.items():
        if key == "prompt":
            exif[0x0110] = f"prompt:{value}"
        else:
            with contextlib.suppress(ValueError):
                loads(value)
                exif[tag] = f"{key}:{value}"
                tag -= 1
    exif.pop(_ORIENTATION, None)
    block = exif.tobytes() if len(exif) else b""
    if image_format == "jpeg" and len(block) > _JPEG_EXIF:
        warnings.append(f"{filename}: its workflow is too large for a JPEG's 64 KiB of metadata and was left out")
    elif block:
        options["exif"] = block
