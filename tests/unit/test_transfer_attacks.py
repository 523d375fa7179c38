"""Servers that mean harm, and moments that are seldom."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from settee.base.errors import DownloadFailed, IntegrityError, NoSpace, SetteeError, StagingError
from settee.base.threads import Stopped
from settee.models.transfer.address import Address
from settee.models.transfer.attempt import Attempt, Task
from settee.models.transfer.part import Part
from settee.models.transfer.scheduler import Scheduler
from settee.models.transfer.stream import Limits, Span, _Watch
from settee.net.failures import Broken
from settee.net.http import Answer, Http
from tests.support.file_server import FileServer
from tests.support.http_double import Ask, Reply
from tests.support.transferring import SMALL, fetch, left, noise, sha256

DATA = noise(1_000_000)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(DATA).running() as running:
        yield running


def test_a_size_that_no_disk_has(server: FileServer, tmp_path: Path) -> None:
    server.rule = lambda ask, reply: reply.headers.update({"Content-Length": str(10**18 - 1)})
    with pytest.raises(NoSpace):
        fetch(server.url, tmp_path / "m")
    assert left(tmp_path) == []


@pytest.mark.parametrize("text", ["9" * 5000, "-1", "0x10", "١", ""])
def test_a_size_that_is_none(server: FileServer, tmp_path: Path, text: str) -> None:
    def rule(ask: Ask, reply: Reply) -> None:
        if ask.method == "HEAD":
            reply.headers["X-Linked-Size"] = text.encode("utf-8").decode("latin-1")

    server.rule = rule
    fetch(server.url, tmp_path / "m")
    assert (tmp_path / "m").read_bytes() == DATA


def test_a_body_without_end(server: FileServer, tmp_path: Path) -> None:
    def rule(ask: Ask, reply: Reply) -> None:
        if ask.method == "GET":
            reply.status, reply.chunked, reply.headers = 200, True, {}
            reply.body = memoryview(DATA * 50)

    server.rule = rule
    with pytest.raises(IntegrityError, match="instead of 1,000,000"):
        fetch(server.url, tmp_path / "m", size=len(DATA))
    assert left(tmp_path) == []


@pytest.mark.parametrize(
    "location", ["http://[", "//", "http://", "http://a b/", "javascript:x", "http://\udcff/", "http://user@[::1"]
)
def test_a_redirect_to_nonsense(server: FileServer, tmp_path: Path, location: str) -> None:
    def rule(ask: Ask, reply: Reply) -> None:
        reply.status, reply.body = 302, memoryview(b"")
        reply.headers = {"Location": location.encode("utf-8", "surrogateescape").decode("latin-1")}

    server.rule = rule
    with pytest.raises(DownloadFailed):
        fetch(server.url, tmp_path / "m")
    assert left(tmp_path) == []


def test_a_head_that_is_no_http(tmp_path: Path) -> None:
    with FileServer(DATA).running() as server:
        server.rule = lambda ask, reply: reply.headers.update({f"X-{n}": "x" for n in range(150)})
        with pytest.raises(DownloadFailed, match="broke off"):
            fetch(server.url, tmp_path / "m")


def test_a_part_that_is_a_link_elsewhere(server: FileServer, tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    (tmp_path / "precious").write_bytes(b"precious")
    (tmp_path / "models" / "m.part").symlink_to(tmp_path / "precious")
    with pytest.raises(StagingError):
        fetch(server.url, tmp_path / "models" / "m")
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_a_renewed_address_of_another_file(server: FileServer, tmp_path: Path) -> None:
    """The signature expires midway, and the file is another one by then: nothing of both is mixed."""
    new = noise(900_000, b"new")

    def renew() -> Address:
        server.data, server.etag = new, '"two"'
        return Address(f"{server.url}?new", "the model", size=len(new), sha256=sha256(new), validator="v2", renew=renew)

    def rule(ask: Ask, reply: Reply) -> None:
        if "new" not in ask.path and ask.number > 1:
            reply.status, reply.body, reply.headers = 403, memoryview(b""), {}

    server.rule = rule
    known = {"size": len(DATA), "sha256": sha256(DATA), "validator": "v1", "renew": renew}
    fetched = fetch(f"{server.url}?old", tmp_path / "m", known=known)
    assert (tmp_path / "m").read_bytes() == new
    assert fetched.sha256 == sha256(new)
    # An entry with a hash gets no other file for it: its sources hold every renewed address to it.
    server.data, server.etag = DATA, '"one"'
    held = {**known, "renew": lambda: renew().held_to(None, sha256(DATA))}
    with pytest.raises(IntegrityError, match=sha256(DATA)):
        fetch(f"{server.url}?old", tmp_path / "n", known=held)


def test_renew_that_fails(server: FileServer, tmp_path: Path) -> None:
    def rule(ask: Ask, reply: Reply) -> None:
        reply.status, reply.body = 403, memoryview(b"")

    def renew() -> Address:
        raise ValueError("secret")

    server.rule = rule
    with pytest.raises(DownloadFailed, match="no fresh address") as caught:
        fetch(server.url, tmp_path / "m", known={"renew": renew, "size": 10, "validator": "v"})
    assert "secret" not in caught.value.message


def test_a_thread_that_outlived_its_attempt_writes_nothing(server: FileServer, tmp_path: Path) -> None:
    part = Part(tmp_path / "m")
    address = Address(server.url, "the model")
    task = Task(address, part, Scheduler(1).lane(), time.monotonic() + 5, lambda done, total: None, SMALL)
    attempt = Attempt(task)
    attempt.run()
    answer, _ = _answer(server)
    with pytest.raises(Stopped):
        attempt.greet(answer, Span(0, 0, 10))
    answer.drop()
    part.close()
    with pytest.raises(Stopped):
        part.write(memoryview(b"late"), 0)


def _answer(server: FileServer) -> tuple[Answer, object]:
    http = Http(public_only=False, connect_s=5, read_s=5, connections=1)
    return http.open("GET", server.url, {}), http


def test_time_in_which_others_went_first_is_no_silence() -> None:
    now = [0.0]
    watch = _Watch(replace(Limits(), stall_s=10, stall_bytes=100), clock=lambda: now[0])
    with watch.excused():
        now[0] += 60
    watch.due(1)
    now[0] += 9
    watch.due(1)
    now[0] += 2
    with pytest.raises(Broken, match="all but fell silent"):
        watch.due(1)


def test_nothing_of_the_address_is_in_an_error(server: FileServer, tmp_path: Path) -> None:
    secret = f"http://user:hunter2@127.0.0.1:{server.port}/file?X-Amz-Signature=hunter2"
    for status in (400, 404, 500):
        server.rule = lambda ask, reply, status=status: setattr(reply, "status", status)
        with pytest.raises(SetteeError) as caught:
            fetch(secret, tmp_path / "m", known={"headers": {"Authorization": "hunter2"}})
        assert "hunter2" not in f"{caught.value.message}{caught.value.details}"
