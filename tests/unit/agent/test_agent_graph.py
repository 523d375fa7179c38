"""From envelope to graph: the documented envelope with the template that it is for."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from settee.base.errors import InvalidRequest
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.workflow import Workflow, link_problems, shape_problems
from settee.doors.agent.graph import validate
from settee.doors.agent.graph.bindings import bound
from settee.doors.agent.graph.loras import chained
from tests.unit.agent.templates import TEMPLATE, context_of, loras, object_info, parsed


def made(template: Workflow = TEMPLATE, **changes: Any) -> Workflow:
    given = parsed(**changes)
    context = context_of(given)
    graph = chained(bound(template, given, context), context.loras)
    validate.check(graph, given, context, NodeRegistry(object_info()))
    assert shape_problems(graph, max_nodes=100) == link_problems(graph) == []
    return graph


def test_the_documented_envelope_reaches_every_node() -> None:
    before = copy.deepcopy(TEMPLATE)
    graph = made()
    assert before == TEMPLATE
    assert graph["1"]["inputs"]["ckpt_name"] == "sdxl_base_1.0.safetensors"
    assert graph["2"]["inputs"] == {
        "model": ["1", 0],
        "clip": ["1", 1],
        "lora_name": "cyber_fantasy.safetensors",
        "strength_model": 1.0,
        "strength_clip": 1.0,
    }
    assert graph["3"]["inputs"]["text_g"] == "portrait of a neon samurai"
    assert graph["4"]["inputs"]["text_l"] == "lowres, blurry"
    for encoder in "34":
        size = {name: graph[encoder]["inputs"][name] for name in ("width", "height", "target_width", "target_height")}
        assert size == {"width": 832, "height": 1216, "target_width": 832, "target_height": 1216}
    assert graph["5"]["inputs"] == {"width": 832, "height": 1216, "batch_size": 1}
    assert {name: graph["6"]["inputs"][name] for name in ("seed", "steps", "cfg", "sampler_name", "scheduler")} == {
        "seed": 987654321,
        "steps": 80,
        "cfg": 7.5,
        "sampler_name": "dpmpp_2m_sde_gpu",
        "scheduler": "karras",
    }


def test_without_loras_the_documented_template_goes_on_without_their_loader() -> None:
    graph = made(loras=[])
    assert "2" not in graph
    assert graph["6"]["inputs"]["model"] == ["1", 0]
    assert graph["3"]["inputs"]["clip"] == ["1", 1]


def test_with_three_loras_the_template_has_three_loaders_in_a_row() -> None:
    graph = made(loras=loras(3))
    assert [graph[id_]["inputs"]["lora_name"] for id_ in ("2", "9", "10")] == [f"{at}.safetensors" for at in range(3)]
    assert graph["9"]["inputs"]["model"] == ["2", 0]
    assert graph["10"]["inputs"]["clip"] == ["9", 1]
    assert graph["6"]["inputs"]["model"] == ["10", 0]
    assert graph["4"]["inputs"]["clip"] == ["10", 1]


def test_everything_wrong_with_the_bindings_is_told_at_once() -> None:
    wrong = [
        {"parameter": "promt", "node": 3, "path": "inputs.text_g"},
        {"parameter": "prompt", "node": 33, "path": "inputs.text_g"},
        {"parameter": "prompt", "node": 3, "path": "text_g"},
        {"parameter": "prompt", "node": 3, "path": "inputs.deep.text_g"},
        {"parameter": "prompt", "node": 6, "path": "inputs.seed"},
        {"parameter": "seed", "node": 6, "path": "inputs.model"},
    ]
    with pytest.raises(InvalidRequest) as caught:
        made(workflowParameters=wrong)
    problems = caught.value.details["problems"]
    assert [problem["path"] for problem in problems] == [f"workflowParameters[{at}]" for at in range(6)]
    assert problems[0]["near"] == ["prompt"]
    assert "no node '33'" in problems[1]["problem"]
    assert "did you mean 'inputs.text_g'" in problems[2]["problem"]
    assert "leads nowhere" in problems[3]["problem"]
    assert problems[4]["problem"] == "it takes a number, and the value is a string"
    assert "it is linked to node '2'" in problems[5]["problem"]
