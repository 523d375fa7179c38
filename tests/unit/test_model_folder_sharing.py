"""Whose a file is, what may replace it, and who is at it now."""

from __future__ import annotations

import logging
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import InvalidRequest, StagingError
from settee.base.threads import Stopped
from settee.models.entry import HubFile
from settee.models.folder import model_folder
from settee.models.folder.file_state import FileState
from settee.models.folder.model_folder import ModelFolder
from tests.support.models import DATA, download, entry, other_process, put, safetensors, sha256

OTHER = HubFile("org/other", "m.safetensors")


# --- whose file it is ------------------------------------------------------------------------------------------


def test_a_job_replaces_neither_models_nor_the_operators_file(models: ModelFolder, source: Path) -> None:
    download(models, entry())
    theirs = entry("loras/own.safetensors")
    put(models, theirs)
    for path in ("loras/m.safetensors", "loras/own.safetensors"):
        asked = entry(path, source=OTHER, from_job=True, position="models.0")
        with pytest.raises(InvalidRequest, match=r"models\.0: .* give the entry another LocalName"):
            models.link(asked, source)
        with pytest.raises(InvalidRequest), models.claim(asked):
            pytest.fail("not to be downloaded")
        assert models.path_of(asked).read_bytes() == DATA
    assert "no sha256 is known" in str(models.adopt(entry("loras/own.safetensors", from_job=True)))


def test_a_job_may_use_them_when_they_are_what_it_asks_for(models: ModelFolder) -> None:
    download(models, entry(), sha256=sha256(DATA))
    put(models, entry("loras/own.safetensors"))
    assert models.state(entry(from_job=True)) is FileState.RIGHT
    assert models.state(entry(from_job=True, source=OTHER, sha256=sha256(DATA))) is FileState.RIGHT
    assert models.adopt(entry("loras/own.safetensors", from_job=True, sha256=sha256(DATA))) is None
    # And they stay what they were: nothing that a job may evict.
    assert [placed.from_job for placed in models.records] == [False, False]


def test_a_jobs_file_is_replaced_by_the_next_jobs_and_by_models(models: ModelFolder, source: Path) -> None:
    download(models, entry(from_job=True))
    models.link(entry(source=OTHER, from_job=True), source)
    assert models.state(entry(source=OTHER)) is FileState.RIGHT
    download(models, entry(), safetensors(fill=3))
    assert models.state(entry()) is FileState.RIGHT
    assert not next(iter(models.records)).from_job


def test_models_keeps_what_a_job_brought(models: ModelFolder) -> None:
    download(models, entry(from_job=True))
    models.keep(entry(from_job=True))
    assert next(iter(models.records)).from_job
    models.keep(entry())
    assert not next(iter(models.records)).from_job
    assert models.state(entry()) is FileState.RIGHT


def test_a_link_of_models_that_leads_nowhere_may_be_filled_by_a_job(models: ModelFolder, source: Path) -> None:
    models.link(entry(), source)
    source.unlink()
    with pytest.raises(InvalidRequest), models.claim(entry(source=OTHER, from_job=True)):
        pytest.fail("another file in MODELS' place")
    with models.claim(entry(from_job=True)):
        put(models, entry())
        models.record(entry(from_job=True), size=len(DATA), sha256=None, xxh3=None)
    assert [(placed.from_job, placed.link) for placed in models.records] == [(False, None)]


def test_a_broken_file_of_the_operators_is_replaced_and_said(
    models: ModelFolder, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    put(models, entry(), DATA[:-9])
    with caplog.at_level(logging.WARNING):
        models.link(entry(), source)
    assert "9 bytes are missing" in caplog.text
    assert models.state(entry()) is FileState.RIGHT
    assert os.listdir(models.path_of(entry()).parent) == ["m.safetensors"]


def test_a_whole_model_of_the_operators_is_set_aside(
    models: ModelFolder, source: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = models.path_of(entry())
    for fill in (1, 2):
        if path.is_symlink():
            path.unlink()
        put(models, entry(), safetensors(fill=fill))
        with caplog.at_level(logging.WARNING):
            models.link(entry(), source)
    assert path.with_name("m.safetensors.set-aside").read_bytes() == safetensors(fill=1)
    assert path.with_name("m.safetensors.set-aside-1").read_bytes() == safetensors(fill=2)
    assert "kept as m.safetensors.set-aside" in caplog.text


# --- one at a time -----------------------------------------------------------------------------------------

_PLACE = """
import sys
from pathlib import Path
from settee.models.folder.model_folder import ModelFolder
from tests.support.models import DATA, entry, put
models = ModelFolder(Path(sys.argv[1]))
with models.claim(entry()):
    print("begun", flush=True)
    if sys.stdin.readline() == "fail\\n":
        sys.exit("as asked")
    put(models, entry())
    models.record(entry(), size=len(DATA), sha256=None, xxh3=None)
"""


@pytest.mark.parametrize("end", ["place", "fail", "kill"])
def test_one_process_places_a_file_and_another_waits_for_it(models: ModelFolder, end: str) -> None:
    needed: list[bool] = []

    def wait() -> None:
        with models.claim(entry()) as is_needed:
            needed.append(is_needed)
            if is_needed:
                put(models, entry())
                models.record(entry(), size=len(DATA), sha256=None, xxh3=None)

    with other_process(_PLACE, models.models_dir) as process:
        waiting = threading.Thread(target=wait, daemon=True)
        waiting.start()
        if end == "kill":
            process.kill()
        else:
            assert process.stdin is not None
            process.stdin.write(f"{end}\n")
            process.stdin.flush()
        waiting.join(20)
    assert needed == [end != "place"]
    assert models.state(entry()) is FileState.RIGHT


def test_waiting_for_another_process_can_be_given_up(
    models: ModelFolder, source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stop = threading.Event()
    with other_process(_PLACE, models.models_dir):
        with monkeypatch.context() as patch:
            patch.setattr(model_folder, "_MAX_WAIT_S", 0.01)
            with pytest.raises(StagingError, match="another process") as failure, models.claim(entry()):
                pytest.fail("not while the other one is at it")
        assert failure.value.retryable
        stop.set()
        with pytest.raises(Stopped), models.claim(entry(), stop=stop):
            pytest.fail("not while the other one is at it")
        with pytest.raises(Stopped):
            models.link(entry(), source, stop=stop)


def test_content_tells_whether_a_name_holds_another_file(models: ModelFolder) -> None:
    assert not models.content_of(entry())
    contents: list[Any] = []
    for fill in (1, 2, 1):
        download(models, entry(), safetensors(fill=fill))
        contents.append(models.content_of(entry()))
    assert contents[0] & contents[2]
    assert contents[0].isdisjoint(contents[1])
    put(models, entry("loras/n.safetensors"))
    assert models.content_of(entry("loras/n.safetensors"))
