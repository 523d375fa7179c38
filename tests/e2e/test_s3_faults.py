"""Delivery to an S3 server that fails: what is tried again, what is cleared up, and how long it takes."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import DeliveryError, JobCanceled, JobTimeout
from settee.base.job import Artifact, Cancel
from settee.delivery import to_s3
from settee.delivery.blob import CHUNK
from settee.s3 import client, objects
from tests.support.delivering import bucket_settings, file_artifact, make_job, only, run
from tests.support.faulty_s3 import CUT, ERROR, HANG, HTML, LOST, OK, SHORT, FaultyS3
from tests.support.waiting import eventually

MIB = 1024 * 1024


@pytest.fixture
def server() -> Iterator[FaultyS3]:
    with FaultyS3().running() as running:
        yield running


@pytest.fixture(autouse=True)
def _small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Parts of kilobytes: this server has no least size, and large ones would only take longer."""
    monkeypatch.setattr(to_s3, "MULTIPART_BYTES", 4 * MIB)
    monkeypatch.setattr(to_s3, "PART_BYTES", MIB)
    monkeypatch.setattr(to_s3, "STREAM_PART_BYTES", MIB)
    monkeypatch.setattr(objects, "PATIENCE_S", 0.5)


def make(path: Path, size: int) -> Artifact:
    path.write_bytes(os.urandom(size))
    return file_artifact(path)


def deliver(server: FaultyS3, *artifacts: Artifact, **options: Any) -> Any:
    return run(artifacts, make_job("s3"), bucket_settings(server, "bucket"), **options)


SIZES = pytest.mark.parametrize("size", [100, 3 * MIB, 5 * MIB], ids=["bytes", "file", "parts"])


@SIZES
@pytest.mark.parametrize("fault", [CUT, ERROR, LOST])
def test_a_request_that_fails_once_is_sent_again_whole(server: FaultyS3, tmp_path: Path, size: int, fault: str) -> None:
    server.faults = [fault]
    artifact = make(tmp_path / "a.bin", size)
    output = only(deliver(server, artifact))
    assert artifact.path is not None
    assert server.objects["bucket/job-1/a.bin"] == artifact.path.read_bytes()
    assert output.size == size
    assert not server.uploads


@pytest.mark.parametrize("fault", [CUT, ERROR, LOST])
def test_the_last_request_of_a_multipart_upload_may_fail_too(server: FaultyS3, tmp_path: Path, fault: str) -> None:
    server.faults = [OK] * 5 + [fault]
    artifact = make(tmp_path / "a.bin", 5 * MIB)
    deliver(server, artifact)
    assert server.even
    assert artifact.path is not None
    assert server.objects == {"bucket/job-1/a.bin": artifact.path.read_bytes()}


@SIZES
def test_a_server_that_always_fails_is_given_up_on_and_left_clean(
    server: FaultyS3, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(objects, "PATIENCE_S", 3.0)  # botocore's own attempts take most of 0.5 s on a busy machine
    server.then = ERROR
    with pytest.raises(DeliveryError) as error:
        deliver(server, make(tmp_path / "a.bin", size))
    assert error.value.retryable
    assert "500" in error.value.message
    assert server.objects == {}
    assert server.uploads == {}
    assert len([line for line in server.requests if line.startswith("PUT")]) > client.BOTOCORE_ATTEMPTS


@SIZES
def test_a_server_that_always_hangs_up_is_given_up_on_and_left_clean(
    server: FaultyS3, tmp_path: Path, size: int
) -> None:
    server.then = LOST
    with pytest.raises(DeliveryError, match="drops the connection") as error:
        deliver(server, make(tmp_path / "a.bin", size))
    assert error.value.retryable
    assert error.value.details["settings"] == ["BUCKET_ENDPOINT_URL"]
    # Each attempt had stored it: the answer got lost, so only the clearing up can know.
    assert server.objects == {}
    assert server.uploads == {}


@SIZES
def test_an_outage_of_seconds_costs_no_result(
    server: FaultyS3, tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """botocore alone gives up within a second, and what is lost then took GPU time to make."""
    monkeypatch.setattr(objects, "PATIENCE_S", 120.0)
    back = time.monotonic() + 1.5
    server.then = ERROR

    def on_request(line: str) -> None:
        if time.monotonic() > back:
            server.then = OK

    server.on_request = on_request
    artifact = make(tmp_path / "a.bin", size)
    deliver(server, artifact)
    assert artifact.path is not None
    assert server.objects == {"bucket/job-1/a.bin": artifact.path.read_bytes()}


def test_files_that_were_up_already_are_deleted(server: FaultyS3, tmp_path: Path) -> None:
    server.faults = [OK] * 12
    server.then = ERROR
    with pytest.raises(DeliveryError):
        deliver(server, *(make(tmp_path / f"{number}.bin", 100) for number in range(16)))
    assert server.objects == {}


def test_an_object_that_is_shorter_than_its_file_is_no_success(server: FaultyS3, tmp_path: Path) -> None:
    server.faults = [OK, OK, SHORT]
    with pytest.raises(DeliveryError, match="stored 5242879 of the 5242880 bytes") as error:
        deliver(server, make(tmp_path / "a.bin", 5 * MIB))
    assert error.value.retryable
    assert server.objects == {}


def test_an_address_that_serves_web_pages(server: FaultyS3, tmp_path: Path) -> None:
    """The console instead of the API, say. boto3 takes a page for the answer of a put, but not for an upload id."""
    server.then = HTML
    with pytest.raises(DeliveryError) as error:
        deliver(server, make(tmp_path / "a.bin", 100))
    assert "BUCKET_ENDPOINT_URL" in error.value.message


@SIZES
@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_server_that_never_answers_holds_no_job(
    server: FaultyS3, tmp_path: Path, size: int, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(to_s3, "GRACE_S", 0.3)
    monkeypatch.setattr(to_s3, "CLEAN_UP_S", 5.0)
    server.then = HANG
    with Cancel() as cancel:
        if how == "cancel":
            server.on_request = lambda line: cancel.set() if line.startswith("PUT") else None
        began = time.monotonic()
        with pytest.raises(JobCanceled if how == "cancel" else JobTimeout):
            deliver(server, make(tmp_path / "a.bin", size), cancel=cancel, seconds=60 if how == "cancel" else 0.5)
        assert time.monotonic() - began < 30
    assert server.uploads == {}


def test_what_arrives_after_the_end_is_taken_back(
    server: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A put that was under way when the job was canceled, and whose thread only hears of it when it is done."""
    monkeypatch.setattr(to_s3, "GRACE_S", 0.1)
    stored, cleared = threading.Event(), threading.Event()

    def on_request(line: str) -> None:
        if line.startswith("PUT"):
            cancel.set()
            cleared.wait(10)
        elif line.startswith("DELETE"):
            (stored if cleared.is_set() else cleared).set()

    server.on_request = on_request
    with Cancel() as cancel, pytest.raises(JobCanceled):
        deliver(server, make(tmp_path / "a.bin", 100), cancel=cancel)
    assert stored.wait(10)
    eventually(lambda: server.objects == {}, what="an empty bucket")


def test_a_cancel_stops_a_large_upload_at_once(server: FaultyS3, tmp_path: Path) -> None:
    """Within a part, not after it: the body stops giving bytes."""
    with Cancel() as cancel:
        server.on_request = lambda line: cancel.set() if "partNumber=2" in line else None
        with pytest.raises(JobCanceled):
            deliver(server, make(tmp_path / "a.bin", 40 * MIB), cancel=cancel)
    assert server.received < 30 * MIB
    assert (server.objects, server.uploads) == ({}, {})


def test_a_file_that_shrinks_meanwhile_is_no_success(server: FaultyS3, tmp_path: Path) -> None:
    artifact = make(tmp_path / "a.bin", 6 * MIB)
    assert artifact.path is not None
    path = artifact.path

    def shrink(line: str) -> None:
        if "partNumber" in line:
            os.truncate(path, MIB)

    server.on_request = shrink
    with pytest.raises(DeliveryError):
        deliver(server, artifact)
    assert (server.objects, server.uploads) == ({}, {})


def test_a_stream_keeps_few_parts_in_memory(server: FaultyS3, tmp_path: Path) -> None:
    """Fetching waits for the uploads: otherwise a fast ComfyUI would fill the memory before a slow bucket."""
    under_way, most = 0, 0
    lock = threading.Lock()
    release = threading.Event()

    def fetch(artifact: Artifact) -> Iterator[bytes]:
        nonlocal most
        for number in range(100):
            most = max(most, number * MIB // 10 - server.received)
            yield bytes(MIB // 10)

    def on_request(line: str) -> None:
        nonlocal under_way
        if "partNumber" in line:
            with lock:
                under_way += 1
            release.wait(0.05)

    server.on_request = on_request
    output = only(deliver(server, file_artifact(tmp_path / "a.bin", path=None, size=-1), fetch=fetch))
    assert output.size == MIB // 10 * 100
    assert under_way == 10
    assert server.even
    assert most <= (to_s3.STREAM_PARTS + 1) * MIB + CHUNK
