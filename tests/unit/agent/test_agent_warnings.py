"""What of a job its graph has no place for, or takes otherwise than it was given: told, and no fault."""

from __future__ import annotations

import copy
from typing import Any

from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.workflow import Workflow
from settee.doors.agent.contract import example
from settee.doors.agent.graph import validate
from settee.doors.agent.graph.bindings import bound
from settee.doors.agent.graph.loras import chained
from tests.unit.agent.templates import TEMPLATE, binding, context_of, node, object_info, parsed

EXAMPLE: dict[str, Any] = example("envelope")


def warned(graph: Workflow = TEMPLATE, **changes: Any) -> tuple[str, ...]:
    given = parsed(**changes)
    context = context_of(given)
    changed = chained(bound(graph, given, context), context.loras)
    return validate.warnings(changed, given, context, NodeRegistry(object_info()))


def unused(graph: Workflow = TEMPLATE, **changes: Any) -> list[str]:
    return [warning.split(":")[0] for warning in warned(graph, **changes)]


def test_what_the_workflow_has_no_place_for_is_named() -> None:
    assert unused() == []
    names = ["negative_prompt", "steps", "cfg_scale", "sampler", "scheduler", "width", "height", "seed", "baseModel"]
    assert unused(workflowParameters=[binding("prompt", 3, "text_g")]) == names
    written = [
        {"node": 4, "path": "inputs.text_l", "value": EXAMPLE["parameters"]["negativePrompt"]},
        {"node": 1, "path": "inputs.ckpt_name", "value": "sdxl_base_1.0.safetensors"},
    ]
    left = unused(workflowParameters=[binding("prompt", 3, "text_g")], workflowOverrides=written)
    assert left == names[1:-1]


def test_what_has_no_place_is_told_with_how_it_gets_one() -> None:
    bindings = [binding("prompt", 3, "text_g"), binding("negative_prompt", 4, "text_l")]
    found = warned(workflowParameters=bindings)
    seed, base = (next(text for text in found if text.startswith(name)) for name in ("seed", "baseModel"))
    said = "with workflowParameters), and used its own value"
    assert seed == f"seed: the workflow has no place for it (bind it {said}"
    assert base == f"baseModel: the workflow has no place for it (bind base_model_name {said}"


def test_a_value_that_stands_elsewhere_by_chance_is_no_place_for_it() -> None:
    graph = copy.deepcopy(TEMPLATE)
    graph["6"]["inputs"]["cfg"] = 7
    rest = [one for one in EXAMPLE["workflowParameters"] if one["parameter"] not in ("seed", "cfg_scale")]
    given_ = {"parameters__cfgScale": 7, "workflowParameters": rest}
    assert unused(graph, parameters__seed=7, **given_) == ["seed"]
    graph["6"]["inputs"]["seed"] = 7
    assert unused(graph, parameters__seed=7, **given_) == []


def test_a_prompt_that_is_the_other_one_too_is_told() -> None:
    graph = copy.deepcopy(TEMPLATE)
    graph["20"] = node("PrimitiveStringMultiline", value="")
    graph["3"]["inputs"]["text_g"] = graph["4"]["inputs"]["text_g"] = ["20", 0]
    rest = [one for one in EXAMPLE["workflowParameters"] if "prompt" not in one["parameter"]]
    both = [*rest, binding("prompt", 20, "value"), binding("negative_prompt", 4, "text_l")]
    assert warned(graph, workflowParameters=both) == ("prompt: it is used as negative prompt too",)
    graph = copy.deepcopy(TEMPLATE)
    graph["6"]["inputs"]["negative"] = ["3", 0]
    both = [*rest, binding("prompt", 3, "text_g"), binding("negative_prompt", 3, "text_l")]
    told = ("prompt: it is used as negative prompt too", "negative_prompt: it is used as positive prompt too")
    assert warned(graph, workflowParameters=both) == told


def test_a_prompt_that_is_set_to_zero_on_the_other_side_is_not_told() -> None:
    graph = copy.deepcopy(TEMPLATE)
    graph["20"] = node("ConditioningZeroOut", conditioning=["3", 0])
    graph["6"]["inputs"]["negative"] = ["20", 0]
    assert warned(graph) == ()


def test_a_strength_that_is_limited_is_told() -> None:
    said = {"sampler": "euler", "scheduler": "normal", "loras": [{"strength_model": 5}]}
    assert warned(parameters__extra=said) == ("loras[0]: strength_model 5 is limited to 2",)
