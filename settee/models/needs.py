"""Which models a workflow names, and which entries would supply them. Pure functions.

`/object_info` tells a combo's choices, not the folder they come from, and it is not there yet while ComfyUI starts. So
a model is told by its suffix, wherever it stands among a node's inputs, and an entry supplies it when the name is the
end of the entry's path. Inputs of well-known loaders say which folder they mean: that decides between namesakes.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from settee.comfyui.workflow import Workflow, texts
from settee.models.entry import ModelEntry
from settee.models.places import SUFFIXES

#: Input name → folders below models, of ComfyUI's own loaders.
_FOLDERS: dict[str, tuple[str, ...]] = {
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
#: `embedding:name` within a prompt, with or without suffix.
_EMBEDDING = re.compile(r"embedding:([\w./\\-]+)")
_EMBEDDING_SUFFIX = re.compile(r"\.(safetensors|pt|bin)$")
#: No file name is longer, and prompts are: they are not searched for suffixes.
_LONGEST = 512


@dataclass(frozen=True)
class Named:
    """A model as a node names it."""

    node_id: str
    class_type: str
    input: str
    #: As written: ``sdxl/base.safetensors``.
    value: str
    #: Folders below models that this input reads; empty when that is not known.
    folders: tuple[str, ...] = ()

    @cached_property
    def parts(self) -> tuple[str, ...]:
        return tuple(part for part in re.split(r"[\\/]", self.value.lower()) if part not in ("", "."))

    @cached_property
    def stem(self) -> str:
        """How the names of files begin that this may mean."""
        return _EMBEDDING_SUFFIX.sub("", self.parts[-1])


def folders_of(class_type: str, name: str) -> tuple[str, ...]:
    """The folders below models that an input reads; empty when that is not known."""
    return _BY_CLASS.get(class_type) or _FOLDERS.get(re.sub(r"_?\d+$", "", name), ())


def named_models(workflow: Workflow) -> list[Named]:
    """Every model that the workflow names, in the order of its nodes; the same name at one input once."""
    found: dict[Named, None] = {}
    for node_id, node in workflow.items():
        class_type = node["class_type"]
        for name, value in node["inputs"].items():
            for _, text, _ in texts(name, value):
                # A prompt may well end with one's name.
                if "embedding:" in text:
                    for match in _EMBEDDING.finditer(text):
                        found[Named(node_id, class_type, name, match[1], ("embeddings",))] = None
                elif text.lower().endswith(SUFFIXES) and len(text) <= _LONGEST and "\n" not in text:
                    found[Named(node_id, class_type, name, text, folders_of(class_type, name))] = None
    return list(found)


def naming_repositories(workflow: Workflow, entries: Iterable[ModelEntry]) -> list[ModelEntry]:
    """The entries of whole repositories whose folder a node names, by itself or at the beginning of a path."""
    repositories = [entry for entry in entries if entry.is_repository]
    if not repositories:
        return []
    parts: set[str] = set()
    for node in workflow.values():
        for name, given in node["inputs"].items():
            for _, text, _ in texts(name, given):
                parts.update(re.split(r"[\\/]", text.lower()) if len(text) <= _LONGEST else ())
    return [entry for entry in repositories if entry.name.lower() in parts]


def supplying(named: Named, entries: Iterable[ModelEntry]) -> list[ModelEntry]:
    """The entries whose file ``named`` may mean: in the folders its input reads, or else wherever its name fits."""
    fitting = [entry for entry in entries if _fits(named, entry)]
    meant = [entry for entry in fitting if entry.target.split("/")[0] in named.folders]
    return meant or ([] if named.folders == ("embeddings",) else fitting)


def wanted(workflow: Workflow, entries: Iterable[ModelEntry]) -> dict[str, ModelEntry]:
    """The entries that the workflow needs, by their paths."""
    entries = list(entries)
    if not entries:
        return {}
    supplied = [entry for named in named_models(workflow) for entry in supplying(named, entries)]
    found: dict[str, ModelEntry] = {}
    for entry in (*supplied, *naming_repositories(workflow, entries)):
        found.setdefault(str(entry.path), entry)
    return found


def _fits(named: Named, entry: ModelEntry) -> bool:
    if entry.is_repository:
        return entry.name.lower() in named.parts[:-1]
    # Nearly all end here, and a workflow may have thousands of names for thousands of entries.
    if not named.parts or not entry.name.lower().startswith(named.stem):
        return False
    path = str(entry.path).lower()
    if named.folders == ("embeddings",):
        path = re.sub(r"\.\w+$", "", path)
        wanted = tuple(_EMBEDDING_SUFFIX.sub("", part) for part in named.parts)
    else:
        wanted = named.parts
    # The first folder is ComfyUI's, and not part of a name.
    inner = tuple(path.split("/"))[1:]
    return bool(wanted) and inner[-len(wanted) :] == wanted


__all__ = ["Named", "folders_of", "named_models", "supplying", "wanted"]
