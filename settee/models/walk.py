"""Every file of the models folder."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator

from settee.models.places import ASIDE, SUFFIXES


def walk(root: str) -> Iterator[str]:
    """Files and links to files, below ``root`` and where its links to folders lead, relative to it, sorted.

    Hidden folders are left out, our records among them. Each folder is visited once, whatever its links.
    """
    seen: set[tuple[int, int]] = set()
    for folder, folders, names in os.walk(root, followlinks=True):
        try:
            info = os.stat(folder)
        except OSError:
            folders.clear()
            continue
        # A link to a folder above would lead in circles.
        if (info.st_dev, info.st_ino) in seen:
            folders.clear()
            continue
        seen.add((info.st_dev, info.st_ino))
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in sorted(names):
            yield f"{folder}/{name}"[len(root) + 1 :]


def set_aside_in(root: str) -> Iterator[str]:
    """Yield the files that an entry of MODELS had set aside: they are the operator's to delete."""
    return (rel for rel in walk(root) if re.search(rf"{re.escape(ASIDE)}(-\d+)?$", rel))


def models_in(root: str) -> Iterator[str]:
    """Those that look like models and are there: no link to nothing, no hidden name."""
    for rel in walk(root):
        name = rel.rpartition("/")[2].lower()
        if name.endswith(SUFFIXES) and not name.startswith(".") and os.path.isfile(f"{root}/{rel}"):
            yield rel
