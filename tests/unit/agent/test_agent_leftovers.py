"""What a killed agent's job left, and what the next agent does about it."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from settee.backends.comfy.prompts import folder_of, prompt_ids
from settee.doors.agent.assets import Leftovers
from settee.models.entry import ModelEntry, S3Object
from settee.models.folder.model_folder import ModelFolder
from settee.models.folder.records import Records
from settee.service import timestamps
from settee.service.store import Attempt, Store

PROMPT = str(uuid.uuid4())


class Engine:
    output_dir = None

    def __init__(self, root: Path) -> None:
        self.model_folder, self.taken_back, self.backend = ModelFolder(root / "models"), list[str](), self

    def take_back(self, prompt_id: str) -> None:
        self.taken_back.append(prompt_id)


def entry(name: str) -> ModelEntry:
    return ModelEntry(source=S3Object("b", name), target="loras", name=name, position="loras[0]", from_job=True)


def placed(model_folder: ModelFolder, name: str) -> Path:
    path = model_folder.path_of(entry(name))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * 10)
    model_folder.record(entry(name), size=10, sha256=None, xxh3=None)
    return path


@pytest.fixture
def engine(tmp_path: Path) -> Any:
    return Engine(tmp_path)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    store = Store(tmp_path / "state")
    store.open()
    yield store
    store.close()


ATTEMPT = Attempt(id="a", job_id="job", started_at=timestamps.now(), prompt_id=PROMPT)


def leftovers_of(store: Store, engine: Any, root: Path) -> Leftovers:
    return Leftovers(store, engine, root / "output")


def killed(store: Store, engine: Any, root: Path, *names: str) -> Leftovers:
    """A job ran here, with these models, when its agent was killed; what the next one has."""
    leftovers_of(store, engine, root).note([entry(name) for name in names])
    return leftovers_of(store, engine, root)


def test_what_the_job_brought_goes(tmp_path: Path, store: Store, engine: Any) -> None:
    brought, kept = placed(engine.model_folder, "brought.safetensors"), placed(engine.model_folder, "kept.safetensors")
    half = kept.with_name("half.safetensors.part")
    half.write_bytes(b"x")
    names = ("brought.safetensors", "half.safetensors", "never.safetensors")
    killed(store, engine, tmp_path, *names).clear([ATTEMPT])
    assert engine.taken_back == [PROMPT]
    assert (brought.exists(), half.exists(), kept.exists()) == (False, False, True)
    assert store.leftovers() == []


def test_files_of_every_attempt_go(tmp_path: Path, store: Store, engine: Any) -> None:
    """A job that ran out of memory is submitted again, under another id."""
    output = tmp_path / "output"
    folders = [output / folder_of(each) for each in prompt_ids(PROMPT)]
    for folder in (*folders, output / "theirs"):
        (folder / "sub").mkdir(parents=True)
        (folder / "sub" / "a.png").write_bytes(b"x")
    leftovers_of(store, engine, tmp_path).done(PROMPT, [], [])
    assert [path.name for path in output.iterdir()] == ["theirs"]
    assert len(set(folders)) == 3


def test_files_that_custom_nodes_made_elsewhere_in_the_folder_go(tmp_path: Path, store: Store, engine: Any) -> None:
    output = tmp_path / "output"
    (output / "day").mkdir(parents=True)
    for path in (output / "day" / "a.png", output / "day" / "theirs.png", tmp_path / "outside.png"):
        path.write_bytes(b"x")
    made = ["day/a.png", "day/never.png", "../outside.png"]
    leftovers_of(store, engine, tmp_path).done(PROMPT, [], made)
    assert [path.name for path in (output / "day").iterdir()] == ["theirs.png"]
    assert (tmp_path / "outside.png").exists()


def test_what_cannot_be_removed_is_noted_for_the_next_start(
    tmp_path: Path, store: Store, engine: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = placed(engine.model_folder, "busy.safetensors")
    leftovers = killed(store, engine, tmp_path, "busy.safetensors")
    with monkeypatch.context() as patched:
        patched.setattr(Records, "discard", lambda *_: False)  # another agent's job uses it
        leftovers.clear([ATTEMPT])
        leftovers.note([])
        leftovers.done(PROMPT, [], [])
    assert store.leftovers() == ["loras/busy.safetensors"]
    leftovers_of(store, engine, tmp_path).clear([ATTEMPT])
    assert not path.exists()


@pytest.mark.parametrize("name", ["../outside", "/outside", "a/../../outside"])
def test_nothing_outside_the_models_folder_is_touched(name: str, tmp_path: Path, store: Store, engine: Any) -> None:
    outside = tmp_path / "outside.part"
    outside.write_bytes(b"x")
    store.set_leftovers([name])
    leftovers_of(store, engine, tmp_path).clear([ATTEMPT])
    assert outside.exists()
