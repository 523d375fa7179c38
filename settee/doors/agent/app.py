"""The agent over HTTP: its routes and their OpenAPI document. What happens to a job: settee/doors/agent/intake.py."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import json
import re
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Depends, FastAPI, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse, JSONResponse, StreamingResponse
from fastapi.security import HTTPBearer
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.exceptions import HTTPException

from settee import __version__
from settee.base.errors import Busy, ComfyUnavailable, InvalidRequest, SetteeError, problems_of
from settee.doors.agent import contract
from settee.doors.agent import envelope as envelopes
from settee.doors.agent.contract import Accepted, Cancelling, Health, Job, Problem, Summary, example
from settee.doors.agent.intake import Intake
from settee.doors.agent.reporting import reason
from settee.service.events import EventLog
from settee.service.http_server import Auth, Gate, problem

SERVICE = "settee GPU agent"
#: Signs that begin or part values in a dispatch's JSON, those in its texts included. 10,000 overrides, as many
#: parameters and 5,000 inline nodes have some 200,000 of them; 16 MB of empty lists have ten million, which keep every
#: thread waiting for seconds and take a gigabyte.
_MAX_VALUES = 1_000_000
#: A line now and then keeps proxies from closing a quiet stream, seconds.
KEEP_ALIVE_S = 15.0
_EVENTS = "/events"

Responses = dict["int | str", dict[str, Any]]


def _refusals(**described: str) -> Responses:
    """Return OpenAPI's responses for ``_404="…"``."""
    return {int(status[1:]): {"model": Problem, "description": text} for status, text in described.items()}


_REFUSALS = _refusals(
    _401="No token, or a wrong one",
    _421="No token is set, and the Host header is not a name of this machine",
)
_BODY_REFUSALS = _REFUSALS | _refusals(
    _400="The body is not what it should be",
    _408="The body comes too slowly",
    _413="The body is too large, or has too many values",
    _415="The body is not declared as JSON",
)
_UNKNOWN = _REFUSALS | _refusals(_404="This agent has not run such a job lately", _422="A parameter is wrong")


def create_app(intake: Intake, auth: Auth, *, max_body_bytes: int, max_nodes: int) -> FastAPI:
    """Return the ASGI application."""
    app = FastAPI(title=SERVICE, version=__version__, docs_url=None, redoc_url=None)

    @app.exception_handler(SetteeError)
    async def _refused(_: Request, error: SetteeError) -> JSONResponse:
        return problem(_status_of(error), reason(error), error.details.get("problems"))

    @app.exception_handler(RequestValidationError)
    async def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        found = problems_of(error.errors())
        return problem(422, f"{found[0]['path']}: {found[0]['problem']}", found)

    @app.get("/", summary="Health")
    async def _summary() -> Summary:
        return Summary(service=SERVICE, busy=intake.slot.is_busy)

    @app.get("/healthz", summary="Health")
    async def _health() -> Health:
        return Health(busy=intake.slot.is_busy)

    # The gate asks for the token; here is what the document states of it.
    bearer = [] if auth.is_open else [Depends(HTTPBearer(scheme_name="bearer", auto_error=False))]
    router = APIRouter(dependencies=bearer)
    _add_jobs(router, intake, max_nodes)
    _add_following(router, intake)

    # In a thread: counting what waits in the outbox may wait for its lock.
    @router.get("/metrics", responses=_REFUSALS, response_class=Response, summary="Prometheus metrics")
    def _metrics() -> Response:
        return Response(intake.metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.include_router(router)
    _add_page(app)
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    app.add_middleware(
        Gate,
        auth=auth,
        max_body_bytes=max_body_bytes,
        on_refused=lambda status: intake.metrics.refused.labels(str(status)).inc(),
    )
    return app


def _status_of(error: SetteeError) -> int:
    if isinstance(error, Busy):
        return 409
    if isinstance(error, InvalidRequest):
        return 422
    return 503 if isinstance(error, ComfyUnavailable) or error.retryable else 500


# --- routes -----------------------------------------------------------------------------------------------------


def _decoded(body: bytes) -> Any:
    if sum(body.count(each) for each in (b",", b"[", b"{")) > _MAX_VALUES:
        raise HTTPException(413, f"the body has too many values: more than {_MAX_VALUES:,} of the signs , [ {{ in it")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body is not valid JSON") from error


def _add_jobs(router: APIRouter, intake: Intake, max_nodes: int) -> None:
    # Of large bodies one at a time is in memory as Python's values; those that wait hold no thread.
    parsing = asyncio.Lock()

    @router.post(
        "/jobs",
        status_code=202,
        summary="Dispatch a job",
        responses=_BODY_REFUSALS
        | _refusals(
            _409="Another job runs",
            _422="The envelope is wrong; every problem is listed",
            _503="The agent is shutting down, or its disk is full",
        ),
        openapi_extra=_body("Envelope", "envelope"),
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
        digest = hashlib.sha256(body).hexdigest()
        return Accepted(jobId=await run_in_threadpool(intake.submit, envelope, idempotency_key, digest))

    @router.post(
        "/jobs/cancel",
        summary="Cancel the job that runs",
        responses=_BODY_REFUSALS | _refusals(_404="No job that runs has this token"),
        openapi_extra=_body("CancelRequest", "cancel"),
    )
    async def _cancel(request: Request) -> Cancelling:
        data = await run_in_threadpool(_decoded, await request.body())
        token = data.get("token") if isinstance(data, dict) else None
        if not isinstance(token, str) or not token.strip():
            raise HTTPException(400, 'the body must be {"token": "…"}, with the cancelToken of the job')
        if not intake.slot.cancel(token):
            raise HTTPException(404, "no job that runs has this token")
        return Cancelling()


def _add_following(router: APIRouter, intake: Intake) -> None:
    """Add GET of a job, and of its events. A job id may hold slashes: it is all between ``/jobs/`` and the end, or
    ``/events``."""

    async def known(job_id: str) -> EventLog | None:
        # One that ended before a restart is read from the disk.
        return await run_in_threadpool(intake.log_of, job_id)

    async def found(job_id: str) -> EventLog:
        log = await known(job_id)
        if log is None:
            raise HTTPException(404, "this agent has not run such a job lately")
        return log

    @router.get(
        f"/jobs/{{job_id:path}}{_EVENTS}",
        summary="Follow a job: server-sent events, until it has ended",
        response_class=StreamingResponse,
        responses={
            **_UNKNOWN,
            200: {
                "description": "One event for each change, named state; its data is what GET /jobs/{id} would answer",
                "content": {"text/event-stream": {"examples": {"example": {"value": example("event")}}}},
            },
            204: {"description": "The job has ended, and Last-Event-ID names its last event"},
        },
    )
    async def _events(
        job_id: str,
        last_event_id: str = Header(
            "", max_length=100, description="The last event that was received: later ones are sent."
        ),
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

    @router.get(
        "/jobs/{job_id:path}",
        summary="How a job stands: state, progress, result",
        responses={**_UNKNOWN, 200: {"model": Job, "description": "The job, as it stands"}},
    )
    async def _job(job_id: str) -> Response:
        shown = (await found(job_id)).shown
        # Half a surrogate pair, which UTF-8 has no bytes for, must not cost the answer.
        return Response(json.dumps(shown), media_type="application/json")


async def stream(log: EventLog, after: int, keep_alive_s: float) -> AsyncIterator[str]:
    """Yield every event over ``after``, until the job has ended. A slow client misses some: nothing piles up for it."""
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


# --- the OpenAPI document, and a page to look at it -------------------------------------------------------------

_REF = "#/components/schemas/{model}"
#: Callback → its model, and its Idempotency-Key.
_CALLBACKS: dict[str, tuple[type[BaseModel], str]] = {
    "status": (contract.StatusCallback, "<job>-<state>-<heartbeat_seq>"),
    "completion": (contract.CompletionCallback, "<job>-SUCCESS"),
    "failure": (contract.FailureCallback, "<job>-FAILED or <job>-CANCELED"),
}


def _body(model: str, name: str | None = None) -> dict[str, Any]:
    """Describe a body that FastAPI does not parse: the model, and the example of this name."""
    content: dict[str, Any] = {"schema": {"$ref": _REF.format(model=model)}}
    if name is not None:
        content["examples"] = {"example": {"value": example(name)}}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


def _document(app: FastAPI) -> dict[str, Any]:
    """Return the OpenAPI document, with what the routes parse and write themselves, and the callbacks."""
    if not app.openapi_schema:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        # Job again: FastAPI has dropped every null of its examples.
        models: list[type[BaseModel]] = [
            envelopes.Envelope,
            contract.CancelRequest,
            Job,
            *(model for model, _ in _CALLBACKS.values()),
        ]
        _, found = models_json_schema([(model, "validation") for model in models], ref_template=_REF)
        schema["components"]["schemas"] |= found["$defs"]
        schema["paths"]["/jobs"]["post"]["callbacks"] = {
            name: {f"{{$request.body#/callbacks/{name}}}": {"post": _callback(model, key)}}
            for name, (model, key) in _CALLBACKS.items()
        }
        app.openapi_schema = schema
    return app.openapi_schema


def _callback(model: type[BaseModel], key: str) -> dict[str, Any]:
    about = {"schema": {"type": "string"}, "description": f"{key}; the same whenever it is sent again."}
    return {
        "summary": model.__doc__,
        "parameters": [{"name": "Idempotency-Key", "in": "header", "required": True, **about}],
        **_body(model.__name__),
        "responses": {"2XX": {"description": "It is delivered; the body is not read"}},
        "security": [],
    }


def _add_page(app: FastAPI) -> None:
    """Add /docs and, below it, the files that it needs, which the package fastapi-offline brings."""

    @app.get("/docs", include_in_schema=False)
    async def _page() -> HTMLResponse:
        # Relative addresses, for a proxy that puts a path before them.
        page = get_swagger_ui_html(
            openapi_url="openapi.json",
            title=app.title,
            swagger_js_url="docs/swagger-ui-bundle.js",
            swagger_css_url="docs/swagger-ui.css",
            swagger_favicon_url="docs/favicon.png",
            swagger_ui_parameters={"validatorUrl": None},
        )
        # The page begins its script within itself; whatever else it loads is this server's.
        page.headers["Content-Security-Policy"] = "default-src 'self' 'unsafe-inline'; img-src 'self' data:"
        return page

    app.mount("/docs", StaticFiles(packages=[("fastapi_offline", "static")]))
