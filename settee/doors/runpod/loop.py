"""The SDK's job loop, without its sleeps.

The stock loop looks for work in one task and runs it in another; the two meet by polling: 0.1 s between looks
at the queue, 1 s between looks for a free slot. A job of 3 ms costs 0.96 s, on a GPU billed by the second.
:class:`FastLoop` does both in one task: take, run, post, take. It has one slot, as one GPU has.

It is built on the inside of the SDK, so it is used with versions it knows only (:func:`sdk.is_known`);
:class:`StockLoop` is what remains for others. Both keep the SDK's stop channel, pings and log lines.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Coroutine
from functools import partial
from types import FrameType
from typing import Any, TypeVar

import aiohttp

from settee.base.errors import InvalidRequest
from settee.doors.runpod import render, sdk, wire
from settee.doors.runpod.door import Door

sdk.load()
from runpod.http_client import AsyncClientSession  # noqa: E402 - the SDK is imported our way first
from runpod.serverless.modules import rp_http, rp_job, rp_scale  # noqa: E402
from runpod.serverless.modules.rp_logger import RunPodLogger  # noqa: E402

log = logging.getLogger(__name__)
sdk_log = RunPodLogger()
T = TypeVar("T")

#: How long RunPod may hold a request for a job, seconds, as the SDK has it.
LONG_POLL_S = 90.0
#: How long a take may still be answered after the worker was told to stop, seconds. RunPod may have handed out
#: a job a moment ago; closing the connection now would lose it.
LAST_TAKE_S = 0.5
#: How long the body of a job may take once its headers are here, seconds.
BODY_S = 60.0
#: How long a stop for a job that we do not have yet is remembered, seconds. RunPod may say stop before the answer
#: with the job itself is read. Not longer: a job that is retried keeps its id.
EARLY_STOP_S = 5.0
#: How long a result may still be on its way once the worker is to end, seconds, and more for a large one.
LAST_POST_S = 10.0
#: A body below this many bytes was not refused for its size.
SMALL = 64_000


@contextlib.asynccontextmanager
async def _until(work: Coroutine[Any, Any, T], ending: asyncio.Event, timeout_s: float | None = None) -> Any:
    """Run ``work`` as a task until it is done, ``ending`` is set or the time is up; on leaving it is ended."""
    task, ended = asyncio.create_task(work), asyncio.create_task(ending.wait())
    try:
        await asyncio.wait({task, ended}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        yield task
    finally:
        for each in (task, ended):
            each.cancel()
        await asyncio.wait({task, ended})


class StockLoop(rp_scale.JobScaler):  # type: ignore[misc]  # the SDK has no types
    """The SDK's loop, with a shutdown that reaches the running job and the long polls, and loses no job."""

    def __init__(self, config: dict[str, Any], door: Door) -> None:
        super().__init__(config)
        self.door = door
        door.post_progress = self.post_progress
        door.on_spent = self.kill_worker
        door.retire = partial(self._soon, self.kill_worker)
        self._session: aiohttp.ClientSession | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self.jobs_fetcher = self._fetch
        slowest = LONG_POLL_S + BODY_S + wire.TOO_MANY_S + wire.Pace.MAX_FAILING_S
        self.jobs_fetcher_timeout = slowest  # never ours to cut off
        self._pace = wire.Pace()
        self._all_taken = asyncio.Event()
        self._all_run = asyncio.Event()

    async def run(self) -> None:
        self._loop = asyncio.get_running_loop()
        if self.door.stop_asked:
            self.kill_worker()
        async with AsyncClientSession() as session:
            self._session = session
            await self.serve(session)

    async def serve(self, session: aiohttp.ClientSession) -> None:
        """Take and run jobs until told to stop."""
        await super().run()

    # --- jobs taken -----------------------------------------------------------------------------------------------

    async def _fetch(self, session: aiohttp.ClientSession, _: int = 1) -> list[dict[str, Any]] | None:
        """The SDK's jobs_fetcher, which a shutdown ends: its own would hold the worker for the rest of its poll."""
        delay_s = self._pace.delay_s()
        if delay_s > 0 and self.is_alive():
            async with _until(asyncio.sleep(delay_s), self._shutdown_event):
                pass
        try:
            job = await self._take(session) if self.is_alive() else None
        except Exception as error:  # a door's edge: whatever RunPod answers, the worker must ask again
            if getattr(error, "status", 0) == 429:
                self._pace.too_many()
            else:
                self._pace.failed()
                log.warning("a request for a job failed: %s", type(error).__name__)
            return None
        return None if job is None else [job]

    async def _take(self, session: aiohttp.ClientSession) -> dict[str, Any] | None:
        """Ask RunPod for a job. A request that is cut off by a shutdown gets a last moment to be answered."""
        answered = asyncio.Event()
        request = wire.take(session, rp_job._job_get_url(), answered)
        async with _until(request, self._shutdown_event, LONG_POLL_S) as asking:
            if not asking.done() and not self.is_alive():
                await asyncio.wait({asking}, timeout=LAST_TAKE_S)
            if not asking.done() and answered.is_set():
                await asyncio.wait({asking}, timeout=BODY_S)
        if asking.cancelled():
            return None  # a long poll without an answer in 90 s, as the SDK has it; or a shutdown
        job: dict[str, Any] | None = asking.result()
        self._pace.took(job is not None)
        return job

    # --- the SDK's own parts --------------------------------------------------------------------------------------

    async def get_jobs(self, session: aiohttp.ClientSession) -> None:
        """The SDK's part that takes jobs."""
        try:
            await super().get_jobs(session)
        finally:
            self._all_taken.set()

    async def run_jobs(self, session: aiohttp.ClientSession) -> None:
        """The SDK's part that runs jobs. It ends at once in a shutdown, even if a job is just being taken."""
        await super().run_jobs(session)
        await self._all_taken.wait()
        await super().run_jobs(session)
        self._all_run.set()

    async def monitor_stop_signals(self, session: aiohttp.ClientSession) -> None:
        """The SDK's stop channel, which would hold the worker for the rest of its poll. It may end by itself: there is
        no channel where it finds no URL."""
        async with _until(super().monitor_stop_signals(session), self._all_run):
            pass

    # --- signals and progress -------------------------------------------------------------------------------------

    def handle_shutdown(self, signum: int, frame: FrameType | None) -> None:
        """SIGTERM and SIGINT. An Event set from a signal handler does not wake a loop that waits; this does."""
        self._soon(self._shut_down)

    def _soon(self, call: Callable[[], None]) -> None:
        """Make a call in the loop, from any thread; before the loop runs, no job is taken at all."""
        if self._loop is None:
            self.kill_worker()
            return
        with contextlib.suppress(RuntimeError):  # it has ended already
            self._loop.call_soon_threadsafe(call)

    def _shut_down(self) -> None:
        sdk_log.info("Shutting down.")
        self.kill_worker()
        self.door.shut_down()

    async def post_progress(self, job_id: str, update: dict[str, Any]) -> None:
        """Send one update, once."""
        assert self._session is not None
        body = render.Body({"status": "IN_PROGRESS", "output": update})
        await wire.post(self._session, wire.done_url(rp_http.JOB_DONE_URL, job_id), job_id, body)


class FastLoop(StockLoop):
    """Takes the next job as soon as the last one's result is posted, and never earlier."""

    def __init__(self, config: dict[str, Any], door: Door) -> None:
        super().__init__(config, door)
        self.jobs_handler = self.run_and_post
        self._early_stops: dict[str, float] = {}
        self._last_job = ""

    async def serve(self, session: aiohttp.ClientSession) -> None:
        stops = asyncio.create_task(self.monitor_stop_signals(session))
        try:
            while self.is_alive():
                for job in await self._fetch(session) or ():
                    await self._run_one(session, job)
        finally:
            stops.cancel()
            await asyncio.wait({stops})

    async def stop_job(self, job_id: str) -> bool:
        """The stop channel's order. The SDK forgets one that comes before its job, which then runs to its end."""
        stopped: bool = await super().stop_job(job_id)
        if not stopped and job_id != self._last_job:
            now = time.monotonic()
            self._early_stops = {job: at for job, at in self._early_stops.items() if at > now - EARLY_STOP_S}
            self._early_stops[job_id] = now
        return stopped

    async def _run_one(self, session: aiohttp.ClientSession, job: dict[str, Any]) -> None:
        job_id = job["id"]
        if self._early_stops.pop(job_id, float("-inf")) > time.monotonic() - EARLY_STOP_S:
            sdk_log.info("Stopped before it began.", job_id)
            return
        self._last_job = job_id
        # handle_job of the SDK ends what is begun here: it reports to the queue, the pings and the stop channel.
        self.jobs_queue.put_nowait(job)
        self.jobs_queue.get_nowait()
        self.job_progress.add(job_id)
        task = asyncio.create_task(self.handle_job(session, job))
        self.jobs_tasks[job_id] = task
        await asyncio.wait({task})
        # Done by handle_job already, except for a task that was cancelled before its first step.
        self.job_progress.remove(job_id)
        self.jobs_tasks.pop(job_id, None)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("a job ended without an answer", exc_info=error)

    async def run_and_post(self, session: aiohttp.ClientSession, config: dict[str, Any], job: dict[str, Any]) -> None:
        """Run one job and post its result; in place of the SDK's handle_job, which copies it six times."""
        job_id = job["id"]
        sdk_log.info("Started.", job_id)
        if "input" in job:
            answer = await self.door.run(job)
        else:
            answer = render.error(InvalidRequest("the job has no input"))
        body = render.Body(render.message(answer))
        try:
            try:
                await self._deliver(session, job_id, body)
            except wire.Refused as refusal:
                if len(body) < SMALL:
                    raise
                log.error("RunPod refused a result of %d bytes (%s); reporting that instead", len(body), refusal)
                short = render.too_large(len(body), f"refused by RunPod ({refusal})")
                short["refresh_worker"] = answer.get("refresh_worker")
                await self._deliver(session, job_id, render.Body(render.message(short)))
        except (wire.Refused, wire.Undelivered) as error:
            sdk_log.error(f"Failed to return job results. | {error}", job_id)
        finally:
            sdk_log.info("Finished.", job_id)

    async def _deliver(self, session: aiohttp.ClientSession, job_id: str, body: render.Body) -> None:
        """Post a result. Once the worker is to end, RunPod has a bounded time to take it: it may never answer."""
        work = wire.deliver(session, wire.done_url(rp_http.JOB_DONE_URL, job_id), job_id, body)
        async with _until(work, self._shutdown_event) as posting:
            if not posting.done():
                await asyncio.wait({posting}, timeout=LAST_POST_S + len(body) / wire.SLOWEST)
        if posting.cancelled():
            raise wire.Undelivered("no answer before the worker's end")
        posting.result()
