"""Resizing as ComfyUI does it: PyTorch's interpolation rules, which are not Pillow's.

PyTorch's bilinear and bicubic do not smooth when they shrink, its bicubic uses a = -0.75 where Pillow uses -0.5,
and its area averages whole pixels. Both samplers are separable, so each runs along x and then along y, in floats.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from PIL import Image, ImageMath

METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")

_CUBIC_A = -0.75


def resize(image: Image.Image, width: int, height: int, method: str) -> Image.Image:
    """The picture at another size; method is one of METHODS."""
    if method == "nearest-exact":
        return image.resize((width, height), Image.Resampling.NEAREST)
    if method == "lanczos":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    if method == "area":
        return _area(image, width, height)
    return _sampled(image, width, height, _bicubic_taps if method == "bicubic" else _bilinear_taps)


def center_crop(image: Image.Image, width: int, height: int) -> Image.Image:
    """The largest middle part of the picture with the proportions of width x height."""
    old_width, old_height = image.size
    old_aspect, new_aspect = old_width / old_height, width / height
    x = y = 0
    if old_aspect > new_aspect:
        x = round((old_width - old_width * new_aspect / old_aspect) / 2)
    elif old_aspect < new_aspect:
        y = round((old_height - old_height * old_aspect / new_aspect) / 2)
    return image.crop((x, y, old_width - x, old_height - y)) if x or y else image


Taps = list[tuple[int, list[float]]]
"""Offsets from the pixel left of a sample point, each with its weight for every output position."""


def _sampled(image: Image.Image, width: int, height: int, taps: Callable[[int, int], Taps]) -> Image.Image:
    bands = [band.convert("F") for band in image.split()]
    if width != image.width:
        across = taps(image.width, width)
        bands = [_along_x(band, width, across) for band in bands]
    if height != image.height:
        down = taps(image.height, height)
        bands = [
            _along_x(band.transpose(Image.Transpose.TRANSPOSE), height, down).transpose(Image.Transpose.TRANSPOSE)
            for band in bands
        ]
    return Image.merge(image.mode, [_bytes_of(band) for band in bands])


def _bytes_of(band: Image.Image) -> Image.Image:
    """Mode F to L, rounded and clipped to 0…255."""
    rounded: Image.Image = ImageMath.lambda_eval(lambda a: a["min"](a["max"](a["b"] + 0.5, 0.0), 255.0), b=band)
    return rounded.convert("L")


def _along_x(band: Image.Image, width: int, taps: Taps) -> Image.Image:
    """Sample a mode F picture at width points of each row: the sum over taps of weight times shifted pixels."""
    scale = band.width / width
    reach = 2
    padded = _with_repeated_edges(band, reach)
    total: Image.Image | None = None
    for offset, weights in taps:
        # The pixel left of sample x is floor((x + 0.5) * scale - 0.5): a nearest transform moved by half a pixel.
        shift = reach - 0.5 + offset
        pixels = padded.transform(
            (width, band.height),
            Image.Transform.AFFINE,
            (scale, 0.0, shift, 0.0, 1.0, 0.0),
            Image.Resampling.NEAREST,
        )
        row = Image.new("F", (width, 1))
        row.putdata(weights)
        weight = row.resize((width, band.height), Image.Resampling.NEAREST)
        total = _plus_product(total, pixels, weight)
    assert total is not None
    return total


def _plus_product(total: Image.Image | None, pixels: Image.Image, weight: Image.Image) -> Image.Image:
    product: Image.Image = ImageMath.lambda_eval(lambda a: a["p"] * a["w"], p=pixels, w=weight)
    if total is None:
        return product
    added: Image.Image = ImageMath.lambda_eval(lambda a: a["t"] + a["p"], t=total, p=product)
    return added


def _with_repeated_edges(band: Image.Image, reach: int) -> Image.Image:
    width, height = band.size
    padded = Image.new("F", (width + 2 * reach, height))
    padded.paste(band, (reach, 0))
    for edge, at in ((0, 0), (width - 1, width + reach)):
        column = band.crop((edge, 0, edge + 1, height)).resize((reach, height), Image.Resampling.NEAREST)
        padded.paste(column, (at, 0))
    return padded


def _fractions(old: int, new: int) -> list[float]:
    """How far each sample point lies to the right of the pixel at its left."""
    points = [(x + 0.5) * old / new - 0.5 for x in range(new)]
    return [point - math.floor(point) for point in points]


def _bilinear_taps(old: int, new: int) -> Taps:
    fractions = _fractions(old, new)
    return [(0, [1.0 - f for f in fractions]), (1, fractions)]


def _bicubic_taps(old: int, new: int) -> Taps:
    fractions = _fractions(old, new)
    return [(offset, [_cubic(f - offset) for f in fractions]) for offset in (-1, 0, 1, 2)]


def _cubic(distance: float) -> float:
    """Keys' cubic convolution kernel (1981)."""
    d, a = abs(distance), _CUBIC_A
    if d <= 1:
        return ((a + 2) * d - (a + 3)) * d * d + 1
    return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a


def _area(image: Image.Image, width: int, height: int) -> Image.Image:
    """Each output pixel is the mean of every input pixel its area touches."""
    if image.width % width == 0 and image.height % height == 0:
        return image.resize((width, height), Image.Resampling.BOX)
    return _area_along_x(_area_along_x(image, width).transpose(Image.Transpose.TRANSPOSE), height).transpose(
        Image.Transpose.TRANSPOSE
    )


def _area_along_x(image: Image.Image, width: int) -> Image.Image:
    old, height = image.size
    result = Image.new(image.mode, (width, height))
    for x in range(width):
        start, end = x * old // width, -(-(x + 1) * old // width)
        column = image.resize((1, height), Image.Resampling.BOX, box=(start, 0, end, height))
        result.paste(column, (x, 0))
    return result
