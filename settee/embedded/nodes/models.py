"""Stand-ins for models, and the nodes that load them."""

from __future__ import annotations

import hashlib
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from settee.base.files import sha256_of
from settee.embedded.folders import Folders
from settee.embedded.nodes.base import Inputs, InputType, Node, NodeEnv, NodeSpec, Outcome, decimal, integer

#: Longest header that the safetensors library reads.
_MOST_HEADER_BYTES = 100_000_000


class SafetensorError(Exception):
    """A .safetensors file is not one; reported under the name of the library's exception."""


SafetensorError.__module__ = "safetensors._safetensors_rust"


def digest_of(*parts: object) -> str:
    """One hash for plain values, in which their types and order count."""
    return hashlib.sha256(json.dumps(parts, allow_nan=True).encode()).hexdigest()


@dataclass(frozen=True)
class Weights:
    """A MODEL, CLIP or VAE: two are the same when their digests are."""

    kind: str
    file: str
    """SHA-256 of the file it came from."""
    changes: tuple[tuple[object, ...], ...] = ()

    def with_lora(self, file: str, strength: float) -> Weights:
        """With a LoRA on top. The order of LoRAs does not count: each adds to the weights."""
        return self if strength == 0 else self._changed("lora", file, strength)

    def at_layer(self, layer: int) -> Weights:
        """A CLIP that stops at a layer."""
        kept = tuple(change for change in self.changes if change[0] != "layer")
        return replace(self, changes=kept)._changed("layer", layer)

    def _changed(self, *change: object) -> Weights:
        return replace(self, changes=(*self.changes, change))

    @property
    def digest(self) -> str:
        """A hash of the file and all changes."""
        return digest_of(self.kind, self.file, sorted(map(list, self.changes), key=repr))

    def __str__(self) -> str:
        return f"{self.kind}({self.digest[:12]})"


@dataclass(frozen=True)
class Conditioning:
    """A CONDITIONING: the hash of a text and of the CLIP that read it."""

    digest: str

    def __str__(self) -> str:
        return f"conditioning({self.digest[:12]})"


def file_digest(path: str, check_interrupted: Callable[[], None]) -> str:
    """SHA-256 of a model file. Raises SafetensorError as the library would, and what ``check_interrupted`` raises."""
    with open(path, "rb") as file:
        if path.lower().endswith((".safetensors", ".sft")):
            problem = _header_problem(file.read(8), file.read, os.fstat(file.fileno()).st_size)
            if problem:
                raise SafetensorError(f"Error while deserializing header: {problem}")
    return sha256_of(path, check_interrupted)


def _header_problem(start: bytes, read: Callable[[int], bytes], size: int) -> str | None:
    """The library's words for a header that does not fit its file."""
    if len(start) < 8:
        return "header too small"
    (length,) = struct.unpack("<Q", start)
    if length > _MOST_HEADER_BYTES:
        return "header too large"
    if 8 + length > size:
        return "invalid header length"
    try:
        tensors = json.loads(read(length))
        ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
        if 8 + length + max(ends, default=0) != size:
            return "incomplete metadata, file not fully covered"
    except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
        return "invalid JSON in header"
    return None


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
