"""From an address to answers: redirects, credentials for their own host alone, fresh signatures.

The target of a redirect is asked directly from then on, until it refuses: then the redirects are followed again from
the beginning, with a fresh address where the source gives one, and only a second refusal in a row counts.

Failures, by what is to be done about each: Broken and Refused (settee.net.failures) end a request, StartOver begins
the download again, once for each reason.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping
from dataclasses import replace
from enum import Enum

from settee.base.errors import DownloadFailed, InvalidRequest, SetteeError
from settee.models.transfer.address import Address
from settee.net.addresses import NotPublic
from settee.net.failures import Broken, Refused
from settee.net.http import Answer, Http, number, origin

#: The answers for an expired signature, a withdrawn session or a moved file.
_STALE = frozenset((400, 401, 403, 404, 410))
_ADVICE = {
    401: "it wants credentials: give a token that may read it",
    403: "it is forbidden: check the token and the expiry of a signed address",
    404: "no such file: check its name and revision",
    407: "the proxy wants credentials: put them into HTTPS_PROXY",
    410: "the file is gone: give another address",
    416: "it has fewer bytes than it stated",
    451: "it is withheld for legal reasons",
}


class Reason(Enum):
    """Why a download begins again."""

    #: The file changed: the source is asked for its newest address.
    CHANGED = "changed"
    #: The server's ranges are wrong: all is asked for in one body.
    RANGES = "ranges"
    #: All bytes came, and they are not the file.
    CORRUPT = "corrupt"


class StartOver(Exception):
    """``verdict`` is raised when it was begun again for this reason before, or when this is final."""

    def __init__(self, verdict: SetteeError, reason: Reason = Reason.CHANGED, *, is_final: bool = False) -> None:
        super().__init__(verdict.message)
        self.verdict = verdict
        self.reason = reason
        self.is_final = is_final


def failed(where: str, reason: str, *, retryable: bool = True, status: int | None = None) -> DownloadFailed:
    """Return the error of a download. It has ``details["status"]`` when a status of HTTP decided it."""
    details = {} if status is None else {"status": status}
    return DownloadFailed(f"{where} cannot be downloaded: {reason}", details=details, retryable=retryable)


def changed(where: str) -> DownloadFailed:
    """Return the error for a file that becomes another one."""
    return failed(where, "the file changes on the server while it is downloaded")


def advised(refused: Refused) -> Refused:
    """Return the refusal with advice."""
    if not refused.status:
        return refused
    advice = _ADVICE.get(refused.status, "the server does not serve it")
    return Refused(f"{advice} ({refused.reason})", refused.status)


class Route:
    """One file's address as it is now, for all threads of its download."""

    def __init__(self, address: Address, http: Http) -> None:
        self._http = http
        self._lock = threading.Lock()
        self.address = address
        #: The target of redirects, once a GET brought bytes from there.
        self._direct: str | None = None
        self._generation = 0
        #: This generation brought bytes. A fresh address that is refused at once would be refused again.
        self._proven = True

    def ask(
        self, method: str, headers: Mapping[str, str], on_hop: Callable[[Answer], object] = lambda answer: None
    ) -> Answer:
        """Return an answer with status 200 or 206. ``on_hop`` gets its head, and those of the redirects before it.

        Raises Broken, Refused, Stopped, and InvalidRequest for an address that is not public.
        """
        while True:
            with self._lock:
                generation, address, direct = self._generation, self.address, self._direct
            url = direct or address.url
            try:
                # A redirect's target that is asked directly gets none of the address's own headers.
                own = address.headers if origin(url) == origin(address.url) else {}
                answer = self._http.follow(url, headers, method=method, own=own, on_hop=on_hop)
            except NotPublic as error:
                raise InvalidRequest(
                    f"{address.where} is not on the public Internet, and only that may be reached"
                ) from error
            except Refused as refused:
                # A refused HEAD means nothing: signatures are made for one method.
                if method == "HEAD" or refused.status not in _STALE or not self._freshen(generation):
                    raise advised(refused) from refused
                continue
            if method == "GET":
                with self._lock:
                    if generation == self._generation:
                        self._proven = True
                        self._direct = answer.url if answer.url != address.url else None
            return answer

    def renew(self) -> Address:
        """Return the source's newest address, where it gives one. Raises Broken, and what the source raises."""
        with self._lock:
            self.address = _renewed(self.address)
            return self.address

    def _freshen(self, generation: int) -> bool:
        """Return True if there is a newer address to try than that of ``generation``."""
        with self._lock:
            if generation != self._generation:
                return True
            if not self._proven or (self.address.renew is None and self._direct is None):
                return False
            fresh = _renewed(self.address)
            if _is_another(self.address, fresh):
                raise StartOver(changed(fresh.where))
            self.address, self._direct, self._proven = fresh, None, False
            self._generation += 1
            return True


def _renewed(address: Address) -> Address:
    """Return a fresh address of the same file, where its source gives one."""
    try:
        return address if address.renew is None else address.renew()
    except SetteeError:
        raise
    except Exception as error:
        raise Broken("no fresh address of it could be had") from error


def _is_another(old: Address, new: Address) -> bool:
    """Return True if two addresses of what was one file are of two by now."""
    if old.sha256 and new.sha256:
        return old.sha256 != new.sha256
    return None not in (old.validator, new.validator) and old.validator != new.validator


# --- what an answer's head states ----------------------------------------------------------------------------


def probe(route: Route) -> Address:
    """Return the route's address with what its server states of the file, where that was not known.

    Asks with HEAD, or where that is refused (S3's signatures are for one method) for the first byte. Raises what
    :meth:`Route.ask` does, and IntegrityError if the server has a file of another size or hash.
    """
    linked: dict[str, str] = {}

    def note(answer: Answer) -> None:
        named = ((name.lower(), value) for name, value in answer.headers.items())
        linked.update((name, value) for name, value in named if name.startswith("x-linked-"))

    try:
        answer = route.ask("HEAD", {}, note)
        answer.done()
        # Servers without support for HEAD send 0, which is not a size.
        size = answer.length or None
    except Refused:
        try:
            answer = route.ask("GET", {"Range": "bytes=0-0"}, note)
        except Refused as refused:
            if refused.status == 416:  # an empty file
                return route.address
            raise
        span = answer.span
        size = (span[2] if span else None) if answer.status == 206 else answer.length
        answer.drop()
    linked_size = number(linked.get("x-linked-size"))
    # The Hub's ETag of an LFS file is its sha256, that of any other a git hash of 40 digits.
    etag = linked.get("x-linked-etag", "").removeprefix("W/").strip('"')
    known = route.address
    stated = replace(
        known,
        size=size if linked_size is None else linked_size,
        validator=known.validator or etag or validator_of(answer),
        sha256=etag.lower() if re.fullmatch(r"[0-9a-fA-F]{64}", etag) else None,
    )
    return stated.held_to(known.size, known.sha256)


def validator_of(answer: Answer) -> str | None:
    """Return the mark of a file's state: its ETag, else its date of last change."""
    etag = answer.headers.get("ETag", "").removeprefix("W/").strip()
    return etag or answer.headers.get("Last-Modified") or None
