"""Writes a job's overrides and parameters into its workflow: :func:`bound`.

Overrides come first, then bindings, so a binding wins where both name a place. Both keep what is there of its kind: a
text never goes where a number was. A link may be replaced by an override, which says so, and not by a binding, which
would cut the graph at a place whose value comes from elsewhere.

Bindings happen on the template, before LoRA chains: what they write into a LoRA loader is the pattern's, and
:func:`settee.doors.agent.graph.loras.chained` then gives every LoRA its own name and strengths.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any, NamedTuple

from settee.comfyui import workflow as graph
from settee.comfyui.problems import MAX_NEAR, near_matches
from settee.comfyui.workflow import Problem, Workflow, is_link
from settee.doors.agent.envelope import Binding, Envelope
from settee.doors.agent.fields import kind_of, refusal, value_problems
from settee.doors.agent.graph.loras import PRIMARY, is_pattern, primary_problem
from settee.doors.agent.graph.parameters import Context

#: What ComfyUI reads of a node; isolation drops anything else.
_PARTS = ("inputs", "class_type", "_meta")


def bound(workflow: Workflow, envelope: Envelope, context: Context) -> Workflow:
    """A copy of the template with the envelope's overrides, then its parameters, written into it.

    Raises InvalidRequest with every unknown parameter, every node and path that does not exist, and every value of
    another kind than what is there; also for a template that is not a workflow in API format.
    """
    problems = _shape_problems(workflow)
    if problems:
        raise refusal(problems, "workflow")
    changed = copy.deepcopy(workflow)
    for at, override in enumerate(envelope.workflow_overrides):
        said = {"path": f"workflowOverrides[{at}]", "node_id": override.node, "input": override.path}
        _write(changed, said, copy.deepcopy(override.value), problems, may_unlink=True)
    spoiled = _shape_problems(changed)
    problems += [{**item, "path": f"{item['path']} after workflowOverrides"} for item in spoiled]
    if not spoiled:
        problems += _bind(changed, envelope.workflow_parameters, context) or _shape_problems(changed)
    if problems:
        raise refusal(problems, "workflow parameters")
    return changed


def _shape_problems(workflow: Any) -> list[Problem]:
    """Return what is wrong with a graph by itself; the functions of this package rely on an empty list."""
    if not isinstance(workflow, dict):
        return [{"path": "workflow", "problem": "the template is not an object of nodes in ComfyUI's API format"}]
    values = value_problems(workflow)
    if values:
        return [{**problem, "path": f"workflow.{problem['path']}"} for problem in values]
    return graph.shape_problems(workflow, max_nodes=max(len(workflow), 1))


def _bind(workflow: Workflow, bindings: tuple[Binding, ...], context: Context) -> list[Problem]:
    problems: list[Problem] = []
    taken: dict[tuple[str, str], str] = {}
    for at, binding in enumerate(bindings):
        said = {
            "path": f"workflowParameters[{at}]",
            "parameter": binding.parameter,
            "node_id": binding.node,
            "input": binding.path,
        }
        if binding.parameter not in context.values:
            near = near_matches(binding.parameter, context.values) if len(problems) < MAX_NEAR else []
            problems.append({**said, "problem": f"there is no parameter {binding.parameter!r}", "near": near})
            continue
        other = taken.setdefault((binding.node, binding.path), binding.parameter)
        if other != binding.parameter:
            problems.append({**said, "problem": f"{other} is bound to the same place of node {binding.node}"})
            continue
        value = copy.deepcopy(context.values[binding.parameter])
        node = workflow.get(binding.node)
        if node is not None and binding.parameter in PRIMARY and is_pattern(node):
            problem = primary_problem(node, binding.parameter, binding.path)
            if problem:
                problems.append({**said, "class_type": node["class_type"], "problem": problem})
            if problem or value is None:
                # A job without LoRAs has nothing for this place, which goes with its node.
                continue
        _write(workflow, said, value, problems, may_unlink=False)
    return problems


def _write(
    workflow: Workflow, said: Mapping[str, Any], value: Any, problems: list[Problem], *, may_unlink: bool
) -> None:
    node_id, path = said["node_id"], said["input"]
    problem: Problem | None
    if node_id not in workflow:
        near = near_matches(node_id, workflow) if len(problems) < MAX_NEAR else []
        problem = {"problem": f"the workflow has no node {node_id!r}", "near": near}
    else:
        problem = _placed(workflow[node_id], path, value, may_unlink=may_unlink)
    if problem:
        problems.append({**said, **problem})


def _placed(node: dict[str, Any], path: str, value: Any, *, may_unlink: bool) -> Problem | None:
    """Write a value into a node; or else what is wrong."""
    class_type = node["class_type"]
    if path.split(".")[0] not in (_PARTS if may_unlink else ("inputs",)) or (path == "inputs" and not may_unlink):
        hint = f"; did you mean 'inputs.{path}'?" if path in node["inputs"] else ""
        return {"class_type": class_type, "problem": f"{path!r} is not an input of a node: write inputs.NAME{hint}"}
    place = find_path(node, path)
    if place is None:
        return {
            "class_type": class_type,
            "problem": f"{path!r} leads nowhere in this {class_type}",
            "near": [f"inputs.{name}" for name in near_matches(path.removeprefix("inputs."), node["inputs"])],
        }
    problem = _unfit(place, value, may_unlink=may_unlink)
    if place.holder is node and place.exists and _kind(value) != _kind(place.value):
        problem = f"{path!r} of a node cannot become that"
    if problem:
        return {"class_type": class_type, "problem": problem}
    before = list(graph.links(node))
    place.holder[place.key] = value
    if not may_unlink and list(graph.links(node)) != before:
        return {"class_type": class_type, "problem": "it would make a list there a link: only workflowOverrides may"}
    return None


def _unfit(place: InputPath, value: Any, *, may_unlink: bool) -> str | None:
    """Why a value must not take the place of what is there."""
    if not may_unlink:
        if value is None:
            return "this job has no value for it (primary_lora_… are a LoRA's)"
        if is_link(value):
            return "the parameter's value looks like a link to a node: only workflowOverrides may set links"
        linked = next((item for item in (place.value, place.holder) if is_link(item)), None)
        if linked is not None:
            source = linked[0][:100]
            return f"it is linked to node {source!r}: bind that node's input, or replace the link by workflowOverrides"
    was, now = _kind(place.value), _kind(value)
    if None in (was, now) or was == now:
        return None
    return f"it takes {was}, and the value is {now}"


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


def find_path(root: Any, path: str) -> InputPath | None:
    """Resolve a dotted path such as ``inputs.ckpt_name``; None where an object or a list on its way does not exist.

    A number counts within a list, from 0. The names of some of ComfyUI's inputs have dots themselves ("values.a"), so
    of several readings the one with the longest name that exists is taken. Only the last part may name a key that is
    not there yet.
    """
    parts = path.split(".")
    if not all(parts):
        return None
    holder, at = root, 0
    while True:
        left = parts[at:]
        if isinstance(holder, list):
            key: str | int | None = _index(left[0], len(holder))
            taken = 1
        elif isinstance(holder, dict):
            taken = next((n for n in range(len(left), 0, -1) if ".".join(left[:n]) in holder), 0)
            key = ".".join(left[:taken]) if taken else left[0] if len(left) == 1 else None
            taken = taken or 1
        else:
            return None
        if key is None:
            return None
        if taken == len(left):
            return InputPath(holder, key)
        holder, at = holder[key], at + taken


def _index(text: str, length: int) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) < 7):
        return None
    return int(text) if int(text) < length else None


__all__ = ["bound", "find_path"]
