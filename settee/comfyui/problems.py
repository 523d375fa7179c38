"""Problems of a graph: by this worker's policy, by ComfyUI's node registry, and in ComfyUI's own words. Pure
functions, for worker and client."""

from __future__ import annotations

import difflib
import fnmatch
import re
from collections.abc import Iterable, Mapping
from typing import Any

from settee.base.errors import WorkflowRejected
from settee.base.text import neutral
from settee.comfyui.graph import Graph
from settee.comfyui.history import mapping
from settee.comfyui.node_registry import NodeRegistry, choices_of, is_dynamic
from settee.comfyui.workflow import Problem, Workflow, is_link, links, natural_key, own_node, problem_at

#: So many different unknown names get near matches; a graph that is all wrong has no use for more.
MAX_NEAR = 10


def near_matches(value: Any, choices: Iterable[Any], limit: int = 3) -> list[str]:
    """Return choices that look like ``value``, best first: by spelling, else by file name, whatever the case.

    A suffix counts for nothing: by it alone every model would look like every other.
    """
    texts = [str(choice) for choice in choices][:20_000]
    wanted = str(value)
    if len(wanted) > 300:
        return []
    lowered: dict[str, str] = {}
    for text in texts:
        lowered.setdefault(_stem(text), text)
        lowered.setdefault(_stem(re.split(r"[\\/]", text)[-1]), text)
    found: list[str] = []
    for candidate in dict.fromkeys((_stem(wanted), _stem(re.split(r"[\\/]", wanted)[-1]))):
        for match in difflib.get_close_matches(candidate, lowered, n=limit, cutoff=0.6):
            if lowered[match] not in found:
                found.append(lowered[match])
    return found[:limit]


def _stem(name: str) -> str:
    return re.sub(r"\.[a-z][a-z0-9]{1,11}$", "", name.lower())


# --- policy ----------------------------------------------------------------------------------------------


def class_problems(workflow: Workflow, allowed: Iterable[str], denied: Iterable[str]) -> list[Problem]:
    """Return nodes whose class the worker's ALLOWED_NODES or DENIED_NODES (names or shell patterns) rule out."""
    allowed, denied = tuple(allowed), tuple(denied)
    problems = []
    for node_id, node in workflow.items():
        name = node["class_type"]
        if any(fnmatch.fnmatchcase(name, pattern) for pattern in denied):
            rule = "is on this worker's DENIED_NODES"
        elif allowed and not any(fnmatch.fnmatchcase(name, pattern) for pattern in allowed):
            rule = "is not on this worker's ALLOWED_NODES"
        else:
            continue
        problems.append(problem_at(node_id, node, problem=f"this node class {rule}"))
    return problems


# --- validation against the registry ----------------------------------------------------------------------


def registry_problems(
    workflow: Workflow, registry: NodeRegistry, failed_imports: Mapping[str, str] | None = None
) -> list[Problem]:
    """Return what ComfyUI is certain to refuse: unknown classes, required inputs that are missing, bad link slots.

    Values are left to ComfyUI itself, because a class may bring a check of its own that `/object_info` does not
    show (VALIDATE_INPUTS): its verdict is explained by :func:`explain` afterwards. ``failed_imports``: custom nodes
    that ComfyUI could not import, and why.
    """
    problems: list[Problem] = []
    near: dict[str, list[str]] = {}
    for node_id, node in Graph(workflow, registry).live.items():
        class_type = node["class_type"]
        if class_type not in registry:
            if class_type not in near:
                # Each costs milliseconds on a worker with thousands of classes.
                near[class_type] = near_matches(class_type, registry) if len(near) < MAX_NEAR else []
            problem = f"no such node class on this worker: {_remedy(failed_imports or {})}"
            problems.append(problem_at(node_id, node, type="unknown_class", problem=problem, near=near[class_type]))
            continue
        for name, spec in (registry.entry(class_type).get("input", {}).get("required") or {}).items():
            if name not in node["inputs"] and not is_dynamic(spec):
                problem = f"the required input {name!r} is missing"
                problems.append(problem_at(node_id, node, name, type="required_input_missing", problem=problem))
        for name, source, slot in links(node):
            outputs = registry.entry(workflow[source]["class_type"]).get("output")
            if isinstance(outputs, list) and slot >= len(outputs):
                kind, value = workflow[source]["class_type"], [source, slot]
                problem = f"node {source} ({kind}) has {len(outputs)} output(s), so there is no output {slot}"
                problems.append(problem_at(node_id, node, name, value=value, type="bad_link_slot", problem=problem))
    return problems


def _remedy(failed_imports: Mapping[str, str]) -> str:
    if not failed_imports:
        return "install its custom node, or fix the name"
    failed = ", ".join(f"{name} ({why})" for name, why in [*failed_imports.items()][:5])
    more = f" and {len(failed_imports) - 5} more" if len(failed_imports) > 5 else ""
    return f"if it is of a custom node that ComfyUI could not import, repair that: {failed}{more}"


# --- what ComfyUI said -------------------------------------------------------------------------------------


def explain(node_errors: Mapping[str, Any], workflow: Workflow, registry: NodeRegistry) -> list[Problem]:
    """Return ComfyUI's ``node_errors`` as problems that name node, class, input, value and near matches."""
    problems: list[Problem] = []
    for node_id, report in sorted(node_errors.items(), key=lambda item: natural_key(item[0])):
        node_id, errors = own_node(workflow, node_id), mapping(report).get("errors")
        node = workflow.get(node_id, {})
        class_type = mapping(report).get("class_type") or node.get("class_type")
        for error in errors if isinstance(errors, list) else ():
            if not isinstance(error, dict):
                continue
            info = mapping(error.get("extra_info"))
            name = info.get("input_name") or None
            problem = problem_at(
                node_id, {"class_type": class_type}, name, type=error.get("type"), problem=sentence(error)
            )
            if name:
                value = info.get("received_value", mapping(node.get("inputs")).get(name))
                problem["value"] = value if not isinstance(value, str) else value[:200]
                choices = choices_of(registry.spec(str(class_type), name))
                if choices is not None and not is_link(value):
                    # Each search costs milliseconds: a graph that is all wrong has no use for more.
                    problem["near"] = near_matches(value, choices) if len(problems) < MAX_NEAR else []
                    problem["choices"] = len(choices)
            problems.append(problem)
    return problems


def explained(error: WorkflowRejected, graph: Workflow, registry: NodeRegistry) -> WorkflowRejected:
    """Return ComfyUI's refusal of a graph with every problem that it has, in our words; as it was when it has none."""
    problems = explain(error.details.get("node_errors") or {}, graph, registry)
    said = error.details.get("error") or {}
    if not problems and not said:
        return error
    if not problems:
        node_id = str(mapping(said.get("extra_info")).get("node_id"))  # 0.33's, of a class that it does not know
        of_node = {"node_id": node_id, "class_type": graph[node_id]["class_type"]} if node_id in graph else {}
        where = f"workflow.{node_id}" if of_node else "workflow"
        problems = [{"path": where, **of_node, "type": said.get("type"), "problem": sentence(said)}]
    return WorkflowRejected.from_problems(problems, "workflow")


def sentence(error: Mapping[str, Any]) -> str:
    message = str(error.get("message") or error.get("type") or "refused by ComfyUI")
    details = " ".join(neutral(str(error.get("details") or "")).split())
    # A combo's details repeat its whole list, thousands of models long on some workers.
    return f"{neutral(message)}: {details}" if 0 < len(details) <= 200 else neutral(message)
