"""ComfyUI's nodes that read images from the input directory."""

from __future__ import annotations

import hashlib
import mimetypes
import os
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from PIL import Image, ImageFile, ImageOps, ImageSequence

from settee.embedded.folders import Folders
from settee.embedded.nodes.base import (
    ImageBatch,
    Inputs,
    MaskBatch,
    Node,
    NodeEnv,
    NodeSpec,
    Outcome,
    choice,
    inverted,
)

T = TypeVar("T")


def _files(folders: Folders, only_images: bool) -> list[str]:
    names = sorted(entry.name for entry in os.scandir(folders.input) if entry.is_file())
    if not only_images:
        return names
    return [name for name in names if (mimetypes.guess_type(name, strict=False)[0] or "").startswith("image/")]


def _tolerating_truncation(function: Callable[[Any], T], argument: Any) -> T:
    """Call a Pillow function; if it fails, once more accepting truncated files.

    This is why ComfyUI renders half a PNG as if it were whole.
    """
    try:
        return function(argument)
    except (OSError, ValueError):
        before = ImageFile.LOAD_TRUNCATED_IMAGES
        ImageFile.LOAD_TRUNCATED_IMAGES = True
        try:
            return function(argument)
        finally:
            ImageFile.LOAD_TRUNCATED_IMAGES = before


def _upright(image: Image.Image) -> Image.Image:
    """The picture turned as its EXIF data says, 16-bit greys brought down to 8 bits."""
    upright = _tolerating_truncation(ImageOps.exif_transpose, image)
    if upright.mode == "I":
        return upright.point(lambda value: value * (1 / 255))
    return upright


def _mask_of(image: Image.Image) -> Image.Image:
    """Alpha inverted; 64 x 64 zeros when the picture has none."""
    if "A" in image.getbands():
        return inverted(image.getchannel("A"))
    if image.mode == "P" and "transparency" in image.info:
        return inverted(image.convert("RGBA").getchannel("A"))
    return Image.new("L", (64, 64), 0)


class InvalidDataError(ValueError):
    """PyAV, which ComfyUI asks before Pillow, finds nothing in a file; reported under the name of its exception."""


InvalidDataError.__module__ = "av.error"


def _frames(path: str) -> Iterator[Image.Image]:
    # Where the content tells PyAV nothing, it goes by the name; what it then cannot decode goes on to Pillow.
    is_image = (mimetypes.guess_type(path, strict=False)[0] or "").startswith("image/")
    if not is_image or not os.path.getsize(path):
        raise InvalidDataError(f"[Errno 1094995529] Invalid data found when processing input: '{path}'")
    image = _tolerating_truncation(Image.open, path)
    with image:
        for frame in ImageSequence.Iterator(image):
            yield _upright(frame)
            if image.format == "MPO":  # a stereo photo: ComfyUI takes the first picture only
                return


class _FileNode(Node):
    """Reads ``image``, a name below the input directory. The file's bytes decide whether a cached result holds."""

    has_fingerprint = True
    checks = ("image",)

    @classmethod
    def fingerprint(cls, env: NodeEnv, inputs: dict[str, Any]) -> Any:
        with open(env.folders.locate(inputs["image"]), "rb") as file:
            return hashlib.sha256(file.read()).hexdigest()

    @classmethod
    def check(cls, folders: Folders, inputs: dict[str, Any]) -> str | None:
        if "image" not in inputs:
            raise TypeError(f"{cls.__name__}.VALIDATE_INPUTS() missing 1 required positional argument: 'image'")
        image = inputs["image"]
        return None if os.path.exists(folders.locate(image)) else f"Invalid image file: {image}"


def _load_image_inputs(folders: Folders) -> Inputs:
    return {"image": (_files(folders, only_images=True), {"image_upload": True})}


class LoadImage(_FileNode):
    """Every frame as RGB, and the inverted alpha of each."""

    spec = NodeSpec(
        "LoadImage",
        "image",
        required=_load_image_inputs,
        returns=("IMAGE", "MASK"),
        display_name="Load Image",
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        images, masks = ImageBatch(), MaskBatch()
        for frame in _frames(env.folders.locate(inputs["image"])):
            if not images or frame.size == images.size:
                images.append(frame.convert("RGB"))
                masks.append(_mask_of(frame))
        return Outcome((images, masks))


class LoadImageOutput(LoadImage):
    """LoadImage whose editor widget lists the output directory."""

    spec = NodeSpec(
        "LoadImageOutput",
        "image",
        required={
            "image": (
                "COMBO",
                {
                    "image_upload": True,
                    "image_folder": "output",
                    "remote": {
                        "route": "/internal/files/output",
                        "refresh_button": True,
                        "control_after_refresh": "first",
                    },
                },
            )
        },
        returns=("IMAGE", "MASK"),
        display_name="Load Image (from Outputs)",
        experimental=True,
    )


def _load_mask_inputs(folders: Folders) -> Inputs:
    return {
        "image": (_files(folders, only_images=False), {"image_upload": True}),
        "channel": choice("alpha", "red", "green", "blue"),
    }


class LoadImageMask(_FileNode):
    """One channel as a mask; alpha comes inverted."""

    spec = NodeSpec(
        "LoadImageMask",
        "image",
        required=_load_mask_inputs,
        returns=("MASK",),
        display_name="Load Image (as Mask)",
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        with _tolerating_truncation(Image.open, env.folders.locate(inputs["image"])) as image:
            mask = _upright(image).convert("RGBA").getchannel(inputs["channel"][0].upper())
        return Outcome((MaskBatch([inverted(mask) if inputs["channel"] == "alpha" else mask]),))


NODES: tuple[type[Node], ...] = (LoadImage, LoadImageMask, LoadImageOutput)
