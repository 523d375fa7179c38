"""The client for asyncio: :class:`AsyncEndpoint` does what :class:`settee.client.endpoint.Endpoint` does, in threads.

Giving up a wait (``task.cancel()``, ``asyncio.timeout``) leaves the job running where it is: cancel it by its id.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from settee.client.endpoint import WAIT_S, Endpoint, Job, WorkflowLike
from settee.client.results import Result
from settee.client.targets.target import Answer


@dataclass
class AsyncJob:
    """A job that was sent."""

    job: Job = field(repr=False)

    @property
    def id(self) -> str:
        return self.job.id

    async def status(self) -> Answer:
        return await asyncio.to_thread(self.job.status)

    async def cancel(self) -> None:
        await asyncio.to_thread(self.job.cancel)

    async def wait(self, timeout_s: float = WAIT_S, *, on_update: Callable[[Answer], None] = lambda _: None) -> Result:
        """:meth:`Job.wait`. ``on_update`` is called on the event loop."""
        loop, stop = asyncio.get_running_loop(), threading.Event()

        def update(answer: Answer) -> None:
            if not stop.is_set():
                loop.call_soon_threadsafe(on_update, answer)

        try:
            return await asyncio.to_thread(self.job.wait, timeout_s, on_update=update, stop=stop)
        except asyncio.CancelledError:
            # The thread asks for the job no more.
            stop.set()
            raise


class AsyncEndpoint:
    """Takes what :class:`Endpoint` takes."""

    def __init__(self, where: str | None = None, **given: Any) -> None:
        self.endpoint = Endpoint(where, **given)

    async def __aenter__(self) -> AsyncEndpoint:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def submit(self, workflow: WorkflowLike, **wishes: Any) -> AsyncJob:
        return AsyncJob(await asyncio.to_thread(self.endpoint.submit, workflow, **wishes))

    async def run(
        self,
        workflow: WorkflowLike,
        *,
        wait_s: float = WAIT_S,
        on_update: Callable[[Answer], None] = lambda _: None,
        **wishes: Any,
    ) -> Result:
        job = await self.submit(workflow, **wishes)
        return await job.wait(wait_s, on_update=on_update)

    async def job(self, job_id: str) -> AsyncJob:
        return AsyncJob(await asyncio.to_thread(self.endpoint.job, job_id))

    async def status(self, job_id: str) -> Answer:
        return await asyncio.to_thread(self.endpoint.status, job_id)

    async def cancel(self, job_id: str) -> None:
        await asyncio.to_thread(self.endpoint.cancel, job_id)

    async def health(self) -> dict[str, Any]:
        return await asyncio.to_thread(self.endpoint.health)

    async def close(self) -> None:
        await asyncio.to_thread(self.endpoint.close)
