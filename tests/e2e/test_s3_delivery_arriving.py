"""Delivery to a real S3 server (SeaweedFS): what arrives, and under which name."""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import pytest
import requests
from cryptography.fernet import Fernet

from settee.base.errors import DeliveryError
from settee.base.job import Artifact, Kind
from tests.support.delivering import bucket_settings, file_artifact, make_job, make_settings, only, run
from tests.support.s3 import S3Server
from tests.support.uploading import KEY, MIB, uploads_in, write


def get(url: str) -> requests.Response:
    answer = requests.get(url, timeout=30)
    answer.raise_for_status()
    return answer


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
    delivered = run(artifacts, make_job("s3", sealed_by=KEY), bucket_settings(s3, bucket))
    for output, content in zip(delivered.outputs, contents, strict=True):
        answer = get(output.url or "")
        assert Fernet(KEY).decrypt(answer.content) == content
        assert answer.headers["Content-Type"] == "application/octet-stream"
        assert output.sha256 == hashlib.sha256(content).hexdigest()
    assert s3.keys(bucket) == ["job-1/0000.sealed", "job-1/0001.sealed"]
    metadata = s3.admin.head_object(Bucket=bucket, Key="job-1/0000.sealed")["Metadata"]
    assert metadata == {"settee-job": "job-1"}
