"""Downloads of input files, several at a time, under a time limit that no server can stretch.

A caller's URL may point anywhere, so the SDK's ``safe_get`` refuses all that is not public, pins the address and
looks at every redirect again. Only an operator's own S3 endpoint is reached directly (:mod:`settee.addresses`). URLs
may carry signatures: errors never show one.
"""

from __future__ import annotations

import contextlib
import os
import re
import selectors
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from settee import __version__
from settee.addresses import Remote
from settee.base.text import shown
from settee.errors import (
    InvalidRequest,
    JobCanceled,
    JobTimeout,
    PayloadTooLarge,
    SetteeError,
)
from settee.job import Cancel
from settee.net.retry import Backoff, is_transient, retried
from settee.settings import MIB

_THREADS = 4
_CHUNK = 256 * 1024
_CONNECT_S = 10.0
_READ_S = 30.0
_TRIES, _BACKOFF = 3, Backoff(0.5, 1.0)
#: Bodies as they are: a compressed one would not have the length that its header says.
_HEADERS = {"User-Agent": f"settee/{__version__}", "Accept-Encoding": "identity"}

Sink = Callable[[str, Iterable[bytes]], Path]


class _Stopped(Exception):
    """The downloads were given up while this one ran."""


def download_all(
    remotes: Sequence[Remote],
    sink: Sink,
    *,
    cancel: Cancel,
    deadline: float,
    timeout_s: float,
    max_bytes: int,
    on_done: Callable[[Remote, Path], None],
) -> None:
    """Download all, up to four at once; ``sink(name, chunks)`` writes one, from a thread of its own.

    ``deadline`` (``time.monotonic``) is the job's, ``timeout_s`` each file's. ``on_done`` is called in this thread.
    The first failure ends them all: DownloadFailed, InvalidRequest for a URL that may not be fetched, PayloadTooLarge,
    JobTimeout, JobCanceled, or what ``sink`` raised. When this returns or raises, nothing is being written any more.
    """
    downloads = _Downloads(remotes, sink, timeout_s, max_bytes)
    try:
        downloads.start()
        done = 0
        while done < len(remotes):
            if cancel.is_set():
                raise JobCanceled()
            downloads.wait(cancel, deadline)
            for remote, outcome in downloads.take():
                if isinstance(outcome, BaseException):
                    raise outcome
                done += 1
                on_done(remote, outcome)
    finally:
        downloads.stop()


class _Downloads:
    """Threads that download, and the one that waits for them: it is woken by a pipe, as by the cancel token."""

    def __init__(self, remotes: Sequence[Remote], sink: Sink, timeout_s: float, max_bytes: int) -> None:
        self._todo = list(reversed(remotes))
        self._sink = sink
        self._timeout_s = timeout_s
        self._max_bytes = max_bytes
        self._lock = threading.Condition()
        self._stopped = threading.Event()
        self._outcomes: list[tuple[Remote, Path | BaseException]] = []
        #: Until when each running download may take.
        self._until: dict[Remote, float] = {}
        #: Responses whose bodies are being read.
        self._reading: list[Any] = []
        self._wake_read, self._wake_write = os.pipe()

    def start(self) -> None:
        for _ in range(min(_THREADS, len(self._todo))):
            # Daemons: one that waits for a server's first byte is left alone at the end, and writes nothing.
            threading.Thread(target=self._work, name="settee-download", daemon=True).start()

    def wait(self, cancel: Cancel, deadline: float) -> None:
        """Sleep until a download ends or the job is to stop. Raises JobTimeout or DownloadFailed when time is up."""
        with self._lock:
            first = min(self._until.items(), key=lambda item: item[1], default=None)
        now = time.monotonic()
        if now >= deadline:
            raise JobTimeout("the job ran into its time limit while its input files were downloaded")
        if first is not None and now >= first[1]:
            raise first[0].failed(f"it took longer than DOWNLOAD_TIMEOUT_S ({self._timeout_s:g} s)")
        # A download that begins only now ends no sooner than timeout_s from now.
        until = min(deadline, first[1] if first else now + self._timeout_s)
        with selectors.DefaultSelector() as selector:
            selector.register(self._wake_read, selectors.EVENT_READ)
            selector.register(cancel, selectors.EVENT_READ)
            for key, _ in selector.select(until - now):
                if key.fd == self._wake_read:
                    os.read(self._wake_read, 4096)

    def take(self) -> list[tuple[Remote, Path | BaseException]]:
        with self._lock:
            outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def stop(self) -> None:
        """Give up what still runs, and wait until none of it writes."""
        self._stopped.set()
        with self._lock:
            for response in self._reading:
                with contextlib.suppress(OSError, ValueError, RuntimeError, AttributeError):
                    response.raw.shutdown()  # wakes a thread that waits for bytes
            # Without shutdown (urllib3 before 2.3) a silent server holds its thread for one read's time limit.
            self._lock.wait_for(lambda: not self._reading, _READ_S + 5)
            os.close(self._wake_write)
            os.close(self._wake_read)
            self._wake_write = -1

    def _work(self) -> None:
        while True:
            with self._lock:
                if not self._todo or self._stopped.is_set():
                    return
                remote = self._todo.pop()
                self._until[remote] = time.monotonic() + self._timeout_s
            outcome: Path | BaseException
            try:
                outcome = self._download(remote)
            except BaseException as error:  # handed to the waiting thread, which raises it
                outcome = error
            with self._lock:
                del self._until[remote]
                self._outcomes.append((remote, outcome))
                if self._wake_write >= 0:
                    os.write(self._wake_write, b"x")

    def _download(self, remote: Remote) -> Path:
        return retried(partial(self._attempt, remote), _BACKOFF, tries=_TRIES, stop=self._stopped)

    def _attempt(self, remote: Remote) -> Path:
        import requests
        import urllib3

        try:
            # The file is only made once there is an answer: a thread left waiting for one has nothing to clean up.
            with _opened(remote) as response, self._registered(response):
                self._check_head(remote, response)
                return self._sink(remote.name, self._body(remote, response))
        except (requests.RequestException, urllib3.exceptions.HTTPError, OSError) as error:
            raise remote.failed(_reason(error)) from error

    @contextlib.contextmanager
    def _registered(self, response: Any) -> Iterator[None]:
        """Keep the response where :meth:`stop` finds it until its file is written, or wiped."""
        with self._lock:
            if self._stopped.is_set():
                raise _Stopped
            self._reading.append(response)
        try:
            yield
        finally:
            with self._lock:
                self._reading.remove(response)
                self._lock.notify_all()

    def _check_head(self, remote: Remote, response: Any) -> None:
        status = response.status_code
        if status != 200:
            # S3 says why in a word; its other words name keys and signatures.
            code = re.search(rb"<Code>(\w{1,60})</Code>", response.raw.read(4096))
            why = f"HTTP {status}" + (f" {code[1].decode()}" if code else "")
            raise remote.failed(why, retryable=is_transient(status))
        if (_length(response) or 0) > self._max_bytes:
            raise _too_large(remote, self._max_bytes)

    def _body(self, remote: Remote, response: Any) -> Iterator[bytes]:
        """The body as it arrives; :attr:`_sink` holds it to the size limit.

        Not by the SDK's iter_content_capped, which waits for whole chunks: of a server that sends a byte now and then,
        older urllib3 could not be torn away.
        """
        read = getattr(response.raw, "read1", response.raw.read)
        received = 0
        while chunk := read(_CHUNK, decode_content=True):
            if self._stopped.is_set():
                raise _Stopped
            received += len(chunk)
            yield chunk
        if self._stopped.is_set():
            raise _Stopped
        length = _length(response)
        if length is not None and received != length:  # urllib3 2 says so itself
            raise remote.failed(f"the connection ended after {received} of {length} bytes")


@contextlib.contextmanager
def _opened(remote: Remote) -> Iterator[Any]:
    response = _open(remote)
    try:
        yield response
    finally:
        response.close()
        # requests puts a connection whose answer was read to the end back into its pool, and since urllib3 2 a session
        # that is closed leaves that to the garbage collector: the socket would stay open for as long.
        pool = getattr(response.raw, "_pool", None)
        if pool is not None:
            pool.close()


def _open(remote: Remote) -> Any:
    """The response, its body unread."""
    import requests

    timeout: Any = (_CONNECT_S, _READ_S)
    if remote.trusted:
        return requests.get(
            remote.url,
            headers=_HEADERS,
            timeout=timeout,
            stream=True,
            allow_redirects=False,
            # None means the environment's certificates; False goes before them.
            verify=None if remote.verify_tls else False,
        )
    from runpod.serverless.utils.rp_ssrf import SSRFError, safe_get

    try:
        # The cap is ours (_check_head, _body): the SDK reports a breach as the same error as a private address.
        return safe_get(remote.url, timeout=timeout, headers=_HEADERS, max_bytes=1 << 62)
    except SSRFError as error:
        raise _refused(remote, str(error)) from error
    except requests.exceptions.InvalidHeader:  # a ValueError too, but the server's
        raise
    except ValueError as error:  # a port or a host name that is none; requests' InvalidURL
        raise InvalidRequest(f"the URL of the input file {shown(remote.name)} is not valid") from error


def _refused(remote: Remote, reason: str) -> SetteeError:
    """Ours for the SDK's refusal, whose text may hold the whole URL."""
    if reason.startswith(("could not resolve", "no addresses")):
        return remote.failed("its host name cannot be resolved")
    if "redirect" in reason and "blocked" not in reason:
        return remote.failed("it redirects without end or without an address", retryable=False)
    if "through proxy" in reason:
        return remote.failed(
            "the worker's environment sends it through a proxy, where private addresses cannot be ruled out; "
            "unset the proxy, name the host in NO_PROXY, or set RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS=true",
            retryable=False,
        )
    return InvalidRequest(
        f"the URL of the input file {shown(remote.name)} is not allowed: {remote.where} is not a public http(s) address"
    )


def _length(response: Any) -> int | None:
    """Content-Length of an unencoded body; None when it is not said."""
    text = response.headers.get("Content-Length", "")
    if not text.isdigit() or response.headers.get("Content-Encoding", "identity") != "identity":
        return None
    return int(text)


def _too_large(remote: Remote, max_bytes: int) -> PayloadTooLarge:
    return PayloadTooLarge(f"the input file {shown(remote.name)} is over MAX_FILE_MB ({max_bytes / MIB:g} MiB)")


def _reason(error: Exception) -> str:
    """The kind of failure in a few words; the exception's own text may hold the URL."""
    kinds = {
        "ConnectTimeout": "the connection timed out",
        "ConnectTimeoutError": "the connection timed out",
        "ReadTimeout": "the server fell silent",
        "ReadTimeoutError": "the server fell silent",
        "SSLError": "its TLS certificate or connection is not valid",
        "TooManyRedirects": "it redirects without end",
    }
    for kind in type(error).__mro__:
        if kind.__name__ in kinds:
            return kinds[kind.__name__]
    return "the connection failed or broke off"
