"""ComfyUI's nodes between images and masks."""

from __future__ import annotations

from typing import Any

from PIL import Image

from settee.embedded.nodes.base import (
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

_MODULE = "comfy_extras.nodes_mask"
_CHANNELS = ("red", "green", "blue", "alpha")


class MaskToImage(Node):
    """A mask as a grey picture."""

    spec = NodeSpec(
        "MaskToImage",
        "image/mask",
        required={"mask": ("MASK",)},
        returns=("IMAGE",),
        module=_MODULE,
        display_name="Convert Mask to Image",
        newer_schema=True,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        masks: MaskBatch = inputs["mask"]
        return Outcome((ImageBatch(Image.merge("RGB", (mask, mask, mask)) for mask in masks),))


class ImageToMask(Node):
    """One channel of a picture; raises IndexError for alpha when there is none."""

    spec = NodeSpec(
        "ImageToMask",
        "image/mask",
        required={"image": ("IMAGE",), "channel": choice(*_CHANNELS)},
        returns=("MASK",),
        module=_MODULE,
        display_name="Convert Image to Mask",
        newer_schema=True,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        images: ImageBatch = inputs["image"]
        channel = _CHANNELS.index(inputs["channel"])
        depth = len(images[0].getbands())
        if channel >= depth:
            raise IndexError(f"index {channel} is out of bounds for dimension 3 with size {depth}")
        return Outcome((MaskBatch(image.getchannel(channel) for image in images),))


class SolidMask(Node):
    """A mask of one value."""

    spec = NodeSpec(
        "SolidMask",
        "image/mask",
        required={
            "value": decimal(1.0, 0.0, 1.0),
            "width": integer(512, 1, step=1),
            "height": integer(512, 1, step=1),
        },
        returns=("MASK",),
        module=_MODULE,
        display_name="Create Solid Mask",
        newer_schema=True,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        value = int(inputs["value"] * 255)
        return Outcome((MaskBatch([Image.new("L", (inputs["width"], inputs["height"]), value)]),))


class InvertMask(Node):
    """1 - x."""

    spec = NodeSpec(
        "InvertMask",
        "image/mask",
        required={"mask": ("MASK",)},
        returns=("MASK",),
        module=_MODULE,
        display_name="Invert Mask",
        newer_schema=True,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        return Outcome((MaskBatch(inverted(mask) for mask in inputs["mask"]),))


NODES: tuple[type[Node], ...] = (MaskToImage, ImageToMask, SolidMask, InvertMask)
