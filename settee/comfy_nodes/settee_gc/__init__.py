"""A ComfyUI custom node without nodes: it takes what ComfyUI has loaded out of the garbage collector's rounds.

After a prompt, when more than 10 s have passed since the last time, ComfyUI's main.py calls gc.collect() under the
GIL: every object that torch, transformers and the node classes left is looked at, and meanwhile nobody is answered.
gc.freeze() moves what is there to a generation that is never looked at.

It runs when the server starts to listen: every custom node is loaded by then (ComfyUI imports them one by one, before),
and no model is yet. Later would be wrong: a model frozen while it was in use, and in a reference cycle, would keep its
memory for ever. Garbage is not collected first: it was 55 objects of 376,000, and cost 0.2 s of every cold start.
"""

from __future__ import annotations

import gc
import logging
from typing import Any

#: ComfyUI wants to see this in every custom node.
NODE_CLASS_MAPPINGS: dict[str, type] = {}

log = logging.getLogger(__name__)


async def settee_freeze(_app: Any = None) -> None:
    """An aiohttp start-up hook."""
    gc.freeze()
    log.info("settee: %d loaded objects are out of the garbage collector's rounds", gc.get_freeze_count())


def _install() -> None:
    try:
        from server import PromptServer

        hooks = PromptServer.instance.app.on_startup
        # The image and the supervisor may both have shown this folder to ComfyUI.
        if not any(getattr(hook, "__name__", "") == settee_freeze.__name__ for hook in hooks):
            hooks.append(settee_freeze)
    except Exception as error:
        # A ComfyUI that is built otherwise only keeps its stall.
        log.warning("settee: the collector's stall stays: %s: %s", type(error).__name__, error)


_install()
