"""One POST of a callback, and what became of it. The outbox decides whether there is another.

Redirects are never followed: a POST that follows one may lose its body, and the address that it leads to was not
checked. With a secret each request is signed as Standard Webhooks describes (standardwebhooks.com): HMAC-SHA256 over
``id.timestamp.body``.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import hashlib
import hmac
import ssl
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol
from urllib.parse import SplitResult, urlsplit, urlunsplit

from settee import __version__
from settee.net.addresses import is_this_machine
from settee.net.retry import retry_after_s
from settee.service.callback_urls import addressed
from settee.service.connections import (
    Lookups,
    TooManyLookups,
    authorization,
    connected,
    host_header,
    request,
    trusted,
    unverified,
)

#: Answers below 500 after which the same request may well succeed later.
_RETRIED = frozenset((408, 429))
#: Retry-After is believed up to this, seconds.
_MAX_ASKED_S = 3600.0
SECRET_PREFIX = "whsec_"  # noqa: S105 - what a secret begins with
SECRET_RULE = "must be whsec_ and the base64 of 24 to 64 bytes"  # noqa: S105


@dataclass(frozen=True)
class Post:
    """A request: the same key and the same bytes, however often it is sent."""

    #: May hold credentials: neither shown nor logged.
    url: str = field(repr=False)
    #: The header Idempotency-Key.
    key: str
    #: JSON.
    body: bytes = field(repr=False)


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


class Sender(Protocol):
    """Sends one Post within ``timeout_s`` seconds, all told."""

    async def __call__(self, post: Post, timeout_s: float) -> Answer: ...


class WebhookSender:
    """Sends over HTTP, in any number of tasks of one event loop. What is given up is not written later."""

    def __init__(self, *, verify_tls: bool = True, secrets: Sequence[bytes] = ()) -> None:
        """``secrets``: keys to sign with, as :func:`signing_key` returns them; receivers accept any of them."""
        self._verify_tls, self._secrets = verify_tls, tuple(secrets)
        self.lookups = Lookups()

    async def __call__(self, post: Post, timeout_s: float) -> Answer:
        """Never raises for what the address, the network or the receiver does."""
        import h11

        try:
            url = _checked(post.url)
        except ValueError:
            return Answer(why="its address cannot be used", is_hopeless=True)
        try:
            proxy, trusted = _environment(post.url, self._verify_tls)
        except ValueError:
            return Answer(why="the proxy in the agent's environment (HTTP_PROXY, HTTPS_PROXY, ALL_PROXY) is not usable")
        try:
            return await asyncio.wait_for(self._exchange(url, proxy, trusted, post), timeout_s)
        except asyncio.TimeoutError:
            return Answer(why=f"no answer within {timeout_s:.3g} s")
        except ssl.SSLError:
            return Answer(why="its TLS certificate or connection is not valid")
        except TooManyLookups as error:
            return Answer(why=str(error))
        except (OSError, h11.ProtocolError, EOFError, ValueError):
            return Answer(why="the connection failed or broke off")

    async def _exchange(
        self, url: SplitResult, proxy: SplitResult | None, trusted: ssl.SSLContext, post: Post
    ) -> Answer:
        """Only the head of an answer is read: its body states nothing that is needed, may be endless, and may be
        other than its head announces (which aiohttp takes for no answer)."""
        reader, writer = await connected(url, proxy, trusted, self.lookups)
        try:
            headers = self._headers(post, url)
            target = urlunsplit(("", "", url.path or "/", url.query, ""))
            if proxy is not None and url.scheme == "http":
                target = urlunsplit((url.scheme, host_header(url), url.path or "/", url.query, ""))
                headers |= authorization(proxy, "Proxy-Authorization")
            status, asked = await request(reader, writer, target, headers, post.body)
        finally:
            writer.transport.abort()
        if 300 <= status < 400:
            return Answer(status, f"HTTP {status}: it redirects to another address; give that one")
        is_asked = status in _RETRIED or status >= 500
        asked_s = retry_after_s(asked, _MAX_ASKED_S) or 0.0
        return Answer(status, f"HTTP {status}", asked_s if is_asked else 0.0)

    def _headers(self, post: Post, url: SplitResult) -> dict[str, str]:
        key = header_text(post.key)
        return {
            "Host": host_header(url),
            "Content-Length": str(len(post.body)),
            "Content-Type": "application/json",
            "Accept": "application/json",
            "Connection": "close",
            "User-Agent": f"settee/{__version__}",
            "Idempotency-Key": key,
            # Those in the address, and no others: requests would look for some in ~/.netrc.
            **authorization(url, "Authorization"),
            **(signed(self._secrets, key, int(time.time()), post.body) if self._secrets else {}),
        }


def _checked(url: str) -> SplitResult:
    """Return the parts of an address, quoted. Raises ValueError for what no request can be sent to."""
    from requests.utils import requote_uri

    parts = urlsplit(requote_uri(addressed(url)))
    (parts.hostname or "").encode("idna")  # as a connection does: a label may be empty or too long
    return parts


def _environment(url: str, verify_tls: bool) -> tuple[SplitResult | None, ssl.SSLContext]:
    """Return the proxy for a URL, and what certificates are checked with, by the environment as requests reads it.

    This machine's own ports have no proxy. Raises ValueError for an address that cannot be a proxy's.
    """
    import requests
    from requests.utils import select_proxy

    with requests.Session() as session:
        session.trust_env = not is_this_machine(urlsplit(url).hostname or "")
        settings = session.merge_environment_settings(url, {}, True, verify_tls, None)
    verify, proxy = settings["verify"], select_proxy(url, settings["proxies"])
    context = trusted(None if verify is True else str(verify)) if verify else unverified()
    if not proxy:
        return None, context
    found = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
    if found.scheme not in ("http", "https") or not found.hostname or not (found.port or 80) > 0:
        raise ValueError("not a proxy's address")
    return found, context


# --- headers --------------------------------------------------------------------------------------------------


def signing_key(secret: str) -> bytes:
    """Return the key of a ``whsec_…`` secret. Raises ValueError."""
    try:
        key = base64.b64decode(secret.strip().removeprefix(SECRET_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not secret.strip().startswith(SECRET_PREFIX) or not 24 <= len(key) <= 64:
        raise ValueError(SECRET_RULE)
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
    return "".join(
        c if "!" <= c <= "~" and c != "%" else "".join(f"%{byte:02X}" for byte in c.encode(errors="surrogatepass"))
        for c in text
    )


__all__ = ["SECRET_RULE", "Answer", "Post", "Sender", "WebhookSender", "header_text", "signed", "signing_key"]
