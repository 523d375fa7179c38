"""Downloads of outputs: from S3's presigned addresses, or a ComfyUI's /view, into a part.

A download that breaks off is resumed when the server can (and the file is certainly still the same), else it starts
again. An address is a secret (S3 signs it): errors name its host only.
"""

from __future__ import annotations

import re
import threading
import time
from functools import cached_property
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from settee.client.client_errors import JobStopped, NetworkError
from settee.client.job_outputs import Output
from settee.client.saving.part_file import Damaged, Part, check
from settee.net.retry import Backoff

if TYPE_CHECKING:
    from settee.net.http import Answer, Http

#: Seconds for a connection, and of silence.
CONNECT_S, SILENT_S = 10.0, 30.0
#: Tries without a single byte gained between them.
MAX_TRIES = 6
BACKOFF = Backoff(first_s=0.5, longest_s=15.0)
_MAX_REDIRECTS = 5
_PIECE = 256 * 1024
_REFUSALS = {
    401: "it requires a key",
    403: "it refuses the address (HTTP 403): addresses of results expire",
    404: "the file does not exist (HTTP 404)",
    410: "the file does not exist any more (HTTP 410)",
}


class Fetcher:
    """Fetches one job's outputs; a context manager, for its connections.

    ``timeout_s`` is for each file. ``stop``, set from any thread, ends the current one soon.
    """

    def __init__(
        self, *, timeout_s: float = 3600.0, stop: threading.Event | None = None, silent_s: float = SILENT_S
    ) -> None:
        self._timeout_s, self._silent_s = timeout_s, silent_s
        self._stop = stop or threading.Event()

    @cached_property
    def _http(self) -> Http:
        from settee.net.http import Http

        return Http(public_only=False, connect_s=CONNECT_S, read_s=self._silent_s, connections=4, proxies_local=False)

    def __enter__(self) -> Fetcher:
        return self

    def __exit__(self, *_: object) -> None:
        if "_http" in self.__dict__:
            self._http.close()

    def fetch(self, output: Output, part: Part) -> None:
        """Fetch the output's file into the empty part, whole and checked.

        Raises NetworkError, Damaged for a file that twice differs from what the worker stated, JobStopped when
        ``stop`` is set, and OSError of the disk.
        """
        deadline = time.monotonic() + self._timeout_s
        self._whole(output, part, deadline)
        try:
            check(part, output)
        except Damaged:
            # Joined wrongly, or damaged on the way: again, from the front.
            part.start_over()
            self._whole(output, part, deadline)
            check(part, output)

    def _whole(self, output: Output, part: Part, deadline: float) -> None:
        """Try until the body has come to its end."""
        from settee.net.failures import Broken, Refused

        tries, host = 0, _host(output.data)
        while True:
            before = part.size
            try:
                return self._rest(output, part, deadline)
            except Refused as error:
                raise NetworkError(f"{host}: {_REFUSALS.get(error.status, error.reason)}") from error
            except Broken as error:
                tries = 1 if part.size > before else tries + 1
                pause_s = BACKOFF.pause_s(tries, error.wait_s)
                if tries >= MAX_TRIES or time.monotonic() + pause_s > deadline:
                    raise NetworkError(f"{host}: {error.reason}") from error
                self._stop.wait(pause_s)

    def _rest(self, output: Output, part: Part, deadline: float) -> None:
        """Fetch what is missing. Raises Broken, Refused, NetworkError, JobStopped."""
        from settee.net.failures import Broken, Refused

        # Bytes in place are kept where the server, or the hash, will show if they are of another file.
        if part.validator is None and output.sha256 is None:
            part.start_over()
        headers = {"Range": f"bytes={part.size}-"} if part.size else {}
        if part.size and part.validator is not None:
            headers["If-Range"] = part.validator
        self._check_wanted(output, deadline)
        try:
            answer = self._http.follow(output.data, headers, redirects=_MAX_REDIRECTS)
        except Refused as error:
            if error.status != 416 or not part.size:
                raise
            part.start_over()
            raise Broken("it has another file there than before") from error
        try:
            end = _end_of(part, answer)
            most = end if output.size is None else output.size
            for piece in answer.chunks(_PIECE):
                part.write(piece)
                if most is not None and part.size > most:
                    return  # what is too long already would only fill the disk
                self._check_wanted(output, deadline)
        finally:
            answer.done()
        if end is not None and part.size < end:
            raise Broken(f"the file breaks off after {part.size:,} of {end:,} bytes")

    def _check_wanted(self, output: Output, deadline: float) -> None:
        if self._stop.is_set():
            raise JobStopped("stopped before it was saved")
        if time.monotonic() > deadline:
            raise NetworkError(f"{_host(output.data)}: not done within {self._timeout_s:g} s")


def _end_of(part: Part, answer: Answer) -> int | None:
    """Return the size of the file once this answer has come whole; None when it is not stated. Raises Broken."""
    from settee.net.failures import Broken

    headers = answer.headers
    span = re.fullmatch(r"bytes (\d{1,18})-\d{1,18}/(?:\d{1,18}|\*)", headers.get("Content-Range", "").strip())
    if answer.status != 206:
        part.start_over()
    elif span is None or int(span[1]) != part.size:
        part.start_over()
        raise Broken("it sends another piece of the file than it was asked for")
    is_packed = headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")
    etag = headers.get("ETag", "")
    # Weak ones do not promise equal bytes, and bytes that are packed again need not be equal.
    part.validator = etag if etag.startswith('"') and not is_packed else None
    if is_packed or "Transfer-Encoding" in headers or answer.length is None:
        return None
    return part.size + answer.length


def _host(url: str) -> str:
    """Return the host for a message; a server named it, so only what a host's name can hold."""
    try:
        host = urlsplit(url).hostname or ""
    except ValueError:
        host = ""
    return host if re.fullmatch(r"[A-Za-z0-9_.:-]{1,253}", host) else "its server"
