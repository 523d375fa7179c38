"""The agent over HTTP: routes, authorization, limits. What happens to a job: :mod:`settee.doors.agent.desk`."""

from __future__ import annotations

import asyncio
import hashlib
import json
from typing import Any

from fastapi import FastAPI, Header, Request, Response
from fastapi.concurrency import run_in_threadpool
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field
from starlette.exceptions import HTTPException

from settee import __version__
from settee.base.errors import Busy, ComfyUnavailable, InvalidRequest, SetteeError, wrong_value
from settee.doors.agent.auth import Auth
from settee.doors.agent.callbacks.reasons import reason
from settee.doors.agent.desk import Desk, OtherBody
from settee.doors.agent.dispatch import envelope as envelopes
from settee.doors.agent.following import add_following
from settee.doors.agent.gate import Gate, problem
from settee.doors.agent.metrics import Metrics
from settee.doors.agent.openapi import add_page, body_of, schema_of

SERVICE = "settee GPU agent"
#: The largest body of a cancel: it is read on the event loop.
_MAX_CANCEL_BYTES = 65_536
#: Signs that begin or part values in a dispatch's JSON, those in its texts included. 10,000 overrides, as many
#: parameters and 5,000 inline nodes have some 200,000 of them; 16 MB of empty lists have ten million, which keep every
#: thread waiting for seconds and take a gigabyte.
_MAX_VALUES = 1_000_000


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


class Cancelling(BaseModel):
    status: str = "cancelling"


class Problem(BaseModel):
    detail: str
    problems: list[dict[str, Any]] = Field(
        default_factory=list,
        description="Each with path and problem.",
        examples=[[{"path": "loras[0].key", "problem": "is missing"}]],
    )


_REFUSALS: dict[int | str, dict[str, Any]] = {
    401: {"model": Problem, "description": "No token, or a wrong one"},
    421: {"model": Problem, "description": "No token is set, and the Host header is none of this machine's own names"},
}
#: Of what has a body.
_BODY_REFUSALS: dict[int | str, dict[str, Any]] = {
    **_REFUSALS,
    400: {"model": Problem, "description": "The body is not what it should be"},
    408: {"model": Problem, "description": "The body comes too slowly"},
    413: {"model": Problem, "description": "The body is too large, or has too many values"},
    415: {"model": Problem, "description": "The body is not said to be JSON"},
}
_UNKNOWN: dict[int | str, dict[str, Any]] = {
    **_REFUSALS,
    404: {"model": Problem, "description": "This agent has not run such a job lately"},
    422: {"model": Problem, "description": "A parameter is wrong"},
}


def create_app(desk: Desk, metrics: Metrics, auth: Auth, *, max_body_bytes: int, max_nodes: int) -> FastAPI:
    """The ASGI application."""
    app = FastAPI(title=SERVICE, version=__version__, docs_url=None, redoc_url=None)
    _add_errors(app)
    _add_health(app, desk)
    _add_jobs(app, desk, max_nodes)
    add_following(app, desk, _UNKNOWN)

    # In a thread: the count of what waits in the outbox is only told when its disk lets go.
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


def _add_health(app: FastAPI, desk: Desk) -> None:
    @app.get("/", summary="Whether the agent is up")
    async def _summary() -> Summary:
        return Summary(busy=desk.is_busy)

    @app.get("/healthz", summary="Whether the agent is up")
    async def _health() -> Health:
        return Health(busy=desk.is_busy)


def _decoded(body: bytes) -> Any:
    if sum(body.count(each) for each in (b",", b"[", b"{")) > _MAX_VALUES:
        raise HTTPException(413, f"the body has too many values: more than {_MAX_VALUES:,} of the signs , [ {{ in it")
    try:
        return json.loads(body)
    except (ValueError, RecursionError) as error:
        raise HTTPException(400, "the body is not JSON") from error


def _add_jobs(app: FastAPI, desk: Desk, max_nodes: int) -> None:
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
            lambda: desk.submit(envelope, idempotency_key, hashlib.sha256(body).hexdigest())
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
        if not desk.cancel(token):
            raise HTTPException(404, "no job that runs has this token")
        return Cancelling()
