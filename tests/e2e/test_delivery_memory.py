"""What a delivery may cost in memory, measured in a process of its own. `make bench` prints the figures."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.measure_delivery import measured
from tests.support.s3 import S3Server

MB = 1_000_000


pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux's /proc")


def make(path: Path, size: int) -> Path:
    with path.open("wb") as file:
        for _ in range(size // MB):
            file.write(os.urandom(MB))
    return path


def test_base64_holds_one_copy(tmp_path: Path) -> None:
    """4/3 of the file is the result itself; "".join or a decode of encoded bytes would make it 8/3."""
    size = 48 * MB
    assert measured("base64", make(tmp_path / "a.png", size)) < 1.6 * size


def test_a_sealed_result_is_held_once_beside_its_json(tmp_path: Path) -> None:
    """The JSON (twice the file, in hex), its writer's slack, and the token (4/3 of that).

    ``Fernet.encrypt`` takes seven times the JSON.
    """
    size = 10 * MB
    assert measured("seal-result", make(tmp_path / "a.bin", size)) < 3.3 * 2 * size


@pytest.mark.parametrize(("what", "size"), [("s3", 200), ("s3-fetch", 120), ("s3-sealed", 120)])
def test_200_mb_to_s3_take_less_than_64(s3: S3Server, tmp_path: Path, what: str, size: int) -> None:
    path = make(tmp_path / "film.mp4", size * MB)
    assert measured(what, path, s3.endpoint_url, s3.make_bucket()) < 64 * MB
