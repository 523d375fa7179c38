"""A bucket that takes nothing is found before the render; looking costs a bucket's first job a request, and no time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from settee import delivery
from settee.base.errors import DeliveryError
from settee.base.job import Status
from tests.support.faulty_s3 import FaultyS3
from tests.support.rig import Rig, empty
from tests.support.s3 import S3Server


@pytest.fixture
def faulty() -> Iterator[FaultyS3]:
    with FaultyS3().running() as running:
        yield running


def rig(root: Path, s3: S3Server | FaultyS3, bucket: str, **settings: Any) -> Rig:
    given = {
        "bucket_endpoint_url": s3.endpoint_url,
        "bucket_access_key_id": s3.access_key,
        "bucket_secret_access_key": s3.secret_key,
        "bucket_name": bucket,
    }
    return Rig(root, embedded=True, **{**given, **settings})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bucket_name": "no-such-bucket"}, "S3 has no bucket 'no-such-bucket': create it, or set BUCKET_NAME"),
        ({"bucket_secret_access_key": "another"}, "S3 does not accept the keys: look at BUCKET_ACCESS_KEY_ID and"),
        ({"bucket_access_key_id": "nobody"}, "S3 does not accept the keys"),
    ],
)
def test_a_bucket_that_takes_nothing_fails_the_job_before_its_render(
    changes: dict[str, str],
    message: str,
    s3: S3Server,
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(delivery, "LOOK_S", 60)  # a look that takes longer is given up
    with rig(tmp_path, s3, bucket, **changes) as own:
        run = own.start(empty())
        with pytest.raises(DeliveryError, match=message):
            run.end()
        assert Status.SUBMITTED not in {step.status for step in run.progress}


def test_a_callers_own_bucket_is_looked_at_too(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "LOOK_S", 60)
    with rig(tmp_path, s3, bucket, allow_private_s3config=True) as own:
        job = own.job(empty())
        theirs = {"accessId": s3.access_key, "accessSecret": s3.secret_key, "endpointUrl": s3.endpoint_url}
        request = job.request.model_validate(
            {"workflow": job.request.workflow, "bucket": {**theirs, "bucketName": "no-such-bucket"}}
        )
        with pytest.raises(DeliveryError, match=r"set s3Config\.bucketName"):
            own.engine.run(type(job)(id="theirs", request=request))
        assert own.run(empty()).outputs[0].type == "s3_url"
        assert own.run(empty(), delivery="base64").outputs[0].type == "base64"


def test_a_bucket_is_looked_at_once(faulty: FaultyS3, tmp_path: Path) -> None:
    with rig(tmp_path, faulty, "once") as own:
        for colour in range(3):
            own.run(empty(colour))
    assert [line for line in faulty.requests if line.startswith("HEAD")] == ["HEAD /once"]


def test_keys_that_may_write_and_not_look_are_good_enough(faulty: FaultyS3, tmp_path: Path) -> None:
    faulty.may_look = False
    with rig(tmp_path, faulty, "write-only") as own:
        assert own.run(empty()).outputs[0].type == "s3_url"


def test_a_server_that_does_not_answer_the_look_costs_no_job(
    faulty: FaultyS3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(delivery, "LOOK_S", 0.2)
    over = threading.Event()
    faulty.on_request = lambda line: None if not line.startswith("HEAD") else over.wait(20) and None
    try:
        with rig(tmp_path, faulty, "silent") as own:
            assert own.run(empty()).outputs[0].type == "s3_url"
    finally:
        over.set()
