"""The parts that the routes of one server share."""

from __future__ import annotations

import asyncio
import itertools

from aiohttp import web

from settee.embedded.broadcast import Hub
from settee.embedded.executor import Executor
from settee.embedded.nodes.node import Env
from settee.embedded.pending import PromptQueue
from settee.embedded.server_options import Options


class State:
    """One server: its options, and the parts that do the work."""

    def __init__(self, options: Options, loop: asyncio.AbstractEventLoop) -> None:
        self.options = options
        self.hub = Hub(loop)
        self.queue = PromptQueue(on_change=lambda: self.hub.post("status", {"status": self.queue_info()}, None))
        self.executor = Executor(self.queue, self.hub, Env(options))
        #: For prompts that bring no number of their own.
        self.numbers = itertools.count()

    def queue_info(self) -> dict[str, dict[str, int]]:
        """Return the body of GET /prompt and of every status message."""
        return {"exec_info": {"queue_remaining": self.queue.remaining()}}

    def features(self) -> dict[str, object]:
        """Return the body of GET /features and the answer to a client's feature_flags."""
        return {
            "supports_preview_metadata": True,
            "supports_model_type_tags": True,
            "max_upload_size": self.options.max_upload_bytes,
            "extension": {"manager": {"supports_v4": True}},
            "node_replacements": True,
            "assets": False,
        }


STATE = web.AppKey("state", State)
