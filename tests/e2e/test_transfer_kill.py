"""Downloads that are killed with SIGKILL, again and again, and the real S3 server."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import DownloadFailed
from settee.models.transfer.address import Address
from settee.models.transfer.part import load
from tests.support.file_server import FileServer
from tests.support.http_double import Ask, Reply
from tests.support.s3 import S3Server
from tests.support.transferring import fetch, left, noise, sha256
from tests.support.waiting import eventually

DATA = noise(60_000_000)
SHA = sha256(DATA)
RANGE = 2_000_000
KILLS = 20


def start(url: str, target: Path, **more: Any) -> subprocess.Popen[str]:
    given = {"url": url, "target": str(target), "sha256": SHA, "range_bytes": RANGE, **more}
    command = [sys.executable, "-m", "tests.support.killed_download", json.dumps(given)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def done_of(target: Path) -> list[int]:
    found = load(target.with_name(target.name + ".part.json"))
    return found[1] if found else []


def in_place(target: Path) -> int:
    return sum(done_of(target))


def ranges_of(asked: list[Ask]) -> set[int]:
    """Numbers of the ranges that were asked for, the first byte's question for size left out."""
    return {ask.span[0] // RANGE for ask in asked if ask.span and ask.span != (0, 0)}


@pytest.mark.timeout(240)
def test_killed_twenty_times(tmp_path: Path) -> None:
    """At random moments, while bytes come: what is in place is not asked for again."""

    def slow(ask: Ask, reply: Reply) -> None:
        reply.rate = 15_000_000.0

    target = tmp_path / "m"
    choice = random.Random(3)
    whole: set[int] = set()
    asked = 0
    with FileServer(DATA, rule=slow).running() as server:
        for kill in range(KILLS):
            process = start(server.url, target)
            # Somewhere in the next twentieth or so.
            goal = min(len(DATA) - 4 * RANGE, (kill + choice.random()) * len(DATA) / (KILLS + 1))
            eventually(lambda p=process, g=goal: p.poll() is not None or in_place(target) > g, 30)
            assert process.poll() is None, "it ended before it was killed"
            process.kill()
            process.communicate()
            eventually(lambda: not server.active)
            assert not target.exists()
            there = {index for index, count in enumerate(done_of(target)) if count == RANGE}
            assert not ranges_of(server.asked[asked:]) & whole
            whole, asked = there, len(server.asked)
        assert start(server.url, target).communicate(timeout=60)[0].strip() == SHA
        assert not ranges_of(server.asked[asked:]) & whole
        assert target.read_bytes() == DATA
        assert left(tmp_path) == ["m"]
        # Lost each time: what was in the buffers of four sockets and streams, on both sides; half a range at most, also
        # where a busy machine lets them fill.
        assert server.sent - len(DATA) < KILLS * 4 * RANGE / 2


class TestS3:
    """By presigned URLs of the real server."""

    @pytest.fixture
    def url(self, s3: S3Server) -> str:
        bucket = s3.make_bucket()
        s3.admin.put_object(Bucket=bucket, Key="a model.bin", Body=DATA)
        parameters = {"Bucket": bucket, "Key": "a model.bin"}
        return str(s3.admin.generate_presigned_url("get_object", Params=parameters, ExpiresIn=600))

    def test_a_url_that_is_for_get_alone(self, url: str, tmp_path: Path) -> None:
        fetched = fetch(url, tmp_path / "m", sha256=SHA)
        assert (tmp_path / "m").read_bytes() == DATA
        assert fetched.sha256 == SHA
        assert left(tmp_path) == ["m"]

    def test_an_expired_one_is_renewed(self, s3: S3Server, tmp_path: Path) -> None:
        bucket = s3.make_bucket()
        s3.admin.put_object(Bucket=bucket, Key="m", Body=DATA)
        parameters = {"Bucket": bucket, "Key": "m"}
        expired = s3.admin.generate_presigned_url("get_object", Params=parameters, ExpiresIn=1)
        fresh = s3.admin.generate_presigned_url("get_object", Params=parameters, ExpiresIn=600)
        time.sleep(2.1)  # S3 counts whole seconds, by a clock of its own
        with pytest.raises(DownloadFailed, match="HTTP 403 AccessDenied") as caught:
            fetch(expired, tmp_path / "m")
        assert "Signature" not in caught.value.message
        fetch(expired, tmp_path / "m", known={"renew": lambda: Address(fresh, "the model")})
        assert (tmp_path / "m").read_bytes() == DATA

    def test_no_such_key(self, s3: S3Server, tmp_path: Path) -> None:
        parameters = {"Bucket": s3.make_bucket(), "Key": "nothing"}
        url = s3.admin.generate_presigned_url("get_object", Params=parameters, ExpiresIn=600)
        with pytest.raises(DownloadFailed, match="HTTP 404 NoSuchKey") as caught:
            fetch(url, tmp_path / "m")
        assert caught.value.details == {"status": 404}

    @pytest.mark.timeout(240)
    def test_killed_twenty_times(self, url: str, tmp_path: Path) -> None:
        # At loopback's speed: how far each gets is chance, that the last one ends with the right bytes is not.
        choice = random.Random(5)
        killed = 0
        for _ in range(KILLS):
            before = in_place(tmp_path / "m")
            process = start(url, tmp_path / "m")
            eventually(lambda p=process, b=before: p.poll() is not None or in_place(tmp_path / "m") != b, 30)
            time.sleep(choice.random() * 0.03)  # a random moment is what is wanted
            process.kill()
            killed += process.wait() != 0
            process.communicate()
            if (tmp_path / "m").exists():
                assert (tmp_path / "m").read_bytes() == DATA
                (tmp_path / "m").unlink()
        assert killed > KILLS // 2
        assert start(url, tmp_path / "m").communicate(timeout=60)[0].strip() == SHA
        assert (tmp_path / "m").read_bytes() == DATA
