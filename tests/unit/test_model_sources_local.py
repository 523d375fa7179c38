"""Models that this host has already: in RunPod's host cache, and on volumes."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

import pytest

from settee.models.entry import HubFile, ModelEntry, Source, WebFile
from settee.models.folder.place import blob_sha256
from settee.models.sources import find_on_volume, host_cache, linked
from tests.support.delivering import make_settings
from tests.support.hub import HubServer

BODY = b"weights" * 1000
SHA256 = hashlib.sha256(BODY).hexdigest()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A cache that the real huggingface_hub has filled."""
    import huggingface_hub
    from huggingface_hub import constants

    folder = tmp_path / "cache"
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_TELEMETRY", True)
    with HubServer(tmp_path / "hub") as hub:
        hub.add("org/name", "unet/model.safetensors", BODY, lfs=True)
        hub.add("org/name", "config.json", b"{}")
        hub.add("org/name", "unet/model.safetensors", BODY + b"2", revision="feature/two", lfs=True)
        for filename, revision in (
            ("unet/model.safetensors", "main"),
            ("config.json", "main"),
            ("unet/model.safetensors", "feature/two"),
        ):
            huggingface_hub.hf_hub_download(
                "org/name", filename, revision=revision, endpoint=hub.endpoint, cache_dir=folder, token=False
            )
        (folder / "commit").write_text(hub.commit("org/name"))
        yield folder


MODEL = HubFile("org/name", "unet/model.safetensors")


def test_what_huggingface_hub_stored_is_found(cache: Path) -> None:
    found = host_cache.find(MODEL, cache)
    assert found is not None
    assert found.read_bytes() == BODY
    assert blob_sha256(found) == SHA256
    small = host_cache.find(HubFile("org/name", "config.json"), cache)
    assert small is not None
    assert blob_sha256(small) is None


def test_branches_with_slashes_and_commits(cache: Path) -> None:
    two = host_cache.find(HubFile("org/name", MODEL.filename, "feature/two"), cache)
    assert two is not None
    assert two.read_bytes() == BODY + b"2"
    one = host_cache.find(HubFile("org/name", MODEL.filename, (cache / "commit").read_text()), cache)
    assert one is not None
    assert one.read_bytes() == BODY


def test_no_other_snapshot_is_taken(cache: Path) -> None:
    """Two are there; a revision that nobody stored is neither, and so is a file that its snapshot lacks."""
    assert len(list((cache / "models--org--name" / "snapshots").iterdir())) == 2
    for file in (
        HubFile("org/name", MODEL.filename, "v9"),
        HubFile("org/name", MODEL.filename, "0" * 40),
        HubFile("org/name", "config.json", "feature/two"),
        HubFile("org/other", MODEL.filename),
        HubFile("org/name", "model.safetensors"),
    ):
        assert host_cache.find(file, cache) is None
    (cache / "models--org--name" / "refs" / "main").unlink()
    assert host_cache.find(MODEL, cache) is None
    assert host_cache.find(MODEL, cache / "nowhere") is None


def test_size_and_hash_must_fit_when_they_are_known(cache: Path) -> None:
    assert host_cache.find(MODEL, cache, size=len(BODY), sha256=SHA256) is not None
    assert host_cache.find(MODEL, cache, size=len(BODY) + 1) is None
    assert host_cache.find(MODEL, cache, sha256="0" * 64) is None
    # Of a small file the cache knows no sha256: whoever places it looks itself.
    assert host_cache.find(HubFile("org/name", "config.json"), cache, sha256="0" * 64) is not None


def _snapshot_file(cache: Path) -> Path:
    found = host_cache.find(MODEL, cache)
    assert found is not None
    return found


def _unlink_blob(path: Path) -> None:
    path.resolve().unlink()


def _lead_out(path: Path) -> None:
    outside = path.parents[5] / "outside"
    outside.write_bytes(BODY)
    path.unlink()
    path.symlink_to(outside)


def _lead_to_another_repository(path: Path) -> None:
    other = path.parents[4] / "models--org--other" / "blobs" / SHA256
    other.parent.mkdir(parents=True)
    other.write_bytes(BODY)
    path.unlink()
    path.symlink_to(other)


def _make_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _unfinished(path: Path) -> None:
    blob = path.resolve()
    partial = blob.with_name(f"{blob.name}.incomplete")
    blob.rename(partial)
    path.unlink()
    path.symlink_to(partial)


def _loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


def _fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage", [_unlink_blob, _lead_out, _lead_to_another_repository, _make_folder, _unfinished, _loop, _fifo]
)
def test_what_is_no_whole_file_in_its_place_is_absent_and_said_once(
    cache: Path, damage: Any, caplog: pytest.LogCaptureFixture
) -> None:
    host_cache._log_once.cache_clear()
    damage(_snapshot_file(cache))
    with caplog.at_level(logging.WARNING, "settee"):
        assert host_cache.find(MODEL, cache) is None
        assert host_cache.find(MODEL, cache) is None
    (record,) = caplog.records
    assert "org/name:unet/model.safetensors" in record.getMessage()
    assert str(cache) not in record.getMessage()


@pytest.mark.parametrize(
    "file",
    [
        HubFile("org/name", "../../../commit"),
        HubFile("org/name", "unet/../unet/model.safetensors"),
        HubFile("org/name", "/etc/passwd"),
        HubFile("org/name", "unet//model.safetensors"),
        HubFile("org/name", MODEL.filename, "../../../commit"),
        HubFile("org/name", MODEL.filename, ".."),
        HubFile("org/name", MODEL.filename, ""),
        HubFile("../org", MODEL.filename),
        HubFile("org/name", "unet/model\0.safetensors"),
        HubFile("org/name", "unet"),
    ],
)
def test_names_that_lead_elsewhere(cache: Path, file: HubFile) -> None:
    assert host_cache.find(file, cache) is None


@pytest.mark.parametrize("text", [b"", b"not a commit", b"../../..", b"\xff\xfe"])
def test_refs_that_hold_no_commit(cache: Path, text: bytes) -> None:
    (cache / "models--org--name" / "refs" / "main").write_bytes(text)
    assert host_cache.find(MODEL, cache) is None


def test_blobs_that_the_whole_cache_shares(cache: Path) -> None:
    """As huggingface_hub 2 stores what Xet brought: the repository's blob is a link to the shared one."""
    blob = _snapshot_file(cache).resolve()
    shared = cache / "blobs" / "ab" / ("ab" * 32)
    shared.parent.mkdir(parents=True)
    blob.rename(shared)
    blob.symlink_to(os.path.relpath(shared, blob.parent))
    found = host_cache.find(MODEL, cache, sha256=SHA256)
    assert found is not None
    assert found.read_bytes() == BODY
    assert blob_sha256(found) == SHA256


def test_a_cache_without_links(cache: Path) -> None:
    """Where a file system has none, huggingface_hub puts the files into the snapshot."""
    path = _snapshot_file(cache)
    blob = path.resolve()
    path.unlink()
    blob.rename(path)
    assert host_cache.find(MODEL, cache) == path
    assert blob_sha256(path) is None


def test_a_cache_behind_a_link(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "volume").symlink_to(cache)
    assert host_cache.find(MODEL, tmp_path / "volume") is not None


# --- Volumes ---------------------------------------------------------------------------------------------

PATH = PurePosixPath("loras/styles/m.safetensors")


def put(folder: Path, body: bytes = BODY) -> Path:
    path = folder / PATH
    path.parent.mkdir(parents=True)
    path.write_bytes(body)
    return path


def test_the_first_volume_that_has_it(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("a", "b", "c"))
    folders = [first, second, third]
    assert find_on_volume(PATH, folders) is None
    found = put(second)
    put(third)
    assert find_on_volume(PATH, folders) == found
    assert find_on_volume(PATH, folders, size=len(BODY)) == found
    assert find_on_volume(PATH, folders, size=1) is None
    put(first, b"")
    assert find_on_volume(PATH, folders) == found


@pytest.mark.parametrize("path", ["../a/loras/styles/m.safetensors", "/etc/passwd", "loras", "loras/styles/m\0"])
def test_paths_that_are_none(tmp_path: Path, path: str) -> None:
    put(tmp_path / "a")
    assert find_on_volume(PurePosixPath(path), [tmp_path / "a"]) is None


def test_a_link_on_a_volume_is_the_operators(tmp_path: Path) -> None:
    path = put(tmp_path / "a")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")
    assert find_on_volume(PATH, [tmp_path / "a"]) == path
    (tmp_path / "elsewhere").unlink()
    assert find_on_volume(PATH, [tmp_path / "a"]) is None


def entry_of(source: Source, **changes: Any) -> ModelEntry:
    return ModelEntry(source, "loras/styles", "m.safetensors", **changes)


def test_the_host_cache_goes_before_the_volume(cache: Path, tmp_path: Path) -> None:
    on_volume = put(tmp_path / "volume")
    settings = make_settings(host_cache_dir=cache, models_extra_dirs=(str(tmp_path / "volume"),))
    found = linked(entry_of(MODEL), settings)
    assert found is not None
    assert cache in found.parents
    # The cache's has another hash than is wanted.
    assert linked(entry_of(MODEL, sha256="0" * 64), settings) == on_volume
    assert linked(entry_of(WebFile("https://host.example/m.safetensors")), settings) == on_volume
    assert linked(entry_of(MODEL, size=3), settings) is None
