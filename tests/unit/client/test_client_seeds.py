"""Seeds: found in all the published workflows as they are labelled, drawn, set and kept."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from settee.client.client_errors import UsageError
from settee.client.inject import applied
from settee.client.prepared import Wishes, prepared, seed_changes
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.seeds import MAX_SEED

REAL = Path(__file__).parents[2] / "data" / "real-workflows"
LABELS = json.loads((REAL / "labels.json").read_text())


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def never(least: int, most: int) -> int:
    raise AssertionError("a seed was drawn")


@pytest.mark.parametrize("name", sorted(LABELS))
def test_every_seed_of_a_published_workflow_is_found(name: str) -> None:
    workflow = json.loads((REAL / f"{name}.api.json").read_text())
    expected = {(seed["id"], seed["input"], seed["value"]) for seed in LABELS[name]["seeds"]}
    changes, stuck = seed_changes(workflow, seed=None, keep=False, draw=lambda least, most: 99)
    assert {(c.node_id, c.input, workflow[c.node_id]["inputs"][c.input]) for c in changes} == expected
    assert {(change.value, change.why) for change in changes} <= {(99, "seed")}
    assert stuck == ()
    after = applied(workflow, changes)
    assert {place for place in expected if after[place[0]]["inputs"][place[1]] != 99} == set()


@pytest.mark.parametrize("name", sorted(name for name in LABELS if LABELS[name]["seeds"]))
def test_a_given_seed_goes_into_every_place(name: str) -> None:
    workflow = json.loads((REAL / f"{name}.api.json").read_text())
    changes, _ = seed_changes(workflow, seed=7, keep=False, draw=never)
    assert [change.value for change in changes] == [7] * len(LABELS[name]["seeds"])


def test_nodes_come_in_natural_order_and_equal_seeds_stay_equal() -> None:
    workflow = {
        "57:10": node("KSampler", seed=1),
        "12": node("RandomNoise", noise_seed=5),
        "57:9": node("KSampler", seed=5),
        "3": node("Both", seed=0, noise_seed=1),
    }
    draws = itertools.count(100)
    changes, _ = seed_changes(workflow, seed=None, keep=False, draw=lambda least, most: next(draws))
    assert [(c.node_id, c.input, c.value) for c in changes] == [
        ("3", "seed", 100),
        ("3", "noise_seed", 101),
        ("12", "noise_seed", 102),
        ("57:9", "seed", 102),
        ("57:10", "seed", 101),
    ]


def test_only_whole_numbers_that_are_written_are_seeds() -> None:
    workflow = {
        "3": node("A", seed=True, noise_seed="12"),
        "4": node("B", seed=1.0, noise_seed=None),
        "5": node("TripoImageToModelNode", model_seed=42, texture_seed=42, seed_behavior=1),
    }
    assert seed_changes(workflow, seed=None, keep=False, draw=never) == ([], ())


def test_seeds_are_kept() -> None:
    assert seed_changes({"1": node("KSampler", seed=1)}, seed=None, keep=True, draw=never) == ([], ())


@pytest.mark.parametrize("seed", [0, MAX_SEED])
def test_the_range_of_comfyuis_samplers_is_taken(seed: int) -> None:
    [change], _ = seed_changes({"1": node("KSampler", seed=1)}, seed=seed, keep=False, draw=never)
    assert change.value == seed


@pytest.mark.parametrize("seed", [-2, MAX_SEED + 1, 10**60])
def test_a_seed_out_of_range_is_refused(seed: int) -> None:
    with pytest.raises(UsageError, match="a whole number from 0 to 18446744073709551615"):
        seed_changes({"1": node("KSampler", seed=1)}, seed=seed, keep=False, draw=never)


def test_to_set_and_to_keep_seeds_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="one of the two"):
        seed_changes({"1": node("KSampler", seed=1)}, seed=3, keep=True, draw=never)


def test_a_seed_that_has_no_place_is_refused() -> None:
    with pytest.raises(UsageError, match="no node of this workflow has a seed"):
        seed_changes({"1": node("LoadImage", image="a.png")}, seed=3, keep=False, draw=never)


def test_a_seed_that_is_computed_is_refused_with_the_node_that_computes_it() -> None:
    workflow = {"1": node("KSampler", seed=["2", 0]), "2": node("SimpleMath", a=5)}
    with pytest.raises(UsageError, match="seed of node 1 KSampler is computed by node 2 SimpleMath"):
        seed_changes(workflow, seed=3, keep=False, draw=never)


# --- the plan ------------------------------------------------------------------------------------------------

INFO = {"KSampler": {"input": {"required": {"seed": ["INT", {"min": 0, "max": MAX_SEED}]}}}}


@pytest.mark.parametrize("wishes", [Wishes(seed=-1), Wishes(keep_seed=True), Wishes(sets=("1.seed=-1",))])
def test_minus_one_is_drawn_before_a_bare_comfyui_sees_it(wishes: Wishes) -> None:
    ready = prepared({"1": node("KSampler", seed=-1)}, wishes, NodeRegistry(INFO), draw=lambda least, most: 42)
    assert (ready.workflow["1"]["inputs"], ready.seeds) == ({"seed": 42}, {"1.seed": 42})


def test_minus_one_that_is_kept_is_the_workers_to_draw_where_no_registry_is_known() -> None:
    ready = prepared({"1": node("KSampler", seed=-1)}, Wishes(keep_seed=True), draw=never)
    assert (ready.workflow["1"]["inputs"], ready.seeds) == ({"seed": -1}, {})


def test_a_prefix_has_the_seed_that_was_drawn() -> None:
    workflow = {
        "1": node("KSampler", seed=1),
        "9": node("SaveImage", filename_prefix="%KSampler.seed%"),
    }
    ready = prepared(workflow, Wishes(), draw=lambda least, most: 42)
    assert ready.workflow["9"]["inputs"]["filename_prefix"] == "42"
    assert [change.why for change in ready.changes] == ["seed", "pattern"]
