"""Models that an older agent kept in a `cache/` folder of ComfyUI's, with links to them beside it."""

from __future__ import annotations

import logging
import os
from pathlib import Path

log = logging.getLogger(__name__)

_CACHE = "cache"


def migrate(folder: Path) -> int:
    """Move what lies in ``<folder>/cache`` to ``folder``, over links to it; how many files.

    A file whose name is taken by another one stays where it is, as does what cannot be moved: both are logged.
    """
    cache = folder / _CACHE
    if not cache.is_dir() or cache.is_symlink():
        return 0
    moved = 0
    for root, _, names in os.walk(cache):
        for name in names:
            source = Path(root, name)
            target = folder / source.relative_to(cache)
            try:
                if os.path.lexists(target) and not (target.is_symlink() and target.resolve() == source.resolve()):
                    log.warning("%s stays in the old cache: its name is taken", source.name)
                    continue
                target.parent.mkdir(parents=True, exist_ok=True)
                os.replace(source, target)
                moved += 1
            except OSError as error:
                log.warning("%s stays in the old cache: %s", source.name, error.strerror)
    for root, _, _ in os.walk(cache, topdown=False):
        try:
            os.rmdir(root)
        except OSError:
            continue  # something stays in it
    return moved
