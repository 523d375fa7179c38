"""Overrides and bindings: paths, kinds, links, and that texts of every script arrive as they are."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from settee.base.errors import InvalidRequest
from settee.comfyui.workflow import Workflow
from settee.doors.agent.graph.bindings import bound, find_path
from tests.unit.agent.templates import TEMPLATE, context_of, loras, node, parsed

SCRIPTS = [
    "雪の中の赤い狐、夕焼け",
    "한국어 프롬프트",
    "עִבְרִית עם ניקוד",
    "نصّ عربي مع تشكيل",
    "हिन्दी में चित्र",
    "ภาพวาดสีน้ำ",
    "Ελληνικά, кириллица, ქართული, አማርኛ",
    "emoji 👩🏽‍🚀🏳️‍🌈 and Z͑ͫ̓a̴l̵g̸o",
    "two\nlines\r\nand\ttabs",
    "quotes \" ' and \\ backslashes \\n {braces} $HOME %s",
    "",
    "  ",
    "\u2028\u2029\u00a0\u200b\ufeff",
    "embedding:name, (weights:1.2) [a|b] <lora:x:1>",
    "NUL \x00 and \x7f",
    "𝒜" * 1000,
]


def template(**inputs: Any) -> Workflow:
    graph = copy.deepcopy(TEMPLATE)
    graph["9"] = node("Custom", **inputs)
    return graph


def extra(**more: Any) -> dict[str, Any]:
    return {"sampler": "euler", "scheduler": "normal", **more}


def bind(graph: Workflow, path: str, value: Any) -> Any:
    """What is at a path of node 9 after an extra parameter of this value was bound to it."""
    wanted = [{"parameter": "mine", "node": 9, "path": path}]
    given_ = parsed(workflowParameters=wanted, parameters__extra=extra(mine=value))
    return bound(graph, given_, context_of(given_))["9"]["inputs"]


def override(graph: Workflow, *wanted: tuple[str, str, Any], bindings: Any = ()) -> Workflow:
    overrides = [{"node": node_id, "path": path, "value": value} for node_id, path, value in wanted]
    given_ = parsed(workflowOverrides=overrides, workflowParameters=list(bindings))
    return bound(graph, given_, context_of(given_))


@pytest.mark.parametrize("text", SCRIPTS, ids=range(len(SCRIPTS)))
def test_prompts_arrive_as_they_were_written(text: str) -> None:
    given_ = parsed(parameters__prompt=text, parameters__negativePrompt=text)
    graph = bound(TEMPLATE, given_, context_of(given_))
    assert graph["3"]["inputs"]["text_g"] == text
    assert graph["4"]["inputs"]["text_l"] == text


@given(st.text(max_size=200))
def test_any_text_arrives(text: str) -> None:
    given_ = parsed(parameters__prompt=text)
    assert bound(TEMPLATE, given_, context_of(given_))["3"]["inputs"]["text_g"] == text


@pytest.mark.parametrize(
    ("was", "now"),
    [(1, 2), (1, 2.5), (1.5, 3), ("a", "b"), (True, False), (None, 5), ([1], [2, 3, 4]), ({"a": 1}, {"b": 2})],
)
def test_a_value_takes_the_place_of_its_kind(was: Any, now: Any) -> None:
    assert bind(template(x=was), "inputs.x", now) == {"x": now}


@pytest.mark.parametrize(
    ("was", "now", "says"),
    [
        (1, "2", "it takes a number, and the value is a string"),
        ("1", 2, "it takes a string, and the value is a number"),
        (1, True, "it takes a number, and the value is true or false"),
        (True, 1, "it takes true or false, and the value is a number"),
        ("a", ["a"], "it takes a string, and the value is a list"),
        ({"a": 1}, "a", "it takes an object, and the value is a string"),
        (["1", 0], 5, "it is linked to node '1'"),
        (5, ["1", 0], "looks like a link"),
        (5, None, "no value for it"),
        ({"a": 1}, {"__value__": ["1", 0]}, "wrapped as a value"),
    ],
)
def test_a_value_of_another_kind_is_refused(was: Any, now: Any, says: str) -> None:
    with pytest.raises(InvalidRequest, match=says):
        bind(template(x=was), "inputs.x", now)


def test_a_missing_input_is_made_in_inputs_only() -> None:
    assert bind(template(), "inputs.new", 5) == {"new": 5}
    for path in ("inputs", "new", "_meta.title", "class_type", "inputs.", "inputs..x", "inputs.a.b", ".x"):
        with pytest.raises(InvalidRequest):
            bind(template(), path, "text")


def test_paths_go_through_objects_and_lists() -> None:
    lora = {"on": True, "lora": "a", "list": [{"v": 1}, 2]}
    assert bind(template(lora_1=lora), "inputs.lora_1.lora", "b")["lora_1"]["lora"] == "b"
    assert bind(template(lora_1=lora), "inputs.lora_1.list.0.v", 3)["lora_1"]["list"] == [{"v": 3}, 2]
    assert bind(template(lora_1=lora), "inputs.lora_1.list.1", 3)["lora_1"]["list"] == [{"v": 1}, 3]
    with pytest.raises(InvalidRequest, match=r"did you mean 'inputs\.lora_1'"):
        bind(template(seed=1, lora_1=lora), "inputs.lora_2.v", 3)
    for path in ("list.2", "list.-1", "list.x", "list.0.w.z", "lora.x", "list.٠"):
        with pytest.raises(InvalidRequest, match="leads nowhere"):
            bind(template(lora_1=lora), f"inputs.lora_1.{path}", 3)


def test_inputs_may_have_dots_in_their_names() -> None:
    graph = template(**{"size": "big", "size.width": 5, "a": {"b.c": {"d": 1}}})
    assert bind(graph, "inputs.size.width", 6)["size.width"] == 6
    assert bind(graph, "inputs.size", "small")["size"] == "small"
    assert bind(graph, "inputs.a.b.c.d", 2)["a"] == {"b.c": {"d": 2}}


def test_no_binding_makes_or_moves_a_link() -> None:
    with pytest.raises(InvalidRequest, match="it is linked to node '1'"):
        bind(template(x=["1", 0]), "inputs.x.1", 2)
    with pytest.raises(InvalidRequest, match="would make a list there a link"):
        bind(template(x=["1", None]), "inputs.x.1", 2)


def test_an_override_may_set_and_cut_links_and_comes_first() -> None:
    graph = override(
        TEMPLATE,
        ("3", "inputs.clip", ["1", 1]),
        ("6", "inputs.denoise", 0.5),
        ("6", "inputs.steps", 3),
        ("4", "inputs.text_l", "before"),
        ("8", "_meta", {"title": "End"}),
        bindings=[{"parameter": "steps", "node": "6", "path": "inputs.steps"}],
    )
    assert graph["3"]["inputs"]["clip"] == ["1", 1]
    assert graph["6"]["inputs"]["denoise"] == 0.5
    assert graph["6"]["inputs"]["steps"] == 80
    assert graph["4"]["inputs"]["text_l"] == "before"
    assert graph["8"]["_meta"] == {"title": "End"}
    assert override(template(x=["1", 0]), ("9", "inputs.x", "text"))["9"]["inputs"] == {"x": "text"}


@pytest.mark.parametrize(
    ("wanted", "says"),
    [
        (("99", "inputs.x", 1), "no node '99'"),
        (("6", "seed", 1), "did you mean 'inputs.seed'"),
        (("6", "is_changed", [1]), "is not an input of a node"),
        (("6", "inputs.seed", "a"), "takes a number"),
        (("6", "inputs.model", [2, 0]), "linked to 2, a number"),
        (("6", "inputs", 5), "cannot become that"),
        (("6", "inputs", None), "cannot become that"),
        (("6", "inputs", ["1", 0]), "cannot become that"),
        (("6", "class_type", None), "cannot become that"),
        (("6", "class_type", ""), "no class_type"),
        (("6", "inputs.a.b", 1), "leads nowhere"),
    ],
)
def test_an_override_that_spoils_the_graph_is_told(wanted: tuple[str, str, Any], says: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        override(TEMPLATE, wanted)
    [problem] = caught.value.details["problems"]
    assert says in problem["problem"]
    assert "workflowOverrides" in problem["path"]


def test_problems_of_overrides_and_bindings_come_together() -> None:
    with pytest.raises(InvalidRequest) as caught:
        override(
            TEMPLATE, ("99", "inputs.x", 1), bindings=[{"parameter": "stepz", "node": "6", "path": "inputs.steps"}]
        )
    first, second = caught.value.details["problems"]
    assert (first["path"], second["path"]) == ("workflowOverrides[0]", "workflowParameters[0]")
    assert second["near"] == ["steps"]


def test_two_parameters_for_one_place_are_refused_and_one_twice_is_not() -> None:
    place = {"node": "6", "path": "inputs.steps"}
    assert override(TEMPLATE, bindings=[{"parameter": "steps", **place}] * 2)["6"]["inputs"]["steps"] == 80
    with pytest.raises(InvalidRequest, match="steps is bound to the same place"):
        override(TEMPLATE, bindings=[{"parameter": "steps", **place}, {"parameter": "seed", **place}])


def test_nothing_is_shared_with_template_or_envelope() -> None:
    value = {"a": [1]}
    given_ = parsed(workflowOverrides=[{"node": 9, "path": "inputs.x", "value": value}], workflowParameters=[])
    graph = template(x={}, y=[1])
    before = copy.deepcopy(graph)
    changed = bound(graph, given_, context_of(given_))
    changed["9"]["inputs"]["x"]["a"].append(2)
    changed["9"]["inputs"]["y"].append(2)
    assert graph == before
    assert given_.workflow_overrides[0].value == {"a": [1]}


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        ({}, "no nodes"),
        ({"nodes": [], "links": []}, "Export"),
        ({"1": {"class_type": "A", "inputs": {"x": float("nan")}}}, "finite"),
        ({"1": {"class_type": "A", "inputs": {"x": "\ud800"}}}, "Unicode"),
    ],
)
def test_a_template_that_is_no_workflow_is_told(graph: Any, says: str) -> None:
    given_ = parsed()
    with pytest.raises(InvalidRequest, match=says):
        bound(graph, given_, context_of(given_))


def test_without_loras_what_is_bound_to_their_loader_is_left_out_and_elsewhere_told() -> None:
    given_ = parsed(loras=[])
    graph = bound(TEMPLATE, given_, context_of(given_))
    assert graph["2"] == TEMPLATE["2"]
    with pytest.raises(InvalidRequest, match="no value for it"):
        bound(template(name=""), *_lora_bound_to_9())


def _lora_bound_to_9() -> tuple[Any, Any]:
    wanted = [{"parameter": "primary_lora_name", "node": 9, "path": "inputs.name"}]
    given_ = parsed(loras=[], workflowParameters=wanted)
    return given_, context_of(given_)


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("class_type", ["LoraLoader", "LoraLoaderModelOnly"])
@pytest.mark.parametrize(
    ("parameter", "name", "says"),
    [
        ("primary_lora_name", "lora_name", None),
        ("primary_lora_strength_model", "strength_model", None),
        ("primary_lora_strength_clip", "strength_clip", None),
        ("primary_lora_name", "foo", "goes to 'inputs.lora_name' only"),
        ("primary_lora_name", "strength_model", "goes to 'inputs.lora_name' only"),
        ("primary_lora_name", "lora_name.0", "goes to 'inputs.lora_name' only"),
        ("primary_lora_strength_model", "strength_clip", "goes to 'inputs.strength_model' only"),
        ("primary_lora_strength_clip", "strength_model", "goes to 'inputs.strength_clip' only"),
    ],
)
def test_at_a_pattern_what_is_the_first_loras_goes_to_its_own_input_only(
    parameter: str, name: str, says: str | None, class_type: str, count: int
) -> None:
    graph = copy.deepcopy(TEMPLATE)
    graph["2"]["class_type"] = class_type
    if class_type == "LoraLoaderModelOnly":
        del graph["2"]["inputs"]["strength_clip"]
        says = "has no strength_clip" if parameter == "primary_lora_strength_clip" else says
    wanted = [{"parameter": parameter, "node": 2, "path": f"inputs.{name}"}]
    given_ = parsed(loras=loras(count), workflowParameters=wanted)
    if says is None:
        assert bound(graph, given_, context_of(given_))
        return
    with pytest.raises(InvalidRequest) as caught:
        bound(graph, given_, context_of(given_))
    [problem] = caught.value.details["problems"]
    assert says in problem["problem"]
    assert (problem["path"], problem["node_id"], problem["class_type"]) == ("workflowParameters[0]", "2", class_type)


JSON = st.recursive(
    st.none() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", "a.b", "0"]), inner),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from(["a", "b", "a.b", "0"]), JSON), st.lists(st.sampled_from("ab01")))
def test_a_place_that_is_found_can_be_read_and_written(root: dict[str, Any], parts: list[str]) -> None:
    place = find_path(root, ".".join(parts))
    if place is not None:
        place.holder[place.key] = "new"
        again = find_path(root, ".".join(parts))
        assert again is not None
        assert again.exists
        assert again.value == "new"
