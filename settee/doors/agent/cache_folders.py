"""Models that an older agent kept in a `cache/` folder of ComfyUI's, with links to them beside it."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path

log = logging.getLogger(__name__)

_CACHE = "cache"


def migrate(folder: Path) -> int:
    """Move what lies in ``<folder>/cache`` to where links below ``folder`` show it, else to ``folder``; how many files.

    ComfyUI goes on listing each under the name that its link had; of several links to one file the first becomes the
    file, and the others lead there. A file whose name is taken by another one stays where it is, as does what cannot
    be moved: both are logged.
    """
    cache = folder / _CACHE
    if not cache.is_dir() or cache.is_symlink():
        return 0
    shown: dict[str, list[Path]] = {}
    for link in _links(folder, cache):
        shown.setdefault(os.path.realpath(link), []).append(link)
    moved = 0
    for root, _, names in os.walk(cache):
        for name in names:
            source = Path(root, name)
            if not source.is_symlink():
                moved += _moved(source, shown.get(os.path.realpath(source), []), folder / source.relative_to(cache))
    for root, _, _ in os.walk(cache, topdown=False):
        try:
            os.rmdir(root)
        except OSError:
            continue  # something stays in it
    return moved


def _links(folder: Path, cache: Path) -> Iterator[Path]:
    """Every link below ``folder``, but for those in the cache itself, in a fixed order."""
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if Path(root, name) != cache)
        for name in sorted(names):
            path = Path(root, name)
            if path.is_symlink():
                yield path


def _moved(source: Path, links: list[Path], otherwise: Path) -> bool:
    """Whether a file got to the first of the links to it, or else to its name outside the cache."""
    target = links[0] if links else otherwise
    try:
        if not links and os.path.lexists(target):
            log.warning("%s stays in the old cache: its name is taken", source.name)
            return False
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)
        for link in links[1:]:
            link.unlink()
            link.symlink_to(target)
    except OSError as error:
        log.warning("%s stays in the old cache: %s", source.name, error.strerror)
        return False
    return True
