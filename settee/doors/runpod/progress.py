"""Progress of one job on its way to RunPod's /status.

The SDK's own `progress_update` posts from a thread that is not waited for: called just before the end it arrived
after the result in 12 of 13 jobs. Here updates are sent one at a time from the event loop, throttled to the
latest, and :meth:`ProgressFeed.settle` ends them before the result goes out.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any

log = logging.getLogger(__name__)

Post = Callable[[dict[str, Any]], Awaitable[None]]

#: A job that ends within this many seconds sends no progress at all.
FIRST_AFTER_S = 0.25

#: The longest that an update in flight may hold up its job's result, seconds.
SETTLE_S = 2.0


class ProgressFeed:
    """Sends the latest update at most every ``interval_s`` seconds, through ``post``.

    :meth:`offer` may be called from any thread; everything else belongs to the event loop.
    """

    def __init__(self, post: Post, interval_s: float) -> None:
        self._post = post
        self._interval_s = interval_s
        self._loop = asyncio.get_running_loop()
        self._fresh = asyncio.Event()
        self._latest: dict[str, Any] | None = None
        self._in_flight: asyncio.Future[None] | None = None
        self._runner = self._loop.create_task(self._run())

    def offer(self, update: dict[str, Any]) -> None:
        """Take an update in place of the one that waits, if any."""
        waiting, self._latest = self._latest, update
        if waiting is None:
            self._loop.call_soon_threadsafe(self._fresh.set)

    async def settle(self, timeout_s: float = SETTLE_S) -> None:
        """Send nothing more. On return no update is in flight.

        One that RunPod has not answered within ``timeout_s`` is cut off together with its connection.
        """
        try:
            await self._end(self._runner)
            if self._in_flight is not None and timeout_s > 0:
                await asyncio.wait({self._in_flight}, timeout=timeout_s)
        finally:
            if self._in_flight is not None:
                await self._end(self._in_flight)

    @staticmethod
    async def _end(task: asyncio.Future[None]) -> None:
        task.cancel()
        await asyncio.wait({task})

    async def _run(self) -> None:
        await asyncio.sleep(min(FIRST_AFTER_S, self._interval_s))
        while True:
            await self._fresh.wait()
            self._fresh.clear()
            update, self._latest = self._latest, None
            if update is not None:
                self._in_flight = asyncio.ensure_future(self._send(update))
                # Shielded: settle() ends this loop, and gives an update that is under way its time.
                await asyncio.shield(self._in_flight)
                await asyncio.sleep(self._interval_s)

    async def _send(self, update: dict[str, Any]) -> None:
        try:
            await self._post(update)
        except Exception as error:  # progress is a courtesy: nothing about it may fail a job
            log.debug("a progress update was not delivered: %s", type(error).__name__)
