"""Checks that every bound value is used where it was meant to be: :func:`check`.

A binding names a node by its id, and ids of another version of the template name other nodes. So after binding and
chaining, each bound value is looked up in the graph: it must be there, at an input that its node's class has and that
takes such a value, in a node that an output needs; and a sampling field, a prompt or a model must be at (or lead,
through nodes that only pass values on, to) a node that can use it as that: see role_inputs.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from settee.comfyui.graph import Graph
from settee.comfyui.model_folders import SUFFIXES
from settee.comfyui.node_registry import NodeRegistry, choices_of, upload_kind
from settee.comfyui.problems import MAX_NEAR, near_matches, path_problems, registry_problems
from settee.comfyui.workflow import Problem, Workflow, is_link, problem_at, unwrapped
from settee.doors.agent.config import REQUIRED_SAMPLING
from settee.doors.agent.envelope import Binding, Envelope
from settee.doors.agent.fields import refusal
from settee.doors.agent.graph import role_inputs
from settee.doors.agent.graph.bindings import find_path
from settee.doors.agent.graph.loras import PRIMARY, is_pattern, literals, texts
from settee.doors.agent.graph.parameters import Context

_REPLACED = (
    "this node loads one of the job's LoRAs, so its name and strengths come from loras and parameters.extra.loras; "
    'if it is to stay as the template has it, let its title say "fixed"'
)

_BASE_MODEL = ("base_model_name", "base_model_path", "base_model_full_path")


def check(workflow: Workflow, envelope: Envelope, context: Context, registry: NodeRegistry) -> None:
    """Raises InvalidRequest that names parameter, node and path of every bound value that is not used as meant, and
    every name in the graph that ComfyUI has no file or choice for (:func:`unknown_names`).

    ``workflow`` is the graph after :func:`bound` and :func:`chained`. A binding to a LoRA loader that went with the
    chain's making does not count; the LoRAs themselves are checked to be in the graph. A graph that this ComfyUI
    cannot run at all is told as such: nothing can be said of what is used in it.
    """
    problems = path_problems(workflow, registry, context.own_paths) + registry_problems(workflow, registry)
    if not problems and not registry.output_nodes(workflow):
        problems = [{"path": "workflow", "problem": "the workflow has no output node: add one, such as SaveImage"}]
    if problems:
        raise refusal(problems, "workflow")
    graph = role_inputs.Uses(workflow, registry)
    for at, binding in enumerate(envelope.workflow_parameters):
        problem = _of_binding(graph, binding, context)
        if problem:
            said = {"parameter": binding.parameter, "node_id": binding.node, "input": binding.path}
            problems.append({"path": f"workflowParameters[{at}]", **said, **problem})
    problems += _of_overrides(graph, envelope)
    problems += _of_loras(graph, context)
    problems += unknown_names(workflow, registry, context)
    if problems:
        raise refusal(problems, "workflow parameters")


def warnings(workflow: Workflow, envelope: Envelope, context: Context, registry: NodeRegistry) -> tuple[str, ...]:
    """Return warnings for a graph that :func:`check` took: what of the job it does not have
    (:func:`unused`), prompts that are the other prompt too, and what was not taken as it was given.
    """
    graph = role_inputs.Uses(workflow, registry)
    both = dict.fromkeys(
        f"{binding.parameter}: it is used as {other} prompt too"
        for binding in envelope.workflow_parameters
        if binding.node in workflow
        and (other := graph.other_side(binding.parameter, binding.node, binding.path.removeprefix("inputs.")))
    )
    return (*unused(workflow, envelope, context), *both, *context.warnings)


def unplaced(workflow: Workflow, envelope: Envelope, context: Context) -> frozenset[str]:
    """Names of what of the job the graph does not have (``baseModel`` for that): it used values of its own.

    Neither bound nor, as a whole value, at an input that is named for it; a template may well be meant so. Prompts and
    the base model's name are no other value by chance, so they may stand anywhere.
    """
    bound_names = {binding.parameter for binding in envelope.workflow_parameters}
    wanted = ["prompt", *(["negative_prompt"] if envelope.parameters.negative_prompt else []), *REQUIRED_SAMPLING]
    left = {name for name in wanted if name not in bound_names and not _stands_in(workflow, name, context.values[name])}
    base = context.values["base_model_name"]
    if not bound_names.intersection(_BASE_MODEL) and not any(base in literals(node) for node in workflow.values()):
        left.add("baseModel")
    return frozenset(left)


def unused(workflow: Workflow, envelope: Envelope, context: Context) -> tuple[str, ...]:
    """:func:`unplaced`, said for a person."""
    left = unplaced(workflow, envelope, context)
    said = "the workflow has no place for it (bind {} with workflowParameters), and used what it says itself"
    order = ["prompt", "negative_prompt", *REQUIRED_SAMPLING]
    told = [f"{name}: {said.format('it')}" for name in order if name in left]
    return (*told, *([f"baseModel: {said.format('base_model_name')}"] if "baseModel" in left else []))


def _stands_in(workflow: Workflow, parameter: str, value: Any) -> bool:
    """Return True if an input that is named for a parameter has its value."""
    return any(
        value in literals({"inputs": {name: given}})
        for node in workflow.values()
        for name, given in node["inputs"].items()
        if role_inputs.is_named_for(parameter, name)
    )


def _of_binding(graph: role_inputs.Uses, binding: Binding, context: Context) -> Problem | None:
    node = graph.workflow.get(binding.node)
    if node is None or (is_pattern(node) and binding.parameter in PRIMARY):
        # A loader without a LoRA for it is gone; what is left of them is looked at below.
        return None
    class_type = node["class_type"]
    place = find_path(node, binding.path)
    value = context.values.get(binding.parameter)
    if place is None or not place.exists or place.value != value:
        return {"class_type": class_type, "problem": _REPLACED}
    if binding.node not in graph.live:
        return {"class_type": class_type, "problem": f"no output uses what this {class_type} makes"}
    name = binding.path.split(".", 1)[1]
    problem = graph.input_problem(binding.node, name, value) or graph.role_problem(
        binding.parameter, binding.node, name
    )
    return {"class_type": class_type, **problem} if problem else None


def _of_overrides(graph: role_inputs.Uses, envelope: Envelope) -> Iterator[Problem]:
    """Overrides without an effect: of what the chain of LoRAs sets itself, of what no class of that name has."""
    for at, override in enumerate(envelope.workflow_overrides):
        node = graph.workflow.get(override.node)
        part, _, name = override.path.partition(".")
        if node is None or part != "inputs" or not name:
            continue
        is_set_later = is_pattern(node) and name in PRIMARY.values() and node["inputs"].get(name) != override.value
        problem = {"problem": _REPLACED} if is_set_later else graph.name_problem(override.node, name)
        if problem:
            said = {"node_id": override.node, "class_type": node["class_type"], "input": override.path}
            yield {"path": f"workflowOverrides[{at}]", **said, **problem}


def _of_loras(graph: role_inputs.Uses, context: Context) -> Iterator[Problem]:
    """Every LoRA of the job must be loaded by a node that an output needs."""
    loaded = {text for node_id in graph.live for text in texts(graph.workflow[node_id])}
    for at, use in enumerate(context.loras):
        if use.name not in loaded:
            yield {"path": f"loras[{at}]", "problem": "no output uses what the LoRA loaders of this workflow make"}


def unknown_names(workflow: Workflow, registry: NodeRegistry, context: Context) -> list[Problem]:
    """Every name that a choice of the registry does not have, with near matches: ComfyUI would refuse it.

    The job's own models may not be there yet. Classes of custom nodes may check their inputs in their own way, which
    the registry does not tell, so there only names of model files are looked at.
    """
    problems: list[Problem] = []
    base = context.values["base_model_name"]
    coming = {base, *(use.name for use in context.loras)}
    is_base_bound = any(base in literals(node) for node in workflow.values())
    for node_id, node in Graph(workflow, registry).live.items():
        for name, given in node["inputs"].items():
            value, spec = unwrapped(given), registry.spec(node["class_type"], name)
            choices = choices_of(spec)
            if choices is None or is_link(value) or isinstance(value, (list, dict)) or value in choices:
                continue
            is_ours = value in coming or upload_kind(spec)
            is_model = isinstance(value, str) and value.lower().endswith(SUFFIXES)
            if is_ours or not (is_model or registry.is_core(node["class_type"])):
                continue
            is_path = value in context.own_paths
            shown = "a model's full path" if is_path else str(value)[:200]
            problem = f"{shown if is_path else repr(shown)} is not one of the {len(choices)} that ComfyUI has there"
            if is_path or (role_inputs.is_named_for("base_model_name", name) and not is_base_bound):
                problem += ": bind base_model_name to it"
            near = near_matches(value, choices) if len(problems) < MAX_NEAR else []
            problems.append(
                problem_at(
                    node_id,
                    node,
                    name,
                    value=shown,
                    type="value_not_in_list",
                    problem=problem,
                    # A number may be spelled as the text that is given.
                    near=[match for match in near if match != str(value)],
                )
            )
    return problems


__all__ = ["check", "unknown_names", "unplaced", "unused", "warnings"]
