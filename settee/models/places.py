"""Names in the models folder: which are models, which an entry may have, and which are nobody's model."""

from __future__ import annotations

from functools import lru_cache

from settee.base.text import shown
from settee.errors import UnsafePath
from settee.models.entry import ModelEntry
from settee.workspace import safe_relative

#: What ComfyUI takes for a model (folder_paths.supported_pt_extensions), and formats of common custom nodes.
SUFFIXES = (".safetensors", ".sft", ".ckpt", ".pt", ".pt2", ".pth", ".bin", ".pkl", ".gguf", ".onnx", ".engine")
#: What ComfyUI calls a kind of model, and the folders of a models folder where it looks for it (folder_paths.py of
#: 0.3.64). A folder that does not exist yet may appear later, on a network volume say: ComfyUI looks again.
KINDS: dict[str, tuple[str, ...]] = {
    "audio_encoders": ("audio_encoders",),
    "checkpoints": ("checkpoints",),
    "classifiers": ("classifiers",),
    "clip_vision": ("clip_vision",),
    "configs": ("configs",),
    "controlnet": ("controlnet", "t2i_adapter"),
    "diffusers": ("diffusers",),
    "diffusion_models": ("unet", "diffusion_models"),
    "embeddings": ("embeddings",),
    "gligen": ("gligen",),
    "hypernetworks": ("hypernetworks",),
    "loras": ("loras",),
    "model_patches": ("model_patches",),
    "photomaker": ("photomaker",),
    "style_models": ("style_models",),
    "text_encoders": ("text_encoders", "clip"),
    "upscale_models": ("upscale_models",),
    "vae": ("vae",),
    "vae_approx": ("vae_approx",),
}
#: A download's file beside its target, and that file's journal.
PART = ".part"
JOURNAL = ".part.json"
#: What a whole model of the operator's is renamed to when MODELS wants another in its place.
ASIDE = ".set-aside"
_MOST_NAME_BYTES = 255 - len(JOURNAL)


def relative(entry: ModelEntry) -> str:
    """The entry's place below the models folder, as text. Raises UnsafePath for a name that must not be one.

    A folder that is a link leads where the operator made it lead (nothing of ours makes one); no name leads out of it.
    """
    return place(entry.target, entry.name)


@lru_cache(maxsize=8192)
def place(target: str, name: str) -> str:
    """The same for an entry that is being read: its Target and its LocalName."""
    rel = f"{target}/{name}"
    safe_relative(rel)
    if "/" in name:
        raise UnsafePath(f"the model's name {shown(name)} has a folder: put folders into its Target")
    if any(part.startswith(".") for part in rel.split("/")):
        raise UnsafePath(f"the model's place {shown(rel)} has a name that begins with a dot")
    if name.lower().endswith((PART, JOURNAL)):
        raise UnsafePath(f"the model's name {shown(name)} is one of an unfinished download")
    if len(name.encode()) > _MOST_NAME_BYTES:
        raise UnsafePath(f"the model's name {shown(name)} has more than {_MOST_NAME_BYTES} bytes")
    if any(part.lower().endswith((".json", PART, *SUFFIXES)) for part in target.split("/")):
        # It, or its records' folder, would lie where a model of that name belongs, its download or its record.
        raise UnsafePath(f"the model's Target {shown(target)} has a folder that is named like a file")
    return rel
