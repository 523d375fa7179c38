"""One try to fetch a file: its threads, the checks of the answers, the hashes, and the one thread that waits.

                 ┌─ stream ─┐
    run() waits ─┼─ stream ─┼─▶ part ──▶ follower ─▶ hashes
                 └─ stream ─┘
The first stream's first answer decides: 206, and the others begin; 200, and its one body is the whole file.
"""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from settee.base.errors import SetteeError
from settee.base.threads import Stopped
from settee.models.folder.hashing import hash_file
from settee.models.transfer.address import Address, Facts, wrong_hash, wrong_size
from settee.models.transfer.part import Head, Journal, Part, load
from settee.models.transfer.route import Route, probe, span_of, validator_of
from settee.models.transfer.scheduler import Lane, Ticket
from settee.models.transfer.stream import Ledger, Span, Stream
from settee.models.transfer.trouble import Limits, Retries, StartOver, changed, failed, of_disk
from settee.net.failures import Broken, Refused
from settee.net.http import Answer, Http

log = logging.getLogger(__name__)

_READ_BYTES = 512 * 1024
#: How much must be in place before the follower is worth waking.
_STEP_BYTES = 4 * 1024 * 1024

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Fetched:
    """A whole file."""

    size: int
    #: Hex; None where none was expected.
    sha256: str | None
    #: Hex, of 64 bits, for later checks.
    xxh3: str
    #: Its ETag, or that of the address.
    validator: str | None = None


@dataclass(frozen=True)
class Mode:
    """What an earlier try has shown."""

    #: Ranges do not work here.
    plain: bool = False
    #: The file changed: the source is asked for its newest address first.
    renew: bool = False


class Attempt:
    """Everything of it ends with :meth:`run`, but for threads that wait for a silent server: they write nothing."""

    def __init__(
        self, address: Address, known: Facts, part: Part, lane: Lane, limits: Limits, deadline: float, mode: Mode
    ) -> None:
        """``known`` takes precedence over the address's own facts."""
        self.part = part
        self.limits = limits
        self.plain = mode.plain
        self._renew = mode.renew
        self._known = known
        self._want = known.with_address(address)
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
        self._changed = threading.Condition()
        self._tickets: list[Ticket] = []
        self._failure: BaseException | None = None
        self._fetched: Fetched | None = None
        self._ended = False

    @property
    def ledger(self) -> Ledger:
        """Return the ranges. Exists before any stream runs."""
        assert self._ledger is not None
        return self._ledger

    def run(self, stop: threading.Event, on_progress: Progress) -> Fetched:
        """Fetch the file into the part, and sync it.

        Raises Stopped, StartOver, Broken (one body that broke off), DownloadFailed, IntegrityError for a size that
        cannot be, NoSpace, StagingError, InvalidRequest.
        """
        reported: tuple[int, int | None] | None = None
        self._spawn(self._lead)
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._failure or self._fetched, self.limits.tick_s)
                    failure, fetched = self._failure, self._fetched
                if failure is not None:
                    raise failure
                if self._ledger is not None and reported is None:
                    # A small file may be whole by now.
                    reported = (self._ledger.resumed, self._ledger.size)
                    on_progress(*reported)
                if self._ledger is not None and reported != (now := (self._ledger.total, self._ledger.size)):
                    on_progress(*now)
                    reported = now
                if fetched is not None:
                    return replace(fetched, validator=self.facts.validator)
                if stop.is_set():
                    raise Stopped
                if time.monotonic() > self._deadline:
                    raise failed(self.route.where, "it took longer than MODELS_TIMEOUT_S")
        finally:
            self._end()

    # --- for the streams ---------------------------------------------------------------------------------------

    def greet(self, answer: Answer, span: Span) -> int | None:
        """Check an answer's head; return how many bytes of the span its body has (None: until it ends).

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
                raise StartOver(changed(self.route.where))
            self._etag = self._etag or etag
            expected = self._of_range(answer, span) if answer.status == 206 else self._of_whole(answer, span)
            if not self._greeted:
                self._greeted = True
                self._begin()
            return expected

    def noted(self, span: Span, count: int) -> None:
        """Note so many more written bytes of the span. Raises StartOver when they are more than there can be."""
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
        with self._changed:
            if self._changed.wait_for(lambda: self._ended, seconds):
                raise Stopped

    # --- the threads -------------------------------------------------------------------------------------------

    def _lead(self) -> None:
        """Find out what the file is, then stream like the other threads."""
        if self._renew:
            self.facts = self._want = self._known.with_address(self.route.renew())
        if self._want.size is None or self._want.validator is None:
            self.facts = self._agreed(self._probed())
        # First of all: a server may state any size, and there is memory for every range.
        self.part.check_room(self.facts.size or 0)
        done = None if self.plain or self.facts.size is None else self._resumed(self.facts.size)
        if not self.facts.size:
            self.plain = True
        self._ledger = Ledger(None if self.plain else self.facts.size, self.limits.range_bytes, done)
        if self._ledger.is_whole:
            self._spawn(self._follow)
            return
        self._stream()

    def _probed(self) -> Facts:
        retries = self._retries()
        while True:
            try:
                return probe(self.route)
            except Broken as trouble:
                self.pause(retries.pause_s(trouble))

    def _stream(self) -> None:
        ticket = self._lane.ticket()
        with self._changed:
            if self._ended:
                raise Stopped
            self._tickets.append(ticket)
        Stream(self, ticket, self._retries()).run()

    def _follow(self) -> None:
        fetched = follow(self.part, self.ledger, with_sha256=self.facts.sha256 is not None)
        with self._changed:
            self._fetched = fetched
            self._changed.notify_all()

    def _begin(self) -> None:
        """The first answer is right: make room, write the journal, and start the others. In a thread that may write."""
        size = self.ledger.size
        if not self.ledger.total:
            # Older bytes are of no use, and may be more.
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
            with self._changed:
                self._failure = self._failure or error
                self._changed.notify_all()

    def _end(self) -> None:
        with self._changed:
            self._ended = True
            tickets = list(self._tickets)
            self._changed.notify_all()
        for ticket in tickets:
            ticket.cancel()
        if self._ledger is not None:
            self._ledger.close()
        self._http.cut()
        self.part.settle(self.limits.end_s)
        self._http.close()
        if self._journal is not None:
            self._journal.close()

    # --- what answers and journals state -------------------------------------------------------------------------

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
        return changed(self.route.where)

    def _agreed(self, found: Facts) -> Facts:
        """Return the known facts, completed by the server's. Raises IntegrityError for a contradiction."""
        want = self._want
        if want.size is not None and found.size is not None and found.size != want.size:
            raise wrong_size(self.route.where, want.size, found.size)
        if want.sha256 and found.sha256 and found.sha256 != want.sha256:
            raise wrong_hash(self.route.where, want.sha256, found.sha256)
        size = found.size if want.size is None else want.size
        return Facts(size, want.validator or found.validator, want.sha256 or found.sha256)

    def _resumed(self, size: int) -> list[int] | None:
        """Return the bytes in place of an earlier download of the very same file, by range."""
        saved = load(self.part.journal_path)
        if saved is None or self.part.size() != size:
            return None
        head, done, same_boot = saved
        facts = self.facts
        if head.range_bytes != self.limits.range_bytes or not (same_boot or facts.sha256):
            return None
        if not head.admits(self.route.where, facts.validator, facts.sha256, size):
            return None
        # Another server may give the same bytes another ETag.
        self._etag = head.etag if head.where == self.route.where else None
        log.info("%s goes on after %d of %d bytes", self.route.address.logged, sum(done), size)
        return done

    def _retries(self) -> Retries:
        return Retries(self.route.where, self.limits, self._deadline)


# --- hashes ------------------------------------------------------------------------------------------------


def follow(part: Part, ledger: Ledger, *, with_sha256: bool) -> Fetched:
    """Hash the bytes in order as they come, from the page cache, a resumed download's old ones too; sync the file.

    Raises Stopped when the ledger is closed, StagingError.
    """
    import xxhash

    fast, strong = xxhash.xxh3_64(), hashlib.sha256() if with_sha256 else None
    view, position = memoryview(bytearray(_READ_BYTES)), 0
    with part.reading():
        try:
            while position != ledger.size:
                in_place = ledger.wait_beyond(position, _STEP_BYTES)
                if in_place is None:
                    raise Stopped
                # In steps: the bytes of an earlier download may be many, and this one may be stopped.
                end = min(in_place, position + _STEP_BYTES)
                while position < end:
                    count = os.preadv(part.fd, [view[: end - position]], position)
                    if not count:
                        raise OSError(errno.EIO, os.strerror(errno.EIO))
                    fast.update(view[:count])
                    if strong is not None:
                        strong.update(view[:count])
                    position += count
            os.fsync(part.fd)
        except OSError as error:
            raise of_disk(error, part.target, None) from error
    return Fetched(position, strong.hexdigest() if strong is not None else None, fast.hexdigest())


def hashed(path: Path, stop: threading.Event, *, with_sha256: bool) -> Fetched:
    """Hash a whole file, and sync it. Raises OSError, Stopped."""
    found = hash_file(path, sha256=with_sha256, stop=stop)
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    return Fetched(found.size, found.sha256, found.xxh3)
