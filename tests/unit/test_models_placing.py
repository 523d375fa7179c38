"""What placing does around the file itself."""

from __future__ import annotations

import os
from pathlib import Path

from settee.models.placing import _seen_to_change


def test_a_change_within_a_coarse_clocks_tick_is_seen_all_the_same(tmp_path: Path) -> None:
    before = tmp_path.stat().st_mtime_ns
    with _seen_to_change(tmp_path):
        (tmp_path / "model.safetensors").write_bytes(b"x")
        os.utime(tmp_path, ns=(before, before))  # as a file system that counts in seconds would have it
    assert tmp_path.stat().st_mtime_ns != before


def test_a_folder_that_is_not_there_yet_is_no_trouble(tmp_path: Path) -> None:
    with _seen_to_change(tmp_path / "new"):
        (tmp_path / "new").mkdir()
