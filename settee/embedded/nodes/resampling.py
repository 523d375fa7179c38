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
    along_y = {"area": _area, "bilinear": _bilinear_rows, "bicubic": _sampled_with(_bicubic)}[method]
    bands = [_by_axis(band.convert("F"), width, height, along_y) for band in image.split()]
    return Image.merge(image.mode, [_bytes_of(band) for band in bands])


def _by_axis(
    image: Image.Image, width: int, height: int, along_y: Callable[[Image.Image, int], Image.Image]
) -> Image.Image:
    """Resize along y, and along x by turning the picture: whole rows are much faster to move than columns."""
    if height != image.height:
        image = along_y(image, height)
    if width != image.width:
        turned = along_y(image.transpose(Image.Transpose.TRANSPOSE), width)
        image = turned.transpose(Image.Transpose.TRANSPOSE)
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


def _picked(image: Image.Image, height: int) -> Image.Image:
    """Nearest rows. PyTorch finds them in 32-bit floats, which decides ties differently than Pillow does."""
    scale = array("f", [image.height / height])[0]
    points = array("f", ((y + 0.5) * scale for y in range(height)))
    result = Image.new(image.mode, (image.width, height))
    for y, point in enumerate(points):
        top = min(int(point), image.height - 1)
        result.paste(image.crop((0, top, image.width, top + 1)), (0, y))
    return result


def _area(band: Image.Image, height: int) -> Image.Image:
    """Each row is the mean of every row its share of the height touches."""
    width, old = band.size
    if old % height == 0:
        return band.resize((width, height), Image.Resampling.BOX)
    result = Image.new("F", (width, height))
    for y in range(height):
        start, end = y * old // height, -(-(y + 1) * old // height)
        result.paste(band.resize((width, 1), Image.Resampling.BOX, box=(0, start, width, end)), (0, y))
    return result


Taps = list[tuple[int, list[float]]]
"""Offsets from the row above a sample point, each with its weight for every output row."""

_TIE = 1e-6
"""Pixels. Makes sample points that fall on a row round the same way wherever they are computed."""

_REACH = 2
"""How many rows beyond an edge a tap can lie."""


def _sampled_with(taps: Callable[[list[float]], Taps]) -> Callable[[Image.Image, int], Image.Image]:
    """A resizer along y: the sum over taps of weight times shifted rows."""

    def resized(band: Image.Image, height: int) -> Image.Image:
        width, old = band.size
        points = [(y + 0.5) * old / height - 0.5 + _TIE for y in range(height)]
        padded, total = _with_repeated_edges(band), Image.new("F", (width, height))
        for offset, weights in taps([point - math.floor(point) for point in points]):
            # The row above sample y is floor((y + 0.5) * scale - 0.5): a nearest transform moved half a pixel.
            move = (1.0, 0.0, 0.0, 0.0, old / height, _REACH - 0.5 + _TIE + offset)
            rows = padded.transform((width, height), Image.Transform.AFFINE, move, Image.Resampling.NEAREST)
            column = Image.new("F", (1, height))
            column.putdata(weights)
            weight = column.resize((width, height), Image.Resampling.NEAREST)
            total = ImageMath.lambda_eval(lambda m: m["t"] + m["r"] * m["w"], t=total, r=rows, w=weight)
        return total

    return resized


def _with_repeated_edges(band: Image.Image) -> Image.Image:
    width, height = band.size
    padded = Image.new("F", (width, height + 2 * _REACH))
    padded.paste(band, (0, _REACH))
    for edge, at in ((0, 0), (height - 1, height + _REACH)):
        row = band.crop((0, edge, width, edge + 1)).resize((width, _REACH), Image.Resampling.NEAREST)
        padded.paste(row, (0, at))
    return padded


def _bilinear_rows(band: Image.Image, height: int) -> Image.Image:
    """Growing, Pillow's filter is the same as PyTorch's and much faster; shrinking, it smooths."""
    if height > band.height:
        return band.resize((band.width, height), Image.Resampling.BILINEAR)
    return _sampled_with(_bilinear)(band, height)


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
