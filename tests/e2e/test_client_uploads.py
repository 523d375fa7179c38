"""Files that are too large for a request go through a real S3 server, are fetched by URL, and are gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import uuid
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import pytest
import requests
from PIL import Image

from settee.client import Endpoint, Job, Status
from settee.client.arguments import Environment
from settee.client.client_errors import AuthError, ClientError, JobStopped, NetworkError, UsageError
from settee.client.inject import InputFile
from settee.client.payload import Request
from settee.client.uploads import Uploader
from settee.s3.client import url_for
from tests.support.public_api import PublicApi
from tests.support.s3 import S3Server, free_ports

GRAPH = {"1": {"class_type": "LoadImage", "inputs": {"image": "1_a.png"}}}


def environment(s3: S3Server, bucket: str | None, **changes: Any) -> Environment:
    return replace(
        Environment(
            bucket_endpoint_url=s3.endpoint_url,
            bucket_access_key_id=s3.access_key,
            bucket_secret_access_key=s3.secret_key,
            bucket_name=bucket,
        ),
        **changes,
    )


def large(path: Path, size: int) -> Path:
    path.write_bytes(os.urandom(size))
    return path


def test_a_request_over_the_cap_goes_by_s3_and_leaves_nothing(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    files = [
        InputFile("1_a.png", large(tmp_path / "a.png", 3_000_000), "image"),
        InputFile("2_b.png", large(tmp_path / "b.png", 1000), "image"),
    ]
    uploader = Uploader(environment(s3, bucket))
    built = Request(GRAPH, files, cap=100_000, upload=uploader).build()
    (key,) = s3.keys(bucket)
    prefix, identity, name = key.split("/")
    assert (prefix, name, str(uuid.UUID(identity))) == ("settee-inputs", "1_a.png", identity)
    url = built["input"]["images"][0]["image"]
    assert parse_qs(urlsplit(url).query)["X-Amz-Expires"] == ["86400"]
    assert s3.secret_key not in url
    got = requests.get(url, timeout=10)
    assert got.status_code == 200
    assert got.content == files[0].path.read_bytes()
    assert uploader.remove() == []
    assert s3.keys(bucket) == []
    assert requests.get(url, timeout=10).status_code == 404


def test_a_picture_made_smaller_goes_from_memory(s3: S3Server, bucket: str) -> None:
    uploader = Uploader(environment(s3, bucket))
    url = uploader.put("1_a.png", b"small")
    assert requests.get(url, timeout=10).content == b"small"
    assert uploader.remove() == []


def test_two_files_of_one_name_do_not_meet(s3: S3Server, bucket: str) -> None:
    uploader = Uploader(environment(s3, bucket))
    urls = [uploader.put("a.png", content) for content in (b"1", b"2")]
    assert [requests.get(url, timeout=10).content for url in urls] == [b"1", b"2"]
    assert uploader.remove() == []


def test_an_uploader_removes_its_own_only(s3: S3Server, bucket: str) -> None:
    mine, other = Uploader(environment(s3, bucket)), Uploader(environment(s3, bucket))
    mine.put("a.png", b"1")
    url = other.put("a.png", b"2")
    assert mine.remove() == []
    assert mine.remove() == []
    assert requests.get(url, timeout=10).content == b"2"
    assert other.remove() == []


def job_with_an_upload(endpoint: Endpoint, picture: Path) -> Job:
    endpoint.target.request_cap = 50_000  # RunPod's own has one
    shown = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    return endpoint.submit({**GRAPH, "2": shown}, images=[picture])


def test_a_job_that_has_ended_leaves_nothing(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    """Whoever notices: who waits, who asks, who cancels. One that nobody asks for again keeps its file."""
    picture = tmp_path / "a.png"
    Image.effect_noise((400, 400), 90).save(picture)
    with (
        PublicApi() as api,
        Endpoint(api.url, api_key=api.key, environment=environment(s3, bucket)) as endpoint,
    ):
        job, left = job_with_an_upload(endpoint, picture), job_with_an_upload(endpoint, picture)
        assert len(s3.keys(bucket)) == 2
        assert job.status().status is Status.IN_QUEUE
        assert len(s3.keys(bucket)) == 2
        job.cancel()
        assert len(s3.keys(bucket)) == 1
        for _ in range(2):
            with pytest.raises(JobStopped, match="canceled"):
                job.wait(10)
        endpoint.cancel(left.id)
        assert len(s3.keys(bucket)) == 1
        assert left.status().status is Status.CANCELLED
        assert s3.keys(bucket) == []


def test_an_empty_file(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    uploader = Uploader(environment(s3, bucket))
    assert requests.get(uploader.put("a.wav", large(tmp_path / "a.wav", 0)), timeout=10).content == b""
    assert uploader.remove() == []


def test_an_upload_is_given_up_when_asked(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    class Stopping(threading.Event):
        """Set in the middle of the file's bytes."""

        asked = 0

        def is_set(self) -> bool:
            self.asked += 1
            if self.asked == 10:
                self.set()
            return super().is_set()

    stop = Stopping()
    uploader = Uploader(environment(s3, bucket), stop=stop)
    files = [InputFile("1_a.png", large(tmp_path / "a.png", 3_000_000), "image")]
    with pytest.raises(JobStopped, match="no job was sent"):
        Request(GRAPH, files, cap=10_000, upload=uploader).build()
    assert stop.asked >= 10
    uploader.remove()
    assert s3.keys(bucket) == []
    with pytest.raises(JobStopped):
        uploader.put("a", b"x")


def test_a_bucket_that_the_address_names(s3: S3Server, bucket: str) -> None:
    """Behind such an address what stands for the bucket is the first folder in it."""
    url = Uploader(environment(s3, None, bucket_endpoint_url=f"https://{bucket}.s3.eu-west-1.amazonaws.com"))
    signed = urlsplit(_signed(url))
    assert signed.hostname == f"{bucket}.s3.eu-west-1.amazonaws.com"
    assert signed.path.startswith("/settee-inputs/")
    assert "/eu-west-1/s3/" in parse_qs(signed.query)["X-Amz-Credential"][0]


def test_the_name_is_not_said_twice(s3: S3Server) -> None:
    named = environment(s3, "mine", bucket_endpoint_url="https://mine.s3.eu-west-1.amazonaws.com/")
    assert urlsplit(_signed(Uploader(named))).path.startswith("/mine/settee-inputs/")
    virtual = urlsplit(_signed(Uploader(replace(named, bucket_path_style=False, bucket_region="eu-west-3"))))
    assert virtual.hostname == "mine.s3.eu-west-1.amazonaws.com"
    assert virtual.path.startswith("/settee-inputs/")
    assert "/eu-west-3/s3/" in parse_qs(virtual.query)["X-Amz-Credential"][0]


def _signed(uploader: Uploader) -> str:
    """The URL of what would be put; nothing is asked of the address."""
    return url_for(uploader.target, f"{uploader.target.prefix}x/a.png")


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"bucket_secret_access_key": "wrong"}, AuthError, "does not accept the keys"),
        ({"bucket_access_key_id": "nobody"}, AuthError, "does not accept the keys"),
        (
            {"bucket_name": "not-there-at-all"},
            UsageError,
            "no bucket 'not-there-at-all': create it, or set BUCKET_NAME",
        ),
        ({"bucket_name": None}, UsageError, "BUCKET_ENDPOINT_URL names none, so set BUCKET_NAME"),
    ],
)
@pytest.mark.parametrize("from_path", [False, True])
def test_what_s3_refuses(
    s3: S3Server,
    bucket: str,
    tmp_path: Path,
    changes: dict[str, Any],
    kind: type[ClientError],
    words: str,
    from_path: bool,
) -> None:
    uploader = Uploader(replace(environment(s3, bucket), **changes))
    with pytest.raises(kind) as error:
        uploader.put("a.png", large(tmp_path / "a.png", 10) if from_path else b"x")
    assert words in error.value.message
    assert s3.endpoint_url not in error.value.message
    assert s3.secret_key not in error.value.message


def test_an_s3_that_is_not_there(s3: S3Server, bucket: str) -> None:
    gone = environment(s3, bucket, bucket_endpoint_url=f"http://127.0.0.1:{free_ports(1)[0]}")
    uploader = Uploader(gone)
    with pytest.raises(NetworkError, match=r"cannot be reached.*: look at BUCKET_ENDPOINT_URL"):
        uploader.put("a.png", b"x")
    (left,) = uploader.remove()
    assert left.endswith("/a.png")


def test_a_file_that_went_away(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        Uploader(environment(s3, bucket)).put("a.png", tmp_path / "a.png")


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"bucket_endpoint_url": "https://s3.example"}, "set BUCKET_ACCESS_KEY_ID, BUCKET_SECRET_ACCESS_KEY"),
        ({"bucket_endpoint_url": "s3.example"}, "must begin with https://"),
        ({"bucket_endpoint_url": "https://s3.example", "bucket_name": "a/b"}, "BUCKET_NAME is not a bucket's name"),
    ],
)
def test_half_of_a_bucket(given: dict[str, str], words: str, tmp_path: Path) -> None:
    keys = {} if "ACCESS" in words else {"bucket_access_key_id": "a", "bucket_secret_access_key": "b"}
    uploader = Uploader(Environment(**{**keys, **given}))
    large = tmp_path / "large.png"
    large.write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(6000))
    files = [InputFile("large.png", large, "image")]
    # Of no account while everything fits; a dry run says what a run would.
    Request({}, files, cap=None, upload=uploader).check()
    with pytest.raises(UsageError, match=words):
        Request({}, files, cap=5000, upload=uploader).check()
    with pytest.raises(UsageError, match=words):
        Request({}, files, cap=5000, upload=uploader).build()
    assert Endpoint(environment=Environment(bucket_name="alone"))._uploader() is None


_BARE = """
import sys
sys.modules["boto3"] = None
from settee.client.arguments import Environment
from settee.client.client_errors import UsageError
from settee.client.uploads import Uploader
given = {"bucket_endpoint_url": "https://s3.example", "bucket_access_key_id": "a", "bucket_secret_access_key": "b"}
try:
    Uploader(Environment(**given)).put("a", b"x")
except UsageError as error:
    print(error)
"""


def test_without_boto3() -> None:
    done = subprocess.run([sys.executable, "-c", _BARE], capture_output=True, text=True, check=True, timeout=60)
    assert done.stdout.strip() == "sending files by S3 needs one more package: pip install 'settee[s3]'"
