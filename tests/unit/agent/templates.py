"""The workflow template that the agent's documentation has its envelope for, and a job's parts made from both."""

from __future__ import annotations

import copy
import functools
import json
from pathlib import Path
from typing import Any

from settee.doors.agent import envelope
from settee.doors.agent.contract import example
from settee.doors.agent.graph import parameters

EXAMPLE: dict[str, Any] = example("envelope")

DATA = Path(__file__).parents[2] / "data"
REAL = sorted((DATA / "real-workflows").glob("*.api.json"))


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


SIZES = {"width": 1024, "height": 1024, "crop_w": 0, "crop_h": 0, "target_width": 1024, "target_height": 1024}
TEMPLATE: dict[str, Any] = {
    "1": node("CheckpointLoaderSimple", ckpt_name="any.safetensors"),
    "2": node(
        "LoraLoader", model=["1", 0], clip=["1", 1], lora_name="any.safetensors", strength_model=1, strength_clip=1
    ),
    "3": node("CLIPTextEncodeSDXL", clip=["2", 1], text_g="", text_l="", **SIZES),
    "4": node("CLIPTextEncodeSDXL", clip=["2", 1], text_g="", text_l="", **SIZES),
    "5": node("EmptyLatentImage", width=1024, height=1024, batch_size=1),
    "6": node(
        "KSampler",
        model=["2", 0],
        positive=["3", 0],
        negative=["4", 0],
        latent_image=["5", 0],
        seed=0,
        steps=20,
        cfg=8,
        sampler_name="euler",
        scheduler="normal",
        denoise=1.0,
    ),
    "7": node("VAEDecode", samples=["6", 0], vae=["1", 2]),
    "8": node("SaveImage", images=["7", 0], filename_prefix="out"),
}


@functools.cache
def object_info() -> dict[str, Any]:
    return dict(json.loads((DATA / "object_info.json").read_text()))


def dispatched(**changes: Any) -> dict[str, Any]:
    """The documented envelope with other values: ``dispatched(parameters__seed=None)``; ... takes a key out."""
    data = copy.deepcopy(EXAMPLE)
    for path, value in changes.items():
        *parents, last = path.split("__")
        holder = data
        for parent in parents:
            holder = holder[parent]
        if value is ...:
            del holder[last]
        else:
            holder[last] = value
    return data


def parsed(**changes: Any) -> envelope.Envelope:
    return envelope.parse(dispatched(**changes))


def loras(count: int) -> list[dict[str, Any]]:
    return [{"bucket": "comfyui-loras", "key": f"models/loras/{at}.safetensors"} for at in range(count)]


def binding(parameter: str, node_id: str | int, name: str) -> dict[str, Any]:
    """Of a parameter to an input."""
    return {"parameter": parameter, "node": node_id, "path": f"inputs.{name}"}


def placed(given: envelope.Envelope) -> tuple[parameters.PlacedModel, ...]:
    """Models under their keys' last parts."""
    base, *loras = (asset.key.rsplit("/", 1)[-1] for asset in (given.base_model, *given.loras))
    base_model = parameters.PlacedModel(base, "/models/checkpoints/base.safetensors")
    return base_model, *(parameters.PlacedModel(name, "") for name in loras)


def context_of(given: envelope.Envelope, **defaults: Any) -> parameters.Context:
    """A drawn seed is 77."""
    return parameters.context(given, placed(given), defaults=defaults, draw=lambda: 77)
