"""The description of the HTTP interface: /openapi.json, and /docs to look at it without Internet."""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from fastapi.openapi.docs import get_swagger_ui_html
from fastapi.openapi.utils import get_openapi
from fastapi.responses import FileResponse, HTMLResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from settee.doors.agent.contract import (
    CancelRequest,
    CompletionCallback,
    FailureCallback,
    Job,
    StatusCallback,
    example,
)
from settee.doors.agent.envelope import Envelope
from settee.service.http_server import OPEN_PATHS

#: Files of Swagger UI, with their types.
_ASSETS = {
    "swagger-ui-bundle.js": "text/javascript; charset=utf-8",
    "swagger-ui.css": "text/css; charset=utf-8",
    "favicon.png": "image/png",
}
#: The page begins its script within itself; whatever else it loads is this server's.
_POLICY = "default-src 'self' 'unsafe-inline'; img-src 'self' data:"
_REF = "#/components/schemas/{model}"
_CALLBACKS: dict[str, tuple[type[BaseModel], str, str]] = {
    "status": (StatusCallback, "A state was entered, or still lasts", "<job>-<state>-<heartbeat_seq>"),
    "completion": (CompletionCallback, "The job succeeded", "<job>-SUCCESS"),
    "failure": (FailureCallback, "The job failed or was canceled", "<job>-FAILED or <job>-CANCELED"),
}


# --- the document ----------------------------------------------------------------------------------------------


def body_of(name: str) -> dict[str, Any]:
    """For a route that reads its body itself: the model of this name, and its example."""
    found = example({"Envelope": "envelope", "CancelRequest": "cancel"}[name])
    content = {"schema": {"$ref": _REF.format(model=name)}, "examples": {"example": {"value": found}}}
    return {"requestBody": {"required": True, "content": {"application/json": content}}}


#: 200 of the events of a job.
EVENTS: dict[str, Any] = {
    "description": "One event for each change, named state; its data is what GET /jobs/{id} would say, as one line",
    "content": {"text/event-stream": {"examples": {"example": {"value": example("event")}}}},
}


def schema_of(app: FastAPI, *, is_open: bool) -> dict[str, Any]:
    """The OpenAPI document, with what the routes parse and write themselves, and the callbacks."""
    if not app.openapi_schema:
        schema = get_openapi(title=app.title, version=app.version, routes=app.routes)
        components = schema.setdefault("components", {})
        found = components.setdefault("schemas", {})
        # Job again: FastAPI has dropped every null of its examples.
        models: list[type[BaseModel]] = [Envelope, CancelRequest, Job, *(each[0] for each in _CALLBACKS.values())]
        for model in models:
            said = model.model_json_schema(by_alias=True, ref_template=_REF)
            found.update(said.pop("$defs", {}))
            found[model.__name__] = said
        schema["paths"]["/jobs"]["post"]["callbacks"] = {name: _callback(name) for name in _CALLBACKS}
        if not is_open:
            components["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
            for path, methods in schema["paths"].items():
                if path not in OPEN_PATHS:
                    for operation in methods.values():
                        operation["security"] = [{"bearer": []}]
        app.openapi_schema = schema
    return app.openapi_schema


def _callback(name: str) -> dict[str, Any]:
    model, summary, key = _CALLBACKS[name]
    operation = {
        "summary": summary,
        "parameters": [
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": True,
                "schema": {"type": "string"},
                "description": f"{key}; the same whenever it is sent again.",
            }
        ],
        "requestBody": {
            "required": True,
            "content": {"application/json": {"schema": {"$ref": _REF.format(model=model.__name__)}}},
        },
        "responses": {"2XX": {"description": "It is delivered; the body is not read"}},
        "security": [],
    }
    return {f"{{$request.body#/callbacks/{name}}}": {"post": operation}}


# --- the page --------------------------------------------------------------------------------------------------


def add_page(app: FastAPI) -> None:
    """/docs and, below it, the files that it needs, which the package fastapi-offline brings."""

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
        page.headers["Content-Security-Policy"] = _POLICY
        return page

    @app.get("/docs/{name}", include_in_schema=False)
    def _asset(name: str) -> FileResponse:
        from importlib.resources import files

        if name not in _ASSETS:
            raise HTTPException(404, "Not Found")
        return FileResponse(str(files("fastapi_offline") / "static" / name), media_type=_ASSETS[name])


__all__ = ["EVENTS", "add_page", "body_of", "schema_of"]
