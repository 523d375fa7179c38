"""One POST of a callback, and what became of it. The outbox decides whether there is another.

Redirects are never followed: a POST that follows one may lose its body, and the address that it leads to was not
checked. With a secret each request is signed as Standard Webhooks describes (standardwebhooks.com): HMAC-SHA256 over
``id.timestamp.body``.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import hashlib
import hmac
import socket
import ssl
import threading
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import SplitResult, quote, urlsplit, urlunsplit

import httpcore

from settee import __version__
from settee.net.addresses import is_this_machine
from settee.net.http import environment_of, split_login, tls
from settee.net.retry import retry_after_s
from settee.service.callback_urls import addressed
from settee.service.store import Callback

#: Answers below 500 after which the same request may well succeed later.
_RETRIED = frozenset((408, 429))
#: Retry-After is believed up to this, seconds.
_MAX_ASKED_S = 3600.0
#: Lookups of one name that are not waited for any more; each has a thread.
_MAX_LOOKUPS = 4


@dataclass(frozen=True)
class Answer:
    """The result of one try."""

    #: None: there was no answer.
    status: int | None = None
    #: A few words without the address, for the log.
    why: str = ""
    #: How long the receiver asks to be left alone, seconds.
    retry_after_s: float = 0.0
    #: True: the request can never be sent, its address is invalid.
    is_hopeless: bool = False

    @property
    def is_delivered(self) -> bool:
        return self.status is not None and 200 <= self.status < 300

    @property
    def is_refused(self) -> bool:
        """It is not delivered, and sending it again would change nothing."""
        if self.status is None:
            return self.is_hopeless
        return not self.is_delivered and self.status not in _RETRIED and self.status < 500


#: Sends one callback within so many seconds, all told.
Sender = Callable[[Callback, float], Awaitable[Answer]]


class WebhookSender:
    """Sends over HTTP, in any number of tasks of one event loop. What is given up is not written later."""

    def __init__(self, *, verify_tls: bool = True, secrets: Sequence[bytes] = ()) -> None:
        """``secrets``: keys to sign with, as :func:`signing_key` returns them; receivers accept any of them."""
        self._verify_tls, self._secrets = verify_tls, tuple(secrets)
        self.lookups = Lookups()

    async def __call__(self, callback: Callback, timeout_s: float) -> Answer:
        """Never raises for what the address, the network or the receiver does."""
        try:
            url = _checked(callback.url)
        except ValueError:
            return Answer(why="its address cannot be used", is_hopeless=True)
        try:
            connections = self._connections(url)
        except ValueError:
            return Answer(why="the proxy in the agent's environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) is not usable")
        try:
            return await asyncio.wait_for(self._exchange(connections, url, callback), timeout_s)
        except asyncio.TimeoutError:
            return Answer(why=f"no answer within {timeout_s:.3g} s")
        except TooManyLookups as error:
            return Answer(why=str(error))
        except (OSError, ValueError, httpcore.NetworkError, httpcore.ProtocolError, httpcore.ProxyError) as error:
            if _is_tls(error):
                return Answer(why="its TLS certificate or connection is not valid")
            return Answer(why="the connection failed or broke off")

    def _connections(self, url: SplitResult) -> httpcore.AsyncConnectionPool:
        """Return connections to a URL, with the proxy and certificates of the environment as requests reads it.

        This machine's own ports have neither. Raises ValueError for an address that cannot be a proxy's.
        """
        proxy, verify = (None, None) if is_this_machine(url.hostname or "") else environment_of(url.geturl())
        context = tls(verify, is_checked=self._verify_tls)
        options: dict[str, Any] = {"ssl_context": context, "network_backend": self.lookups}
        if proxy is None:
            return httpcore.AsyncConnectionPool(**options)
        plain, login = split_login(proxy)
        found = urlsplit(plain)
        if found.scheme not in ("http", "https") or not found.hostname or not (found.port or 80) > 0:
            raise ValueError("not a proxy's address")
        headers = [(f"Proxy-{name}", value) for name, value in login.items()]
        secured = context if found.scheme == "https" else None
        return httpcore.AsyncHTTPProxy(_address(found), proxy_headers=headers, proxy_ssl_context=secured, **options)

    async def _exchange(
        self, connections: httpcore.AsyncConnectionPool, url: SplitResult, callback: Callback
    ) -> Answer:
        """Only the head of an answer is read: its body states nothing that is needed, may be endless, and may be
        other than its head announces."""
        options: dict[str, Any] = {"headers": list(self._headers(callback, url).items()), "content": callback.body}
        address = _address(url)
        if b":" in address.host and isinstance(connections, httpcore.AsyncHTTPProxy):
            # The proxy is asked for it as it is written here, but no certificate has the brackets.
            address.host, options["extensions"] = b"[%b]" % address.host, {"trace": _unbracketed}
        async with connections, connections.stream("POST", address, **options) as answer:
            status = answer.status
            asked = [value.decode("latin-1") for name, value in answer.headers if name.lower() == b"retry-after"]
        if 300 <= status < 400:
            return Answer(status, f"HTTP {status}: it redirects to another address; give that one")
        is_asked = bool(asked) and (status in _RETRIED or status >= 500)
        return Answer(status, f"HTTP {status}", (retry_after_s(asked[-1], _MAX_ASKED_S) or 0.0) if is_asked else 0.0)

    def _headers(self, callback: Callback, url: SplitResult) -> dict[str, str]:
        key = header_text(callback.key)
        headers = {
            "Host": url.netloc.rpartition("@")[2],
            "Content-Length": str(len(callback.body)),
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Connection": "close",
            "User-Agent": f"settee/{__version__}",
            "Idempotency-Key": key,
            **split_login(url.geturl())[1],
        }
        return headers | (signed(self._secrets, key, int(time.time()), callback.body) if self._secrets else {})


# --- connections ----------------------------------------------------------------------------------------------


class TooManyLookups(OSError):
    """Earlier lookups of the same name still go on."""


class Lookups(httpcore.AnyIOBackend):
    """Connects to hosts, whose names are each looked up in a thread: one that is given up is not waited for, as asyncio
    would wait for its own at the end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Those that go on, by name.
        self.running: Counter[str] = Counter()

    async def connect_tcp(self, host: str, port: int, *args: Any, **options: Any) -> httpcore.AsyncNetworkStream:
        """Connect to the first address of the host that answers. Raises OSError, httpcore.ConnectError."""
        failure: Exception = OSError("the host cannot be found")
        for address in await self._look_up(host, port):
            try:
                return await super().connect_tcp(address, port, *args, **options)
            except httpcore.ConnectError as error:
                failure = error
        raise failure

    async def _look_up(self, host: str, port: int) -> list[str]:
        with self._lock:
            if self.running[host] >= _MAX_LOOKUPS:
                raise TooManyLookups("earlier lookups of this host are still not answered")
            self.running[host] += 1
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[str]] = loop.create_future()

        def look_up() -> None:
            addresses: list[str] = []
            with contextlib.suppress(OSError, UnicodeError):
                addresses = [str(entry[4][0]) for entry in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
            self._forget(host)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(lambda: None if found.done() else found.set_result(addresses))

        try:
            threading.Thread(target=look_up, name="settee-lookup", daemon=True).start()
        except RuntimeError as error:  # "can't start new thread": the machine or its container has no more
            self._forget(host)
            raise TooManyLookups("no thread can be started for the lookup of its host") from error
        return await found

    def _forget(self, host: str) -> None:
        with self._lock:
            self.running -= Counter([host])


def _is_tls(error: BaseException | None) -> bool:
    return error is not None and (isinstance(error, ssl.SSLError) or _is_tls(error.__cause__ or error.__context__))


def _checked(url: str) -> SplitResult:
    """Return the parts of an address, quoted. Raises ValueError for what no request can be sent to."""
    from requests.utils import requote_uri

    parts = urlsplit(requote_uri(addressed(url)))
    (parts.hostname or "").encode("idna")  # as a connection does: a label may be empty or too long
    return parts


def _address(url: SplitResult) -> httpcore.URL:
    target = urlunsplit(("", "", url.path or "/", url.query, ""))
    return httpcore.URL(scheme=url.scheme, host=url.hostname or "", port=url.port, target=target)


async def _unbracketed(event: str, info: dict[str, Any]) -> None:
    if event.endswith("start_tls.started"):
        info["server_hostname"] = info["server_hostname"].strip("[]")


# --- headers --------------------------------------------------------------------------------------------------


def signing_key(secret: str) -> bytes:
    """Return the key of a ``whsec_…`` secret. Raises ValueError."""
    text = secret.strip()
    try:
        key = base64.b64decode(text.removeprefix("whsec_"), validate=True)
    except ValueError:
        key = b""
    if not text.startswith("whsec_") or not 24 <= len(key) <= 64:
        raise ValueError("must be whsec_ and the base64 of 24 to 64 bytes")
    return key


def signed(secrets: Sequence[bytes], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """Return the headers of Standard Webhooks: with several secrets one signature of each, for their rotation."""
    content = f"{message_id}.{timestamp}.".encode() + body
    digests = (hmac.new(secret, content, hashlib.sha256).digest() for secret in secrets)
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests),
    }


def header_text(text: str) -> str:
    """Return it as a header can carry it: what is not printable ASCII is percent-encoded (UTF-8), and % with it."""
    if text.isascii() and text.isprintable() and "%" not in text and text == text.strip():
        return text
    return quote(text, safe="!\"#$&'()*+,/:;<=>?@[\\]^`{|}", errors="surrogatepass")
