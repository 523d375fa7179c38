"""A small workflow with a place for each parameter, and where in a workflow parameters go."""

from __future__ import annotations

from typing import Any

from settee.client.inject.parameter_places import Parameters, parameter_changes
from settee.client.targets.comfy_api import well_described


def on(**names: Any) -> Parameters:
    return Parameters(**names)


def places(workflow: dict[str, Any], info: Any = None, **wanted: Any) -> list[str]:
    return [
        f"{change.node_id}.{change.input}"
        for change in parameter_changes(workflow, on(**wanted), well_described(info or {}))
    ]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def ksampler(latent: str = "5", slot: int = 0, **other: Any) -> dict[str, Any]:
    settings = {"seed": 1, "steps": 20, "cfg": 7, "sampler_name": "euler", "scheduler": "normal", "denoise": 1}
    sources = {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": [latent, slot]}
    return node("KSampler", **{**settings, **sources, **other})


def simple(**others: dict[str, Any]) -> dict[str, Any]:
    """Text to image; ``n12=node(…)`` adds or replaces node 12."""
    return {
        "3": ksampler(),
        "4": node("CheckpointLoaderSimple", ckpt_name="a.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=512, batch_size=1),
        "6": node("CLIPTextEncode", text="a", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="b", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", images=["8", 0], filename_prefix="x"),
        **{name[1:]: other for name, other in others.items()},
    }
