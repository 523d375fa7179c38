"""Downloads of input files, several at a time, under a time limit that no server can stretch.

A caller's URL may point anywhere, so it is only fetched from public hosts, redirects included
(:mod:`settee.net.http`). Only an operator's own S3 endpoint is reached directly. URLs may carry signatures: errors
never show one.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING

from settee.base.errors import DownloadFailed, InvalidRequest, PayloadTooLarge
from settee.base.job import Limits
from settee.base.settings import MIB, Settings
from settee.base.text import shown
from settee.base.threads import Pool, Stopped
from settee.net.addresses import NotPublic
from settee.net.failures import Broken, Refused
from settee.net.http import Answer, Http, environment_of, origin, split_login
from settee.net.retry import Backoff, retried
from settee.s3.client import url_for
from settee.s3.error_table import S3Error
from settee.s3.target import bucket_problem, callers_target, workers_target

if TYPE_CHECKING:
    from settee.engine.request import Bucket

_THREADS = 4
_CHUNK = 256 * 1024
_CONNECT_S = 10.0
_READ_S = 30.0
_TRIES, _BACKOFF = 3, Backoff(0.5, 1.0)
MAX_REDIRECTS = 5
#: How long the end waits for threads that write.
_END_S = 5.0
#: How long a signed S3 URL lives: longer than any download that DOWNLOAD_TIMEOUT_S would sensibly allow.
_SIGNED_S = 6 * 3600

#: Writes a file by its name; returns its hex SHA-256.
Sink = Callable[[str, Iterable[bytes]], str]


@dataclass(frozen=True)
class Remote:
    """A file that is to be downloaded. ``where`` is the part of its address that may be shown."""

    name: str
    url: str = field(repr=False)
    where: str
    #: False for an address of the operator's own, and with RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS.
    public_only: bool
    #: The operator's own endpoint does not redirect, and what pretends to be it may lead anywhere.
    redirects: int = MAX_REDIRECTS
    #: False for an endpoint of the operator's own with BUCKET_VERIFY_TLS=false.
    verify_tls: bool = True

    def failed(self, why: str, *, retryable: bool = True) -> DownloadFailed:
        return DownloadFailed(
            f"the input file {shown(self.name)} cannot be downloaded from {self.where}: {why}", retryable=retryable
        )


def web(name: str, url: str, settings: Settings) -> Remote:
    """Return a caller's http(s) URL. Raises ValueError for what is not one."""
    try:
        _, host, _ = origin(split_login(url)[0])
    except (Refused, ValueError):
        host = ""
    if not host or re.search(r"[\x00-\x20\x7f]", url):
        raise ValueError("this is not a valid http(s) URL")
    return Remote(name, url, shown(host), public_only=not settings.runpod_allow_private_download_urls)


def s3(name: str, uri: str, settings: Settings, bucket: Bucket | None) -> Remote:
    """Return ``s3://bucket/key`` as a URL signed here, with the caller's credentials or else the worker's.

    The endpoint is never cut by the name in the address, which is a caller's: only by the bucket set beside it.
    Raises ValueError with what is wrong with the address, or what to set.
    """
    match = re.fullmatch(r"(?i:s3)://([^/]+)/(.+)", uri, re.DOTALL)
    if match is None:
        raise ValueError("an S3 address is s3://bucket/key")
    if problem := bucket_problem(match[1]):
        raise ValueError(f"the bucket of this S3 address {problem}")
    target = workers_target(settings) if bucket is None else callers_target(bucket, settings)
    if target is None:
        raise ValueError(
            "the worker has no S3 credentials: send s3Config with the job, or set BUCKET_ENDPOINT_URL, "
            "BUCKET_ACCESS_KEY_ID and BUCKET_SECRET_ACCESS_KEY on the worker"
        )
    from botocore.exceptions import BotoCoreError

    try:
        url = url_for(replace(target, bucket=match[1], expires_s=_SIGNED_S, public_url=None), match[2])
    except (BotoCoreError, S3Error, ValueError) as error:
        raise ValueError("this S3 address, or the endpoint that it belongs to, is not valid") from error
    is_trusted = target.own or settings.allow_private_s3config
    return Remote(
        name,
        url,
        shown(f"s3://{match[1]}/{match[2]}"),
        public_only=not (is_trusted or settings.runpod_allow_private_download_urls),
        redirects=0 if is_trusted else MAX_REDIRECTS,
        verify_tls=target.verify_tls,
    )


class Downloads:
    """Downloads, each in a thread. One that waits for a name server is left alone at the end, and writes nothing."""

    def __init__(self, sink: Sink, settings: Settings, limits: Limits) -> None:
        """``sink`` writes a file, from a thread of its own."""
        self._sink, self._limits, self._timeout_s = sink, limits, settings.download_timeout_s
        self._max_bytes = settings.max_file_bytes
        self._lock = threading.Condition()
        self._stopped = threading.Event()
        #: Until when each running download may take.
        self._until: dict[Remote, float] = {}
        #: By what they may reach.
        self._connections: dict[tuple[bool, str | None], Http] = {}
        #: How many threads write a file.
        self._writing = 0

    def run(self, remotes: Sequence[Remote], on_done: Callable[[Remote, str], None]) -> None:
        """Download all, up to four at once; ``on_done`` gets what ``sink`` returned for each, in this thread.

        The first failure ends them all: DownloadFailed, InvalidRequest for a URL that may not be fetched,
        PayloadTooLarge, JobTimeout, JobCanceled, or what ``sink`` raised. When this returns or raises, nothing is being
        written any more.
        """
        pool = Pool(_THREADS, self._check, name="settee-download")
        try:
            for remote in remotes:
                pool.submit(partial(self._download, remote), then=partial(on_done, remote))
            pool.settle()
        finally:
            self._stopped.set()
            with self._lock:
                for connections in self._connections.values():
                    connections.cut()
                    connections.close()
                self._lock.wait_for(lambda: not self._writing, _END_S)
            pool.close()

    def _check(self) -> None:
        """Raise DownloadFailed for a download that takes too long, and what the job's limits do."""
        self._limits.check()
        with self._lock:
            late = [remote for remote, until in self._until.items() if time.monotonic() >= until]
        if late:
            raise late[0].failed(f"it took longer than DOWNLOAD_TIMEOUT_S ({self._timeout_s:g} s)")

    def _download(self, remote: Remote) -> str:
        with self._lock:
            self._until[remote] = time.monotonic() + self._timeout_s
        try:
            return retried(partial(self._attempt, remote), _BACKOFF, tries=_TRIES, stop=self._stopped)
        finally:
            with self._lock:
                del self._until[remote]

    def _http_for(self, remote: Remote) -> Http:
        kind = remote.public_only, None if remote.verify_tls else remote.url
        with self._lock:
            self._go_on()
            if kind not in self._connections:
                self._connections[kind] = Http(
                    public_only=kind[0], unchecked=kind[1], connect_s=_CONNECT_S, read_s=_READ_S, connections=_THREADS
                )
            return self._connections[kind]

    def _attempt(self, remote: Remote) -> str:
        try:
            url, login = split_login(remote.url)
            if remote.public_only and environment_of(url)[0] is not None:
                raise Refused(
                    "the worker's environment sends it through a proxy, where private addresses cannot be ruled out; "
                    "unset the proxy, name the host in NO_PROXY, or set RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS=true",
                    0,
                )
            answer = self._http_for(remote).follow(url, {}, own=login, redirects=remote.redirects)
            try:
                return self._write(remote, answer)
            finally:
                answer.drop()
        except NotPublic as error:
            raise InvalidRequest(
                f"the URL of the input file {shown(remote.name)} is not allowed: "
                f"{remote.where} is not a public http(s) address"
            ) from error
        except (Broken, Refused) as error:
            raise remote.failed(error.reason, retryable=isinstance(error, Broken)) from error

    def _write(self, remote: Remote, answer: Answer) -> str:
        """Have the file made, now that there is an answer: a thread left waiting for one has nothing to clean up."""
        if answer.status != 200:
            raise Refused(f"HTTP {answer.status}", answer.status)
        if (_length(answer) or 0) > self._max_bytes:
            raise PayloadTooLarge(
                f"the input file {shown(remote.name)} is over MAX_FILE_MB ({self._max_bytes / MIB:g} MiB)"
            )
        with self._lock:
            self._go_on()
            self._writing += 1
        try:
            return self._sink(remote.name, self._body(answer))
        finally:
            with self._lock:
                self._writing -= 1
                self._lock.notify_all()

    def _body(self, answer: Answer) -> Iterator[bytes]:
        """Give the body as it arrives; :attr:`_sink` holds it to the size limit."""
        received, length = 0, _length(answer)
        for chunk in answer.chunks(_CHUNK):
            self._go_on()
            received += len(chunk)
            yield chunk
        self._go_on()
        if length is not None and received != length:  # urllib3 2 raises by itself
            raise Broken(f"the connection ended after {received} of {length} bytes")

    def _go_on(self) -> None:
        if self._stopped.is_set():
            raise Stopped


def _length(answer: Answer) -> int | None:
    """Return the Content-Length of an unencoded body; None when it is not given."""
    return answer.length if answer.headers.get("Content-Encoding", "identity") == "identity" else None
