"""The named values of a job: where each comes from, what is missing, and how strongly each LoRA is applied."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settee.base.errors import InvalidRequest
from settee.doors.agent.config import REQUIRED_SAMPLING
from settee.doors.agent.graph.parameters import context
from tests.unit.agent.templates import context_of, loras, parsed, placed


def problems_of(**changes: Any) -> dict[str, str]:
    with pytest.raises(InvalidRequest) as caught:
        context_of(parsed(**changes))
    return {problem["path"]: problem["problem"] for problem in caught.value.details["problems"]}


def strengths(count: int, said: Any) -> list[tuple[float, float]]:
    found = context_of(parsed(loras=loras(count), parameters__extra=extra(loras=said)))
    return [(use.strength_model, use.strength_clip) for use in found.loras]


def extra(**more: Any) -> dict[str, Any]:
    return {"sampler": "euler", "scheduler": "normal", **more}


def test_every_name_of_the_documented_envelope() -> None:
    found = context_of(parsed())
    metadata = found.values.pop("loras_metadata")
    assert found.values == {
        "prompt": "portrait of a neon samurai",
        "negative_prompt": "lowres, blurry",
        "seed": 987654321,
        "cfg_scale": 7.5,
        "steps": 80,
        "width": 832,
        "height": 1216,
        "sampler": "dpmpp_2m_sde_gpu",
        "scheduler": "karras",
        "base_model_path": "sdxl_base_1.0.safetensors",
        "base_model_name": "sdxl_base_1.0.safetensors",
        "base_model_full_path": "/models/checkpoints/base.safetensors",
        "loras": ["cyber_fantasy.safetensors"],
        "primary_lora_name": "cyber_fantasy.safetensors",
        "primary_lora_strength_model": 1.0,
        "primary_lora_strength_clip": 1.0,
    }
    assert metadata == [
        {
            "name": "cyber_fantasy.safetensors",
            "key": "models/loras/cyber_fantasy.safetensors",
            "strength_model": 1.0,
            "strength_clip": 1.0,
        }
    ]
    assert not found.seed_drawn


def test_without_loras_their_names_have_no_value() -> None:
    values = context_of(parsed(loras=[])).values
    assert values["loras"] == values["loras_metadata"] == []
    assert [values[f"primary_lora_{name}"] for name in ("name", "strength_model", "strength_clip")] == [None] * 3


def test_a_field_goes_before_extra_and_extra_before_the_defaults() -> None:
    more = {"steps": 9, "denoise": 0.5, "prompt": "not this", "base_model_name": "nor this"}
    given_ = parsed(parameters__extra=extra(**more), parameters__sampler="heun", parameters__negativePrompt=...)
    values = context_of(given_, denoise=0.9, clip_skip=2, negative_prompt="ugly", prompt="no").values
    assert values["steps"] == 80
    assert values["sampler"] == "heun"
    assert values["denoise"] == 0.5
    assert values["clip_skip"] == 2
    assert values["negative_prompt"] == "ugly"
    assert values["prompt"] == "portrait of a neon samurai"
    assert values["base_model_name"] == "sdxl_base_1.0.safetensors"


def test_no_negative_prompt_is_an_empty_one() -> None:
    assert context_of(parsed(parameters__negativePrompt=...)).values["negative_prompt"] == ""
    assert context_of(parsed(parameters__negativePrompt=""), negative_prompt="ugly").values["negative_prompt"] == ""


def test_sampling_fields_may_stand_in_extra_by_their_names() -> None:
    changes = {f"parameters__{name}": ... for name in ("seed", "steps", "cfgScale", "resolution")}
    more = {"seed": 5, "steps": 12.0, "cfg_scale": 3, "width": 64, "height": 72}
    found = context_of(parsed(parameters__extra=extra(**more), **changes))
    assert {name: found.values[name] for name in more} == more
    assert isinstance(found.values["steps"], int)
    assert not found.seed_drawn


def test_defaults_never_stand_in_for_a_sampling_field() -> None:
    defaults = dict.fromkeys(REQUIRED_SAMPLING, 1)
    missing = {f"parameters__{name}": ... for name in ("steps", "cfgScale", "resolution", "extra")}
    with pytest.raises(InvalidRequest) as caught:
        context_of(parsed(**missing), **defaults)
    problems = caught.value.details["problems"]
    assert [problem["parameter"] for problem in problems] == [name for name in REQUIRED_SAMPLING if name != "seed"]
    assert problems[1]["path"] == "parameters.cfgScale (or parameters.extra.cfg_scale)"


def test_a_seed_is_drawn_when_there_is_none() -> None:
    found = context_of(parsed(parameters__seed=...))
    assert found.values["seed"] == 77
    assert found.seed_drawn
    assert context_of(parsed(parameters__seed=0)).values["seed"] == 0
    assert context_of(parsed(parameters__seed=2**64 - 1)).values["seed"] == 2**64 - 1


@pytest.mark.parametrize("cfg", [100.5, 1e300])
def test_how_much_cfg_is_too_much_only_comfyui_knows(cfg: float) -> None:
    assert context_of(parsed(parameters__cfgScale=cfg)).values["cfg_scale"] == cfg
    in_extra = parsed(parameters__cfgScale=..., parameters__extra=extra(cfg_scale=cfg))
    assert context_of(in_extra).values["cfg_scale"] == cfg


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("steps", "20"),
        ("steps", 2.5),
        ("steps", 0),
        ("steps", True),
        ("cfg_scale", -1),
        ("cfg_scale", 0),
        ("cfg_scale", True),
        ("seed", -1),
        ("width", [1]),
        ("sampler", " "),
        ("scheduler", 4),
        ("negative_prompt", 4),
    ],
)
def test_what_extra_says_is_held_to_the_same_ranges(name: str, value: Any) -> None:
    fields = ("seed", "steps", "cfgScale", "resolution", "negativePrompt")
    changes = {f"parameters__{field}": ... for field in fields}
    good = {"steps": 20, "cfg_scale": 4, "seed": 1, "width": 64, "height": 64}
    [(path, problem)] = problems_of(parameters__extra=extra(**good) | {name: value}, **changes).items()
    assert f"parameters.extra.{name}" in path
    assert problem.startswith(("must ", "should be "))


# --- LoRAs --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        (None, [(1, 1), (1, 1)]),
        ([], [(1, 1), (1, 1)]),
        ([{"strength": 0.5}], [(0.5, 0.5), (1, 1)]),
        ([{"strength": 0.5}, {"strength_model": 0.2, "strength_clip": 0.3}], [(0.5, 0.5), (0.2, 0.3)]),
        ([{}, {"strengthModel": 0.2, "strength": 0.9}], [(1, 1), (0.2, 0.9)]),
        ([{"strength_model": 0.4}, {"strength_clip": 0}], [(0.4, 0.4), (1, 0)]),
        ([{"strength": 9}, {"strength": -9}], [(2, 2), (-2, -2)]),
        ([0.3, None], [(0.3, 0.3), (1, 1)]),
        ([{"key": "models/loras/1.safetensors", "strength": 0.7}], [(1, 1), (0.7, 0.7)]),
        ([{"name": "1", "strength": 0.7}, {"name": "0.safetensors", "strength": 0.6}], [(0.6, 0.6), (0.7, 0.7)]),
        ([{"title": "Pretty", "strength": 0.7}, {"name": "1", "strength": 0.2}], [(0.7, 0.7), (0.2, 0.2)]),
        ({"1.safetensors": 0.1, "models/loras/0.safetensors": {"strength": 0.2}}, [(0.2, 0.2), (0.1, 0.1)]),
        (["1.safetensors", "0.safetensors"], [(1, 1), (1, 1)]),
    ],
)
def test_each_lora_has_its_own_strengths(said: Any, expected: list[tuple[float, float]]) -> None:
    assert strengths(2, said) == expected


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (
            [{"strength_model": 5, "strength_clip": -2.5}],
            ["strength_model 5 is limited to 2", "strength_clip -2.5 is limited to -2"],
        ),
        ([{"strength": 3}], ["strength 3 is limited to 2"]),
        ([{"strength_model": 1, "strength_clip": 1, "strength": 3}], []),
        ([{"strength": 2}], []),
        (None, []),
    ],
)
def test_a_strength_that_goes_too_far_is_told(said: Any, told: list[str]) -> None:
    found = context_of(parsed(loras=loras(1), parameters__extra=extra(loras=said)))
    assert found.warnings == tuple(f"loras[0]: {text}" for text in told)


@pytest.mark.parametrize(
    ("said", "at"),
    [
        ("0.5", "parameters.extra.loras"),
        ([[1]], "parameters.extra.loras[0]"),
        ([{"strength": "0.5"}], "parameters.extra.loras[0].strength"),
        ([{"strength_clip": True}], "parameters.extra.loras[0].strength_clip"),
        ([{"key": "another", "strength": 0.5}], "parameters.extra.loras[0]"),
        ([{"strength": 0.5}] * 2, "parameters.extra.loras[1]"),
        ({"nobody": 0.5}, "parameters.extra.loras.nobody"),
    ],
)
def test_a_strength_that_is_no_loras_is_told(said: Any, at: str) -> None:
    assert list(problems_of(loras=loras(1), parameters__extra=extra(loras=said))) == [at]


def test_display_names_find_their_metadata_too() -> None:
    given_ = [{**lora, "displayName": name} for lora, name in zip(loras(2), ("Neon Glow", "Ink"), strict=True)]
    said = [{"displayName": "ink", "strength": 0.25, "id": "i"}, {"name": "Neon Glow.safetensors", "strength": 0.75}]
    found = context_of(parsed(loras=given_, parameters__extra=extra(loras=said)))
    assert [use.strength_model for use in found.loras] == [0.75, 0.25]
    assert found.values["loras_metadata"][1]["id"] == "i"
    assert found.values["primary_lora_strength_clip"] == 0.75


@given(st.permutations(range(6)), st.lists(st.floats(-3, 3), min_size=6, max_size=6))
def test_by_their_keys_strengths_are_found_in_any_order(order: list[int], values: list[float]) -> None:
    said = [{"key": f"models/loras/{at}.safetensors", "strength": values[at]} for at in order]
    assert strengths(6, said) == [(max(-2, min(2, value)),) * 2 for value in values]


def test_there_is_a_name_for_every_lora() -> None:
    given_ = parsed(loras=loras(2))
    with pytest.raises(ValueError, match="zip"):
        context(given_, placed(parsed(loras=loras(1))), defaults={}, draw=lambda: 1)
