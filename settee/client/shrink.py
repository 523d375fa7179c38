"""Pictures made smaller before they are sent. Pillow does it, and is imported only when there is something to do."""

from __future__ import annotations

import contextlib
import io
import threading
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from settee.client.client_errors import UsageError

if TYPE_CHECKING:
    from PIL.Image import Image

#: Quality of pictures that were lossy, and are scaled only.
_QUALITY = 95
#: Modes with grey or colour of 8 bits, which JPEG can hold.
_JPEG_MODES = ("L", "RGB")
#: Modes that PNG holds, and ComfyUI reads as they are.
_PNG_MODES = ("L", "LA", "RGB", "RGBA", "I;16", "I;16B", "I")
_opening = threading.Lock()


def fitted(path: Path, *, max_side: int | None, jpeg: int | None) -> bytes | None:
    """Return the picture within ``max_side`` pixels and, with ``jpeg``, as a JPEG of that quality; None: send the file.

    Never scaled up, and never re-encoded into something larger. Where pixels are touched, EXIF's orientation
    is applied to them, and of the metadata only the colour profile stays. Without ``jpeg``, JPEG and WEBP stay such,
    and everything else becomes PNG. A picture that is transparent anywhere never becomes a JPEG: ComfyUI makes a
    loader's mask of its transparency. One that moves (GIF, WEBP, APNG) is left alone. Raises UsageError.
    """
    if max_side is not None and not 1 <= max_side <= 65535:
        raise UsageError(f"--max-side {max_side}: give the pixels of the longer side, from 1 to 65535")
    if jpeg is not None and not 1 <= jpeg <= 100:
        raise UsageError(f"--jpeg {jpeg}: give a quality from 1 to 100")
    if max_side is None and jpeg is None:
        return None
    with _opened(path) as image:
        # A phone's MPO is a JPEG with further pictures behind it; ComfyUI, too, takes the first.
        if getattr(image, "n_frames", 1) > 1 and image.format != "MPO":
            return None
        is_large = max_side is not None and max(image.size) > max_side
        if not is_large and jpeg is None:
            return None
        picture = _upright(image)
        becomes_jpeg = jpeg is not None and _can_be_jpeg(picture)
        if not is_large and not becomes_jpeg:
            return None
        if is_large:
            assert max_side is not None
            picture = _scaled(picture, max_side)
        content = _encoded(picture, image, path, jpeg if becomes_jpeg else None)
        return content if is_large or len(content) < path.stat().st_size else None


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image]:
    """Open the picture, without decoding its pixels. Errors of Pillow, also later ones, become a UsageError."""
    from PIL import Image, UnidentifiedImageError

    try:
        # A caller's own picture may be as large as it likes up to Pillow's limit for errors; that for warnings,
        # which are the whole process's affair, is half of it.
        with _opening, warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path)
        with image:
            yield image
    except UnidentifiedImageError as error:
        raise UsageError(f"{path} cannot be scaled or re-encoded: it is not a picture that Pillow can read") from error
    except Image.DecompressionBombError as error:
        raise UsageError(f"{path} has too many pixels to be scaled here") from error
    except FileNotFoundError as error:
        raise UsageError(f"{path} is not there") from error
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise UsageError(f"{path} cannot be scaled or re-encoded: it is damaged or cut off") from error


def _upright(image: Image) -> Image:
    """Return the picture as it is meant to be seen, in a mode that its formats hold."""
    from PIL import ImageOps

    turned = ImageOps.exif_transpose(image)
    if turned.mode == "1":
        return turned.convert("L")
    if turned.mode in ("LA", "RGBA"):
        return turned
    if turned.mode in ("PA", "La", "RGBa") or "transparency" in turned.info:
        return turned.convert("RGBA")
    return turned if turned.mode in _PNG_MODES else turned.convert("RGB")


def _can_be_jpeg(picture: Image) -> bool:
    """Return True if JPEG can hold it all: 8 bits a channel, and nothing transparent."""
    if picture.mode in ("LA", "RGBA"):
        return bool(picture.getchannel("A").getextrema() == (255, 255))
    return picture.mode in _JPEG_MODES


def _scaled(picture: Image, max_side: int) -> Image:
    from PIL import Image

    ratio = max_side / max(picture.size)
    size = (max(1, round(picture.width * ratio)), max(1, round(picture.height * ratio)))
    # Band by band: Pillow would multiply colours by their transparency first, and what is under a mask be lost.
    bands = [band.resize(size, Image.Resampling.LANCZOS, reducing_gap=3.0) for band in picture.split()]
    return Image.merge(picture.mode, bands) if len(bands) > 1 else bands[0]


def _encoded(picture: Image, original: Image, path: Path, jpeg: int | None) -> bytes:
    """Encode the picture as a JPEG of this quality, or in its own format."""
    options: dict[str, Any] = {}
    profile = original.info.get("icc_profile")
    # Pixels that were converted are not in the profile's colours any more.
    if profile and original.mode not in ("CMYK", "YCbCr", "LAB", "HSV"):
        options["icc_profile"] = profile
    format_name = "PNG"
    if jpeg is not None:
        format_name = "JPEG"
        picture = picture.convert({"LA": "L", "RGBA": "RGB"}.get(picture.mode, picture.mode))
    elif original.format in ("JPEG", "MPO") and picture.mode in _JPEG_MODES:
        format_name = "JPEG"
    elif original.format == "WEBP":
        format_name = "WEBP"
        # Its pixels are in a VP8L chunk then (RFC 9649); a profile of more than 4 KiB before it hides it.
        with path.open("rb") as file:
            is_lossless = b"VP8L" in file.read(4096)
        # Colours under transparent pixels are part of the picture (exact).
        options |= {"quality": _QUALITY, "exact": True, "lossless": is_lossless}
    elif picture.mode == "I":
        picture = picture.convert("I;16")  # PNG's most
    if format_name == "JPEG":
        options |= {"quality": jpeg or _QUALITY, "optimize": True}
    buffer = io.BytesIO()
    picture.save(buffer, format_name, **options)
    return buffer.getvalue()
