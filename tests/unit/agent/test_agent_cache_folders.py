"""The `cache/` folder of an older agent, with its links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from settee.doors.agent.previous_state import move_cache


def cached(folder: Path, name: str, text: str = "weights") -> Path:
    path = folder / "cache" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def files(folder: Path) -> dict[str, str]:
    """Every file's text by its name, as ComfyUI lists them."""
    return {path.relative_to(folder).as_posix(): path.read_text() for path in folder.rglob("*") if path.is_file()}


def test_nothing_to_do(tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_text("a")
    assert move_cache(tmp_path) == move_cache(tmp_path / "none") == 0
    assert files(tmp_path) == {"a.safetensors": "a"}


def test_a_file_takes_the_place_of_the_link_that_shows_it(tmp_path: Path) -> None:
    """Whatever the link is called: people know the model by that name."""
    (tmp_path / "Pretty.safetensors").symlink_to(cached(tmp_path, "bucket/abc.safetensors", "abc"))
    os.symlink("cache/same.safetensors", tmp_path / "same.safetensors")
    cached(tmp_path, "same.safetensors", "same")
    (tmp_path / "styles").mkdir()
    (tmp_path / "styles" / "x.pt").symlink_to(cached(tmp_path, "x.pt", "x"))
    assert move_cache(tmp_path) == 3
    assert files(tmp_path) == {"Pretty.safetensors": "abc", "same.safetensors": "same", "styles/x.pt": "x"}
    assert not any(path.is_symlink() for path in tmp_path.rglob("*"))
    assert not (tmp_path / "cache").exists()


def test_two_links_to_one_file_go_on_showing_it(tmp_path: Path) -> None:
    path = cached(tmp_path, "abc.safetensors")
    for name in ("A.safetensors", "B.safetensors"):
        (tmp_path / name).symlink_to(path)
    assert move_cache(tmp_path) == 1
    assert files(tmp_path) == {"A.safetensors": "weights", "B.safetensors": "weights"}


def test_what_no_link_shows_keeps_its_name(tmp_path: Path) -> None:
    cached(tmp_path, "sub/abc.safetensors")
    assert move_cache(tmp_path) == 1
    assert files(tmp_path) == {"sub/abc.safetensors": "weights"}


def test_a_name_that_is_taken_is_not_overwritten(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cached(tmp_path, "abc.safetensors", "cached")
    (tmp_path / "abc.safetensors").write_text("theirs")
    assert move_cache(tmp_path) == 0
    assert files(tmp_path) == {"abc.safetensors": "theirs", "cache/abc.safetensors": "cached"}
    assert "its name is taken" in caplog.text


def test_a_link_to_somewhere_else_stays(tmp_path: Path) -> None:
    folder, elsewhere = tmp_path / "loras", tmp_path / "elsewhere.safetensors"
    elsewhere.write_text("theirs")
    cached(folder, "abc.safetensors")
    (folder / "theirs.safetensors").symlink_to(elsewhere)
    assert move_cache(folder) == 1
    assert files(folder) == {"abc.safetensors": "weights", "theirs.safetensors": "theirs"}
    assert elsewhere.read_text() == "theirs"
