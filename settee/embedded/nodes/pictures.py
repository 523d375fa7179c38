"""ComfyUI's nodes that make, scale, cut, batch and blend images, and those between images and masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from PIL import Image, ImageMath

from settee.embedded.nodes.node import IMAGE, MASK, MAX_RESOLUTION, ImageBatch, choice, decimal, integer, node

METHODS = {
    "nearest-exact": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "area": Image.Resampling.BOX,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}
"""Pillow's filters. Only lanczos is ComfyUI's too: PyTorch's bilinear and bicubic do not smooth when they shrink."""


def scaled(images: ImageBatch, width: int, height: int, method: str, crop: str = "disabled") -> ImageBatch:
    """Return the batch at another size; crop ``center`` cuts to the new proportions first."""
    old_width, old_height = images.size
    x = y = 0
    if crop == "center":
        x = max(0, round((old_width - old_height * width / height) / 2))
        y = max(0, round((old_height - old_width * height / width) / 2))
    box = (x, y, old_width - x, old_height - y)
    return images.each(lambda image: image.crop(box).resize((width, height), METHODS[method]))


def inverted(image: Image.Image) -> Image.Image:
    """Return 1 - x for every channel."""
    return image.point(lambda value: 255 - value)


@node("EmptyImage", "image", "Empty Image", "IMAGE")
def empty_image(
    width: int = integer(512, 1, step=1),
    height: int = integer(512, 1, step=1),
    batch_size: int = integer(1, 1, 4096),
    color: int = integer(0, 0, 0xFFFFFF, step=1, display="color"),
) -> ImageBatch:
    rgb = (color >> 16 & 255, color >> 8 & 255, color & 255)
    return ImageBatch([Image.new("RGB", (width, height), rgb)] * batch_size)


@node("ImageInvert", "image/color", "Invert Image Colors", "IMAGE")
def image_invert(image: ImageBatch = IMAGE) -> ImageBatch:
    return image.each(inverted)


@node("ImageScale", "image/upscaling", "Upscale Image", "IMAGE")
def image_scale(
    image: ImageBatch = IMAGE,
    upscale_method: str = choice(*METHODS),
    width: int = integer(512, step=1),
    height: int = integer(512, step=1),
    crop: str = choice("disabled", "center"),
) -> ImageBatch:
    """Scale to a size; a side of 0 follows from the other."""
    old_width, old_height = image.size
    if width == height == 0:
        return image
    width = width or max(1, round(old_width * height / old_height))
    height = height or max(1, round(old_height * width / old_width))
    return scaled(image, width, height, upscale_method, crop)


@node("ImageScaleBy", "image/upscaling", "Upscale Image By", "IMAGE")
def image_scale_by(
    image: ImageBatch = IMAGE,
    upscale_method: str = choice(*METHODS),
    scale_by: float = decimal(1.0, 0.01, 8.0),
) -> ImageBatch:
    width, height = (round(side * scale_by) for side in image.size)
    return scaled(image, width, height, upscale_method)


@node("ImageBatch", "image/batch", "Batch Images (DEPRECATED)", "IMAGE", deprecated=True)
def image_batch(image1: ImageBatch = IMAGE, image2: ImageBatch = IMAGE) -> ImageBatch:
    """Make one batch of two, the second scaled to the size of the first."""
    if image1.size != image2.size:
        image2 = scaled(image2, *image1.size, "bilinear", "center")
    return ImageBatch([*image1, *image2])


@node("ImageCrop", "image/transform", "Crop Image (DEPRECATED)", "IMAGE", extras="nodes_images", deprecated=True)
def image_crop(
    image: ImageBatch = IMAGE,
    width: int = integer(512, 1, step=1),
    height: int = integer(512, 1, step=1),
    x: int = integer(0, step=1),
    y: int = integer(0, step=1),
) -> ImageBatch:
    """Cut out a rectangle; what would be outside is left away."""
    right, bottom = image.size
    x, y = min(x, right - 1), min(y, bottom - 1)
    box = (x, y, min(x + width, right), min(y + height, bottom))
    return image.each(lambda each: each.crop(box))


@node("ImagePadForOutpaint", "image/transform", "Pad Image for Outpainting", "IMAGE MASK")
def image_pad_for_outpaint(
    image: ImageBatch = IMAGE,
    left: int = integer(0, step=8),
    top: int = integer(0, step=8),
    right: int = integer(0, step=8),
    bottom: int = integer(0, step=8),
    feathering: int = integer(40, step=1),
) -> tuple[ImageBatch, ImageBatch]:
    """Add a grey border, and a mask of it that fades into the picture with the square of nearness to a padded side."""
    width, height = image.size
    size = (width + left + right, height + top + bottom)

    def padded(each: Image.Image) -> Image.Image:
        canvas = Image.new(each.mode, size, (127,) * len(each.getbands()))
        canvas.paste(each, (left, top))
        return canvas

    inside = Image.new("L", (width, height), 0)
    if 0 < feathering * 2 < min(width, height):
        across = [min(x if left else width, width - x if right else width) for x in range(width)]
        down = [min(y if top else height, height - y if bottom else height) for y in range(height)]
        depths = (max(feathering - min(x, y), 0) / feathering for y in down for x in across)
        inside.putdata([int(255 * depth**2) for depth in depths])
    mask = Image.new("L", size, 255)
    mask.paste(inside, (left, top))
    return image.each(padded), ImageBatch([mask])


@node("RepeatImageBatch", "image/batch", "Repeat Image Batch", "IMAGE", extras="nodes_images")
def repeat_image_batch(image: ImageBatch = IMAGE, amount: int = integer(1, 1, 4096)) -> ImageBatch:
    return ImageBatch([*image] * amount)


@node("ImageFromBatch", "image/batch", "Get Image from Batch", "IMAGE", extras="nodes_images")
def image_from_batch(
    image: ImageBatch = IMAGE,
    batch_index: int = integer(0, -MAX_RESOLUTION),
    length: int = integer(1, 1, 4096),
) -> ImageBatch:
    """Take neighbouring pictures of a batch; a negative index counts from its end."""
    start = max(0, min(batch_index if batch_index >= 0 else batch_index + len(image), len(image) - 1))
    return ImageBatch(image[start : start + length])


# --- two pictures, and masks ------------------------------------------------------------------------------


def _soft_light(a: Any, b: Any) -> Any:
    curve = (a <= 0.25) * (((16 * a - 12) * a + 4) * a) + (a > 0.25) * a**0.5
    return (b <= 0.5) * (a - (1 - 2 * b) * a * (1 - a)) + (b > 0.5) * (a + (2 * b - 1) * (curve - a))


FORMULAS: dict[str, Callable[[Any, Any], Any]] = {
    "normal": lambda a, b: b,
    "multiply": lambda a, b: a * b,
    "screen": lambda a, b: 1 - (1 - a) * (1 - b),
    "overlay": lambda a, b: (a <= 0.5) * (2 * a * b) + (a > 0.5) * (1 - 2 * (1 - a) * (1 - b)),
    "soft_light": _soft_light,
    "difference": lambda a, b: a - b,
}
"""By mode: the blend of pictures of 0…1, given as operands of ImageMath."""


@node("ImageBlend", "image/filters", "Blend Images", "IMAGE", extras="nodes_post_processing")
def image_blend(
    image1: ImageBatch = IMAGE,
    image2: ImageBatch = IMAGE,
    blend_factor: float = decimal(0.5, 0.0, 1.0),
    blend_mode: str = choice(*FORMULAS),
) -> ImageBatch:
    """Mix two batches, the shorter one repeated; the second is scaled to the size of the first."""

    def mixed(m: dict[str, Any]) -> Any:
        a, b = m["a"] / 255.0, m["b"] / 255.0
        result = a * (1 - blend_factor) + FORMULAS[blend_mode](a, b) * blend_factor
        # A hair above the exact value, so that whole bytes survive being cut to a byte.
        return m["min"](m["max"](result * 255.0 + 0.001, 0.0), 255.0)

    def blended(first: Image.Image, second: Image.Image) -> Image.Image:
        pairs = zip(first.split(), second.convert(first.mode).split(), strict=True)
        bands = [ImageMath.lambda_eval(mixed, a=a.convert("F"), b=b.convert("F")).convert("L") for a, b in pairs]
        return Image.merge(first.mode, bands)

    if image2.size != image1.size:
        image2 = scaled(image2, *image1.size, "bicubic", "center")
    numbers = range(max(len(image1), len(image2)))
    return ImageBatch(blended(image1[i % len(image1)], image2[i % len(image2)]) for i in numbers)


@node("MaskToImage", "image/mask", "Convert Mask to Image", "IMAGE", extras="nodes_mask")
def mask_to_image(mask: ImageBatch = MASK) -> ImageBatch:
    return mask.each(lambda each: each.convert("RGB"))


@node("ImageToMask", "image/mask", "Convert Image to Mask", "MASK", extras="nodes_mask")
def image_to_mask(image: ImageBatch = IMAGE, channel: str = choice("red", "green", "blue", "alpha")) -> ImageBatch:
    """Take one channel; raises when there is no alpha."""
    return image.each(lambda each: each.getchannel(channel[0].upper()))


@node("SolidMask", "image/mask", "Create Solid Mask", "MASK", extras="nodes_mask")
def solid_mask(
    value: float = decimal(1.0, 0.0, 1.0),
    width: int = integer(512, 1, step=1),
    height: int = integer(512, 1, step=1),
) -> ImageBatch:
    return ImageBatch([Image.new("L", (width, height), int(value * 255))])


@node("InvertMask", "image/mask", "Invert Mask", "MASK", extras="nodes_mask")
def invert_mask(mask: ImageBatch = MASK) -> ImageBatch:
    return mask.each(inverted)
