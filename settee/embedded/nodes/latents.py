"""ComfyUI's nodes for latents, and its samplers, standing in."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

from PIL import Image

from settee.embedded.broadcast import PreviewImage
from settee.embedded.nodes.base import ImageBatch, Node, NodeEnv, NodeSpec, Outcome, decimal, integer
from settee.embedded.nodes.models import PIXEL_SPACE, Conditioning, Weights, digest_of

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


SAMPLERS = [
    *("euler", "euler_cfg_pp", "euler_ancestral", "euler_ancestral_cfg_pp", "heun", "heunpp2"),
    *("exp_heun_2_x0", "exp_heun_2_x0_sde", "dpm_2"),
    *("dpm_2_ancestral", "lms", "dpm_fast", "dpm_adaptive", "dpmpp_2s_ancestral", "dpmpp_2s_ancestral_cfg_pp"),
    *("dpmpp_sde", "dpmpp_sde_gpu", "dpmpp_2m", "dpmpp_2m_cfg_pp", "dpmpp_2m_sde", "dpmpp_2m_sde_gpu"),
    *("dpmpp_2m_sde_heun", "dpmpp_2m_sde_heun_gpu", "dpmpp_3m_sde", "dpmpp_3m_sde_gpu", "ddpm", "lcm", "ipndm"),
    *("ipndm_v", "deis", "res_multistep", "res_multistep_cfg_pp", "res_multistep_ancestral"),
    *("res_multistep_ancestral_cfg_pp", "gradient_estimation", "gradient_estimation_cfg_pp", "er_sde", "seeds_2"),
    *("seeds_3", "sa_solver", "sa_solver_pece", "ddim", "uni_pc", "uni_pc_bh2"),
]
SCHEDULERS = [
    *("simple", "sgm_uniform", "karras", "exponential", "ddim_uniform", "beta", "normal", "linear_quadratic"),
    "kl_optimal",
]
_CLOUDS = 16
"""Random colours each way, of which clouds are made."""
_MODEL_TINT_SHARE = 0.3
_SETTINGS = ("seed", "steps", "cfg", "sampler_name", "scheduler", "denoise")


class KSampler(Node):
    """Turns latents step by step into clouds of the colours that a hash of all inputs gives, tinted by the model.

    With denoise below 1 the start shines through. A step takes no time, unless the fault ``step_slow`` says how much;
    each reports progress and a preview (if previews are on), and after each an interrupt is noticed.
    """

    spec = NodeSpec(
        "KSampler",
        "model/sampling",
        required={
            "model": ("MODEL", {}),
            "seed": integer(0, 0, 2**64 - 1, control_after_generate=True),
            "steps": integer(20, 1, 10_000),
            "cfg": ("FLOAT", {"default": 8.0, "min": 0.0, "max": 100.0, "step": 0.1, "round": 0.01}),
            "sampler_name": (SAMPLERS, {}),
            "scheduler": (SCHEDULERS, {}),
            "positive": ("CONDITIONING", {}),
            "negative": ("CONDITIONING", {}),
            "latent_image": ("LATENT", {}),
            "denoise": decimal(1.0, 0.0, 1.0),
        },
        returns=("LATENT",),
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        start: ImageBatch = inputs["latent_image"].pictures
        steps, denoise = inputs["steps"], inputs["denoise"]
        targets = self._targets(inputs, start)
        for step in range(1, steps + 1):
            if delay := env.faults.seconds("step_slow"):
                time.sleep(delay)
            preview = None
            if env.preview_size is not None:
                picture = Image.blend(start[0], targets[0], denoise * step / steps)
                preview = PreviewImage("JPEG", picture, env.preview_size)
            env.report(step, steps, preview)
        pairs = zip(start, targets, strict=True)
        return Outcome((Latent(ImageBatch(Image.blend(old, new, denoise) for old, new in pairs)),))

    @staticmethod
    def _targets(inputs: dict[str, Any], start: ImageBatch) -> list[Image.Image]:
        model: Weights = inputs["model"]
        texts: list[Conditioning] = [inputs["positive"], inputs["negative"]]
        settings = [inputs[name] for name in _SETTINGS]
        what = digest_of(model.digest, [text.digest for text in texts], settings)
        clouds = (_clouds(digest_of(what, number), start.size) for number in range(len(start)))
        return [tinted(cloud, model.digest, _MODEL_TINT_SHARE) for cloud in clouds]


def _clouds(digest: str, size: tuple[int, int]) -> Image.Image:
    colours = random.Random(digest).randbytes(_CLOUDS * _CLOUDS * 3)  # noqa: S311 (a picture, not a secret)
    return Image.frombytes("RGB", (_CLOUDS, _CLOUDS), colours).resize(size, Image.Resampling.BICUBIC)


NODES: tuple[type[Node], ...] = (
    EmptyLatentImage,
    VAEDecode,
    VAEEncode,
    KSampler,
)
