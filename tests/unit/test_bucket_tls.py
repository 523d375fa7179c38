"""BUCKET_VERIFY_TLS: an S3 server whose certificate nobody signed, for uploads, models, input files and templates."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest

from settee.base.errors import DeliveryError, DownloadFailed
from settee.base.job import Cancel, Limits
from settee.doors.agent.assets import Storage
from settee.models.entry import ModelEntry, S3Object
from settee.models.sources.s3_object import address
from settee.staging.fetch import Downloads
from settee.staging.fetch import s3 as s3_input
from tests.support.certificates import own_certificate
from tests.support.delivering import bucket_settings, file_artifact, make_job, run
from tests.support.faulty_s3 import FaultyS3
from tests.support.file_server import FileServer
from tests.support.http_double import Reply
from tests.support.transferring import fetch

BODY = bytes(range(256)) * 500


@pytest.fixture
def server(tmp_path: Path) -> Iterator[FaultyS3]:
    with FaultyS3(own_certificate(tmp_path / "both.pem")).running() as server:
        server.objects["bucket/model.bin"] = BODY
        server.objects["bucket/graph.json"] = b'{"1": {}}'
        yield server


ENTRY = ModelEntry(source=S3Object("bucket", "model.bin"), target="checkpoints", name="model.bin")


def test_it_is_refused(server: FaultyS3, tmp_path: Path) -> None:
    settings = bucket_settings(server, "bucket")
    assert isinstance(ENTRY.source, S3Object)
    with pytest.raises(DownloadFailed, match="certificate"):
        address(ENTRY, ENTRY.source, settings)
    with pytest.raises(DownloadFailed, match="certificate"):
        Storage(settings).head("bucket", "graph.json", "workflow", lambda: None)
    (tmp_path / "a.png").write_bytes(BODY)
    with pytest.raises(DeliveryError, match="certificate"):
        run([file_artifact(tmp_path / "a.png")], make_job({"mode": "s3"}), settings)
    assert server.requests == []


def test_unless_the_operator_says_no(server: FaultyS3, tmp_path: Path) -> None:
    settings = bucket_settings(server, "bucket", bucket_verify_tls=False)
    assert isinstance(ENTRY.source, S3Object)
    found = address(ENTRY, ENTRY.source, settings)
    fetch(found.url, tmp_path / "model", known={"verify_tls": found.verify_tls})
    assert (tmp_path / "model").read_bytes() == BODY
    assert Storage(settings).head("bucket", "graph.json", "workflow", lambda: None)["ContentLength"] == 9
    remote = s3_input("an input", "s3://bucket/model.bin", settings, None)
    contents: list[bytes] = []

    def sink(name: str, chunks: Iterable[bytes]) -> str:
        contents.append(b"".join(chunks))
        return ""

    with Cancel() as cancel:
        deadline = Limits(cancel=cancel, deadline=time.monotonic() + 20)
        Downloads(sink, settings, deadline).run([remote], lambda *_: None)
    assert contents == [BODY]
    (tmp_path / "a.png").write_bytes(BODY)
    run([file_artifact(tmp_path / "a.png")], make_job({"mode": "s3"}), settings)
    assert [body for key, body in server.objects.items() if key.endswith("a.png")] == [BODY]


def redirect(reply: Reply, url: str) -> None:
    reply.status, reply.body = 302, memoryview(b"")
    reply.headers = {"Location": url, "Content-Length": "0"}


def test_of_that_server_only(server: FaultyS3, tmp_path: Path) -> None:
    """A redirect to another host meets its certificate being checked."""
    other = FileServer(BODY, tls=own_certificate(tmp_path / "other.pem"))
    own = FileServer(b"", tls=own_certificate(tmp_path / "own.pem"), rule=lambda ask, reply: redirect(reply, other.url))
    with other.running(), own.running(), pytest.raises(DownloadFailed, match="not trusted"):
        fetch(own.url, tmp_path / "model", known={"verify_tls": False})
    assert not other.asked
