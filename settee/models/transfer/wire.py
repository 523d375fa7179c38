"""HTTP for one download: pooled connections, proxies, TLS, and bodies received straight into a buffer.

Every open socket is known, so that a download that is to stop can tear its threads away from silent servers. Where
the address is a caller's, each connection looks its host up itself, refuses what is not public, and connects to the
very address that it checked; a proxy, which would look the name up by itself, is not used then.
"""

from __future__ import annotations

import contextlib
import functools
import http.client
import os
import re
import socket
import ssl
import threading
from collections.abc import Iterator, Mapping
from typing import Any
from urllib.parse import urlsplit

import urllib3
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.exceptions import HTTPError

from settee import __version__
from settee.models.transfer.limits import Limits
from settee.models.transfer.trouble import Stopped, of_connection
from settee.net.addresses import connect_public

_USER_AGENT = f"settee/{__version__}"


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

    def receive(self, view: memoryview) -> int:
        with mapped():
            return self._body.receive(view)

    def head_of_body(self, limit: int = 4096) -> bytes:
        """The first bytes of an error's explanation; empty when it cannot be read."""
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


class Wire:
    """The connections of one download, used by its threads together."""

    def __init__(self, *, public_only: bool, limits: Limits, unchecked: str | None = None) -> None:
        """``unchecked``: the URL whose host's certificate is not checked; those of other hosts are."""
        self._public_only = public_only
        self._unchecked = None if unchecked is None else urlsplit(unchecked)[:2]
        self._limits = limits
        self._lock = threading.Lock()
        self._sockets: list[socket.socket] = []
        self._cut = False
        self._makers: dict[tuple[str | None, bool], urllib3.PoolManager] = {}
        self._by_host: dict[tuple[str, str], urllib3.PoolManager] = {}

    def open(self, method: str, url: str, headers: Mapping[str, str]) -> Answer:
        """Send one request and return the head of its answer, a redirect's too.

        Raises Broken, Refused, Stopped, NotPublic.
        """
        # Bodies as they are: a compressed one would have neither the length nor the bytes that are asked for.
        sent = {"User-Agent": _USER_AGENT, "Accept": "*/*", "Accept-Encoding": "identity", **headers}
        timeout = urllib3.Timeout(connect=self._limits.connect_s, read=self._limits.stall_s)
        with mapped():
            response = self._maker(url).urlopen(
                method, url, headers=sent, timeout=timeout, retries=False, redirect=False, preload_content=False
            )
        return Answer(url, response)

    def cut(self) -> None:
        """Shut every connection down, from another thread, for good: whoever waits for bytes sees their end."""
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
        """A connection was made."""
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
                proxy, verify = _environment(url)
                if self._public_only:
                    proxy = None
                kind = proxy, host == self._unchecked
                if kind not in self._makers:
                    self._makers[kind] = self._make(proxy, _unchecked_tls() if kind[1] else _tls(verify))
                self._by_host[host] = self._makers[kind]
            return self._by_host[host]

    def _make(self, proxy: str | None, tls: ssl.SSLContext) -> urllib3.PoolManager:
        options: dict[str, Any] = {"ssl_context": tls, "maxsize": self._limits.streams}
        if tls.verify_mode is ssl.CERT_NONE:
            # The operator knows; one warning for each request tells nothing new.
            urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
            options |= {"cert_reqs": "CERT_NONE", "assert_hostname": False}
        if proxy is None:
            maker = urllib3.PoolManager(**options)
        else:
            name, _, password = urlsplit(proxy).netloc.rpartition("@")[0].partition(":")
            secret = urllib3.util.make_headers(proxy_basic_auth=f"{name}:{password}") if name else None
            maker = urllib3.ProxyManager(proxy, proxy_headers=secret, **options)
        maker.pool_classes_by_scheme = _pools(self, self._public_only)
        return maker


def _pools(wire: Wire, public_only: bool) -> dict[str, Any]:
    """Pool classes whose connections are made known to ``wire``."""

    class Noted:
        sock: Any

        def connect(self) -> None:
            super().connect()  # type: ignore[misc]
            wire.note(self.sock)

        def _new_conn(self) -> socket.socket:
            connect = super()._new_conn  # type: ignore[misc]
            return connect_public(self, connect) if public_only else connect()

    class Http(Noted, HTTPConnection):
        response_class = Body

    class Https(Noted, HTTPSConnection):
        response_class = Body

    class HttpPool(urllib3.HTTPConnectionPool):
        ConnectionCls = Http

    class HttpsPool(urllib3.HTTPSConnectionPool):
        ConnectionCls = Https

    return {"http": HttpPool, "https": HttpsPool}


def _environment(url: str) -> tuple[str | None, str | None]:
    """The proxy for this URL and the file of certificates, by the variables that requests goes by."""
    import requests

    with requests.Session() as session:
        chosen = session.merge_environment_settings(url, {}, None, None, None)
        proxy = requests.utils.select_proxy(url, chosen["proxies"])
    verify = chosen["verify"]
    if proxy is not None and "://" not in proxy:
        proxy = f"http://{proxy}"
    return proxy, verify if isinstance(verify, str) else None


@functools.lru_cache(maxsize=4)
def _tls(verify: str | None) -> ssl.SSLContext:
    """Certificates of ``verify``, or the system's (SSL_CERT_FILE) with certifi's, which a slim image has too."""
    import certifi

    folder = verify if verify and os.path.isdir(verify) else None
    context = ssl.create_default_context(cafile=None if folder else verify, capath=folder)
    if verify is None:
        context.load_verify_locations(certifi.where())
    return context


def _unchecked_tls() -> ssl.SSLContext:
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


def number(text: str | None) -> int | None:
    """A count of bytes as servers write it; None for anything else, and for what no file has."""
    return int(text) if text and re.fullmatch(r"[0-9]{1,18}", text) else None


@contextlib.contextmanager
def mapped() -> Iterator[None]:
    """Failures of a connection as Broken or Refused."""
    try:
        yield
    except (HTTPError, http.client.HTTPException, OSError, ValueError) as error:
        raise of_connection(error) from error


__all__ = ["Answer", "Wire", "number"]
