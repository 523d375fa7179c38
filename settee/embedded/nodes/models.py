"""Stand-ins for models, which are known by the hash of their file, and the nodes that load them."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from typing import Any, NewType

from settee.base import files
from settee.embedded.nodes.node import Env, decimal, integer, model_file, node, value

#: Longest header that the safetensors library reads.
_MAX_HEADER_BYTES = 100_000_000
PIXEL_SPACE = "pixel_space"
"""The VAE that does nothing, and has no file."""


class SafetensorError(Exception):
    """A file that is not what its suffix .safetensors promises; reported under the name of the library's exception."""


SafetensorError.__module__ = "safetensors._safetensors_rust"


def digest_of(*parts: object) -> str:
    """Return one hash for plain values, in which their types and order count."""
    return files.digest_of(json.dumps(parts))


Conditioning = NewType("Conditioning", str)
"""A CONDITIONING: the hash of a text and of the CLIP that read it."""


@dataclass(frozen=True)
class Weights:
    """A MODEL, CLIP or VAE: two are the same when their digests are."""

    kind: str
    #: SHA-256 of the file it came from.
    file: str
    changes: tuple[tuple[object, ...], ...] = ()

    def changed(self, *change: object) -> Weights:
        """Return the weights with a change on top. Their order does not count: each LoRA adds to the weights."""
        return replace(self, changes=(*self.changes, change))

    @property
    def digest(self) -> str:
        """A hash of the file and all changes."""
        return digest_of(self.kind, self.file, sorted(map(list, self.changes), key=repr))


def _read(env: Env, kind: str, name: str) -> str:
    """Return the SHA-256 of a model file. Raises SafetensorError as the library would, and Interrupted."""
    path = env.folders.model_path(kind, name)
    if path.lower().endswith((".safetensors", ".sft")) and (problem := _header_problem(path)):
        raise SafetensorError(f"Error while deserializing header: {problem}")
    return files.sha256_of(path, env.check_interrupted)


def _header_problem(path: str) -> str | None:
    """Return the library's words for a header that does not fit its file."""
    with open(path, "rb") as file:
        length, size = int.from_bytes(file.read(8), "little"), os.fstat(file.fileno()).st_size
        if size < 8:
            return "header too small"
        if length > _MAX_HEADER_BYTES:
            return "header too large"
        if 8 + length > size:
            return "invalid header length"
        try:
            tensors = json.loads(file.read(length))
            ends = [tensor["data_offsets"][1] for name, tensor in tensors.items() if name != "__metadata__"]
            whole = 8 + length + max(ends, default=0) == size
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RecursionError):
            return "invalid JSON in header"
    return None if whole else "incomplete metadata, file not fully covered"


@node("CheckpointLoaderSimple", "model/loaders", "Load Checkpoint", "MODEL CLIP VAE", stand_in=True)
def checkpoint_loader_simple(env: Env, ckpt_name: str = model_file("checkpoints")) -> tuple[Weights, ...]:
    file = _read(env, "checkpoints", ckpt_name)
    return tuple(Weights(kind, file) for kind in ("model", "clip", "vae"))


_STRENGTH: Any = decimal(1.0, -100.0, 100.0)


@node("LoraLoader", "model/loaders", "Load LoRA (Model and CLIP)", "MODEL CLIP", stand_in=True)
def lora_loader(
    env: Env,
    model: Weights | None = value("MODEL"),
    clip: Weights | None = value("CLIP"),
    lora_name: str = model_file("loras"),
    strength_model: float = _STRENGTH,
    strength_clip: float = _STRENGTH,
) -> tuple[Weights | None, Weights | None]:
    """Put a LoRA on top of a model and its CLIP; with both strengths 0, ComfyUI does not even open the file."""
    if strength_model or strength_clip:
        file = _read(env, "loras", lora_name)
        model = model.changed("lora", file, strength_model) if model and strength_model else model
        clip = clip.changed("lora", file, strength_clip) if clip and strength_clip else clip
    return model, clip


@node("LoraLoaderModelOnly", "model/loaders", "Load LoRA", "MODEL", stand_in=True)
def lora_loader_model_only(
    env: Env,
    model: Weights | None = value("MODEL"),
    lora_name: str = model_file("loras"),
    strength_model: float = _STRENGTH,
) -> Weights | None:
    return lora_loader(env, model, None, lora_name, strength_model, 0.0)[0]


@node("VAELoader", "model/loaders", "Load VAE", "VAE", stand_in=True)
def vae_loader(env: Env, vae_name: str = model_file("vae", PIXEL_SPACE)) -> Weights:
    return Weights("vae", PIXEL_SPACE if vae_name == PIXEL_SPACE else _read(env, "vae", vae_name))


@node("ControlNetLoader", "model/loaders", "Load ControlNet Model", "CONTROL_NET", stand_in=True)
def control_net_loader(env: Env, control_net_name: str = model_file("controlnet")) -> Weights:
    return Weights("control_net", _read(env, "controlnet", control_net_name))


@node("CLIPSetLastLayer", "model/conditioning", "CLIP Set Last Layer", "CLIP")
def clip_set_last_layer(
    clip: Weights = value("CLIP"), stop_at_clip_layer: int = integer(-1, -24, -1, step=1)
) -> Weights:
    """Stop a CLIP earlier ("clip skip")."""
    kept = tuple(change for change in clip.changes if change[0] != "layer")
    return replace(clip, changes=kept).changed("layer", stop_at_clip_layer)
