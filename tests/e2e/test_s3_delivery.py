"""Delivery to a real S3 server (SeaweedFS): what arrives, under which name, and what is left when it fails."""

from __future__ import annotations

import hashlib
import logging
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import requests
from cryptography.fernet import Fernet

from settee.delivery import attempts, upload
from settee.errors import DeliveryError, JobCanceled, JobTimeout, OutputMissing
from settee.job import Artifact, Cancel, Kind
from tests.support.delivering import bucket_settings, file_artifact, make_job, make_settings, only, run
from tests.support.s3 import S3Server, free_ports

KEY = Fernet.generate_key().decode()
MIB = 1024 * 1024


@pytest.fixture
def bucket(s3: S3Server) -> str:
    return s3.make_bucket()


@pytest.fixture
def big(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A film that goes up in parts, of S3's least size here."""
    monkeypatch.setattr(upload, "MULTIPART_BYTES", 8 * MIB)
    monkeypatch.setattr(upload, "PART_BYTES", 5 * MIB)
    return write(tmp_path / "big" / "film.mp4", os.urandom(MIB) * 13 + b"the end")


def write(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def get(url: str) -> requests.Response:
    answer = requests.get(url, timeout=30)
    answer.raise_for_status()
    return answer


def uploads_in(s3: S3Server, bucket: str) -> list[Any]:
    return list(s3.admin.list_multipart_uploads(Bucket=bucket).get("Uploads", []))


# --- what arrives ------------------------------------------------------------------------------------


def test_a_presigned_url_brings_the_very_file(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    content = os.urandom(5000)
    path = write(tmp_path / "ComfyUI_00001_.png", content)
    output = only(run([file_artifact(path)], make_job("s3", id="sync-1-u1"), bucket_settings(s3, bucket)))
    assert (output.type, output.data, output.size) == ("s3_url", None, 5000)
    assert output.sha256 == hashlib.sha256(content).hexdigest()
    answer = get(output.url or "")
    assert answer.content == content
    assert answer.headers["Content-Type"] == "image/png"
    assert s3.keys(bucket) == ["sync-1-u1/ComfyUI_00001_.png"]
    assert parse_qs(urlsplit(output.url or "").query)["X-Amz-Expires"] == ["604800"]


def test_auto_is_s3_when_there_is_a_bucket_and_texts_stay_in_the_answer(
    s3: S3Server, bucket: str, tmp_path: Path
) -> None:
    artifacts = [
        Artifact(
            node_id="5", kind=Kind.TEXT, filename="5.txt", subfolder="", media_type="text/plain", size=2, content=b"hi"
        ),
        file_artifact(write(tmp_path / "a.flac", b"song")),
    ]
    outputs = run(artifacts, make_job(), bucket_settings(s3, bucket)).outputs
    assert [output.type for output in outputs] == ["text", "s3_url"]
    assert get(outputs[1].url or "").headers["Content-Type"] == "audio/flac"
    inline = run(artifacts, make_job("base64"), bucket_settings(s3, bucket)).outputs
    assert [output.type for output in inline] == ["text", "base64"]


@pytest.mark.parametrize("size", [0, 1, MIB, MIB + 1, 9 * MIB + 5])
@pytest.mark.parametrize("source", ["path", "content", "fetch"])
def test_every_size_from_every_source(s3: S3Server, bucket: str, tmp_path: Path, size: int, source: str) -> None:
    content = os.urandom(size)
    changes: dict[str, Any] = {"path": {}, "content": {"path": None, "content": content}, "fetch": {"path": None}}[
        source
    ]
    artifact = file_artifact(write(tmp_path / "a.bin", content), **changes)
    chunks = [content[start : start + 300_007] for start in range(0, size, 300_007)]
    output = only(run([artifact], make_job("s3"), bucket_settings(s3, bucket), fetch=lambda wanted: iter(chunks)))
    assert get(output.url or "").content == content
    assert (output.size, output.sha256) == (size, hashlib.sha256(content).hexdigest())
    assert uploads_in(s3, bucket) == []


def test_over_64_mb_a_file_goes_up_in_parts_and_comes_back_whole(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    big = write(tmp_path / "film.mp4", os.urandom(MIB) * 64 + b"the end")
    seen: list[tuple[int, int]] = []
    output = only(
        run(
            [file_artifact(big)],
            make_job("s3"),
            bucket_settings(s3, bucket),
            notify=lambda done, total: seen.append((done, total)),
        )
    )
    head = s3.admin.head_object(Bucket=bucket, Key="job-1/film.mp4")
    assert head["ETag"].strip('"').endswith("-5")
    assert head["ContentType"] == "video/mp4"
    assert unquote(head["Metadata"]["settee-filename"]) == "film.mp4"
    digest = hashlib.sha256()
    with requests.get(output.url or "", timeout=60, stream=True) as answer:
        for chunk in answer.iter_content(MIB):
            digest.update(chunk)
    assert digest.hexdigest() == output.sha256 == hashlib.sha256(big.read_bytes()).hexdigest()
    assert seen == [(1, 1)]
    assert uploads_in(s3, bucket) == []


def test_many_files_at_once_keep_their_order(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    paths = [write(tmp_path / f"frame_{number:03}.png", f"frame {number}".encode()) for number in range(60)]
    outputs = run([file_artifact(path) for path in paths], make_job("s3"), bucket_settings(s3, bucket)).outputs
    assert [output.filename for output in outputs] == [path.name for path in paths]
    assert [get(output.url or "").content for output in outputs[::13]] == [path.read_bytes() for path in paths[::13]]
    assert len(s3.keys(bucket)) == 60


def test_one_name_twice_is_two_objects(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    artifacts = [
        file_artifact(write(tmp_path / "a.png", b"one")),
        file_artifact(write(tmp_path / "x" / "a.png", b"two"), subfolder="x"),
        file_artifact(write(tmp_path / "t" / "a.png", b"three"), node_id="12", folder_type="temp"),
        file_artifact(write(tmp_path / "u" / "a.png", b"four"), node_id="12"),
    ]
    outputs = run(artifacts, make_job("s3"), bucket_settings(s3, bucket)).outputs
    assert [get(output.url or "").content for output in outputs] == [b"one", b"two", b"three", b"four"]
    assert s3.keys(bucket) == ["job-1/12/a.png", "job-1/a-2.png", "job-1/a.png", "job-1/x/a.png"]


@pytest.mark.parametrize(
    "name", ["Bild 1 (neu) ü.png", "生成 画像 🎨.png", "100%+a=b&c#d?.png", "quote'\"<>.png", "tab\there.png"]
)
def test_any_name_can_be_uploaded_fetched_and_read_back(s3: S3Server, bucket: str, tmp_path: Path, name: str) -> None:
    artifact = file_artifact(
        write(tmp_path / "x.png", b"content"), filename=name, node_id="57:8", subfolder="søster/妹"
    )
    output = only(run([artifact], make_job("s3", id="jöb/../7"), bucket_settings(s3, bucket)))
    assert get(output.url or "").content == b"content"
    assert output.filename == name
    (key,) = s3.keys(bucket)
    assert len(key.split("/")) == 2
    metadata = s3.admin.head_object(Bucket=bucket, Key=key)["Metadata"]
    assert {name: unquote(value) for name, value in metadata.items()} == {
        "settee-job": "jöb/../7",
        "settee-node": "57:8",
        "settee-filename": name,
        "settee-subfolder": "søster/妹",
    }


def test_prefix_expiry_and_public_address(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    path = write(tmp_path / "ä b.png", b"x")
    job = make_job({"mode": "s3", "prefix": "renders/{kind}/{job_id}", "expires_s": 60})
    output = only(run([file_artifact(path)], job, bucket_settings(s3, bucket)))
    assert s3.keys(bucket) == ["renders/images/job-1/ä b.png"]
    assert parse_qs(urlsplit(output.url or "").query)["X-Amz-Expires"] == ["60"]
    public = bucket_settings(s3, bucket, bucket_public_url="https://cdn.example.com/pics/", bucket_prefix="{job_id}")
    output = only(run([file_artifact(path)], make_job("s3"), public))
    assert output.url == "https://cdn.example.com/pics/job-1/%C3%A4%20b.png"


def test_the_month_is_the_bucket_when_none_is_named(s3: S3Server, tmp_path: Path) -> None:
    month = time.strftime("%m-%y")
    s3.make_bucket(month)
    output = only(run([file_artifact(write(tmp_path / "a.png", b"x"))], make_job("s3"), bucket_settings(s3, None)))
    assert urlsplit(output.url or "").path == f"/{month}/job-1/a.png"
    assert get(output.url or "").content == b"x"


def test_the_callers_own_bucket(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    theirs = {
        "accessId": s3.access_key,
        "accessSecret": s3.secret_key,
        "bucketName": bucket,
        "endpointUrl": s3.endpoint_url,
    }
    artifact = file_artifact(write(tmp_path / "a.png", b"x"))
    output = only(run([artifact], make_job("auto", bucket=theirs), make_settings(allow_private_s3config=True)))
    assert get(output.url or "").content == b"x"
    with pytest.raises(DeliveryError, match="public Internet"):
        run([artifact], make_job("auto", bucket=theirs), make_settings())


def test_base64_over_the_cap_sends_the_largest_to_s3(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    artifacts = [file_artifact(write(tmp_path / f"{size}.bin", bytes(size))) for size in (5_000, 90_000, 10_000)]
    delivered = run(artifacts, make_job("base64", max_result_bytes=60_000), bucket_settings(s3, bucket))
    assert [output.type for output in delivered.outputs] == ["base64", "s3_url", "base64"]
    assert len(get(delivered.outputs[1].url or "").content) == 90_000
    assert any("1 of 3 files went to S3" in warning for warning in delivered.warnings)


def test_conversion_and_cleaning_reach_the_bucket(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    info.add_text("prompt", "secret")
    paths = [tmp_path / f"{number}.png" for number in range(12)]
    for number, path in enumerate(paths):
        Image.effect_noise((700, 700), number + 20).save(path, pnginfo=info)
    artifacts = [file_artifact(path) for path in paths]
    for wanted, suffix in ((None, "png"), ("webp", "webp")):
        job = make_job({"mode": "s3", "image_format": wanted, "strip_metadata": True}, id=suffix)
        outputs = run(artifacts, job, bucket_settings(s3, bucket)).outputs
        for output in outputs:
            answer = get(output.url or "")
            assert b"secret" not in answer.content
            assert hashlib.sha256(answer.content).hexdigest() == output.sha256
            assert answer.headers["Content-Type"] == f"image/{suffix}"
            assert (output.width, output.height) == (700, 700)


def test_a_sealed_job_uploads_nothing_readable(s3: S3Server, bucket: str, tmp_path: Path) -> None:
    contents = [b"private" * 1000, os.urandom(9 * MIB)]
    artifacts = [file_artifact(write(tmp_path / f"secret{n}.png", content)) for n, content in enumerate(contents)]
    delivered = run(artifacts, make_job("s3", sealed=True), bucket_settings(s3, bucket, encryption_key=KEY))
    for output, content in zip(delivered.outputs, contents, strict=True):
        answer = get(output.url or "")
        assert Fernet(KEY).decrypt(answer.content) == content
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert output.sha256 == hashlib.sha256(content).hexdigest()
    assert s3.keys(bucket) == ["job-1/0000.sealed", "job-1/0001.sealed"]
    metadata = s3.admin.head_object(Bucket=bucket, Key="job-1/0000.sealed")["Metadata"]
    assert metadata == {"settee-job": "job-1"}


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


# --- what goes wrong ---------------------------------------------------------------------------------


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempts, "PATIENCE_S", 0.3)


def failure(artifacts: list[Artifact], config: Any, **options: Any) -> DeliveryError:
    with pytest.raises(DeliveryError) as error:
        run(artifacts, make_job("s3"), config, **options)
    shown = str(error.value.as_dict())
    assert config.bucket_secret_access_key.get_secret_value() not in shown
    assert config.bucket_access_key_id.get_secret_value() not in shown
    assert "127.0.0.1" not in shown
    return error.value


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
    config = bucket_settings(s3, bucket, encryption_key=KEY)
    with pytest.raises(DeliveryError, match="sent 20971520 of the 31457280 bytes"):
        run(artifacts, make_job("s3", sealed=sealed), config, fetch=fetch)
    assert s3.keys(bucket) == []
    assert uploads_in(s3, bucket) == []


@pytest.mark.parametrize("how", ["cancel", "deadline"])
def test_a_cancel_or_the_deadline_in_the_middle_leaves_nothing(
    s3: S3Server, bucket: str, big: Path, tmp_path: Path, how: str
) -> None:
    artifacts = [file_artifact(write(tmp_path / "a.png", b"x")), file_artifact(big)]
    with Cancel() as cancel:
        began = 0.0

        def notify(done: int, total: int) -> None:
            nonlocal began
            # The small file is up; the large one is on its way.
            if not began and how == "cancel":
                began = time.monotonic()
                cancel.set()

        seconds = 60.0 if how == "cancel" else 0.2
        began = 0.0 if how == "cancel" else time.monotonic() + seconds
        with pytest.raises(JobCanceled if how == "cancel" else JobTimeout):
            run(artifacts, make_job("s3"), bucket_settings(s3, bucket), cancel=cancel, seconds=seconds, notify=notify)
        assert began
        assert time.monotonic() - began < upload.CLEAN_UP_S
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
