"""What placing does around the file itself."""

from __future__ import annotations

import gc
import logging
import os
import time
import weakref
from pathlib import Path

import pytest

from settee.base.errors import DownloadFailed
from settee.base.job import Cancel
from settee.base.settings import load
from settee.engine.request import Bucket
from settee.models.model_store import LogLines, ModelStore
from settee.models.orders import Order
from settee.models.placing import IN_PLACE, _mtime_changed
from tests.support.models import download, entry


def test_a_change_within_a_coarse_clocks_tick_is_seen_all_the_same(tmp_path: Path) -> None:
    before = tmp_path.stat().st_mtime_ns
    with _mtime_changed(tmp_path):
        (tmp_path / "model.safetensors").write_bytes(b"x")
        os.utime(tmp_path, ns=(before, before))  # as a file system that counts in seconds would have it
    assert tmp_path.stat().st_mtime_ns != before


def test_a_folder_that_is_not_there_yet_is_no_trouble(tmp_path: Path) -> None:
    with _mtime_changed(tmp_path / "new"):
        (tmp_path / "new").mkdir()


# --- what is kept, and said, of it -----------------------------------------------------------------------


def test_a_jobs_s3_keys_are_let_go_of_with_it(tmp_path: Path) -> None:
    store, asked = ModelStore(load(models_dir=tmp_path)), entry(from_job=True)
    download(store.tools.folder, asked)
    bucket = Bucket.model_validate(
        {"endpointUrl": "https://s3.example", "accessId": "id", "accessSecret": "secret", "bucketName": "b"}
    )
    kept = weakref.ref(bucket)
    with Order.begin(store, {}, [asked], bucket) as order:
        assert not order.wait(Cancel(), time.monotonic() + 5, lambda _: None)
    del bucket, order
    gc.collect()
    assert kept() is None


def test_the_log_follows_what_models_fetches_and_names_nothing_of_a_jobs(caplog: pytest.LogCaptureFixture) -> None:
    lines = LogLines()
    with caplog.at_level(logging.INFO):
        for asked in (entry(), entry("loras/private.safetensors", from_job=True)):
            lines.progress(asked, 0, 4_000_000, "Hugging Face")
            lines.end(asked, "downloaded from Hugging Face in 1.0 s (4 MB/s)")
        lines.end(entry(), IN_PLACE)
        lines.end(entry(required=False), DownloadFailed("it is gone"))
    assert [record.getMessage() for record in caplog.records] == [
        "model loras/m.safetensors: 4 MB from Hugging Face",
        "model loras/m.safetensors: downloaded from Hugging Face in 1.0 s (4 MB/s)",
        "a model of the job's: downloaded from Hugging Face in 1.0 s (4 MB/s)",
        "it is gone",
    ]
    assert caplog.records[-1].levelno == logging.WARNING
