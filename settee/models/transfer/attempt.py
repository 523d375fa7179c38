"""One go at a file: its threads, the checks of what servers say, and the one that waits for them.

                 ┌─ stream ─┐
    run() waits ─┼─ stream ─┼─▶ part ──▶ follower ─▶ digests
                 └─ stream ─┘
The first stream's first answer decides: 206, and the others begin; 200, and its one body is the whole file.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable

from settee.base.threads import Stopped
from settee.errors import SetteeError
from settee.models.address import Address
from settee.models.transfer import journal
from settee.models.transfer.follower import Digests, follow
from settee.models.transfer.gate import Lane, Ticket
from settee.models.transfer.given import Given, How, wrong_hash, wrong_size
from settee.models.transfer.journal import Head, Journal
from settee.models.transfer.ledger import Ledger, Span
from settee.models.transfer.limits import Limits
from settee.models.transfer.part import Part
from settee.models.transfer.probe import Facts, probe, span_of, validator_of
from settee.models.transfer.route import Route
from settee.models.transfer.stream import Stream
from settee.models.transfer.trouble import Patience, StartOver, failed, of_disk
from settee.net.failures import Broken, Refused
from settee.net.http import Answer, Http

logger = logging.getLogger(__name__)

Progress = Callable[[int, int | None], None]


class Attempt:
    """Everything of it ends with :meth:`run`, but for threads that wait for a silent server: they write nothing."""

    def __init__(
        self, address: Address, given: Given, part: Part, lane: Lane, limits: Limits, deadline: float, how: How
    ) -> None:
        self.part = part
        self.limits = limits
        self.plain = how.plain
        self._renew = how.renew
        self._given = given
        self._want = given.with_address(address)
        self._lane = lane
        self._deadline = deadline
        unchecked = None if address.verify_tls else address.url
        self._http = Http(
            public_only=address.public_only,
            connect_s=limits.connect_s,
            read_s=limits.stall_s,
            connections=limits.streams,
            unchecked=unchecked,
        )
        self.route = Route(address, self._http, limits)
        self.facts = self._want
        self._ledger: Ledger | None = None
        self._journal: Journal | None = None
        self._etag: str | None = None
        self._greeting = threading.Lock()
        self._greeted = False
        self._news = threading.Condition()
        self._tickets: list[Ticket] = []
        self._failure: BaseException | None = None
        self._digests: Digests | None = None
        self._ended = False

    @property
    def ledger(self) -> Ledger:
        assert self._ledger is not None
        return self._ledger

    def run(self, stop: threading.Event, on_progress: Progress) -> Digests:
        """Fetch the file into the part, and sync it.

        Raises Stopped, StartOver, Broken (one body that broke off), DownloadFailed, IntegrityError for a size that
        cannot be, NoSpace, StagingError, InvalidRequest.
        """
        told: tuple[int, int | None] | None = None
        self._spawn(self._lead)
        try:
            while True:
                with self._news:
                    self._news.wait_for(lambda: self._failure or self._digests, self.limits.tick_s)
                    failure, digests = self._failure, self._digests
                if failure is not None:
                    raise failure
                if self._ledger is not None and told is None:
                    # A small file may be whole by now.
                    told = (self._ledger.resumed, self._ledger.size)
                    on_progress(*told)
                if self._ledger is not None and told != (now := (self._ledger.total, self._ledger.size)):
                    on_progress(*now)
                    told = now
                if digests is not None:
                    return digests
                if stop.is_set():
                    raise Stopped
                if time.monotonic() > self._deadline:
                    raise failed(self.route.where, "it took longer than MODELS_TIMEOUT_S")
        finally:
            self._end()

    def greet(self, answer: Answer, span: Span) -> int | None:
        """Check an answer's head; how many bytes of the span its body has (None: until it ends).

        Raises StartOver when it belongs to another file than the bytes in place, Refused for an encoded body.
        """
        if self._ended:
            # A thread that was left alone with a silent server; the part may be another attempt's by now.
            raise Stopped
        if answer.headers.get("Content-Encoding", "identity").lower() not in ("identity", ""):
            raise Refused("the server compresses it although it was asked not to", answer.status)
        with self._greeting:
            etag = validator_of(answer)
            if self._etag is not None and etag is not None and etag != self._etag:
                raise StartOver(failed(self.route.where, "the file changes on the server while it is downloaded"))
            self._etag = self._etag or etag
            expected = self._of_range(answer, span) if answer.status == 206 else self._of_whole(answer, span)
            if not self._greeted:
                self._greeted = True
                self._begin()
            return expected

    def noted(self, span: Span, count: int) -> None:
        """So many bytes more of the span are written. Raises StartOver when they are more than there can be."""
        self.ledger.advance(span, count)
        if self.facts.size and span.end is None and span.done > self.facts.size:
            raise StartOver(self._size_differs(span.done))
        if self._journal is not None:
            try:
                self._journal.note(span.index, span.done)
            except OSError as error:
                raise of_disk(error, self.part.target, None) from error

    def pause(self, seconds: float) -> None:
        """Wait, for as long as the download goes on. Raises Stopped."""
        with self._news:
            if self._news.wait_for(lambda: self._ended, seconds):
                raise Stopped

    def _lead(self) -> None:
        """The first thread: find out what the file is, then stream like the others."""
        patience = self._patience()
        if self._renew:
            self.facts = self._want = self._given.with_address(self.route.renew())
        while self._want.size is None or self._want.validator is None:
            try:
                found = probe(self.route)
            except Broken as trouble:
                self.pause(patience.after(trouble))
                continue
            self.facts = self._agreed(found)
            break
        # First of all: a server may name any size, and there is memory to be had for every range.
        self.part.check_room(self.facts.size or 0)
        done = None if self.plain or self.facts.size is None else self._resumed(self.facts.size)
        if not self.facts.size:
            self.plain = True
        self._ledger = Ledger(None if self.plain else self.facts.size, self.limits.range_bytes, done)
        if self._ledger.is_whole:
            self._spawn(self._follow)
            return
        self._stream()

    def _stream(self) -> None:
        ticket = self._lane.ticket()
        with self._news:
            if self._ended:
                raise Stopped
            self._tickets.append(ticket)
        Stream(self, ticket, self._patience()).run()

    def _follow(self) -> None:
        digests = follow(self.part, self.ledger, with_sha256=self.facts.sha256 is not None)
        with self._news:
            self._digests = digests
            self._news.notify_all()

    def _begin(self) -> None:
        """The first answer is right: make room, remember, and let the others come. In a thread that may write."""
        size = self.ledger.size
        if not self.ledger.total:
            # What lies there is of no use, and may be longer.
            self.part.reset()
        if size is not None:
            self.part.allocate(size)
        if size and not self.plain:
            where, facts = self.route.where, self.facts
            head = Head(where, facts.validator, self._etag, facts.sha256, size, self.limits.range_bytes)
            try:
                self._journal = Journal.create(self.part.journal_path, head, [s.done for s in self.ledger.spans])
            except OSError as error:
                raise of_disk(error, self.part.target, None) from error
            for _ in range(min(self.limits.streams, len(self.ledger.spans)) - 1):
                self._spawn(self._stream)
        self._spawn(self._follow)

    def _of_range(self, answer: Answer, span: Span) -> int:
        found = span_of(answer)
        if self.plain or span.end is None:
            raise Broken("it answers with a part where all was asked for")
        if found is None or found[0] != span.position or not found[0] <= found[1] < span.end:
            wrong = failed(self.route.where, "the server sends other bytes than those asked for", retryable=False)
            raise StartOver(wrong, plain=True)
        if found[2] is not None and found[2] != self.ledger.size:
            raise StartOver(self._size_differs(found[2]))
        return found[1] + 1 - found[0]

    def _of_whole(self, answer: Answer, span: Span) -> int | None:
        """All at once, asked for or not."""
        size = answer.length
        if self.facts.size and size is not None and size != self.facts.size:
            raise StartOver(self._size_differs(size))
        if not self.plain:
            if self._greeted or self.ledger.total or span.start:
                unsteady = failed(self.route.where, "the server serves ranges only now and then")
                raise StartOver(unsteady, plain=True)
            self.plain = True
        self.ledger.make_plain(size)
        return size

    def _size_differs(self, found: int) -> SetteeError:
        if self._want.size is not None:
            return wrong_size(self.route.where, self._want.size, found)
        return failed(self.route.where, "the file changes on the server while it is downloaded")

    def _agreed(self, found: Facts) -> Facts:
        """The server's word, where nothing better is known. Raises IntegrityError for a contradiction."""
        want = self._want
        if want.size is not None and found.size is not None and found.size != want.size:
            raise wrong_size(self.route.where, want.size, found.size)
        if want.sha256 and found.sha256 and found.sha256 != want.sha256:
            raise wrong_hash(self.route.where, want.sha256, found.sha256)
        size = found.size if want.size is None else want.size
        return Facts(size, want.validator or found.validator, want.sha256 or found.sha256)

    def _resumed(self, size: int) -> list[int] | None:
        """Bytes in place of an earlier download of the very same file, by range."""
        saved = journal.load(self.part.journal_path)
        if saved is None or self.part.size() != size:
            return None
        head, done, same_boot = saved
        facts = self.facts
        if head.range_bytes != self.limits.range_bytes or not (same_boot or facts.sha256):
            return None
        if not head.admits(self.route.where, facts.validator, facts.sha256, size):
            return None
        # From another server, the same bytes may go by another name.
        self._etag = head.etag if head.where == self.route.where else None
        logger.info("%s goes on after %d of %d bytes", self.route.address.logged, sum(done), size)
        return done

    def _patience(self) -> Patience:
        return Patience(self.route.where, self.limits, self._deadline)

    def _spawn(self, work: Callable[[], None]) -> None:
        threading.Thread(target=self._guarded, args=(work,), name="settee-transfer", daemon=True).start()

    def _guarded(self, work: Callable[[], None]) -> None:
        """A thread's first failure ends the download, in the thread that waits for it."""
        try:
            work()
        except BaseException as error:
            if isinstance(error, Refused):
                status = error.status or None
                error = failed(self.route.where, error.reason, retryable=False, status=status)
            with self._news:
                self._failure = self._failure or error
                self._news.notify_all()

    def _end(self) -> None:
        with self._news:
            self._ended = True
            tickets = list(self._tickets)
            self._news.notify_all()
        for ticket in tickets:
            ticket.cancel()
        if self._ledger is not None:
            self._ledger.close()
        self._http.cut()
        self.part.settle(self.limits.end_s)
        self._http.close()
        if self._journal is not None:
            self._journal.close()


__all__ = ["Attempt", "Progress"]
