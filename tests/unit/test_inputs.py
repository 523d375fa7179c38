"""Input files from what callers send, over real HTTP on loopback where they send an address."""

from __future__ import annotations

import base64
import io
import logging
import os
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from PIL import Image

from settee import encoded, fetch
from settee.encoded import decode_base64
from settee.errors import (
    DownloadFailed,
    InvalidRequest,
    JobCanceled,
    JobTimeout,
    PayloadTooLarge,
    SetteeError,
    UnsafePath,
)
from settee.inputs import Staged, stage
from settee.job import Cancel
from settee.request import InputFile
from settee.settings import Settings
from settee.workspace import Folders, Workspace
from tests.support.waiting import eventually


def png(side: int = 8) -> bytes:
    target = io.BytesIO()
    Image.frombytes("RGB", (side, side), os.urandom(3 * side * side)).save(target, "PNG")
    return target.getvalue()


PNG = png()
PNG64 = base64.b64encode(PNG).decode()


class Stage:
    """`stage` with a workspace and settings of its own; names and data as pairs."""

    def __init__(self, workspace: Workspace, cancel: Cancel) -> None:
        self.workspace = workspace
        self.cancel = cancel
        self.settings: dict[str, Any] = {}
        self.seconds = 30.0
        self.done: list[tuple[int, int]] = []

    def __call__(self, files: dict[str, str] | None = None, images: dict[str, str] | None = None) -> dict[str, Staged]:
        staged = stage(
            [InputFile(name=name, data=data) for name, data in (files or {}).items()],
            [InputFile(name=name, data=data) for name, data in (images or {}).items()],
            self.workspace,
            Settings(**self.settings),
            cancel=self.cancel,
            deadline=time.monotonic() + self.seconds,
            notify=lambda done, total: self.done.append((done, total)),
        )
        return {file.name: file for file in staged}

    def bytes_of(self, data: str, name: str = "file.bin") -> bytes:
        return self({name: data})[name].path.read_bytes()

    def refused(
        self, files: dict[str, str] | None = None, images: dict[str, str] | None = None, kind: type = InvalidRequest
    ) -> SetteeError:
        with pytest.raises(kind) as caught:
            self(files, images)
        return caught.value  # type: ignore[no-any-return]


@pytest.fixture
def put(tmp_path: Path) -> Iterator[Stage]:
    workspace = Workspace(Folders(tmp_path / "input", tmp_path / "output", None), Settings())
    workspace.open()
    with Cancel() as cancel:
        yield Stage(workspace, cancel)


# --- inline data -----------------------------------------------------------------------------------------

RAW = bytes(range(256)) * 5 + b"\xfb\xff\xfe"
B64 = base64.b64encode(RAW).decode()


@pytest.mark.parametrize(
    "data",
    [
        B64,
        B64.rstrip("="),
        base64.urlsafe_b64encode(RAW).decode(),
        base64.urlsafe_b64encode(RAW).decode().rstrip("="),
        base64.encodebytes(RAW).decode(),
        base64.encodebytes(RAW).decode().replace("\n", "\r\n"),
        f"  \n{B64}\t \n",
        f"data:application/octet-stream;base64,{B64}",
        f"data:;base64,{B64}",
        f"DATA:image/png;name=a;BASE64,{B64}",
        "data:a/b;base64," + B64.replace("+", "%2B").replace("=", "%3d").replace("/", "%2F"),
        "data:application/octet-stream," + "".join(f"%{byte:02x}" for byte in RAW),
        f" data:;base64,{B64}",
    ],
)
def test_data_in_every_accepted_spelling(put: Stage, data: str) -> None:
    assert put.bytes_of(data) == RAW


@pytest.mark.parametrize("size", range(9))
@pytest.mark.parametrize("strip", [True, False])
def test_every_length(put: Stage, size: int, strip: bool) -> None:
    text = base64.b64encode(RAW[:size]).decode()
    if size:
        assert put.bytes_of(text.rstrip("=") if strip else text) == RAW[:size]


def test_text_in_a_data_uri(put: Stage) -> None:
    assert put.bytes_of("data:,a%20b+cü") == "a b+cü".encode()
    assert put({"empty.txt": "data:,"})["empty.txt"].size == 0


@pytest.mark.parametrize(
    ("data", "says"),
    [
        ("", "no data"),
        (" \n\t", "no data"),
        ("photo.png", "'.' at character 5"),
        ("AAAA\u00e9AAA", "'\\xe9' at character 4"),
        ("AAAA\ud800AA", "'\\ud800' at character 4"),
        ("AAAAA", "one character is too many or missing"),
        ("AA==AA==", "'=' at character 2"),
        ("A===", "'='"),
        ("====", "'='"),
        ("AAAA\0", "'\\x00' at character 4"),
        ("data:image/png;base64,AAA!", "'!' at character 25"),
        ("data:image/png;base64", "neither base64 nor an address"),
        ("data:,\ud800", "surrogate"),
        ("ftp://host/file", "ftp:// addresses are not fetched"),
        ("file:///etc/passwd", "file:// addresses are not fetched"),
        ("/etc/passwd.png", "'.' at character 11"),
        ("http://", "no http(s) URL"),
        ("http:///path", "no http(s) URL"),
        ("http://[::1", "URL"),
        ("https://ho st/", "no http(s) URL"),
        ("http://host/" + "a" * 20_000, "too long"),
        ("s3://bucket", "s3://bucket/key"),
        ("s3:///key", "s3://bucket/key"),
        ("s3://bucket/key", "set BUCKET_ENDPOINT_URL"),
    ],
    ids=lambda value: ascii(value)[:40],
)
def test_bad_data_is_told_with_its_place(put: Stage, data: str, says: str) -> None:
    error = put.refused({"bad.bin": data})
    assert says in error.message
    assert "'bad.bin'" in error.message
    assert len(error.message) < 400


def test_a_mistake_far_into_large_data_is_found_at_its_place(put: Stage) -> None:
    data = list("QUJD" * 1_000_000)
    data[3_333_333] = "*"
    assert "'*' at character 3333333" in put.refused({"bad.bin": "".join(data)}).message
    data[3_333_333] = "="
    assert "'=' at character 3333333" in put.refused({"bad.bin": "".join(data)}).message


@examples(max_examples=300, deadline=None, derandomize=True)
@given(raw=st.binary(max_size=200), wrap=st.integers(1, 80), step=st.sampled_from([4, 8, 64]), url_safe=st.booleans())
def test_base64_in_pieces_of_any_size(raw: bytes, wrap: int, step: int, url_safe: bool) -> None:
    """The pieces of large data meet white space, padding and both alphabets at any place."""
    text = (base64.urlsafe_b64encode if url_safe else base64.b64encode)(raw).decode()
    wrapped = "\n".join(text[start : start + wrap] for start in range(0, len(text), wrap))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded, "_STEP", step)
        assert b"".join(decode_base64(wrapped, 0)) == raw
        assert b"".join(decode_base64("xx" + text.rstrip("="), 2)) == raw


@examples(max_examples=500, deadline=None, derandomize=True)
@given(text=st.text(alphabet="AQgw+/-_=\n !é", max_size=24), step=st.sampled_from([4, 8]))
def test_base64_is_decoded_as_the_standard_library_does_or_refused(text: str, step: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(encoded, "_STEP", step)
        try:
            raw = b"".join(decode_base64(text, 0))
        except ValueError as error:
            assert "character" in str(error)  # noqa: PT017 - both ends are right
            return
    plain = "".join(text.split()).rstrip("=")
    assert base64.urlsafe_b64decode(plain.replace("+", "-").replace("/", "_") + "=" * (-len(plain) % 4)) == raw


def test_large_data_is_never_held_decoded(put: Stage) -> None:
    text = "QUJD" * 4_000_000
    tracemalloc.start()
    try:
        put({"large.bin": text})
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (put.workspace.folders.input / "large.bin").stat().st_size == 12_000_000
    assert peak < 8 << 20


def test_the_size_limit(put: Stage) -> None:
    put.settings["max_file_mb"] = 0.001
    assert isinstance(put.refused({"bad.bin": B64}, kind=PayloadTooLarge), PayloadTooLarge)
    assert "MAX_FILE_MB" in put.refused({"bad.txt": "data:," + "a" * 2000}, kind=PayloadTooLarge).message


# --- names and problems ----------------------------------------------------------------------------------


def test_files_first_then_images_and_progress(put: Stage) -> None:
    staged = put({"a/b.bin": "QUJD", "notes.txt": "data:,hi"}, {"a/c.png": PNG64})
    assert list(staged) == ["a/b.bin", "notes.txt", "a/c.png"]
    assert staged["a/c.png"] == Staged("a/c.png", put.workspace.folders.input / "a/c.png", len(PNG), 8, 8)
    assert staged["a/b.bin"].width is None
    assert put.done == [(1, 3), (2, 3), (3, 3)]


def test_no_files_at_all(put: Stage) -> None:
    assert put() == {}


def test_all_bad_names_at_once_and_nothing_written(put: Stage) -> None:
    error = put.refused({"../up": "QUJD", "fine": "QUJD"}, {"/abs.png": PNG64, "nul": "???"}, kind=UnsafePath)
    assert error.code == "unsafe_path"
    assert len(error.details["problems"]) == 3
    assert "'../up'" in error.message
    assert list(put.workspace.folders.input.iterdir()) == []


def test_a_name_given_twice(put: Stage) -> None:
    """Also in another Unicode spelling, and once in files and once in images."""
    error = put.refused({"a.png": "QUJD", "\u00e9.png": PNG64}, {"a.png": PNG64, "e\u0301.png": PNG64})
    assert [problem["problem"].count("given twice") for problem in error.details["problems"]] == [1, 1]


def test_a_file_that_is_the_folder_of_another(put: Stage) -> None:
    error = put.refused({"a": "QUJD", "a/b/c": "QUJD", "d": "QUJD"})
    assert "cannot also be a folder" in error.message
    assert list(put.workspace.folders.input.iterdir()) == []


def test_all_broken_data_at_once(put: Stage) -> None:
    error = put.refused(
        {"bad1": "*", "good": "QUJD", "bad2": "ftp://x/"}, {"bad3.png": base64.b64encode(PNG[:60]).decode()}
    )
    assert [problem["path"] for problem in error.details["problems"]] == ["'bad1'", "'bad2'", "'bad3.png'"]
    assert "truncated" in error.details["problems"][2]["problem"]


def test_files_that_load_image_would_read_are_checked_too(put: Stage) -> None:
    half = base64.b64encode(PNG[: len(PNG) // 2]).decode()
    assert "truncated" in put.refused({"bad.png": half}).message
    assert put({"mask.png": PNG64})["mask.png"].width == 8
    # No image by its bytes: none of LoadImage's business.
    assert put({"latent.png": "QUJD"})["latent.png"].width is None
    assert "truncated" in put.refused({"half.bin": half}).message


def test_pixels(put: Stage) -> None:
    put.settings["max_pixels"] = 63
    error = put.refused({}, {"bad.png": PNG64}, kind=PayloadTooLarge)
    assert "MAX_PIXELS" in error.message


def test_the_job_can_be_over_before_it_begins(put: Stage) -> None:
    put.seconds = -1
    put.refused({"a": "QUJD"}, kind=JobTimeout)
    put.seconds = 10
    put.cancel.set()
    put.refused({"a": "QUJD"}, kind=JobCanceled)


# --- URLs ------------------------------------------------------------------------------------------------

Answer = Callable[[BaseHTTPRequestHandler], None]


class Web:
    """An HTTP server on loopback whose paths answer as a test says."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer] = {}
        self.requests: list[str] = []
        self.headers: list[dict[str, str]] = []
        self.release = threading.Event()
        web = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                web.requests.append(self.path)
                web.headers.append(dict(self.headers))
                self.close_connection = True
                web.answers[self.path.split("?")[0]](self)

            def log_message(self, format: str, *args: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass  # clients that hang up are part of the tests

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def serve(self, path: str, body: bytes, status: int = 200, **headers: str) -> str:
        def answer(request: BaseHTTPRequestHandler) -> None:
            request.send_response(status)
            given = {name.replace("_", "-"): value for name, value in headers.items()}
            for name, value in {"Content-Length": str(len(body)), **given}.items():
                request.send_header(name, value)
            request.end_headers()
            request.wfile.write(body)

        self.answers[path] = answer
        return self.url(path)

    def close(self) -> None:
        self.release.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def web(monkeypatch: pytest.MonkeyPatch) -> Iterator[Web]:
    monkeypatch.setenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", "true")
    monkeypatch.setattr(fetch, "_RETRY_AFTER_S", (0.01, 0.01))
    server = Web()
    yield server
    server.close()


def test_urls_are_fetched_in_order_of_the_request(put: Stage, web: Web) -> None:
    urls = {f"f/{number}.bin": web.serve(f"/{number}", str(number).encode()) for number in range(10)}
    staged = put({**urls, "inline": "QUJD"}, {"p.png": web.serve("/p", PNG)})
    assert [file.path.read_bytes() for file in staged.values()][:10] == [str(n).encode() for n in range(10)]
    assert (staged["p.png"].width, staged["p.png"].size) == (8, len(PNG))
    assert put.done[-1] == (12, 12)
    assert len(put.done) == 12


def test_large_and_chunked_and_empty_bodies(put: Stage, web: Web) -> None:
    body = os.urandom(3_000_000)

    def chunked(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("Transfer-Encoding", "chunked")
        request.end_headers()
        for start in range(0, len(body), 70_000):
            part = body[start : start + 70_000]
            request.wfile.write(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        request.wfile.write(b"0\r\n\r\n")

    web.answers["/chunked"] = chunked
    staged = put({"c": web.url("/chunked"), "l": web.serve("/l", body), "e": web.serve("/e", b"")})
    assert staged["c"].path.read_bytes() == staged["l"].path.read_bytes() == body
    assert staged["e"].size == 0


def test_a_compressed_body_arrives_unpacked(put: Stage, web: Web) -> None:
    import gzip

    assert put({"z": web.serve("/z", gzip.compress(b"x" * 1000), Content_Encoding="gzip")})["z"].size == 1000
    assert web.headers[0]["Accept-Encoding"] == "identity"


def test_redirects_are_followed(put: Stage, web: Web) -> None:
    web.serve("/there", b"found")
    assert put.bytes_of(web.serve("/here", b"", 302, Location="/there?x=1")) == b"found"
    loop = web.serve("/loop", b"", 302, Location="/loop")
    assert "redirects" in put.refused({"bad": loop}, kind=DownloadFailed).message


@pytest.mark.parametrize("status", [204, 400, 401, 403, 404, 410])
def test_statuses_that_last(put: Stage, web: Web, status: int) -> None:
    url = web.serve("/a", b"", status) + "?X-Amz-Signature=secret&token=secret"
    error = put.refused({"bad": url}, kind=DownloadFailed)
    assert f"HTTP {status}" in error.message
    assert "127.0.0.1" in error.message
    assert not error.retryable
    assert len(web.requests) == 1


@pytest.mark.parametrize("status", [429, 500, 503])
def test_statuses_that_pass_are_tried_again(put: Stage, web: Web, status: int) -> None:
    url = web.serve("/a", b"", status)
    error = put.refused({"bad": url}, kind=DownloadFailed)
    assert f"HTTP {status}" in error.message
    assert error.retryable
    assert len(web.requests) == 3
    good = web.serve("/b", b"good")
    second = web.answers["/b"]

    def first(request: BaseHTTPRequestHandler) -> None:
        web.answers["/b"] = second
        request.send_error(status)

    web.answers["/b"] = first
    assert put.bytes_of(good) == b"good"


def test_no_secret_of_a_url_reaches_an_error_or_the_log(put: Stage, web: Web, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, "settee")
    host = f"user:secret@127.0.0.1:{web.port}"
    web.serve("/404", b"secret", 404)
    web.serve("/to", b"", 302, Location="http://nowhere.invalid/?secret")
    web.serve("/scheme", b"", 302, Location="ftp://host/?secret")
    closed = socket.create_server(("127.0.0.1", 0))
    port = closed.getsockname()[1]
    closed.close()
    for url in (
        f"http://{host}/404?secret#secret",
        f"http://{host}/to?secret",
        f"http://{host}/scheme?secret",
        f"http://127.0.0.1:{port}/secret?secret",
        "http://127.0.0.1:99999/secret?secret",
        "http://nowhere.invalid/secret?secret",
        "http://" + "x" * 70 + ".invalid/secret",
        "http://127.0.0.1:" + str(port) + "/\u2603?secret",
    ):
        error = put.refused({"bad": url}, kind=SetteeError)
        assert isinstance(error, (DownloadFailed, InvalidRequest)), url
        assert "secret" not in str(error.as_dict()) + caplog.text, url
        assert "'bad'" in error.message


@pytest.mark.parametrize("declared", ["Content-Length", "chunked"])
def test_a_body_that_breaks_off_is_an_error(put: Stage, web: Web, declared: str) -> None:
    def answer(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        if declared == "chunked":
            request.send_header("Transfer-Encoding", "chunked")
            request.end_headers()
            request.wfile.write(b"ff\r\nonly this")
        else:
            request.send_header("Content-Length", "100")
            request.end_headers()
            request.wfile.write(b"only this")

    web.answers["/a"] = answer
    error = put.refused({"bad": web.url("/a")}, kind=DownloadFailed)
    assert "broke off" in error.message or "9 of 100 bytes" in error.message
    assert error.retryable
    assert len(web.requests) == 3


def test_a_body_over_the_limit_is_cut_off(put: Stage, web: Web) -> None:
    put.settings["max_file_mb"] = 1

    def endless(request: BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.end_headers()
        while not web.release.is_set():
            request.wfile.write(b"x" * 65536)

    web.answers["/endless"] = endless
    assert "MAX_FILE_MB" in put.refused({"bad": web.url("/endless")}, kind=PayloadTooLarge).message
    big = web.serve("/big", b"", Content_Length=str(2 << 20))
    assert "MAX_FILE_MB" in put.refused({"bad": big}, kind=PayloadTooLarge).message
    assert len(web.requests) == 2


def stall(web: Web, *, head: bool, trickle: bool = False) -> Answer:
    """A server that falls silent before or after its header, or sends a byte now and then."""

    def answer(request: BaseHTTPRequestHandler) -> None:
        if head:
            request.send_response(200)
            request.send_header("Content-Length", "1000000")
            request.end_headers()
        while not web.release.wait(0.02 if trickle else 60):
            request.wfile.write(b"x")

    return answer


@pytest.mark.parametrize("kind", ["silent", "silent body", "trickle"])
def test_a_stalled_download_ends_with_the_time_limit(put: Stage, web: Web, kind: str) -> None:
    web.answers["/a"] = stall(web, head=kind != "silent", trickle=kind == "trickle")
    put.settings["download_timeout_s"] = 0.4
    began = time.monotonic()
    assert "DOWNLOAD_TIMEOUT_S" in put.refused({"bad": web.url("/a")}, kind=DownloadFailed).message
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("kind", ["silent", "silent body", "trickle"])
def test_a_stalled_download_ends_with_the_job(put: Stage, web: Web, kind: str) -> None:
    web.answers["/a"] = stall(web, head=kind != "silent", trickle=kind == "trickle")
    put.seconds = 0.4
    began = time.monotonic()
    put.refused({"bad": web.url("/a")}, kind=JobTimeout)
    assert time.monotonic() - began < 3


@pytest.mark.parametrize("kind", ["silent", "silent body", "trickle"])
def test_cancel_ends_downloads_and_nothing_writes_afterwards(put: Stage, web: Web, kind: str) -> None:
    web.answers["/a"] = stall(web, head=kind != "silent", trickle=kind == "trickle")

    def cancel() -> None:
        while not (web.requests if kind == "silent" else os.listdir(put.workspace.folders.input)):
            time.sleep(0.002)
        put.cancel.set()

    canceler = threading.Thread(target=cancel)
    canceler.start()
    began = time.monotonic()
    put.refused({f"bad{number}": web.url("/a") for number in range(6)}, kind=JobCanceled)
    assert time.monotonic() - began < 3
    canceler.join()
    web.release.set()  # those that were waited for answer now
    assert put.workspace.wipe().files == 0


def test_the_first_failure_ends_the_others(put: Stage, web: Web) -> None:
    web.answers["/slow"] = stall(web, head=True)
    bad = web.serve("/404", b"", 404)
    began = time.monotonic()
    put.refused({"bad1": web.url("/slow"), "bad2": bad, "bad3": web.url("/slow")}, kind=DownloadFailed)
    assert list(put.workspace.folders.input.iterdir()) == []
    assert time.monotonic() - began < 3


def test_four_at_a_time(put: Stage, web: Web) -> None:
    running, most, lock = 0, 0, threading.Lock()
    together = threading.Barrier(4, timeout=10)

    def answer(request: BaseHTTPRequestHandler) -> None:
        nonlocal running, most
        with lock:
            running += 1
            most = max(most, running)
        together.wait()
        with lock:
            running -= 1
        request.send_response(200)
        request.send_header("Content-Length", "0")
        request.end_headers()

    web.answers["/a"] = answer
    put({str(number): web.url("/a") for number in range(8)})
    assert most == 4


def test_broken_data_is_told_before_anything_is_fetched(put: Stage, web: Web) -> None:
    put.refused({"good": web.serve("/a", b"x"), "bad": "*"})
    assert web.requests == []


def test_all_broken_pictures_at_urls_at_once(put: Stage, web: Web) -> None:
    error = put.refused(
        {}, {"a.png": web.serve("/a", PNG[:50]), "b.png": web.serve("/b", PNG), "c.png": web.serve("/c", b"")}
    )
    assert sorted(problem["path"] for problem in error.details["problems"]) == ["'a.png'", "'c.png'"]


# --- addresses that may not be fetched -------------------------------------------------------------------


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}/a",
        "http://localhost:{port}/a",
        "http://[::1]:{port}/a",
        "http://[::ffff:127.0.0.1]:{port}/a",
        "http://2130706433:{port}/a",
        "http://0.0.0.0:{port}/a",
        "http://169.254.169.254/latest/meta-data/",
        "http://10.0.0.1/",
        "http://100.64.0.1/",
    ],
)
def test_private_addresses_are_refused(put: Stage, web: Web, monkeypatch: pytest.MonkeyPatch, url: str) -> None:
    monkeypatch.delenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS")
    for variable in ("http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(variable, raising=False)
    web.serve("/a", b"internal")
    error = put.refused({"bad": url.format(port=web.port)}, kind=SetteeError)
    assert isinstance(error, InvalidRequest)
    assert "not allowed" in error.message
    assert web.requests == []


def test_a_proxy_is_named_as_the_reason(put: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setenv("http_proxy", "http://user:secret@127.0.0.1:9")
    error = put.refused({"bad": "http://example.com/?secret"}, kind=DownloadFailed)
    assert "NO_PROXY" in error.message
    assert "secret" not in error.message


def test_the_callers_own_s3_endpoint_may_not_be_private_either(
    put: Stage, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else s3Config would be a way to read anything inside the worker's network."""
    from settee.request import Bucket

    monkeypatch.delenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS")
    monkeypatch.delenv("http_proxy", raising=False)
    monkeypatch.delenv("HTTP_PROXY", raising=False)
    web.serve("/latest/meta-data", b"internal")
    bucket = Bucket(accessId="id", accessSecret="secret", bucketName="b", endpointUrl=web.url(""))
    with pytest.raises(InvalidRequest, match="not allowed"):
        stage(
            [InputFile(name="a", data="s3://latest/meta-data")],
            [],
            put.workspace,
            Settings(),
            cancel=put.cancel,
            deadline=time.monotonic() + 10,
            bucket=bucket,
        )
    assert web.requests == []


def test_no_thread_and_no_descriptor_stays(put: Stage, web: Web) -> None:
    put({"warm": web.serve("/a", b"x" * 100)})
    put.workspace.wipe()
    descriptors, threads = len(os.listdir("/proc/self/fd")), threading.active_count()
    put({str(number): web.serve(f"/{number}", b"x" * 100) for number in range(5)})
    put.refused({"bad": web.serve("/404", b"", 404)}, kind=DownloadFailed)
    eventually(lambda: len(os.listdir("/proc/self/fd")) <= descriptors, what="as few descriptors as before")
    eventually(lambda: threading.active_count() <= threads, what="as few threads as before")
