"""Have psutil, which ComfyUI asks for the memory there is, know the limits of a container.

It reads /proc/meminfo, which shows the host's memory in a container too. By it ComfyUI decides how much memory it pins,
and how many results it keeps: on a host with enough of both, until the kernel kills it at its container's limit.
"""

from __future__ import annotations

import functools
import importlib.util
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)


def limited(virtual_memory: Callable[[], Any], total: int, available: Callable[[], int]) -> Callable[[], Any]:
    """Wrap psutil.virtual_memory: no more than ``total`` bytes, of which ``available()`` can be had."""

    @functools.wraps(virtual_memory)
    def wrapped() -> Any:
        found = virtual_memory()
        least = min(found.available, available())
        used = round(100 * (total - least) / total, 1)
        return found._replace(total=total, available=least, free=min(found.free, least), percent=used)

    return wrapped


def _install() -> None:
    try:
        import psutil  # type: ignore[import-untyped]  # ComfyUI has it

        # ComfyUI's Python does not have this package, of which the module needs nothing else.
        path = Path(__file__).resolve().parents[2] / "models" / "readahead.py"
        spec = importlib.util.spec_from_file_location("settee_readahead", path)
        assert spec is not None
        assert spec.loader is not None
        memory = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = memory  # its dataclasses look themselves up there
        spec.loader.exec_module(memory)
        total = memory.total_memory()
        if 0 < total < psutil.virtual_memory().total:
            psutil.virtual_memory = limited(psutil.virtual_memory, total, memory.free_memory)
            log.info("settee: ComfyUI sees this container's limit of %d MiB", total // 1024**2)
    except Exception as error:
        log.warning("settee: ComfyUI does not see a container's limit: %s: %s", type(error).__name__, error)


_install()
