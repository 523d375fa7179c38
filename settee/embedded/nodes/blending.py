"""ComfyUI's nodes that put images together, and those between images and masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image, ImageMath

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
from settee.embedded.nodes.pictures import scaled

Formula = Callable[[dict[str, Any]], Any]
"""Blends ``a`` and ``b``, mode F pictures of 0…1, given as ImageMath operands."""


def _overlay(m: dict[str, Any]) -> Any:
    a, b = m["a"], m["b"]
    dark = m["float"](a <= 0.5)
    return dark * (2 * a * b) + (1 - dark) * (1 - 2 * (1 - a) * (1 - b))


def _soft_light(m: dict[str, Any]) -> Any:
    a, b = m["a"], m["b"]
    deep = m["float"](a <= 0.25)
    curve = deep * (((16 * a - 12) * a + 4) * a) + (1 - deep) * a**0.5
    dark = m["float"](b <= 0.5)
    return dark * (a - (1 - 2 * b) * a * (1 - a)) + (1 - dark) * (a + (2 * b - 1) * (curve - a))


FORMULAS: dict[str, Formula] = {
    "normal": lambda m: m["b"],
    "multiply": lambda m: m["a"] * m["b"],
    "screen": lambda m: 1 - (1 - m["a"]) * (1 - m["b"]),
    "overlay": _overlay,
    "soft_light": _soft_light,
    "difference": lambda m: m["a"] - m["b"],
}


def blend(first: Image.Image, second: Image.Image, factor: float, mode: str) -> Image.Image:
    """Two pictures of one size and mode as one; raises ValueError for an unknown mode."""
    if mode not in FORMULAS:
        raise ValueError(f"Unsupported blend mode: {mode}")
    formula = FORMULAS[mode]

    def mixed(m: dict[str, Any]) -> Any:
        scaled_down = {**m, "a": m["a"] / 255.0, "b": m["b"] / 255.0}
        result = scaled_down["a"] * (1 - factor) + formula(scaled_down) * factor
        # A hair above the exact value, so that whole bytes survive being cut to a byte.
        return m["min"](m["max"](result * 255.0 + 0.001, 0.0), 255.0)

    bands = [
        ImageMath.lambda_eval(mixed, a=a.convert("F"), b=b.convert("F")).convert("L")
        for a, b in zip(first.split(), second.split(), strict=True)
    ]
    return Image.merge(first.mode, bands)


class ImageBlend(Node):
    """Mix two batches; the second is scaled to the size of the first."""

    spec = NodeSpec(
        "ImageBlend",
        "image/filters",
        required={
            "image1": ("IMAGE", {}),
            "image2": ("IMAGE", {}),
            "blend_factor": decimal(0.5, 0.0, 1.0),
            "blend_mode": ("COMBO", {"multiselect": False, "options": list(FORMULAS)}),
        },
        returns=("IMAGE",),
        module="comfy_extras.nodes_post_processing",
        display_name="Blend Images",
        newer_schema=True,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        first: ImageBatch = inputs["image1"]
        second: ImageBatch = inputs["image2"]
        if second[0].mode != first[0].mode:
            second = second.each(lambda image: image.convert(first[0].mode))
        if second.size != first.size:
            second = scaled(second, *first.size, "bicubic", "center")
        length = max(len(first), len(second))
        pairs = ((first[i % len(first)], second[i % len(second)]) for i in range(length))
        blended = (blend(a, b, inputs["blend_factor"], inputs["blend_mode"]) for a, b in pairs)
        return Outcome((ImageBatch(blended),))


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


NODES: tuple[type[Node], ...] = (
    ImageBlend,
    MaskToImage,
    ImageToMask,
    SolidMask,
    InvertMask,
)
