"""Resizing as ComfyUI does it: PyTorch's interpolation rules, which are not Pillow's.

PyTorch's bilinear and bicubic do not smooth when they shrink, its bicubic uses a = -0.75 where Pillow uses -0.5,
and its area averages whole pixels. Both samplers are separable, so each runs along x and then along y, in floats.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable

from PIL import Image, ImageMath

METHODS = ("nearest-exact", "bilinear", "area", "bicubic", "lanczos")

_CUBIC_A = -0.75


def resize(image: Image.Image, width: int, height: int, method: str) -> Image.Image:
    """The picture at another size; method is one of METHODS."""
    if (width, height) == image.size:
        return image
    if method == "lanczos":
        return image.resize((width, height), Image.Resampling.LANCZOS)
    if method == "nearest-exact":
        return _by_axis(image, width, height, _picked)
    along_x = _area if method == "area" else _sampled_with(_bicubic if method == "bicubic" else _bilinear)
    bands = [_by_axis(band.convert("F"), width, height, along_x) for band in image.split()]
    return Image.merge(image.mode, [_bytes_of(band) for band in bands])


def _by_axis(
    image: Image.Image, width: int, height: int, along_x: Callable[[Image.Image, int], Image.Image]
) -> Image.Image:
    """Resize along x, then along y."""
    if width != image.width:
        image = along_x(image, width)
    if height != image.height:
        turned = image.transpose(Image.Transpose.TRANSPOSE)
        image = along_x(turned, height).transpose(Image.Transpose.TRANSPOSE)
    return image


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


def _bytes_of(band: Image.Image) -> Image.Image:
    """Mode F to L, clipped to 0…255 and cut to whole numbers, as ComfyUI cuts when it saves."""
    clipped: Image.Image = ImageMath.lambda_eval(lambda m: m["min"](m["max"](m["band"] + 0.001, 0.0), 255.0), band=band)
    return clipped.convert("L")


def _picked(image: Image.Image, width: int) -> Image.Image:
    """Nearest columns. PyTorch finds them in 32-bit floats, which decides ties differently than Pillow does."""
    scale = array("f", [image.width / width])[0]
    points = array("f", ((x + 0.5) * scale for x in range(width)))
    result = Image.new(image.mode, (width, image.height))
    for x, point in enumerate(points):
        left = min(int(point), image.width - 1)
        result.paste(image.crop((left, 0, left + 1, image.height)), (x, 0))
    return result


def _area(band: Image.Image, width: int) -> Image.Image:
    """Each column is the mean of every column its share of the width touches."""
    old, height = band.size
    if old % width == 0:
        return band.resize((width, height), Image.Resampling.BOX)
    result = Image.new("F", (width, height))
    for x in range(width):
        start, end = x * old // width, -(-(x + 1) * old // width)
        column = band.resize((1, height), Image.Resampling.BOX, box=(start, 0, end, height))
        result.paste(column, (x, 0))
    return result


Taps = list[tuple[int, list[float]]]
"""Offsets from the pixel left of a sample point, each with its weight for every output column."""

_TIE = 1e-6
"""Pixels. Makes sample points that fall on a pixel round the same way wherever they are computed."""


def _sampled_with(taps: Callable[[list[float]], Taps]) -> Callable[[Image.Image, int], Image.Image]:
    """A resizer along x: the sum over taps of weight times shifted pixels."""

    def resized(band: Image.Image, width: int) -> Image.Image:
        old, height = band.size
        points = [(x + 0.5) * old / width - 0.5 + _TIE for x in range(width)]
        padded, total = _with_repeated_edges(band), Image.new("F", (width, height))
        for offset, weights in taps([point - math.floor(point) for point in points]):
            # The pixel left of sample x is floor((x + 0.5) * scale - 0.5): a nearest transform moved half a pixel.
            move = (old / width, 0.0, _REACH - 0.5 + _TIE + offset, 0.0, 1.0, 0.0)
            pixels = padded.transform((width, height), Image.Transform.AFFINE, move, Image.Resampling.NEAREST)
            row = Image.new("F", (width, 1))
            row.putdata(weights)
            weight = row.resize((width, height), Image.Resampling.NEAREST)
            total = ImageMath.lambda_eval(lambda m: m["t"] + m["p"] * m["w"], t=total, p=pixels, w=weight)
        return total

    return resized


_REACH = 2
"""How many pixels beyond an edge a tap can lie."""


def _with_repeated_edges(band: Image.Image) -> Image.Image:
    width, height = band.size
    padded = Image.new("F", (width + 2 * _REACH, height))
    padded.paste(band, (_REACH, 0))
    for edge, at in ((0, 0), (width - 1, width + _REACH)):
        column = band.crop((edge, 0, edge + 1, height)).resize((_REACH, height), Image.Resampling.NEAREST)
        padded.paste(column, (at, 0))
    return padded


def _bilinear(fractions: list[float]) -> Taps:
    return [(0, [1.0 - fraction for fraction in fractions]), (1, fractions)]


def _bicubic(fractions: list[float]) -> Taps:
    return [(offset, [_cubic(fraction - offset) for fraction in fractions]) for offset in (-1, 0, 1, 2)]


def _cubic(distance: float) -> float:
    """Keys' cubic convolution kernel (1981)."""
    d, a = abs(distance), _CUBIC_A
    if d <= 1:
        return ((a + 2) * d - (a + 3)) * d * d + 1
    return ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
