"""What a job's models are called, which file is whose, and which go after the job."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from settee.doors.agent import assets, config
from settee.doors.agent.envelope import Asset
from settee.models.entry import ModelEntry
from settee.models.folder.file_state import FileState
from settee.models.folder.model_folder import ModelFolder
from tests.unit.agent.templates import parsed

FOLDERS = ("checkpoints", "loras")
BASE = {"bucket": "b", "key": "base.safetensors"}


class Storage:
    """Objects by bucket and key: size, ETag, metadata."""

    def __init__(self) -> None:
        self.found: dict[str, dict[str, Any]] = {}

    def head(self, bucket: str, key: str, *_: Any) -> dict[str, Any]:
        return self.found.get(f"{bucket}/{key}", uploaded(10, "v1"))


def uploaded(size: int, version: str) -> dict[str, Any]:
    return {"ContentLength": size, "ETag": f'"{version}"'}


def options(tmp_path: Path, **more: Any) -> config.AgentConfig:
    names = ("base_models", "loras", "workflows", "outputs", "temp")
    paths = {name: str(tmp_path / name) for name in names}
    return config.parse({"minio": {"endpoint": "x:1", "access_key": "a", "secret_key": "b"}, "paths": paths, **more})


class Host:
    def __init__(self, folder: Path, **more: Any) -> None:
        self.model_folder, self.options, self.storage = (
            ModelFolder(folder / "models"),
            options(folder, **more),
            Storage(),
        )

    def resolve(self, *loras: dict[str, Any], base: dict[str, Any] = BASE) -> assets.Assets:
        given = parsed(baseModel=base, loras=[{"bucket": "b", **lora} for lora in loras], parameters__extra=EXTRA)
        return assets.resolve(given, self.options, self.storage, self.model_folder, FOLDERS, lambda: None)  # type: ignore[arg-type]

    def place(self, found: assets.Assets, data: bytes = b"x" * 10) -> None:
        """As the engine does, in the place of what may be replaced."""
        for entry in found.entries:
            if self.model_folder.state(entry) is FileState.RIGHT:
                continue
            self.model_folder.make_way(entry)
            path = self.model_folder.path_of(entry)
            path.write_bytes(data[: entry.size])
            self.model_folder.record(entry, size=entry.size or 0, sha256=None, xxh3=None)


EXTRA = {"sampler": "euler", "scheduler": "normal"}


@pytest.fixture
def host(tmp_path: Path) -> Host:
    return Host(tmp_path)


def loras_of(found: assets.Assets) -> list[ModelEntry]:
    return [entry for entry in found.entries if entry.target == "loras"]


# --- names -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "metadata", "name"),
    [
        ({"key": "a/b/x.safetensors"}, {}, "x.safetensors"),
        ({"key": "x.safetensors", "displayName": "Pretty Style"}, {}, "Pretty Style.safetensors"),
        ({"key": "x.safetensors", "displayName": "Pretty.SafeTensors"}, {}, "Pretty.SafeTensors"),
        ({"key": "x.pt", "displayName": "Pretty.safetensors"}, {}, "Pretty.safetensors.pt"),
        ({"key": "x.safetensors", "displayName": " ", "originalName": "Orig.safetensors"}, {}, "Orig.safetensors"),
        ({"key": "x.safetensors"}, {"original-name": "Meta"}, "Meta.safetensors"),
        ({"key": "x.safetensors"}, {"original_name": "Meta"}, "Meta.safetensors"),
        ({"key": "x.safetensors"}, {"display-name": "Meta"}, "Meta.safetensors"),
        ({"key": "x.safetensors"}, {"display_name": "Meta"}, "Meta.safetensors"),
        ({"key": "x.safetensors", "displayName": "/"}, {}, "LoraModel.safetensors"),
        ({"key": "x.safetensors", "displayName": "../../etc/passwd"}, {}, "passwd.safetensors"),
        ({"key": "x.safetensors", "displayName": "C:\\models\\style.safetensors"}, {}, "style.safetensors"),
        ({"key": "x.safetensors", "displayName": "CON"}, {}, "_CON.safetensors"),
        ({"key": "x.safetensors", "displayName": "日本の絵"}, {}, "日本の絵.safetensors"),
        ({"key": "blob-v1.0", "displayName": "SDXL Base.safetensors"}, {}, "SDXL Base.safetensors"),
        ({"key": "sdxl_base_1.0"}, {}, "sdxl_base_1.0.safetensors"),
        ({"key": "model.txt"}, {}, "model.txt.safetensors"),
    ],
)
def test_a_model_has_the_name_that_people_know_it_by(
    given: dict[str, Any], metadata: dict[str, str], name: str
) -> None:
    assert assets.pretty_name(Asset.model_validate({"bucket": "b", **given}), metadata) == name


def test_two_objects_never_share_a_name(host: Host) -> None:
    found = host.resolve({"key": "one/style.safetensors"}, {"key": "two/STYLE.safetensors"})
    first, second = (entry.name for entry in loras_of(found))
    assert first == "style.safetensors"
    assert second.startswith("STYLE-")
    assert second.endswith(".safetensors")
    assert len(second) == len("STYLE-12345678.safetensors")
    assert [each.name for each in found.placed[1:]] == [first, second]
    again = host.resolve({"key": "two/STYLE.safetensors"}, {"key": "one/style.safetensors"})
    assert again.placed[1].name == "STYLE.safetensors"


def test_an_operators_own_file_of_that_name_stays(host: Host) -> None:
    path = Path(host.model_folder.root, "loras", "style.safetensors")
    path.parent.mkdir(parents=True)
    path.write_bytes(b"the operator's")
    found = host.resolve({"key": "style.safetensors"})
    assert found.placed[1].name.startswith("style-")
    host.place(found)
    assert path.read_bytes() == b"the operator's"


def test_below_a_folder_of_comfyuis_a_name_has_the_folder(host: Host) -> None:
    given = parsed(baseModel=BASE, loras=[], parameters__extra=EXTRA)
    targets = ("checkpoints/sdxl", "loras")
    found = assets.resolve(given, host.options, host.storage, host.model_folder, targets, lambda: None)  # type: ignore[arg-type]
    assert found.placed[0].name == "sdxl/base.safetensors"


# --- what an object holds now -------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["persistent", "ephemeral"])
@pytest.mark.parametrize("size", [10, 8])
def test_an_object_that_was_uploaded_anew_is_fetched_anew(strategy: str, size: int, host: Host) -> None:
    lora = {"key": "style.safetensors", "cacheStrategy": strategy}
    host.place(host.resolve(lora))
    assert all(host.model_folder.state(entry) is FileState.RIGHT for entry in host.resolve(lora).entries)
    host.storage.found["b/style.safetensors"] = uploaded(size, "v2")
    found = host.resolve(lora)
    [entry] = loras_of(found)
    assert host.model_folder.state(entry) is not FileState.RIGHT
    assert entry.name == "style.safetensors", "in its own place"
    host.place(found, b"y" * 10)
    assert Path(host.model_folder.path_of(entry)).read_bytes() == b"y" * size
    assert host.model_folder.state(loras_of(host.resolve(lora))[0]) is FileState.RIGHT


def test_a_passing_job_does_not_touch_what_is_kept(host: Host) -> None:
    kept = {"key": "style.safetensors", "cacheStrategy": "persistent"}
    host.place(host.resolve(kept))
    host.storage.found["b/style.safetensors"] = uploaded(10, "v2")
    found = host.resolve({"key": "style.safetensors"})
    [entry] = loras_of(found)
    assert entry.name.startswith("style-")
    host.place(found, b"y" * 10)
    assert all(host.model_folder.records.discard(str(entry.path)) for entry in found.passing)
    assert not Path(host.model_folder.path_of(entry)).exists()
    assert Path(host.model_folder.path_of(replace(entry, name="style.safetensors"))).read_bytes() == b"x" * 10


# --- what goes ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "lora", "more", "passing"),
    [
        ({}, {}, {}, ["base.safetensors", "style.safetensors"]),
        ({"cacheStrategy": "persistent"}, {}, {}, ["style.safetensors"]),
        ({}, {"cacheStrategy": "persistent"}, {}, ["base.safetensors"]),
        ({}, {}, {"persistent_model_keys": ["base.safetensors"]}, ["style.safetensors"]),
        ({}, {}, {"cleanup": {"delete_downloaded_loras": False}}, ["base.safetensors"]),
        ({}, {}, {"cleanup": {"delete_downloaded_models": False}}, ["style.safetensors"]),
    ],
)
def test_what_is_ephemeral_goes(
    base: dict[str, Any], lora: dict[str, Any], more: dict[str, Any], passing: list[str], tmp_path: Path
) -> None:
    host = Host(tmp_path, **more)
    found = host.resolve({"key": "style.safetensors", **lora}, base={**BASE, **base})
    assert [entry.name for entry in found.passing] == passing
    host.place(found)
    assert all(host.model_folder.records.discard(str(entry.path)) for entry in found.passing)
    there = {entry.name for entry in found.entries if Path(host.model_folder.path_of(entry)).exists()}
    assert there == {"base.safetensors", "style.safetensors"} - set(passing)


def test_what_was_there_to_stay_stays(host: Host) -> None:
    host.place(host.resolve({"key": "style.safetensors", "cacheStrategy": "persistent"}))
    assert [entry.name for entry in host.resolve({"key": "style.safetensors"}).passing] == ["base.safetensors"]


def test_one_object_for_two_roles_is_one_file(host: Host) -> None:
    found = host.resolve({"key": "base.safetensors"})
    assert [(entry.target, entry.name) for entry in found.entries] == [
        ("checkpoints", "base.safetensors"),
        ("loras", "base.safetensors"),
    ]
