"""What a dispatcher is told a picture was made with."""

from __future__ import annotations

import copy
import uuid
from typing import Any

import pytest

from settee.base.errors import InvalidRequest
from settee.base.job import Artifact, Kind
from settee.base.settings import load
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.workflow import Workflow
from settee.doors.agent import prepare
from settee.doors.agent.assets import Assets
from settee.doors.agent.config import AgentConfig
from settee.doors.agent.contract import example
from settee.doors.agent.envelope import Envelope
from tests.unit.agent.templates import TEMPLATE, context_of, node, object_info, parsed, placed

EXAMPLE: dict[str, Any] = example("envelope")


def made_with(**nodes: Any) -> dict[str, Any]:
    given = parsed()
    graph = {**copy.deepcopy(TEMPLATE), **nodes}
    return prepare.params(prepare.Plan(given, context_of(given), graph, Assets((), placed(given), ()))).shown()


@pytest.mark.parametrize(
    ("nodes", "denoise"),
    [
        ({}, 1.0),
        ({"9": node("AnyNode", denoise="auto"), "10": node("AnyNode", denoise=True)}, 1.0),
        ({"9": node("AnyNode", denoise=1)}, 1.0),
        ({"9": node("AnyNode", denoise=0.5)}, None),
    ],
)
def test_denoise_is_told_where_the_graph_has_one(nodes: dict[str, Any], denoise: float | None) -> None:
    assert made_with(**nodes)["denoise"] == denoise


def test_models_of_the_template_are_told() -> None:
    graph = {"9": node("VAELoader", vae_name="sdxl.vae.safetensors"), "10": node("CLIPLoader", clip_name=["9", 0])}
    found = made_with(**graph)
    assert (found["vae"], found["clip"], found["model"]) == (
        "sdxl.vae.safetensors",
        None,
        "sdxl_base_1.0.safetensors",
    )


def test_what_the_graph_made_of_it_is_told_not_what_was_asked_for() -> None:
    given = parsed()
    plan = prepare.Plan(
        given,
        context_of(given),
        TEMPLATE,
        Assets((), placed(given), ()),
        unplaced=frozenset(["steps", "seed", "width", "baseModel", "prompt"]),
    )
    found = prepare.params(plan).shown()
    assert (found["steps"], found["seed"], found["width"], found["model"]) == (20, 0, 1024, "any.safetensors")
    assert found["height"] == 1216


def planned(given: Envelope, graph: Workflow) -> prepare.Plan:
    config = AgentConfig.model_construct(workflow_defaults={})
    return prepare.plan(given, config, graph, Assets((), placed(given), ()), NodeRegistry(object_info()), lambda: 77)


@pytest.mark.parametrize(
    ("link", "says"), [(["99", 0], "linked to node '99', which is not in the workflow"), (["7", 0], "form a loop")]
)
def test_a_link_to_nowhere_or_in_a_loop_is_refused_where_an_output_needs_it(link: list[Any], says: str) -> None:
    given = parsed(workflowParameters=[one for one in EXAMPLE["workflowParameters"] if one["parameter"] != "seed"])
    loose = node("ImageInvert", image=["99", 0])
    assert "90" not in planned(given, {**copy.deepcopy(TEMPLATE), "90": loose}).workflow
    override = {"node": "6", "path": "inputs.model", "value": link}
    with pytest.raises(InvalidRequest, match=says):
        planned(parsed(workflowOverrides=[override]), copy.deepcopy(TEMPLATE))


def test_a_seed_of_minus_one_in_a_template_is_drawn_and_told() -> None:
    given = parsed(workflowParameters=[one for one in EXAMPLE["workflowParameters"] if one["parameter"] != "seed"])
    graph = copy.deepcopy(TEMPLATE)
    graph["6"]["inputs"]["seed"] = -1
    plan = planned(given, graph)
    drawn = plan.workflow["6"]["inputs"]["seed"]
    assert drawn >= 0
    assert prepare.params(plan).shown()["seed"] == drawn
    assert any(f"6.seed = {drawn}" in warning for warning in plan.warnings)


@pytest.mark.parametrize(
    ("name", "suffix"),
    [("a.PNG", ".png"), ("a", ".bin"), ("a.p?n#g", ".p_n_g"), ("a.p\nng", ".p_ng"), ("a.p\udce9g", ".p_g")],
)
def test_a_key_takes_no_odd_character_from_a_files_name(name: str, suffix: str) -> None:
    given = parsed()
    config = AgentConfig.model_construct(
        comfyui=AgentConfig.model_fields["comfyui"].get_default(call_default_factory=True)
    )
    plan = prepare.Plan(given, context_of(given), TEMPLATE, Assets((), placed(given), ()))
    job, keys = prepare.job_for(plan, config, load(), str(uuid.uuid4()))
    assert job.options.destination is not None
    made = Artifact(node_id="9", kind=Kind.FILE, filename=name, subfolder="", media_type="x/y", size=1)
    assert job.options.destination.key(0, made) == keys[0]
    assert keys[0].endswith(f"/01_{plan.context.values['seed']}{suffix}")
