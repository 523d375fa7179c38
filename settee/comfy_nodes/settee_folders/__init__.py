"""A ComfyUI custom node without nodes: folders with models may go again.

ComfyUI lists models below its output folder too (`loras`, `checkpoints` and others, see its main.py). It remembers when
each folder had changed, and fails from then on where one is gone: no LoRA loader validates any more after a job that
saved to output/loras, which was wiped. Such a list is made again instead.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable
from typing import Any

#: ComfyUI wants to see this in every custom node.
NODE_CLASS_MAPPINGS: dict[str, type] = {}

log = logging.getLogger(__name__)


def forgetting(cached: Callable[[str], Any]) -> Callable[[str], Any]:
    """Wrap ComfyUI's folder_paths.cached_filename_list_, which returns None for a list that is to be made."""

    @functools.wraps(cached)
    def wrapped(folder_name: str) -> Any:
        try:
            return cached(folder_name)
        except FileNotFoundError:
            return None

    return wrapped


def _install() -> None:
    try:
        import folder_paths

        folder_paths.cached_filename_list_ = forgetting(folder_paths.cached_filename_list_)
    except Exception as error:
        log.warning("settee: models saved to output end their loaders: %s: %s", type(error).__name__, error)


_install()
