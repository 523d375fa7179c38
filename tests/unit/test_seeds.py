"""Seeds as worker and client draw them: where they are written, within which limits, and which cannot be drawn."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from settee.comfyui.graph import Place
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.seeds import MAX_DRAWN, MAX_SEED, draw_seeds, random_seed

CORE = json.loads((Path(__file__).parents[1] / "data" / "object_info.json").read_text())


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def declared(*limits: int, **inputs: Any) -> dict[str, Any]:
    """A class of the registry with these inputs, or with a seed of these limits."""
    if limits:
        inputs["seed"] = ["INT", {"default": 0, "min": limits[0], "max": limits[1]}]
    return {"input": {"required": inputs}}


INFO = {
    **CORE,
    "ApiNode": declared(1, 2000),
    "OwnRandom": declared(-1, 2**50),
    "Picker": declared(index=["INT", {"default": 0, "min": 0, "max": 9}]),
    "ShowAny": declared(source=["*", {}]),
    "Topaz": declared(
        model=[
            "COMFY_DYNAMICCOMBO_V3",
            {"options": [{"key": "a", "inputs": {}}, {"key": "b", "inputs": declared(1, 9)["input"]}]},
        ]
    ),
}


def most_of(workflow: dict[str, Any], *, every: bool = True) -> dict[str, int]:
    """The drawn seeds, when the greatest is drawn each time."""
    return draw_seeds(workflow, NodeRegistry(INFO), every=every, draw=lambda least, most: most).shown()


def test_a_seed_in_a_primitive_is_drawn_there_through_reroutes() -> None:
    workflow = {
        "3": node("KSampler", seed=["21", 0]),
        "4": node("RandomNoise", noise_seed=["20", 0]),
        "20": node("PrimitiveInt", value=77),
        "21": node("Reroute", **{"": ["20", 0]}),
    }
    assert most_of(workflow) == {"20.value": MAX_DRAWN}


@pytest.mark.parametrize("written", [-1, "-1", -1.0])
def test_minus_one_is_drawn_where_a_node_takes_no_such_seed(written: Any) -> None:
    direct = {"1": node("KSampler", seed=written), "2": node("KSampler", seed=5)}
    assert most_of(direct, every=False) == {"1.seed": MAX_DRAWN}
    linked = {"1": node("KSampler", seed=["2", 0]), "2": node("PrimitiveInt", value=written)}
    assert most_of(linked, every=False) == {"2.value": MAX_DRAWN}


def test_minus_one_that_means_something_to_its_node_stays() -> None:
    workflow = {
        "1": node("OwnRandom", seed=-1),
        "2": node("OwnRandom", seed=["3", 0]),
        "3": node("PrimitiveInt", value=-1),
        "4": node("KSampler", seed=["1", 0], steps=-1),
    }
    assert most_of(workflow, every=False) == {}
    assert most_of(workflow, every=True) == {"1.seed": MAX_DRAWN, "3.value": MAX_DRAWN}


def test_a_primitive_for_a_node_that_takes_minus_one_and_one_that_does_not_is_drawn() -> None:
    workflow = {
        "1": node("OwnRandom", seed=["3", 0]),
        "2": node("KSampler", seed=["3", 0]),
        "3": node("PrimitiveInt", value=-1),
    }
    assert most_of(workflow, every=False) == {"3.value": MAX_DRAWN}


def test_each_minus_one_is_drawn_by_itself_and_equal_seeds_are_drawn_once() -> None:
    workflow = {str(at): node("KSampler", seed=seed) for at, seed in enumerate([-1, -1, 5, 5])}
    draws = itertools.count(1)
    drawn = draw_seeds(workflow, NodeRegistry(INFO), every=True, draw=lambda least, most: next(draws)).shown()
    assert drawn == {"0.seed": 1, "1.seed": 2, "2.seed": 3, "3.seed": 3}


def test_a_drawn_seed_is_within_the_limits_of_all_that_take_it() -> None:
    workflow = {
        "1": node("ApiNode", seed=["9", 0]),
        "2": node("KSampler", seed=["9", 0]),
        "3": node("KSampler", seed=4),
        "4": node("ApiNode", seed=4),
        "5": node("Topaz", **{"model": "b", "model.seed": 1}),
        "9": node("PrimitiveInt", value=77),
    }
    assert most_of(workflow) == {"9.value": 2000, "3.seed": 2000, "4.seed": 2000, "5.model.seed": 9}
    least = draw_seeds(workflow, NodeRegistry(INFO), every=True, draw=lambda least, most: least).shown()
    assert set(least.values()) == {1}


def test_a_range_without_a_whole_number_is_left_alone_with_a_word() -> None:
    info = {"Fraction": declared(seed=["FLOAT", {"min": 0.5, "max": 0.6}])}
    drawn = draw_seeds({"1": node("Fraction", seed=-1)}, NodeRegistry(info), every=False)
    assert drawn.values == {}
    assert "which cannot be drawn" in drawn.stuck[0]


@pytest.mark.parametrize("spec", [[["-1", "1"], {}], ["COMBO", {"options": ["-1", "1"]}], ["STRING", {}]])
def test_a_choice_or_a_text_is_no_seed(spec: Any) -> None:
    drawn = draw_seeds({"1": node("Text", seed="-1")}, NodeRegistry({"Text": declared(seed=spec)}), every=True)
    assert (drawn.values, drawn.stuck) == ({}, ())


def test_without_a_registry_every_node_takes_what_is_drawn() -> None:
    drawn = [draw_seeds({"1": node("Any", seed=1)}, every=True).values[Place("1", "seed")] for _ in range(200)]
    assert len(set(drawn)) > 190
    assert all(0 <= seed <= MAX_DRAWN for seed in drawn)
    assert {random_seed(3, 4) for _ in range(100)} == {3, 4}


def test_a_number_that_only_ends_up_in_a_text_too_is_drawn() -> None:
    workflow = {
        "1": node("KSampler", seed=["9", 0]),
        "2": node("ShowAny", source=["9", 0]),
        "9": node("PrimitiveInt", value=77),
    }
    assert most_of(workflow) == {"9.value": MAX_DRAWN}


@pytest.mark.parametrize("seed", [7, -1])
def test_a_number_that_is_more_than_a_seed_is_left_alone_with_a_word(seed: int) -> None:
    workflow = {
        "1": node("KSampler", seed=["9", 0]),
        "2": node("Picker", index=["9", 0]),
        "9": node("PrimitiveInt", value=seed),
    }
    for every in (True, False):
        drawn = draw_seeds(workflow, NodeRegistry(INFO), every=every)
        assert drawn.values == {}
        words = "seed of node 1 KSampler is the number of node 9 PrimitiveInt, which index of node 2 Picker takes too"
        assert drawn.stuck == ((words,) if every or seed == -1 else ())


def test_a_computed_seed_is_named_unless_it_is_computed_from_one_that_is_drawn() -> None:
    computed = {"1": node("KSampler", seed=["2", 0]), "2": node("Math", a=["3", 0]), "3": node("PrimitiveInt", value=1)}
    assert draw_seeds(computed, NodeRegistry(INFO), every=True).stuck == (
        "seed of node 1 KSampler is computed by node 2 Math",
    )
    assert draw_seeds(computed, NodeRegistry(INFO), every=False).stuck == ()
    seeded = {**computed, "3": node("OwnRandom", seed=1)}
    drawn = draw_seeds(seeded, NodeRegistry(INFO), every=True, draw=lambda least, most: 8)
    assert (drawn.shown(), drawn.stuck) == ({"3.seed": 8}, ())


def test_a_capital_letter_or_a_part_of_a_dynamic_combo_is_a_seed_too() -> None:
    assert most_of({"1": node("Rodin", Seed=1), "2": node("TextGenerate", **{"sampling_mode.seed": MAX_SEED})}) == {
        "1.Seed": MAX_DRAWN,
        "2.sampling_mode.seed": MAX_DRAWN,
    }
