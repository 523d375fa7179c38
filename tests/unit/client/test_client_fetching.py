"""Outputs from S3 and from a ComfyUI: over connections that break, servers that lie, and addresses that are secrets."""

from __future__ import annotations

import gzip
import hashlib
import random
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from settee.client.client_errors import ClientError, JobFailed, JobStopped, NetworkError
from settee.client.job_outputs import Output
from settee.client.saving import Result, part_file
from settee.client.saving.part_file import Fetcher, open_part
from settee.net.retry import Backoff
from tests.support.file_server import FileServer
from tests.support.http_double import Ask, Reply
from tests.support.s3 import S3Server
from tests.support.waiting import eventually

DATA = random.Random(4).randbytes(300_000)
SHA256 = hashlib.sha256(DATA).hexdigest()
SECRET = "X-Amz-Signature=0123456789abcdef"


class Bucket(FileServer):
    """Knows ranges without an end, too, and If-Range."""

    def reply(self, ask: Ask) -> Reply:
        match = re.fullmatch(r"bytes=(\d+)-", ask.headers.get("Range", ""))
        if match and ask.headers.get("If-Range", self.etag) == self.etag:
            ask.span = (int(match[1]), len(self.data) - 1)
        return super().reply(ask)


@pytest.fixture
def server() -> Iterator[FileServer]:
    with Bucket(DATA).running() as running:
        yield running


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(part_file, "BACKOFF", Backoff(first_s=0.001, longest_s=0.01))


def saved(server: FileServer, folder: Path, *, filename: str = "a.png", **keys: Any) -> bytes:
    """The file that was saved; its address has a signature."""
    address = keys.pop("url", f"{server.url}?{SECRET}")
    output = Output("images", filename, keys.pop("type", "s3_url"), address, **keys.pop("about", {}))
    (one,) = Result("job-1", (output,)).save(folder, **keys)
    assert [path.name for path in folder.iterdir()] == [filename]
    return one.path.read_bytes()


def refused(server: FileServer, folder: Path, kind: type[ClientError], **keys: Any) -> str:
    """The message of the one error, which tells no secret; nothing is left behind."""
    with pytest.raises(kind) as caught:
        saved(server, folder, **keys)
    assert type(caught.value) is kind
    assert SECRET not in str(caught.value.details) + caught.value.message
    assert list(folder.iterdir()) == []
    return caught.value.message


def breaking(after: int, times: int = 1) -> Callable[[Ask, Reply], None]:
    def rule(ask: Ask, reply: Reply) -> None:
        if ask.number < times:
            reply.cut_after = after

    return rule


def test_a_file_is_fetched(server: FileServer, tmp_path: Path) -> None:
    assert saved(server, tmp_path, about={"size": len(DATA), "sha256": SHA256}) == DATA
    (ask,) = server.asked
    assert ask.headers["Accept-Encoding"] == "identity"
    assert "Range" not in ask.headers


@pytest.mark.parametrize("chunked", [False, True])
@pytest.mark.parametrize("about", [{}, {"size": len(DATA)}])
def test_a_download_goes_on_where_it_broke_off(
    server: FileServer, tmp_path: Path, chunked: bool, about: dict[str, Any]
) -> None:
    def rule(ask: Ask, reply: Reply) -> None:
        reply.chunked = chunked
        breaking(100_000, times=3)(ask, reply)

    server.rule = rule
    assert saved(server, tmp_path, about=about) == DATA
    spans = [ask.headers.get("Range") for ask in server.asked]
    assert spans[:2] == [None, "bytes=100000-"]
    assert {ask.headers.get("If-Range") for ask in server.asked[1:]} == {'"one"'}
    assert server.sent <= len(DATA)


def test_a_file_that_changed_meanwhile_is_fetched_from_the_front(server: FileServer, tmp_path: Path) -> None:
    def rule(ask: Ask, reply: Reply) -> None:
        if ask.number == 0:
            reply.headers["ETag"], reply.body, reply.cut_after = '"old"', memoryview(b"x" * 300_000), 100_000

    server.rule = rule
    assert saved(server, tmp_path) == DATA
    assert [ask.headers.get("If-Range") for ask in server.asked] == [None, '"old"']


@pytest.mark.parametrize(
    ("etag", "about", "resumes"),
    [(None, {}, False), ('W/"weak"', {}, False), (None, {"sha256": SHA256}, True)],
)
def test_nothing_is_put_together_that_may_not_fit(
    server: FileServer, tmp_path: Path, etag: str | None, about: dict[str, Any], resumes: bool
) -> None:
    server.etag = etag
    server.rule = breaking(100_000)
    assert saved(server, tmp_path, about=about) == DATA
    assert ("Range" in server.asked[1].headers) is resumes


def test_pieces_of_two_files_are_found_out(server: FileServer, tmp_path: Path) -> None:
    def rule(ask: Ask, reply: Reply) -> None:
        if ask.number == 0:
            reply.body, reply.cut_after = memoryview(b"x" * 300_000), 100_000

    server.etag, server.rule = None, rule
    assert saved(server, tmp_path, about={"sha256": SHA256}) == DATA
    assert [ask.headers.get("Range") for ask in server.asked] == [None, "bytes=100000-", None]


@pytest.mark.parametrize("how", ["no ranges", "another range", "416"])
def test_a_server_that_does_not_go_on_starts_over(server: FileServer, tmp_path: Path, how: str) -> None:
    def rule(ask: Ask, reply: Reply) -> None:
        breaking(100_000)(ask, reply)
        if ask.number == 1 and how == "another range":
            reply.headers["Content-Range"] = f"bytes 0-{len(DATA) - 1}/{len(DATA)}"
        if ask.number == 1 and how == "416":
            reply.status, reply.body = 416, memoryview(b"")

    server.ranges, server.rule = how != "no ranges", rule
    assert saved(server, tmp_path) == DATA


@pytest.mark.parametrize("status", [408, 429, 500, 502, 503])
def test_what_may_pass_is_tried_again(server: FileServer, tmp_path: Path, status: int) -> None:
    def rule(ask: Ask, reply: Reply) -> None:
        if ask.number < 3:
            reply.status = status
            reply.headers["Retry-After"] = "soon"

    server.rule = rule
    assert saved(server, tmp_path) == DATA
    assert len(server.asked) == 4


def test_a_server_is_left_in_peace_for_as_long_as_it_says(server: FileServer, tmp_path: Path) -> None:
    def rule(ask: Ask, reply: Reply) -> None:
        if ask.number == 0:
            reply.status, reply.headers["Retry-After"] = 429, "1"

    server.rule = rule
    saved(server, tmp_path)
    assert server.asked[1].at - server.asked[0].at >= 1


def test_trouble_without_end_has_an_end(server: FileServer, tmp_path: Path) -> None:
    server.rule = lambda ask, reply: setattr(reply, "status", 503)
    message = refused(server, tmp_path, NetworkError)
    assert (
        message
        == "a.png was not saved: 127.0.0.1: the server answers HTTP 503; --resume job-1 fetches the result again"
    )
    assert len(server.asked) == part_file.MAX_TRIES


@pytest.mark.parametrize(
    ("status", "words"), [(403, "expire"), (404, "does not exist"), (400, "HTTP 400"), (204, "HTTP 204")]
)
def test_what_will_not_pass_is_an_error_at_once(server: FileServer, tmp_path: Path, status: int, words: str) -> None:
    def rule(ask: Ask, reply: Reply) -> None:
        reply.status, reply.body = status, memoryview(b"")

    server.rule = rule
    assert words in refused(server, tmp_path, NetworkError)
    assert len(server.asked) == 1


@pytest.mark.parametrize("url", ["file:///etc/passwd", "http://[::1", "ftp://x/y", "", "http://", "http://a..b/x?k=1"])
def test_an_address_that_is_none(server: FileServer, tmp_path: Path, url: str) -> None:
    assert "address" in refused(server, tmp_path, NetworkError, url=url)


def test_nobody_there(tmp_path: Path) -> None:
    server = FileServer(DATA)
    with server.running():
        pass
    assert "the server cannot be reached" in refused(server, tmp_path, NetworkError)


@pytest.mark.parametrize("about", [{"size": 299_999}, {"size": 300_001}, {"sha256": "0" * 64}])
def test_a_file_that_is_not_as_the_worker_said_is_fetched_twice_at_most(
    server: FileServer, tmp_path: Path, about: dict[str, Any]
) -> None:
    with pytest.raises(JobFailed, match="the worker"):
        saved(server, tmp_path, about=about)
    assert len(server.asked) == 2
    assert list(tmp_path.iterdir()) == []


def test_a_server_that_sends_without_end_fills_no_disk(server: FileServer, tmp_path: Path) -> None:
    server.data = b"x" * 50_000_000
    with pytest.raises(JobFailed, match="the worker"):
        saved(server, tmp_path, about={"size": 1000})
    # The rest is what sockets and buffers take.
    assert server.sent < 40_000_000


def test_a_body_that_came_packed_is_unpacked(server: FileServer, tmp_path: Path) -> None:
    def rule(ask: Ask, reply: Reply) -> None:
        reply.headers["Content-Encoding"] = "gzip"
        reply.body = memoryview(gzip.compress(DATA))
        breaking(1000)(ask, reply)

    server.rule = rule
    assert saved(server, tmp_path, about={"size": len(DATA), "sha256": SHA256}) == DATA
    assert "If-Range" not in server.asked[1].headers


def test_a_silent_server_is_asked_again(server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def rule(ask: Ask, reply: Reply) -> None:
        if ask.number < 2:
            reply.silent_after = 100_000 if ask.number else -1

    server.rule = rule
    monkeypatch.setattr(part_file, "SILENT_S", 0.1)
    output = Output("images", "a.png", "s3_url", server.url)
    with Fetcher() as fetcher, open_part(tmp_path) as part:
        fetcher.fetch(output, part)
        assert (part.size, part.sha256) == (len(DATA), SHA256)


def test_a_server_that_drips_meets_the_deadline(server: FileServer, tmp_path: Path) -> None:
    server.rule = lambda ask, reply: setattr(reply, "rate", 1000.0)
    assert "not done within 0.3 s" in refused(server, tmp_path, NetworkError, timeout_s=0.3)


def test_stopping_ends_a_download(server: FileServer, tmp_path: Path) -> None:
    server.rule = lambda ask, reply: setattr(reply, "rate", 1000.0)
    stop = threading.Event()

    def stopped_soon() -> None:
        eventually(lambda: server.sent > 0)
        stop.set()

    thread = threading.Thread(target=stopped_soon)
    thread.start()
    assert "stopped" in refused(server, tmp_path, JobStopped, stop=stop)
    thread.join()


def test_redirects_are_followed_and_signed_by_nobody(
    server: FileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with FileServer(DATA).running() as other:
        here = server.url.rsplit("/", 1)[0]

        def rule(ask: Ask, reply: Reply) -> None:
            if ask.path == "/view":
                reply.status, reply.body = 302, memoryview(b"")
                reply.headers["Location"] = "/moved"
            elif ask.path == "/moved":
                reply.status, reply.body, reply.headers["Location"] = 307, memoryview(b""), other.url

        server.rule = rule

        assert saved(server, tmp_path / "out", url=f"{here}/view", type="url") == DATA
        assert (len(server.asked), len(other.asked)) == (2, 1)
        assert all("Authorization" not in ask.headers for ask in [*server.asked, *other.asked])


def test_redirects_without_end(server: FileServer, tmp_path: Path) -> None:
    def rule(ask: Ask, reply: Reply) -> None:
        reply.status, reply.body, reply.headers["Location"] = 302, memoryview(b""), ask.path

    server.rule = rule
    assert "redirects" in refused(server, tmp_path, NetworkError)


def test_a_redirect_to_a_file_of_this_machine_is_not_followed(server: FileServer, tmp_path: Path) -> None:
    def rule(ask: Ask, reply: Reply) -> None:
        reply.status, reply.body, reply.headers["Location"] = 302, memoryview(b""), "file:///etc/passwd"

    server.rule = rule
    assert "address" in refused(server, tmp_path, NetworkError)


# --- a real S3 server --------------------------------------------------------------------------------------------


def test_from_s3_also_after_a_break(server: FileServer, tmp_path: Path, s3: S3Server) -> None:
    bucket = s3.make_bucket()
    etag = s3.admin.put_object(Bucket=bucket, Key="jobs/ä b.png", Body=DATA)["ETag"]
    signed = s3.admin.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "jobs/ä b.png"}, ExpiresIn=60)
    whole, rest = tmp_path / "whole", tmp_path / "rest"
    assert saved(server, whole, url=signed) == DATA

    def rule(ask: Ask, reply: Reply) -> None:
        if ask.number == 0:
            reply.headers["ETag"], reply.cut_after = etag, 100_000
        else:
            reply.status, reply.body, reply.headers["Location"] = 302, memoryview(b""), signed

    server.rule = rule
    # Nothing but the answer to the range fits behind what is there: no hash was given.
    assert saved(server, rest, about={"size": len(DATA)}) == DATA
    assert server.asked[1].headers["If-Range"] == etag


def test_a_signature_that_s3_does_not_take(server: FileServer, tmp_path: Path, s3: S3Server) -> None:
    bucket = s3.make_bucket()
    s3.admin.put_object(Bucket=bucket, Key="a.png", Body=DATA)
    other = s3.client(aws_secret_access_key="another")
    signed = other.generate_presigned_url("get_object", {"Bucket": bucket, "Key": "a.png"}, ExpiresIn=60)
    message = refused(server, tmp_path, NetworkError, url=signed)
    assert "HTTP 403" in message
    assert "Signature" not in message
