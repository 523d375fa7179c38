"""Another process changes what lies in the models folder between a look of this one's and its word about it."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Any

import pytest

from settee.base.errors import SetteeError
from settee.models.entry import HubFile, ModelEntry
from settee.models.folder import model_folder
from settee.models.folder.file_state import FileState
from settee.models.folder.model_folder import ModelFolder
from tests.support.models import DATA, download, entry, put, record_file, safetensors

OTHER = safetensors(fill=1)


def brought(number: int) -> ModelEntry:
    """One of two models of the same name and size, which jobs bring."""
    return entry(source=HubFile(f"org/{number}", "m.safetensors"), from_job=True)


def interrupted(monkeypatch: pytest.MonkeyPatch, module: Any, name: str, meanwhile: Callable[[], object]) -> None:
    """Have something happen the first time that this function is called, before it does its work."""
    real, is_done = getattr(module, name), False

    def function(*arguments: Any, **known: Any) -> Any:
        nonlocal is_done
        if not is_done:
            is_done = True
            meanwhile()
        return real(*arguments, **known)

    monkeypatch.setattr(module, name, function)


def unrecorded(models: ModelFolder, asked: ModelEntry, data: bytes) -> None:
    """As a worker that was killed between its download's last rename and its record leaves it."""
    with contextlib.suppress(KeyboardInterrupt), models.claim(asked):
        put(models, asked, data)
        note = record_file(models).read_bytes()
        raise KeyboardInterrupt
    record_file(models).write_bytes(note)


def test_what_was_replaced_since_the_look_is_not_adopted(models: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    unrecorded(models, brought(1), OTHER)
    other = ModelFolder(models.models_dir)
    interrupted(monkeypatch, model_folder, "model_problem", lambda: download(other, brought(0), xxh3=None))
    assert models.state(brought(1)) is FileState.UNKNOWN
    assert models.adopt(brought(1)) == "was replaced while it was looked at"
    assert models.state(brought(1)) is not FileState.RIGHT
    assert models.state(brought(0)) is FileState.RIGHT
    assert models.path_of(brought(0)).read_bytes() == DATA


def test_what_another_worker_adopted_since_the_look_is_right(
    models: ModelFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    unrecorded(models, brought(1), OTHER)
    interrupted(monkeypatch, model_folder, "model_problem", lambda: ModelFolder(models.models_dir).adopt(brought(1)))
    assert models.adopt(brought(1)) is None
    assert models.state(brought(1)) is FileState.RIGHT


def test_a_jobs_file_that_changed_is_not_taken_on_its_name_alone(models: ModelFolder) -> None:
    path = download(models, brought(0), xxh3=None)
    before = path.stat().st_mtime_ns
    path.write_bytes(OTHER)
    os.utime(path, ns=(before + 1, before + 1))
    assert models.state(brought(0)) is FileState.UNKNOWN
    problem = models.adopt(brought(0))
    assert problem is not None
    assert "was changed since it was placed" in problem


def test_a_newer_file_of_the_same_size_and_time_is_not_removed(models: ModelFolder) -> None:
    path = download(models, brought(0), xxh3=None)
    old = next(iter(models.records))
    download(ModelFolder(models.models_dir), brought(1), OTHER, xxh3=None)
    # What a clock of 4 ms gives two files that are written one after the other.
    os.utime(path, ns=(old.mtime_ns, old.mtime_ns))
    ModelFolder(models.models_dir).record(brought(1), size=len(OTHER), sha256=None, xxh3=None)
    assert not models.records.remove(old)
    assert path.read_bytes() == OTHER
    assert models.state(brought(1)) is FileState.RIGHT


def test_a_failed_placing_brings_back_only_what_it_replaced(models: ModelFolder) -> None:
    download(models, brought(0), xxh3=None)
    with contextlib.suppress(KeyboardInterrupt), models.claim(brought(1)):
        put(models, brought(1), OTHER)
        assert ModelFolder(models.models_dir).adopt(brought(1)) is None
        raise KeyboardInterrupt
    assert models.state(brought(1)) is FileState.RIGHT
    assert models.state(brought(0)) is not FileState.RIGHT


def test_a_file_that_could_not_be_claimed_is_what_it_was(models: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    download(models, brought(0), xxh3=None)
    other = ModelFolder(models.models_dir)
    with other.use([brought(0)]) as gone:
        assert not gone
        monkeypatch.setattr(models.records, "in_use", lambda rel: False)  # it is from now on
        with pytest.raises(SetteeError, match="in use"), models.claim(brought(1)):
            raise AssertionError("claimed")
        assert models.state(brought(0)) is FileState.RIGHT
