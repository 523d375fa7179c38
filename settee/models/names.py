"""Which files go by one name in ComfyUI: it looks for a kind of model in several folders, and takes the first."""

from __future__ import annotations

from pathlib import PurePosixPath

from settee.models.places import KINDS

_KIND_OF = {folder: kind for kind, folders in KINDS.items() for folder in folders}


def name_of(path: PurePosixPath) -> str:
    """By which ComfyUI knows a file, and keeps what it loaded: of `unet/a` and `diffusion_models/a` the same."""
    folder, *rest = path.parts
    return "/".join((_KIND_OF.get(folder, folder), *rest))


def namesakes(path: PurePosixPath) -> tuple[PurePosixPath, ...]:
    """All places below a models folder where a file has this name, itself among them, in ComfyUI's order."""
    folder, *rest = path.parts
    return tuple(PurePosixPath(other, *rest) for other in KINDS.get(_KIND_OF.get(folder, ""), (folder,)))


__all__ = ["name_of", "namesakes"]
