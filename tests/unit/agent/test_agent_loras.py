"""Chains of LoRA loaders: 0, 1, 2 and 5 LoRAs over templates with none, one and two loaders, and over random ones."""

from __future__ import annotations

import copy
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from settee.base.errors import InvalidRequest
from settee.comfyui.workflow import Workflow, link_problems, links, shape_problems
from settee.doors.agent.graph.loras import chained, is_pattern
from settee.doors.agent.graph.parameters import LoraUse
from tests.unit.agent.templates import REAL, TEMPLATE, node

COUNTS = (0, 1, 2, 5)
#: Output of a LoraLoader → the input that it is made from.
MADE_FROM = ("model", "clip")


def uses(count: int) -> list[LoraUse]:
    return [LoraUse(name=f"l{at}", strength_model=at / 10, strength_clip=-at / 10) for at in range(count)]


def way(graph: Workflow, node_id: str, name: str) -> tuple[list[tuple[str, float, float | None]], Any]:
    """The LoRAs on the way to an input, first applied first, and where the way begins."""
    found: list[tuple[str, float, float | None]] = []
    link = graph[node_id]["inputs"][name]
    while is_pattern(graph[link[0]]):
        inputs = graph[link[0]]["inputs"]
        found.append((inputs["lora_name"], inputs["strength_model"], inputs.get("strength_clip")))
        link = inputs[MADE_FROM[link[1]]]
    return found[::-1], link


def expected(count: int, *, model_only: bool = False) -> list[tuple[str, float, float | None]]:
    return [(use.name, use.strength_model, None if model_only else use.strength_clip) for use in uses(count)]


def chain(template: Workflow, count: int) -> Workflow:
    before = copy.deepcopy(template)
    graph = chained(template, uses(count))
    assert template == before
    assert shape_problems(graph, max_nodes=1000) == link_problems(graph) == []
    return graph


def loader(model: list[Any], clip: list[Any] | None = None, **more: Any) -> dict[str, Any]:
    kind = "LoraLoaderModelOnly" if clip is None else "LoraLoader"
    strengths = {"strength_model": 1.0} | ({} if clip is None else {"clip": clip, "strength_clip": 1.0})
    return node(kind, model=model, lora_name="any", **strengths) | more


def without_loader() -> Workflow:
    graph = copy.deepcopy(TEMPLATE)
    del graph["2"]
    graph["6"]["inputs"]["model"] = ["1", 0]
    graph["3"]["inputs"]["clip"] = graph["4"]["inputs"]["clip"] = ["1", 1]
    return graph


def in_a_row() -> Workflow:
    graph = copy.deepcopy(TEMPLATE)
    graph["12"] = loader(["2", 0], ["2", 1])
    graph["6"]["inputs"]["model"] = ["12", 0]
    graph["3"]["inputs"]["clip"] = graph["4"]["inputs"]["clip"] = ["12", 1]
    return graph


def beside() -> Workflow:
    """A base model's and a refiner's."""
    graph = copy.deepcopy(TEMPLATE)
    graph["21"] = node("CheckpointLoaderSimple", ckpt_name="refiner")
    graph["22"] = loader(["21", 0], ["21", 1])
    graph["23"] = node("CLIPTextEncode", clip=["22", 1], text="")
    refiner = {"model": ["22", 0], "positive": ["23", 0], "negative": ["23", 0], "latent_image": ["6", 0]}
    graph["26"] = node("KSampler", **{**graph["6"]["inputs"], **refiner})
    graph["7"]["inputs"]["samples"] = ["26", 0]
    return graph


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("template", [without_loader, lambda: TEMPLATE, in_a_row], ids=["none", "one", "row"])
def test_every_way_leads_through_every_lora_once(template: Any, count: int) -> None:
    graph = chain(template(), count)
    for user, name, slot in (("6", "model", 0), ("3", "clip", 1), ("4", "clip", 1)):
        assert way(graph, user, name) == (expected(count), ["1", slot])
    assert sum(map(is_pattern, graph.values())) == count


@pytest.mark.parametrize("count", COUNTS)
def test_loaders_beside_each_other_apply_all_of_them(count: int) -> None:
    graph = chain(beside(), count)
    assert way(graph, "6", "model") == (expected(count), ["1", 0])
    assert way(graph, "3", "clip") == (expected(count), ["1", 1])
    assert way(graph, "26", "model") == (expected(count), ["21", 0])
    assert way(graph, "23", "clip") == (expected(count), ["21", 1])
    assert sum(map(is_pattern, graph.values())) == 2 * count


@pytest.mark.parametrize("count", COUNTS)
def test_two_branches_of_one_model_apply_all_of_them(count: int) -> None:
    graph = copy.deepcopy(TEMPLATE)
    graph["12"] = loader(["1", 0], ["1", 1])
    graph["4"]["inputs"]["clip"] = ["12", 1]
    graph = chain(graph, count)
    assert way(graph, "4", "clip") == way(graph, "3", "clip") == (expected(count), ["1", 1])


@pytest.mark.parametrize("count", COUNTS)
def test_with_something_between_two_loaders_they_are_still_in_a_row(count: int) -> None:
    graph = in_a_row()
    graph["13"] = node("ModelSamplingSD3", model=["2", 0], shift=3.0)
    graph["12"]["inputs"]["model"] = ["13", 0]
    graph = chain(graph, count)
    first, start = way(graph, "13", "model")
    rest, between = way(graph, "6", "model")
    assert (start, between) == (["1", 0], ["13", 0])
    assert first + rest == expected(count)
    assert way(graph, "3", "clip") == (expected(count), ["1", 1])


@pytest.mark.parametrize("count", COUNTS)
def test_loaders_of_the_model_alone(count: int) -> None:
    graph = without_loader()
    graph["2"] = loader(["1", 0])
    graph["6"]["inputs"]["model"] = ["2", 0]
    graph = chain(graph, count)
    assert way(graph, "6", "model") == (expected(count, model_only=True), ["1", 0])
    assert way(graph, "3", "clip") == ([], ["1", 1])


@pytest.mark.parametrize("count", COUNTS)
def test_a_text_encoder_that_passes_the_loader_by_stays_so(count: int) -> None:
    graph = copy.deepcopy(TEMPLATE)
    graph["4"]["inputs"]["clip"] = ["1", 1]
    graph = chain(graph, count)
    assert way(graph, "4", "clip") == ([], ["1", 1])
    assert way(graph, "3", "clip") == (expected(count), ["1", 1])


def test_a_user_between_two_loaders_stays_there() -> None:
    graph = in_a_row()
    graph["4"]["inputs"]["clip"] = ["2", 1]
    assert way(chain(graph, 2), "4", "clip") == (expected(2)[:1], ["1", 1])
    assert way(chain(graph, 0), "4", "clip") == ([], ["1", 1])


def test_new_ids_are_free_and_the_same_every_time() -> None:
    graph = copy.deepcopy(TEMPLATE)
    graph["57:30"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    graph["x"] = node("EmptyLatentImage", width=64, height=64, batch_size=1)
    first = chain(graph, 3)
    assert sorted(set(first) - set(graph)) == ["58", "59"]
    assert chain(graph, 3) == first
    assert json.dumps(first) == json.dumps(chain(graph, 3))


def test_what_else_a_pattern_has_its_copies_have_too() -> None:
    graph = copy.deepcopy(TEMPLATE)
    graph["2"] |= {"_meta": {"title": "Style"}}
    graph["2"]["inputs"]["block_weights"] = "1,1"
    graph = chain(graph, 2)
    assert graph["9"]["_meta"] == {"title": "Style"}
    assert graph["9"]["inputs"]["block_weights"] == "1,1"


def test_a_loader_that_says_it_is_fixed_is_the_templates_own() -> None:
    graph = in_a_row()
    graph["2"]["_meta"] = {"title": "Lightning (fixed)"}
    for count in COUNTS:
        chained_ = chain(graph, count)
        assert chained_["2"] == graph["2"]
        assert sum(map(is_pattern, chained_.values())) == count


# --- templates without a loader -----------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 2, 5])
def test_loras_go_behind_a_model_and_a_text_encoder_of_two_nodes(count: int) -> None:
    graph = without_loader()
    graph["30"] = node("UNETLoader", unet_name="flux", weight_dtype="default")
    graph["31"] = node("DualCLIPLoader", clip_name1="a", clip_name2="b", type="flux")
    graph["6"]["inputs"]["model"] = ["30", 0]
    graph["3"]["inputs"]["clip"] = graph["4"]["inputs"]["clip"] = ["31", 0]
    graph = chain(graph, count)
    assert way(graph, "6", "model") == (expected(count), ["30", 0])
    assert way(graph, "3", "clip") == (expected(count), ["31", 0])


def test_without_a_text_encoder_they_go_behind_the_model() -> None:
    graph = {
        "1": node("UNETLoader", unet_name="a", weight_dtype="default"),
        "2": node("BasicGuider", model=["1", 0], conditioning=["3", 0]),
        "3": node("SomeConditioning"),
    }
    assert way(chain(graph, 2), "2", "model") == (expected(2, model_only=True), ["1", 0])


@pytest.mark.parametrize("kind", ["two models", "no model", "two text encoders"])
def test_without_one_obvious_place_they_are_refused(kind: str) -> None:
    graph = without_loader()
    if kind == "two models":
        graph = chained(beside(), [])
    elif kind == "no model":
        graph["1"]["class_type"] = "SomeCustomLoader"
    else:
        graph["31"] = node("CLIPLoader", clip_name="b", type="sd3")
        graph["4"]["inputs"]["clip"] = ["31", 0]
    assert chained(graph, []) == graph
    with pytest.raises(InvalidRequest, match="put a LoraLoader where they belong"):
        chained(graph, uses(1))


def test_a_lora_that_a_custom_loader_names_is_not_loaded_twice() -> None:
    graph = without_loader()
    graph["2"] = node("PowerLoraLoader", model=["1", 0], lora_1={"on": True, "lora": "l0"})
    graph["6"]["inputs"]["model"] = ["2", 0]
    assert chain(graph, 1) == graph
    assert way(chain(graph, 2), "2", "model") == ([("l1", 0.1, -0.1)], ["1", 0])


def test_a_loader_that_cannot_pass_on_what_is_used_is_told() -> None:
    graph = copy.deepcopy(TEMPLATE)
    del graph["2"]["inputs"]["clip"]
    with pytest.raises(
        InvalidRequest,
        match=r"workflow\.3\.inputs\.clip .*: it takes output 1 of the LoRA loader '2'",
    ):
        chained(graph, [])


# --- any template -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", COUNTS)
@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name.removesuffix(".api.json"))
def test_published_workflows_stay_whole(path: Path, count: int) -> None:
    template = json.loads(path.read_text())
    patterns = [node_id for node_id, one in template.items() if is_pattern(one)]
    if not patterns and count:
        try:
            graph = chain(template, count)
        except InvalidRequest as error:
            assert "put a LoraLoader" in error.message  # noqa: PT017
            return
    else:
        graph = chain(template, count)
    ends = {(user, name) for user, one in template.items() for name, _, _ in links(one) if user not in patterns}
    for user, name in ends:
        then, start = way(graph, user, name)
        before, was = way(template, user, name)
        assert list(start) == list(was)
        if before:
            assert [one[0] for one in then] == [use.name for use in uses(count)]


@st.composite
def rows_and_branches(draw: st.DrawFn) -> Workflow:
    """A tree of loaders behind one checkpoint, with a user at every one of its ends."""
    graph: Workflow = {"1": node("CheckpointLoaderSimple", ckpt_name="a")}
    for at in range(2, 2 + draw(st.integers(1, 6))):
        parent = draw(st.sampled_from(sorted(graph)))
        clip = [parent, 1] if draw(st.booleans()) else [draw(st.sampled_from(sorted(graph))), 1]
        graph[str(at)] = loader([parent, 0], clip)
    taken = {tuple(link) for one in graph.values() for _, *link in links(one)}
    for at, (parent, slot) in enumerate(itertools.product(sorted(graph), (0, 1))):
        if (parent, slot) not in taken:
            graph[f"u{at}"] = node("User", **{MADE_FROM[slot]: [parent, slot]})
    order = draw(st.permutations(sorted(graph)))
    return {node_id: graph[node_id] for node_id in order}


@settings(max_examples=300)
@given(rows_and_branches(), st.integers(0, 6))
def test_no_way_has_a_lora_twice_or_in_another_order(template: Workflow, count: int) -> None:
    graph = chain(template, count)
    names = [use.name for use in uses(count)]
    for node_id in [one for one in template if one.startswith("u")]:
        for name, _, _ in links(template[node_id]):
            then, start = way(graph, node_id, name)
            assert start == ["1", MADE_FROM.index(name)]
            found = [one[0] for one in then]
            assert found == sorted(set(found), key=names.index)
            assert all((one[1], one[2]) == (int(one[0][1:]) / 10, -int(one[0][1:]) / 10) for one in then)
    if count:
        # Nothing of a LoRA is lost: some way has each of them.
        assert {one["inputs"]["lora_name"] for one in graph.values() if is_pattern(one)} == set(names)
    else:
        assert not any(map(is_pattern, graph.values()))
