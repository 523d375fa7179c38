"""Landing checks: what is used as meant passes, in every published workflow too; what is not is told."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import InvalidRequest
from settee.comfyui.node_registry import NodeRegistry, choices_of
from settee.comfyui.problems import registry_problems
from settee.comfyui.workflow import Workflow
from settee.doors.agent.contract import example
from settee.doors.agent.graph import validate
from settee.doors.agent.graph.bindings import bound
from settee.doors.agent.graph.loras import chained, is_pattern
from tests.unit.agent.templates import DATA, REAL, TEMPLATE, binding, context_of, loras, node, object_info, parsed

EXAMPLE: dict[str, Any] = example("envelope")

LABELS = json.loads((DATA / "real-workflows" / "labels.json").read_text())
#: What of a job each input of the published workflows is.
NAMED = {
    "steps": "steps",
    "cfg": "cfg_scale",
    "guidance": "cfg_scale",
    "sampler_name": "sampler",
    "scheduler": "scheduler",
    "width": "width",
    "height": "height",
    "ckpt_name": "base_model_name",
    "unet_name": "base_model_path",
}


def landed(template: Workflow, known: dict[str, Any] | None = None, **changes: Any) -> Workflow:
    given = parsed(**changes)
    context = context_of(given)
    graph = chained(bound(template, given, context), context.loras)
    validate.check(graph, given, context, NodeRegistry(known or with_choices(object_info(), TEMPLATE)))
    return graph


def problems_of(template: Workflow, known: dict[str, Any] | None = None, **changes: Any) -> list[dict[str, Any]]:
    with pytest.raises(InvalidRequest) as caught:
        landed(template, known, **changes)
    return list(caught.value.details["problems"])


def with_choices(known: dict[str, Any], graph: Workflow) -> dict[str, Any]:
    """A registry of a worker that has every model that the graph names."""
    changed = dict(known)
    for one in graph.values():
        entry = copy.deepcopy(changed[one["class_type"]])
        for section in ("required", "optional"):
            for name, spec in (entry["input"].get(section) or {}).items():
                choices = choices_of(spec)
                if choices is not None and one["inputs"].get(name) not in choices:
                    choices = [*choices, one["inputs"].get(name)]
                    entry["input"][section][name] = [choices, {}]
        changed[one["class_type"]] = entry
    return changed


#: The published workflows that need no API node; the registry of the tests has none.
RUNNABLE = [path for path in REAL if not registry_problems(json.loads(path.read_text()), NodeRegistry(object_info()))]


def named_bindings(graph: Workflow, labels: dict[str, Any]) -> list[dict[str, Any]]:
    found = [binding("prompt", one["node"], one["input"]) for one in labels["positive"]]
    found += [binding("negative_prompt", one["node"], one["input"]) for one in labels["negative"]]
    found += [binding("seed", one["id"], one["input"]) for one in labels["seeds"] if one["live"]]
    live = validate.Uses(graph, NodeRegistry(object_info())).live
    for node_id in live:
        if is_pattern(graph[node_id]):
            continue
        for name, value in graph[node_id]["inputs"].items():
            if name in NAMED and not isinstance(value, list):
                found.append(binding(NAMED[name], node_id, name))
    return found


def test_most_published_workflows_can_be_looked_at() -> None:
    assert len(RUNNABLE) == 36


@pytest.mark.parametrize("count", [0, 2])
@pytest.mark.parametrize("path", RUNNABLE, ids=lambda path: path.name.removesuffix(".api.json"))
def test_what_is_bound_where_it_belongs_lands_in_published_workflows(path: Path, count: int) -> None:
    graph, labels = json.loads(path.read_text()), LABELS[path.name.removesuffix(".api.json")]
    has_pattern = any(map(is_pattern, graph.values()))
    wanted = named_bindings(graph, labels)
    known = with_choices(object_info(), graph)
    assert landed(graph, known, workflowParameters=wanted, loras=loras(count if has_pattern else 0))
    swapped = {"prompt": "negative_prompt", "negative_prompt": "prompt"}
    wrong = [{**one, "parameter": swapped[one["parameter"]]} for one in wanted if one["parameter"] in swapped]
    if labels["positive"] and labels["negative"]:
        problems = problems_of(graph, known, workflowParameters=wrong, loras=[])
        assert all("prompt only" in problem["problem"] for problem in problems)


def test_values_may_go_through_nodes_that_only_pass_them_on() -> None:
    graph = copy.deepcopy(TEMPLATE)
    graph["20"] = node("PrimitiveInt", value=64)
    graph["21"] = node("PrimitiveStringMultiline", value="")
    graph["22"] = node("StringConcatenate", string_a=["21", 0], string_b=", best", delimiter="")
    graph["5"]["inputs"]["width"] = ["20", 0]
    graph["3"]["inputs"]["text_g"] = ["22", 0]
    assert landed(graph, workflowParameters=[binding("width", 20, "value"), binding("prompt", 21, "value")])
    [problem] = problems_of(graph, workflowParameters=[binding("steps", 20, "value")])
    assert problem["problem"] == "no node uses it there as a sampler's steps"
    [problem] = problems_of(graph, workflowParameters=[binding("negative_prompt", 21, "value")])
    assert problem["problem"] == "this node's text is used as positive prompt only"


@pytest.mark.parametrize(
    ("parameter", "node_id", "name", "says"),
    [
        ("prompt", 4, "text_g", "used as negative prompt only"),
        ("negative_prompt", 3, "text_g", "used as positive prompt only"),
        ("prompt", 8, "filename_prefix", "as a text encoder's text"),
        ("prompt", 1, "ckpt_name", "as a text encoder's text"),
        ("seed", 6, "steps", "takes 1 to 10000"),
        ("seed", 5, "batch_size", "takes 1 to 4096"),
        ("steps", 6, "seed", "as a sampler's steps"),
        ("steps", 5, "width", "as a sampler's steps"),
        ("cfg_scale", 6, "steps", "whole number"),
        ("cfg_scale", 6, "denoise", "takes 0.0 to 1.0"),
        ("cfg_scale", 2, "strength_model", "job's LoRAs"),
        ("width", 3, "crop_w", "as the width"),
        ("width", 6, "steps", "as the width"),
        ("height", 5, "width", "as the height"),
        ("sampler", 6, "scheduler", "as a sampler's name"),
        ("scheduler", 6, "sampler_name", "as a sampler's scheduler"),
        ("base_model_name", 6, "scheduler", "as the name at a node that loads a model"),
        ("primary_lora_name", 1, "ckpt_name", "as the name at a node that loads a LoRA"),
        ("primary_lora_strength_model", 6, "denoise", "as the strength at a node that loads a LoRA"),
        ("steps", 6, "stepz", "has no such input"),
        ("prompt", 9, "text", "no output depends on this CLIPTextEncode"),
    ],
)
def test_what_lands_elsewhere_is_told_by_parameter_node_and_path(
    parameter: str, node_id: int, name: str, says: str
) -> None:
    graph = {**TEMPLATE, "9": node("CLIPTextEncode", clip=["1", 1], text="")}
    first = problems_of(graph, workflowParameters=[binding(parameter, node_id, name)])[0]
    assert says in first["problem"]
    assert (first["parameter"], first["node_id"], first["input"]) == (parameter, str(node_id), f"inputs.{name}")
    assert first["class_type"] == graph[str(node_id)]["class_type"]


def test_a_cfg_that_comfyuis_own_sampler_does_not_take_is_told() -> None:
    [problem] = problems_of(TEMPLATE, parameters__cfgScale=150)
    assert (problem["parameter"], problem["problem"]) == ("cfg_scale", "it takes 0.0 to 100.0")


def test_a_prompt_for_both_sides_and_one_behind_a_controlnet_are_seen_as_such() -> None:
    graph = copy.deepcopy(TEMPLATE)
    graph["10"] = node("ConditioningZeroOut", conditioning=["3", 0])
    graph["6"]["inputs"]["negative"] = ["10", 0]
    assert landed(graph, workflowParameters=[binding("prompt", 3, "text_g")])
    graph = copy.deepcopy(TEMPLATE)
    graph["11"] = node("ConditioningCombine", conditioning_1=["3", 0], conditioning_2=["3", 0])
    graph["12"] = node("ConditioningCombine", conditioning_1=["4", 0], conditioning_2=["4", 0])
    graph["6"]["inputs"] |= {"positive": ["11", 0], "negative": ["12", 0]}
    assert landed(graph, workflowParameters=[binding("prompt", 3, "text_g"), binding("negative_prompt", 4, "text_g")])
    assert problems_of(graph, workflowParameters=[binding("prompt", 4, "text_g")])


def test_custom_nodes_may_call_their_inputs_as_they_like() -> None:
    known = dict(object_info())
    inputs = {"num_steps": ["INT", {"max": 5}], "positive_text": ["STRING", {}], "scale": ["FLOAT", {}]}
    known["DoItAll"] = {"input": {"required": inputs}, "output": ["IMAGE"], "python_module": "custom_nodes.x"}
    graph = {
        "1": node("DoItAll", num_steps=3, positive_text="", scale=1.5),
        "2": node("SaveImage", images=["1", 0], filename_prefix="x"),
    }
    wanted = [binding("steps", 1, "num_steps"), binding("prompt", 1, "positive_text"), binding("cfg_scale", 1, "scale")]
    assert landed(graph, known, loras=[], workflowParameters=wanted)
    assert landed(graph, known, loras=[], workflowParameters=[binding("seed", 1, "made_up_later")])
    [problem] = problems_of(graph, known, loras=[], workflowParameters=[binding("cfg_scale", 1, "num_steps")])
    assert problem["problem"] == "it takes a whole number"


def test_loras_that_no_output_uses_are_told() -> None:
    graph = copy.deepcopy(TEMPLATE)
    graph["6"]["inputs"]["model"] = ["1", 0]
    graph["3"]["inputs"]["clip"] = graph["4"]["inputs"]["clip"] = ["1", 1]
    problems = problems_of(graph, loras=loras(2), workflowParameters=[])
    assert [problem["path"] for problem in problems] == ["loras[0]", "loras[1]"]


def test_an_override_of_what_the_chain_sets_is_told_and_what_agrees_is_not() -> None:
    override = {"node": 2, "path": "inputs.strength_model", "value": 0.5}
    [problem] = problems_of(TEMPLATE, workflowOverrides=[override], workflowParameters=[])
    assert problem["path"] == "workflowOverrides[0]"
    assert "extra.loras" in problem["problem"]
    said = {"sampler": "euler", "scheduler": "normal", "loras": [{"strength": 0.5}]}
    assert landed(TEMPLATE, workflowOverrides=[override], parameters__extra=said)
    assert landed(TEMPLATE, workflowOverrides=[override], loras=[])


@pytest.mark.parametrize(
    ("node_id", "path", "near"),
    [
        (6, "inputs.sedd", "inputs.seed"),
        (2, "inputs.strength_modle", "inputs.strength_model"),
        # One that ComfyUI fills itself: nobody's value gets there.
        (8, "inputs.prompt", None),
    ],
)
def test_an_override_of_what_comfyuis_own_class_does_not_have_is_told(
    node_id: int, path: str, near: str | None
) -> None:
    override = {"node": node_id, "path": path, "value": "5"}
    problem = problems_of(TEMPLATE, workflowOverrides=[override])[0]
    assert problem["path"] == "workflowOverrides[0]"
    assert "has no such input" in problem["problem"]
    assert path not in problem["near"]
    assert near is None or problem["near"][0] == near


def test_an_override_may_name_what_custom_and_growing_nodes_make_up_later() -> None:
    known = with_choices(object_info(), TEMPLATE)
    known["Custom"] = {"input": {}, "output": ["IMAGE"], "output_node": True, "python_module": "custom_nodes.x"}
    known["Grows"] = known["Custom"] | {
        "input": {"required": {"values": ["COMFY_AUTOGROW_V3", {}]}},
        "python_module": "comfy_extras.nodes_logic",
    }
    graph = {**TEMPLATE, "20": node("Custom"), "21": node("Grows")}
    overrides: list[Any] = [{"node": node_id, "path": "inputs.more", "value": 5} for node_id in (20, 21)]
    overrides.append({"node": 8, "path": "_meta", "value": {"title": "End"}})
    assert landed(graph, known, workflowOverrides=overrides)


def test_an_unknown_choice_is_told_with_what_is_near() -> None:
    said = {"sampler": "dpmpp_2m_sde_gpuu", "scheduler": "karas"}
    first, second = problems_of(TEMPLATE, parameters__extra=said)
    assert first["path"] == "workflow.6.inputs.sampler_name"
    assert "dpmpp_2m_sde_gpu" in first["near"]
    assert second["near"] == ["karras"]


def test_an_unknown_model_is_told_and_the_jobs_own_are_not() -> None:
    graph = copy.deepcopy(TEMPLATE)
    graph["30"] = node("VAELoader", vae_name="missing.safetensors")
    graph["7"]["inputs"]["vae"] = ["30", 0]
    [problem] = problems_of(graph)
    assert (problem["type"], problem["value"]) == ("value_not_in_list", "missing.safetensors")
    assert landed(graph, with_choices(object_info(), {"30": graph["30"]}))


def test_names_of_custom_nodes_are_looked_at_when_they_are_models() -> None:
    known = dict(object_info())
    spec = {
        "required": {"name": [["style-a.gguf"], {}], "mode": [["x"], {}], "file": [["p.png"], {"image_upload": True}]}
    }
    known["Custom"] = {"input": spec, "output": ["MODEL"], "python_module": "custom_nodes.y"}
    graph = {"1": node("Custom", name="style-b.gguf", mode="its own check may take it", file="mine.bin")}
    [problem] = validate.unknown_names(graph, NodeRegistry(known), context_of(parsed()))
    assert (problem["input"], problem["near"]) == ("name", ["style-a.gguf"])
    mine = parsed(baseModel__key="models/style-b.gguf")
    assert validate.unknown_names(graph, NodeRegistry(known), context_of(mine)) == []


def test_a_model_that_nobody_has_is_told_with_how_the_jobs_own_gets_there() -> None:
    loader = [one for one in EXAMPLE["workflowParameters"] if one["parameter"] != "base_model_path"]
    problem = problems_of(TEMPLATE, object_info(), workflowParameters=loader)[0]
    assert problem["path"] == "workflow.1.inputs.ckpt_name"
    assert problem["problem"].endswith("that ComfyUI has there: bind base_model_name to it")
    graph = {**TEMPLATE, "9": node("CheckpointLoaderSimple", ckpt_name="refiner.safetensors")}
    graph["10"] = node("PreviewAny", source=["9", 0])
    problem = problems_of(graph, object_info())[0]
    assert problem["path"] == "workflow.9.inputs.ckpt_name"
    assert problem["problem"].endswith("that ComfyUI has there")


def test_a_name_is_no_near_match_of_itself() -> None:
    known = with_choices(object_info(), TEMPLATE)
    known["Sized"] = {"input": {"required": {"n": [[1, 10], {}]}}, "output": ["INT"], "python_module": "nodes"}
    [problem] = validate.unknown_names({"1": node("Sized", n="1")}, NodeRegistry(known), context_of(parsed()))
    assert "1" not in problem["near"]


FULL_PATH = "/models/checkpoints/base.safetensors"


def loading_a_path(name: str) -> tuple[Workflow, dict[str, Any], list[dict[str, Any]]]:
    """The template with its checkpoint by a custom node that takes a full path, the registry, and the binding."""
    known = with_choices(object_info(), TEMPLATE)
    known["LoadByPath"] = {
        "input": {"required": {name: ["STRING", {}]}},
        "output": ["MODEL", "CLIP", "VAE"],
        "python_module": "custom_nodes.x",
    }
    return {**TEMPLATE, "1": node("LoadByPath", **{name: ""})}, known, [binding("base_model_full_path", 1, name)]


@pytest.mark.parametrize("name", ["model_path", "file", "whatever"])
def test_a_custom_loader_gets_the_full_path_of_the_jobs_model(name: str) -> None:
    graph, known, bindings = loading_a_path(name)
    assert landed(graph, known, workflowParameters=bindings)["1"]["inputs"][name] == FULL_PATH


@pytest.mark.parametrize(
    "given", ["/models/checkpoints/others.safetensors", FULL_PATH + "x", "/models/../" + FULL_PATH]
)
def test_any_other_full_path_is_refused(given: str) -> None:
    graph, known, _ = loading_a_path("model_path")
    graph["1"]["inputs"]["model_path"] = given
    [problem] = problems_of(graph, known, workflowParameters=[])
    assert "absolute path" in problem["problem"]


def test_nothing_is_saved_under_the_full_path_of_a_model() -> None:
    [problem] = problems_of(TEMPLATE, workflowParameters=[binding("base_model_full_path", 8, "filename_prefix")])
    assert "absolute path" in problem["problem"]
    assert FULL_PATH not in str(problem)


def test_where_a_name_belongs_the_full_path_is_told_without_showing_it() -> None:
    problems = problems_of(TEMPLATE, workflowParameters=[binding("base_model_full_path", 1, "ckpt_name")])
    assert problems[0]["problem"].startswith("a model's full path is not one of")
    assert problems[0]["problem"].endswith("bind base_model_name to it")
    assert FULL_PATH not in str(problems)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"9": node("NoSuchClass", image=["7", 0])}, "no such node class"),
        ({"8": node("SaveImage")}, "required input 'images' is missing"),
        ({"9": node("LoadImage", image="/etc/passwd")}, "absolute path"),
        ({"8": node("PreviewAny")}, "required input 'source' is missing"),
    ],
)
def test_a_graph_that_cannot_run_is_told_as_such(change: Workflow, says: str) -> None:
    assert says in problems_of({**TEMPLATE, **change})[0]["problem"]


def test_a_graph_without_an_output_is_told_as_such() -> None:
    graph = {node_id: one for node_id, one in TEMPLATE.items() if node_id not in ("7", "8")}
    [problem] = problems_of(graph)
    assert "no output node" in problem["problem"]


def test_an_input_that_another_one_brings_is_known_by_the_end_of_its_name() -> None:
    known = with_choices(object_info(), TEMPLATE)
    spec = {"required": {"input": ["IMAGE"], "resize_type": ["COMFY_DYNAMICCOMBO_V3", {}]}}
    known["Resize"] = {"input": spec, "output": ["IMAGE"], "python_module": "comfy_extras.nodes_post_processing"}
    graph = copy.deepcopy(TEMPLATE)
    graph["20"] = node("Resize", input=["7", 0], resize_type="to size", **{"resize_type.width": 1})
    graph["8"]["inputs"]["images"] = ["20", 0]
    assert landed(graph, known, workflowParameters=[binding("width", 20, "resize_type.width")])
    [problem] = problems_of(graph, known, workflowParameters=[binding("height", 20, "resize_type.width")])
    assert "as the height" in problem["problem"]
