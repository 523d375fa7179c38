"""--prompt and --negative land where the labels of the published workflows and the table of shapes say, or nowhere."""

from __future__ import annotations

import copy
import json
import time
from pathlib import Path
from typing import Any

import pytest

from settee.client.client_errors import Ambiguous, UsageError
from settee.client.inject import applied
from settee.client.inject.prompt_places import prompt_changes
from settee.client.targets.comfy_api import well_described
from settee.comfyui.workflow import is_link, link_problems, shape_problems
from tests.unit.client.prompt_shapes import SHAPES
from tests.unit.client.prompt_shapes.building import encoder, node, sd15

DATA = Path(__file__).parents[2] / "data"
REAL = DATA / "real-workflows"
LABELS = json.loads((REAL / "labels.json").read_text())
SIDES = ("positive", "negative")
Workflow = dict[str, Any]


@pytest.fixture(scope="module")
def object_info() -> dict[str, Any]:
    return dict(json.loads((DATA / "object_info.json").read_text()))


def real(name: str) -> Workflow:
    return dict(json.loads((REAL / f"{name}.api.json").read_text()))


def labelled(name: str, side: str) -> list[str]:
    return sorted(f"{place['node']}.{place['input']}" for place in LABELS[name][side])


def asked(workflow: Workflow, side: str, registry: dict[str, Any] | None = None) -> list[str]:
    """Where this side's text is put, as ``node.input``."""
    changes = prompt_changes(
        workflow,
        prompt="X" if side == "positive" else None,
        negative="X" if side == "negative" else None,
        registry=well_described(registry or {}),
    )
    assert {change.value for change in changes} == {"X"}
    assert {change.why for change in changes} == {"--prompt" if side == "positive" else "--negative"}
    return [f"{change.node_id}.{change.input}" for change in changes]


def landed(workflow: Workflow, side: str, registry: dict[str, Any] | None = None) -> list[str] | None:
    """The same, sorted; [] where there is no place, None where it is ambiguous."""
    try:
        return sorted(asked(workflow, side, registry))
    except Ambiguous:
        return None
    except UsageError:
        return []


def refusal(workflow: Workflow, side: str) -> str:
    """What is said where it is refused; nothing where it is not."""
    try:
        asked(workflow, side)
    except UsageError as error:
        return str(error)
    return ""


# --- published workflows --------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_registry", [False, True], ids=["names only", "registry"])
@pytest.mark.parametrize("name", sorted(LABELS))
def test_a_published_workflow_gets_its_texts_where_they_are_labelled(
    name: str, with_registry: bool, object_info: dict[str, Any]
) -> None:
    registry = object_info if with_registry else None
    workflow = real(name)
    before = copy.deepcopy(workflow)
    for side in SIDES:
        if labelled(name, side):
            assert sorted(asked(workflow, side, registry)) == labelled(name, side)
        else:
            with pytest.raises(UsageError, match=r"no input was found for a (negative )?prompt in this workflow"):
                asked(workflow, side, registry)
    assert workflow == before


def test_there_are_published_workflows() -> None:
    assert len(LABELS) == 56


@pytest.mark.parametrize("name", sorted(LABELS))
def test_a_reroute_in_every_link_changes_nothing(name: str) -> None:
    workflow: Workflow = {}
    for node_id, one in real(name).items():
        workflow[node_id] = one
        for slot, (key, value) in enumerate(one["inputs"].items()):
            if is_link(value):
                workflow[f"9{slot}:{node_id}"] = {"class_type": "Reroute", "inputs": {"": value}}
                one["inputs"][key] = [f"9{slot}:{node_id}", 0]
    for side in SIDES:
        assert landed(workflow, side) == labelled(name, side)


@pytest.mark.parametrize("name", sorted(LABELS))
def test_texts_moved_into_primitives_are_set_there(name: str) -> None:
    workflow = real(name)
    moved = {}
    for number, place in enumerate(LABELS[name]["positive"] + LABELS[name]["negative"]):
        inputs = workflow[place["node"]]["inputs"]
        if isinstance(inputs[place["input"]], str) and "value" not in inputs:
            moved[f"{place['node']}.{place['input']}"] = f"900:{number}.value"
            workflow[f"900:{number}"] = node("PrimitiveStringMultiline", value=inputs[place["input"]])
            inputs[place["input"]] = [f"900:{number}", 0]
    for side in SIDES:
        assert landed(workflow, side) == sorted(moved.get(place, place) for place in labelled(name, side))


@pytest.mark.parametrize("name", sorted(LABELS))
def test_samplers_with_their_sides_exchanged_exchange_the_places(name: str) -> None:
    workflow = real(name)
    places = {side: labelled(name, side) for side in SIDES}
    samplers = [one for one in workflow.values() if {"positive", "negative"} <= set(one["inputs"]) and samples(one)]
    for one in samplers:
        inputs = one["inputs"]
        inputs["positive"], inputs["negative"] = inputs["negative"], inputs["positive"]
    if samplers:
        places = {"positive": places["negative"], "negative": places["positive"]}
    assert {side: landed(workflow, side) for side in SIDES} == places


def samples(one: dict[str, Any]) -> bool:
    return one["class_type"].startswith("KSampler") or one["class_type"] in ("SamplerCustom", "CFGGuider")


@pytest.mark.parametrize("name", sorted(LABELS))
def test_with_classes_that_nobody_knows_a_text_lands_where_it_belongs_or_nowhere(name: str) -> None:
    workflow = {
        node_id: one | {"class_type": f"Fancy{one['class_type']}"} if one["class_type"] != "DualCFGGuider" else one
        for node_id, one in real(name).items()
    }
    for side in SIDES:
        places = landed(workflow, side)
        assert places is None or places == labelled(name, side)


# --- shapes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_registry", [False, True], ids=["names only", "registry"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_gets_its_texts_where_they_belong(name: str, with_registry: bool, object_info: dict[str, Any]) -> None:
    shape, registry = SHAPES[name], object_info if with_registry else None
    assert shape_problems(shape.graph, max_nodes=100) == link_problems(shape.graph) == []
    for side in SIDES:
        expected = getattr(shape, side)
        if isinstance(expected, list):
            assert asked(shape.graph, side, registry) == expected
        else:
            with pytest.raises(expected[0], match=expected[1]) as caught:
                asked(shape.graph, side, registry)
            assert type(caught.value) is expected[0]
            assert str(caught.value).startswith("--prompt: " if side == "positive" else "--negative: ")


@pytest.mark.parametrize("name", SHAPES)
def test_a_prompt_never_changes_what_the_negative_is(name: str) -> None:
    """The two sides' places have nothing in common, and after one is set the other is found where it was."""
    graph = SHAPES[name].graph
    places = {side: landed(graph, side) for side in SIDES}
    assert not set(places["positive"] or []) & set(places["negative"] or [])
    if places["positive"]:
        after = applied(graph, prompt_changes(graph, prompt="something else", negative=None))
        assert landed(after, "negative") == places["negative"]


# --- what is asked for and what is said -----------------------------------------------------------------------


def test_both_are_set_at_once_the_prompt_first() -> None:
    changes = prompt_changes(sd15(), prompt="a hare", negative="")
    assert [(c.node_id, c.input, c.value, c.why) for c in changes] == [
        ("6", "text", "a hare", "--prompt"),
        ("7", "text", "", "--negative"),
    ]


def test_nothing_asked_is_nothing_found() -> None:
    assert prompt_changes({}, prompt=None, negative=None) == []


def test_an_ambiguity_names_the_candidates_as_set_takes_them() -> None:
    graph = SHAPES["two samplers with prompts of their own"].graph
    graph["6"] = graph["6"] | {"_meta": {"title": "Fox"}}
    with pytest.raises(Ambiguous) as caught:
        asked(graph, "positive")
    assert str(caught.value).splitlines()[1:] == [
        '  6 CLIPTextEncode "Fox": --set 6.inputs.text=…',
        "  32 CLIPTextEncode: --set 32.inputs.text=…",
    ]


@pytest.mark.parametrize("name", SHAPES)
def test_no_message_holds_a_text_of_the_workflow(name: str) -> None:
    graph = copy.deepcopy(SHAPES[name].graph)
    for one in graph.values():
        for key, value in one["inputs"].items():
            if isinstance(value, str) and value:
                one["inputs"][key] = f"secret {value}"
    for side in SIDES:
        assert "secret" not in refusal(graph, side)


def test_an_emptied_negative_is_said_to_be_empty_and_by_what() -> None:
    with pytest.raises(UsageError, match=r"negative conditioning is emptied by\n  12 ConditioningZeroOut$"):
        asked(SHAPES["a negative that is emptied"].graph, "negative")


def test_without_a_sampler_the_texts_that_there_are_get_named() -> None:
    graph = sd15(n3=node("LoadLatent", latent="a.latent"))
    with pytest.raises(
        UsageError, match=r"lead to no sampler(.|\n)*--set 6\.inputs\.text=(.|\n)*--set 7\.inputs\.text="
    ):
        asked(graph, "positive")


def test_a_text_input_that_holds_a_number_is_no_place() -> None:
    with pytest.raises(UsageError, match="comes without a string from\n  6 CLIPTextEncode"):
        asked(sd15(n6=encoder(5)), "positive")


@pytest.mark.parametrize(
    "registry",
    [
        {"KSampler": None},
        {"KSampler": {"input": []}},
        {"KSampler": {"input": {"required": [1]}}},
        {"CLIPTextEncode": {"input": 3}},
    ],
)
def test_a_registry_that_makes_no_sense_is_no_help_and_no_harm(registry: dict[str, Any]) -> None:
    """Where it says that nothing is an output, everything may be."""
    assert asked(sd15(), "positive", registry) == ["6.text"]


def test_a_registrys_names_of_outputs_settle_what_names_of_inputs_cannot() -> None:
    graph = SHAPES["a controlnet nobody knows, the wrong way round"].graph
    registry = {
        "FancyControl": {
            "input": {"required": {"positive": ["CONDITIONING"], "negative": ["CONDITIONING"], "image": ["IMAGE"]}},
            "output": ["CONDITIONING", "CONDITIONING"],
            "output_name": ["negative", "positive"],
        }
    }
    assert (landed(graph, "positive", registry), landed(graph, "negative", registry)) == (["6.text"], ["7.text"])


def test_a_registrys_types_tell_a_text_from_a_choice() -> None:
    graph = sd15(n6=node("FancyEncode", clip="@1/1", words="a fox", dialect="plain"))
    assert landed(graph, "positive") is None
    inputs = {"clip": ["CLIP"], "words": ["STRING", {"multiline": True}], "dialect": [["plain", "odd"]]}
    registry = {"FancyEncode": {"input": {"required": inputs}, "output": ["CONDITIONING"], "output_name": ["C"]}}
    assert landed(graph, "positive", registry) == ["6.words"]


# --- graphs that nobody means well with -----------------------------------------------------------------------


def test_loops_end() -> None:
    graph = sd15("@12", n12=node("FluxGuidance", conditioning="@13"), n13=node("FluxGuidance", conditioning="@12"))
    assert landed(graph, "positive") == []
    graph = sd15(n6=encoder("@12"), n12=node("StringTrim", string="@13"), n13=node("StringTrim", string="@12"))
    assert landed(graph, "positive") == []
    graph = sd15("@12", n12=node("Reroute", **{"": "@12"}))
    assert landed(graph, "positive") == []


def test_links_to_nowhere_lead_nowhere() -> None:
    assert landed(sd15("@99"), "positive") == []
    assert landed(sd15("@6/7"), "positive") == ["6.text"]


def test_a_graph_of_diamonds_and_a_long_one_take_no_time() -> None:
    begun = time.perf_counter()
    graph = sd15("@2999")
    graph["999"] = node("ConditioningCombine", conditioning_1="@6", conditioning_2="@6")
    for number in range(1000, 3000):
        before = f"@{number - 1}"
        graph[str(number)] = node("ConditioningCombine", conditioning_1=before, conditioning_2=before)
    assert landed(graph, "positive") == ["6.text"]
    assert time.perf_counter() - begun < 60
