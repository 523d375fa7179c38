"""Attacks on the parts between the door and ComfyUI that succeeded. Each asks for what should be."""

from __future__ import annotations

import base64
import io
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from PIL import Image

from settee.base import logs
from settee.base.errors import ConfigError, DeliveryError, InvalidRequest, JobCanceled, JobTimeout
from settee.base.job import Cancel, Limits, Result
from settee.delivery import check_request, convert, to_s3
from settee.doors.runpod import render
from settee.doors.runpod.door import ENVELOPE
from settee.engine.request import MAX_HINTS, parse
from settee.net import addresses as net_addresses
from settee.s3.target import endpoint_problem
from settee.staging import fetch
from settee.staging.fetch import Remote
from settee.staging.images import check_image
from settee.staging.inputs import Staging
from settee.staging.workspace import Folders, Workspace
from tests.support.delivering import WORKFLOW, bucket_settings, file_artifact, make_job, make_settings, run
from tests.support.faulty_s3 import FaultyS3
from tests.support.staging import request


def _bucket(endpoint: str) -> dict[str, str]:
    return {"accessId": "a", "accessSecret": "b", "bucketName": "bkt", "endpointUrl": endpoint}


# --- SSRF ------------------------------------------------------------------------------------------------


def test_an_s3config_whose_host_two_parsers_read_differently_reaches_nobody(tmp_path: Path) -> None:
    """urlsplit takes 8.8.8.8 for the host, urllib3 (which connects) 127.0.0.1."""
    server = FaultyS3()
    (tmp_path / "a.png").write_bytes(b"x" * 100)
    with server.running():
        port = urlsplit(server.endpoint_url).port
        job = make_job("s3", bucket=_bucket(f"http://127.0.0.1:{port}\\@8.8.8.8/"))
        with pytest.raises(InvalidRequest):
            check_request(job.request, make_settings())
        with pytest.raises(DeliveryError, match="endpointUrl"):
            run([file_artifact(tmp_path / "a.png")], job, make_settings(), seconds=5)
        assert not server.requests


@pytest.mark.parametrize("host", ["[64:ff9b::7f00:1]", "[::7f00:1]", "[2002:7f00:1::]"])
def test_an_s3config_with_a_private_address_inside_an_ipv6_one(host: str) -> None:
    """NAT64, IPv4-compatible, 6to4; the SDK's own check (rp_ssrf.is_safe_address) refuses the first."""
    assert endpoint_problem(f"http://{host}:9000")


def test_a_callers_s3_address_stays_at_the_operators_endpoint() -> None:
    """s3://minio/key cut `minio.` off the operator's host; signed with the operator's keys, and trusted."""
    settings = make_settings(
        bucket_endpoint_url="https://minio.internal.example", bucket_access_key_id="K", bucket_secret_access_key="S"
    )
    remote = fetch.s3("x", "s3://minio/key", settings, None)
    assert urlsplit(remote.url).hostname == "minio.internal.example"


# --- Errors that crash -----------------------------------------------------------------------------------


def test_an_endpoint_that_cannot_be_parsed_is_the_callers_mistake() -> None:
    request = parse({"workflow": WORKFLOW}, make_settings(), bucket=_bucket("http://[::1"))
    with pytest.raises(InvalidRequest):
        check_request(request, make_settings())


@pytest.mark.parametrize("url", ["http://[::1", "http://s3.example:x", "http://s3.example:99999", "http://:9000"])
def test_an_operators_endpoint_that_cannot_be_parsed_is_named(url: str) -> None:
    settings = make_settings(bucket_endpoint_url=url, bucket_access_key_id="K", bucket_secret_access_key="S")
    with pytest.raises(ConfigError, match="BUCKET_ENDPOINT_URL"):
        check_request(parse({"workflow": WORKFLOW}, settings), settings)


@pytest.mark.parametrize(
    "url",
    [
        "http://8.8.8.8:x",
        "http://8.8.8.8:0",
        "http://8.8.8.8\\@127.0.0.1",
        "http://a@8.8.8.8",
        "http://8.8.8.8?x",
        "http://8.8.8.8#x",
        "http://8.8.8.8/\t",
        "http://8.8.8.8%2f",
        "http://[fe80::1%25eth0]",
        "ftp://8.8.8.8",
        "http://[::ffff:10.0.0.1]",
        "http://[2001:0:7f00:1::]",
    ],
)
def test_endpoints_that_no_caller_may_name(url: str) -> None:
    assert endpoint_problem(url)


def test_an_unusual_error_of_botocore_is_explained(tmp_path: Path) -> None:
    """explain() asks botocore.exceptions for ResponseParserError, which lives in botocore.parsers."""
    (tmp_path / "a.png").write_bytes(b"x")
    settings = make_settings(
        bucket_endpoint_url="http://127.0.0.1:x",
        bucket_access_key_id="K",
        bucket_secret_access_key="S",
        bucket_name="bkt",
    )
    with pytest.raises(DeliveryError, match="BUCKET_ENDPOINT_URL"):
        run([file_artifact(tmp_path / "a.png")], make_job("s3"), settings, seconds=5)


# --- Cancel and deadline -----------------------------------------------------------------------------------


@pytest.mark.parametrize("stop", ["cancel", "deadline"])
def test_conversions_that_are_only_measured_stop_as_well(
    stop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """plan.choose converts every image to learn its size, and looks at neither cancel nor deadline."""
    done: list[str] = []
    real = convert.convert

    def counted(content: Any, filename: str, *options: Any) -> Any:
        done.append(filename)
        return real(content, filename, *options)

    monkeypatch.setattr(convert, "convert", counted)
    Image.effect_noise((1200, 1200), 80).convert("RGB").save(tmp_path / "0.png", compress_level=1)
    artifacts = []
    for index in range(12):
        path = tmp_path / f"i{index}.png"
        os.link(tmp_path / "0.png", path)
        artifacts.append(file_artifact(path))
    job = make_job({"image_format": "webp"}, max_result_bytes=9_968_000)
    with Cancel() as cancel:
        timer = threading.Timer(0.2, cancel.set if stop == "cancel" else lambda: None)
        timer.start()
        with pytest.raises(JobCanceled if stop == "cancel" else JobTimeout):
            run(artifacts, job, make_settings(), cancel=cancel, seconds=60 if stop == "cancel" else 0.2)
        timer.join()
    assert 0 < len(done) < len(artifacts)


def test_a_multipart_upload_that_begins_after_the_cancel_is_aborted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """create_multipart_upload answered after the time of grace: the upload that it made is aborted all the same."""
    monkeypatch.setattr(to_s3, "GRACE_S", 0.3)
    server = FaultyS3()
    with (tmp_path / "big.bin").open("wb") as file:
        file.truncate(70 * 1024 * 1024)
    with Cancel() as cancel, server.running():

        def slow(line: str) -> None:
            if line.startswith("POST") and line.endswith("?uploads"):
                cancel.set()
                time.sleep(1.5)

        server.on_request = slow
        with pytest.raises(JobCanceled):
            run(
                [file_artifact(tmp_path / "big.bin")],
                make_job("s3"),
                bucket_settings(server, "bkt"),
                cancel=cancel,
            )
        deadline = time.monotonic() + 4
        while time.monotonic() < deadline:  # it is made late, and lives for a moment only
            if any(line.startswith("DELETE") and "uploadId=" in line for line in server.requests):
                break
            time.sleep(0.05)
        else:
            raise AssertionError("nobody aborted the upload")
        while server.uploads and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not server.uploads


def test_a_jpeg_of_many_scans_does_not_hold_a_cancel_up(tmp_path: Path) -> None:
    """600 KB, 100 megapixels, 200 scans: 13 s in libjpeg, and nothing looks at the cancel meanwhile."""
    file = io.BytesIO()
    Image.new("RGB", (9990, 9990), (100, 50, 20)).save(file, "JPEG", progressive=True, quality=90)
    data = file.getvalue()
    last = data.rfind(b"\xff\xda")
    scan = data[last:-2]
    path = tmp_path / "a.jpg"
    path.write_bytes(data[:-2] + scan * (200 - data.count(b"\xff\xda")) + b"\xff\xd9")
    begun = time.monotonic()
    with pytest.raises(InvalidRequest, match="scans"):
        check_image(path, 100_000_000)
    assert time.monotonic() - begun < 5


@pytest.mark.parametrize("kind", ["half a png", "postscript", "too large"])
def test_an_image_by_another_name_is_checked(kind: str, tmp_path: Path) -> None:
    """LoadImage opens any file of the input folder, and Pillow goes by its first bytes."""
    buffer = io.BytesIO()
    Image.effect_noise((64, 64), 80).save(buffer, "PNG")
    png = buffer.getvalue()
    data = {"half a png": png[: len(png) // 2], "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n", "too large": png}[kind]
    files = request({"a.bin": base64.b64encode(data).decode()})
    settings = make_settings(max_pixels=64 * 64 - 1 if kind == "too large" else 64 * 64)
    workspace = Workspace(Folders(tmp_path / "input", tmp_path / "output", None))
    workspace.open()
    with Cancel() as cancel, pytest.raises(InvalidRequest, match=r"a\.bin"):
        Staging(files, workspace, settings, Limits(cancel=cancel, deadline=time.monotonic() + 10)).run()


def test_what_only_begins_like_a_bitmap_is_a_file(tmp_path: Path) -> None:
    settings = make_settings()
    workspace = Workspace(Folders(tmp_path / "input", tmp_path / "output", None))
    workspace.open()
    files = request({"a.txt": base64.b64encode(b"BMW and others, a list of cars").decode()})
    with Cancel() as cancel:
        (staged,) = Staging(files, workspace, settings, Limits(cancel=cancel, deadline=time.monotonic() + 10)).run()
    assert staged.size == 30


def test_a_request_with_very_many_mistakes_compares_few_of_them() -> None:
    """Every unknown key is compared with all known ones, and gets 150 bytes in details; a 10 MB request has 700,000."""
    with pytest.raises(InvalidRequest) as caught:
        parse({f"k{index}": 1 for index in range(60_000)}, make_settings())
    problems = [problem["problem"] for problem in caught.value.details["problems"]]
    assert len(problems) <= 1000
    assert 0 < sum("known keys" in problem for problem in problems) <= MAX_HINTS


# --- The cap -----------------------------------------------------------------------------------------------


def test_warnings_count_towards_the_cap(tmp_path: Path) -> None:
    """Delivery leaves 40 kB for warnings, which are shown twice: 300 of them take 130 kB."""
    frames = [Image.effect_noise((16, 16), 90).convert("P") for _ in range(2)]
    frames[0].save(tmp_path / "0.gif", save_all=True, append_images=frames[1:])
    artifacts = []
    for index in range(300):
        path = tmp_path / f"{'x' * 150}{index:05}.gif"
        os.link(tmp_path / "0.gif", path)
        artifacts.append(file_artifact(path))
    cap = 10_000_000
    job = make_job({"image_format": "webp"}, max_result_bytes=cap - ENVELOPE)
    filler = tmp_path / "filler.bin"
    settings = make_settings()
    low, high = 0, 8_000_000
    best = None
    while high - low > 2000:  # the largest that delivery lets through
        middle = (low + high) // 2
        filler.write_bytes(bytes(middle))
        try:
            best = run([*artifacts, file_artifact(filler)], job, settings)
            low = middle
        except DeliveryError:
            high = middle
    assert best is not None
    done = Result(outputs=best.outputs, warnings=best.warnings)
    assert len(render.Body(render.message(render.result(done)))) <= cap


# --- Logs --------------------------------------------------------------------------------------------------


@contextmanager
def _odd_server() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection:
                connection.recv(4096)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nno colon here\r\n\r\nhi")

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield server.getsockname()[1]
        thread.join(5)


def test_a_downloads_url_is_in_no_log(tmp_path: Path) -> None:
    """urllib3 warns of odd headers with the whole URL; our set-up lets libraries' warnings through."""
    stream = io.StringIO()
    logs.setup(make_settings(), stream)

    def sink(name: str, chunks: object) -> str:
        b"".join(chunks)  # type: ignore[call-overload]
        return ""

    with _odd_server() as port, Cancel() as cancel:
        remote = Remote("a.bin", f"http://127.0.0.1:{port}/p?signature=private", "here", public_only=False, redirects=0)
        limits = Limits(cancel=cancel, deadline=time.monotonic() + 10)
        fetch.Downloads(sink, make_settings(), limits).run([remote], lambda *_: None)
    assert "private" not in stream.getvalue()


def test_a_sealed_jobs_prefix_and_endpoint_are_in_no_log(tmp_path: Path) -> None:
    """botocore's error text holds the URL: the endpoint, the caller's prefix and (plain jobs) the file's name."""
    stream = io.StringIO()
    logs.setup(make_settings(), stream)
    (tmp_path / "a.png").write_bytes(b"x")
    from settee.base.sealing import generate_key
    from settee.s3 import objects

    patience, objects.PATIENCE_S = objects.PATIENCE_S, 0.1
    try:
        settings = make_settings(
            bucket_endpoint_url="http://127.0.0.1:9",
            bucket_access_key_id="K",
            bucket_secret_access_key="S",
            bucket_name="bkt",
        )
        with pytest.raises(DeliveryError):
            run(
                [file_artifact(tmp_path / "a.png")],
                make_job({"mode": "s3", "prefix": "private-client"}, sealed_by=generate_key()),
                settings,
                seconds=20,
            )
    finally:
        objects.PATIENCE_S = patience
    assert "private-client" not in stream.getvalue()


# --- DNS ---------------------------------------------------------------------------------------


def test_an_s3config_is_reached_at_the_address_that_was_checked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """DNS rebinding: the host is looked up for the check and once more by urllib3, which nobody checks."""
    real = socket.getaddrinfo

    def rebinding(host: object, port: object, *args: object, **kwargs: object) -> object:
        if host == "rebind.test":
            host = "8.8.8.8" if port is None else "127.0.0.1"
        return real(host, port, *args, **kwargs)  # type: ignore[arg-type]

    server = FaultyS3()
    (tmp_path / "a.png").write_bytes(b"x" * 100)
    with server.running():
        port = urlsplit(server.endpoint_url).port
        job = make_job("s3", bucket=_bucket(f"http://rebind.test:{port}"))
        monkeypatch.setattr(socket, "getaddrinfo", rebinding)
        check_request(job.request, make_settings())
        with pytest.raises(DeliveryError, match="not on the public Internet"):
            run([file_artifact(tmp_path / "a.png")], job, make_settings(), seconds=5)
        assert not server.requests


def test_a_guarded_client_tries_each_address_and_delivers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host's first address refuses the connection, its second takes the file."""
    real = socket.getaddrinfo

    def two(host: object, port: object, *args: object, **kwargs: object) -> object:
        if host == "two.test":
            return [*real("127.0.0.2", port, *args, **kwargs), *real("127.0.0.1", port, *args, **kwargs)]  # type: ignore[arg-type]
        return real(host, port, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(socket, "getaddrinfo", two)
    monkeypatch.setattr(net_addresses, "is_public", lambda text: True)
    server = FaultyS3()
    (tmp_path / "a.png").write_bytes(b"x" * 100)
    with server.running():
        port = urlsplit(server.endpoint_url).port
        job = make_job("s3", bucket=_bucket(f"http://two.test:{port}"))
        (output,) = run([file_artifact(tmp_path / "a.png")], job, make_settings(), seconds=20).outputs
        assert list(server.objects.values()) == [b"x" * 100]
    assert urlsplit(output.url or "").hostname == "two.test"
