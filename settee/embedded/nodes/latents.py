"""ComfyUI's latents, standing in: a latent is a picture of an eighth of the size, which a VAE scales up and down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from PIL import Image

from settee.embedded.nodes.base import ImageBatch, Node, NodeEnv, NodeSpec, Outcome, integer
from settee.embedded.nodes.models import PIXEL_SPACE
from settee.embedded.nodes.weights import Weights

SCALE = 8
"""Pixels of a picture for one of its latent, each way."""
_GREY = (128, 128, 128)
_TINT_SHARE = 0.06


@dataclass(frozen=True)
class Latent:
    """A LATENT: RGB pictures of one size."""

    pictures: ImageBatch

    def __str__(self) -> str:
        width, height = self.pictures.size
        return f"latents({len(self.pictures)} of {width}x{height})"


def tinted(image: Image.Image, digest: str, share: float) -> Image.Image:
    """An RGB picture with a share of the colour that a hash begins with."""
    colour = tuple(bytes.fromhex(digest[:6]))
    return Image.blend(image, Image.new("RGB", image.size, colour), share)


class EmptyLatentImage(Node):
    """Grey for a sampler to start from, an eighth of the picture's size."""

    spec = NodeSpec(
        "EmptyLatentImage",
        "model/latent",
        required={
            "width": integer(512, 16, step=8),
            "height": integer(512, 16, step=8),
            "batch_size": integer(1, 1, 4096),
        },
        returns=("LATENT",),
        display_name="Empty Latent Image",
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        grey = Image.new("RGB", (inputs["width"] // SCALE, inputs["height"] // SCALE), _GREY)
        return Outcome((Latent(ImageBatch([grey] * inputs["batch_size"])),))


class VAEDecode(Node):
    """Latents as pictures, with a tint by which one sees whose VAE it was."""

    spec = NodeSpec(
        "VAEDecode",
        "model/latent",
        required={"samples": ("LATENT", {}), "vae": ("VAE", {})},
        returns=("IMAGE",),
        display_name="VAE Decode",
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        latent: Latent = inputs["samples"]
        vae: Weights = inputs["vae"]
        width, height = latent.pictures.size
        size = (width * SCALE, height * SCALE)

        def decoded(small: Image.Image) -> Image.Image:
            env.check_interrupted()
            picture = small.resize(size, Image.Resampling.BICUBIC)
            return picture if vae.file == PIXEL_SPACE else tinted(picture, vae.digest, _TINT_SHARE)

        return Outcome((latent.pictures.each(decoded),))


class VAEEncode(Node):
    """Pictures as latents; what is over a multiple of eight is cut off, as ComfyUI does, evenly on both sides."""

    spec = NodeSpec(
        "VAEEncode",
        "model/latent",
        required={"pixels": ("IMAGE",), "vae": ("VAE",)},
        returns=("LATENT",),
        display_name="VAE Encode",
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        pixels: ImageBatch = inputs["pixels"]
        width, height = (max(1, side // SCALE) for side in pixels.size)
        left, top = ((side % SCALE) // 2 if side >= SCALE else 0 for side in pixels.size)
        right, bottom = (left + min(width * SCALE, pixels.size[0]), top + min(height * SCALE, pixels.size[1]))

        def encoded(image: Image.Image) -> Image.Image:
            cut = image.convert("RGB").crop((left, top, right, bottom))
            return cut.resize((width, height), Image.Resampling.BOX)

        return Outcome((Latent(pixels.each(encoded)),))


NODES: tuple[type[Node], ...] = (EmptyLatentImage, VAEDecode, VAEEncode)
