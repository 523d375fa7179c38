"""From an address to answers: redirects by hand, credentials for their own host alone, fresh signatures.

What a redirect led to is asked directly from then on, until it refuses: then the way is gone once more from the
beginning, with a fresh address where the source gives one, and only a second refusal in a row counts.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping

from settee.errors import InvalidRequest, SetteeError
from settee.models.address import Address
from settee.models.transfer.limits import Limits
from settee.models.transfer.trouble import StartOver, advised, failed
from settee.net.addresses import NotPublic
from settee.net.failures import Broken, Refused
from settee.net.http import Answer, Http, origin

#: What an expired signature, a withdrawn session or a moved file looks like.
_STALE = frozenset((400, 401, 403, 404, 410))


class Route:
    """One file's address as it is now, for all threads of its download."""

    def __init__(self, address: Address, http: Http, limits: Limits) -> None:
        self._http = http
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

        def note(answer: Answer) -> None:
            named = ((name.lower(), value) for name, value in answer.headers.items())
            linked.update((name, value) for name, value in named if name.startswith("x-linked-"))

        # Of a redirect's target that is asked directly the address's own headers are none of its business.
        own = address.headers if origin(url) == origin(address.url) else {}
        try:
            answer = self._http.follow(
                url, headers, method=method, own=own, redirects=self._limits.redirects, on_hop=note
            )
        except NotPublic as error:
            raise InvalidRequest(
                f"{address.where} is not on the public Internet, and only that may be reached"
            ) from error
        except Refused as refused:
            raise advised(refused) from refused
        return answer, linked

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
