"""The agent over HTTP: its routes. What happens to a job: :mod:`settee.doors.agent.intake`."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

from fastapi import FastAPI, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.exceptions import HTTPException

from settee import __version__
from settee.base.errors import Busy, ComfyUnavailable, InvalidRequest, SetteeError, wrong_value
from settee.doors.agent import envelope as envelopes
from settee.doors.agent.contract import Accepted, Cancelling, Health, Job, Problem, Summary
from settee.doors.agent.intake import Intake, OtherBody
from settee.doors.agent.openapi import EVENTS, add_page, body_of, schema_of
from settee.doors.agent.reasons import reason
from settee.service.events import EventLog
from settee.service.http_server import Auth, Gate, problem
from settee.service.metrics import Metrics

SERVICE = "settee GPU agent"
#: The largest body of a cancel: it is read on the event loop.
_MAX_CANCEL_BYTES = 65_536
#: Signs that begin or part values in a dispatch's JSON, those in its texts included. 10,000 overrides, as many
#: parameters and 5,000 inline nodes have some 200,000 of them; 16 MB of empty lists have ten million, which keep every
#: thread waiting for seconds and take a gigabyte.
_MAX_VALUES = 1_000_000
#: A line now and then keeps proxies from closing a quiet stream, seconds.
KEEP_ALIVE_S = 15.0
_EVENTS = "/events"


_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "No token, or a wrong one"},
    421: {
        "model": Problem,
        "description": "No token is set, and the Host header is not one of this machine's own names",
    },
}
#: Refusals of routes that take a body.
_BODY_REFUSALS: dict[int | str, dict[str, Any]] = {
    **_REFUSALS,
    400: {"model": Problem, "description": "The body is not what it should be"},
    408: {"model": Problem, "description": "The body comes too slowly"},
    413: {"model": Problem, "description": "The body is too large, or has too many values"},
    415: {"model": Problem, "description": "The body is not declared as JSON"},
}
_UNKNOWN: dict[int | str, dict[str, Any]] = {
    **_REFUSALS,
    404: {"model": Problem, "description": "This agent has not run such a job lately"},
    422: {"model": Problem, "description": "A parameter is wrong"},
}


def create_app(intake: Intake, metrics: Metrics, auth: Auth, *, max_body_bytes: int, max_nodes: int) -> FastAPI:
    """The ASGI application."""
    app = FastAPI(title=SERVICE, version=__version__, docs_url=None, redoc_url=None)
    _add_errors(app)
    _add_health(app, intake)
    _add_jobs(app, intake, max_nodes)
    _add_following(app, intake)

    # In a thread: counting what waits in the outbox may wait for its lock.
    @app.get("/metrics", responses=_REFUSALS, response_class=Response, summary="Prometheus metrics")
    def _metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    add_page(app)
    app.openapi = lambda: schema_of(app, is_open=auth.is_open)  # type: ignore[method-assign]
    app.add_middleware(
        Gate,
        auth=auth,
        max_body_bytes=max_body_bytes,
        on_refused=lambda status: metrics.refused.labels(str(status)).inc(),
    )
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(SetteeError)
    async def _refused(_: Request, error: SetteeError) -> JSONResponse:
        return problem(_status_of(error), reason(error), error.details.get("problems"))

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        return problem(error.status_code, str(error.detail), headers=error.headers)

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = [{"path": ".".join(map(str, each["loc"])), "problem": wrong_value(each)} for each in error.errors()]
        return problem(422, f"{found[0]['path']}: {found[0]['problem']}", found)


def _status_of(error: SetteeError) -> int:
    if isinstance(error, Busy):
        return 409
    if isinstance(error, (InvalidRequest, OtherBody)):
        return 422
    return 503 if isinstance(error, ComfyUnavailable) or error.retryable else 500


def _add_health(app: FastAPI, intake: Intake) -> None:
    @app.get("/", summary="Health")
    async def _summary() -> Summary:
        return Summary(service=SERVICE, busy=intake.is_busy)

    @app.get("/healthz", summary="Health")
    async def _health() -> Health:
        return Health(busy=intake.is_busy)


def _decoded(body: bytes) -> Any:
    if sum(body.count(each) for each in (b",", b"[", b"{")) > _MAX_VALUES:
        raise HTTPException(413, f"the body has too many values: more than {_MAX_VALUES:,} of the signs , [ {{ in it")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body is not valid JSON") from error


def _add_jobs(app: FastAPI, intake: Intake, max_nodes: int) -> None:
    # Of large bodies one at a time is in memory as Python's values; those that wait hold no thread.
    parsing = asyncio.Lock()

    @app.post(
        "/jobs",
        status_code=202,
        summary="Dispatch a job",
        responses={
            **_BODY_REFUSALS,
            409: {"model": Problem, "description": "Another job runs"},
            422: {"model": Problem, "description": "The envelope is wrong; every problem is listed"},
            503: {"model": Problem, "description": "The agent is shutting down, or its disk is full"},
        },
        openapi_extra=body_of("Envelope"),
    )
    async def _dispatch(
        request: Request,
        idempotency_key: str | None = Header(
            None, min_length=1, max_length=255, description="The same key and body is one job."
        ),
    ) -> Accepted:
        body = await request.body()

        # Parsing a large envelope, and noting it on disk, take time that others must not wait for.
        async with parsing:
            envelope = await run_in_threadpool(lambda: envelopes.parse(_decoded(body), max_nodes=max_nodes))
        job_id = await run_in_threadpool(
            lambda: intake.submit(envelope, idempotency_key, hashlib.sha256(body).hexdigest())
        )
        return Accepted(jobId=job_id)

    @app.post(
        "/jobs/cancel",
        summary="Cancel the job that runs",
        responses={
            **_BODY_REFUSALS,
            404: {"model": Problem, "description": "No job that runs has this token"},
        },
        openapi_extra=body_of("CancelRequest"),
    )
    async def _cancel(request: Request) -> Cancelling:
        body = await request.body()
        if len(body) > _MAX_CANCEL_BYTES:
            raise HTTPException(413, f"a cancel has no more than {_MAX_CANCEL_BYTES} bytes")
        try:
            data = json.loads(body)
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, 'the body must be {"token": "…"}') from error
        token = data.get("token") if isinstance(data, dict) else None
        if not isinstance(token, str) or not token.strip():
            raise HTTPException(400, 'the body must be {"token": "…"}, with the cancelToken of the job')
        if not intake.cancel(token):
            raise HTTPException(404, "no job that runs has this token")
        return Cancelling()


def _add_following(app: FastAPI, intake: Intake) -> None:
    """GET of a job, and of its events. A job id may hold slashes: it is all between ``/jobs/`` and the end, or
    ``/events``."""

    async def known(job_id: str) -> EventLog | None:
        # One that ended before a restart is read from the disk.
        return await run_in_threadpool(lambda: intake.job_log(job_id))

    async def found(job_id: str) -> EventLog:
        log = await known(job_id)
        if log is None:
            raise HTTPException(404, "this agent has not run such a job lately")
        return log

    @app.get(
        "/jobs/{job_id:path}/events",
        summary="Follow a job: server-sent events, until it has ended",
        response_class=StreamingResponse,
        responses={
            **_UNKNOWN,
            200: EVENTS,
            204: {"description": "The job has ended, and Last-Event-ID names its last event"},
        },
    )
    async def _events(
        job_id: str,
        last_event_id: str = Header("", max_length=100, description="What was seen last: what came since is sent."),
    ) -> Response:
        log = await known(job_id)
        if log is None and await known(f"{job_id}{_EVENTS}") is not None:
            return await _job(f"{job_id}{_EVENTS}")  # a job that is called so
        log = await found(job_id)
        after = int(last_event_id) if re.fullmatch(r"[0-9]{1,18}", last_event_id) else 0
        if log.is_over and after >= log.last_number:
            return Response(status_code=204)  # which tells a browser to stop asking
        return StreamingResponse(
            stream(log, after, KEEP_ALIVE_S),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    @app.get(
        "/jobs/{job_id:path}",
        summary="How a job stands: state, progress, result",
        responses={**_UNKNOWN, 200: {"model": Job, "description": "The job, as it stands"}},
    )
    async def _job(job_id: str) -> Response:
        shown = (await found(job_id)).shown
        # Half a surrogate pair, which UTF-8 has no bytes for, must not cost the answer.
        return Response(json.dumps(shown), media_type="application/json")


async def stream(log: EventLog, after: int, keep_alive_s: float) -> AsyncIterator[str]:
    """Every event over ``after``, until the job has ended. A slow client misses some: nothing piles up for it."""
    loop, news = asyncio.get_running_loop(), asyncio.Event()

    def wake() -> None:
        with contextlib.suppress(RuntimeError):  # the loop has ended, and the agent with it
            loop.call_soon_threadsafe(news.set)

    log.follow(wake)
    try:
        while True:
            news.clear()
            for event in log.since(after):
                after = event.number
                yield f"id: {after}\nevent: state\ndata: {json.dumps(event.data)}\n\n"
                if event.is_last:
                    return
            try:
                await asyncio.wait_for(news.wait(), keep_alive_s)
            except asyncio.TimeoutError:
                yield ": still here\n\n"
    finally:
        log.unfollow(wake)
