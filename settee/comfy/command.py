"""The command line of the ComfyUI that the worker starts."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

from settee.errors import ConfigError
from settee.settings import Settings
from settee.workspace import Folders

#: An option that says what ComfyUI keeps from one prompt to the next; it takes one of them only. Its own default since
#: 0.33 keeps the tensors of all prompts while the host has memory, and sees no container's limit.
_CHOOSES_CACHE = re.compile(r"--(cache-|high-ram)").match


def command_line(settings: Settings, folders: Folders, *, listen: str, port: int, further: Sequence[str]) -> list[str]:
    """The program and its arguments; ``further`` ones go before COMFY_ARGS, which has the last word.

    Raises ConfigError when there is no ComfyUI to start.
    """
    program, own = _program(settings), _words("COMFY_ARGS", settings.comfy_args)
    return [
        *program,
        "--listen",
        listen,
        "--port",
        str(port),
        "--input-directory",
        str(folders.input),
        "--output-directory",
        str(folders.output),
        # ComfyUI appends "temp" to this by itself.
        "--temp-directory",
        str(folders.temp.parent if folders.temp else folders.input.parent),
        "--disable-auto-launch",
        # With --enable-assets its database keeps the names of what jobs made; and one process alone can have its file.
        "--database-url",
        "sqlite:///:memory:",
        *further,
        *(() if any(map(_CHOOSES_CACHE, (*program, *own))) else ("--cache-classic",)),
        *own,
    ]


def check_program(program: str, settings: Settings) -> None:
    """Raises ConfigError when the first word of the command line cannot be run."""
    if shutil.which(program) is None:
        which = "COMFY_COMMAND" if settings.comfy_command else "COMFY_PYTHON"
        raise ConfigError(f"{which}: {program!r} is not a program that can be run; give its whole path")


def _program(settings: Settings) -> list[str]:
    if settings.comfy_command:
        command = _words("COMFY_COMMAND", settings.comfy_command)
        if not command:
            raise ConfigError("COMFY_COMMAND is empty")
        return command
    main = settings.comfy_dir / "main.py"
    if not main.is_file():
        raise ConfigError(
            f"there is no ComfyUI at COMFY_DIR={settings.comfy_dir}: set COMFY_DIR to its folder, "
            "COMFY_URL to a running one, or COMFY_COMMAND"
        )
    return [settings.comfy_python or _python_of(settings.comfy_dir), str(main)]


def _words(name: str, line: str) -> list[str]:
    try:
        return shlex.split(line)
    except ValueError as error:
        raise ConfigError(f"{name} is not a command line: {error}") from error


def _python_of(comfy_dir: Path) -> str:
    for candidate in (comfy_dir / "venv/bin/python", comfy_dir / ".venv/bin/python"):
        if candidate.exists():
            return str(candidate)
    return sys.executable


__all__ = ["check_program", "command_line"]
