"""The client for asyncio: :class:`AsyncEndpoint` does what :class:`settee.client.endpoint.Endpoint` does, in threads.

Giving up a wait (``task.cancel()``, ``asyncio.timeout``) leaves the job running where it is: cancel it by its id.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, TypeVar

from settee.base.threads import Call
from settee.client.arguments import WorkflowLike
from settee.client.endpoint import WAIT_S, Endpoint, Job
from settee.client.saving import Result
from settee.client.targets import Answer

T = TypeVar("T")


async def _in_thread(fn: Callable[..., T], *args: Any, **kwargs: Any) -> T:
    """Call ``fn`` in a thread of its own: asyncio has few, and jobs that are awaited would take them all.

    A caller that is canceled does not wait for the call, which goes on; nor does the program's end.
    """
    ended = asyncio.Event()
    call = Call(lambda: fn(*args, **kwargs), name="settee-client")
    call.when_ended(_on_loop(ended.set))
    await ended.wait()
    return call.result()


def _on_loop(fn: Callable[..., None]) -> Callable[..., None]:
    """Return a function for other threads, that has ``fn`` called on this event loop, while there is one."""
    loop = asyncio.get_running_loop()

    def call(*args: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            loop.call_soon_threadsafe(fn, *args)

    return call


@dataclass
class AsyncJob:
    """A job that was sent."""

    job: Job = field(repr=False)

    @property
    def id(self) -> str:
        return self.job.id

    async def status(self) -> Answer:
        return await _in_thread(self.job.status)

    async def cancel(self) -> None:
        await _in_thread(self.job.cancel)

    async def wait(self, timeout_s: float = WAIT_S, *, on_update: Callable[[Answer], None] = lambda _: None) -> Result:
        """Wait as :meth:`Job.wait` does. ``on_update`` is called on the event loop."""
        stop = threading.Event()
        update = _on_loop(lambda answer: None if stop.is_set() else on_update(answer))
        try:
            return await _in_thread(self.job.wait, timeout_s, on_update=update, stop=stop)
        except asyncio.CancelledError:
            stop.set()  # the thread asks for the job no more
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
        return AsyncJob(await _in_thread(self.endpoint.submit, workflow, **wishes))

    async def run(
        self,
        workflow: WorkflowLike,
        *,
        wait_s: float = WAIT_S,
        on_update: Callable[[Answer], None] = lambda _: None,
        **wishes: Any,
    ) -> Result:
        return await (await self.submit(workflow, **wishes)).wait(wait_s, on_update=on_update)

    async def job(self, job_id: str) -> AsyncJob:
        return AsyncJob(await _in_thread(self.endpoint.job, job_id))

    async def status(self, job_id: str) -> Answer:
        return await _in_thread(self.endpoint.status, job_id)

    async def cancel(self, job_id: str) -> None:
        await _in_thread(self.endpoint.cancel, job_id)

    async def health(self) -> dict[str, Any]:
        return await _in_thread(self.endpoint.health)

    async def close(self) -> None:
        await _in_thread(self.endpoint.close)
