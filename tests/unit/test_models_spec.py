"""The grammar of MODELS, MODELS_FILE and a job's `models`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settee.base.errors import ConfigError
from settee.base.settings import load
from settee.models import spec
from settee.models.entry import HubFile, ModelEntry, S3Object, WebFile

SHA = "ab" * 32


def entries(text: str) -> tuple[ModelEntry, ...]:
    return spec.configured(load(models=text))


def only(text: str) -> ModelEntry:
    (entry,) = entries(text)
    return entry


@pytest.mark.parametrize(
    ("text", "source", "path"),
    [
        ("org/repo:a.safetensors:checkpoints", HubFile("org/repo", "a.safetensors"), "checkpoints/a.safetensors"),
        ("org/repo:sub/a.safetensors:vae:b.pt", HubFile("org/repo", "sub/a.safetensors"), "vae/b.pt"),
        ("org/repo@refs/pr/1:a.st:loras/x", HubFile("org/repo", "a.st", "refs/pr/1"), "loras/x/a.st"),
        ("gpt2:a.bin:checkpoints", HubFile("gpt2", "a.bin"), "checkpoints/a.bin"),
        ("s3://buck/a/b.sft:unet", S3Object("buck", "a/b.sft"), "unet/b.sft"),
        ("s3://buck/a:b.sft:unet:c.sft", S3Object("buck", "a:b.sft"), "unet/c.sft"),
        ("https://h.example/a.pt:vae", WebFile("https://h.example/a.pt"), "vae/a.pt"),
        ("https://h.example:8443/a.pt:vae", WebFile("https://h.example:8443/a.pt"), "vae/a.pt"),
        ("https://h.example/v1:get/a.pt:vae", WebFile("https://h.example/v1:get/a.pt"), "vae/a.pt"),
        ("https://h.example/x?id=1:2:loras/a:n.pt", WebFile("https://h.example/x?id=1:2"), "loras/a/n.pt"),
        ("http://h.example/My%20File.pt:vae", WebFile("http://h.example/My%20File.pt"), "vae/My File.pt"),
        (
            "https://huggingface.co/org/repo/blob/main/sub/a.safetensors:vae",
            HubFile("org/repo", "sub/a.safetensors"),
            "vae/a.safetensors",
        ),
        (
            "https://huggingface.co/org/repo/resolve/v2%2Fx/a.safetensors?download=true:vae:b.st",
            HubFile("org/repo", "a.safetensors", "v2/x"),
            "vae/b.st",
        ),
    ],
)
def test_each_form(text: str, source: Any, path: str) -> None:
    entry = only(text)
    assert entry.source == source
    assert str(entry.path) == path
    assert entry.required
    assert not entry.from_job


def test_options_and_several_entries() -> None:
    first, second, third = entries(
        f"org/r:a.st:vae#sha256={SHA.upper()},\n org/r:b.st:vae#lazy&preload ,, https://h.example/c.pt?x=#y:vae"
    )
    assert first.sha256 == SHA
    assert not first.lazy
    assert (second.lazy, second.preload) == (True, True)
    assert third.source == WebFile("https://h.example/c.pt?x=#y")
    assert third.position == "MODELS entry 3"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("org/repo:a.st", "2 part"),
        ("a:b:c:d:e", "5 part"),
        ("org/repo:a.st:checkpoints:../x", "'..'"),
        ("org/repo:a.st:../checkpoints", "'..'"),
        ("org/repo:a.st:/checkpoints", "absolute"),
        ("org/repo:../a.st:checkpoints", "'..'"),
        ("org/repo:a.st::x", "Target"),
        ("org/repo:a.st:.settee", "dot"),
        ("org/repo:a.st:vae:a.part", "unfinished download"),
        ("org/repo:a.st:vae:a.PART.json", "unfinished download"),
        ("org/repo:a.st:vae:CON", "device"),
        ("org/repo:a.st:vae:" + "m" * 250, "more than 245 bytes"),
        ("org/repo:a.st:vae/a.json", "named like a file"),
        ("org/repo:a.st:vae/a.PART", "named like a file"),
        ("org/repo:a.st:vae/a.safetensors/b", "named like a file"),
        ("org re/po:a.st:vae", "repository"),
        ("org/repo@a..b:a.st:vae", "revision"),
        ("org/repo:a.st:vae#sha256=12", "64 hexadecimal"),
        ("s3://b/x.st:vae", "s3://bucket/key"),
        ("https://h.example:port/m.bin:vae", "not an http"),
        ("org/repo:a.st:vae#sha265=12", "did you mean #sha256"),
        ("org/repo:a.st:vae:b.st#Lazy", "did you mean #lazy"),
        ("org/repo:a.st:vae#lazy&foo", "not an option"),
        ("https://h.example/a.pt:vae#lasy", "did you mean #lazy"),
        ("org/repo:a.st:models/vae", "leave out models/"),
        ("s3://buck/dir/:vae", "s3://bucket/key"),
        ("https://h.example/a.pt", "no Target"),
        ("https://h.example/download:vae", "LocalName"),
        ("https://:1/a.pt:vae", "http"),
        ("https://h.example/a.pt:..", "Target"),
    ],
)
def test_what_is_wrong_is_said(text: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said) as caught:
        entries(f"org/ok:ok.st:vae, {text}")
    assert "MODELS entry 2" in caught.value.message


def test_every_bad_entry_is_named_at_once(tmp_path: Path) -> None:
    file = tmp_path / "models.yaml"
    file.write_text("- {source: 'x', target: vae}\n- {source: 'a/b:c.st', target: vae, color: red}\n- 7\n")
    with pytest.raises(ConfigError) as caught:
        spec.configured(load(models="bad,org/r:a.st:vae,worse", models_file=file))
    where = [problem["path"] for problem in caught.value.details["problems"]]
    assert where == ["MODELS entry 1", "MODELS entry 3", *(f"MODELS_FILE entry {n}" for n in (1, 2, 3))]


def test_no_error_shows_a_signature_or_a_password() -> None:
    with pytest.raises(ConfigError) as caught:
        entries("https://me:SECRET@h.example/a.pt?sig=SECRET, https://me:SECRET@h.example/dl?sig=SECRET:vae")
    assert len(caught.value.details["problems"]) == 2
    assert "SECRET" not in json.dumps([caught.value.message, caught.value.details])
    assert "SECRET" not in repr(only("https://me:SECRET@h.example/a.pt?sig=SECRET:vae"))


def test_two_files_for_one_place_are_a_mistake_and_the_same_twice_is_not() -> None:
    assert len(entries("o/r:a.st:vae,o/r:a.st:vae")) == 1
    with pytest.raises(ConfigError, match=r"entry 2: goes to vae/A\.st, where MODELS entry 1"):
        entries("o/r:a.st:vae,o/r:A.st:vae")


def test_a_file_of_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CIVIT", "token-value")
    file = tmp_path / "models.yaml"
    file.write_text(
        f"""models:
  - org/repo:a.st:vae
  - source: https://c.example/api/42
    target: loras
    name: style.safetensors
    sha256: {SHA}
    size: 12
    required: false
    lazy: true
    token: CIVIT
"""
    )
    first, second = spec.configured(load(models_file=file))
    assert first.position == "MODELS_FILE entry 1"
    assert (second.sha256, second.size, second.required, second.lazy) == (SHA, 12, False, True)
    assert second.token is not None
    assert second.token.get_secret_value() == "token-value"
    assert "token-value" not in repr(second)
    file.with_suffix(".json").write_text(json.dumps(["org/repo:a.st:vae"]))
    assert len(spec.configured(load(models_file=file.with_suffix(".json")))) == 1


@pytest.mark.parametrize("text", ["", "models:\n", "# nothing yet\n", "[]"])
def test_an_empty_file_asks_for_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    assert spec.configured(load(models_file=tmp_path / "m.yaml")) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", "not valid YAML: see line"),
        ("{a: 1}", "must be a list"),
        ("text", "must be a list"),
        ("- {source: 'o/r:a.st', target: vae, token: NOT_SET_ANYWHERE}", "NOT_SET_ANYWHERE"),
        ("- {source: 'o/r:a.st', target: vae, size: true}", "number of bytes"),
        ("- {source: 'o/r:a.st', target: vae, required: 'yes'}", "true or false"),
        ("- {source: 'o/r:a.st'}", "no target"),
    ],
)
def test_a_bad_file_says_what_is_wrong(tmp_path: Path, text: str, said: str) -> None:
    (tmp_path / "m.yaml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        spec.configured(load(models_file=tmp_path / "m.yaml"))


def test_a_missing_file_is_named() -> None:
    with pytest.raises(ConfigError, match=r"MODELS_FILE: nowhere\.yaml cannot be read: No such file"):
        spec.configured(load(models_file=Path("nowhere.yaml")))


def test_a_job_may_not_name_the_workers_variables() -> None:
    found, problems = spec.of_job(
        [
            "o/r:a.st:loras",
            {"source": "o/r:b.st", "target": "loras", "token": "HF_TOKEN"},
            "o/r:c.st:loras#lazy",
            {"source": "o/r:d.st", "target": "loras", "required": False},
        ]
    )
    assert [entry.from_job for entry in found] == [True]
    assert [problem["path"] for problem in problems] == ["models.1", "models.2", "models.3"]


@given(st.text(max_size=80) | st.recursive(st.none() | st.booleans() | st.integers() | st.text(), st.lists))
def test_anything_is_an_entry_or_a_problem(item: Any) -> None:
    found, problems = spec.of_job([item])
    assert len(found) + len(problems) == 1
    for entry in found:
        assert ".." not in entry.path.parts
        assert not entry.path.is_absolute()


@given(st.dictionaries(st.sampled_from([*spec.KEYS, "x"]), st.text(max_size=30) | st.integers() | st.none()))
def test_any_mapping_is_an_entry_or_a_problem(item: dict[str, Any]) -> None:
    found, problems = spec.of_job([item])
    assert len(found) + len(problems) == 1


@pytest.mark.parametrize(
    "text",
    [
        "https://me:geheim@h.example/a.pt",
        "https://me:ge@geheim@h.example/a.pt",
        "https://me:ge/geheim@h.example/a.pt",
        "https://me:geheim@h.example:no/a.pt:vae",
        "s3://me:geheim@b/a.pt:vae",
    ],
)
def test_a_password_in_a_bad_entry_is_not_repeated(text: str) -> None:
    _, (problem,) = spec.of_job([text])
    assert "geheim" not in problem["problem"]
