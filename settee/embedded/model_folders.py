"""`--extra-model-paths-config`: folders with models besides models/, by ComfyUI's rules (utils/extra_config.py)."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any

#: Kinds that ComfyUI looks for in two folders of models/, and kinds that it knows by an older name.
_TWO_FOLDERS = {
    "controlnet": ("controlnet", "t2i_adapter"),
    "diffusion_models": ("unet", "diffusion_models"),
    "text_encoders": ("text_encoders", "clip"),
}
_OLDER_NAMES = {"clip": "text_encoders", "unet": "diffusion_models"}


def model_folders(models: str, files: Iterable[str]) -> dict[str, list[str]]:
    """By kind of model, the folders to look through, in order: those of ``models`` and those that the files name.

    What names no models (custom_nodes: this server runs no code of others) is left out.
    """
    found = {kind: [os.path.join(models, name) for name in names] for kind, names in _TWO_FOLDERS.items()}
    for file in files:
        import yaml

        with open(file, encoding="utf-8") as stream:
            sections = yaml.safe_load(stream) or {}
        for section in sections.values():
            if section is not None:
                _add(found, models, dict(section), os.path.dirname(os.path.abspath(file)))
    return found


def _add(found: dict[str, list[str]], models: str, section: dict[str, Any], beside: str) -> None:
    base = os.path.join(beside, os.path.expandvars(os.path.expanduser(section.pop("base_path", ""))))
    is_default = section.pop("is_default", False)
    section.pop("custom_nodes", None)
    for name, lines in section.items():
        kind = _OLDER_NAMES.get(name, name)
        folders = found.setdefault(kind, [os.path.join(models, kind)])
        for line in filter(None, lines.split("\n")):
            folder = os.path.normpath(os.path.join(base, line))
            if is_default or folder not in folders:
                if folder in folders:
                    folders.remove(folder)
                folders.insert(0 if is_default else len(folders), folder)
