"""HTTP for what is downloaded: pooled connections, proxies, TLS, redirects, and bodies received straight into a buffer.

Every open socket is known, so that what is to stop can tear its threads away from silent servers. Where the address is
a caller's, each connection looks its host up itself, refuses what is not public, and connects to the very address that
it checked; a proxy, which would look the name up by itself, is not used then.

Failures are those of :mod:`settee.net.failures`; NotPublic for a host that is not on the public Internet, Stopped once
the connections were cut.
"""

from __future__ import annotations

import base64
import contextlib
import functools
import http.client
import io
import os
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Mapping
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

import urllib3
from urllib3.exceptions import LocationParseError

from settee import __version__
from settee.base.threads import Stopped
from settee.net.addresses import connect_public, is_this_machine, pool_classes
from settee.net.failures import Broken, Refused, mapped
from settee.net.retry import is_transient, retry_after_s

MAX_REDIRECTS = 10
_USER_AGENT = f"settee/{__version__}"
_REDIRECTS = frozenset((301, 302, 303, 307, 308))
#: S3's words for what passes.
_LATER = ("SlowDown", "InternalError", "RequestTimeout", "ServiceUnavailable")


class Body(http.client.HTTPResponse):
    """A response whose body can be received as it comes, without a copy."""

    def receive(self, view: memoryview) -> int:
        """Put what has arrived into ``view``; wait only for the first byte. 0 at the end."""
        if self.fp is None or not len(view):
            return 0
        if self.chunked or self.length is None:
            data = self.read1(len(view))
            view[: len(data)] = data
            return len(data)
        count = self.fp.readinto1(view[: self.length])
        self.length -= count
        if not self.length:
            # Has http.client see that the body ended, which lets the connection be used again.
            self.readinto(bytearray(1))
        return count


class Answer:
    """The head of a response; its body is received by :meth:`receive` until 0 or torn off by :meth:`drop`."""

    def __init__(self, url: str, response: urllib3.BaseHTTPResponse) -> None:
        self.url = url
        self.status = response.status
        self.headers: Mapping[str, str] = response.headers
        self._response = response
        # requests relies on this attribute as well.
        self._body: Body = response._original_response  # type: ignore[attr-defined]

    @property
    def length(self) -> int | None:
        return number(self.headers.get("Content-Length"))

    @property
    def span(self) -> tuple[int, int, int | None] | None:
        """First byte, last byte and whole size by Content-Range; None when it is missing or unreadable."""
        text = self.headers.get("Content-Range", "").strip()
        found = re.fullmatch(r"bytes\s+(\d{1,18})-(\d{1,18})/(\d{1,18}|\*)", text, re.IGNORECASE | re.ASCII)
        return found and (int(found[1]), int(found[2]), number(found[3]))

    def receive(self, view: memoryview) -> int:
        with mapped():
            return self._body.receive(view)

    def chunks(self, size: int) -> Iterator[bytes]:
        """Give the body as it arrives, decoded, in pieces of at most ``size`` bytes."""
        # read() would wait for a whole piece: of a server that sends a byte now and then, none could be torn away.
        read = getattr(self._response, "read1", self._response.read)
        with mapped():
            while chunk := read(size, decode_content=True):
                yield chunk

    def head_of_body(self, limit: int = 4096) -> bytes:
        """Return the first bytes of an error's explanation; empty when it cannot be read."""
        try:
            return self._body.read1(limit)
        except (OSError, http.client.HTTPException, ValueError):
            return b""

    def done(self) -> None:
        """Keep the connection for the next request when the body was read to its end, else close it."""
        if self._body.isclosed():
            self._response.release_conn()
        else:
            self.drop()

    def drop(self) -> None:
        with contextlib.suppress(OSError):
            self._response.close()


class Http:
    """The connections of one download, used by its threads together."""

    def __init__(
        self,
        *,
        public_only: bool,
        connect_s: float,
        read_s: float,
        connections: int,
        unchecked: str | None = None,
        proxies_local: bool = True,
    ) -> None:
        """``unchecked``: the URL whose host's certificate is not checked; those of other hosts are.

        ``proxies_local``: also ask the environment's proxy for this machine's own ports, unless NO_PROXY lists them.
        """
        self._public_only, self._proxies_local = public_only, proxies_local
        self._unchecked = None if unchecked is None else urlsplit(unchecked)[:2]
        self._timeout = urllib3.Timeout(connect=connect_s, read=read_s)
        self._connections = connections
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._cut = False
        self._makers: dict[tuple[str | None, bool], urllib3.PoolManager] = {}
        self._by_host: dict[tuple[str, str], urllib3.PoolManager] = {}

    def open(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        *,
        content: bytes | None = None,
        timeout: tuple[float, float] | None = None,
    ) -> Answer:
        """Send one request and return the head of its answer, a redirect's too.

        ``timeout``: seconds for the connection and of silence, for this request. Raises Broken, Refused, Stopped,
        NotPublic.
        """
        # Bodies as they are: a compressed one would have neither the length nor the bytes that are asked for.
        sent = {"User-Agent": _USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity", **headers}
        limits = self._timeout if timeout is None else urllib3.Timeout(connect=timeout[0], read=timeout[1])
        body = None
        if content:
            # As a file: all of a bytes object would have to go out within one timeout, however large it is.
            body, sent["Content-Length"] = io.BytesIO(content), str(len(content))
        with mapped():
            response = self._maker(url).urlopen(
                method,
                url,
                body=body,
                headers=sent,
                timeout=limits,
                retries=False,
                redirect=False,
                preload_content=False,
            )
        return Answer(url, response)

    def follow(
        self,
        url: str,
        headers: Mapping[str, str],
        *,
        method: str = "GET",
        own: Mapping[str, str] | None = None,
        redirects: int = MAX_REDIRECTS,
        on_hop: Callable[[Answer], object] = lambda answer: None,
    ) -> Answer:
        """Return the answer with the file (200 or 206), after redirects. ``on_hop`` gets every head on the way.

        The headers ``own`` (an Authorization, say) go to the URL's own host alone. Raises as :meth:`open` does, and
        Broken or Refused for every other status.
        """
        home = origin(url)
        for _ in range(redirects + 1):
            answer = self.open(method, url, {**((own or {}) if origin(url) == home else {}), **headers})
            on_hop(answer)
            if answer.status in (200, 206):
                return answer
            try:
                if answer.status not in _REDIRECTS:
                    raise refusal(answer)
                url = _redirected(url, answer.headers.get("Location"))
            finally:
                answer.done()
        raise Refused("it redirects without end", 0)

    def cut(self) -> None:
        """Shut every connection down, from another thread, for good: threads that wait for bytes see their end."""
        with self._lock:
            self._cut = True
            sockets, self._sockets = self._sockets, []
        for sock in sockets:
            with contextlib.suppress(OSError, TypeError):
                # Not SSLSocket's own, which forgets its state under the thread that is reading.
                socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def close(self) -> None:
        """Close what is idle in the pools."""
        for maker in list(self._makers.values()):
            maker.clear()

    def note(self, sock: Any) -> None:
        """Keep a connection that was made, so that it can be cut."""
        with self._lock:
            self._sockets = [known for known in self._sockets if known.fileno() >= 0]
            if not self._cut:
                self._sockets.append(sock)
                return
        sock.close()
        raise Stopped

    def _maker(self, url: str) -> urllib3.PoolManager:
        host = urlsplit(url)[:2]
        with self._lock:
            if host not in self._by_host:
                proxy, verify = environment_of(url)
                if self._public_only or (not self._proxies_local and is_this_machine(urlsplit(url).hostname or "")):
                    proxy = None
                kind = proxy, host == self._unchecked
                if kind not in self._makers:
                    self._makers[kind] = self._make(proxy, tls(verify, is_checked=not kind[1]))
                self._by_host[host] = self._makers[kind]
            return self._by_host[host]

    def _make(self, proxy: str | None, context: ssl.SSLContext) -> urllib3.PoolManager:
        options: dict[str, Any] = {"ssl_context": context, "maxsize": self._connections}
        if context.verify_mode is ssl.CERT_NONE:
            # The operator knows; one warning for each request tells nothing new.
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
            options |= {"cert_reqs": "CERT_NONE", "assert_hostname": False}
        if proxy is None:
            maker = urllib3.PoolManager(**options)
        else:
            plain, login = split_login(proxy)
            secret = {f"Proxy-{name}": value for name, value in login.items()}
            maker = urllib3.ProxyManager(plain, proxy_headers=secret, **options)
        maker.pool_classes_by_scheme = _pools(self, self._public_only)
        return maker


def _pools(owner: Http, public_only: bool) -> dict[str, Any]:
    """Return pool classes whose connections are made known to ``owner``."""

    class Noted:
        sock: Any
        response_class = Body

        def connect(self) -> None:
            super().connect()  # type: ignore[misc]
            owner.note(self.sock)

        def _new_conn(self) -> socket.socket:
            connect = super()._new_conn  # type: ignore[misc]
            return connect_public(self, connect) if public_only else connect()

    return pool_classes(Noted, urllib3.HTTPConnectionPool, urllib3.HTTPSConnectionPool)


def environment_of(url: str) -> tuple[str | None, str | None]:
    """Return the proxy for this URL and the file of certificates, by the variables that requests goes by."""
    import requests

    with requests.Session() as session:
        chosen = session.merge_environment_settings(url, {}, None, None, None)
        proxy = requests.utils.select_proxy(url, chosen["proxies"])
    verify = chosen["verify"]
    if proxy is not None and "://" not in proxy:
        proxy = f"http://{proxy}"
    return proxy, verify if isinstance(verify, str) else None


@functools.lru_cache(maxsize=4)
def tls(verify: str | None, *, is_checked: bool = True) -> ssl.SSLContext:
    """Certificates of ``verify``, or the system's (SSL_CERT_FILE) with certifi's, which a slim image has too."""
    import certifi

    verify = verify if is_checked else None  # a file that is not needed may be missing
    folder = verify if verify and os.path.isdir(verify) else None
    context = ssl.create_default_context(cafile=None if folder else verify, capath=folder)
    if verify is None:
        context.load_verify_locations(certifi.where())
    if not is_checked:
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


def number(text: str | None) -> int | None:
    """Return a count of bytes as servers write it; None for anything else, and for what no file has."""
    return int(text) if text and re.fullmatch(r"[0-9]{1,18}", text) else None


def split_login(url: str) -> tuple[str, dict[str, str]]:
    """Return the URL without user name, password and fragment, and the header that they become (RFC 7617)."""
    parts = urlsplit(url)
    login, _, netloc = parts.netloc.rpartition("@")
    plain = parts._replace(netloc=netloc, fragment="").geturl()
    if not login:
        return plain, {}
    user, _, password = login.partition(":")
    secret = f"{unquote(user)}:{unquote(password)}".encode()
    return plain, {"Authorization": f"Basic {base64.b64encode(secret).decode('ascii')}"}


def origin(url: str) -> tuple[str, str, int]:
    """Return scheme, host and port, by the very parser that urllib3 connects by. Raises Refused."""
    try:
        parts = urllib3.util.parse_url(url)
    except LocationParseError:
        raise Refused("its address is not valid", 0) from None
    if parts.scheme not in ("http", "https") or not parts.host:
        raise Refused("its address is not valid: it must be http(s)://host/…", 0)
    return parts.scheme, parts.host, parts.port or (443 if parts.scheme == "https" else 80)


def _redirected(url: str, location: str | None) -> str:
    if not location:
        raise Refused("it redirects without stating where to", 0)
    try:
        target = urljoin(url, location)
        scheme = urlsplit(target).scheme
    except ValueError:
        raise Refused("it redirects to an address that is not valid", 0) from None
    if scheme not in ("http", "https"):
        raise Refused("it redirects to something that is not an http(s) address", 0)
    return target


def refusal(answer: Answer) -> Broken | Refused:
    """Return what an answer without the file means. S3 names its reason in a word; its other words name keys."""
    found = re.search(rb"<Code>(\w{1,60})</Code>", answer.head_of_body())
    code = found[1].decode() if found else ""
    reason = f"HTTP {answer.status}{' ' + code if code else ''}"
    if is_transient(answer.status) or answer.status == 409 or code in _LATER:
        wait_s = retry_after_s(answer.headers.get("Retry-After"))
        return Broken(f"the server answers {reason}", wait_s=wait_s)
    return Refused(reason, answer.status)
