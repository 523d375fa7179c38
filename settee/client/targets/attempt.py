"""One request to one server that answers in JSON, and what became of it. :mod:`settee.client.targets.http` decides
whether there is another."""

from __future__ import annotations

import contextlib
import io
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from settee.base.text import one_line
from settee.client.errors import AuthError, NetworkError, UsageError
from settee.net.addresses import is_this_machine
from settee.net.retry import is_transient, retry_after_s

if TYPE_CHECKING:
    import requests

#: Of an answer that is an error, no more than this is read, bytes.
_MAX_ERROR_BYTES = 64 * 1024
#: How much longer than its timeout a large answer may take to arrive: bytes per second.
_SLOWEST = 20_000
#: Names of urllib3's exceptions for a connection that never came about.
_UNCONNECTED = frozenset(("NewConnectionError", "NameResolutionError", "ConnectTimeoutError"))
#: A shorter key may be in an answer by chance, characters.
_LEAST_KEY = 12
#: What of an answer that broke off is kept, bytes: an id may be in it.
_HEAD = 1000


class StatusError(NetworkError):
    """The server answered, with an HTTP status that is no success."""

    def __init__(self, message: str, status: int, words: str) -> None:
        super().__init__(message)
        self.status = status
        #: The answer's own line about it, or "".
        self.words = words


@dataclass
class Trouble(Exception):
    """The request came to nothing, and another may not."""

    what: str
    #: Whether the server surely has not begun on it.
    unsent: bool = False
    #: How long the server wants to be left alone, seconds.
    retry_after_s: float | None = None
    #: What came of an answer.
    head: bytes = b""
    #: The HTTP status, where there was one, and the answer's line about it.
    status: int | None = None
    words: str = ""


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    params: Mapping[str, str] | None = None
    #: None for none.
    content: bytes | None = None
    #: Whether an answer without a body is one.
    empty_ok: bool = False
    content_type: str = "application/json"
    #: HTTP statuses whose answer is wanted as it is, as a Reply.
    takes: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Reply:
    """An answer as it came. Header names are in lower case."""

    status: int
    headers: Mapping[str, str]
    content: bytes


class Server:
    """``name`` is what errors call it; ``key`` goes out as a bearer token, and ``key_name`` is where it came from, or
    should: None where the client has no key to give."""

    def __init__(self, base_url: str, name: str, key: str | None, key_name: str | None) -> None:
        """Raises UsageError for an address or key that cannot be one."""
        self.base_url, self._is_loopback = _checked_url(base_url)
        if key is not None and not (key.isascii() and key.isprintable() and " " not in key and key):
            raise UsageError(f"{key_name} holds characters that no key has: is there a line break or a space in it?")
        self.name = name
        self._key, self._key_name = key, key_name

    def new_session(self) -> requests.Session:
        """Its connections; close it."""
        import requests
        from requests.adapters import HTTPAdapter

        session = requests.Session()
        for scheme in ("http://", "https://"):
            session.mount(scheme, HTTPAdapter(pool_maxsize=64))
        session.headers.update({"Accept": "application/json", "User-Agent": "settee-client"})
        # Also without a key: requests would look for one in ~/.netrc, and send that.
        session.auth = self._signed
        # The environment's proxy knows nothing of this machine's own ports.
        session.trust_env = not self._is_loopback
        return session

    def _signed(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        if self._key is not None:
            request.headers["Authorization"] = f"Bearer {self._key}"
        return request

    def ask(
        self,
        session: requests.Session,
        asked: Request,
        *,
        connect_s: float,
        silent_s: float,
        max_bytes: int,
        on_answer: Callable[[], None],
        go_on: Callable[[], bool] = lambda: True,
    ) -> Any:
        """The JSON value that it answers, or a Reply where ``asked.takes`` its status.

        ``on_answer`` is called as soon as anything comes, be it an error; ``go_on`` says whether the rest is wanted.
        Raises Trouble, AuthError, StatusError, NetworkError, UsageError.
        """
        import requests

        try:
            with session.request(
                asked.method,
                f"{self.base_url}{asked.path}",
                params=asked.params,
                # As a file: of bytes, all have to go out within one timeout, however many they are.
                data=io.BytesIO(asked.content) if asked.content else None,
                headers={"Content-Type": asked.content_type} if asked.content else None,
                timeout=(connect_s, silent_s),
                allow_redirects=False,
                stream=True,
            ) as response:
                on_answer()
                if response.status_code in asked.takes:
                    headers = {name.lower(): value for name, value in response.headers.items()}
                    return Reply(response.status_code, headers, self._body(response, silent_s, max_bytes, go_on))
                if not 200 <= response.status_code < 300:
                    raise self._refusal(response)
                return self._parsed(response, self._body(response, silent_s, max_bytes, go_on), asked.empty_ok)
        except requests.exceptions.SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise NetworkError(f"{self.name}: its certificate is not trusted by this machine") from error
            raise Trouble("the encrypted connection broke") from error
        except requests.exceptions.ProxyError as error:
            raise Trouble("the proxy cannot be reached, or refuses", unsent=True) from error
        except requests.exceptions.ConnectTimeout as error:
            raise Trouble(f"no connection within {connect_s:.3g} s", unsent=True) from error
        except requests.exceptions.Timeout as error:
            raise Trouble(f"no answer within {silent_s:.3g} s") from error
        except requests.exceptions.ConnectionError as error:
            raise self._unconnected(error) from error
        except (requests.exceptions.RequestException, ValueError) as error:
            # ValueError: a host that IDNA does not know. Their texts may quote headers.
            raise UsageError(f"{self.name}: the address cannot be used; check it for slips") from error

    def _unconnected(self, error: Exception) -> Trouble:
        reason = type(getattr(error.args[0], "reason", None)).__name__ if error.args else ""
        if reason not in _UNCONNECTED:
            return Trouble("the connection was lost before an answer came")
        parts = urlsplit(self.base_url)
        if reason == "NameResolutionError":
            return Trouble(f"no host is named {parts.hostname}, or there is no network", unsent=True)
        return Trouble("nothing answers there: is it running, and is that the address?", unsent=True)

    def _refusal(self, response: requests.Response) -> Exception:
        """What an HTTP status that is no success means: Trouble where another try may help."""
        status, words = response.status_code, ""
        # An error's own text may be too long or break off: then it is an error without words.
        with contextlib.suppress(Trouble, NetworkError):
            words = self._words(self._body(response, 5.0, _MAX_ERROR_BYTES))
        said = f": {words}" if words else ""
        if status in (401, 403):
            if self._key_name is None:
                return AuthError(f"{self.name} wants a login, which goes by no option: give an address that wants none")
            if self._key is None:
                return AuthError(f"{self.name} wants a key: set {self._key_name}")
            if status == 401:
                return AuthError(f"{self.name} does not accept the key in {self._key_name}: check that it is whole")
            return AuthError(f"the key in {self._key_name} may not use {self.name}: check whose it is and its rights")
        if is_transient(status):
            return Trouble(
                f"it answers with HTTP {status}{said}",
                unsent=status in (429, 503),
                retry_after_s=retry_after_s(response.headers.get("Retry-After")),
                status=status,
                words=words,
            )
        if 300 <= status < 400:
            said = ": it redirects to another address; use that one"
        return StatusError(f"{self.name}: HTTP {status}{said}", status, words)

    def _words(self, content: bytes) -> str:
        """The line of an error answer that says what is wrong, without the key."""
        with contextlib.suppress(ValueError, RecursionError):
            data = json.loads(content)
            for name in ("error", "message", "detail", "title"):
                if isinstance(data, dict) and isinstance(text := data.get(name), str) and text.strip():
                    text = text if self._key is None else text.replace(self._key, "…")
                    return one_line(text)[:200]
        return ""

    def _body(
        self, response: requests.Response, silent_s: float, max_bytes: int, go_on: Callable[[], bool] = lambda: True
    ) -> bytes:
        """The whole body, within a time that fits its size. Raises Trouble, NetworkError."""
        import requests

        begun, content = time.monotonic(), bytearray()
        # read() would wait until it has as much as it was asked for, however slowly that comes.
        read = getattr(response.raw, "read1", response.raw.read)
        try:
            while piece := read(64 * 1024, decode_content=True):
                content += piece
                if len(content) > max_bytes:
                    raise NetworkError(f"{self.name}: the answer has over {max_bytes / 1e6:g} MB")
                if not go_on():
                    raise Trouble("the answer had not come whole when it was wanted")
                if time.monotonic() - begun > silent_s + len(content) / _SLOWEST:
                    raise Trouble("the answer comes too slowly", head=bytes(content[:_HEAD]))
        except (requests.exceptions.BaseHTTPError, OSError) as error:  # type: ignore[attr-defined]  # not in the stubs
            raise Trouble("the answer broke off", head=bytes(content[:_HEAD])) from error
        return bytes(content)

    def _parsed(self, response: requests.Response, content: bytes, empty_ok: bool) -> Any:
        if empty_ok and not content:
            return None
        if self._key is not None and len(self._key) >= _LEAST_KEY:
            # What a server says goes into messages, logs and files: an echo of the key is none of theirs.
            content = content.replace(self._key.encode(), "…".encode())
        if response.headers.get("Content-Type", "").startswith("text/html"):
            raise NetworkError(f"{self.name}: a web page answers there, not an API: check the address")
        try:
            return json.loads(content)
        except (ValueError, RecursionError) as error:
            raise Trouble("the answer is not JSON, or breaks off", head=content[:_HEAD]) from error


def _checked_url(url: str) -> tuple[str, bool]:
    """The base URL without a slash at its end, and whether it is on this machine. Raises UsageError."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        parts, host = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError("the address must be like http://host:port or https://host/path")
    if parts.username is not None or parts.query or parts.fragment:
        raise UsageError("the address must have no user name, no '?' and no '#' in it")
    return url.rstrip("/"), is_this_machine(host)
