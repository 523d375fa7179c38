"""What the agent tells of its interface: the OpenAPI document, the page, and docs/agent-api.md."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import pytest
from fastapi import FastAPI
from pydantic import BaseModel, SecretStr

from settee.base.job import Kind
from settee.doors.agent import contract
from settee.doors.agent.app import create_app
from settee.doors.agent.contract import CompletionCallback, FailureCallback, Job, StatusCallback
from settee.doors.agent.intake import Intake
from settee.service.events import Metrics
from settee.service.http_server import OPEN_PATHS, Auth

EXAMPLE: dict[str, Any] = contract.example("envelope")
RUNNING, SUCCEEDED, FAILED = JOBS = contract.example("jobs")


DOCS = Path(__file__).parents[3] / "docs"
TOKEN = "a-token-of-the-tests"


class NoIntake:
    """For routes that ask it for nothing else."""

    metrics = Metrics(restarts=int, depth=int, callbacks=int)

    class slot:
        is_busy = False


def application(*tokens: str) -> FastAPI:
    auth = Auth([SecretStr(token) for token in tokens])
    return create_app(cast(Intake, NoIntake()), auth, max_body_bytes=16_777_216, max_nodes=5000)


class Asked:
    """Requests of an application, without a server."""

    def __init__(self, *tokens: str) -> None:
        self._app = application(*tokens)

    async def __call__(self, path: str, body: bytes | None = None, **headers: str) -> tuple[int, dict[str, str], bytes]:
        said = [(b"host", b"localhost"), (b"content-type", b"application/json")]
        said += [(name.encode(), value.encode()) for name, value in headers.items()]
        sent: list[Any] = []
        is_read = False

        async def receive() -> Any:
            nonlocal is_read
            if is_read:
                await asyncio.Event().wait()  # the client stays, and says no more
            is_read = True
            return {"type": "http.request", "body": body or b"", "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {
            "type": "http", "http_version": "1.1", "method": "GET" if body is None else "POST", "scheme": "http",
            "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": said,
            "server": ("localhost", 80), "client": ("127.0.0.1", 1),
        }  # fmt: skip
        await self._app(scope, receive, send)
        answered = {name.decode(): value.decode() for name, value in sent[0]["headers"]}
        return sent[0]["status"], answered, b"".join(message.get("body", b"") for message in sent[1:])


def schema(*tokens: str) -> dict[str, Any]:
    return application(*tokens).openapi()


# --- the document --------------------------------------------------------------------------------------------


def test_every_answer_and_body_has_a_schema() -> None:
    told = schema()
    assert set(told["paths"]) == {
        "/", "/healthz", "/jobs", "/jobs/cancel", "/jobs/{job_id}", "/jobs/{job_id}/events", "/metrics"
    }  # fmt: skip
    for path, methods in told["paths"].items():
        for operation in methods.values():
            for status, answer in operation["responses"].items():
                for kind, content in answer.get("content", {}).items():
                    # What is not JSON has an example: OpenAPI 3.1 has no words for a stream of events.
                    is_text = kind != "application/json"
                    assert content.get("schema") or is_text, (path, status, kind)
    job = told["paths"]["/jobs/{job_id}"]["get"]["responses"]["200"]["content"]["application/json"]["schema"]
    assert job == {"$ref": "#/components/schemas/Job"}
    assert told["components"]["schemas"]["Job"]["examples"] == JOBS
    events = told["paths"]["/jobs/{job_id}/events"]["get"]["responses"]["200"]["content"]
    assert events["text/event-stream"]["examples"]


def test_every_reference_leads_somewhere() -> None:
    told = schema(TOKEN)
    names = re.findall(r'"#/components/schemas/(\w+)"', json.dumps(told))
    assert len(names) > 30
    assert set(names) <= set(told["components"]["schemas"])
    assert "#/$defs" not in json.dumps(told)


def test_both_posts_have_an_example() -> None:
    paths = schema()["paths"]
    for path, example in (("/jobs", EXAMPLE), ("/jobs/cancel", contract.example("cancel"))):
        content = paths[path]["post"]["requestBody"]["content"]["application/json"]
        assert [each["value"] for each in content["examples"].values()] == [example]


def test_callbacks_are_told_with_their_schemas() -> None:
    callbacks = schema()["paths"]["/jobs"]["post"]["callbacks"]
    models = {"status": "StatusCallback", "completion": "CompletionCallback", "failure": "FailureCallback"}
    assert set(callbacks) == set(models)
    for name, model in models.items():
        [(address, methods)] = callbacks[name].items()
        assert address == f"{{$request.body#/callbacks/{name}}}"
        content = methods["post"]["requestBody"]["content"]["application/json"]
        assert content["schema"] == {"$ref": f"#/components/schemas/{model}"}
        assert [header["name"] for header in methods["post"]["parameters"]] == ["Idempotency-Key"]


def test_tokens_are_told_where_they_are_needed() -> None:
    guarded = schema(TOKEN)
    assert guarded["components"]["securitySchemes"] == {"bearer": {"type": "http", "scheme": "bearer"}}
    for path, methods in guarded["paths"].items():
        for operation in methods.values():
            assert operation.get("security") == (None if path in OPEN_PATHS else [{"bearer": []}]), path
    assert "security" not in json.dumps({**schema(), "paths": {"/metrics": schema()["paths"]["/metrics"]}})


def test_the_models_know_every_state_and_kind() -> None:
    schemas = schema()["components"]["schemas"]
    assert set(schemas["StatusCallback"]["properties"]["state"]["enum"]) == set(contract.STATES.values())
    assert set(schemas["Artifact"]["properties"]["kind"]["enum"]) == {kind.value for kind in Kind}
    assert set(schemas["Params"]["properties"]) == {*contract.Params.model_fields}


@pytest.mark.parametrize(
    ("model", "example"),
    [
        (StatusCallback, contract.example("status")),
        (CompletionCallback, contract.example("completion")),
        (FailureCallback, contract.example("failure")),
        *((Job, job) for job in JOBS),
    ],
)
def test_the_examples_are_of_their_models(model: type[BaseModel], example: dict[str, Any]) -> None:
    model.model_validate(example, extra="forbid")


# --- the page ------------------------------------------------------------------------------------------------


def named(page: str) -> Iterator[str]:
    yield from re.findall(r'(?:src|href)="([^"]*)"', page)


def test_the_page_and_all_that_it_names_is_this_servers() -> None:
    async def run() -> None:
        ask = Asked()
        status, headers, body = await ask("/docs")
        page = body.decode()
        assert status == 200
        assert "'self'" in headers["content-security-policy"]
        assert "//" not in re.sub(r"<!--.*?-->", "", page)
        assert re.search(r"url: '(.*)'", page)[1] == "openapi.json"  # type: ignore[index]
        names = list(named(page))
        assert len(names) == 3
        for name in names:
            status, headers, body = await ask(f"/{name}")
            assert status == 200, name
            assert len(body) > 1000
            if name.endswith(".css"):
                assert b"@import" not in body
                assert set(re.findall(rb"url\(['\"]?(.{5})", body)) <= {b"data:"}
                assert headers["content-type"] == "text/css; charset=utf-8"
        for path in ("/redoc", "/docs/..", "/docs/oauth2-redirect"):
            assert (await ask(path))[0] == 404, path

    asyncio.run(run())


def test_with_a_token_all_of_the_page_needs_it() -> None:
    async def run() -> None:
        ask = Asked(TOKEN)
        page = (await ask("/docs", authorization=f"Bearer {TOKEN}"))[2].decode()
        for path in ("/docs", "/openapi.json", *(f"/{name}" for name in named(page))):
            assert (await ask(path))[0] == 401, path
            assert (await ask(path, authorization=f"Bearer {TOKEN}"))[0] == 200, path

    asyncio.run(run())


# --- the docs ------------------------------------------------------------------------------------------------


def test_the_docs_show_the_examples() -> None:
    text = (DOCS / "agent-api.md").read_text(encoding="utf-8")
    shown = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    wanted = [contract.example("status"), contract.example("completion"), contract.example("failure"), RUNNING, FAILED]
    assert shown == wanted


def test_the_docs_name_every_field() -> None:
    text = (DOCS / "agent-api.md").read_text(encoding="utf-8")
    for model in (StatusCallback, CompletionCallback, FailureCallback, Job):
        for name in model.model_fields:
            assert f"`{name}`" in text, (model.__name__, name)
    told = schema()
    for name in ("Progress", "Artifact", "NodeProblem", "NodeErrors"):
        for field in told["components"]["schemas"][name]["properties"]:
            assert f"`{field}`" in text, (name, field)


def test_the_docs_name_every_metric() -> None:
    text = (DOCS / "agent.md").read_text(encoding="utf-8")
    names = re.findall(r"^# HELP (\w+)", NoIntake.metrics.text().decode(), re.MULTILINE)
    names = [name for name in names if not name.endswith("_created")]
    assert len(names) == 8
    for name in names:
        assert f"`{name}" in text, name


def test_links_between_the_docs_lead_somewhere() -> None:
    def anchors(name: str) -> set[str]:
        titles = re.findall(r"^#+ (.*)$", (DOCS / name).read_text(encoding="utf-8"), re.MULTILINE)
        return {re.sub(r"[^\w -]", "", title.lower()).replace(" ", "-") for title in titles}

    for name in ("agent.md", "agent-api.md"):
        text = (DOCS / name).read_text(encoding="utf-8")
        for target, anchor in re.findall(r"\]\(([\w./-]*)(?:#([\w-]+))?\)", text):
            assert (DOCS / (target or name)).exists(), target
            assert not anchor or anchor in anchors(target or name), anchor


# --- too many values -------------------------------------------------------------------------------------------


def many(count: int) -> bytes:
    return b'{"x":[' + b",".join([b"[]"] * count) + b"]}"


def test_a_body_of_too_many_values_is_not_parsed(monkeypatch: pytest.MonkeyPatch) -> None:
    def never(*_: Any, **__: Any) -> Any:
        raise AssertionError("it was parsed")

    ask = Asked()  # it reads its examples
    monkeypatch.setattr(json, "loads", never)

    async def run() -> list[tuple[int, bytes]]:
        body = many(5_000_000)

        async def dispatch() -> tuple[int, bytes]:
            status, _, answer = await ask("/jobs", body)
            return status, answer

        posts = [asyncio.create_task(dispatch()) for _ in range(3)]
        assert (await ask("/healthz"))[0] == 200
        return list(await asyncio.gather(*posts))

    for status, answer in asyncio.run(run()):
        assert status == 413
        assert b"too many values" in answer


def test_what_a_large_job_needs_is_far_below_that() -> None:
    """10,000 overrides, as many parameters, 5,000 nodes inline; and four times as many signs, most of them in its
    prompt and in other texts. 422: the envelope has been read."""
    nodes = {
        str(at): {
            "class_type": "KSampler",
            "inputs": {"seed": 1, "steps": 2, "cfg": 3, **{name: [str(at - 1), 0] for name in ("a", "b", "c", "d")}},
            "_meta": {"title": "KSampler"},
        }
        for at in range(5000)
    }
    envelope = {
        **EXAMPLE,
        "jobId": "",
        "workflow": {"id": "x", "inline": nodes},
        "workflowOverrides": [{"node": str(at), "path": "inputs.seed", "value": 1.5} for at in range(10_000)],
        "workflowParameters": [{"parameter": "seed", "node": at, "path": "inputs.seed"} for at in range(10_000)],
        "parameters": {**EXAMPLE["parameters"], "prompt": "," * 100_000, "extra": {"text": "," * 500_000}},
    }
    body = json.dumps(envelope).encode()
    assert sum(body.count(sign) for sign in (b",", b"[", b"{")) > 750_000
    status, _, answer = asyncio.run(Asked()("/jobs", body))
    assert status == 422
    assert {"path": "jobId", "problem": "should have at least 1 character"} in json.loads(answer)["problems"]
