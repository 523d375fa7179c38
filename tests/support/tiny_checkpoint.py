"""Make a checkpoint that a real ComfyUI samples with in a fraction of a second on a CPU:
``python -m tests.support.tiny_checkpoint MODELS_DIR``.

It has the shape of Stable Diffusion 1.5 with one level of its UNet, its whole text encoder, and the small TAESD for a
VAE. Every weight is zero and the file is sparse, so its 300 MB take no room on the disk.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

Tensor = tuple[str, list[int]]

_WIDTH, _TIME, _CONTEXT = 320, 1280, 768
_LATENT, _TAESD = 4, 64


def _layer(name: str, *weight: int, bias: bool = True) -> Iterator[Tensor]:
    yield f"{name}.weight", list(weight)
    if bias:
        yield f"{name}.bias", [weight[0]]


def _residual(name: str, width: int) -> Iterator[Tensor]:
    yield from _layer(f"{name}.in_layers.0", width)
    yield from _layer(f"{name}.in_layers.2", _WIDTH, width, 3, 3)
    yield from _layer(f"{name}.emb_layers.1", _WIDTH, _TIME)
    yield from _layer(f"{name}.out_layers.0", _WIDTH)
    yield from _layer(f"{name}.out_layers.3", _WIDTH, _WIDTH, 3, 3)
    if width != _WIDTH:
        yield from _layer(f"{name}.skip_connection", _WIDTH, width, 1, 1)


def _transformer(name: str) -> Iterator[Tensor]:
    yield from _layer(f"{name}.norm", _WIDTH)
    yield from _layer(f"{name}.proj_in", _WIDTH, _WIDTH, 1, 1)
    block = f"{name}.transformer_blocks.0"
    for attention, width in (("attn1", _WIDTH), ("attn2", _CONTEXT)):
        yield from _layer(f"{block}.{attention}.to_q", _WIDTH, _WIDTH, bias=False)
        yield from _layer(f"{block}.{attention}.to_k", _WIDTH, width, bias=False)
        yield from _layer(f"{block}.{attention}.to_v", _WIDTH, width, bias=False)
        yield from _layer(f"{block}.{attention}.to_out.0", _WIDTH, _WIDTH)
    yield from _layer(f"{block}.ff.net.0.proj", 8 * _WIDTH, _WIDTH)
    yield from _layer(f"{block}.ff.net.2", _WIDTH, 4 * _WIDTH)
    for index in (1, 2, 3):
        yield from _layer(f"{block}.norm{index}", _WIDTH)
    yield from _layer(f"{name}.proj_out", _WIDTH, _WIDTH, 1, 1)


def _unet() -> Iterator[Tensor]:
    yield from _layer("time_embed.0", _TIME, _WIDTH)
    yield from _layer("time_embed.2", _TIME, _TIME)
    yield from _layer("input_blocks.0.0", _WIDTH, _LATENT, 3, 3)
    yield from _residual("input_blocks.1.0", _WIDTH)
    yield from _transformer("input_blocks.1.1")
    yield from _residual("middle_block.0", _WIDTH)
    yield from _transformer("middle_block.1")
    yield from _residual("middle_block.2", _WIDTH)
    for index in (0, 1):
        yield from _residual(f"output_blocks.{index}.0", 2 * _WIDTH)
        yield from _transformer(f"output_blocks.{index}.1")
    yield from _layer("out.0", _WIDTH)
    yield from _layer("out.2", _LATENT, _WIDTH, 3, 3)


def _text_encoder() -> Iterator[Tensor]:
    yield "embeddings.token_embedding.weight", [49408, _CONTEXT]
    yield "embeddings.position_embedding.weight", [77, _CONTEXT]
    for index in range(12):
        name = f"encoder.layers.{index}"
        for projection in ("q_proj", "k_proj", "v_proj", "out_proj"):
            yield from _layer(f"{name}.self_attn.{projection}", _CONTEXT, _CONTEXT)
        yield from _layer(f"{name}.layer_norm1", _CONTEXT)
        yield from _layer(f"{name}.layer_norm2", _CONTEXT)
        yield from _layer(f"{name}.mlp.fc1", 4 * _CONTEXT, _CONTEXT)
        yield from _layer(f"{name}.mlp.fc2", _CONTEXT, 4 * _CONTEXT)
    yield from _layer("final_layer_norm", _CONTEXT)


def _taesd_block(name: str) -> Iterator[Tensor]:
    for index in (0, 2, 4):
        yield from _layer(f"{name}.conv.{index}", _TAESD, _TAESD, 3, 3)


def _vae() -> Iterator[Tensor]:
    yield from _layer("taesd_encoder.0", _TAESD, 3, 3, 3)
    yield from _taesd_block("taesd_encoder.1")
    for down in (2, 6, 10):
        yield from _layer(f"taesd_encoder.{down}", _TAESD, _TAESD, 3, 3, bias=False)
        for index in (1, 2, 3):
            yield from _taesd_block(f"taesd_encoder.{down + index}")
    yield from _layer("taesd_encoder.14", _LATENT, _TAESD, 3, 3)
    yield from _layer("taesd_decoder.1", _TAESD, _LATENT, 3, 3)
    for up in (3, 8, 13):
        for index in (0, 1, 2):
            yield from _taesd_block(f"taesd_decoder.{up + index}")
        yield from _layer(f"taesd_decoder.{up + 4}", _TAESD, _TAESD, 3, 3, bias=False)
    yield from _taesd_block("taesd_decoder.18")
    yield from _layer("taesd_decoder.19", 3, _TAESD, 3, 3)


def write(path: Path) -> None:
    """Write the checkpoint as half floats."""
    parts = (
        ("model.diffusion_model", _unet()),
        ("cond_stage_model.transformer.text_model", _text_encoder()),
        ("first_stage_model", _vae()),
    )
    header, end = {}, 0
    for prefix, tensors in parts:
        for name, shape in tensors:
            start, end = end, end + 2 * math.prod(shape)
            header[f"{prefix}.{name}"] = {"dtype": "F16", "shape": shape, "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


if __name__ == "__main__":
    write(Path(sys.argv[1]) / "checkpoints" / "tiny-sd15.safetensors")
