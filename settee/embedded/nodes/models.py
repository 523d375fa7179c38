"""ComfyUI's loaders of model files, standing in: they read the whole file, and keep its hash instead of its weights."""

from __future__ import annotations

from typing import Any

from settee.embedded.folders import Folders
from settee.embedded.nodes.base import Inputs, InputType, Node, NodeEnv, NodeSpec, Outcome, decimal, integer
from settee.embedded.nodes.weights import Weights, file_digest

PIXEL_SPACE = "pixel_space"
"""The VAE that does nothing, and has no file."""

_STRENGTH: InputType = decimal(1.0, -100.0, 100.0)


def _read(env: NodeEnv, kind: str, name: str) -> str:
    return file_digest(env.folders.model_path(kind, name), env.check_interrupted)


class CheckpointLoaderSimple(Node):
    """A checkpoint's model, CLIP and VAE."""

    spec = NodeSpec(
        "CheckpointLoaderSimple",
        "model/loaders",
        required=lambda folders: {"ckpt_name": (folders.model_files("checkpoints"), {})},
        returns=("MODEL", "CLIP", "VAE"),
        display_name="Load Checkpoint",
        stand_in=True,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        file = _read(env, "checkpoints", inputs["ckpt_name"])
        return Outcome(tuple(Weights(kind, file) for kind in ("model", "clip", "vae")))


def _lora_inputs(folders: Folders) -> Inputs:
    return {
        "model": ("MODEL", {}),
        "clip": ("CLIP", {}),
        "lora_name": (folders.model_files("loras"), {}),
        "strength_model": _STRENGTH,
        "strength_clip": _STRENGTH,
    }


class LoraLoader(Node):
    """A LoRA on top of a model and its CLIP; with both strengths 0, ComfyUI does not even open the file."""

    spec = NodeSpec(
        "LoraLoader",
        "model/loaders",
        required=_lora_inputs,
        returns=("MODEL", "CLIP"),
        display_name="Load LoRA (Model and CLIP)",
        stand_in=True,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        model: Weights = inputs["model"]
        clip: Weights | None = inputs["clip"]
        strength, strength_clip = inputs["strength_model"], inputs["strength_clip"]
        if strength == 0 and strength_clip == 0:
            return Outcome((model, clip))
        file = _read(env, "loras", inputs["lora_name"])
        return Outcome((model.with_lora(file, strength), clip and clip.with_lora(file, strength_clip)))


class LoraLoaderModelOnly(LoraLoader):
    """A LoRA on top of a model alone."""

    spec = NodeSpec(
        "LoraLoaderModelOnly",
        "model/loaders",
        required=lambda folders: {
            "model": ("MODEL",),
            "lora_name": (folders.model_files("loras"),),
            "strength_model": _STRENGTH,
        },
        returns=("MODEL",),
        display_name="Load LoRA",
        stand_in=True,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        outcome = super().run(env, **inputs, clip=None, strength_clip=0)
        return Outcome(outcome.values[:1])


class VAELoader(Node):
    """A VAE from a file of its own, or the one that does nothing."""

    spec = NodeSpec(
        "VAELoader",
        "model/loaders",
        required=lambda folders: {"vae_name": ([*folders.model_files("vae"), PIXEL_SPACE],)},
        returns=("VAE",),
        display_name="Load VAE",
        stand_in=True,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        name = inputs["vae_name"]
        return Outcome((Weights("vae", PIXEL_SPACE if name == PIXEL_SPACE else _read(env, "vae", name)),))


class ControlNetLoader(Node):
    """A ControlNet."""

    spec = NodeSpec(
        "ControlNetLoader",
        "model/loaders",
        required=lambda folders: {"control_net_name": (folders.model_files("controlnet"),)},
        returns=("CONTROL_NET",),
        display_name="Load ControlNet Model",
        stand_in=True,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        return Outcome((Weights("control_net", _read(env, "controlnet", inputs["control_net_name"])),))


class CLIPSetLastLayer(Node):
    """A CLIP that stops earlier ("clip skip")."""

    spec = NodeSpec(
        "CLIPSetLastLayer",
        "model/conditioning",
        required={"clip": ("CLIP",), "stop_at_clip_layer": integer(-1, -24, -1, step=1)},
        returns=("CLIP",),
        display_name="CLIP Set Last Layer",
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        clip: Weights = inputs["clip"]
        return Outcome((clip.at_layer(inputs["stop_at_clip_layer"]),))


NODES: tuple[type[Node], ...] = (
    CheckpointLoaderSimple,
    LoraLoader,
    LoraLoaderModelOnly,
    VAELoader,
    ControlNetLoader,
    CLIPSetLastLayer,
)
