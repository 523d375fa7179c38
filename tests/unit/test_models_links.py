"""Models that lie elsewhere on the host, linked into the models folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from settee.errors import IntegrityError, StagingError
from settee.models.folder.file_state import FileState
from settee.models.folder.model_folder import ModelFolder
from tests.support.models import DATA, entry, put, safetensors, sha256


def test_a_link_is_right_at_once(shelf: ModelFolder, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    shelf.link(entry(), Path("m.safetensors"))
    path = shelf.path_of(entry())
    assert os.readlink(path) == str(source)
    assert shelf.state(entry()) is FileState.RIGHT
    assert ModelFolder(shelf.models_dir).state(entry()) is FileState.RIGHT
    assert sorted(os.listdir(path.parent)) == ["m.safetensors"]


def test_a_link_whose_source_goes_or_changes(shelf: ModelFolder, source: Path) -> None:
    shelf.link(entry(), source)
    source.unlink()
    assert shelf.state(entry()) is FileState.WRONG
    assert "link to nothing" in str(shelf.adopt(entry()))
    source.write_bytes(safetensors(65))
    assert shelf.state(entry()) is FileState.WRONG
    shelf.link(entry(), source)
    assert shelf.state(entry()) is FileState.RIGHT


def test_the_operators_own_link_is_adopted(shelf: ModelFolder, source: Path) -> None:
    path = shelf.path_of(entry())
    path.parent.mkdir(parents=True)
    path.symlink_to(source)
    assert shelf.state(entry()) is FileState.UNKNOWN
    assert shelf.adopt(entry(), sha256=sha256(DATA)) is None
    assert shelf.state(entry(sha256=sha256(DATA))) is FileState.RIGHT
    path.unlink()
    path.symlink_to(source.parent / "." / "m.safetensors")
    os.utime(source, ns=(0, 0))
    assert shelf.state(entry()) is FileState.UNKNOWN


def test_the_hubs_cache_says_the_sha256_in_the_name(shelf: ModelFolder, tmp_path: Path) -> None:
    digest = sha256(DATA)
    blob = tmp_path / "cache" / "blobs" / digest
    blob.parent.mkdir(parents=True)
    blob.write_bytes(DATA)
    snapshot = tmp_path / "cache" / "snapshots" / "abc" / "m.safetensors"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(Path("../../blobs") / digest)
    read: list[int] = []
    shelf.link(entry(sha256=digest), snapshot, on_bytes=read.append)
    assert shelf.state(entry(sha256=digest)) is FileState.RIGHT
    assert read == []
    with pytest.raises(IntegrityError, match=f"{digest} instead of {'0' * 64}"):
        shelf.link(entry("loras/n.safetensors", sha256="0" * 64), snapshot)


def test_a_volumes_file_is_read_once_when_its_sha256_is_given(shelf: ModelFolder, source: Path) -> None:
    read: list[int] = []
    shelf.link(entry(sha256=sha256(DATA)), source, on_bytes=read.append)
    assert sum(read) == len(DATA)
    assert shelf.state(entry(sha256=sha256(DATA))) is FileState.RIGHT
    with pytest.raises(IntegrityError, match="instead of"):
        shelf.link(entry("loras/n.safetensors", sha256="0" * 64), source)
    assert not os.path.lexists(shelf.path_of(entry("loras/n.safetensors")))


def test_no_link_to_what_is_no_model(shelf: ModelFolder, source: Path) -> None:
    with pytest.raises(StagingError, match="its source is gone"):
        shelf.link(entry(), source.with_name("absent"))
    with pytest.raises(IntegrityError, match="not a regular file"):
        shelf.link(entry(), source.parent)
    with pytest.raises(IntegrityError, match="instead of 5"):
        shelf.link(entry(size=5), source)
    source.write_bytes(DATA[:-1])
    with pytest.raises(IntegrityError, match="cut short"):
        shelf.link(entry(), source)


def test_no_link_leads_to_itself(shelf: ModelFolder, source: Path, tmp_path: Path) -> None:
    path = put(shelf, entry())
    (tmp_path / "again").symlink_to(shelf.models_dir)
    for way in (path, tmp_path / "again" / "loras" / "m.safetensors"):
        shelf.link(entry(), way)
        assert not path.is_symlink()
        assert shelf.state(entry()) is FileState.RIGHT
    other = entry("loras/n.safetensors")
    shelf.link(other, source)
    shelf.link(other, tmp_path / "again" / "loras" / "n.safetensors")
    assert os.readlink(shelf.path_of(other)) == str(source)
    assert shelf.state(other) is FileState.RIGHT


def test_there_is_always_a_file_while_a_link_is_replaced(shelf: ModelFolder, source: Path) -> None:
    other = source.with_name("other.safetensors")
    other.write_bytes(DATA)
    shelf.link(entry(), source)
    path, missing, stop = shelf.path_of(entry()), [], threading.Event()

    def look() -> None:
        while not stop.is_set():
            if not path.exists():
                missing.append(1)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    for _ in range(100):
        shelf.link(entry(), other)
        shelf.link(entry(), source)
    stop.set()
    looking.join()
    assert not missing
