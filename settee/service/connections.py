"""Connections for one request each, in an event loop: looked up, through a proxy, over TLS, and ended with their task.

Nothing of a request is written once its task is canceled: a name lookup, which cannot be broken off, has a thread of
its own, which is not waited for.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import os
import socket
import ssl
import threading
from collections import Counter
from collections.abc import Mapping
from typing import Any
from urllib.parse import SplitResult, unquote

from settee.base.threads import Call

#: Lookups of one name that are not waited for any more; each has a thread.
_MAX_LOOKUPS = 4
#: Bytes of an answer's head.
_MAX_HEAD = 65_536
_CHUNK = 65_536

Address = tuple[socket.AddressFamily, tuple[Any, ...]]


class TooManyLookups(OSError):
    """Earlier lookups of the same name still go on."""


class Lookups:
    """Lookups of names, each in a thread: asyncio would wait for its own threads at the end."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        #: Those that go on, by name.
        self.running: Counter[str] = Counter()

    async def look_up(self, host: str, port: int) -> list[Address]:
        """Return the addresses of a host. Raises OSError."""
        with self._lock:
            if self.running[host] >= _MAX_LOOKUPS:
                raise TooManyLookups("earlier lookups of this host are still not answered")
            self.running[host] += 1
        loop = asyncio.get_running_loop()
        found: asyncio.Future[list[Address]] = loop.create_future()
        try:
            call = Call(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), name="settee-lookup")
        except RuntimeError as error:  # "can't start new thread": the machine or its container has no more
            self._forget(host)
            raise TooManyLookups("no thread can be started for the lookup of its host") from error

        def ended() -> None:
            addresses: list[Address] = []
            with contextlib.suppress(OSError, UnicodeError):
                addresses = [(entry[0], entry[4]) for entry in call.result()]
            self._forget(host)
            with contextlib.suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(_resolve, found, addresses)

        call.when_ended(ended)
        return await found

    def _forget(self, host: str) -> None:
        with self._lock:
            self.running[host] -= 1
            if not self.running[host]:
                del self.running[host]


def _resolve(found: asyncio.Future[list[Address]], addresses: list[Address]) -> None:
    if not found.done():  # else it is given up
        found.set_result(addresses)


async def connected(
    url: SplitResult, proxy: SplitResult | None, trusted: ssl.SSLContext, lookups: Lookups
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to the host of a URL, or to its proxy; for https the proxy tunnels. Raises OSError, ssl.SSLError."""
    first = proxy or url
    sock = await _socket(await lookups.look_up(first.hostname or "", port_of(first)))
    try:
        if proxy is not None and url.scheme == "https":
            await _tunnel(sock, url, proxy)
            first = url
        tls = {"ssl": trusted, "server_hostname": first.hostname} if first.scheme == "https" else {}
        return await asyncio.open_connection(sock=sock, **tls)  # type: ignore[arg-type]
    except BaseException:
        sock.close()
        raise


async def _socket(addresses: list[Address]) -> socket.socket:
    """Connect to the first address that answers."""
    failure = OSError("the host cannot be found")
    for family, address in addresses:
        sock = socket.socket(family, socket.SOCK_STREAM)
        sock.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(sock, address)
            return sock
        except OSError as error:
            sock.close()
            failure = error
        except BaseException:
            sock.close()
            raise
    raise failure


async def _tunnel(sock: socket.socket, url: SplitResult, proxy: SplitResult) -> None:
    """Have the proxy pass everything on to the URL's host. Raises OSError."""
    if proxy.scheme == "https":
        raise OSError("a proxy that is itself connected to over TLS cannot be tunneled through")
    loop, target = asyncio.get_running_loop(), f"{_bracketed(url.hostname or '')}:{port_of(url)}"
    headers = {"Host": target, **authorization(proxy, "Proxy-Authorization")}
    lines = [f"CONNECT {target} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
    await loop.sock_sendall(sock, "\r\n".join(lines).encode("latin-1"))
    head = b""
    # Byte by byte: what comes behind the head is the receiver's.
    while not head.endswith(b"\r\n\r\n"):
        byte = await loop.sock_recv(sock, 1)
        head += byte
        if not byte or len(head) > _MAX_HEAD:
            raise OSError("the proxy gave no answer")
    if head.split(b" ", 2)[1:2] != [b"200"]:
        raise OSError("the proxy refused to pass it on")


async def request(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    target: str,
    headers: Mapping[str, str],
    body: bytes,
) -> tuple[int, str | None]:
    """POST; return the answer's status and its Retry-After. Raises OSError, h11.ProtocolError."""
    import h11

    connection = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
    head = connection.send(h11.Request(method="POST", target=target, headers=list(headers.items())))
    writer.write((head or b"") + body)
    with contextlib.suppress(ConnectionError):  # some answer, and close, before they have read everything
        await writer.drain()
    while True:
        event = connection.next_event()
        if event is h11.NEED_DATA:
            connection.receive_data(await reader.read(_CHUNK))
        elif isinstance(event, h11.Response):
            asked = [value for name, value in event.headers if name == b"retry-after"]
            return event.status_code, asked[-1].decode("latin-1") if asked else None
        elif not isinstance(event, h11.InformationalResponse):
            raise OSError("the connection broke off")


# --- parts of a request ---------------------------------------------------------------------------------------


def port_of(url: SplitResult) -> int:
    return url.port or (443 if url.scheme == "https" else 80)


def host_header(url: SplitResult) -> str:
    host = _bracketed(url.hostname or "")
    return f"{host}:{url.port}" if url.port else host


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


def authorization(url: SplitResult, name: str) -> dict[str, str]:
    """Return the credentials in an address as a header of this name; none when there are none."""
    if url.username is None and url.password is None:
        return {}
    text = f"{unquote(url.username or '')}:{unquote(url.password or '')}"
    try:
        raw = text.encode("latin-1")
    except UnicodeEncodeError:
        raw = text.encode(errors="replace")
    return {name: f"Basic {base64.b64encode(raw).decode()}"}


@functools.lru_cache(maxsize=2)
def trusted(path: str | None) -> ssl.SSLContext:
    """Return a context with the authorities of this file or folder, else with those that requests brings."""
    import certifi

    if path and os.path.isdir(path):
        return ssl.create_default_context(capath=path)
    return ssl.create_default_context(cafile=path or certifi.where())


@functools.lru_cache(maxsize=1)
def unverified() -> ssl.SSLContext:
    """Return a context that accepts any certificate."""
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    return context


__all__ = [
    "Lookups",
    "TooManyLookups",
    "authorization",
    "connected",
    "host_header",
    "port_of",
    "request",
    "trusted",
    "unverified",
]
