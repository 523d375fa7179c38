"""One server that answers in JSON: timeouts, limits, and another try where one can help.

A failed request is sent again, with growing pauses, until ``retry_s`` has passed since the first failure (``first_s``
while the server has never answered: a typo in an address should not cost a minute), never sooner than Retry-After asks:

- a request that may be repeated (every GET, a POST with ``repeatable``): no connection, a lost or silent one, 408, 425,
  429, 5xx, JSON that breaks off.
- any other POST: only what the server surely has not begun on: the connection was never made, 429, 503. After anything
  else (a connection lost while waiting, a 500, 502 or 504, half an answer) the server may have accepted it; sending it
  again might run and bill a job twice, so that is an error which states this.

urllib3.Retry cannot do this: it sees no body that breaks off, no caller that gives up, and no limit in seconds.
Neither keys nor bodies get into errors or logs; of an answer that is an error, its one line ``error`` does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from settee.base.text import one_line
from settee.base.threads import TICK_S
from settee.client.client_errors import AuthError, NetworkError, StatusError, Unsure, UsageError
from settee.comfyui.http_api import Form, Reply, Request
from settee.net.retry import Backoff, is_transient, retry_after_s

if TYPE_CHECKING:
    from settee.net.http import Answer as HttpAnswer
    from settee.net.http import Http as Connections

log = logging.getLogger(__name__)

BACKOFF = Backoff(first_s=0.5, longest_s=10.0)
#: How long a connection may take, seconds.
CONNECT_S = 10.0
#: Of an answer that is an error, at most this is read, bytes.
_MAX_ERROR_BYTES = 64 * 1024
#: How much longer than its timeout a large answer may take to arrive: bytes per second.
_MIN_RATE = 20_000
#: A shorter key may be in an answer by chance, characters.
_MIN_KEY = 12
#: How much is kept of an answer that broke off, bytes: an id may be in it.
_HEAD = 1000


@dataclass
class Trouble(Exception):
    """The request failed, and another may not."""

    what: str
    #: True if the server certainly has not begun on it.
    unsent: bool = False
    #: How long the server asked to be left alone, seconds.
    asked_s: float | None = None
    #: The first bytes of an answer that broke off; never shown.
    head: bytes = b""
    #: What to raise when it is given up; None: a NetworkError.
    error: NetworkError | None = None


@dataclass(frozen=True)
class _Limits:
    stop: threading.Event
    left: Callable[[], float]

    @property
    def are_reached(self) -> bool:
        return self.stop.is_set() or self.left() <= 0


_UNLIMITED = _Limits(threading.Event(), lambda: float("inf"))
_limits: ContextVar[_Limits] = ContextVar("limits", default=_UNLIMITED)


@contextlib.contextmanager
def limited(stop: threading.Event, left: Callable[[], float]) -> Iterator[None]:
    """Limit the requests of this thread: none waits longer than ``left()`` seconds, nor is repeated after ``stop``.

    Setting ``stop`` wakes a request from its pause.
    """
    token = _limits.set(_Limits(stop, left))
    try:
        yield
    finally:
        _limits.reset(token)


def awaited(event: threading.Event, most_s: float) -> bool:
    """Wait for an event within this thread's limits; return True if it is set."""
    limits, until = _limits.get(), time.monotonic() + most_s
    while not event.wait(TICK_S) and not limits.are_reached and time.monotonic() < until:
        pass
    return event.is_set()


class Http:
    """May be used from many threads. ``name`` is what errors call it.

    ``key`` goes out as a bearer token, and ``key_name`` is where it came from, or should: None where the client has no
    key to give.
    """

    #: How long the server may be silent, seconds.
    timeout_s = 30.0
    #: How long a request is tried again, and how long where the server has never answered, seconds.
    retry_s, first_s = 60.0, 5.0
    #: The longest answer that is read, bytes. RunPod's are 20 MB at most; a worker of one's own may send films.
    max_bytes = 1 << 30

    def __init__(
        self,
        base_url: str,
        *,
        name: str,
        key: str | None = None,
        key_name: str | None = "the API key",
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """Raises UsageError for an invalid address or key."""
        self.base_url = _checked_url(base_url)
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key and key):
            raise UsageError(f"{key_name} holds characters that no key has: is there a line break or a space in it?")
        self.name, self._key, self._key_name = name, key, key_name
        self._clock, self._rand = clock, rand
        self._closed = threading.Event()
        self._sleep = self._closed.wait if sleep is None else sleep
        self._has_answered = False

    def get(self, path: str, *, timeout_s: float | None = None) -> Any:
        """Return the JSON value at a path below the base URL. Raises as :meth:`ask`."""
        return self.ask(Request("GET", path, timeout_s=timeout_s)).data

    def post(self, path: str, body: Any = None, *, repeatable: bool = False, timeout_s: float | None = None) -> Any:
        """Send a JSON value, and return the answer's. Raises as :meth:`ask`."""
        return self.ask(Request("POST", path, body, timeout_s=timeout_s, once=not repeatable)).data

    def ask(self, request: Request) -> Reply:
        """Return the answer of a success, or of a status that the request takes.

        Only a POST that may be repeated may be answered with nothing. Raises AuthError, StatusError, Unsure,
        NetworkError; UsageError for a body that is not JSON.
        """
        if request.body is not None and not isinstance(request.body, Form):
            request = replace(request, body=Form(json_bytes(request.body), "application/json"))
        failures, failing_since = 0, 0.0
        while True:
            try:
                if not request.once:
                    return self._once(request, self._kept)
                # A connection of its own: the server may close a kept one at this very moment, and then it could not
                # be known whether the request had been read.
                with contextlib.closing(_new_connections()) as connections:
                    return self._once(request, connections)
            except Trouble as trouble:
                if request.once and not trouble.unsent:
                    raise Unsure(
                        f"{self.name}: {trouble.what}; it may have been accepted, and sending it again may "
                        "run it twice",
                        trouble.head,
                    ) from trouble.__cause__
                now = self._clock()
                failures, failing_since = failures + 1, failing_since if failures else now
                pause_s = BACKOFF.pause_s(failures, trouble.asked_s, rand=self._rand)
                allowed_s = self.retry_s if self._has_answered else self.first_s
                if now + pause_s > failing_since + allowed_s or not self._pause(pause_s, trouble.what):
                    error = trouble.error or NetworkError(f"{self.name}: {trouble.what}")
                    raise error from trouble.__cause__

    def close(self) -> None:
        """Close the connections; requests that wait for another try give up."""
        self._closed.set()
        if "_kept" in vars(self):
            self._kept.close()

    # --- trying -------------------------------------------------------------------------------------------

    def _once(self, request: Request, connections: Connections) -> Reply:
        """Send the request once. Raises Trouble, AuthError, StatusError, NetworkError."""
        from settee.net.failures import Broken, Refused

        # Not 0, which would mean not to wait at all.
        silent_s = max(0.05, min(request.timeout_s or self.timeout_s, _limits.get().left()))
        headers = {"User-Agent": "settee-client", "Accept": "application/json", "Accept-Encoding": "gzip, deflate"}
        if self._key is not None:
            headers["Authorization"] = f"Bearer {self._key}"
        form, content = request.body, None
        if form is not None:
            headers["Content-Type"], content = form.content_type, form.content
        url, timeout = f"{self.base_url}{request.path}", (min(CONNECT_S, silent_s), silent_s)
        try:
            answer = connections.open(request.method, url, headers, content=content, timeout=timeout)
        except Broken as error:
            hint = ": is it running, and is that the address?" if error.unsent and "proxy" not in error.reason else ""
            raise Trouble(f"{error.reason}{hint}", unsent=error.unsent) from error
        except Refused as error:
            raise NetworkError(f"{self.name}: {error.reason}") from error
        self._has_answered = True
        try:
            is_success = 200 <= answer.status < 300
            if not is_success and answer.status not in request.takes:
                raise self._refusal(answer)
            content = self._body(answer, silent_s, self.max_bytes, _UNLIMITED if request.once else _limits.get())
            data = None
            if content or (is_success and (request.method == "GET" or request.once)):
                try:
                    data = self._parsed(answer, content)
                except (Trouble, NetworkError):
                    if is_success:
                        raise
            return Reply(answer.status, data, {name.lower(): value for name, value in answer.headers.items()})
        finally:
            answer.done()

    def _pause(self, seconds: float, why: str) -> bool:
        """Wait before another try; False when there shall be none."""
        limits = _limits.get()
        if self._closed.is_set() or limits.stop.is_set() or seconds >= limits.left():
            return False
        log.info("%s: %s; again in %.1f s", self.name, why, seconds)
        (self._sleep if limits is _UNLIMITED else limits.stop.wait)(seconds)
        return not (self._closed.is_set() or limits.stop.is_set())

    @cached_property
    def _kept(self) -> Connections:
        return _new_connections()

    # --- answers ------------------------------------------------------------------------------------------

    def _refusal(self, answer: HttpAnswer) -> Exception:
        """Return the error for an HTTP status that is not a success: Trouble where another try may help."""
        status, words = answer.status, ""
        # An error's own text may be too long or break off: then it is an error without words.
        with contextlib.suppress(Trouble, NetworkError):
            words = self._words(self._body(answer, 5.0, _MAX_ERROR_BYTES))
        detail = f": {words}" if words else ""
        if status in (401, 403):
            if self._key_name is None:
                return AuthError(f"{self.name} requires a login, which no option provides: give an address without one")
            if self._key is None:
                return AuthError(f"{self.name} requires a key: set {self._key_name}")
            if status == 401:
                return AuthError(f"{self.name} does not accept the key in {self._key_name}: check that it is complete")
            return AuthError(f"the key in {self._key_name} has no access to {self.name}: check its owner and rights")
        if is_transient(status):
            what, asked_s = f"it answers with HTTP {status}{detail}", retry_after_s(answer.headers.get("Retry-After"))
            hint = ": send fewer at once, or try again later" if status == 429 else ""
            error = StatusError(f"{self.name}: {what}{hint}", status, words)
            return Trouble(what, unsent=status in (429, 503), asked_s=asked_s, error=error)
        if 300 <= status < 400:
            detail = ": it redirects to another address; use that one"
        return StatusError(f"{self.name}: HTTP {status}{detail}", status, words)

    def _words(self, content: bytes) -> str:
        """Return the line of an error answer that states what is wrong, without the key."""
        with contextlib.suppress(ValueError, RecursionError):
            data = json.loads(content)
            for name in ("error", "message", "detail", "title"):
                if isinstance(data, dict) and isinstance(text := data.get(name), str) and text.strip():
                    return one_line(text if self._key is None else text.replace(self._key, "…"))[:200]
        return ""

    def _body(self, answer: HttpAnswer, silent_s: float, max_bytes: int, limits: _Limits = _UNLIMITED) -> bytes:
        """Return the whole body, within a time that fits its size. Raises Trouble, NetworkError."""
        from settee.net.failures import Broken

        begun, content = time.monotonic(), bytearray()
        try:
            for piece in answer.chunks(64 * 1024):
                content += piece
                if len(content) > max_bytes:
                    raise NetworkError(f"{self.name}: the answer is larger than {max_bytes / 1e6:g} MB")
                if limits.are_reached:
                    raise Trouble("the answer had not come whole when it was wanted")
                if time.monotonic() - begun > silent_s + len(content) / _MIN_RATE:
                    raise Trouble("the answer comes too slowly", head=bytes(content[:_HEAD]))
        except Broken as error:
            raise Trouble("the answer broke off", head=bytes(content[:_HEAD])) from error
        return bytes(content)

    def _parsed(self, answer: HttpAnswer, content: bytes) -> Any:
        if self._key is not None and len(self._key) >= _MIN_KEY:
            # Answers go into messages, logs and files, where an echo of the key does not belong.
            content = content.replace(self._key.encode(), "…".encode())
        if answer.headers.get("Content-Type", "").startswith("text/html"):
            raise NetworkError(f"{self.name}: a web page answers there, not an API: check the address")
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise Trouble("the answer is not valid JSON, or breaks off", head=content[:_HEAD]) from error


def _new_connections() -> Connections:
    from settee.net.http import Http as Connections

    # Each request has its own timeouts. The environment's proxy cannot reach this machine's own ports.
    return Connections(public_only=False, connect_s=CONNECT_S, read_s=30.0, connections=64, proxies_local=False)


def _checked_url(url: str) -> str:
    """Return the base URL without a slash at its end. Raises UsageError."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError("the address must be like http://host:port or https://host/path")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError("the address must have no user name, no '?' and no '#' in it")
    return url.rstrip("/")


def json_bytes(value: Any) -> bytes:
    """Return the value as JSON. Raises UsageError for what is not JSON."""
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError("the request holds what JSON cannot: NaN, infinity, or values nested too deep") from error
