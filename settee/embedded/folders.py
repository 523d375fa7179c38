"""ComfyUI's folders of files and models, and the names that it takes and gives."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from settee.comfyui.model_folders import KINDS

#: The kinds of models that ComfyUI lists.
MODEL_FOLDERS = [
    *("checkpoints", "configs", "loras", "vae", "text_encoders", "diffusion_models", "clip_vision", "style_models"),
    *("embeddings", "diffusers", "vae_approx", "controlnet", "gligen", "upscale_models", "latent_upscale_models"),
    *("custom_nodes", "datasets", "hypernetworks", "photomaker", "classifiers", "model_patches", "audio_encoders"),
    *("background_removal", "frame_interpolation", "geometry_estimation", "optical_flow", "detection"),
]
MODEL_SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pt2", ".bin", ".pth", ".pkl", ".sft")


@dataclass(frozen=True)
class Slot:
    """Where the next file of a prefix goes: ``folder/stem_00001_.png`` for counter 1."""

    folder: str
    stem: str
    counter: int
    subfolder: str
    #: The directory by the name that /view takes.
    kind: str


@dataclass(frozen=True)
class Folders:
    """The directories of one server, absolute paths."""

    input: str
    output: str
    temp: str
    #: By kind of model, the folders in the order in which they are searched.
    models: Mapping[str, Sequence[str]]

    def create(self) -> None:
        """Make the directories that are missing."""
        for path in (self.input, self.output, self.temp):
            os.makedirs(path, exist_ok=True)

    def of_type(self, name: str) -> str | None:
        """Return the directory that /view and /upload call ``output``, ``temp`` or ``input``; None for other words."""
        return {"output": self.output, "temp": self.temp, "input": self.input}.get(name)

    def model_files(self, kind: str) -> list[str]:
        """Return the model files of one kind (``checkpoints``, ``loras``, …), as sorted paths below its folders."""
        return sorted({name for top in self.models[kind] for name in _models_below(top)})

    def model_path(self, kind: str, name: str) -> str:
        """Return the file of a name that :meth:`model_files` gave; the first folder that has it wins."""
        paths = [os.path.join(top, name) for top in self.models[kind]]
        return next((path for path in paths if os.path.isfile(path)), paths[0])

    def split_annotation(self, name: str) -> tuple[str, str | None]:
        """Split ``"a.png [temp]"`` into name and directory; the directory is None without annotation."""
        for kind in ("output", "input", "temp"):
            if name.endswith(f"[{kind}]"):
                return name[: -len(kind) - 3], self.of_type(kind)
        return name, None

    def locate(self, name: str) -> str:
        """Return the path that a loading node reads. As in ComfyUI, ``../`` and absolute names leave the folder."""
        name, directory = self.split_annotation(name)
        return os.path.join(directory or self.input, name)

    def next_slot(self, prefix: str, kind: str, width: int, height: int) -> Slot:
        """Find the next free number for a prefix below ``output`` or ``temp``, creating its folder.

        Raises Exception, as ComfyUI does, when the prefix leads out of there.
        """
        root = self.temp if kind == "temp" else self.output
        if "%" in prefix:
            prefix = _fill_tokens(prefix, width, height)
        subfolder, stem = os.path.split(os.path.normpath(prefix))
        folder = os.path.join(root, subfolder)
        absolute = os.path.abspath(folder)
        if os.path.commonpath((root, absolute)) != root:
            raise Exception(
                "**** ERROR: Saving image outside the output folder is not allowed."
                f"\n full_output_folder: {absolute}\n         output_dir: {root}"
            )
        os.makedirs(folder, exist_ok=True)
        # ComfyUI measures the prefix as typed: "dir/" has an empty last part, matches nothing, and starts at 1 again.
        counter = _highest(os.listdir(folder), stem) + 1 if os.path.basename(prefix) == stem else 1
        return Slot(folder, stem, counter, subfolder, kind)


def _models_below(top: str) -> Iterator[str]:
    for directory, _, names in os.walk(top, followlinks=True):
        for name in names:
            if name.lower().endswith(MODEL_SUFFIXES):
                yield os.path.relpath(os.path.join(directory, name), top)


def _highest(names: list[str], stem: str) -> int:
    """Return the largest number N among names like ``stem_N_…``, or 0."""
    numbered = re.compile(re.escape(stem) + r"_(\d+)(_|$)", re.ASCII)
    return max((int(found[1]) for name in names if (found := numbered.match(name))), default=0)


def _fill_tokens(prefix: str, width: int, height: int) -> str:
    forms = {"year": "%Y", "month": "%m", "day": "%d", "hour": "%H", "minute": "%M", "second": "%S"}
    now = time.localtime()
    tokens = {"width": str(width), "height": str(height)} | {n: time.strftime(f, now) for n, f in forms.items()}
    for token, text in tokens.items():
        prefix = prefix.replace(f"%{token}%", text)
    return prefix


#: Kinds that ComfyUI knows by an older name, too.
_OLDER_NAMES = {"clip": "text_encoders", "unet": "diffusion_models"}


def model_folders(models: str, files: Iterable[str]) -> dict[str, list[str]]:
    """Return by kind of model the folders to search, in order: those of ``models`` and those that the files name.

    What names no models (custom_nodes: this server runs no code of others) is left out.
    """
    found = {kind: [os.path.join(models, name) for name in KINDS.get(kind, (kind,))] for kind in MODEL_FOLDERS}
    for file in files:
        import yaml

        with open(file, encoding="utf-8") as stream:
            sections = yaml.safe_load(stream) or {}
        for section in sections.values():
            if section is not None:
                _add(found, models, dict(section), os.path.dirname(os.path.abspath(file)))
    return found


def _add(found: dict[str, list[str]], models: str, section: dict[str, Any], root: str) -> None:
    base = os.path.join(root, os.path.expandvars(os.path.expanduser(section.pop("base_path", ""))))
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
