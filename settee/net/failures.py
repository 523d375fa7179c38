"""Failures of requests, by what is to be done about them.

Broken      this request failed; another one may not
Refused     this URL will be refused again; a fresh one may not
"""

from __future__ import annotations

import contextlib
import http.client
import ssl
from collections.abc import Iterator

from urllib3 import exceptions as kinds


class Broken(Exception):
    """``wait_s``: how long the server asked to be left alone; None without such a wish.

    ``unsent``: the request was certainly not received.
    """

    def __init__(self, reason: str, *, wait_s: float | None = None, unsent: bool = False) -> None:
        super().__init__(reason)
        self.reason = reason
        self.wait_s = wait_s
        self.unsent = unsent


class Refused(Exception):
    """``status``: of HTTP; 0 when no answer came."""

    def __init__(self, reason: str, status: int) -> None:
        super().__init__(reason)
        self.reason = reason
        self.status = status


@contextlib.contextmanager
def mapped() -> Iterator[None]:
    """Raise failures of a connection as Broken or Refused: their own text may hold the URL."""
    try:
        yield
    except (kinds.HTTPError, http.client.HTTPException, OSError, ValueError) as error:
        raise of_connection(error) from error


def of_connection(error: BaseException) -> Broken | Refused:
    """Return the kind of failure."""
    chain: list[BaseException] = []
    while error not in chain:
        chain.append(error)
        inner = next((arg for arg in error.args if isinstance(arg, BaseException)), None)
        error = inner or error.__cause__ or error

    def has(*wanted: type[BaseException]) -> bool:
        return any(isinstance(link, wanted) for link in chain)

    if has(ssl.SSLCertVerificationError):
        return Refused(
            "its TLS certificate is not trusted: if the server is your own, name its CA's file in REQUESTS_CA_BUNDLE", 0
        )
    # A connection that is cut within TLS is just cut.
    cut = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError, TimeoutError)
    if any(isinstance(link, ssl.SSLError) and not isinstance(link, cut) for link in chain):
        return Refused("it speaks no TLS that this worker accepts: check the address (https or http, port)", 0)
    if has(kinds.LocationValueError):
        return Refused("its address is not valid", 0)
    if has(kinds.NameResolutionError):
        return Broken("its host name cannot be resolved", unsent=True)
    if has(kinds.ProxyError):
        return Broken("the proxy cannot be reached (HTTPS_PROXY, HTTP_PROXY)", unsent=True)
    # Before timeouts: urllib3 has it for one.
    if has(kinds.NewConnectionError, ConnectionRefusedError):
        return Broken("the server cannot be reached", unsent=True)
    if has(kinds.ConnectTimeoutError):
        return Broken("the connection took too long", unsent=True)
    if has(TimeoutError, kinds.TimeoutError):
        return Broken("the server fell silent")
    return Broken("the connection broke off")
