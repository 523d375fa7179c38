"""Models that lie elsewhere on the host, linked into the models folder."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from settee.base.errors import IntegrityError, StagingError
from settee.models.entry import HubFile
from settee.models.folder import model_folder
from settee.models.folder.file_state import FileState
from settee.models.folder.model_folder import ModelFolder
from tests.support.models import DATA, entry, put, safetensors, sha256


def test_a_link_is_right_at_once(models: ModelFolder, source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(source.parent)
    models.link(entry(), Path("m.safetensors"))
    path = models.path_of(entry())
    assert os.readlink(path) == str(source)
    assert models.state(entry()) is FileState.RIGHT
    assert ModelFolder(models.models_dir).state(entry()) is FileState.RIGHT
    assert sorted(os.listdir(path.parent)) == ["m.safetensors"]


def test_a_link_whose_source_goes_or_changes(models: ModelFolder, source: Path) -> None:
    models.link(entry(), source)
    source.unlink()
    assert models.state(entry()) is FileState.WRONG
    assert "link to nothing" in str(models.adopt(entry()))
    source.write_bytes(safetensors(65))
    assert models.state(entry()) is FileState.WRONG
    models.link(entry(), source)
    assert models.state(entry()) is FileState.RIGHT


def test_the_operators_own_link_is_adopted(models: ModelFolder, source: Path) -> None:
    path = models.path_of(entry())
    path.parent.mkdir(parents=True)
    path.symlink_to(source)
    assert models.state(entry()) is FileState.UNKNOWN
    assert models.adopt(entry(sha256=sha256(DATA))) is None
    assert models.state(entry(sha256=sha256(DATA))) is FileState.RIGHT
    path.unlink()
    path.symlink_to(source.parent / "." / "m.safetensors")
    os.utime(source, ns=(0, 0))
    assert models.state(entry()) is FileState.UNKNOWN


def test_the_hubs_cache_says_the_sha256_in_the_name(
    models: ModelFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = sha256(DATA)
    blob = tmp_path / "cache" / "blobs" / digest
    blob.parent.mkdir(parents=True)
    blob.write_bytes(DATA)
    snapshot = tmp_path / "cache" / "snapshots" / "abc" / "m.safetensors"
    snapshot.parent.mkdir(parents=True)
    snapshot.symlink_to(Path("../../blobs") / digest)
    monkeypatch.setattr(model_folder, "hash_file", lambda *_, **known: pytest.fail("it is not read"))
    models.link(entry(sha256=digest), snapshot)
    assert models.state(entry(sha256=digest)) is FileState.RIGHT
    with pytest.raises(IntegrityError, match=f"{digest} instead of {'0' * 64}"):
        models.link(entry("loras/n.safetensors", sha256="0" * 64), snapshot)


def test_a_volumes_file_is_read_when_its_sha256_is_given(models: ModelFolder, source: Path) -> None:
    models.link(entry(sha256=sha256(DATA)), source)
    assert models.state(entry(sha256=sha256(DATA))) is FileState.RIGHT
    with pytest.raises(IntegrityError, match="instead of"):
        models.link(entry("loras/n.safetensors", sha256="0" * 64), source)
    assert not os.path.lexists(models.path_of(entry("loras/n.safetensors")))


def test_no_link_to_what_is_no_model(models: ModelFolder, source: Path) -> None:
    with pytest.raises(StagingError, match="its source is gone"):
        models.link(entry(), source.with_name("absent"))
    with pytest.raises(IntegrityError, match="not a regular file"):
        models.link(entry(), source.parent)
    with pytest.raises(IntegrityError, match="instead of 5"):
        models.link(entry(size=5), source)
    source.write_bytes(DATA[:-1])
    with pytest.raises(IntegrityError, match="cut short"):
        models.link(entry(), source)


def test_no_link_leads_to_itself(models: ModelFolder, source: Path, tmp_path: Path) -> None:
    path = put(models, entry())
    (tmp_path / "again").symlink_to(models.models_dir)
    way = tmp_path / "again" / "loras" / "m.safetensors"
    # The operator's: models/loras may be a link to the volume. A job may use it, and nothing may evict it.
    models.link(entry(from_job=True), way)
    assert models.state(entry()) is FileState.RIGHT
    assert not next(iter(models.records)).from_job
    for there in (path, way):
        with pytest.raises(StagingError, match="lead to itself"):
            models.link(entry(source=HubFile("org/other", "m.safetensors"), from_job=True), there)
        assert not path.is_symlink()
    other = entry("loras/n.safetensors")
    models.link(other, source)
    with pytest.raises(StagingError, match="lead to itself"):
        models.link(other, tmp_path / "again" / "loras" / "n.safetensors")
    assert os.readlink(models.path_of(other)) == str(source)
    assert models.state(other) is FileState.RIGHT


def test_there_is_always_a_file_while_a_link_is_replaced(models: ModelFolder, source: Path) -> None:
    other = source.with_name("other.safetensors")
    other.write_bytes(DATA)
    models.link(entry(), source)
    path, missing, stop = models.path_of(entry()), [], threading.Event()

    def look() -> None:
        while not stop.is_set():
            if not path.exists():
                missing.append(1)

    looking = threading.Thread(target=look, daemon=True)
    looking.start()
    for _ in range(100):
        models.link(entry(), other)
        models.link(entry(), source)
    stop.set()
    looking.join()
    assert not missing
