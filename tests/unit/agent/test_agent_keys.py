"""Idempotency keys on the disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from settee.doors.agent.keys import Keys, Known

KNOWN = Known("digest", "job \ud800 1")


def test_they_survive_a_restart_without_being_told(tmp_path: Path) -> None:
    Keys(tmp_path).put("a secret of its caller's", KNOWN)
    assert Keys(tmp_path).get("a secret of its caller's") == KNOWN
    assert Keys(tmp_path).get("another") is None
    assert "secret" not in (tmp_path / "keys.json").read_text()
    assert (tmp_path / "keys.json").stat().st_mode & 0o077 == 0


def test_the_oldest_go(tmp_path: Path) -> None:
    keys = Keys(tmp_path, kept=3)
    for number in range(5):
        keys.put(str(number), KNOWN)
        keys.put("0", KNOWN)  # used again
    assert [name for name in "01234" if Keys(tmp_path, kept=3).get(name)] == ["0", "3", "4"]
    assert len(json.loads((tmp_path / "keys.json").read_text())["keys"]) == 3


@pytest.mark.parametrize(
    "text", ["", "{", "[]", "null", '{"version": 2, "keys": []}', '{"version": 1, "keys": [[1]]}', "\xff"]
)
def test_a_damaged_file_is_begun_anew(text: str, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "keys.json").write_bytes(text.encode("latin-1"))
    keys = Keys(tmp_path)
    assert keys.get("x") is None
    assert "keys.json" in caplog.text
    keys.put("x", KNOWN)
    assert Keys(tmp_path).get("x") == KNOWN


def test_a_disk_that_takes_nothing_costs_only_the_restart(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    keys = Keys(tmp_path / "gone")
    keys.put("x", KNOWN)
    assert keys.get("x") == KNOWN
    assert "not remembered" in caplog.text


def test_no_link_is_followed(tmp_path: Path) -> None:
    other = tmp_path / "other"
    other.write_text("theirs")
    os.symlink(other, tmp_path / "keys.json.part")
    Keys(tmp_path).put("x", KNOWN)
    assert other.read_text() == "theirs"
