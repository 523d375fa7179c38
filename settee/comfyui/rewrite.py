"""Rewrites of a graph before ComfyUI gets it: what its editor or its server would have changed, done where everything
else that looks at the graph sees it. Pure functions, for worker and client."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable
from typing import Any

from settee.base.errors import InvalidRequest
from settee.comfyui.graph import Computed, Graph, Place, reached, with_values
from settee.comfyui.node_registry import NodeRegistry, choices_of
from settee.comfyui.workflow import Workflow, link_problems, links, texts, title

PREFIX_INPUT = "filename_prefix"
_PATTERN = re.compile("%([^%]+)%")
_DATE_PART = re.compile("dd?|MM?|hh?|mm?|ss?|yyy?y?")
_NOT_IN_NAMES = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')


# --- classes ------------------------------------------------------------------------------------------------------


def replaced(workflow: Workflow, registry: NodeRegistry) -> Workflow:
    """Return the workflow with today's classes for those that ComfyUI would replace.

    It does so before it checks a prompt (app/node_replace_manager.py), but drops the inputs where the entry maps none,
    and breaks off at a node without `_meta`. Done here, all else that looks at classes and inputs sees what will run.
    """
    changed: Workflow = {}
    moved: dict[tuple[str, int], int] = {}
    for node_id, node in workflow.items():
        entry = registry.replacement(node["class_type"])
        if not entry:
            continue
        inputs = node["inputs"]
        if entry.get("input_mapping") is not None:
            inputs = {
                each["new_id"]: each["set_value"] if "set_value" in each else node["inputs"][each["old_id"]]
                for each in entry["input_mapping"]
                if "set_value" in each or each.get("old_id") in node["inputs"]
            }
        changed[node_id] = {**node, "class_type": entry["new_node_id"], "inputs": inputs}
        for each in entry.get("output_mapping") or ():
            moved[node_id, each["old_idx"]] = each["new_idx"]
    if not changed:
        return workflow
    result = {**workflow, **changed}
    for node_id, node in result.items():
        linked = {name: [source, moved[source, slot]] for name, source, slot in links(node) if (source, slot) in moved}
        result[node_id] = {**node, "inputs": {**node["inputs"], **linked}} if linked else node
    return result


def linked(workflow: Workflow, registry: NodeRegistry) -> Workflow:
    """Return the workflow as it is, or only its live nodes where links of others lead nowhere or in a loop.

    Raises InvalidRequest where a link of a live node does.
    """
    if not link_problems(workflow):
        return workflow
    kept = Graph(workflow, registry).live
    if problems := link_problems(kept):
        raise InvalidRequest.from_problems(problems, "workflow")
    return kept


def without_unknown(workflow: Workflow, registry: NodeRegistry) -> Workflow:
    """Return the workflow without nodes of unknown classes and their users: ComfyUI would refuse it whole."""
    graph = Graph(workflow)
    unknown = [node_id for node_id, node in workflow.items() if node["class_type"] not in registry]
    dropped = set(reached(unknown, lambda node_id: (use.node_id for use in graph.users[node_id])))
    return {node_id: node for node_id, node in workflow.items() if node_id not in dropped} if dropped else workflow


# --- names --------------------------------------------------------------------------------------------------------


def respelled(workflow: Workflow, registry: NodeRegistry, coming: Iterable[str]) -> tuple[Workflow, list[str]]:
    """Return the workflow with names of models as this worker spells them, and a warning for each changed one.

    A workflow made on Windows has ``XL\\a.safetensors``. ``coming``: names that ComfyUI does not list yet.
    """
    values, warnings = dict[Place, Any](), list[str]()
    for node_id, node in workflow.items():
        for name, value in node["inputs"].items():
            if isinstance(value, str) and ("\\" in value or "/" in value):
                choices = choices_of(registry.spec(node["class_type"], name))
            elif isinstance(value, (dict, list)) and any("\\" in text for _, text, _ in texts(name, value)):
                choices = _names_in_folders(registry)  # no class declares what is within an object
            else:
                continue
            respelt = value if choices is None else _respelt(value, [*choices, *coming])
            if respelt != value:
                values[Place(node_id, name)] = respelt
                warnings.append(f"node {node_id} ({node['class_type']}): {name} {value!r} was taken as {respelt!r}")
    return with_values(workflow, values), warnings


def _respelt(value: Any, names: list[Any]) -> Any:
    if isinstance(value, dict):
        return {key: _respelt(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_respelt(item, names) for item in value]
    if not isinstance(value, str) or value in names:
        return value
    same = {name for name in names if str(name).replace("\\", "/") == value.replace("\\", "/")}
    return same.pop() if len(same) == 1 else value


def _names_in_folders(registry: NodeRegistry) -> list[str]:
    """Return every choice of any class that has a folder in it."""
    specs = [spec for class_type in registry for spec in registry.inputs(class_type).values()]
    choices = {str(each) for spec in specs for each in choices_of(spec) or ()}
    return [each for each in choices if "/" in each or "\\" in each]


# --- patterns in prefixes -----------------------------------------------------------------------------------------


def filled_prefixes(workflow: Workflow, now: time.struct_time) -> dict[Place, str]:
    """Return the prefixes whose patterns stand for something, filled in. What names no node's value stays as it is."""
    found = {}
    for node_id, node in workflow.items():
        given = node["inputs"].get(PREFIX_INPUT)
        if isinstance(given, str) and "%" in given:
            filled = _PATTERN.sub(lambda match: _replacement(match, workflow, now), given)
            if filled != given:
                found[Place(node_id, PREFIX_INPUT)] = filled
    return found


def _replacement(match: re.Match[str], workflow: Workflow, now: time.struct_time) -> str:
    name, *rest = match[1].split(".")
    if len(rest) != 1:
        return _date(name.removeprefix("date:"), now) if name.startswith("date:") else match[0]
    # The editor looks for a node's name for search and replace, which is its class unless its user has changed it.
    named = [i for i, node in workflow.items() if node["class_type"] == name]
    named += [i for i, node in workflow.items() if title(node) == name]
    if not named or rest[0] not in workflow[named[0]]["inputs"]:
        return match[0]
    graph = Graph(workflow)
    try:
        value = graph.value(graph.literal(Place(named[0], rest[0])))
    except Computed:
        return match[0]
    if not isinstance(value, (str, int, float)):
        return match[0]
    # As JavaScript writes it: true, and 1 for 1.0.
    number = int(value) if isinstance(value, float) and value.is_integer() else value
    return _NOT_IN_NAMES.sub("_", str(number).lower() if isinstance(value, bool) else str(number))


def _date(form: str, now: time.struct_time) -> str:
    numbers = {"d": now.tm_mday, "M": now.tm_mon, "h": now.tm_hour, "m": now.tm_min, "s": now.tm_sec}

    def part(match: re.Match[str]) -> str:
        text = match[0]
        if text[0] == "y":
            year = str(now.tm_year)
            return {"yy": year[2:], "yyyy": year}.get(text, text)
        return str(numbers[text[0]]).zfill(len(text))

    return _DATE_PART.sub(part, form)
