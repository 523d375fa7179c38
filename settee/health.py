"""`settee health`: exit code 0 when the container's ComfyUI answers and runs what it is given.

For Docker's HEALTHCHECK. An open port says too little: when the thread that runs prompts has died, ComfyUI answers
everything and runs nothing. So the queue is looked at, too: prompts that wait while none runs, twice in a row, are a
queue that stands still. That the worker itself lives needs no look: it is the container's first process.
"""

from __future__ import annotations

import argparse
import time

from settee.backends.comfy.comfy_client import Client
from settee.base.errors import SetteeError
from settee.base.settings import Settings, load

_TIMEOUT_S = 3.0
#: Between the end of one prompt and the start of the next nothing runs either, for milliseconds; a collector's round
#: can make it half a second.
_AGAIN_S = 2.0


def problem(settings: Settings, again_s: float = _AGAIN_S) -> str | None:
    """Return what is wrong, in a line, or None."""
    if settings.comfy_url is None and settings.comfy_port == 0:
        return "COMFY_PORT=0 lets the worker pick a port that no other process knows: set COMFY_PORT to be checked"
    client = Client(settings.comfy_url or f"http://127.0.0.1:{settings.comfy_port}")
    try:
        client.system_stats(timeout_s=_TIMEOUT_S)
        if _stands_still(client):
            time.sleep(again_s)
            if _stands_still(client):
                return "ComfyUI's queue stands still: prompts wait and none runs"
    except SetteeError as error:
        return error.message
    finally:
        client.close()
    return None


def _stands_still(client: Client) -> bool:
    queue = client.queue(timeout_s=_TIMEOUT_S)
    return bool(queue.pending) and not queue.running


def main() -> int:
    """Print what is wrong, if anything; Docker keeps the line."""
    argparse.ArgumentParser(description="Exit with 0 if ComfyUI answers and runs prompts.").parse_args()
    try:
        wrong = problem(load())
    except SetteeError as error:
        wrong = error.message
    print(wrong or "healthy")  # noqa: T201 - a command's output
    return 1 if wrong else 0


if __name__ == "__main__":  # a HEALTHCHECK of an operator's own may name this module: without a word it would pass
    raise SystemExit(main())
