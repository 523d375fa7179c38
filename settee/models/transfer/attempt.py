"""One try to fetch a file: its threads, the checks of the answers, the hashes, and the one thread that waits.

                 ┌─ stream ─┐
    run() waits ─┼─ stream ─┼─▶ part ──▶ follower ─▶ hashes
                 └─ stream ─┘
The first stream's first answer decides: 206, and the others begin; 200, and its one body is the whole file.
"""

from __future__ import annotations

import errno
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from settee.base.errors import SetteeError
from settee.base.threads import Call, Stopped
from settee.models.folder.checks import Hashes, Hashing
from settee.models.folder.place import of_disk
from settee.models.transfer.address import Address, wrong_size
from settee.models.transfer.part import Head, Journal, Part, load
from settee.models.transfer.route import Reason, Route, StartOver, changed, failed, probe, validator_of
from settee.models.transfer.scheduler import Lane, Ticket
from settee.models.transfer.stream import Ledger, Limits, Retries, Span, Stream
from settee.net.failures import Broken, Refused
from settee.net.http import Answer, Http

log = logging.getLogger(__name__)

_READ_BYTES = 512 * 1024
#: How much must be in place before the follower is worth waking.
_STEP_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True)
class Task:
    """One file that is to be downloaded. ``deadline`` is in ``time.monotonic()``."""

    address: Address
    part: Part
    lane: Lane
    deadline: float
    #: Called with (bytes in place, all or None).
    on_progress: Callable[[int, int | None], None]
    limits: Limits

    def retries(self) -> Retries:
        """Return a new count of failures in a row."""
        return Retries(self.address.where, self.limits, self.deadline)

    def check(self) -> None:
        """Raise Stopped, or DownloadFailed when the time is up."""
        if self.lane.stop.is_set():
            raise Stopped
        if time.monotonic() > self.deadline:
            raise failed(self.address.where, "it took longer than MODELS_TIMEOUT_S")


class Attempt:
    """Everything of it ends with :meth:`run`, but for threads that wait for a silent server: they write nothing."""

    def __init__(self, task: Task, *, plain: bool = False, renew: bool = False) -> None:
        """``plain``: ranges do not work here. ``renew``: the source is asked for its newest address first."""
        self.task = task
        self.part, self.limits = task.part, task.limits
        self.plain = plain
        self._renew = renew
        self._http = Http(
            public_only=task.address.public_only,
            connect_s=self.limits.connect_s,
            read_s=self.limits.stall_s,
            connections=self.limits.streams,
            unchecked=None if task.address.verify_tls else task.address.url,
        )
        self.route = Route(task.address, self._http)
        #: What is known of the file: by its source, and then also by its server.
        self._given = self.file = task.address
        #: The ranges. Nothing is known of them before the first question is answered.
        self.ledger, self._is_known = Ledger(None, self.limits.range_bytes), False
        self._journal: Journal | None = None
        self._etag: str | None = None
        self._greeting = threading.Lock()
        self._greeted = False
        self._tickets: list[Ticket] = []
        #: The threads, and the one that hashes; set when one of them ends.
        self._calls: list[Call[Any]] = []
        self._following: Call[Hashes] | None = None
        self._one_ended = threading.Event()
        self._ended = threading.Event()

    def run(self) -> Hashes:
        """Fetch the file into the part, and sync it.

        Raises Stopped, StartOver, Broken (one body that broke off), DownloadFailed, IntegrityError for a size that
        cannot be, NoSpace, StagingError, InvalidRequest.
        """
        reported: tuple[int, int | None] | None = None
        self._spawn(self._lead)
        try:
            while True:
                self._one_ended.wait(self.limits.tick_s)
                self._one_ended.clear()
                for call in tuple(self._calls):
                    if call.ended.is_set():
                        call.result()
                if self._is_known and reported is None:
                    # A small file may be whole by now.
                    reported = (self.ledger.resumed, self.ledger.size)
                    self.task.on_progress(*reported)
                if self._is_known and reported != (now := (self.ledger.total, self.ledger.size)):
                    self.task.on_progress(*now)
                    reported = now
                if self._following is not None and self._following.ended.is_set():
                    return self._following.result()
                self.task.check()
        except Refused as error:
            raise failed(self.file.where, error.reason, retryable=False, status=error.status or None) from error
        finally:
            self._end()

    # --- for the streams ---------------------------------------------------------------------------------------

    def greet(self, answer: Answer, span: Span) -> int | None:
        """Check an answer's head; return how many bytes of the span its body has (None: until it ends).

        Raises StartOver when it belongs to another file than the bytes in place, Refused for an encoded body.
        """
        if self._ended.is_set():
            # A thread that was left alone with a silent server; the part may be another attempt's by now.
            raise Stopped
        if answer.headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
            raise Refused("the server compresses it although it was asked not to", answer.status)
        with self._greeting:
            etag = validator_of(answer)
            if self._etag is not None and etag is not None and etag != self._etag:
                raise StartOver(changed(self.file.where))
            self._etag = self._etag or etag
            expected = self._of_range(answer, span) if answer.status == 206 else self._of_whole(answer, span)
            if not self._greeted:
                self._greeted = True
                self._begin()
            return expected

    def _of_range(self, answer: Answer, span: Span) -> int:
        found = answer.span
        if self.plain or span.end is None:
            raise Broken("it answers with a part where all was asked for")
        if found is None or found[0] != span.position or not found[0] <= found[1] < span.end:
            wrong = failed(self.file.where, "the server sends other bytes than those asked for", retryable=False)
            raise StartOver(wrong, Reason.RANGES)
        if found[2] is not None and found[2] != self.ledger.size:
            raise StartOver(self._size_differs(found[2]))
        return found[1] + 1 - found[0]

    def _of_whole(self, answer: Answer, span: Span) -> int | None:
        """All at once, asked for or not."""
        size = answer.length
        if self.file.size and size is not None and size != self.file.size:
            raise StartOver(self._size_differs(size))
        if not self.plain:
            if self._greeted or self.ledger.total or span.start:
                unsteady = failed(self.file.where, "the server serves ranges only now and then")
                raise StartOver(unsteady, Reason.RANGES)
            self.plain = True
        self.ledger.make_plain(size)
        return size

    def _size_differs(self, found: int) -> SetteeError:
        if self._given.size is not None:
            return wrong_size(self.file.where, self._given.size, found)
        return changed(self.file.where)

    def noted(self, span: Span, count: int) -> None:
        """Note so many more written bytes of the span. Raises StartOver when they are more than there can be."""
        self.ledger.advance(span, count)
        if self.file.size and span.end is None and span.done > self.file.size:
            raise StartOver(self._size_differs(span.done))
        if self._journal is not None:
            try:
                self._journal.note(span.index, span.done)
            except OSError as error:
                raise of_disk(error, self.part.target) from error

    def pause(self, seconds: float) -> None:
        """Wait, for as long as the download goes on. Raises Stopped."""
        if self._ended.wait(seconds):
            raise Stopped

    # --- the threads -------------------------------------------------------------------------------------------

    def _lead(self) -> None:
        """Find out what the file is, then stream like the other threads."""
        if self._renew:
            self._given = self.file = self.route.renew()
        retries = self.task.retries()
        while self.file.size is None or self.file.validator is None:
            try:
                self.file = probe(self.route)
                break
            except Broken as trouble:
                self.pause(retries.pause_s(trouble))
        # First of all: a server may state any size, and there is memory for every range.
        self.part.check_room(self.file.size or 0)
        done = self._resumed(self.file.size) if self.file.size and not self.plain else None
        self.plain = self.plain or not self.file.size
        self.ledger = Ledger(None if self.plain else self.file.size, self.limits.range_bytes, done)
        self._is_known = True
        if self.ledger.is_whole:
            self._follow()
        else:
            self._stream()

    def _resumed(self, size: int) -> list[int] | None:
        """Return the bytes in place of an earlier download of the very same file, by range."""
        saved = load(self.part.journal_path)
        if saved is None or os.fstat(self.part.fd).st_size != size:
            return None
        head, done, same_boot = saved
        if head.range_bytes != self.limits.range_bytes or not (same_boot or self.file.sha256):
            return None
        if not head.admits(self.file):
            return None
        # Another server may give the same bytes another ETag.
        self._etag = head.etag if head.where == self.file.where else None
        log.info("%s goes on after %d of %d bytes", self.route.address.logged, sum(done), size)
        return done

    def _stream(self) -> None:
        ticket = self.task.lane.ticket()
        self._tickets.append(ticket)
        if self._ended.is_set():  # perhaps after :meth:`_end` has looked for tickets
            raise Stopped
        Stream(self, ticket, self.task.retries()).run()

    def _begin(self) -> None:
        """The first answer is right: make room, write the journal, and start the others. In a thread that may write."""
        size, spans, file = self.ledger.size, self.ledger.spans, self.file
        if not self.ledger.total:
            # Older bytes are of no use, and may be more.
            self.part.reset()
        if size is not None:
            self.part.resize(size)
        if size and not self.plain:
            head = Head(self.file.where, file.validator, self._etag, file.sha256, size, self.limits.range_bytes)
            try:
                self._journal = Journal(self.part.journal_path, head, [span.done for span in spans])
            except OSError as error:
                raise of_disk(error, self.part.target) from error
            for _ in range(min(self.limits.streams, len(spans)) - 1):
                self._spawn(self._stream)
        self._follow()

    def _follow(self) -> None:
        self._following = self._spawn(lambda: follow(self.part, self.ledger, with_sha256=self.file.sha256 is not None))

    def _spawn(self, work: Callable[[], Any]) -> Call[Any]:
        """Do this in a thread. Its failure ends the download, in the thread that waits for it."""
        call = Call(work, name="settee-transfer")
        self._calls.append(call)
        call.when_ended(self._one_ended.set)
        return call

    def _end(self) -> None:
        self._ended.set()
        for ticket in tuple(self._tickets):
            ticket.cancel()
        self.ledger.close()
        self._http.cut()
        self.part.settle(self.limits.end_s)
        self._http.close()
        if self._journal is not None:
            self._journal.close()


def follow(part: Part, ledger: Ledger, *, with_sha256: bool) -> Hashes:
    """Hash the bytes in order as they come, from the page cache, a resumed download's old ones too; sync the file.

    Raises Stopped when the ledger is closed, StagingError.
    """
    hashing, view = Hashing(sha256=with_sha256), memoryview(bytearray(_READ_BYTES))
    with part.using(writes=False):
        try:
            while hashing.size != ledger.size:
                in_place = ledger.wait_beyond(hashing.size, _STEP_BYTES)
                if in_place is None:
                    raise Stopped
                # In steps: the bytes of an earlier download may be many, and this one may be stopped.
                end = min(in_place, hashing.size + _STEP_BYTES)
                while hashing.size < end:
                    count = os.preadv(part.fd, [view[: end - hashing.size]], hashing.size)
                    if not count:
                        raise OSError(errno.EIO, os.strerror(errno.EIO))
                    hashing.update(view[:count])
            os.fsync(part.fd)
        except OSError as error:
            raise of_disk(error, part.target) from error
    return hashing.result()
