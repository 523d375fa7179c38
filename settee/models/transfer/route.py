"""From an address to answers: redirects by hand, credentials for their own host alone, fresh signatures.

What a redirect led to is asked directly from then on, until it refuses: then the way is gone once more from the
beginning, with a fresh address where the source gives one, and only a second refusal in a row counts.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Mapping
from urllib.parse import urljoin, urlsplit

from settee.errors import InvalidRequest, SetteeError
from settee.models.address import Address
from settee.models.transfer.limits import Limits
from settee.models.transfer.trouble import Broken, Refused, StartOver, failed, of_status
from settee.models.transfer.wire import Answer, Wire
from settee.net.addresses import NotPublic
from settee.net.retry import retry_after_s

_REDIRECTS = frozenset((301, 302, 303, 307, 308))
#: What an expired signature, a withdrawn session or a moved file looks like.
_STALE = frozenset((400, 401, 403, 404, 410))


class Route:
    """One file's address as it is now, for all threads of its download."""

    def __init__(self, address: Address, wire: Wire, limits: Limits) -> None:
        self._wire = wire
        self._limits = limits
        self._lock = threading.Lock()
        self._address = address
        #: Where redirects led, once a GET brought bytes from there.
        self._direct: str | None = None
        self._generation = 0
        #: Whether this generation brought any bytes: a fresh address that is refused at once will not get better.
        self._proven = True

    @property
    def address(self) -> Address:
        return self._address

    @property
    def where(self) -> str:
        return self._address.where

    def ask(self, method: str, headers: Mapping[str, str]) -> tuple[Answer, dict[str, str]]:
        """An answer with status 200 or 206, and the Hub's X-Linked-… headers met on the way.

        Raises Broken, Refused, Stopped, and InvalidRequest for an address that is not public.
        """
        while True:
            with self._lock:
                generation, address, direct = self._generation, self._address, self._direct
            try:
                answer, linked = self._follow(method, address, direct or address.url, headers)
            except Refused as refused:
                # A HEAD that is refused says nothing: signatures are made for one method.
                if method == "HEAD" or refused.status not in _STALE or not self._freshen(generation):
                    raise
                continue
            if method == "GET":
                with self._lock:
                    if generation == self._generation:
                        self._proven = True
                        self._direct = answer.url if answer.url != address.url else None
            return answer, linked

    def _follow(
        self, method: str, address: Address, url: str, headers: Mapping[str, str]
    ) -> tuple[Answer, dict[str, str]]:
        linked: dict[str, str] = {}
        for _ in range(self._limits.redirects + 1):
            own = _origin(url) == _origin(address.url)
            try:
                answer = self._wire.open(method, url, {**(address.headers if own else {}), **headers})
            except NotPublic as error:
                raise InvalidRequest(
                    f"{address.where} is not on the public Internet, and only that may be reached"
                ) from error
            linked.update(
                (name.lower(), value) for name, value in answer.headers.items() if name.lower().startswith("x-linked-")
            )
            if answer.status in (200, 206):
                return answer, linked
            try:
                if answer.status not in _REDIRECTS:
                    raise _refusal(answer)
                url = _redirected(url, answer.headers.get("Location"))
            finally:
                answer.done()
        raise Refused("it redirects without end", 0)

    def renew(self) -> Address:
        """The source's newest address, where it gives one. Raises Broken, and what the source raises."""
        with self._lock:
            if self._address.renew is not None:
                self._address = renewed(self._address)
            return self._address

    def _freshen(self, generation: int) -> bool:
        """Whether there is a newer way to try than the one of ``generation``."""
        with self._lock:
            if generation != self._generation:
                return True
            if not self._proven or (self._address.renew is None and self._direct is None):
                return False
            if self._address.renew is not None:
                fresh = renewed(self._address)
                if _is_another(self._address, fresh):
                    raise StartOver(failed(fresh.where, "the file changes on the server while it is downloaded"))
                self._address = fresh
            self._direct = None
            self._generation += 1
            self._proven = False
            return True


def renewed(address: Address) -> Address:
    """A fresh address of the same file. Raises Broken, or what the source raises."""
    assert address.renew is not None
    try:
        return address.renew()
    except SetteeError:
        raise
    except Exception as error:
        raise Broken("no fresh address of it could be had") from error


def _is_another(old: Address, new: Address) -> bool:
    """Whether two addresses of what was one file are of two by now."""
    if old.sha256 and new.sha256:
        return old.sha256.lower() != new.sha256.lower()
    return None not in (old.validator, new.validator) and old.validator != new.validator


def _origin(url: str) -> tuple[str, str, int]:
    """Scheme, host and port, by the very parser that urllib3 connects by. Raises Refused."""
    from urllib3.exceptions import LocationParseError
    from urllib3.util import parse_url

    try:
        parts = parse_url(url)
    except LocationParseError:
        raise Refused("its address is not valid", 0) from None
    if parts.scheme not in ("http", "https") or not parts.host:
        raise Refused("its address is not valid: it must be http(s)://host/…", 0)
    return parts.scheme, parts.host, parts.port or (443 if parts.scheme == "https" else 80)


def _redirected(url: str, location: str | None) -> str:
    if not location:
        raise Refused("it redirects without saying where to", 0)
    try:
        target = urljoin(url, location)
        scheme = urlsplit(target).scheme
    except ValueError:
        raise Refused("it redirects to an address that is not valid", 0) from None
    if scheme not in ("http", "https"):
        raise Refused("it redirects to something that is not an http(s) address", 0)
    return target


def _refusal(answer: Answer) -> Broken | Refused:
    code = re.search(rb"<Code>(\w{1,60})</Code>", answer.head_of_body())
    wait_s = retry_after_s(answer.headers.get("Retry-After"))
    return of_status(answer.status, code[1].decode() if code else "", wait_s)
