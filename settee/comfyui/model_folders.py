"""ComfyUI's folders of models: kinds, suffixes, the names of files there, and the inputs that read them."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

#: What ComfyUI takes for a model (folder_paths.supported_pt_extensions), and formats of common custom nodes.
SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf", ".onnx", ".engine")
#: Kinds that ComfyUI looks for in one folder of their own name.
_OF_ONE_FOLDER = """
    audio_encoders checkpoints classifiers clip_vision configs diffusers embeddings gligen hypernetworks loras
    model_patches photomaker style_models upscale_models vae vae_approx
"""
#: A kind of model by ComfyUI's name, and the folders of a models folder where ComfyUI looks for it (folder_paths.py of
#: 0.3.64). A folder that does not exist yet may appear later, on a network volume say: ComfyUI looks again.
KINDS: dict[str, tuple[str, ...]] = {
    **{kind: (kind,) for kind in _OF_ONE_FOLDER.split()},
    "controlnet": ("controlnet", "t2i_adapter"),
    "diffusion_models": ("unet", "diffusion_models"),
    "text_encoders": ("text_encoders", "clip"),
}
_KIND_OF = {folder: kind for kind, folders in KINDS.items() for folder in folders}
#: Input name → folders below models, of ComfyUI's own loaders.
_BY_INPUT: dict[str, tuple[str, ...]] = {
    "ckpt_name": ("checkpoints",),
    "vae_name": ("vae",),
    "lora_name": ("loras",),
    "unet_name": ("diffusion_models", "unet", "unet_gguf"),
    "clip_name": ("text_encoders", "clip", "clip_gguf", "clip_vision"),
    "control_net_name": ("controlnet", "t2i_adapter"),
    "style_model_name": ("style_models",),
    "gligen_name": ("gligen",),
    "hypernetwork_name": ("hypernetworks",),
    "audio_encoder_name": ("audio_encoders",),
    "photomaker_model_name": ("photomaker",),
}
#: Where a class means less than its input's name allows.
_BY_CLASS: dict[str, tuple[str, ...]] = {
    "CLIPVisionLoader": ("clip_vision",),
    "UpscaleModelLoader": ("upscale_models",),
}


def folders_of(class_type: str, name: str) -> tuple[str, ...]:
    """Return the folders below models that an input reads; empty when that is not known."""
    return _BY_CLASS.get(class_type) or _BY_INPUT.get(re.sub(r"_?\d+$", "", name), ())


def name_of(path: PurePosixPath) -> str:
    """Return the name by which ComfyUI knows a file and keeps what it loaded.

    It looks for a kind of model in several folders and takes the first file found, so `unet/a` and
    `diffusion_models/a` have the same name.
    """
    folder, *rest = path.parts
    return "/".join((_KIND_OF.get(folder, folder), *rest))


def namesakes(path: PurePosixPath) -> tuple[PurePosixPath, ...]:
    """Return all places below a models folder where a file has this name, ``path`` included, in ComfyUI's order."""
    folder, *rest = path.parts
    return tuple(PurePosixPath(other, *rest) for other in KINDS.get(_KIND_OF.get(folder, ""), (folder,)))
