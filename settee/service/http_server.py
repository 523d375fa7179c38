"""The HTTP server of a door: bearer tokens, limits of a request's kind, size and time, and an end at a signal."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any
from urllib.parse import urlsplit

import uvicorn
from fastapi.responses import JSONResponse
from pydantic import SecretStr
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send
from uvicorn.protocols.http.h11_impl import H11Protocol

from settee.net.addresses import is_this_machine

#: Open without a token: they state nothing of a job.
OPEN_PATHS = frozenset(("/", "/healthz"))
#: Posts that have a body.
_WITH_BODY = frozenset(("/jobs", "/jobs/cancel"))
#: A body may come slowly, but not without end: the longest silence within it, and all of it, seconds.
CHUNK_S, BODY_S = 15.0, 300.0
#: From a connection, or the first byte of a further request on it, to the end of the request's head, seconds.
HEAD_S = 20.0
#: Digits of a length that can be compared at all.
_MAX_DIGITS = 18
_ONLY_LOCAL = (
    "without a token in auth this agent answers to this machine's own names only: call it as localhost or 127.0.0.1, "
    "or set a token in auth and send it"
)
_SEEN = frozenset((b"authorization", b"content-length", b"content-type", b"host"))


# --- access -------------------------------------------------------------------------------------------------


class Auth:
    """The tokens of the configuration. Without any, every caller is allowed, and the agent listens on loopback only."""

    def __init__(self, tokens: Iterable[SecretStr]) -> None:
        self._digests = [_digest(token.get_secret_value()) for token in tokens]

    @property
    def is_open(self) -> bool:
        """True: no token is asked for."""
        return not self._digests

    def is_allowed(self, header: str | None) -> bool:
        """Return True if an Authorization header (None: it is missing) carries one of the tokens.

        How long it takes tells nothing of how much of a token was right, nor which token it was: digests of equal
        length are compared, with every token.
        """
        if self.is_open:
            return True
        scheme, _, token = (header or "").partition(" ")
        digest = _digest(token.strip(" "))
        matches = [hmac.compare_digest(digest, known) for known in self._digests]
        # RFC 9110, 11.1: the scheme's name has no case.
        return any(matches) and scheme.lower() == "bearer"


class Gate:
    """ASGI middleware. It answers what it refuses, and closes that connection: a body may still be coming."""

    def __init__(
        self,
        app: Any,
        *,
        auth: Auth,
        max_body_bytes: int,
        on_refused: Callable[[int], None] = lambda status: None,
        chunk_s: float = CHUNK_S,
        body_s: float = BODY_S,
    ) -> None:
        """``on_refused`` is called with the status of every answer to a dispatch but those that accept it."""
        self._app, self._auth, self._most, self._on_refused = app, auth, max_body_bytes, on_refused
        self._too_large = f"the body is larger than {max_body_bytes} bytes (server.max_body_bytes)"
        self._chunk_s, self._body_s = chunk_s, body_s

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        # Of a header that is sent twice, the last one counts, for every part of this door.
        headers = {name: value.decode("latin-1") for name, value in scope["headers"] if name in _SEEN}
        if scope["method"] == "POST" and scope["path"] == "/jobs":
            send = self._counted(send)
        refusal = self._refusal(scope, headers)
        if refusal is not None:
            await refusal(scope, receive, send)
        else:
            await self._app(scope, self._measured(receive), send)

    def _refusal(self, scope: Scope, headers: dict[bytes, str]) -> JSONResponse | None:
        if scope["path"] not in OPEN_PATHS:
            authorization = headers.get(b"authorization")
            if not self._auth.is_allowed(authorization):
                return _turned_away(401, _why_not(authorization or ""), {"WWW-Authenticate": "Bearer"})
            # Without a token only the host's own users come in; a page in their browser, whose name was made to
            # lead here (DNS rebinding), says that name.
            if self._auth.is_open and not _is_own(headers.get(b"host", "")):
                return _turned_away(421, _ONLY_LOCAL)
        # A page elsewhere can make a browser post a form or plain text, but no JSON without being allowed to.
        has_body = scope["method"] == "POST" and scope["path"] in _WITH_BODY
        if has_body and not _is_json(headers.get(b"content-type", "")):
            return _turned_away(415, "the body must be JSON: send Content-Type: application/json")
        announced = headers.get(b"content-length", "")
        if announced.isdigit() and (len(announced) > _MAX_DIGITS or int(announced) > self._most):
            return _turned_away(413, self._too_large)
        return None

    def _counted(self, send: Send) -> Send:
        async def counted(message: Message) -> None:
            if message["type"] == "http.response.start" and message["status"] >= 400:
                self._on_refused(message["status"])
            await send(message)

        return counted

    def _measured(self, receive: Receive) -> Receive:
        """``receive``, which raises HTTPException for a body that is too large or too slow."""
        count, is_whole, deadline = 0, False, time.monotonic() + self._body_s

        async def measured() -> Message:
            nonlocal count, is_whole
            if is_whole:  # from here on it tells that the client went away, whenever that is
                return await receive()
            limit_s = min(self._chunk_s, deadline - time.monotonic())
            try:
                message = await asyncio.wait_for(receive(), limit_s)
            except asyncio.TimeoutError:
                raise HTTPException(408, "the body comes too slowly", {"Connection": "close"}) from None
            is_whole = not message.get("more_body", False)
            count += len(message.get("body", b""))
            if count > self._most:
                raise HTTPException(413, self._too_large, {"Connection": "close"})
            return message

        return measured


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def problem(status: int, detail: str, problems: Any = None, headers: Any = None) -> JSONResponse:
    """``{detail, problems?}``."""
    return JSONResponse({"detail": detail, **({"problems": problems} if problems else {})}, status, headers)


def _turned_away(status: int, detail: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return problem(status, detail, headers={"Connection": "close", **(headers or {})})


def _why_not(authorization: str) -> str:
    scheme, _, token = authorization.strip().partition(" ")
    if not scheme or (scheme.lower() == "bearer" and not token.strip()):
        return "a bearer token is needed: send Authorization: Bearer <token>"
    if scheme.lower() != "bearer":
        return "write Bearer in front of the token: Authorization: Bearer <token>"
    return "the token is wrong"


def _is_own(host: str) -> bool:
    try:
        return is_this_machine(urlsplit(f"//{host}").hostname or "")
    except ValueError:
        return False


def _is_json(content_type: str) -> bool:
    kind = content_type.partition(";")[0].strip().lower()
    return kind == "application/json" or (kind.startswith("application/") and kind.endswith("+json"))


# --- the server ---------------------------------------------------------------------------------------------


class Patient(H11Protocol):
    """uvicorn times the pause between two requests, but not the head of one, which may come byte by byte."""

    head_s = HEAD_S
    _head_timer: asyncio.TimerHandle | None = None

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._time_head()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._time_head()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def _time_head(self) -> None:
        if self.cycle is not None and not self.cycle.response_complete:
            self._stop_timer()
        elif self._head_timer is None:
            self._head_timer = self.loop.call_later(self.head_s, self.transport.close)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None


class Server(uvicorn.Server):
    """uvicorn waits for open requests first, and ends its application then; a job must be canceled at once: streams of
    events only end with the job."""

    def __init__(self, config: uvicorn.Config, on_signal: Callable[[], object]) -> None:
        super().__init__(config)
        self._on_signal = on_signal

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        # A signal's handler may have interrupted the holder of the locks that this takes.
        threading.Thread(target=self._on_signal, name="settee-ending", daemon=True).start()

    def serve_until_told(self, listening: list[socket.socket]) -> None:
        """Run on these sockets; returns after SIGTERM or SIGINT.

        uvicorn raises the signal that ended it again when it has restored the earlier handlers. By default
        that would end the process on the spot, with ComfyUI, the workspace and the outbox as they are.
        """
        handlers = {each: signal.signal(each, lambda *_: None) for each in (signal.SIGTERM, signal.SIGINT)}
        try:
            self.run(listening)
        finally:
            for each, handler in handlers.items():
                signal.signal(each, handler)
