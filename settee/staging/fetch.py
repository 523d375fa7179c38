"""Downloads of input files, several at a time, under a time limit that no server can stretch.

A caller's URL may point anywhere, so it is only fetched from public hosts, redirects included
(:mod:`settee.net.http`). Only an operator's own S3 endpoint is reached directly (:mod:`settee.staging.remote`). URLs
may carry signatures: errors never show one.
"""

from __future__ import annotations

import os
import selectors
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from pathlib import Path

from settee.base.errors import InvalidRequest, JobCanceled, JobTimeout, PayloadTooLarge
from settee.base.job import Cancel
from settee.base.settings import MIB
from settee.base.text import shown
from settee.base.threads import Stopped
from settee.net.addresses import NotPublic
from settee.net.failures import Broken, Refused
from settee.net.http import Answer, Http, environment_of, split_login
from settee.net.retry import Backoff, retried
from settee.staging.remote import Remote

_THREADS = 4
_CHUNK = 256 * 1024
_CONNECT_S = 10.0
_READ_S = 30.0
_TRIES, _BACKOFF = 3, Backoff(0.5, 1.0)
_MAX_REDIRECTS = 5
#: How long the end waits for threads that write.
_END_S = 5.0

Sink = Callable[[str, Iterable[bytes]], Path]


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
        self._connections: list[Http] = []
        #: How many threads write a file.
        self._writing = 0
        self._wake_read, self._wake_write = os.pipe()

    def start(self) -> None:
        for _ in range(min(_THREADS, len(self._todo))):
            # Daemons: one that waits for a name server is left alone at the end, and writes nothing.
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
            for connections in self._connections:
                connections.cut()
            self._lock.wait_for(lambda: not self._writing, _END_S)
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
                outcome = retried(partial(self._attempt, remote), _BACKOFF, tries=_TRIES, stop=self._stopped)
            except BaseException as error:  # handed to the waiting thread, which raises it
                outcome = error
            with self._lock:
                del self._until[remote]
                self._outcomes.append((remote, outcome))
                if self._wake_write >= 0:
                    os.write(self._wake_write, b"x")

    def _attempt(self, remote: Remote) -> Path:
        connections = Http(
            public_only=not (remote.trusted or remote.may_be_private),
            connect_s=_CONNECT_S,
            read_s=_READ_S,
            connections=1,
            unchecked=None if remote.verify_tls else remote.url,
        )
        with self._lock:
            if self._stopped.is_set():
                raise Stopped
            self._connections.append(connections)
        try:
            answer = _open(remote, connections)
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
        finally:
            connections.close()
            with self._lock:
                self._connections.remove(connections)

    def _write(self, remote: Remote, answer: Answer) -> Path:
        """Have the file made, now that there is an answer: a thread left waiting for one has nothing to clean up."""
        if answer.status != 200:
            raise Refused(f"HTTP {answer.status}", answer.status)
        if (_length(answer) or 0) > self._max_bytes:
            raise PayloadTooLarge(
                f"the input file {shown(remote.name)} is over MAX_FILE_MB ({self._max_bytes / MIB:g} MiB)"
            )
        with self._lock:
            if self._stopped.is_set():
                raise Stopped
            self._writing += 1
        try:
            return self._sink(remote.name, self._body(answer))
        finally:
            with self._lock:
                self._writing -= 1
                self._lock.notify_all()

    def _body(self, answer: Answer) -> Iterator[bytes]:
        """The body as it arrives; :attr:`_sink` holds it to the size limit."""
        received, length = 0, _length(answer)
        for chunk in answer.chunks(_CHUNK):
            if self._stopped.is_set():
                raise Stopped
            received += len(chunk)
            yield chunk
        if self._stopped.is_set():
            raise Stopped
        if length is not None and received != length:  # urllib3 2 raises by itself
            raise Broken(f"the connection ended after {received} of {length} bytes")


def _open(remote: Remote, connections: Http) -> Answer:
    """The answer, its body unread. Raises NotPublic, Broken, Refused, Stopped."""
    url, login = split_login(remote.url)
    if remote.trusted:
        # The operator's own endpoint does not redirect, and what pretends to be it may lead anywhere.
        return connections.follow(url, login, redirects=0)
    if not remote.may_be_private and environment_of(url)[0] is not None:
        raise Refused(
            "the worker's environment sends it through a proxy, where private addresses cannot be ruled out; "
            "unset the proxy, name the host in NO_PROXY, or set RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS=true",
            0,
        )
    return connections.follow(url, {}, own=login, redirects=_MAX_REDIRECTS)


def _length(answer: Answer) -> int | None:
    """Content-Length of an unencoded body; None when it is not given."""
    return answer.length if answer.headers.get("Content-Encoding", "identity") == "identity" else None
