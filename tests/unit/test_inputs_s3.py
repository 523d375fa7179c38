"""s3:// inputs, from a real S3 server."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from settee.base.errors import DownloadFailed, InvalidRequest, PayloadTooLarge
from settee.base.job import Cancel, Limits
from settee.base.settings import Settings
from settee.engine.request import Bucket
from settee.staging.inputs import Staged, Staging
from settee.staging.workspace import Folders, Workspace
from tests.support.delivering import bucket_settings
from tests.support.s3 import S3Server
from tests.support.staging import request

BODY = os.urandom(3_000_001)


@pytest.fixture(scope="module")
def bucket(s3: S3Server) -> Iterator[str]:
    """A bucket with one object under a plain key, and one under a key that URLs make hard."""
    name = s3.make_bucket()
    client = s3.client()
    client.put_object(Bucket=name, Key="folder/plain.bin", Body=BODY)
    client.put_object(Bucket=name, Key="a b+c/ü?x=1#y&%41.bin", Body=b"hard")
    yield name
    client.close()


class Stage:
    def __init__(self, folder: Path, cancel: Cancel) -> None:
        self.workspace = Workspace(Folders(folder / "input", folder / "output", None))
        self.workspace.open()
        self.cancel = cancel

    def __call__(self, address: str, settings: Settings, own: Bucket | None = None) -> Staged:
        limits = Limits(cancel=self.cancel, deadline=time.monotonic() + 30)
        (staged,) = Staging(request({"file.bin": address}, bucket=own), self.workspace, settings, limits).run()
        return staged


@pytest.fixture
def put(tmp_path: Path) -> Iterator[Stage]:
    with Cancel() as cancel:
        yield Stage(tmp_path, cancel)


def callers(s3: S3Server, secret: str | None = None) -> Bucket:
    return Bucket(
        accessId=s3.access_key,  # type: ignore[arg-type]
        accessSecret=secret or s3.secret_key,  # type: ignore[arg-type]
        bucketName="ignored",
        endpointUrl=s3.endpoint_url,
    )


def test_with_the_workers_credentials_from_a_private_address(
    put: Stage, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The operator's own endpoint may be on a private network: here it is on loopback."""
    monkeypatch.delenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", raising=False)
    assert put(f"s3://{bucket}/folder/plain.bin", bucket_settings(s3, None)).path.read_bytes() == BODY


def test_keys_are_taken_as_they_are(put: Stage, s3: S3Server, bucket: str) -> None:
    assert put(f"S3://{bucket}/a b+c/ü?x=1#y&%41.bin", bucket_settings(s3, None)).path.read_bytes() == b"hard"


def test_with_the_callers_credentials(put: Stage, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"s3://{bucket}/folder/plain.bin"
    monkeypatch.delenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", raising=False)
    with pytest.raises(InvalidRequest, match="not allowed"):
        put(address, Settings(), callers(s3))
    assert put(address, Settings(allow_private_s3config=True), callers(s3)).size == len(BODY)


def test_the_callers_credentials_stand_alone(
    put: Stage, s3: S3Server, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Wrong ones are not made up for by the worker's."""
    monkeypatch.setenv("RUNPOD_ALLOW_PRIVATE_DOWNLOAD_URLS", "true")
    with pytest.raises(DownloadFailed, match="HTTP 403") as caught:
        put(f"s3://{bucket}/folder/plain.bin", bucket_settings(s3, None), callers(s3, secret="wrong"))
    assert not caught.value.retryable


@pytest.mark.parametrize("address", ["s3://{bucket}/nothing", "s3://no-such-bucket-at-all/key"])
def test_what_is_not_there(put: Stage, s3: S3Server, bucket: str, address: str) -> None:
    with pytest.raises(DownloadFailed) as caught:
        put(address.format(bucket=bucket), bucket_settings(s3, None))
    message = caught.value.message
    assert "HTTP 404 NoSuch" in message
    assert address.format(bucket=bucket) in message
    assert "Signature" not in message
    assert s3.access_key not in message
    assert list(put.workspace.folders.input.iterdir()) == []


def test_a_server_that_is_not_there_is_told_without_secrets(put: Stage, s3: S3Server) -> None:
    with pytest.raises(DownloadFailed) as caught:
        put("s3://bucket/key", bucket_settings(s3, None, bucket_endpoint_url="http://127.0.0.1:9"))
    assert caught.value.retryable
    assert "Signature" not in str([caught.value.message, caught.value.details])


def test_the_size_limit(put: Stage, s3: S3Server, bucket: str) -> None:
    with pytest.raises(PayloadTooLarge, match="MAX_FILE_MB"):
        put(f"s3://{bucket}/folder/plain.bin", bucket_settings(s3, None, max_file_mb=1))


@pytest.mark.parametrize("address", ["s3://bad bucket!/key", "s3://-/key"])
def test_names_that_no_bucket_may_have(put: Stage, s3: S3Server, address: str) -> None:
    with pytest.raises((InvalidRequest, DownloadFailed)) as caught:
        put(address, bucket_settings(s3, None))
    assert "Signature" not in caught.value.message
