"""Downloads that are stopped, run out of time or room, meet another process, or go on where one was killed."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import DownloadFailed, IntegrityError, NoSpace, StagingError
from settee.base.threads import Stopped
from settee.models.folder.checks import Hashes
from settee.models.transfer import part
from settee.models.transfer.address import Address
from settee.models.transfer.download import download
from settee.models.transfer.scheduler import Scheduler
from settee.models.transfer.stream import Limits
from tests.support.file_server import FileServer
from tests.support.http_double import Ask, Reply
from tests.support.transferring import KIB, SMALL, fetch, left, noise, sha256
from tests.support.waiting import eventually

DATA = noise(2_500_000)
SHA = sha256(DATA)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(DATA).running() as running:
        yield running


class Background:
    """A download in a thread."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.stop = options.setdefault("stop", threading.Event())
        self.outcome: list[Hashes | BaseException] = []
        self._thread = threading.Thread(target=self._run, args=(arguments, options))
        self._thread.start()

    def _run(self, arguments: Any, options: Any) -> None:
        try:
            self.outcome.append(fetch(*arguments, **options))
        except BaseException as error:
            self.outcome.append(error)

    def ended(self, within_s: float) -> Hashes | BaseException:
        self._thread.join(within_s)
        assert not self._thread.is_alive(), f"still running after {within_s:g} s"
        return self.outcome[0]


def silent_head(ask: Ask, reply: Reply) -> None:
    reply.silent_after = -1


def silent_get(ask: Ask, reply: Reply) -> None:
    reply.silent_after = -1 if ask.method == "GET" else None


def silent_body(ask: Ask, reply: Reply) -> None:
    reply.silent_after = 1000


def busy(ask: Ask, reply: Reply) -> None:
    reply.status, reply.body, reply.headers = 503, memoryview(b""), {"Retry-After": "5"}


def endless(ask: Ask, reply: Reply) -> None:
    reply.rate, reply.chunked, reply.status, reply.headers = 50_000.0, True, 200, {}


STATES = [silent_head, silent_get, silent_body, busy, endless]


class TestStop:
    @pytest.mark.parametrize("rule", STATES)
    def test_in_every_state(self, server: FileServer, tmp_path: Path, rule: Any) -> None:
        server.rule = rule
        running = Background(server.url, tmp_path / "m")
        eventually(lambda: server.asked)
        running.stop.set()
        assert isinstance(running.ended(20), Stopped)
        assert not (tmp_path / "m").exists()

    @pytest.mark.parametrize("rule", STATES)
    def test_the_deadline_in_every_state(self, server: FileServer, tmp_path: Path, rule: Any) -> None:
        server.rule = rule
        began = time.monotonic()
        with pytest.raises(DownloadFailed, match="MODELS_TIMEOUT_S") as caught:
            fetch(server.url, tmp_path / "m", deadline=time.monotonic() + 0.5)
        assert time.monotonic() - began < 20
        assert caught.value.retryable

    def test_while_connecting(self, tmp_path: Path) -> None:
        with socket.socket() as full, contextlib.ExitStack() as clients:
            full.bind(("127.0.0.1", 0))
            full.listen(0)
            for _ in range(4):  # more than its queue takes
                client = clients.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex(full.getsockname())
            running = Background(f"http://127.0.0.1:{full.getsockname()[1]}/x", tmp_path / "m")
            time.sleep(0.1)  # nothing tells when a connection is being made
            running.stop.set()
            assert isinstance(running.ended(1), Stopped)

    def test_while_waiting_for_a_turn(self, server: FileServer, tmp_path: Path) -> None:
        gate = Scheduler(1)
        ticket = gate.lane().ticket()
        ticket.take()
        running = Background(server.url, tmp_path / "m", lane=(lane := gate.lane()), stop=lane.stop)
        eventually(lambda: gate.waiting)
        running.stop.set()
        assert isinstance(running.ended(1), Stopped)
        ticket.give()
        fetch(server.url, tmp_path / "m", lane=gate.lane())

    def test_what_came_before_is_kept(self, server: FileServer, tmp_path: Path) -> None:
        server.rule = lambda ask, reply: setattr(reply, "silent_after", 100 * KIB if ask.number > 4 else None)
        running = Background(server.url, tmp_path / "m")
        eventually(lambda: sum(ask.sent == 100 * KIB for ask in server.gets) == 4)
        time.sleep(0.1)  # for the client to receive what the server sent
        running.stop.set()
        assert isinstance(running.ended(1), Stopped)
        assert left(tmp_path) == ["m.part", "m.part.json"]
        server.rule = lambda ask, reply: None
        fetch(server.url, tmp_path / "m", sha256=SHA)
        assert (tmp_path / "m").read_bytes() == DATA
        assert server.sent == len(DATA)

    def test_no_thread_and_no_descriptor_stays(self, server: FileServer, tmp_path: Path) -> None:
        def descriptors() -> int:
            return len(os.listdir("/proc/self/fd"))

        fetch(server.url, tmp_path / "warm")
        eventually(lambda: not server.active)
        server.rule = silent_body
        before = descriptors()
        running = Background(server.url, tmp_path / "m")
        eventually(lambda: server.gets)
        running.stop.set()
        assert isinstance(running.ended(1), Stopped)
        server.released.set()
        eventually(lambda: not any(t.name == "settee-transfer" for t in threading.enumerate()))
        eventually(lambda: descriptors() <= before)


class TestResume:
    """A part and its part, as a killed download leaves them."""

    def prepare(self, server: FileServer, target: Path) -> None:
        """Bytes in place of about half of the file."""
        server.rule = lambda ask, reply: setattr(reply, "cut_after", 0 if ask.number > 5 else None)
        with pytest.raises(DownloadFailed):
            fetch(server.url, target, limits=replace(SMALL, tries=2))
        server.rule = lambda ask, reply: None
        head, done, same = part.load(target.with_name("m.part.json")) or (None, [], False)
        assert head is not None
        assert same
        assert 0 < sum(done) < len(DATA)
        # A stream that was given up may still be about to ask.
        eventually(lambda: all(thread.name != "settee-transfer" for thread in threading.enumerate()))
        server.hang_up()
        server.asked.clear()
        self.missing = len(DATA) - sum(done)

    def test_goes_on(self, server: FileServer, tmp_path: Path) -> None:
        self.prepare(server, tmp_path / "m")
        fetched = fetch(server.url, tmp_path / "m")
        assert (tmp_path / "m").read_bytes() == DATA
        assert server.sent == self.missing
        assert fetched.xxh3 == fetch(server.url, tmp_path / "again").xxh3

    @pytest.mark.parametrize("change", ["etag", "where", "size", "no validator"])
    def test_not_with_another_file(self, server: FileServer, tmp_path: Path, change: str) -> None:
        self.prepare(server, tmp_path / "m")
        new = noise(len(DATA) - (1 if change == "size" else 0), b"new")
        server.data = new
        if change == "etag":
            server.etag = '"two"'
        if change == "no validator":
            server.etag = None
        if change == "where":
            download(
                Address(server.url.replace("file.bin", "x"), "elsewhere"),
                tmp_path / "m",
                lane=Scheduler(2).lane(),
                deadline=time.monotonic() + 20,
                on_progress=lambda done, total: None,
                limits=SMALL,
            )
        else:
            fetch(server.url, tmp_path / "m")
        assert (tmp_path / "m").read_bytes() == new

    def test_the_same_hash_from_elsewhere(self, server: FileServer, tmp_path: Path) -> None:
        server.rule = lambda ask, reply: setattr(reply, "cut_after", 0 if ask.number > 5 else None)
        with pytest.raises(DownloadFailed):
            fetch(server.url, tmp_path / "m", sha256=SHA, limits=replace(SMALL, tries=2))
        with FileServer(DATA).running() as mirror:
            mirror.etag = '"mirror"'
            download(
                Address(mirror.url, "a mirror", sha256=SHA),
                tmp_path / "m",
                lane=Scheduler(2).lane(),
                deadline=time.monotonic() + 20,
                on_progress=lambda done, total: None,
                limits=SMALL,
            )
            assert mirror.sent < len(DATA)
        assert (tmp_path / "m").read_bytes() == DATA

    def test_bytes_that_rotted_are_found(self, server: FileServer, tmp_path: Path) -> None:
        self.prepare(server, tmp_path / "m")
        with open(tmp_path / "m.part", "r+b") as part:
            part.write(b"rotten")
        journal_path = tmp_path / "m.part.json"
        fetch(server.url, tmp_path / "m", sha256=SHA)
        assert (tmp_path / "m").read_bytes() == DATA
        assert not journal_path.exists()

    @pytest.mark.parametrize("text", [b"", b"{", b"[]", b'{"format": 1}', b"\xff", b'{"format": 2, "done": []}'])
    def test_a_journal_that_cannot_be_read(self, server: FileServer, tmp_path: Path, text: bytes) -> None:
        self.prepare(server, tmp_path / "m")
        (tmp_path / "m.part.json").write_bytes(text)
        with open(tmp_path / "m.part", "r+b") as part:
            part.write(b"rotten")
        fetch(server.url, tmp_path / "m")
        assert (tmp_path / "m").read_bytes() == DATA

    def test_another_boot(self, server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.prepare(server, tmp_path / "m")
        monkeypatch.setattr(part, "boot", lambda: "another")
        # Without a hash, nobody knows whether the disk had it all.
        fetch(server.url, tmp_path / "m")
        assert server.sent == len(DATA)

    def test_a_whole_part_is_only_checked(self, server: FileServer, tmp_path: Path) -> None:
        self.prepare(server, tmp_path / "m")
        found = part.load(tmp_path / "m.part.json")
        assert found is not None
        (tmp_path / "m.part").write_bytes(DATA)
        lengths = [min(SMALL.range_bytes, len(DATA) - at) for at in range(0, len(DATA), SMALL.range_bytes)]
        part.Journal(tmp_path / "m.part.json", found[0], lengths).close()
        fetch(server.url, tmp_path / "m")
        assert (tmp_path / "m").read_bytes() == DATA
        assert server.sent == 0


class TestDisk:
    def test_no_space(self, server: FileServer, tmp_path: Path) -> None:
        """A real one, full: a small tmpfs, where this may be mounted."""
        disk = tmp_path / "disk"
        disk.mkdir()
        mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "none", str(disk)], capture_output=True)
        if mounted.returncode:
            pytest.skip("tmpfs cannot be mounted here")
        try:
            with pytest.raises(NoSpace) as caught:
                fetch(server.url, disk / "m")
            assert caught.value.details == {"file": "m", "needed": 2_500_000, "free": 1024 * KIB}
            assert "2,500,000 bytes" in caught.value.message
            assert str(tmp_path) not in caught.value.message
            server.rule = endless_without_length
            with pytest.raises(NoSpace):
                fetch(server.url, disk / "n")
        finally:
            subprocess.run(["umount", "--lazy", str(disk)], check=True)

    def test_a_folder_that_is_none(self, server: FileServer, tmp_path: Path) -> None:
        (tmp_path / "models").write_text("a file")
        with pytest.raises(StagingError, match="m cannot be written to the models folder") as caught:
            fetch(server.url, tmp_path / "models" / "m")
        assert str(tmp_path) not in caught.value.message


def endless_without_length(ask: Ask, reply: Reply) -> None:
    reply.chunked, reply.status, reply.headers, reply.body = True, 200, {}, memoryview(DATA)


class TestByLibrary:
    """Where plain HTTP is refused, the source's own library has the last word."""

    @pytest.fixture(autouse=True)
    def _refusing(self, server: FileServer) -> None:
        def rule(ask: Ask, reply: Reply) -> None:
            reply.status, reply.body = 403, memoryview(b"")

        server.rule = rule

    def test_brings_the_file(self, server: FileServer, tmp_path: Path) -> None:
        def library(folder: Path) -> Path:
            (folder / "deep").mkdir()
            (folder / "deep" / "file").write_bytes(DATA)
            return folder / "deep" / "file"

        fetched = fetch(server.url, tmp_path / "m", known={"by_library": library}, sha256=SHA)
        assert (tmp_path / "m").read_bytes() == DATA
        assert fetched == Hashes(len(DATA), SHA, fetched.xxh3)
        assert left(tmp_path) == ["m"]

    def test_brings_another_file(self, server: FileServer, tmp_path: Path) -> None:
        def library(folder: Path) -> Path:
            (folder / "file").write_bytes(b"other")
            return folder / "file"

        with pytest.raises(IntegrityError, match=SHA):
            fetch(server.url, tmp_path / "m", known={"by_library": library}, sha256=SHA)
        assert not (tmp_path / "m").exists()
        assert [name for name in left(tmp_path) if "library" in name] == []

    def test_fails(self, server: FileServer, tmp_path: Path) -> None:
        def library(folder: Path) -> Path:
            raise RuntimeError("of its own")

        with pytest.raises(DownloadFailed, match="library could not fetch it either"):
            fetch(server.url, tmp_path / "m", known={"by_library": library})

    def test_is_left_alone_at_stop(self, server: FileServer, tmp_path: Path) -> None:
        going, released = threading.Event(), threading.Event()

        def library(folder: Path) -> Path:
            going.set()
            released.wait(20)
            (folder / "file").write_bytes(DATA)
            return folder / "file"

        running = Background(server.url, tmp_path / "m", known={"by_library": library})
        assert going.wait(5)
        running.stop.set()
        assert isinstance(running.ended(1), Stopped)
        released.set()
        eventually(lambda: not [name for name in left(tmp_path) if "library" in name])


def test_limits_are_those_of_the_issue() -> None:
    assert Limits().range_bytes == 16 * 1024 * KIB
    assert (Limits().streams, Limits().stall_s) == (4, 20)
