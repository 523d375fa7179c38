"""What the routes of one server share."""

from __future__ import annotations

import asyncio
import logging
import shutil
from dataclasses import dataclass

from aiohttp import web

from settee.embedded.broadcast import Hub
from settee.embedded.caching import Cache
from settee.embedded.executor import Executor
from settee.embedded.faults import Faults, Stats
from settee.embedded.nodes.base import Memory, NodeEnv
from settee.embedded.pending import PromptQueue
from settee.embedded.server_options import Options


@dataclass
class State:
    """One server: its options, its failures, and the parts that do the work."""

    options: Options
    faults: Faults
    stats: Stats
    hub: Hub
    queue: PromptQueue
    executor: Executor
    next_number: int = 0

    def take_number(self) -> int:
        """The number of the next prompt that brings none of its own."""
        number = self.next_number
        self.next_number += 1
        return number


STATE = web.AppKey("state", State)


def queue_info(queue: PromptQueue) -> dict[str, dict[str, int]]:
    """What GET /prompt and every status message say."""
    return {"exec_info": {"queue_remaining": queue.remaining()}}


def build_state(options: Options, loop: asyncio.AbstractEventLoop) -> State:
    """The parts of a server, with empty temp and its directories made."""
    shutil.rmtree(options.folders.temp, ignore_errors=True)
    options.folders.create()
    faults, stats = Faults(options.faults), Stats()
    hub = Hub(loop, faults)
    queue = PromptQueue(on_change=lambda: hub.post("status", {"status": queue_info(queue)}, None))
    env = NodeEnv(
        folders=options.folders,
        faults=faults,
        stats=stats,
        memory=Memory(),
        log=logging.getLogger("settee.embedded"),
        disable_metadata=options.disable_metadata,
        preview_size=options.preview_size,
    )
    executor = Executor(queue, hub, env, Cache(options.cached_results))
    return State(options, faults, stats, hub, queue, executor)
