"""Writes a job's overrides and parameters into its workflow: :func:`bound`.

Overrides come first, then bindings, so a binding wins where both name a place. Both keep what is there of its kind: a
string never goes where a number was. A link may be replaced by an override, which says so, and not by a binding, which
would cut the graph at a place whose value comes from elsewhere.

Bindings happen on the template, before LoRA chains: what they write into a LoRA loader is the pattern's, and
:func:`settee.doors.agent.graph.loras.chained` then gives every LoRA its own name and strengths.
"""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

from settee.comfyui import workflow as graph
from settee.comfyui.problems import MAX_NEAR, near_matches
from settee.comfyui.workflow import Problem, Workflow, is_link
from settee.doors.agent.envelope import Binding, Envelope, Override
from settee.doors.agent.fields import kind_of, refusal, value_problems
from settee.doors.agent.graph.loras import PRIMARY, is_pattern, primary_problem
from settee.doors.agent.graph.parameters import Context


def bound(workflow: Workflow, envelope: Envelope, context: Context) -> Workflow:
    """Return a copy of the template with the envelope's overrides, then its parameters, written into it.

    Raises InvalidRequest with every unknown parameter, every node and path that does not exist, and every value of
    another kind than what is there; also for a template that is not a workflow in API format.
    """
    if problems := _shape_problems(workflow):
        raise refusal(problems, "workflow")
    changed = copy.deepcopy(workflow)
    for at, override in enumerate(envelope.workflow_overrides):
        with_near = len(problems) < MAX_NEAR
        if problem := _placed(changed, override, override.value, may_link=True, with_near=with_near):
            problems.append({**where("workflowOverrides", at, override), **problem})
    spoiled = _shape_problems(changed)
    problems += [{**each, "path": f"{each['path']} after workflowOverrides"} for each in spoiled]
    if not spoiled:
        problems += _bind(changed, envelope.workflow_parameters, context) or _shape_problems(changed)
    if problems:
        raise refusal(problems, "workflow parameters")
    return changed


def where(option: str, at: int, part: Binding | Override) -> Problem:
    return {"path": f"{option}[{at}]", "node_id": part.node, "input": part.path}


def _shape_problems(workflow: Workflow) -> list[Problem]:
    """Return what is wrong with a graph by itself; the functions of this package rely on an empty list."""
    if problems := value_problems(workflow):
        return [{**problem, "path": f"workflow.{problem['path']}"} for problem in problems]
    return graph.shape_problems(workflow, max_nodes=max(len(workflow), 1))


def _bind(workflow: Workflow, bindings: tuple[Binding, ...], context: Context) -> list[Problem]:
    problems: list[Problem] = []
    taken: dict[tuple[str, str], str] = {}
    for at, binding in enumerate(bindings):
        name, problem = binding.parameter, None
        node = workflow.get(binding.node, {})
        is_patterns = bool(node) and name in PRIMARY and is_pattern(node)
        with_near = len(problems) < MAX_NEAR
        if name not in context.values:
            near = near_matches(name, context.values) if with_near else []
            problem = {"problem": f"no parameter {name!r}", "near": near}
        elif (other := taken.setdefault((binding.node, binding.path), name)) != name:
            problem = {"problem": f"{other} is bound to the same place of node {binding.node}"}
        elif is_patterns and (why := primary_problem(node, name, binding.path)):
            problem = {"class_type": node["class_type"], "problem": why}
        elif not is_patterns or context.values[name] is not None:
            # A job without LoRAs has nothing for a pattern, which goes then.
            problem = _placed(workflow, binding, context.values[name], may_link=False, with_near=with_near)
        if problem:
            problems.append({**where("workflowParameters", at, binding), "parameter": name, **problem})
    return problems


def _placed(
    workflow: Workflow, at: Binding | Override, value: Any, *, may_link: bool, with_near: bool
) -> Problem | None:
    """Write a value into a node's place; or else return what is wrong."""
    path, node = at.path, workflow.get(at.node)
    if node is None:
        near = near_matches(at.node, workflow) if with_near else []
        return {"problem": f"the workflow has no node {at.node!r}", "near": near}
    class_type = {"class_type": node["class_type"]}
    if path.split(".")[0] not in (graph.NODE_KEYS if may_link else ("inputs",)) or (path == "inputs" and not may_link):
        hint = f"; did you mean 'inputs.{path}'?" if path in node["inputs"] else ""
        return {**class_type, "problem": f"{path!r} is not an input of a node: write inputs.NAME{hint}"}
    place = find_path(node, path)
    if place is None:
        near = [f"inputs.{name}" for name in near_matches(path.removeprefix("inputs."), node["inputs"])]
        return {**class_type, "problem": f"{path!r} leads nowhere in this {node['class_type']}", "near": near}
    problem = None if may_link else _unbound(place, value)
    was, now = _kind(place.value), _kind(value)
    if place.holder is node and place.exists and was != now:
        problem = f"{path!r} of a node cannot become that"
    elif problem is None and None not in (was, now) and was != now:
        problem = f"it takes {was}, and the value is {now}"
    if problem:
        return {**class_type, "problem": problem}
    before = list(graph.links(node))
    place.holder[place.key] = copy.deepcopy(value)
    if not may_link and list(graph.links(node)) != before:
        return {**class_type, "problem": "it would make a list there a link: only workflowOverrides may"}
    return None


def _unbound(place: InputPath, value: Any) -> str | None:
    """Return why a parameter's value must not take this place."""
    if value is None:
        return "this job has no value for it (primary_lora_… are a LoRA's)"
    if is_link(value):
        return "the parameter's value looks like a link to a node: only workflowOverrides may set links"
    linked = next((each for each in (place.value, place.holder) if is_link(each)), None)
    if linked is None:
        return None
    return f"it is linked to node {linked[0][:100]!r}: bind that node's input, or replace the link by workflowOverrides"


def _kind(value: Any) -> str | None:
    """Return the kind of a value, of those that never take each other's place; None for links and nothing."""
    return None if value is None or is_link(value) else kind_of(value)


# --- paths ----------------------------------------------------------------------------------------------------


class InputPath(NamedTuple):
    """A resolved path: a key of an object, or an index of a list."""

    holder: Any
    key: str | int

    @property
    def exists(self) -> bool:
        return isinstance(self.holder, list) or self.key in self.holder

    @property
    def value(self) -> Any:
        """The value at the path; None where there is nothing yet."""
        return self.holder[self.key] if self.exists else None


def find_path(holder: Any, path: str) -> InputPath | None:
    """Resolve a dotted path such as ``inputs.ckpt_name``; None where an object or a list on its way does not exist.

    A number counts within a list, from 0. The names of some of ComfyUI's inputs have dots themselves ("values.a"), so
    of several readings the one with the longest name that exists is taken. Only the last part may name a key that is
    not there yet.
    """
    parts = path.split(".")
    if not all(parts):
        return None
    taken, key = 1, parts[0]
    if isinstance(holder, list):
        is_index = key.isascii() and key.isdigit() and len(key) < 7 and int(key) < len(holder)
        found: InputPath | None = InputPath(holder, int(key)) if is_index else None
    elif isinstance(holder, dict):
        taken = next((n for n in range(len(parts), 0, -1) if ".".join(parts[:n]) in holder), len(parts))
        key = ".".join(parts[:taken])
        found = InputPath(holder, key) if key in holder or len(parts) == 1 else None
    else:
        return None
    return found if found is None or taken == len(parts) else find_path(found.value, ".".join(parts[taken:]))
