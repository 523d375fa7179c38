"""Pictures with the texts that ComfyUI writes into them, their delivery, and whether the texts are gone."""

from __future__ import annotations

import base64
import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

from PIL import Image, ImageCms
from PIL.PngImagePlugin import PngInfo

from settee.delivery import Delivered
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
