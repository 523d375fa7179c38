"""Outputs that lie elsewhere: from S3's presigned addresses, or a ComfyUI's /view, into a part.

A download that breaks off goes on where it was when the server can (and the file is surely still the same), else from
the front. An address is a secret (S3 signs it): errors name its host only.
"""

from __future__ import annotations

import random
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urljoin, urlsplit

from settee.client.errors import JobStopped, NetworkError
from settee.client.results import Output
from settee.client.saving.part import Damaged, Part, check
from settee.net.addresses import is_this_machine
from settee.net.retry import Backoff, is_transient, retry_after_s

if TYPE_CHECKING:
    import requests

#: Seconds for a connection, and of silence.
CONNECT_S, SILENT_S = 10.0, 30.0
#: Tries without a single byte gained between them, and the pauses after those.
MOST_TRIES = 6
BACKOFF = Backoff(0.5, 15.0)
_MOST_REDIRECTS = 5
_PIECE = 256 * 1024


class _Trouble(Exception):
    """One try came to nothing or broke off, and another may not."""

    def __init__(self, what: str, retry_after_s: float | None = None) -> None:
        super().__init__(what)
        self.what = what
        self.retry_after_s = retry_after_s


@dataclass
class _Copy:
    """What is being fetched. ``validator``: what tells the server's file from another version of it."""

    url: str
    part: Part
    output: Output
    deadline: float
    validator: str | None = None

    @property
    def can_go_on(self) -> bool:
        """Whether the bytes in place may be kept: the server will say if they are of another file, or the hash will."""
        return self.part.size > 0 and (self.validator is not None or self.output.sha256 is not None)


class Fetcher:
    """Of one job's outputs; a context manager, for its connections.

    ``timeout_s`` is for each file. ``stop``, set from any thread, ends the current one soon.
    """

    def __init__(
        self,
        *,
        timeout_s: float = 3600.0,
        stop: threading.Event | None = None,
        silent_s: float = SILENT_S,
        clock: Callable[[], float] = time.monotonic,
        rand: Callable[[], float] = random.random,
    ) -> None:
        self._timeout_s, self._silent_s = timeout_s, silent_s
        self._stop = stop or threading.Event()
        self._clock, self._rand = clock, rand
        self._sessions: dict[bool, requests.Session] = {}

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        for session in self._sessions.values():
            session.close()

    def fetch(self, output: Output, part: Part) -> None:
        """The output's file into the empty part, whole and right.

        Raises NetworkError, Damaged for a file that is twice not what the worker said, JobStopped when ``stop`` is
        set, and OSError of the disk.
        """
        copy = _Copy(output.data, part, output, self._clock() + self._timeout_s)
        self._whole(copy)
        try:
            check(part, output)
        except Damaged:
            # Put together wrong, or spoilt by something between: once more, from the front.
            part.start_over()
            copy.validator = None
            self._whole(copy)
            check(part, output)

    def _whole(self, copy: _Copy) -> None:
        """Try until the body has come to its end."""
        tries = 0
        while True:
            if self._stop.is_set():
                raise _stopped()
            before = copy.part.size
            try:
                return self._once(copy)
            except _Trouble as trouble:
                if copy.part.size > before:
                    tries = 0
                tries += 1
                delay = BACKOFF.pause_s(tries, trouble.retry_after_s, rand=self._rand)
                if tries >= MOST_TRIES or self._clock() + delay > copy.deadline:
                    raise NetworkError(f"{_host(copy.url)}: {trouble.what}") from trouble.__cause__
                self._stop.wait(delay)

    def _once(self, copy: _Copy) -> None:
        import requests

        if not copy.can_go_on:
            copy.part.start_over()
        try:
            with self._opened(copy) as response:
                self._read(copy, response, _end_of(copy, response))
        except requests.exceptions.Timeout as error:
            raise _Trouble("it does not answer") from error
        except requests.exceptions.SSLError as error:
            if "CERTIFICATE_VERIFY_FAILED" in str(error):
                raise NetworkError(f"{_host(copy.url)}: its certificate is not trusted by this machine") from error
            raise _Trouble("the encrypted connection broke") from error
        except requests.exceptions.ConnectionError as error:
            raise _Trouble("it cannot be reached") from error
        except (requests.exceptions.RequestException, ValueError) as error:  # ValueError: of urllib3, for hosts
            raise NetworkError(f"{_host(copy.url)}: the address cannot be used") from error

    # --- the answer's head --------------------------------------------------------------------------------

    def _opened(self, copy: _Copy) -> requests.Response:
        """The answer that has the file, after redirects. Raises _Trouble, NetworkError, and what requests raises."""
        headers = {"Accept-Encoding": "identity", "User-Agent": "settee-client"}
        if copy.part.size:
            headers["Range"] = f"bytes={copy.part.size}-"
            if copy.validator is not None:
                headers["If-Range"] = copy.validator
        url = copy.url
        for _ in range(_MOST_REDIRECTS + 1):
            # Of every hop anew: the environment's proxy is not for all of them.
            response = self._session(url).get(
                url, headers=headers, timeout=(CONNECT_S, self._silent_s), stream=True, allow_redirects=False
            )
            if response.is_redirect:
                url = urljoin(url, response.headers["Location"])
                response.close()
                continue
            if response.status_code not in (200, 206):
                status, retry_after = response.status_code, response.headers.get("Retry-After")
                response.close()
                raise self._refused(copy, status, retry_after)
            return response
        raise NetworkError(f"{_host(copy.url)}: it redirects without end")

    def _refused(self, copy: _Copy, status: int, retry_after: str | None) -> Exception:
        if status == 416 and copy.part.size:
            copy.part.start_over()
            return _Trouble("it has another file there than before")
        if is_transient(status):
            return _Trouble(f"it answers with HTTP {status}", retry_after_s(retry_after))
        words = {
            401: "it wants a key",
            403: "it refuses the address (HTTP 403): addresses of results expire",
            404: "the file is not there (HTTP 404)",
            410: "the file is not there any more (HTTP 410)",
        }
        return NetworkError(f"{_host(copy.url)}: {words.get(status, f'it answers with HTTP {status}')}")

    # --- its body -----------------------------------------------------------------------------------------

    def _read(self, copy: _Copy, response: requests.Response, end: int | None) -> None:
        """Everything that comes, into the part. ``end``: how large it must be then."""
        import requests

        # read() would wait until it has as much as it was asked for, however slowly that comes.
        read: Callable[..., bytes] = getattr(response.raw, "read1", response.raw.read)
        most = end if copy.output.size is None else copy.output.size
        while True:
            try:
                piece = read(_PIECE, decode_content=True)
            except (requests.exceptions.BaseHTTPError, OSError) as error:  # type: ignore[attr-defined]  # not in stubs
                raise _Trouble("the connection broke") from error
            if not piece:
                break
            copy.part.write(piece)
            if most is not None and copy.part.size > most:
                # What is too long already would only fill the disk.
                return
            if self._stop.is_set():
                raise _stopped()
            if self._clock() > copy.deadline:
                raise NetworkError(f"{_host(copy.url)}: not done within {self._timeout_s:g} s")
        if end is not None and copy.part.size < end:
            raise _Trouble(f"the file breaks off after {copy.part.size:,} of {end:,} bytes")

    def _session(self, url: str) -> requests.Session:
        """For this address. Raises NetworkError for one that is none."""
        host = _hostname(url)
        if host is None:
            raise NetworkError("the result names an address that is none: http:// or https:// is needed")
        is_own = is_this_machine(host)
        if is_own not in self._sessions:
            import requests

            session = self._sessions[is_own] = requests.Session()
            # Or requests would look into ~/.netrc, and S3 takes no second signature.
            session.auth = _unsigned
            # The environment's proxy knows nothing of this machine's own ports.
            session.trust_env = not is_own
        return self._sessions[is_own]


def _unsigned(request: Any) -> Any:
    return request


def _end_of(copy: _Copy, response: requests.Response) -> int | None:
    """How large the file is when this answer has come whole; None when that is not told. Raises _Trouble."""
    part, headers = copy.part, response.headers
    if response.status_code == 206:
        span = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(?:\d{1,18}|\*)", headers.get("Content-Range", "").strip())
        if span is None or int(span[1]) != part.size:
            part.start_over()
            raise _Trouble("it sends another piece of the file than it was asked for")
    elif part.size:
        part.start_over()
    encoded = headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")
    etag = headers.get("ETag", "")
    # Weak ones are no promise about bytes, and bytes that are packed anew need not be the same ones.
    copy.validator = etag if etag.startswith('"') and not encoded else None
    length = headers.get("Content-Length", "")
    if encoded or "Transfer-Encoding" in headers or not re.fullmatch(r"\d{1,18}", length):
        return None
    return part.size + int(length)


def _hostname(url: str) -> str | None:
    try:
        parts = urlsplit(url)
        return parts.hostname if parts.scheme in ("http", "https") else None
    except ValueError:
        return None


def _host(url: str) -> str:
    """For a person; a server's word, so only what a host's name can hold."""
    host = _hostname(url) or ""
    return host if re.fullmatch(r"[A-Za-z0-9_.:-]{1,253}", host) else "its server"


def _stopped() -> JobStopped:
    return JobStopped("stopped before it was saved")
