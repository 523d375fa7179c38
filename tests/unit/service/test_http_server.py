"""Bearer tokens; bodies and heads that come byte by byte, or never end."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn
from pydantic import SecretStr
from starlette.exceptions import HTTPException

from settee.service.http_server import Auth, Gate, Patient

HEADERS = [(b"host", b"localhost"), (b"content-type", b"application/json")]


async def through(pieces: Iterator[Any], *, pause_s: float = 0.0, **limits: float) -> bytes:
    """What an application behind the gate reads of a body that comes in these pieces."""

    async def receive() -> Any:
        await asyncio.sleep(pause_s)
        piece = next(pieces, None)
        return {"type": "http.request", "body": piece or b"", "more_body": piece is not None}

    read = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        more = True
        while more:
            message = await receive()
            read.append(message["body"])
            more = message["more_body"]

    async def send(message: Any) -> None:
        raise AssertionError(message)

    scope = {"type": "http", "method": "POST", "path": "/jobs", "headers": HEADERS}
    await Gate(app, auth=Auth([]), max_body_bytes=1000, **limits)(scope, receive, send)
    return b"".join(read)


def test_a_body_comes_through() -> None:
    assert asyncio.run(through(iter([b"a" * 500, b"b" * 500]))) == b"a" * 500 + b"b" * 500


@pytest.mark.parametrize(
    ("pieces", "options", "status"),
    [
        ([b"a" * 500, b"b" * 501], {}, 413),
        ([b"a"], {"pause_s": 5, "chunk_s": 0.05}, 408),
        ([b"a"] * 500, {"pause_s": 0.01, "chunk_s": 1, "body_s": 0.1}, 408),
    ],
)
def test_but_not_any_body(pieces: list[bytes], options: dict[str, float], status: int) -> None:
    with pytest.raises(HTTPException) as caught:
        asyncio.run(through(iter(pieces), **options))
    assert (caught.value.status_code, caught.value.headers) == (status, {"Connection": "close"})


class Hasty(Patient):
    head_s = 0.2


@pytest.mark.parametrize("first", [b"", b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"])
def test_a_head_that_comes_byte_by_byte(first: bytes) -> None:
    """Also of a second request; a request that is being answered may take as long as it likes."""

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(0.5)
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    async def run() -> bytes:
        config = uvicorn.Config(app, port=0, http=Hasty, lifespan="off", log_config=None, ws="none")
        server = uvicorn.Server(config)
        serving = asyncio.create_task(server.serve())
        while not server.started:
            await asyncio.sleep(0.005)
        port = server.servers[0].sockets[0].getsockname()[1]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(first)
        got = await reader.readuntil(b"\r\n\r\n") if first else b""
        ending = asyncio.create_task(reader.read())
        for byte in b"GET / HTTP/1.1\r\nX: " + b"x" * 1000:
            if ending.done():
                break
            writer.write(bytes([byte]))
            await asyncio.sleep(0.02)
        with contextlib.suppress(ConnectionResetError):  # it had not read the last bytes yet
            assert await asyncio.wait_for(ending, 5) == b""
        writer.close()
        server.should_exit = True
        await serving
        return got

    assert asyncio.run(run()).startswith(b"HTTP/1.1 204") is bool(first)


def turned_away(auth: Auth, *headers: tuple[bytes, bytes]) -> tuple[int, str]:
    """Status and text of what the gate answers itself."""
    sent: list[Any] = []

    async def run() -> None:
        async def send(message: Any) -> None:
            sent.append(message)

        async def never(*_: Any) -> Any:
            raise AssertionError("it came in")

        gate = Gate(never, auth=auth, max_body_bytes=10)
        await gate({"type": "http", "method": "GET", "path": "/metrics", "headers": list(headers)}, never, send)

    asyncio.run(run())
    return sent[0]["status"], json.loads(sent[1]["body"])["detail"]


def test_the_last_of_two_headers_counts() -> None:
    """For the check as for the rest of the door."""
    two = [(b"authorization", b"Bearer right"), (b"authorization", b"Bearer wrong")]
    assert turned_away(Auth([SecretStr("right")]), *HEADERS, *two)[0] == 401


@pytest.mark.parametrize(
    ("header", "said"),
    [
        (None, "a bearer token is needed: send Authorization: Bearer"),
        (b"", "a bearer token is needed: send Authorization: Bearer"),
        (b"Bearer ", "a bearer token is needed: send Authorization: Bearer"),
        (b"right", "write Bearer in front of the token"),
        (b"Basic right", "write Bearer in front of the token"),
        (b"Bearer wrong", "the token is wrong"),
        (b"bearer wrong too", "the token is wrong"),
    ],
)
def test_a_401_says_what_to_do(header: bytes | None, said: str) -> None:
    headers = [] if header is None else [(b"authorization", header)]
    status, detail = turned_away(Auth([SecretStr("right")]), *headers)
    assert status == 401
    assert detail.startswith(said)
    assert "wrong too" not in detail


def test_a_421_says_what_to_do() -> None:
    status, detail = turned_away(Auth([]), (b"host", b"render-1.example"))
    assert status == 421
    assert "call it as localhost" in detail
    assert "set a token in auth" in detail


# --- tokens ---------------------------------------------------------------------------------------------------

TOKENS = Auth([SecretStr("first-token"), SecretStr("second=token/+")])


@pytest.mark.parametrize(
    "header",
    ["Bearer first-token", "Bearer second=token/+", "bearer first-token", "BEARER  first-token", "Bearer first-token "],
)
def test_each_token_is_enough(header: str) -> None:
    assert TOKENS.is_allowed(header)


@pytest.mark.parametrize(
    "header",
    [
        None,
        "",
        "Bearer",
        "Bearer ",
        "first-token",
        "Basic first-token",
        "Bearer first-toke",
        "Bearer first-token2",
        "Bearer First-Token",
        "Bearer first-token second=token/+",
        "Bearerfirst-token",
        "Bearer first-tokén",
        "Bearer \udcff",
        "Bearer first-token\0",
        "Bearer " + "x" * 100_000,
    ],
)
def test_nothing_else_is(header: str | None) -> None:
    assert not TOKENS.is_allowed(header)


@pytest.mark.parametrize("header", [None, "", "Bearer anything"])
def test_without_tokens_every_caller_is_allowed(header: str | None) -> None:
    assert Auth([]).is_open
    assert Auth([]).is_allowed(header)
    assert not TOKENS.is_open


def test_tokens_are_not_kept_in_the_clear() -> None:
    assert "first-token" not in repr(vars(TOKENS))
