"""Plain folders laid out like ComfyUI's models folder, on a network volume say (MODELS_EXTRA_DIRS)."""

from __future__ import annotations

import logging
import os
import stat
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from settee.models.names import namesakes
from settee.settings import Settings

log = logging.getLogger(__name__)


def find(path: PurePosixPath, folders: Iterable[Path], *, size: int | None = None) -> Path | None:
    """The first folder's ``<target>/<name>`` that is a file with something in it, of ``size`` when that is given."""
    if path.is_absolute() or ".." in path.parts:
        return None
    for folder in folders:
        candidate = folder / path
        try:
            found = candidate.stat()
        except (OSError, ValueError):
            continue  # not there; or a mount that has gone away, which is as good
        if not stat.S_ISREG(found.st_mode):
            continue
        if found.st_size == 0 or (size is not None and found.st_size != size):
            wanted = "" if size is None else f" instead of {size}"
            log.warning("a model folder has %s, but with %d bytes%s: not used", path, found.st_size, wanted)
            continue
        return candidate
    return None


def holder(path: PurePosixPath, settings: Settings) -> Path | None:
    """The file that ComfyUI finds on a volume under this name, whatever its size: one of the operator's own."""
    for folder in settings.models_extra_dirs:
        if _is_same(folder, settings.models_folder):
            continue
        for place in namesakes(path):
            found = Path(folder, place)
            if os.path.isfile(found):
                return found
    return None


def _is_same(one: str, other: Path) -> bool:
    try:
        return os.path.samefile(one, other)
    except OSError:
        return False
