"""ComfyUI's nodes that read images from the input directory, and those that write, preview or send them."""

from __future__ import annotations

import json
import mimetypes
import os
import secrets
import string
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

from PIL import Image, ImageOps, ImageSequence
from PIL.PngImagePlugin import PngInfo

from settee.base.files import sha256_of
from settee.embedded.broadcast import PreviewImage
from settee.embedded.folders import Folders, Slot
from settee.embedded.nodes.node import (
    IMAGE,
    PNGINFO,
    PROMPT,
    Env,
    ImageBatch,
    Outcome,
    choice,
    decimal,
    integer,
    node,
    value,
)
from settee.embedded.nodes.pictures import image_crop, inverted

# --- loading ----------------------------------------------------------------------------------------------


def _input_files(folders: Folders) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folders.input) if entry.is_file())


def _is_image(name: str) -> bool:
    return (mimetypes.guess_type(name, strict=False)[0] or "").startswith("image/")


def _file_hash(folders: Folders, inputs: Mapping[str, Any]) -> str:
    """Return the hash of the file: its bytes decide whether a cached result holds."""
    return sha256_of(folders.locate(inputs["image"]))


def _file_problem(folders: Folders, inputs: Mapping[str, Any]) -> str | None:
    image = inputs["image"]
    return None if os.path.exists(folders.locate(image)) else f"Invalid image file: {image}"


_FILE: dict[str, Any] = {"fingerprint": _file_hash, "check_image": _file_problem}


def _upright(image: Image.Image) -> Image.Image:
    """Return the picture turned as its EXIF data says, 16-bit greys brought down to 8 bits."""
    upright = ImageOps.exif_transpose(image)
    return upright.point(lambda value: value * (1 / 255)) if upright.mode == "I" else upright


def _mask_of(image: Image.Image) -> Image.Image:
    """Return alpha inverted; 64 x 64 zeros when the picture has none."""
    if "A" in image.getbands() or (image.mode == "P" and "transparency" in image.info):
        return inverted(image.convert("RGBA").getchannel("A"))
    return Image.new("L", (64, 64), 0)


class InvalidDataError(ValueError):
    """PyAV, which ComfyUI asks before Pillow, finds nothing in a file; reported under the name of its exception."""


InvalidDataError.__module__ = "av.error"


def _frames(path: str) -> Iterator[Image.Image]:
    # Where the content tells PyAV nothing, it goes by the name; what it then cannot decode goes on to Pillow.
    if not _is_image(path) or not os.path.getsize(path):
        raise InvalidDataError(f"[Errno 1094995529] Invalid data found when processing input: '{path}'")
    with Image.open(path) as image:
        for frame in ImageSequence.Iterator(image):
            yield _upright(frame)
            if image.format == "MPO":  # a stereo photo: ComfyUI takes the first picture only
                return


_OUTPUT_FILES = {"route": "/internal/files/output", "refresh_button": True, "control_after_refresh": "first"}


@node("LoadImageOutput", "image", "Load Image (from Outputs)", "IMAGE MASK", experimental=True, **_FILE)
def load_image_output(
    env: Env, image: str = value("COMBO", image_upload=True, image_folder="output", remote=_OUTPUT_FILES)
) -> tuple[ImageBatch, ImageBatch]:
    """Do as LoadImage; in the editor its widget lists the output directory."""
    return load_image(env, image)


@node("LoadImage", "image", "Load Image", "IMAGE MASK", **_FILE)
def load_image(
    env: Env, image: str = value(lambda folders: [*filter(_is_image, _input_files(folders))], image_upload=True)
) -> tuple[ImageBatch, ImageBatch]:
    """Load every frame as RGB, and the inverted alpha of each."""
    images, masks = ImageBatch(), ImageBatch()
    for frame in _frames(env.folders.locate(image)):
        if not images or frame.size == images.size:
            images.append(frame.convert("RGB"))
            masks.append(_mask_of(frame))
    return images, masks


@node("LoadImageMask", "image", "Load Image (as Mask)", "MASK", **_FILE)
def load_image_mask(
    env: Env,
    image: str = value(_input_files, image_upload=True),
    channel: str = choice("alpha", "red", "green", "blue"),
) -> ImageBatch:
    """Load one channel as a mask; alpha comes inverted."""
    with Image.open(env.folders.locate(image)) as opened:
        mask = _upright(opened).convert("RGBA").getchannel(channel[0].upper())
    return ImageBatch([inverted(mask) if channel == "alpha" else mask])


# --- saving -----------------------------------------------------------------------------------------------

PREFIX: Any = value("STRING", default="ComfyUI")
_NEWER_PREFIX: Any = value("STRING", default="ComfyUI", multiline=False)
_SAVER: dict[str, Any] = {"return_names": ("images",), "output_node": True}


def write(slot: Slot, suffix: str, save: Callable[[str], Any], number: int = 0) -> dict[str, Any]:
    """Save to a path of the slot and return the file's entry."""
    name = f"{slot.stem.replace('%batch_num%', str(number))}_{slot.counter + number:05}_.{suffix}"
    save(os.path.join(slot.folder, name))
    return {"filename": name, "subfolder": slot.subfolder, "type": slot.kind}


def _metadata(env: Env, prompt: Any, extra_pnginfo: Any) -> dict[str, str]:
    """Return the JSON strings that belong in a file, by key: the graph as ``prompt``, and extra_pnginfo's."""
    if env.options.disable_metadata:
        return {}
    values = {"prompt": prompt, **(extra_pnginfo or {})}
    return {key: json.dumps(value) for key, value in values.items()}


def save_pngs(
    env: Env, images: ImageBatch, prefix: str, metadata: Mapping[str, str], kind: str = "output", level: int = 4
) -> list[dict[str, Any]]:
    """Write one PNG per picture and return the entries of the files."""
    slot = env.folders.next_slot(prefix, kind, *images.size)
    info = PngInfo()
    for key, text in metadata.items():
        info.add_text(key, text)
    return [
        write(slot, "png", partial(image.save, format="PNG", pnginfo=info, compress_level=level), number)
        for number, image in enumerate(images)
    ]


def _preview(env: Env, images: ImageBatch, metadata: Mapping[str, str]) -> list[dict[str, Any]]:
    """Write temp files, under a name that is random."""
    letters = (secrets.choice(string.ascii_lowercase) for _ in range(5))
    return save_pngs(env, images, "ComfyUI_temp_" + "".join(letters), metadata, "temp", level=1)


@node("SaveImage", "image", "Save Image", "IMAGE", **_SAVER)
def save_image(
    env: Env,
    images: ImageBatch = IMAGE,
    filename_prefix: str = PREFIX,
    prompt: Any = PROMPT,
    extra_pnginfo: Any = PNGINFO,
) -> Outcome:
    metadata = _metadata(env, prompt, extra_pnginfo)
    return Outcome((images,), {"images": save_pngs(env, images, filename_prefix, metadata)})


@node("PreviewImage", "image", "Preview Image", "IMAGE", **_SAVER)
def preview_image(env: Env, images: ImageBatch = IMAGE, prompt: Any = PROMPT, extra_pnginfo: Any = PNGINFO) -> Outcome:
    return Outcome((images,), {"images": _preview(env, images, _metadata(env, prompt, extra_pnginfo))})


_REGION = {"x": 0, "y": 0, "width": 512, "height": 512}


@node("ImageCropV2", "image/transform", "Crop Image", "IMAGE", extras="nodes_images", intermediate_output=True)
def image_crop_v2(
    env: Env,
    image: ImageBatch = IMAGE,
    crop_region: dict[str, int] = value("BOUNDING_BOX", default=_REGION, socketless=True, component="ImageCrop"),
) -> Outcome:
    """Cut out a rectangle, and show it: again whenever the result comes from the cache."""
    cropped = image_crop(image, **{**_REGION, **crop_region})
    return Outcome((cropped,), {"images": _preview(env, cropped, {}), "animated": [False]})


@node("SaveAnimatedWEBP", "image", "Save Animated WEBP", "IMAGE", extras="nodes_images", **_SAVER)
def save_animated_webp(
    env: Env,
    images: ImageBatch = IMAGE,
    filename_prefix: str = _NEWER_PREFIX,
    fps: float = decimal(6.0, 0.01, 1000.0),
    lossless: bool = value("BOOLEAN", default=True),
    quality: int = integer(80, 0, 100),
    method: str = choice("default", "fastest", "slowest"),
    prompt: Any = PROMPT,
    extra_pnginfo: Any = PNGINFO,
) -> Outcome:
    """Write the batch as one WEBP. Its EXIF tag Model holds the graph, Make and the tags below it the rest."""
    exif = Image.Exif()
    tags = iter(range(0x010F, 0, -1))
    for key, text in _metadata(env, prompt, extra_pnginfo).items():
        exif[0x0110 if key == "prompt" else next(tags)] = f"{key}:{text}"
    effort = {"default": 4, "fastest": 0, "slowest": 6}[method]
    entry = _animation(
        env, images, filename_prefix, "webp", fps, lossless=lossless, quality=quality, method=effort, exif=exif
    )
    return Outcome((images,), {"images": [entry], "animated": [len(images) != 1]})


@node("SaveAnimatedPNG", "image", "Save Animated PNG", "IMAGE", extras="nodes_images", **_SAVER)
def save_animated_png(
    env: Env,
    images: ImageBatch = IMAGE,
    filename_prefix: str = _NEWER_PREFIX,
    fps: float = decimal(6.0, 0.01, 1000.0),
    compress_level: int = integer(4, 0, 9),
    prompt: Any = PROMPT,
    extra_pnginfo: Any = PNGINFO,
) -> Outcome:
    info = PngInfo()
    for key, text in _metadata(env, prompt, extra_pnginfo).items():
        info.add(b"comf", key.encode("latin-1") + b"\0" + text.encode("latin-1"), after_idat=True)
    entry = _animation(env, images, filename_prefix, "png", fps, compress_level=compress_level, pnginfo=info)
    return Outcome((images,), {"images": [entry], "animated": [True]})


def _animation(env: Env, images: ImageBatch, prefix: str, suffix: str, fps: float, **how: Any) -> dict[str, Any]:
    slot = env.folders.next_slot(prefix, "output", *images.size)
    how |= {"save_all": True, "append_images": images[1:], "duration": int(1000 / fps)}
    return write(slot, suffix, partial(images[0].save, **how))


@node(
    "SaveImageWebsocket",
    "image",
    "Save Image (Websocket)",
    module="custom_nodes.websocket_image_save",
    output_node=True,
    fingerprint=lambda folders, inputs: time.time(),
)
def save_image_websocket(env: Env, images: ImageBatch = IMAGE) -> Outcome:
    """Send each picture as a PNG over the socket; nothing on disk, nothing in history."""
    for number, image in enumerate(images):
        env.report(number, len(images), PreviewImage("PNG", image, None))
    return Outcome()
