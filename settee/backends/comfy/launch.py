"""The start of ComfyUI: its command line, and the file that shows it further folders.

ComfyUI reads that file (`--extra-model-paths-config`) with a YAML parser, of which JSON is a part, and keeps a list of
folders for every kind of model (its utils/extra_config.py and folder_paths.py). Nothing in COMFY_DIR is touched.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from settee.base.errors import ConfigError
from settee.base.settings import Settings
from settee.comfyui.model_folders import KINDS
from settee.staging.workspace import Folders

log = logging.getLogger(__name__)

#: An option for what ComfyUI keeps from one prompt to the next; it takes one of them only. Its own default since
#: 0.33 keeps the tensors of all prompts while the host has memory, and sees no container's limit.
_CHOOSES_CACHE = re.compile(r"--(cache-|high-ram)").match
#: Holds custom nodes, and must hold nothing else: ComfyUI imports whatever is in such a folder.
NODES = Path(__file__).parents[2] / "comfy_nodes"
#: Folders of these names mean something else to ComfyUI: code it would run, or words of the file itself.
_NOT_KINDS = {"base_path", "custom_nodes", "is_default"} | {name for names in KINDS.values() for name in names}


def command_line(settings: Settings, folders: Folders, *, listen: str, port: int, further: Sequence[str]) -> list[str]:
    """Return the program and its arguments; ``further`` ones stand before COMFY_ARGS, which has the last word.

    Raises ConfigError when there is no ComfyUI to start.
    """
    program, own = _program(settings), _words("COMFY_ARGS", settings.comfy_args)
    options = {
        "--listen": listen,
        "--port": port,
        "--input-directory": folders.input,
        "--output-directory": folders.output,
        # ComfyUI appends "temp" to this by itself.
        "--temp-directory": folders.temp.parent if folders.temp else folders.input.parent,
        # With --enable-assets its database keeps the names of what jobs made; and one process alone can have its file.
        "--database-url": "sqlite:///:memory:",
    }
    return [
        *program,
        *(str(word) for option in options.items() for word in option),
        "--disable-auto-launch",
        *further,
        *(() if any(map(_CHOOSES_CACHE, (*program, *own))) else ("--cache-classic",)),
        *own,
    ]


def check_program(program: str, settings: Settings) -> None:
    """Raise ConfigError when the first word of the command line cannot be run."""
    if shutil.which(program) is None:
        which = "COMFY_COMMAND" if settings.comfy_command else "COMFY_PYTHON"
        raise ConfigError(f"{which}: {program!r} is not a program that can be run; give its whole path")


def _program(settings: Settings) -> list[str]:
    if settings.comfy_command:
        command = _words("COMFY_COMMAND", settings.comfy_command)
        if not command:
            raise ConfigError("COMFY_COMMAND is empty")
        return command
    folder = settings.comfy_dir
    if not (folder / "main.py").is_file():
        raise ConfigError(
            f"no ComfyUI was found at COMFY_DIR={folder}: set COMFY_DIR to its folder, "
            "COMFY_URL to a running one, or COMFY_COMMAND"
        )
    own = [str(path) for path in (folder / "venv/bin/python", folder / ".venv/bin/python") if path.exists()]
    return [settings.comfy_python or next(iter(own), sys.executable), str(folder / "main.py")]


def _words(name: str, line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise ConfigError(f"{name} is not a command line: {error}") from error


class ExtraPaths:
    """The file for one ComfyUI after another; :meth:`remove` it at the end."""

    def __init__(self, settings: Settings, folders: Folders) -> None:
        self._settings, self._folders = settings, folders
        self._file: Path | None = None

    def arguments(self) -> list[str]:
        """Return arguments for ComfyUI's command line; none before the first :meth:`write`."""
        if self._file is None:
            return []
        # Our nodes are loaded also under --disable-all-custom-nodes; without it the list means nothing.
        nodes = sorted(path.name for path in NODES.glob("settee_*"))
        return ["--extra-model-paths-config", str(self._file), "--whitelist-custom-nodes", *nodes]

    def write(self) -> None:
        """Write the file, readable by this user only. Raises ConfigError."""
        text = json.dumps(content(self._settings, self._folders), indent=1)
        try:
            if self._file is None:
                descriptor, name = tempfile.mkstemp(prefix="settee-paths-", suffix=".yaml")
                os.close(descriptor)
                self._file = Path(name)
            self._file.write_text(text, encoding="utf-8")
        except OSError as error:
            raise ConfigError(
                f"the folder for temporary files cannot be written ({error.strerror}): set TMPDIR to another"
            ) from error

    def remove(self) -> None:
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.unlink()
            self._file = None


def content(settings: Settings, folders: Folders) -> dict[str, dict[str, str | bool]]:
    """Return the file's sections, ``{kind: folders, one a line}``, in the order in which ComfyUI is to look.

    Raises ConfigError for a folder of custom nodes that does not exist: every job that uses one would fail.
    """
    sections: dict[str, dict[str, str | bool]] = {"settee_nodes": {"custom_nodes": str(NODES)}}
    for number, name in enumerate(settings.custom_nodes_dirs, start=1):
        if not os.path.isdir(name):
            raise ConfigError(f"CUSTOM_NODES_DIRS names {name!r}, which is not a folder: is its volume attached?")
        sections[f"settee_custom_nodes_{number}"] = {"custom_nodes": os.path.abspath(name)}
    own = settings.models_dir
    if own is not None and _absolute(own) != _absolute(settings.comfy_dir / "models"):
        # First: what is placed there is what MODELS asks for.
        sections["settee_models"] = {**_kinds(_absolute(own)), "is_default": True}
    for number, name in enumerate(settings.models_extra_dirs, start=1):
        folder = _absolute(Path(name))
        if folder.is_dir():  # without a network volume, ComfyUI would log two dozen folders that are not there
            sections[f"settee_extra_{number}"] = dict(_kinds(folder))
    # SaveTrainingDataset writes to the first of these since 0.33, and reports nothing. In output, as before, what it
    # makes is returned and wiped. Last, so that it becomes the first.
    sections["settee_datasets"] = {"datasets": str(folders.output), "is_default": True}
    return sections


def _kinds(folder: Path) -> dict[str, str | bool]:
    found: dict[str, str | bool] = {
        kind: "\n".join(str(folder / name) for name in names) for kind, names in KINDS.items()
    }
    try:
        others = sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())
    except OSError as error:
        log.debug("no further kinds of model: %s", error.strerror)
        return found
    others = [name for name in others if name not in _NOT_KINDS and not name.startswith(".")]
    return found | {name: str(folder / name) for name in others}


def _absolute(folder: Path) -> Path:
    return Path(os.path.abspath(folder))
