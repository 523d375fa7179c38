"""ComfyUI's nodes for latents, and its sampler, standing in. A LATENT is an ImageBatch at an eighth of the size."""

from __future__ import annotations

import random
from typing import Any

from PIL import Image

from settee.embedded.broadcast import PreviewImage
from settee.embedded.nodes.models import PIXEL_SPACE, Conditioning, Weights, digest_of
from settee.embedded.nodes.node import IMAGE, Env, ImageBatch, decimal, integer, node, value

SCALE = 8
"""Pixels of a picture for one of its latent, each way."""
SEED: Any = integer(0, 0, 2**64 - 1, control_after_generate=True)
STEPS: Any = integer(20, 1, 10_000)
_GREY = (128, 128, 128)
_VAE_TINT_SHARE = 0.06
_MODEL_TINT_SHARE = 0.3


def tinted(image: Image.Image, digest: str, share: float) -> Image.Image:
    """Return a picture with a share of the colour that a hash begins with."""
    return Image.blend(image, Image.new("RGB", image.size, tuple(bytes.fromhex(digest[:6]))), share)


def clouds(seed: int | str, size: tuple[int, int]) -> Image.Image:
    """Return smooth clouds: 16 x 16 random colours scaled up."""
    colours = random.Random(seed).randbytes(16 * 16 * 3)  # noqa: S311 (a picture, not a secret)
    return Image.frombytes("RGB", (16, 16), colours).resize(size, Image.Resampling.BICUBIC)


@node("EmptyLatentImage", "model/latent", "Empty Latent Image", "LATENT")
def empty_latent_image(
    width: int = integer(512, 16, step=8),
    height: int = integer(512, 16, step=8),
    batch_size: int = integer(1, 1, 4096),
) -> ImageBatch:
    return ImageBatch([Image.new("RGB", (width // SCALE, height // SCALE), _GREY)] * batch_size)


@node("VAEDecode", "model/latent", "VAE Decode", "IMAGE")
def vae_decode(env: Env, samples: ImageBatch = value("LATENT"), vae: Weights = value("VAE")) -> ImageBatch:
    """Make pictures of latents, with a tint by which one sees whose VAE it was."""
    width, height = (side * SCALE for side in samples.size)

    def decoded(small: Image.Image) -> Image.Image:
        env.check_interrupted()
        picture = small.resize((width, height), Image.Resampling.BICUBIC)
        return picture if vae.file == PIXEL_SPACE else tinted(picture, vae.digest, _VAE_TINT_SHARE)

    return samples.each(decoded)


@node("VAEEncode", "model/latent", "VAE Encode", "LATENT")
def vae_encode(pixels: ImageBatch = IMAGE, vae: Weights = value("VAE")) -> ImageBatch:
    """Make latents of pictures; what is over a multiple of eight is cut off, as ComfyUI does, evenly on both sides."""
    width, height = (max(1, side // SCALE) for side in pixels.size)
    left, top = ((side % SCALE) // 2 if side >= SCALE else 0 for side in pixels.size)
    box = (left, top, left + min(width * SCALE, pixels.size[0]), top + min(height * SCALE, pixels.size[1]))
    return pixels.each(lambda image: image.convert("RGB").crop(box).resize((width, height), Image.Resampling.BOX))


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


@node("KSampler", "model/sampling", returns="LATENT")
def ksampler(
    env: Env,
    model: Weights = value("MODEL"),
    seed: int = SEED,
    steps: int = STEPS,
    cfg: float = decimal(8.0, 0.0, 100.0, 0.1, round=0.01),
    sampler_name: str = value(SAMPLERS),
    scheduler: str = value(SCHEDULERS),
    positive: Conditioning = value("CONDITIONING"),
    negative: Conditioning = value("CONDITIONING"),
    latent_image: ImageBatch = value("LATENT"),
    denoise: float = decimal(1.0, 0.0, 1.0),
) -> ImageBatch:
    """Turn pictures step by step into clouds of the colours that a hash of all inputs gives, tinted by the model.

    With denoise below 1 the start shines through. Each step reports progress and a preview (if previews are on), and
    takes no time; an interrupt is noticed only after it, as in a real one.
    """
    settings = [seed, steps, cfg, sampler_name, scheduler, denoise]
    what = digest_of(model.digest, positive, negative, settings)
    numbered = [digest_of(what, number) for number in range(len(latent_image))]
    targets = [tinted(clouds(each, latent_image.size), model.digest, _MODEL_TINT_SHARE) for each in numbered]

    def blended(number: int, step: int) -> Image.Image:
        return Image.blend(latent_image[number].convert("RGB"), targets[number], denoise * step / steps)

    for step in range(1, steps + 1):
        size = env.options.preview_size
        env.report(step, steps, None if size is None else PreviewImage("JPEG", blended(0, step), size))
    return ImageBatch(blended(number, steps) for number in range(len(targets)))
