"""The states of files in the models folder, and the end of an unfinished placing."""

from __future__ import annotations

import errno
import json
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settee.base.errors import IntegrityError, StagingError, UnsafePath
from settee.models.entry import HubFile, S3Object, WebFile, identity
from settee.models.folder import records
from settee.models.folder.file_state import FileState
from settee.models.folder.model_folder import ModelFolder
from tests.support.models import DATA, download, entry, other_process, put, record_file, safetensors, sha256

# --- states ------------------------------------------------------------------------------------------------


def test_a_download_is_right_for_this_process_and_the_next(models: ModelFolder) -> None:
    asked = entry()
    assert models.state(asked) is FileState.ABSENT
    assert not models.models_dir.exists()
    download(models, asked)
    assert models.state(asked) is FileState.RIGHT
    assert ModelFolder(models.models_dir).state(asked) is FileState.RIGHT


@pytest.mark.parametrize(
    ("recorded", "asked", "state"),
    [
        ({}, {"size": len(DATA)}, FileState.RIGHT),
        ({}, {"size": len(DATA) + 1}, FileState.WRONG),
        ({"sha256": sha256(DATA)}, {"sha256": sha256(DATA)}, FileState.RIGHT),
        ({"sha256": sha256(DATA)}, {"sha256": "0" * 64}, FileState.WRONG),
        ({"sha256": sha256(DATA).upper()}, {"sha256": sha256(DATA)}, FileState.RIGHT),
        ({}, {"sha256": sha256(DATA)}, FileState.UNKNOWN),
        ({}, {"source": HubFile("org/other", "m.safetensors")}, FileState.UNKNOWN),
        ({}, {"source": HubFile("org/repo", "m.safetensors", "v2")}, FileState.UNKNOWN),
        ({"sha256": sha256(DATA)}, {"sha256": sha256(DATA), "source": S3Object("b", "k")}, FileState.RIGHT),
    ],
)
def test_states(models: ModelFolder, recorded: dict[str, Any], asked: dict[str, Any], state: FileState) -> None:
    download(models, entry(), **recorded)
    assert models.state(entry(**asked)) is state


def test_a_file_that_changed(models: ModelFolder) -> None:
    asked = entry()
    path = download(models, asked)
    path.write_bytes(DATA[:-1])
    assert models.state(asked) is FileState.WRONG
    path.write_bytes(safetensors(fill=1))
    assert models.state(asked) is FileState.UNKNOWN
    path.unlink()
    assert models.state(asked) is FileState.ABSENT
    path.mkdir()
    assert models.state(asked) is FileState.WRONG
    with pytest.raises(IntegrityError, match="is a folder"):
        models.make_way(asked)


def test_a_baked_model_keeps_whole_seconds_only(models: ModelFolder) -> None:
    asked = entry()
    path = download(models, asked)
    seconds = path.stat().st_mtime_ns // 10**9
    os.utime(path, ns=(0, seconds * 10**9))
    assert models.state(asked) is FileState.RIGHT
    os.utime(path, ns=(0, (seconds - 1) * 10**9))
    assert models.state(asked) is FileState.UNKNOWN
    # Its bytes were recorded: they tell.
    assert models.adopt(asked) is None
    assert models.state(asked) is FileState.RIGHT


@pytest.mark.parametrize(
    "garbage",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"{}",
        b"\xff\xfe",
        b"[" * 10_000,
        b'{"path": "loras/m.safetensors"}',
        b"x" * 100_000,
    ],
)
def test_a_broken_record_is_none(models: ModelFolder, garbage: bytes) -> None:
    download(models, entry())
    record_file(models).write_bytes(garbage)
    assert models.state(entry()) is FileState.UNKNOWN
    assert list(models.records) == []
    assert models.adopt(entry()) is None
    assert models.state(entry()) is FileState.RIGHT


@pytest.mark.parametrize(
    "change",
    [
        {"size": "9"},
        {"size": True},
        {"path": "loras/other"},
        {"sha256": 3},
        {"extra": 1},
        {"from_job": 0},
        {"link": []},
    ],
)
def test_a_record_with_a_wrong_type_is_none(models: ModelFolder, change: dict[str, Any]) -> None:
    download(models, entry())
    file = record_file(models)
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    assert models.state(entry()) is FileState.UNKNOWN


@given(garbage=st.binary(max_size=300))
def test_no_garbage_breaks_a_look(tmp_path_factory: pytest.TempPathFactory, garbage: bytes) -> None:
    models = ModelFolder(tmp_path_factory.getbasetemp() / "garbage")
    put(models, entry())
    record_file(models).parent.mkdir(parents=True, exist_ok=True)
    record_file(models).write_bytes(garbage)
    assert models.state(entry()) is FileState.UNKNOWN


def test_a_record_that_is_a_folder_or_a_pipe_is_none(models: ModelFolder) -> None:
    put(models, entry())
    record_file(models).mkdir(parents=True)
    assert models.state(entry()) is FileState.UNKNOWN
    record_file(models).rmdir()
    os.mkfifo(record_file(models))
    assert models.state(entry()) is FileState.UNKNOWN


def test_identities_tell_files_apart_and_no_secrets() -> None:
    sources = [
        HubFile("a/b", "c"),
        HubFile("a/b", "c", "v1"),
        S3Object("a", "b/c"),
        S3Object("a", "b/c", "https://me:hunter2@minio.example:9000"),
        S3Object("a", "b/c", "https://minio.example"),
        WebFile("https://host/c"),
        WebFile("https://host/c?token=hunter2"),
        WebFile("https://host/c?token=hunter3"),
        WebFile("https://me:hunter2@host/c"),
    ]
    told = [identity(source) for source in sources]
    assert len(set(told)) == len(told)
    assert "hunter" not in "".join(told)
    assert identity(WebFile("https://host/c#part")) == identity(WebFile("https://host/c"))


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "path",
    [
        "loras/../m.safetensors",
        "../loras/m.safetensors",
        "/etc/m.safetensors",
        "loras//m.safetensors",
        "loras/m\0.safetensors",
        ".settee/m.safetensors",
        "loras/.hidden",
        "loras/.cache/m.safetensors",
        "loras/m.safetensors.part",
        "loras/m.safetensors.PART",
        "loras/m.safetensors.part.json",
        "loras/m.json/x.safetensors",
        "loras/" + "m" * 247,
        "loras/..",
    ],
)
def test_names_that_are_refused(models: ModelFolder, path: str) -> None:
    with pytest.raises(UnsafePath):
        models.state(entry(path))
    with pytest.raises(UnsafePath):
        models.link(entry(path), Path(__file__))


def test_a_name_with_a_folder_is_refused(models: ModelFolder) -> None:
    with pytest.raises(UnsafePath):
        models.state(replace(entry(), name="sub/m.safetensors"))


def test_a_folder_may_be_the_operators_link_to_a_volume(models: ModelFolder, tmp_path: Path) -> None:
    (tmp_path / "volume").mkdir()
    models.models_dir.mkdir()
    (models.models_dir / "loras").symlink_to(tmp_path / "volume")
    download(models, entry())
    assert (tmp_path / "volume" / "m.safetensors").read_bytes() == DATA
    assert models.state(entry()) is FileState.RIGHT


def test_a_volume_that_is_not_mounted_is_said(models: ModelFolder, tmp_path: Path) -> None:
    models.models_dir.mkdir()
    (models.models_dir / "loras").symlink_to(tmp_path / "volume")
    assert models.state(entry()) is FileState.ABSENT
    with pytest.raises(StagingError, match="see that it is mounted") as failure:
        models.make_way(entry())
    assert str(tmp_path) not in failure.value.message


# --- dying in between --------------------------------------------------------------------------------------

_DIE = """
import os, signal, sys
from pathlib import Path
from settee.models.folder.model_folder import ModelFolder
from tests.support.models import entry, safetensors
models, asked = ModelFolder(Path(sys.argv[1])), entry(from_job=sys.argv[2] == "job")
with models.claim(asked):
    path = models.path_of(asked)
    part = path.with_name(path.name + ".part")
    part.write_bytes(safetensors(fill=2))
    if sys.argv[3] == "after":
        part.replace(path)
    print("ready", flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("who", ["MODELS", "job"])
def test_killed_between_rename_and_record(models: ModelFolder, who: str) -> None:
    asked = entry(from_job=who == "job")
    with other_process(_DIE, models.models_dir, who, "after") as process:
        process.wait()
    assert models.state(asked) is FileState.UNKNOWN
    assert models.adopt(asked) is None
    assert models.state(asked) is FileState.RIGHT
    assert next(iter(models.records)).from_job == asked.from_job


def test_killed_before_the_rename_the_old_file_is_not_taken_for_the_new(models: ModelFolder) -> None:
    download(models, entry(source=HubFile("org/old", "m.safetensors")))
    with other_process(_DIE, models.models_dir, "MODELS", "before") as process:
        process.wait()
    assert models.state(entry()) is FileState.WRONG
    assert models.adopt(entry(size=len(DATA))) is not None


def test_killed_after_the_rename_over_an_old_file(models: ModelFolder) -> None:
    download(models, entry(source=HubFile("org/old", "m.safetensors")))
    with other_process(_DIE, models.models_dir, "MODELS", "after") as process:
        process.wait()
    assert models.state(entry()) is FileState.UNKNOWN
    assert models.adopt(entry()) is None
    assert models.path_of(entry()).read_bytes() == safetensors(fill=2)


def test_a_failed_download_leaves_the_record_of_what_was_there(models: ModelFolder) -> None:
    old, new = entry(), entry(source=HubFile("org/new", "m.safetensors"))
    download(models, old)
    with pytest.raises(OSError, match="cut"), models.claim(new):
        raise OSError("cut")
    assert models.state(old) is FileState.RIGHT
    with pytest.raises(OSError, match="cut"), models.claim(entry("loras/other.safetensors")):
        raise OSError("cut")
    assert [placed.path for placed in models.records] == ["loras/m.safetensors"]


def test_a_file_that_vanished_is_not_recorded(models: ModelFolder) -> None:
    with pytest.raises(IntegrityError, match="gone again"), models.claim(entry()):
        models.record(entry(), size=3, sha256=None, xxh3=None)
    assert list(models.records) == []


def test_another_file_in_a_downloads_place_is_not_recorded(models: ModelFolder) -> None:
    put(models, entry())
    with pytest.raises(IntegrityError, match="another file"):
        models.record(entry(), size=3, sha256=None, xxh3=None)
    assert list(models.records) == []


# --- a folder that cannot be written ---------------------------------------------------------------------------


@pytest.fixture
def read_only(models: ModelFolder, monkeypatch: pytest.MonkeyPatch) -> ModelFolder:
    """What a read-only file system answers (the tests may run as root, whom modes do not stop)."""
    put(models, entry())
    root, real_open = str(models.models_dir), os.open

    def refuse(path: Any, *more: Any, **named: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), path)

    def open_(path: Any, flags: int, *more: Any, **named: Any) -> int:
        if str(path).startswith(root) and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            refuse(path)
        return real_open(path, flags, *more, **named)

    monkeypatch.setattr(os, "open", open_)
    for name in ("symlink", "replace", "rename", "unlink", "makedirs", "utime"):
        monkeypatch.setattr(os, name, refuse)
    return models


def test_a_read_only_folder_is_used_and_warned_of_once(
    read_only: ModelFolder, caplog: pytest.LogCaptureFixture
) -> None:
    other = entry("loras/n.safetensors", source=HubFile("org/repo", "m.safetensors"))
    with open(read_only.path_of(other), "wb") as file:
        file.write(DATA)
    with caplog.at_level(logging.WARNING):
        assert read_only.adopt(entry()) is None
        assert read_only.adopt(other) is None
    assert len(caplog.records) == 1
    assert "cannot be recorded" in caplog.text
    assert read_only.state(entry()) is FileState.RIGHT
    assert [placed.path for placed in read_only.records] == ["loras/m.safetensors", "loras/n.safetensors"]
    with read_only.use([entry(), other]) as gone:
        assert gone == ()
        assert read_only.records.in_use("loras/m.safetensors")


def test_a_read_only_folder_takes_no_link_and_says_what_to_do(read_only: ModelFolder, tmp_path: Path) -> None:
    source = tmp_path / "source.safetensors"
    source.write_bytes(DATA)
    with pytest.raises(StagingError, match=r"Read-only file system.*MODELS_DIR") as failure:
        read_only.link(entry("loras/new.safetensors"), source)
    assert str(tmp_path) not in failure.value.message


def test_records_work_on_a_record_folder_alone(tmp_path: Path) -> None:
    assert list(records.Records(str(tmp_path / "absent"))) == []
