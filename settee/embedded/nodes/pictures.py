"""ComfyUI's nodes that make, scale, cut and batch images."""

from __future__ import annotations

from typing import Any

from PIL import Image

from settee.embedded.nodes.base import (
    MAX_RESOLUTION,
    ImageBatch,
    MaskBatch,
    Node,
    NodeEnv,
    NodeSpec,
    Outcome,
    choice,
    decimal,
    integer,
    inverted,
)
from settee.embedded.nodes.resampling import METHODS, center_crop, resize


def scaled(images: ImageBatch, width: int, height: int, method: str, crop: str = "disabled") -> ImageBatch:
    """The batch at another size; crop ``center`` cuts to the new proportions first."""
    if crop == "center":
        images = images.each(lambda image: center_crop(image, width, height))
    return images.each(lambda image: resize(image, width, height, method))


class EmptyImage(Node):
    """A batch of one colour."""

    spec = NodeSpec(
        "EmptyImage",
        "image",
        required={
            "width": integer(512, 1, step=1),
            "height": integer(512, 1, step=1),
            "batch_size": integer(1, 1, 4096),
            "color": integer(0, 0, 0xFFFFFF, step=1, display="color"),
        },
        returns=("IMAGE",),
        display_name="Empty Image",
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        color = inputs["color"]
        rgb = (color >> 16 & 255, color >> 8 & 255, color & 255)
        image = Image.new("RGB", (inputs["width"], inputs["height"]), rgb)
        return Outcome((ImageBatch([image] * inputs["batch_size"]),))


class ImageInvert(Node):
    """1 - x for every channel."""

    spec = NodeSpec(
        "ImageInvert",
        "image/color",
        required={"image": ("IMAGE",)},
        returns=("IMAGE",),
        display_name="Invert Image Colors",
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        images: ImageBatch = inputs["image"]
        return Outcome((images.each(inverted),))


class ImageScale(Node):
    """Scale to a size; a side of 0 follows from the other."""

    spec = NodeSpec(
        "ImageScale",
        "image/upscaling",
        required={
            "image": ("IMAGE",),
            "upscale_method": choice(*METHODS),
            "width": integer(512, step=1),
            "height": integer(512, step=1),
            "crop": choice("disabled", "center"),
        },
        returns=("IMAGE",),
        display_name="Upscale Image",
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        images: ImageBatch = inputs["image"]
        old_width, old_height = images.size
        width, height = inputs["width"], inputs["height"]
        if width == height == 0:
            return Outcome((images,))
        width = width or max(1, round(old_width * height / old_height))
        height = height or max(1, round(old_height * width / old_width))
        return Outcome((scaled(images, width, height, inputs["upscale_method"], inputs["crop"]),))


class ImageScaleBy(Node):
    """Scale both sides by a factor."""

    spec = NodeSpec(
        "ImageScaleBy",
        "image/upscaling",
        required={
            "image": ("IMAGE",),
            "upscale_method": choice(*METHODS),
            "scale_by": decimal(1.0, 0.01, 8.0),
        },
        returns=("IMAGE",),
        display_name="Upscale Image By",
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        images: ImageBatch = inputs["image"]
        width, height = (round(side * inputs["scale_by"]) for side in images.size)
        return Outcome((scaled(images, width, height, inputs["upscale_method"]),))


class BatchImages(Node):
    """Two batches as one, the second scaled to the size of the first."""

    spec = NodeSpec(
        "ImageBatch",
        "image/batch",
        required={"image1": ("IMAGE",), "image2": ("IMAGE",)},
        returns=("IMAGE",),
        display_name="Batch Images (DEPRECATED)",
        deprecated=True,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        first: ImageBatch = inputs["image1"]
        second: ImageBatch = inputs["image2"]
        if first.size != second.size:
            second = scaled(second, *first.size, "bilinear", "center")
        return Outcome((ImageBatch([*first, *second]),))


class ImageCrop(Node):
    """A rectangle; what would lie outside is left away."""

    spec = NodeSpec(
        "ImageCrop",
        "image/transform",
        required={
            "image": ("IMAGE",),
            "width": integer(512, 1, step=1),
            "height": integer(512, 1, step=1),
            "x": integer(0, step=1),
            "y": integer(0, step=1),
        },
        returns=("IMAGE",),
        module="comfy_extras.nodes_images",
        display_name="Crop Image (DEPRECATED)",
        newer_schema=True,
        deprecated=True,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        images: ImageBatch = inputs["image"]
        width, height = images.size
        x, y = min(inputs["x"], width - 1), min(inputs["y"], height - 1)
        box = (x, y, min(x + inputs["width"], width), min(y + inputs["height"], height))
        return Outcome((images.each(lambda image: image.crop(box)),))


class ImagePadForOutpaint(Node):
    """A grey border, and a mask of it whose edge fades into the picture."""

    spec = NodeSpec(
        "ImagePadForOutpaint",
        "image/transform",
        required={
            "image": ("IMAGE",),
            **{side: integer(0, step=8) for side in ("left", "top", "right", "bottom")},
            "feathering": integer(40, step=1),
        },
        returns=("IMAGE", "MASK"),
        display_name="Pad Image for Outpainting",
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        images: ImageBatch = inputs["image"]
        width, height = images.size
        left, top = inputs["left"], inputs["top"]
        size = (width + left + inputs["right"], height + top + inputs["bottom"])

        def padded(image: Image.Image) -> Image.Image:
            canvas = Image.new(image.mode, size, (127,) * len(image.getbands()))
            canvas.paste(image, (left, top))
            return canvas

        mask = Image.new("L", size, 255)
        mask.paste(self._fade(width, height, inputs), (left, top))
        return Outcome((images.each(padded), MaskBatch([mask])))

    @staticmethod
    def _fade(width: int, height: int, inputs: dict[str, Any]) -> Image.Image:
        """The mask over the picture: 0, rising with the square of nearness to a padded side."""
        fade = Image.new("L", (width, height), 0)
        feathering = inputs["feathering"]
        if not 0 < feathering * 2 < min(width, height):
            return fade
        across = [min(x if inputs["left"] else width, width - x if inputs["right"] else width) for x in range(width)]
        values: list[int] = []
        for y in range(height):
            down = min(y if inputs["top"] else height, height - y if inputs["bottom"] else height)
            nearest = (min(down, x) for x in across)
            values += [int(255 * (max(feathering - near, 0) / feathering) ** 2) for near in nearest]
        fade.putdata(values)
        return fade


class RepeatImageBatch(Node):
    """The batch several times over."""

    spec = NodeSpec(
        "RepeatImageBatch",
        "image/batch",
        required={"image": ("IMAGE",), "amount": integer(1, 1, 4096)},
        returns=("IMAGE",),
        module="comfy_extras.nodes_images",
        display_name="Repeat Image Batch",
        newer_schema=True,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        return Outcome((ImageBatch(list(inputs["image"]) * inputs["amount"]),))


class ImageFromBatch(Node):
    """Some neighbouring pictures of a batch."""

    spec = NodeSpec(
        "ImageFromBatch",
        "image/batch",
        required={
            "image": ("IMAGE",),
            "batch_index": integer(0, -MAX_RESOLUTION),
            "length": integer(1, 1, 4096),
        },
        returns=("IMAGE",),
        module="comfy_extras.nodes_images",
        display_name="Get Image from Batch",
        newer_schema=True,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        images: ImageBatch = inputs["image"]
        index = inputs["batch_index"]
        start = max(0, min(index if index >= 0 else index + len(images), len(images) - 1))
        return Outcome((ImageBatch(images[start : start + inputs["length"]]),))


NODES: tuple[type[Node], ...] = (
    EmptyImage,
    ImageInvert,
    ImageScale,
    ImageScaleBy,
    BatchImages,
    ImageCrop,
    ImagePadForOutpaint,
    RepeatImageBatch,
    ImageFromBatch,
)
