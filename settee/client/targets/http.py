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
import io
import json
import logging
import math
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from settee.client.errors import AuthError, NetworkError, UsageError

if TYPE_CHECKING:
    import requests

log = logging.getLogger(__name__)

#: Pauses between tries, seconds: the first, and the longest.
FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.5, 10.0
#: The longest answer that is read, bytes. RunPod's are 20 MB at most; a worker of one's own may send films.
MAX_BYTES = 1 << 30
#: Of an answer that is an error, no more than this is read, bytes.
_MAX_ERROR_BYTES = 64 * 1024
#: How much longer than its timeout a large answer may take to arrive: bytes per second.
_SLOWEST = 20_000
#: Names of urllib3's exceptions for a connection that never came about.
_UNCONNECTED = frozenset(("NewConnectionError", "NameResolutionError", "ConnectTimeoutError"))


class StatusError(NetworkError):
    """The server answered, with an HTTP status that is no success."""

    def __init__(self, message: str, status: int, words: str) -> None:
        super().__init__(message)
        self.status = status
        #: The answer's own line about it, or "".
        self.words = words


class Unsure(NetworkError):
    """A request that must not be repeated was sent, and what came of it is not known.

    ``head`` is what of the answer came (never shown).
    """

    def __init__(self, message: str, head: bytes) -> None:
        super().__init__(message)
        self.head = head


@dataclass(frozen=True)
class _Patience:
    stop: threading.Event
    #: Seconds that are left for everything.
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


@dataclass
class _Trouble(Exception):
    """One try came to nothing, and another may not."""

    what: str
    #: Whether the server surely has not begun on the request.
    unsent: bool = False
    retry_after_s: float = 0.0
    head: bytes = b""
    status: int | None = None
    words: str = ""


class Http:
    """May be used from many threads. ``name`` is what errors call it, ``key`` goes out as a bearer token."""

    def __init__(
        self,
        base_url: str,
        *,
        name: str,
        key: str | None = None,
        key_name: str = "the API key",
        headers: Mapping[str, str] | None = None,
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
        self.base_url, self._is_loopback = _checked_url(base_url)
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key and key):
            raise UsageError(f"{key_name} holds characters that no key has: is there a line break or a space in it?")
        self.name = name
        self.timeout_s, self.connect_s = timeout_s, connect_s
        self.retry_s, self.first_s = retry_s, first_s
        self.max_bytes = max_bytes
        self._key, self._key_name = key, key_name
        self._headers = {"Accept": "application/json", "User-Agent": "settee-client", **(headers or {})}
        self._clock, self._rand = clock, rand
        self._closed = threading.Event()
        self._sleep = sleep or self._closed.wait
        self._has_answered = False
        self._lock = threading.Lock()
        self._session: requests.Session | None = None

    def get(self, path: str, *, params: Mapping[str, str] | None = None, timeout_s: float | None = None) -> Any:
        """The JSON value at a path below the base URL. Raises AuthError, StatusError, NetworkError."""
        return self._ask("GET", path, params, None, True, False, timeout_s)

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

        Raises AuthError, StatusError, Unsure, NetworkError.
        """
        content = b"" if body is None else json.dumps(body).encode()
        return self._ask("POST", path, params, content, repeatable, empty_ok, timeout_s)

    def close(self) -> None:
        """Let go of the connections; whoever waits for another try gives up."""
        self._closed.set()
        with self._lock:
            if self._session is not None:
                self._session.close()
                self._session = None

    # --- trying -------------------------------------------------------------------------------------------

    def _ask(
        self,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        content: bytes | None,
        repeatable: bool,
        empty_ok: bool,
        timeout_s: float | None,
    ) -> Any:
        pause_s, failing_since = FIRST_PAUSE_S, None
        while True:
            try:
                if repeatable:
                    return self._once(self._shared(), method, path, params, content, empty_ok, timeout_s)
                # A connection of its own: one that was kept may be closed by the server at this very moment, and then
                # nobody could tell whether the request had been read.
                with self._new_session() as session:
                    return self._once(session, method, path, params, content, empty_ok, timeout_s)
            except _Trouble as trouble:
                now = self._clock()
                failing_since = now if failing_since is None else failing_since
                if not (repeatable or trouble.unsent):
                    raise Unsure(
                        f"{self.name}: {trouble.what}; whether the job was accepted is not known, and sending it "
                        "again may run it twice",
                        trouble.head,
                    ) from trouble.__cause__
                delay = max(trouble.retry_after_s, pause_s * (0.5 + 0.5 * self._rand()))
                pause_s = min(LONGEST_PAUSE_S, 2 * pause_s)
                allowed = self.retry_s if self._has_answered else self.first_s
                if now + delay > failing_since + allowed or not self._pause(delay, trouble.what):
                    raise self._given_up(trouble) from trouble.__cause__

    def _pause(self, seconds: float, why: str) -> bool:
        """Wait before another try; False when there shall be none."""
        asked = _patience.get()
        if self._closed.is_set() or (asked is not None and (asked.stop.is_set() or seconds >= asked.left())):
            return False
        log.info("%s: %s; again in %.1f s", self.name, why, seconds)
        if asked is None:
            self._sleep(seconds)
            return not self._closed.is_set()
        return not asked.stop.wait(seconds) and not self._closed.is_set()

    def _given_up(self, trouble: _Trouble) -> NetworkError:
        said = f": {trouble.words}" if trouble.words else ""
        if trouble.status is None:
            return NetworkError(f"{self.name}: {trouble.what}")
        if trouble.status == 429:
            what = "too many requests (HTTP 429), also after waiting: send fewer at once, or try again later"
            return StatusError(f"{self.name}: {what}{said}", trouble.status, trouble.words)
        return StatusError(f"{self.name}: {trouble.what}{said}", trouble.status, trouble.words)

    # --- one try ------------------------------------------------------------------------------------------

    def _once(
        self,
        session: requests.Session,
        method: str,
        path: str,
        params: Mapping[str, str] | None,
        content: bytes | None,
        empty_ok: bool,
        timeout_s: float | None,
    ) -> Any:
        import requests

        silent_s = self.timeout_s if timeout_s is None else timeout_s
        asked = _patience.get()
        if asked is not None:
            # Not 0, which would mean not to wait at all.
            silent_s = max(0.05, min(silent_s, asked.left()))
        try:
            with session.request(
                method,
                f"{self.base_url}{path}",
                params=params,
                # As a file: of bytes, all have to go out within one timeout, however many they are.
                data=None if content is None else io.BytesIO(content),
                headers={"Content-Type": "application/json"} if content else None,
                timeout=(min(self.connect_s, silent_s), silent_s),
                allow_redirects=False,
                stream=True,
            ) as response:
                self._has_answered = True
                if not 200 <= response.status_code < 300:
                    raise self._refusal(response)
                head = self._read(response, silent_s, self.max_bytes)
                return self._parsed(response, head, empty_ok)
        except requests.exceptions.SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise NetworkError(f"{self.name}: its certificate is not trusted by this machine") from error
            raise _Trouble("the encrypted connection broke") from error
        except requests.exceptions.ProxyError as error:
            raise _Trouble("the proxy cannot be reached, or refuses", unsent=True) from error
        except requests.exceptions.ConnectTimeout as error:
            raise _Trouble(f"no connection within {self.connect_s:g} s", unsent=True) from error
        except requests.exceptions.Timeout as error:
            raise _Trouble(f"no answer within {silent_s:.3g} s") from error
        except requests.exceptions.ConnectionError as error:
            raise self._unconnected(error) from error
        except (requests.exceptions.RequestException, UnicodeError) as error:
            # Among them hosts that IDNA does not know. Their texts may quote headers.
            raise UsageError(f"{self.name}: the address cannot be used; check it for slips") from error

    def _unconnected(self, error: Exception) -> _Trouble:
        reason = getattr(error.args[0], "reason", None) if error.args else None
        kind = type(reason).__name__
        if kind not in _UNCONNECTED:
            return _Trouble("the connection was lost before an answer came")
        host = urlsplit(self.base_url).netloc
        if kind == "NameResolutionError":
            return _Trouble(f"there is no host of the name {urlsplit(self.base_url).hostname}", unsent=True)
        return _Trouble(f"nothing answers at {host}: is it running, and is that the address?", unsent=True)

    def _refusal(self, response: requests.Response) -> Exception:
        """What an HTTP status that is no success means: a _Trouble where another try may help."""
        status = response.status_code
        with contextlib.suppress(_Trouble):
            words = self._words(self._read(response, 5.0, _MAX_ERROR_BYTES))
            return self._refused(status, words, response.headers.get("Retry-After", ""))
        return self._refused(status, "", response.headers.get("Retry-After", ""))

    def _refused(self, status: int, words: str, retry_after: str) -> Exception:
        if status in (401, 403):
            if self._key is None:
                return AuthError(f"{self.name} wants a key: set {self._key_name}")
            if status == 401:
                return AuthError(f"{self.name} does not accept the key in {self._key_name}: check that it is whole")
            return AuthError(f"the key in {self._key_name} may not use {self.name}: check whose it is and its rights")
        if status in (408, 425, 429) or status >= 500:
            return _Trouble(
                f"it answers with HTTP {status}",
                unsent=status in (429, 503),
                retry_after_s=_seconds(retry_after),
                status=status,
                words=words,
            )
        if 300 <= status < 400:
            return StatusError(
                f"{self.name}: it redirects to another address (HTTP {status}): use that one", status, words
            )
        return StatusError(f"{self.name}: HTTP {status}{f': {words}' if words else ''}", status, words)

    def _words(self, content: bytes) -> str:
        """The line of an error answer that says what is wrong."""
        try:
            data = json.loads(content)
        except (ValueError, RecursionError):
            return ""
        if not isinstance(data, dict):
            return ""
        for name in ("error", "message", "detail", "title"):
            if isinstance(text := data.get(name), str) and text.strip():
                line = "".join(c if c.isprintable() else " " for c in text[:300])
                return " ".join(line.replace(self._key, "…").split() if self._key else line.split())[:200]
        return ""

    def _read(self, response: requests.Response, silent_s: float, limit: int) -> bytes:
        """The whole body, within a time that fits its size. Raises _Trouble, NetworkError."""
        import requests

        begun, content = time.monotonic(), bytearray()
        # read() would wait until it has as much as it was asked for, however slowly that comes.
        read = getattr(response.raw, "read1", response.raw.read)
        try:
            while piece := read(64 * 1024, decode_content=True):
                content += piece
                if len(content) > limit:
                    raise NetworkError(f"{self.name}: the answer has over {limit / 1e6:g} MB")
                if time.monotonic() - begun > silent_s + len(content) / _SLOWEST:
                    raise _Trouble("the answer comes too slowly", head=bytes(content[:1000]))
        except (requests.exceptions.BaseHTTPError, OSError) as error:  # type: ignore[attr-defined]  # not in the stubs
            raise _Trouble("the answer broke off", head=bytes(content[:1000])) from error
        return bytes(content)

    def _parsed(self, response: requests.Response, content: bytes, empty_ok: bool) -> Any:
        if empty_ok and not content:
            return None
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise NetworkError(f"{self.name}: a web page answers there, not an API: check the address")
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _Trouble("the answer is not JSON, or breaks off", head=content[:1000]) from error

    # --- connections --------------------------------------------------------------------------------------

    def _shared(self) -> requests.Session:
        with self._lock:
            if self._session is None:
                self._session = self._new_session()
            return self._session

    def _new_session(self) -> requests.Session:
        import requests
        from requests.adapters import HTTPAdapter

        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=64))
        session.headers.update(self._headers)
        # Also without a key: requests would look for one in ~/.netrc, and send that.
        session.auth = self._signed
        # The environment's proxy knows nothing of this machine's own ports.
        session.trust_env = not self._is_loopback
        return session

    def _signed(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request


def _checked_url(url: str) -> tuple[str, bool]:
    """The base URL without a slash at its end, and whether it is on this machine. Raises UsageError."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host, parts = None, urlsplit("")
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError("the address must be like http://host:port or https://host/path")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError("the address must have no user name, no '?' and no '#' in it")
    is_loopback = host == "localhost" or host == "::1" or host.startswith("127.")
    return url.rstrip("/"), is_loopback


def _seconds(retry_after: str) -> float:
    """The header's seconds, or the time until its date; 0 for anything else."""
    try:
        seconds = float(retry_after)
    except ValueError:
        import email.utils

        try:
            seconds = email.utils.parsedate_to_datetime(retry_after).timestamp() - time.time()
        except (TypeError, ValueError, IndexError, OverflowError):
            return 0.0
    return max(0.0, seconds) if math.isfinite(seconds) else 0.0
