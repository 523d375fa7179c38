"""Delivery to a real S3 server (SeaweedFS) that goes wrong: what is said, and what is left."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from settee.base.errors import DeliveryError, JobCanceled, JobTimeout, OutputMissing
from settee.base.job import Artifact, Cancel
from settee.delivery import to_s3
from settee.s3 import objects
from tests.support.delivering import bucket_settings, file_artifact, make_job, run
from tests.support.s3 import S3Server, free_ports
from tests.support.uploading import KEY, MIB, uploads_in, write


@pytest.fixture
def big(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A film that goes up in parts, of S3's least size here."""
    monkeypatch.setattr(to_s3, "MULTIPART_BYTES", 8 * MIB)
    monkeypatch.setattr(to_s3, "PART_BYTES", 5 * MIB)
    return write(tmp_path / "big" / "film.mp4", os.urandom(MIB) * 13 + b"the end")


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(objects, "PATIENCE_S", 0.3)


def failure(artifacts: list[Artifact], config: Any, **options: Any) -> DeliveryError:
    with pytest.raises(DeliveryError) as error:
        run(artifacts, make_job("s3"), config, **options)
    shown = str([error.value.message, error.value.details])
    assert config.bucket_secret_access_key.get_secret_value() not in shown
    assert config.bucket_access_key_id.get_secret_value() not in shown
    assert "127.0.0.1" not in shown
    return error.value


class _Relay:
    """A wire that turns one run of bytes into another on its way to the server."""

    def __init__(self, target: str, corrupt: bytes) -> None:
        parts = urlsplit(target)
        self._target = (parts.hostname, parts.port)
        self._corrupt = corrupt
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self.corrupted = 0

    def running(self) -> Any:
        threading.Thread(target=self._accept, daemon=True).start()
        return self._listener

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            far = socket.create_connection(self._target, timeout=30)
            threading.Thread(target=self._copy, args=(near, far, True), daemon=True).start()
            threading.Thread(target=self._copy, args=(far, near, False), daemon=True).start()

    def _copy(self, source: socket.socket, sink: socket.socket, upwards: bool) -> None:
        try:
            while data := source.recv(65_536):
                if upwards and self._corrupt[:1] in data and b"HTTP/1.1" not in data:
                    data = data.replace(self._corrupt[:1], b"B")
                    self.corrupted += 1
                sink.sendall(data)
        except OSError:
            pass
        finally:
            source.close()
            sink.close()


@pytest.mark.usefixtures("impatient")
def test_the_server_refuses_bytes_that_changed_on_the_way(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Why no ETag is compared: the hash in each request's signature does it, at the server."""
    relay = _Relay(s3.endpoint_url, corrupt=b"C" * 64)
    content = b"A" * 1_500_000 + b"C" * 64 + b"A" * 1_500_000
    artifact = file_artifact(write(tmp_path / "a.bin", content))
    config = bucket_settings(s3, bucket, bucket_endpoint_url=relay.url)
    with relay.running(), pytest.raises(DeliveryError):
        run([artifact], make_job("s3"), config)
    assert relay.corrupted
    assert s3.keys(bucket) == []


def test_wrong_secret(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    artifact = file_artifact(write(tmp_path / "a.png", b"x"))
    error = failure([artifact], bucket_settings(s3, bucket, bucket_secret_access_key="wrong-secret"))
    assert error.details["settings"] == ["BUCKET_ACCESS_KEY_ID", "BUCKET_SECRET_ACCESS_KEY"]
    error = failure([artifact], bucket_settings(s3, bucket, bucket_access_key_id="nobody"))
    assert "BUCKET_ACCESS_KEY_ID" in error.message
    assert not error.retryable


@pytest.mark.parametrize("large", [False, True])
def test_missing_bucket(s3: S3Server, big: Path, tmp_path: Path, large: bool) -> None:
    artifact = file_artifact(big if large else write(tmp_path / "a.png", b"x"))
    error = failure([artifact], bucket_settings(s3, "no-such-bucket"))
    assert "'no-such-bucket'" in error.message
    assert error.details["settings"] == ["BUCKET_NAME"]


@pytest.mark.usefixtures("impatient")
def test_nobody_listens(s3: S3Server, tmp_path: Path) -> None:
    artifact = file_artifact(write(tmp_path / "a.png", b"x"))
    nowhere = f"http://127.0.0.1:{free_ports(1)[0]}"
    error = failure([artifact], bucket_settings(s3, "any", bucket_endpoint_url=nowhere))
    assert error.details["settings"] == ["BUCKET_ENDPOINT_URL"]
    assert error.retryable


def test_an_address_that_is_none(s3: S3Server, tmp_path: Path) -> None:
    artifact = file_artifact(write(tmp_path / "a.png", b"x"))
    error = failure([artifact], bucket_settings(s3, "any", bucket_endpoint_url="not an address"))
    assert "BUCKET_ENDPOINT_URL" in error.message


def test_one_missing_file_takes_back_the_others(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    artifacts = [file_artifact(write(tmp_path / f"{number}.png", b"x")) for number in range(20)]
    artifacts.append(file_artifact(tmp_path / "gone.png"))
    with pytest.raises(OutputMissing):
        run(artifacts, make_job("s3"), bucket_settings(s3, bucket))
    assert s3.keys(bucket) == []


@pytest.mark.parametrize("sealed", [False, True])
def test_a_failure_in_the_middle_of_a_large_file_leaves_no_part(
    s3: S3Server, bucket: str, big: Path, tmp_path: Path, sealed: bool
) -> None:
    def fetch(artifact: Artifact) -> Iterator[bytes]:
        for _ in range(20):
            yield bytes(MIB)

    artifacts = [
        file_artifact(write(tmp_path / "small.png", b"x")),
        file_artifact(big),
        file_artifact(tmp_path / "cut.mp4", path=None, size=30 * MIB),
    ]
    config, key = bucket_settings(s3, bucket), KEY if sealed else None
    with pytest.raises(DeliveryError, match="sent 20971520 of the 31457280 bytes"):
        run(artifacts, make_job("s3", sealed_by=key), config, fetch=fetch)
    assert s3.keys(bucket) == []
    assert uploads_in(s3, bucket) == []


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_cancel_or_the_deadline_in_the_middle_leaves_nothing(
    s3: S3Server, bucket: str, big: Path, tmp_path: Path, how: str
) -> None:
    seconds = 60.0 if how == "cancel" else 0.2
    large = file_artifact(big) if how == "cancel" else file_artifact(tmp_path / "film.mp4", path=None, size=14 * MIB)

    def fetch(artifact: Artifact) -> Iterator[bytes]:
        """More than a part before the time limit, the rest after it."""
        for number in range(14):
            if number == 8:
                time.sleep(2 * seconds)
            yield bytes(MIB)

    with Cancel() as cancel:
        began = time.monotonic()

        def notify(done: int, total: int) -> None:
            # The small file is up; the large one is on its way.
            if how == "cancel":
                cancel.set()

        with pytest.raises(JobCanceled if how == "cancel" else JobTimeout):
            run(
                [file_artifact(write(tmp_path / "a.png", b"x")), large],
                make_job("s3"),
                bucket_settings(s3, bucket),
                cancel=cancel,
                seconds=seconds,
                notify=notify,
                fetch=fetch,
            )
        assert time.monotonic() - began < 15
    assert s3.keys(bucket) == []
    assert uploads_in(s3, bucket) == []


def test_the_log_names_the_job_and_no_secret(s3: S3Server, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        failure([file_artifact(write(tmp_path / "a.png", b"x"))], bucket_settings(s3, "no-such-bucket"))
    assert "job-1" in caplog.text
    assert s3.secret_key not in caplog.text
    assert s3.access_key not in caplog.text


def test_files_are_closed_whatever_happens(s3: S3Server, bucket: str, big: Path, tmp_path: Path) -> None:
    def open_files() -> int:
        return sum(
            os.path.realpath(f"/proc/self/fd/{fd}").startswith(str(tmp_path)) for fd in os.listdir("/proc/self/fd")
        )

    before = open_files()
    artifacts = [file_artifact(big), file_artifact(write(tmp_path / "a.bin", bytes(2 * MIB)))]
    run(artifacts, make_job("s3"), bucket_settings(s3, bucket))
    with pytest.raises(DeliveryError):
        run(artifacts, make_job("s3"), bucket_settings(s3, "no-such-bucket"))
    assert open_files() == before
