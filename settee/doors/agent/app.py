"""The agent over HTTP: routes, authorization, limits. What happens to a job: :mod:`settee.doors.agent.desk`."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from typing import Any

from fastapi import FastAPI, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.openapi.utils import get_openapi
from fastapi.responses import JSONResponse, StreamingResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from settee import __version__
from settee.doors.agent import envelope as envelopes
from settee.doors.agent.auth import Auth
from settee.doors.agent.desk import Desk, OtherBody
from settee.doors.agent.envelope import Envelope
from settee.doors.agent.metrics import Metrics
from settee.doors.agent.record import Event
from settee.errors import Busy, ComfyUnavailable, InvalidRequest, SetteeError

SERVICE = "settee GPU agent"
#: Without a token: they tell nothing of anybody.
OPEN_PATHS = frozenset(("/", "/healthz"))
#: A line now and then keeps proxies from closing a quiet stream, seconds.
_KEEP_ALIVE_S = 15.0

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]


class Summary(BaseModel):
    status: str = "ok"
    service: str = SERVICE
    busy: bool


class Health(BaseModel):
    status: str = "ok"
    busy: bool


class Accepted(BaseModel):
    status: str = "accepted"
    jobId: str


class CancelRequest(BaseModel):
    token: str = Field(description="The job's cancelToken.", max_length=1000, examples=["3f0c…"])


class Cancelling(BaseModel):
    status: str = "cancelling"


class Problem(BaseModel):
    detail: str
    problems: list[dict[str, Any]] = Field(default_factory=list, description="Each with path and problem.")


_REFUSALS: dict[int | str, dict[str, Any]] = {401: {"model": Problem, "description": "No token, or a wrong one"}}


def create_app(desk: Desk, metrics: Metrics, auth: Auth, *, max_body_bytes: int, max_nodes: int) -> FastAPI:
    """The ASGI application."""
    app = FastAPI(title=SERVICE, version=__version__)
    _add_errors(app)
    _add_health(app, desk)
    _add_jobs(app, desk, metrics, max_nodes)
    _add_following(app, desk)

    @app.get("/metrics", responses=_REFUSALS, response_class=Response, summary="Prometheus metrics")
    async def _metrics() -> Response:
        return Response(metrics.text(), media_type="text/plain; version=0.0.4; charset=utf-8")

    app.openapi = lambda: _openapi(app)  # type: ignore[method-assign]
    app.add_middleware(_Gate, auth=auth, max_body_bytes=max_body_bytes)
    return app


def _add_errors(app: FastAPI) -> None:
    @app.exception_handler(SetteeError)
    async def _refused(_: Request, error: SetteeError) -> JSONResponse:
        return _problem(_status_of(error), error.message, error.details.get("problems"))

    @app.exception_handler(HTTPException)
    async def _http(_: Request, error: HTTPException) -> JSONResponse:
        return _problem(error.status_code, str(error.detail), headers=error.headers)


def _status_of(error: SetteeError) -> int:
    if isinstance(error, Busy):
        return 409
    if isinstance(error, (InvalidRequest, OtherBody)):
        return 422
    return 503 if isinstance(error, ComfyUnavailable) or error.retryable else 500


def _problem(status: int, detail: str, problems: Any = None, headers: Any = None) -> JSONResponse:
    body: dict[str, Any] = {"detail": detail}
    if problems:
        body["problems"] = problems
    return JSONResponse(body, status, headers)


def _add_health(app: FastAPI, desk: Desk) -> None:
    @app.get("/", summary="Whether the agent is up")
    async def _summary() -> Summary:
        return Summary(busy=desk.is_busy)

    @app.get("/healthz", summary="Whether the agent is up")
    async def _health() -> Health:
        return Health(busy=desk.is_busy)


def _add_jobs(app: FastAPI, desk: Desk, metrics: Metrics, max_nodes: int) -> None:
    @app.post(
        "/jobs",
        status_code=202,
        summary="Dispatch a job",
        responses={
            **_REFUSALS,
            400: {"model": Problem, "description": "The body is no JSON"},
            409: {"model": Problem, "description": "Another job runs"},
            413: {"model": Problem, "description": "The body is too large"},
            422: {"model": Problem, "description": "The envelope is wrong; every problem is listed"},
            503: {"model": Problem, "description": "The agent is shutting down, or its disk is full"},
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Envelope"}}},
            }
        },
    )
    async def _dispatch(
        request: Request,
        idempotency_key: str | None = Header(None, max_length=255, description="The same key and body is one job."),
    ) -> Accepted:
        body = await request.body()

        def take() -> str:
            try:
                data = json.loads(body)
            except (ValueError, RecursionError) as error:
                raise HTTPException(400, "the body is no JSON") from error
            envelope = envelopes.parse(data, max_nodes=max_nodes)
            return desk.submit(envelope, idempotency_key, hashlib.sha256(body).hexdigest())

        try:
            # Parsing a large envelope, and noting it on disk, take time that others must not wait for.
            return Accepted(jobId=await run_in_threadpool(take))
        except (SetteeError, HTTPException) as error:
            metrics.refused.labels(
                str(_status_of(error) if isinstance(error, SetteeError) else error.status_code)
            ).inc()
            raise

    @app.post(
        "/jobs/cancel",
        summary="Cancel the job that runs",
        responses={
            **_REFUSALS,
            400: {"model": Problem, "description": "No token in the body"},
            404: {"model": Problem, "description": "No job that runs has this token"},
        },
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": "#/components/schemas/CancelRequest"}}},
            }
        },
    )
    async def _cancel(request: Request) -> Cancelling:
        try:
            data = json.loads(await request.body())
        except (ValueError, RecursionError) as error:
            raise HTTPException(400, 'the body must be {"token": "…"}') from error
        token = data.get("token") if isinstance(data, dict) else None
        if not isinstance(token, str) or not token.strip():
            raise HTTPException(400, 'the body must be {"token": "…"}, with the cancelToken of the job')
        if not desk.cancel(token):
            raise HTTPException(404, "no job that runs has this token")
        return Cancelling()


def _add_following(app: FastAPI, desk: Desk) -> None:
    unknown: dict[int | str, dict[str, Any]] = {
        **_REFUSALS,
        404: {"model": Problem, "description": "This agent has not run such a job lately"},
    }

    def record(job_id: str) -> Any:
        found = desk.record(job_id)
        if found is None:
            raise HTTPException(404, "this agent has not run such a job lately")
        return found

    @app.get(
        "/jobs/{job_id:path}/events",
        summary="Follow a job: server-sent events",
        response_class=StreamingResponse,
        responses={**unknown, 200: {"content": {"text/event-stream": {}}, "description": "One event for each change"}},
    )
    async def _events(job_id: str, last_event_id: int = Header(0, ge=0)) -> StreamingResponse:
        found = record(job_id)
        return StreamingResponse(
            _stream(found, last_event_id),
            media_type="text/event-stream",
            headers={"Cache-Control": "no-cache", "X-Accel-Buffering": "no"},
        )

    @app.get("/jobs/{job_id:path}", summary="How a job stands: state, progress, result", responses=unknown)
    async def _job(job_id: str) -> dict[str, Any]:
        shown: dict[str, Any] = record(job_id).shown()
        return shown


async def _stream(record: Any, after: int) -> AsyncIterator[str]:
    """Every event from ``after`` on, until the job has ended."""
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[Event]()

    def listener(event: Event) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, event)

    try:
        for event in record.follow(listener, after):
            queue.put_nowait(event)
        while True:
            try:
                event = await asyncio.wait_for(queue.get(), _KEEP_ALIVE_S)
            except asyncio.TimeoutError:
                yield ": still here\n\n"
                continue
            yield f"id: {event['id']}\nevent: state\ndata: {json.dumps(event['data'], ensure_ascii=False)}\n\n"
            if event["is_last"]:
                return
    finally:
        record.unfollow(listener)


def _openapi(app: FastAPI) -> dict[str, Any]:
    """With the envelope, which the route parses itself."""
    if not app.openapi_schema:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        found = schema.setdefault("components", {}).setdefault("schemas", {})
        for model in (Envelope, CancelRequest):
            said = model.model_json_schema(by_alias=True, ref_template="#/components/schemas/{model}")
            found.update(said.pop("$defs", {}))
            found[model.__name__] = said
        schema["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
        for path, methods in schema["paths"].items():
            if path not in OPEN_PATHS:
                for operation in methods.values():
                    operation["security"] = [{"bearer": []}]
        app.openapi_schema = schema
    return app.openapi_schema


class _Gate:
    """Before everything else: who may come in, and how much they may bring."""

    def __init__(self, app: Any, *, auth: Auth, max_body_bytes: int) -> None:
        self._app, self._auth, self._most = app, auth, max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value for name, value in scope["headers"] if name in (b"authorization", b"content-length")}
        given = headers.get(b"authorization")
        if scope["path"] not in OPEN_PATHS and not self._auth.is_allowed(given and given.decode("latin-1")):
            answer = _problem(401, "a bearer token is needed", headers={"WWW-Authenticate": "Bearer"})
            await answer(scope, receive, send)
            return
        announced = headers.get(b"content-length", b"0")
        too_large = _problem(413, f"the body is larger than {self._most} bytes (server.max_body_bytes)")
        if announced.isdigit() and int(announced) > self._most:
            await too_large(scope, receive, send)
            return
        count = 0

        async def counted() -> MutableMapping[str, Any]:
            nonlocal count
            message = await receive()
            count += len(message.get("body", b""))
            if count > self._most:
                raise HTTPException(413, f"the body is larger than {self._most} bytes (server.max_body_bytes)")
            return message

        await self._app(scope, counted, send)
