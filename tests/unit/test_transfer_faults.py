"""Downloads from a server that cuts, lies, waits and changes its mind."""

from __future__ import annotations

import email.utils
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import xxhash

from settee.base.errors import DownloadFailed, IntegrityError
from settee.models.folder.checks import Hashes
from settee.models.transfer.address import Address
from tests.support.file_server import FileServer
from tests.support.http_double import Ask, Reply
from tests.support.transferring import HASTY, KIB, SMALL, fetch, left, noise, sha256

DATA = noise(2_500_000)
SHA = sha256(DATA)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(DATA).running() as running:
        yield running


def once(change: Callable[[Ask, Reply], None], *, method: str = "GET") -> Callable[[Ask, Reply], None]:
    """The rule for the first request of its kind only."""
    used: list[int] = []
    lock = threading.Lock()

    def rule(ask: Ask, reply: Reply) -> None:
        with lock:
            first = ask.method == method and not used
            if first:
                used.append(1)
        if first:
            change(ask, reply)

    return rule


def assert_whole(fetched: Hashes, target: Path, data: bytes = DATA) -> None:
    assert target.read_bytes() == data
    assert fetched.size == len(data)
    assert fetched.xxh3 == xxhash.xxh3_64_hexdigest(data)
    assert left(target.parent) == [target.name]


class TestPlain:
    def test_ranges_over_kept_connections(self, server: FileServer, tmp_path: Path) -> None:
        told: list[tuple[int, int | None]] = []
        fetched = fetch(server.url, tmp_path / "m", on_progress=lambda *now: told.append(now))
        assert_whole(fetched, tmp_path / "m")
        assert fetched.sha256 is None
        assert [ask.method for ask in server.asked].count("HEAD") == 1
        assert len(server.gets) == 10
        assert len({ask.peer for ask in server.gets}) <= SMALL.streams
        assert server.sent == len(DATA)
        assert told[-1] == (len(DATA), len(DATA))
        assert told == sorted(told)

    def test_nothing_is_asked_twice_of_an_address_that_knows(self, server: FileServer, tmp_path: Path) -> None:
        known = {"size": len(DATA), "validator": "commit/path", "sha256": SHA}
        fetched = fetch(server.url, tmp_path / "m", known=known)
        assert_whole(fetched, tmp_path / "m")
        assert fetched.sha256 == SHA
        assert {ask.method for ask in server.asked} == {"GET"}

    def test_replaces_what_was_there(self, server: FileServer, tmp_path: Path) -> None:
        (tmp_path / "m").symlink_to(tmp_path / "nowhere")
        assert_whole(fetch(server.url, tmp_path / "m"), tmp_path / "m")
        assert not (tmp_path / "m").is_symlink()

    @pytest.mark.parametrize("size", [1, 256 * KIB, 256 * KIB + 1])
    def test_sizes_at_the_edge(self, server: FileServer, tmp_path: Path, size: int) -> None:
        server.data = DATA[:size]
        assert_whole(fetch(server.url, tmp_path / "m"), tmp_path / "m", DATA[:size])

    @pytest.mark.parametrize("known", [{}, {"size": 0, "validator": "v"}])
    def test_an_empty_file(self, server: FileServer, tmp_path: Path, known: dict[str, Any]) -> None:
        server.data = b""
        with pytest.raises(IntegrityError, match="the model is empty"):
            fetch(server.url, tmp_path / "m", known=known)
        assert left(tmp_path) == []

    @pytest.mark.parametrize("status", [403, 405, 501])
    def test_a_head_that_is_refused(self, server: FileServer, tmp_path: Path, status: int) -> None:
        server.head_status = status
        assert_whole(fetch(server.url, tmp_path / "m", sha256=SHA), tmp_path / "m")
        assert server.gets[0].span == (0, 0)

    def test_no_ranges(self, server: FileServer, tmp_path: Path) -> None:
        server.ranges = False
        assert_whole(fetch(server.url, tmp_path / "m", sha256=SHA), tmp_path / "m")
        assert len(server.gets) == 1

    @pytest.mark.parametrize("known", [{}, {"size": len(DATA), "validator": "v"}])
    def test_chunked_without_a_length(self, server: FileServer, tmp_path: Path, known: dict[str, Any]) -> None:
        def chunked(ask: Ask, reply: Reply) -> None:
            reply.chunked, reply.status, reply.body = True, 200, memoryview(DATA)
            reply.headers.clear()

        server.rule = chunked
        assert_whole(fetch(server.url, tmp_path / "m", known=known), tmp_path / "m")

    def test_until_the_connection_ends(self, server: FileServer, tmp_path: Path) -> None:
        def endless(ask: Ask, reply: Reply) -> None:
            reply.status, reply.body = 200, memoryview(DATA)
            reply.headers = {"Connection": "close", "Content-Length": "none"}

        server.rule = endless
        assert_whole(fetch(server.url, tmp_path / "m"), tmp_path / "m")

    def test_an_encoded_body_is_refused(self, server: FileServer, tmp_path: Path) -> None:
        server.rule = lambda ask, reply: reply.headers.update({"Content-Encoding": "gzip"})
        with pytest.raises(DownloadFailed, match="compresses") as caught:
            fetch(server.url, tmp_path / "m")
        assert not caught.value.retryable
        assert all(ask.headers["Accept-Encoding"] == "identity" for ask in server.asked)


class TestBroken:
    @pytest.mark.parametrize("tenth", range(10))
    def test_cut_at_every_tenth(self, server: FileServer, tmp_path: Path, tenth: int) -> None:
        at = len(DATA) * tenth // 10
        cut: list[int] = []

        def rule(ask: Ask, reply: Reply) -> None:
            if ask.span and ask.span[0] <= at <= ask.span[1] and not cut:
                cut.append(at)
                reply.cut_after = at - ask.span[0]

        server.rule = rule
        assert_whole(fetch(server.url, tmp_path / "m", sha256=SHA), tmp_path / "m")
        assert cut
        # What came before the cut did not come again.
        assert server.sent == len(DATA)

    @pytest.mark.parametrize("tenth", range(1, 10))
    def test_one_body_cut_at_every_tenth(self, server: FileServer, tmp_path: Path, tenth: int) -> None:
        server.ranges = False
        server.rule = once(lambda ask, reply: setattr(reply, "cut_after", len(DATA) * tenth // 10))
        assert_whole(fetch(server.url, tmp_path / "m", sha256=SHA), tmp_path / "m")
        assert len(server.gets) == 2

    def test_always_cut(self, server: FileServer, tmp_path: Path) -> None:
        server.rule = lambda ask, reply: setattr(reply, "cut_after", 0)
        with pytest.raises(DownloadFailed, match="broke off, 6 times in a row") as caught:
            fetch(server.url, tmp_path / "m")
        assert caught.value.retryable
        # With nothing in place, there is nothing to go on with.
        assert left(tmp_path) == []

    def test_a_server_that_gives_little_at_a_time(self, server: FileServer, tmp_path: Path) -> None:
        server.rule = lambda ask, reply: setattr(reply, "cut_after", 100 * KIB if ask.method == "GET" else None)
        assert_whole(fetch(server.url, tmp_path / "m"), tmp_path / "m")
        assert server.sent == len(DATA)

    @pytest.mark.parametrize("silent_after", [-1, 0, 1000])
    def test_a_stalled_connection_is_left(self, server: FileServer, tmp_path: Path, silent_after: int) -> None:
        server.rule = once(lambda ask, reply: setattr(reply, "silent_after", silent_after))
        began = time.monotonic()
        assert_whole(fetch(server.url, tmp_path / "m", limits=HASTY), tmp_path / "m")
        assert HASTY.stall_s <= time.monotonic() - began < 30

    def test_a_connection_that_trickles_is_left(self, server: FileServer, tmp_path: Path) -> None:
        server.rule = once(lambda ask, reply: setattr(reply, "rate", 1000.0))
        began = time.monotonic()
        assert_whole(fetch(server.url, tmp_path / "m", limits=HASTY), tmp_path / "m")
        assert time.monotonic() - began < 30

    @pytest.mark.parametrize("wrong", ["bytes 7-262150/2500000", "bytes 0-9/x", "octets", None])
    def test_a_wrong_content_range(self, server: FileServer, tmp_path: Path, wrong: str | None) -> None:
        def rule(ask: Ask, reply: Reply) -> None:
            if ask.span and ask.span[0]:
                reply.headers.pop("Content-Range")
                if wrong:
                    reply.headers["Content-Range"] = wrong

        server.rule = rule
        # Such a server is asked for all at once.
        assert_whole(fetch(server.url, tmp_path / "m"), tmp_path / "m")
        assert [ask.span for ask in server.gets].count(None) == 1

    def test_shorter_ranges_than_asked_for(self, server: FileServer, tmp_path: Path) -> None:
        def rule(ask: Ask, reply: Reply) -> None:
            if ask.span:
                last = min(ask.span[0] + 99_999, ask.span[1], len(DATA) - 1)
                reply.headers["Content-Range"] = f"bytes {ask.span[0]}-{last}/{len(DATA)}"
                reply.body = memoryview(DATA)[ask.span[0] : last + 1]

        server.rule = rule
        assert_whole(fetch(server.url, tmp_path / "m"), tmp_path / "m")
        assert server.sent == len(DATA)

    def test_ranges_only_now_and_then(self, server: FileServer, tmp_path: Path) -> None:
        def rule(ask: Ask, reply: Reply) -> None:
            if ask.number > 3:
                reply.status, reply.body = 200, memoryview(DATA)
                reply.headers.pop("Content-Range", None)

        server.rule = rule
        assert_whole(fetch(server.url, tmp_path / "m"), tmp_path / "m")

    def test_an_etag_that_changes_once(self, server: FileServer, tmp_path: Path) -> None:
        new = noise(len(DATA), b"new")

        def rule(ask: Ask, reply: Reply) -> None:
            if ask.number == 4:
                server.data, server.etag = new, '"two"'

        server.rule = rule
        fetched = fetch(server.url, tmp_path / "m")
        assert_whole(fetched, tmp_path / "m", new)

    def test_an_etag_that_always_changes(self, server: FileServer, tmp_path: Path) -> None:
        server.rule = lambda ask, reply: reply.headers.update(ETag=f'"{ask.number}"')
        with pytest.raises(DownloadFailed, match="changes on the server"):
            fetch(server.url, tmp_path / "m")
        assert left(tmp_path) == []

    def test_a_size_that_is_another(self, server: FileServer, tmp_path: Path) -> None:
        with pytest.raises(IntegrityError, match=r"2,500,000 bytes instead of 2,600,000") as caught:
            fetch(server.url, tmp_path / "m", size=2_600_000)
        assert caught.value.details == {"expected_size": 2_600_000, "size": 2_500_000}
        known = {"size": 2_400_000, "validator": "v"}
        with pytest.raises(IntegrityError, match=r"2,500,000 bytes instead of 2,400,000"):
            fetch(server.url, tmp_path / "m", known=known)
        assert left(tmp_path) == []


class TestCorrupt:
    @staticmethod
    def flip(ask: Ask, reply: Reply) -> None:
        if ask.span and ask.span[0] <= 1_000_000 <= ask.span[1]:
            body = bytearray(reply.body)
            body[1_000_000 - ask.span[0]] ^= 1
            reply.body = memoryview(body)

    def test_the_first_time_only(self, server: FileServer, tmp_path: Path) -> None:
        server.rule = lambda ask, reply: self.flip(ask, reply) if ask.number < 12 else None
        assert_whole(fetch(server.url, tmp_path / "m", sha256=SHA), tmp_path / "m")
        assert server.sent == 2 * len(DATA)

    def test_always(self, server: FileServer, tmp_path: Path) -> None:
        server.rule = self.flip
        with pytest.raises(IntegrityError) as caught:
            fetch(server.url, tmp_path / "m", sha256=SHA)
        assert caught.value.details["expected_sha256"] == SHA
        found = caught.value.details["sha256"]
        assert found != SHA
        assert SHA in caught.value.message
        assert found in caught.value.message
        assert server.sent == 2 * len(DATA)
        assert left(tmp_path) == []

    def test_the_hubs_hash_is_believed(self, server: FileServer, tmp_path: Path) -> None:
        def rule(ask: Ask, reply: Reply) -> None:
            reply.headers["X-Linked-Etag"] = f'"{SHA}"'
            reply.headers["X-Linked-Size"] = str(len(DATA))

        server.rule = rule
        assert fetch(server.url, tmp_path / "m").sha256 == SHA
        server.data = DATA[:-1] + b"?"
        with pytest.raises(IntegrityError):
            fetch(server.url, tmp_path / "n")

    def test_a_header_that_is_none(self, server: FileServer, tmp_path: Path) -> None:
        with pytest.raises(IntegrityError, match="the model "):
            fetch(server.url, tmp_path / "m.safetensors")
        assert server.sent == 2 * len(DATA)
        # With the right hash, a second download would bring the same.
        with pytest.raises(IntegrityError):
            fetch(server.url, tmp_path / "m.safetensors", sha256=SHA)
        assert server.sent == 3 * len(DATA)
        assert left(tmp_path) == []


class TestStatus:
    @pytest.mark.parametrize("status", [401, 403, 404, 410, 418])
    def test_final(self, server: FileServer, tmp_path: Path, status: int) -> None:
        def rule(ask: Ask, reply: Reply) -> None:
            reply.status, reply.body = status, memoryview(b"<Error><Code>AccessDenied</Code>secret</Error>")

        server.rule = rule
        with pytest.raises(DownloadFailed, match=f"HTTP {status} AccessDenied") as caught:
            fetch(f"{server.url}?signature=secret", tmp_path / "m")
        assert not caught.value.retryable
        assert caught.value.details == {"status": status}
        assert "secret" not in caught.value.message
        assert len(server.asked) == 2  # HEAD, and the GET that might be allowed

    @pytest.mark.parametrize("form", ["seconds", "date"])
    def test_retry_after(self, server: FileServer, tmp_path: Path, form: str) -> None:
        until = email.utils.formatdate(time.time() + 2, usegmt=True)

        def busy(ask: Ask, reply: Reply) -> None:
            reply.status, reply.body = 429, memoryview(b"")
            reply.headers = {"Retry-After": "1" if form == "seconds" else until}

        server.rule = once(busy)
        fetch(server.url, tmp_path / "m")
        first, second = server.gets[:2]
        assert second.at - first.at >= (1 if form == "seconds" else 0.5)

    def test_a_wait_beyond_the_deadline(self, server: FileServer, tmp_path: Path) -> None:
        def busy(ask: Ask, reply: Reply) -> None:
            reply.status, reply.body, reply.headers = 503, memoryview(b""), {"Retry-After": "3600"}

        server.rule = busy
        began = time.monotonic()
        with pytest.raises(DownloadFailed, match="MODELS_TIMEOUT_S"):
            fetch(server.url, tmp_path / "m")
        assert time.monotonic() - began < 30

    def test_an_expired_signature_is_renewed(self, server: FileServer, tmp_path: Path) -> None:
        def rule(ask: Ask, reply: Reply) -> None:
            if "old" in ask.path and ask.number > 3:
                reply.status, reply.body = 403, memoryview(b"<Code>AccessDenied</Code>")

        server.rule = rule
        renewals: list[int] = []

        def renew() -> Address:
            renewals.append(1)
            return Address(f"{server.url}?new", "the model", renew=renew)

        fetched = fetch(f"{server.url}?old", tmp_path / "m", known={"renew": renew})
        assert_whole(fetched, tmp_path / "m")
        assert renewals == [1]

    def test_a_renewed_address_that_is_refused_is_final(self, server: FileServer, tmp_path: Path) -> None:
        def rule(ask: Ask, reply: Reply) -> None:
            reply.status, reply.body = 403, memoryview(b"")

        server.rule = rule
        renewals: list[int] = []

        def renew() -> Address:
            renewals.append(1)
            return Address(server.url, "the model", renew=renew)

        with pytest.raises(DownloadFailed, match="HTTP 403"):
            fetch(server.url, tmp_path / "m", known={"renew": renew})
        assert renewals == [1]

    def test_a_limit_of_tries(self, server: FileServer, tmp_path: Path) -> None:
        def rule(ask: Ask, reply: Reply) -> None:
            reply.status, reply.body = 503, memoryview(b"")

        server.rule = rule
        with pytest.raises(DownloadFailed, match="HTTP 503, 3 times in a row") as caught:
            fetch(server.url, tmp_path / "m", limits=replace(SMALL, tries=3))
        assert caught.value.retryable
