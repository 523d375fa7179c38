"""The agent's configuration as the engine's settings, and where its models lie."""

from __future__ import annotations

from operator import attrgetter
from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import ConfigError
from settee.base.settings import Settings
from settee.doors.agent import config
from settee.doors.agent.config import AgentConfig
from settee.doors.agent.engine_settings import (
    SPELLINGS,
    ModelPlaces,
    make_folders,
    model_places,
    spelled,
    to_settings,
)
from settee.models.entry import S3Object
from settee.models.folder.model_folder import ModelFolder
from tests.support.models import DATA, entry


def configured(root: Path, paths: dict[str, str] | None = None, **sections: Any) -> AgentConfig:
    folders = {"base_models": "models/checkpoints", "loras": "models/loras"}
    folders |= {name: name for name in ("workflows", "outputs", "temp")}
    return config.parse(
        {
            "minio": {"endpoint": "127.0.0.1:9000", "access_key": "who", "secret_key": "very-secret"},
            "paths": {name: str(root / folder) for name, folder in (folders | (paths or {})).items()},
            **sections,
        }
    )


def test_the_engine_gets_what_the_configuration_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("COMFY_URL", "MODELS_DIR", "BUCKET_NAME", "BUCKET_ENDPOINT_URL", "JOB_TIMEOUT_S", "BUCKET_PUBLIC_URL"):
        monkeypatch.setenv(name, "7")  # the file goes before the environment
    monkeypatch.setenv("ALLOW_JOB_MODELS", "false")
    monkeypatch.setenv("COMFY_STALL_S", "33")  # which says the rest
    comfyui = {"api_url": "http://gpu.local:8188", "timeout_seconds": 60, "poll_interval_seconds": 0.5}
    made = to_settings(configured(tmp_path, comfyui=comfyui))
    assert made.comfy_url == "http://gpu.local:8188"
    assert (made.comfy_input_dir, made.comfy_output_dir, made.comfy_temp_dir) == (None, None, None)
    assert made.models_folder == tmp_path / "models"
    assert made.workspace_dir == tmp_path / "temp/workspace"
    assert (made.job_timeout_s, made.progress_interval_s, made.comfy_stall_s) == (60, 0.5, 33)
    assert (made.bucket_endpoint_url, made.bucket_region) == ("http://127.0.0.1:9000", None)
    assert made.bucket_access_key_id is not None
    assert made.bucket_access_key_id.get_secret_value() == "who"
    assert (made.bucket_name, made.bucket_public_url, made.delivery) == (None, None, "s3")
    assert made.allow_job_models
    assert made.bucket_verify_tls


def test_an_s3_server_may_have_a_certificate_of_its_own(tmp_path: Path) -> None:
    minio = {"endpoint": "minio.local:9000", "access_key": "who", "secret_key": "what", "verify_tls": False}
    assert not to_settings(configured(tmp_path, minio=minio)).bucket_verify_tls


def test_a_variable_that_is_wrong_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COMFY_STALL_S", "soon")
    with pytest.raises(ConfigError, match="COMFY_STALL_S"):
        to_settings(configured(tmp_path))


def test_with_dir_the_engine_starts_comfyui(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = to_settings(configured(tmp_path, comfyui={"dir": str(tmp_path / "ComfyUI"), "port": 8200}))
    assert (made.comfy_url, made.comfy_dir, made.comfy_port) == (None, tmp_path / "ComfyUI", 8200)
    own = {"dir": str(tmp_path / "ComfyUI"), "custom_nodes_dirs": [str(tmp_path / "nodes")]}
    monkeypatch.setenv("CUSTOM_NODES_DIRS", "/elsewhere")
    assert made.custom_nodes_dirs == ()
    assert to_settings(configured(tmp_path, comfyui=own)).custom_nodes_dirs == (str(tmp_path / "nodes"),)
    with pytest.raises(ConfigError, match="give dir too"):
        configured(tmp_path, comfyui={"custom_nodes_dirs": [str(tmp_path)]})


def test_a_model_that_is_missing_is_told_in_words_of_this_door() -> None:
    told = spelled("add ORG/REPO:a:loras (with its real repository) to MODELS, or to the job's models")
    assert told.endswith("to MODELS")


def test_comfyuis_folders_are_shared_when_they_are_given(tmp_path: Path) -> None:
    folders = {f"{name}_dir": str(tmp_path / "ComfyUI" / name) for name in ("input", "output", "temp")}
    made = to_settings(configured(tmp_path, comfyui=folders))
    assert made.comfy_output_dir == tmp_path / "ComfyUI/output"


def test_every_setting_that_this_door_gives_has_its_name(tmp_path: Path) -> None:
    """But for what no configuration changes: no message asks for it here."""
    both = configured(tmp_path), configured(tmp_path, comfyui={"dir": str(tmp_path)})
    made = {name for config in both for name in to_settings(config).model_fields_set}
    fixed = {"allow_job_models", "bucket_path_style", "bucket_public_url", "delivery", "require_encryption"}
    assert {name.upper() for name in made - fixed} <= SPELLINGS.keys()
    assert {name.lower() for name in SPELLINGS} - {"timeout_s"} <= Settings.model_fields.keys()
    for option in {*" and ".join(SPELLINGS.values()).split(" and ")} - {"output.bucket"}:
        attrgetter(option)(configured(tmp_path))  # it is one


def test_a_message_of_the_engine_is_spelled_in_options() -> None:
    text = "set WORKSPACE_DIR (and COMFY_PORT) to ones of its own, COMFY_STALL_S; MY_COMFY_PORT stays"
    assert spelled(text) == "set paths.temp (and comfyui.port) to ones of its own, COMFY_STALL_S; MY_COMFY_PORT stays"


# --- models ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("base", "loras", "targets"),
    [
        ("models/checkpoints", "models/loras", ("checkpoints", "loras")),
        ("models/checkpoints/sdxl", "models/loras", ("checkpoints/sdxl", "loras")),
        ("models/checkpoints/a/b", "models/loras/c", ("checkpoints/a/b", "loras/c")),
    ],
)
def test_comfyuis_own_layout_is_used_as_it_is(tmp_path: Path, base: str, loras: str, targets: tuple[str, str]) -> None:
    places = model_places(configured(tmp_path, {"base_models": base, "loras": loras}))
    assert places == ModelPlaces(tmp_path / "models", targets)
    assert places.links == ()


@pytest.mark.parametrize(
    ("base", "loras", "links", "targets"),
    [
        ("big/sd", "fast/lora", ("big/sd", "fast/lora"), ("checkpoints", "loras")),
        ("one/checkpoints", "other/loras", ("one/checkpoints", "other/loras"), ("checkpoints", "loras")),
        ("one/checkpoints/xl", "other/loras", ("one/checkpoints", "other/loras"), ("checkpoints/xl", "loras")),
        (
            "models/stable-diffusion",
            "models/loras",
            ("models/stable-diffusion", "models/loras"),
            ("checkpoints", "loras"),
        ),
    ],
)
def test_any_other_layout_is_shown_by_links(
    tmp_path: Path, base: str, loras: str, links: tuple[str, str], targets: tuple[str, str]
) -> None:
    made = configured(tmp_path, {"base_models": base, "loras": loras})
    places = model_places(made)
    own = tmp_path / "outputs/state/models"
    assert (places.models_dir, places.targets) == (own, targets)
    wanted = zip(("checkpoints", "loras"), links, strict=True)
    assert places.links == tuple((own / name, tmp_path / folder) for name, folder in wanted)
    for _ in range(2):
        make_folders(made)
        assert all(link.resolve() == folder for link, folder in places.links)


def test_a_model_placed_through_a_link_lies_where_comfyui_looks(tmp_path: Path) -> None:
    made = configured(tmp_path, {"base_models": "big/sd", "loras": "fast/lora"})
    make_folders(made)
    places = model_places(made)
    model_folder = ModelFolder(places.models_dir)
    model = entry(f"{places.targets[1]}/m.safetensors", source=S3Object("bucket", "key"), from_job=True)
    with model_folder.claim(model) as is_ours:
        assert is_ours
        model_folder.path_of(model).write_bytes(DATA)
        model_folder.record(model, size=len(DATA), sha256=None, xxh3=None)
    assert (tmp_path / "fast/lora/m.safetensors").read_bytes() == DATA
    (placed,) = model_folder.records
    assert model_folder.records.remove(placed)
    assert list((tmp_path / "fast/lora").iterdir()) == []


def test_links_follow_the_configuration(tmp_path: Path) -> None:
    make_folders(configured(tmp_path, {"loras": "before/lora"}))
    made = configured(tmp_path, {"loras": "after/lora"})
    make_folders(made)
    link, folder = model_places(made).links[1]
    assert link.resolve() == folder == tmp_path / "after/lora"


def test_folders_that_cannot_be_made_are_named(tmp_path: Path) -> None:
    (tmp_path / "outputs").write_text("a file")
    with pytest.raises(ConfigError, match=r"outputs cannot be made: "):
        make_folders(configured(tmp_path))


def test_a_real_folder_in_a_links_place_is_left_alone(tmp_path: Path) -> None:
    made = configured(tmp_path, {"loras": "fast/lora"})
    (tmp_path / "outputs/state/models/loras").mkdir(parents=True)
    with pytest.raises(ConfigError, match="cannot be made a link"):
        make_folders(made)
