"""ComfyUI's node registry (/object_info), from a server or from a file that it was saved to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from settee.client.errors import UsageError
from settee.comfyui.workflow import ObjectInfo

if TYPE_CHECKING:
    from settee.client.targets.comfy_wire import Wire


def read(where: str | PathLike[str]) -> ObjectInfo:
    """Raises NetworkError for a server that does not answer as ComfyUI does, UsageError for what is no registry."""
    text = str(where)
    data = _asked(text) if text.startswith(("http://", "https://")) else _from_file(Path(text))
    known = entries(data) if isinstance(data, dict) else {}
    if not known:
        raise UsageError(f"--registry {text}: that is not a node registry: name a ComfyUI, or its saved /object_info")
    return known


def entries(data: Mapping[str, Any]) -> ObjectInfo:
    """The classes of a registry that are described as ComfyUI describes them. One that a custom node spoils counts as
    not known."""
    return {
        name: entry
        for name, entry in data.items()
        if isinstance(entry, dict)
        and isinstance(inputs := entry.get("input"), dict)
        and all(isinstance(group, dict) for group in inputs.values())
        and isinstance(entry.get("output") or [], list)
    }


def _from_file(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except OSError as error:
        raise UsageError(f"--registry {path}: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"--registry {path}: it is not JSON") from error


def extensions(where: str | PathLike[str]) -> list[str] | None:
    """The scripts that the server's custom nodes show to the editor; None for a file, which does not tell.

    Raises NetworkError.
    """
    text = str(where)
    if not text.startswith(("http://", "https://")):
        return None
    with closing(_wire(text)) as wire:
        return wire.extensions()


def _asked(url: str) -> ObjectInfo:
    with closing(_wire(url)) as wire:
        return wire.object_info()


def _wire(url: str) -> Wire:
    from settee.client.targets.comfy_wire import Wire

    address = url.rstrip("/").removesuffix("/object_info")
    return Wire(address, name=f"--registry {address}")
