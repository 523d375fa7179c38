"""Whether every value that was bound is used where it was meant to be: :func:`check`.

A binding names a node by its id, and ids of another version of the template name other nodes. So after binding and
chaining, each bound value is looked up in the graph: it must be there, at an input that its node's class has and that
takes such a value, in a node that an output needs; and a sampling field, a prompt or a model must be at (or lead,
through nodes that only pass values on, to) a node that can use it as that: see :mod:`settee.doors.agent.roles`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator

from settee.doors.agent import places, roles
from settee.doors.agent.envelope import Binding, Envelope
from settee.doors.agent.loras import is_pattern
from settee.doors.agent.parameters import Context
from settee.errors import InvalidRequest
from settee.models.places import SUFFIXES
from settee.registry import MAX_NEAR, UPLOAD_OPTIONS, choices_of, near_matches
from settee.workflow import ObjectInfo, Problem, Workflow, is_link, unwrapped


def check(workflow: Workflow, envelope: Envelope, context: Context, object_info: ObjectInfo) -> None:
    """Raises InvalidRequest that names parameter, node and path of every bound value that is not used as meant, and
    every name in the graph that ComfyUI has no file or choice for (:func:`unknown_names`).

    ``workflow`` is the graph after :func:`bound` and :func:`chained`. A binding to a LoRA loader that went with the
    chain's making is none of these; the LoRAs themselves are checked to be in the graph.
    """
    graph = roles.Uses(workflow, object_info)
    problems: list[Problem] = []
    for at, binding in enumerate(envelope.workflow_parameters):
        for problem in _of_binding(graph, binding, context):
            problems.append(
                {
                    "path": f"workflowParameters[{at}]",
                    "parameter": binding.parameter,
                    "node_id": binding.node,
                    "input": binding.path,
                    **problem,
                }
            )
    problems += _of_loras(graph, context)
    coming = {context.values["base_model_name"], *(use.name for use in context.loras)}
    problems += unknown_names(workflow, object_info, coming)
    if problems:
        raise InvalidRequest.from_problems(problems, "workflow parameters")


def _of_binding(graph: roles.Uses, binding: Binding, context: Context) -> Iterator[Problem]:
    node = graph.workflow.get(binding.node)
    if node is None or (is_pattern(node) and binding.parameter.startswith("primary_lora_")):
        # A loader without a LoRA for it is gone; what is left of them is looked at below.
        return
    class_type = node["class_type"]
    place = places.find(node, binding.path)
    value = context.values.get(binding.parameter)
    if place is None or not place.exists or place.value != value:
        yield {
            "class_type": class_type,
            "problem": f"it is not there in the graph that would run: this {class_type} loads one of the job's LoRAs, "
            "whose name and strengths come from loras and extra.loras",
        }
        return
    if binding.node not in graph.live:
        yield {"class_type": class_type, "problem": f"no output uses what this {class_type} makes"}
        return
    name = binding.path.split(".", 1)[1]
    problem = graph.input_problem(binding.node, name, value) or graph.role_problem(
        binding.parameter, binding.node, name
    )
    if problem:
        yield {"class_type": class_type, **problem}


def _of_loras(graph: roles.Uses, context: Context) -> Iterator[Problem]:
    """Every LoRA of the job must be applied by a loader that an output needs."""
    loaded = {
        graph.workflow[node_id]["inputs"].get("lora_name")
        for node_id in graph.live
        if is_pattern(graph.workflow[node_id])
    }
    for at, use in enumerate(context.loras):
        if use.name not in loaded:
            yield {"path": f"loras[{at}]", "problem": "no output uses the LoRA loaders of this workflow"}


def unknown_names(workflow: Workflow, object_info: ObjectInfo, coming: Collection[str]) -> list[Problem]:
    """Every name that a choice of the registry does not have, with near matches: ComfyUI would refuse it.

    ``coming``: names of the job's own models, which may not be there yet. Classes of custom nodes may check their
    inputs in their own way, which the registry does not tell, so there only names of model files are looked at.
    """
    problems: list[Problem] = []
    for node_id, node in workflow.items():
        for name, given in node["inputs"].items():
            value, spec = unwrapped(given), roles.spec_of(object_info, node["class_type"], name)
            choices = choices_of(spec)
            if choices is None or is_link(value) or isinstance(value, (list, dict)) or value in choices:
                continue
            is_ours = value in coming or any(roles.options_of(spec).get(option) for option in UPLOAD_OPTIONS)
            is_model = isinstance(value, str) and value.lower().endswith(SUFFIXES)
            if is_ours or not (is_model or roles.is_core(object_info, node["class_type"])):
                continue
            problems.append(
                {
                    "path": f"workflow.{node_id}.inputs.{name}",
                    "node_id": node_id,
                    "class_type": node["class_type"],
                    "input": name,
                    "value": str(value)[:200],
                    "type": "value_not_in_list",
                    "problem": f"{str(value)[:200]!r} is none of the {len(choices)} that ComfyUI has there",
                    "near": near_matches(value, choices) if len(problems) < MAX_NEAR else [],
                }
            )
    return problems


__all__ = ["check", "unknown_names"]
