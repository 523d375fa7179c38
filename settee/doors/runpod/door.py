"""One RunPod job, from the envelope to the answer, around an engine that blocks.

The engine works in one thread of the door's own, so that the event loop stays free for RunPod's stop channel
and its progress updates. Jobs that come at once (only the SDK's local API lets them) wait for one another there.
"""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from settee.base import logs
from settee.base.errors import (
    ComfyUnavailable,
    ConfigError,
    InvalidRequest,
    JobCanceled,
    JobTimeout,
    ModelMissing,
    SetteeError,
    WorkflowRejected,
)
from settee.base.job import Cancel, Job, Progress, Result
from settee.base.settings import Settings
from settee.doors.runpod import render
from settee.engine.request import JobRequest, decode, misspelt, parse

if TYPE_CHECKING:
    from settee.base.sealing import Sealer
    from settee.engine.engine import Engine

log = logging.getLogger(__name__)

Answer = dict[str, Any]
#: Sends one progress update of a job to RunPod.
PostProgress = Callable[[str, dict[str, Any]], Awaitable[None]]

#: A job that ends within this many seconds sends no progress at all.
FIRST_AFTER_S = 0.25
#: The longest that an update in flight may hold up its job's result, seconds.
SETTLE_S = 2.0
#: Room in RunPod's cap for what delivery does not count: many warnings (shown twice), RunPod's envelope. Bytes.
ENVELOPE = 32_000
#: How much longer a stopped job may take than the engine's own deadlines before the worker is given up, seconds.
OVERDUE_S = 60.0
#: Errors whose messages are logged: those of others may quote the caller (a file's name, a URL, a node's text).
OWN_WORDS = (ComfyUnavailable, ConfigError, JobCanceled, JobTimeout)
SHUTDOWN = "the worker is shutting down"
#: What RunPod's requests have at their top. It hands on what it does not know.
_ENVELOPE = {"id", "input", "policy", "s3Config", "webhook"}


class ProgressFeed:
    """Sends one job's latest update at most every ``interval_s`` seconds, through ``post``; none outlives its job.

    The SDK's own `progress_update` posts from a thread that is not waited for: called just before the end it arrived
    after the result in 12 of 13 jobs. :meth:`offer` may be called from any thread; everything else belongs to the event
    loop.
    """

    def __init__(self, post: Callable[[dict[str, Any]], Awaitable[None]], interval_s: float) -> None:
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


class Door:
    """Runs RunPod's jobs on an engine. ``settings`` says how; nothing happens before :meth:`start`."""

    def __init__(self, engine: Engine, settings: Settings) -> None:
        self.engine, self.settings = engine, settings
        #: Set by a loop that takes jobs from RunPod; None where progress has nowhere to go.
        self.post_progress: PostProgress | None = None
        #: Called when this worker should take no further job.
        self.on_spent: Callable[[], None] = lambda: None
        #: The same, from any thread.
        self.retire: Callable[[], None] = lambda: None
        #: The process was told to end before a loop could hear of it.
        self.stop_asked = False
        #: A job did not stop in time: its thread may never end.
        self.is_stuck = False
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="job")
        self._started = self._ready = False
        self._running: set[Cancel] = set()
        self._shutdown_at: float | None = None

    # --- Life ------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Start ComfyUI, without waiting for it. Asked again, does nothing."""
        if not self._started:
            self._started = True
            self.engine.start()

    def close(self) -> None:
        """Stop ComfyUI and wipe. A job that still runs has been told to stop, and is waited for."""
        for cancel in tuple(self._running):
            cancel.set(SHUTDOWN)
        self._pool.shutdown(wait=not self.is_stuck)
        self.engine.close()

    @property
    def is_busy(self) -> bool:
        """Return True if a job runs or waits for its turn."""
        return bool(self._running)

    @property
    def waits_ready(self) -> bool:
        """Return True if no job is taken before ComfyUI answers."""
        return self.settings.warmup_workflow is not None or not self.settings.early_jobs

    def submit_ready(self, cancel: Cancel) -> Future[None]:
        """:meth:`make_ready` in the engine's thread."""
        return self._pool.submit(self.make_ready, cancel)

    def make_ready(self, cancel: Cancel) -> None:
        """Start ComfyUI; wait for it and run WARMUP_WORKFLOW, once, when jobs have to. Blocks; raises SetteeError.

        A job needs no wait here: the engine's own comes after it has begun to fetch the job's models.
        """
        if self._ready:
            return
        self.start()
        if self.settings.warmup_workflow is not None:  # it waits for ComfyUI, and has its models fetched meanwhile
            request = warmup(self.settings)
            with logs.job("warmup"):
                try:
                    done = self.engine.run(Job(id="warmup", request=request), lambda _: None, cancel)
                except (InvalidRequest, ModelMissing, WorkflowRejected) as error:  # a mistake of this worker's operator
                    raise ConfigError(f"WARMUP_WORKFLOW: {error.message}", details=error.details) from error
                log.info("warm-up workflow done in %.0f ms", done.timings.get("total", 0.0))
        elif self.waits_ready:
            self.engine.backend.wait_ready(self.settings.comfy_start_timeout_s, cancel)
        self._ready = True

    # --- Shutdown --------------------------------------------------------------------------------------

    def shut_down(self) -> None:
        """Give every job SHUTDOWN_GRACE_S more seconds; asked again, cancel them now. Event loop only."""
        loop = asyncio.get_running_loop()
        grace_s = self.settings.shutdown_grace_s if self._shutdown_at is None else 0.0
        self._shutdown_at = loop.time() + grace_s
        for cancel in self._running:
            loop.call_at(self._shutdown_at, cancel.set, SHUTDOWN)

    # --- One job ---------------------------------------------------------------------------------------

    async def run(self, envelope: dict[str, Any]) -> Answer:
        """Run RunPod's job ``{"id", "input", "s3Config"?, …}`` and return its answer; never raises but this:

        CancelledError when the task is cancelled (RunPod's stop channel), and only after the engine's thread
        has ended, which is when ComfyUI is idle and the workspace wiped: the slot is really free then.
        """
        job_id = str(envelope.get("id") or "job")
        if self.is_stuck:
            stuck = ComfyUnavailable("this worker could not stop its last job and is being replaced")
            return {**render.error(stuck), "refresh_worker": True}
        loop = asyncio.get_running_loop()
        cancel = Cancel()
        post, interval_s = self.post_progress, self.settings.progress_interval_s
        feed = None if post is None else ProgressFeed(partial(post, job_id), interval_s)
        # Before its thread starts: a signal that comes in between must find it.
        self._running.add(cancel)
        try:
            work: Future[Answer] = self._pool.submit(self._work, envelope, job_id, cancel, feed)
        except BaseException:
            self._running.discard(cancel)
            cancel.close()
            raise
        if self._shutdown_at is not None:
            loop.call_at(self._shutdown_at, cancel.set, SHUTDOWN)
        try:
            answer = await asyncio.shield(asyncio.wrap_future(work))
            if feed is not None:
                await feed.settle()
        except asyncio.CancelledError:
            cancel.set("stopped by RunPod")
            if not work.cancel():  # true for one that was still waiting for its turn
                await self._outlast(work)
            if feed is not None:
                await feed.settle(0)
            raise
        finally:
            self._running.discard(cancel)
            if work.done():
                cancel.close()
        if answer.get("refresh_worker"):
            self.on_spent()
        return answer

    async def _outlast(self, work: Future[Answer]) -> None:
        """Wait for the engine's thread, whatever else is cancelled meanwhile; give the worker up if it never ends."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.comfy_interrupt_s + self.settings.comfy_start_timeout_s + OVERDUE_S
        ended = asyncio.wrap_future(work)
        while not ended.done() and loop.time() < deadline:
            try:
                await asyncio.wait({ended}, timeout=deadline - loop.time())
            except asyncio.CancelledError:
                log.debug("stopped again while stopping")
        if not ended.done():
            log.critical("the job did not stop; this worker takes no more")
            self.is_stuck = True
            self.on_spent()

    # --- In the engine's thread ------------------------------------------------------------------------

    def _work(self, envelope: dict[str, Any], job_id: str, cancel: Cancel, feed: ProgressFeed | None) -> Answer:
        """The whole job; never raises."""
        with logs.job(job_id):
            try:
                answer = self._answer(envelope, job_id, cancel, feed)
                cap = self.max_result_bytes(job_id)
                return answer if cap is None else render.bounded(answer, cap)
            except Exception as error:  # an answer that could not be rendered; it may have been a sealed job's
                log.error("internal error: %s", type(error).__name__)
                return render.error(SetteeError())

    def _answer(self, envelope: dict[str, Any], job_id: str, cancel: Cancel, feed: ProgressFeed | None) -> Answer:
        keys: Sealer | None = None
        ran = False
        try:
            payload = envelope.get("input")
            if isinstance(payload, render.Unreadable):
                raise InvalidRequest(
                    "the request cannot be read: its JSON is broken, nested too deeply, or has a number of thousands "
                    "of digits"
                )
            payload = decode(payload, self.settings)
            if render.is_sealed(payload):
                keys = render.sealer(self.settings)
                payload = render.opened(payload, keys)
            elif self.settings.require_encryption:
                raise InvalidRequest(
                    'this worker takes encrypted jobs only: send {"encrypted_input": token, "is_encrypted": true}'
                )
            else:
                payload = {key: value for key, value in payload.items() if key not in render.KEYS}
            request = parse(payload, self.settings, bucket=envelope.get("s3Config"))
            self.make_ready(cancel)
            ran = True
            done = self._run_engine(request, job_id, cancel, feed, keys)
            known = _ENVELOPE - envelope.keys()
            ignored = filter(None, (misspelt(str(key), known) for key in envelope.keys() - _ENVELOPE))
            answer = render.result(replace(done, warnings=(*ignored, *done.warnings)))
            answer = answer if keys is None else render.closed(answer, keys)
        except Exception as error:  # the door's edge: what leaves it reaches the caller
            answer = _failed(error, cancel, keys)
        if self.engine.backend.unrecoverable or (ran and self.settings.refresh_worker):
            answer["refresh_worker"] = True
        return answer

    def _run_engine(
        self, request: JobRequest, job_id: str, cancel: Cancel, feed: ProgressFeed | None, keys: Sealer | None
    ) -> Result:
        cap = self.max_result_bytes(job_id)
        room = None if cap is None else max(0, cap - ENVELOPE)

        def on_progress(event: Progress) -> None:
            if feed is not None:
                feed.offer(render.progress(event, sealed=keys is not None))

        job = Job(id=job_id, request=request, max_result_bytes=room, sealer=keys)
        done = self.engine.run(job, on_progress, cancel)
        log.info("succeeded: %d output(s) in %.0f ms", len(done.outputs), done.timings.get("total", 0.0))
        return done

    def max_result_bytes(self, job_id: str) -> int | None:
        """Return RunPod's cap on this job's result: by its id, as /runsync's begin with ``sync-``. None locally."""
        if job_id.startswith("test-") or job_id == "local_test":
            return None
        megabytes = self.settings.runsync_result_mb if job_id.startswith("sync-") else self.settings.run_result_mb
        return int(megabytes * 1_000_000)


def warmup(settings: Settings) -> JobRequest:
    """Return WARMUP_WORKFLOW as a request. Raises ConfigError for anything else."""
    path = settings.warmup_workflow
    assert path is not None
    try:
        return parse({"workflow": path.read_text(encoding="utf-8", errors="replace")}, settings)
    except OSError as error:
        raise ConfigError(f"WARMUP_WORKFLOW cannot be read: {error.strerror}") from error
    except InvalidRequest as error:
        raise ConfigError(f"WARMUP_WORKFLOW: {error.message}", details=error.details) from error


def _failed(error: Exception, cancel: Cancel, keys: Sealer | None) -> Answer:
    """Log a failure, and return its answer. Of a sealed job the log has the kind alone."""
    if not isinstance(error, SetteeError):
        # One of our own: the log has its traceback, the caller the job's id to ask with.
        if keys is None:
            log.error("internal error", exc_info=error)
            error = SetteeError("the worker failed on this job; its log has the reason under the job's id")
        else:  # no exc_info: an exception's own text may quote the payload
            frames = "".join(traceback.format_tb(error.__traceback__))
            log.error("internal error: %s\n%s", type(error).__name__, frames)
            error = SetteeError()
    else:
        if isinstance(error, JobCanceled) and cancel.reason == SHUTDOWN:
            # It may be sent again: its caller did not cancel it.
            error = JobCanceled(f"the job was canceled: {SHUTDOWN}", details={"reason": "shutdown"}, retryable=True)
        count, why = len(error.details.get("problems") or error.details.get("node_errors") or ()), ""
        if isinstance(error, OWN_WORDS):
            why = f": {error.message}"
        elif count:
            why = f" ({count} problem{'s' * (count > 1)})"
        log.info("failed: %s%s", error.code, why if keys is None else "")
    return render.error(error) if keys is None else render.closed_error(error, keys)
