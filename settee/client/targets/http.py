"""One server that answers in JSON, asked with patience: timeouts, limits, and another try where one can help.

    http = Http("https://api.runpod.ai/v2/abc", name="endpoint abc", key=key, key_name="RUNPOD_API_KEY")
    http.get("/status/123")

What is tried again, with growing pauses, until ``retry_s`` has passed since the first failure (``first_s`` while the
server has never answered: an address with a slip in it should not cost a minute), never sooner than Retry-After says:

- a request that may be repeated (every GET, a POST with ``repeatable``): no connection, a lost or silent one, 408, 425,
  429, 5xx, JSON that breaks off.
- any other POST: only what the server surely has not begun on: the connection never came about, 429, 503. After
  anything else (a connection lost while waiting, a 500, 502 or 504, half an answer) nobody knows whether it was
  accepted; sending it again might run and bill a job twice, so it is an error that says so.

Neither keys nor bodies get into errors or logs; of an answer that is an error, its one line ``error`` does.
"""

from __future__ import annotations

import contextlib
import json
import logging
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from settee.client.errors import NetworkError, UsageError
from settee.client.targets.attempt import Reply, Request, Server, StatusError, Trouble
from settee.net.retry import Backoff

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)

__all__ = ["Http", "Reply", "Request", "StatusError", "Unsure", "json_bytes", "patience"]

#: Pauses between tries.
BACKOFF = Backoff(0.5, 10.0)
#: The longest answer that is read, bytes. RunPod's are 20 MB at most; a worker of one's own may send films.
MAX_BYTES = 1 << 30


class Unsure(NetworkError):
    """A request that must not be repeated was sent, and what came of it is not known."""

    def __init__(self, message: str, head: bytes) -> None:
        super().__init__(message)
        #: The first bytes of an answer that broke off; never shown.
        self.head = head


@dataclass(frozen=True)
class _Patience:
    stop: threading.Event
    left: Callable[[], float]


_patience: ContextVar[_Patience | None] = ContextVar("patience", default=None)


@contextlib.contextmanager
def patience(stop: threading.Event, left: Callable[[], float]) -> Iterator[None]:
    """Inside, no request of this thread waits longer than ``left()`` seconds, and none is repeated once ``stop`` is
    set, which wakes it from its pause."""
    token = _patience.set(_Patience(stop, left))
    try:
        yield
    finally:
        _patience.reset(token)


class Http:
    """May be used from many threads. ``name`` is what errors call it; ``key`` goes out as a bearer token."""

    def __init__(
        self,
        base_url: str,
        *,
        name: str,
        key: str | None = None,
        key_name: str | None = "the API key",
        timeout_s: float = 30.0,
        connect_s: float = 10.0,
        retry_s: float = 60.0,
        first_s: float = 5.0,
        max_bytes: int = MAX_BYTES,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
        rand: Callable[[], float] = random.random,
    ) -> None:
        """``timeout_s``: how long the server may be silent. Raises UsageError for an address or key that is none."""
        self.name = name
        self.timeout_s, self.connect_s = timeout_s, connect_s
        self.retry_s, self.first_s = retry_s, first_s
        self.max_bytes = max_bytes
        self._server = Server(base_url, name, key, key_name)
        self._clock, self._rand = clock, rand
        self._closed = threading.Event()
        self._sleep = self._closed.wait if sleep is None else sleep
        self._has_answered = False
        self._lock = threading.Lock()
        self._kept: requests.Session | None = None

    def get(self, path: str, *, params: Mapping[str, str] | None = None, timeout_s: float | None = None) -> Any:
        """The JSON value at a path below the base URL. Raises AuthError, StatusError, NetworkError."""
        return self._ask(Request("GET", path, params), True, timeout_s)

    def post(
        self,
        path: str,
        body: Any = None,
        *,
        params: Mapping[str, str] | None = None,
        repeatable: bool = False,
        empty_ok: bool = False,
        timeout_s: float | None = None,
    ) -> Any:
        """Send a JSON value, and return the answer's (None for an empty one, with ``empty_ok``).

        Raises AuthError, StatusError, Unsure, NetworkError; UsageError for what is not JSON.
        """
        content = None if body is None else json_bytes(body)
        return self._ask(Request("POST", path, params, content, empty_ok), repeatable, timeout_s)

    def exchange(self, asked: Request, *, repeatable: bool, timeout_s: float | None = None) -> Reply:
        """The answer as it came, for a request that ``takes`` its status; any other raises as above."""
        reply = self._ask(asked, repeatable, timeout_s)
        if not isinstance(reply, Reply):
            raise NetworkError(f"{self.name}: it answers in a way that was not expected: check the address")
        return reply

    def close(self) -> None:
        """Let go of the connections; whoever waits for another try gives up."""
        self._closed.set()
        with self._lock:
            if self._kept is not None:
                self._kept.close()
                self._kept = None

    # --- trying -------------------------------------------------------------------------------------------

    def _ask(self, asked: Request, repeatable: bool, timeout_s: float | None) -> Any:
        failures = 0
        failing_since: float | None = None
        while True:
            try:
                if repeatable:
                    return self._once(self._session(), asked, timeout_s, self._goes_on)
                # A connection of its own: one that was kept may be closed by the server at this very moment, and then
                # nobody could tell whether the request had been read.
                with self._server.new_session() as session:
                    return self._once(session, asked, timeout_s)
            except Trouble as trouble:
                if not (repeatable or trouble.unsent):
                    raise Unsure(
                        f"{self.name}: {trouble.what}; whether it was accepted is not known, and sending it again may "
                        "run it twice",
                        trouble.head,
                    ) from trouble.__cause__
                now = self._clock()
                failing_since = now if failing_since is None else failing_since
                failures += 1
                delay = BACKOFF.pause_s(failures, trouble.retry_after_s, rand=self._rand)
                allowed = self.retry_s if self._has_answered else self.first_s
                if now + delay > failing_since + allowed or not self._pause(delay, trouble.what):
                    raise self._given_up(trouble) from trouble.__cause__

    def _once(
        self,
        session: requests.Session,
        asked: Request,
        timeout_s: float | None,
        go_on: Callable[[], bool] = lambda: True,
    ) -> Any:
        silent_s = self.timeout_s if timeout_s is None else timeout_s
        limits = _patience.get()
        if limits is not None:
            # Not 0, which would mean not to wait at all.
            silent_s = max(0.05, min(silent_s, limits.left()))
        return self._server.ask(
            session,
            asked,
            connect_s=min(self.connect_s, silent_s),
            silent_s=silent_s,
            max_bytes=self.max_bytes,
            on_answer=self._note_answer,
            go_on=go_on,
        )

    def _goes_on(self) -> bool:
        """Whether anybody still waits for the answer to what can be asked again."""
        limits = _patience.get()
        return limits is None or not (limits.stop.is_set() or limits.left() <= 0)

    def _note_answer(self) -> None:
        self._has_answered = True

    def _pause(self, seconds: float, why: str) -> bool:
        """Wait before another try; False when there shall be none."""
        limits = _patience.get()
        if self._closed.is_set() or (limits is not None and (limits.stop.is_set() or seconds >= limits.left())):
            return False
        log.info("%s: %s; again in %.1f s", self.name, why, seconds)
        if limits is None:
            self._sleep(seconds)
            return not self._closed.is_set()
        return not limits.stop.wait(seconds) and not self._closed.is_set()

    def _given_up(self, trouble: Trouble) -> NetworkError:
        if trouble.status is None:
            return NetworkError(f"{self.name}: {trouble.what}")
        hint = ": send fewer at once, or try again later" if trouble.status == 429 else ""
        return StatusError(f"{self.name}: {trouble.what}{hint}", trouble.status, trouble.words)

    def _session(self) -> requests.Session:
        with self._lock:
            if self._kept is None:
                self._kept = self._server.new_session()
            return self._kept


def json_bytes(value: Any) -> bytes:
    """Raises UsageError for what is not JSON."""
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (ValueError, TypeError, RecursionError) as error:
        raise UsageError("the request holds what JSON cannot: NaN, infinity, or values nested too deep") from error
