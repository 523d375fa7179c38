"""Files that lie there already: taken over once somebody has looked."""

from __future__ import annotations

import os
import threading
from dataclasses import replace
from typing import Any

import pytest

from settee.base.threads import Stopped
from settee.models.entry import HubFile
from settee.models.folder import model_folder
from settee.models.folder.checks import hash_file
from settee.models.folder.file_state import FileState
from settee.models.folder.model_folder import ModelFolder
from tests.support.models import DATA, download, entry, put, safetensors, sha256


@pytest.mark.parametrize(
    ("known", "problem"),
    [
        ({}, None),
        ({"size": len(DATA)}, None),
        ({"size": len(DATA) - 1}, f"has {len(DATA)} bytes instead of {len(DATA) - 1}"),
        ({"sha256": sha256(DATA)}, None),
        ({"sha256": "0" * 64}, f"has the sha256 {sha256(DATA)} instead of {'0' * 64}"),
    ],
)
def test_adopting_an_unrecorded_file(models: ModelFolder, known: dict[str, Any], problem: str | None) -> None:
    put(models, entry())
    assert models.state(entry()) is (FileState.UNKNOWN)
    assert models.adopt(entry(**known)) == problem
    assert (models.state(entry()) is FileState.RIGHT) == (problem is None)
    assert models.state(entry(sha256=sha256(DATA))) is (
        FileState.RIGHT if known.get("sha256") == sha256(DATA) else FileState.UNKNOWN
    )


def test_adopting_reads_a_file_once(models: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    put(models, entry())
    asked, read = entry(sha256=sha256(DATA)), []
    monkeypatch.setattr(model_folder, "hash_file", lambda path, **known: read.append(path) or hash_file(path, **known))
    assert models.adopt(asked) is None
    assert models.adopt(asked) is None
    assert len(read) == 1


def test_nothing_broken_is_adopted(models: ModelFolder) -> None:
    put(models, entry(), DATA[:-1])
    assert "cut short" in str(models.adopt(entry()))
    assert models.adopt(entry("loras/absent.safetensors")) == "does not exist"


def test_another_sources_file_is_adopted_by_its_sha256_alone(models: ModelFolder) -> None:
    download(models, entry())
    other = entry(source=HubFile("org/other", "m.safetensors"))
    assert "another source" in str(models.adopt(replace(other, size=len(DATA))))
    assert models.adopt(replace(other, sha256=sha256(DATA))) is None
    assert models.state(other) is FileState.RIGHT


def test_a_changed_file_is_told_by_its_bytes(models: ModelFolder) -> None:
    path = download(models, entry())
    path.write_bytes(safetensors(fill=1))
    assert models.adopt(entry()) == "was changed since it was placed"
    path.write_bytes(DATA)
    assert models.state(entry()) is FileState.UNKNOWN
    assert models.adopt(entry()) is None


def test_a_hash_can_be_given_up(models: ModelFolder) -> None:
    put(models, entry())
    stop = threading.Event()
    stop.set()
    with pytest.raises(Stopped):
        models.adopt(entry(sha256=sha256(DATA)), stop=stop)
    assert models.state(entry()) is FileState.UNKNOWN


def test_a_file_that_is_replaced_while_it_is_read(models: ModelFolder) -> None:
    path = put(models, entry())
    os.utime(path, (1, 1))

    def replaced_first(path: Any, **named: Any) -> Any:
        put(models, entry())
        return real(path, **named)

    real = model_folder.hash_file
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(model_folder, "hash_file", replaced_first)
        assert models.adopt(entry(sha256=sha256(DATA))) == "was replaced while it was looked at"
    assert models.adopt(entry(sha256=sha256(DATA))) is None
