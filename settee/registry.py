"""A workflow seen by one ComfyUI's node registry (`/object_info`): what runs, mistakes, near matches.

Pure functions: the registry is an argument. Its shape is ``{Class: {"input": {"required": {name: spec}, "optional":
…}, "output": [...], "output_node": bool}}``, a spec being ``[type, options]`` or ``[[choice, …], options]``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from typing import Any

from settee.errors import InvalidRequest, WorkflowRejected
from settee.redact import neutral
from settee.workflow import (
    ObjectInfo,
    Problem,
    Workflow,
    is_link,
    link_problems,
    links,
    natural_key,
    output_nodes,
    own_node,
    texts,
)

# --- inputs ----------------------------------------------------------------------------------------------

#: Input options by which ComfyUI (and VideoHelperSuite) mark a combo that lists the input folder.
_UPLOAD_OPTIONS = ("image_upload", "audio_upload", "video_upload", "file_upload", "upload")


def spec_of(object_info: ObjectInfo, class_type: str, name: str) -> Any:
    """The registry's ``[type, options]`` of an input; None when its class is unknown or has no such input."""
    return _declared(object_info.get(class_type, {}).get("input", {}), name)


def _declared(sections: Mapping[str, Any], name: str) -> Any:
    for section in ("required", "optional"):
        found = (sections.get(section) or {}).get(name)
        if found is not None:
            return found
    # A dynamic combo declares further inputs for each of its choices: ``model`` and ``model.seed``.
    parent, _, child = name.partition(".")
    choices = options_of(_declared(sections, parent)).get("options") if child else None
    for choice in choices if isinstance(choices, list) else ():
        found = _declared(choice.get("inputs") or {}, child) if isinstance(choice, dict) else None
        if found is not None:
            return found
    return None


def options_of(spec: Any) -> Mapping[str, Any]:
    """The options of an input, such as its least and most."""
    return spec[1] if isinstance(spec, list) and len(spec) > 1 and isinstance(spec[1], dict) else {}


def is_upload(spec: Any) -> bool:
    """Return True if an input names a file of ComfyUI's input folder, which people upload to."""
    return any(options_of(spec).get(name) for name in _UPLOAD_OPTIONS)


# --- validation against the registry ----------------------------------------------------------------------


#: So many different unknown names get near matches; a graph that is all wrong has no use for more.
MAX_NEAR = 10


def near_matches(value: Any, choices: Iterable[Any], limit: int = 3) -> list[str]:
    """Choices that look like ``value``, best first: by spelling, else by file name, whatever the case.

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


def choices_of(spec: Any) -> list[Any] | None:
    """The list of a combo input, in either of ComfyUI's forms (``[[…], {}]`` or ``["COMBO", {"options"}]``)."""
    if not isinstance(spec, list) or not spec:
        return None
    if isinstance(spec[0], list):
        return spec[0]
    if spec[0] == "COMBO" and isinstance(options_of(spec).get("options"), list):
        return list(options_of(spec)["options"])
    return None


def stand_ins(workflow: Workflow, object_info: ObjectInfo) -> list[str]:
    """The nodes, as ``4 (CheckpointLoaderSimple)``, that only stand in for a model, as in settee's embedded server."""
    classes = {node_id: node["class_type"] for node_id, node in workflow.items()}
    return [f"{i} ({name})" for i, name in classes.items() if object_info.get(name, {}).get("settee_stand_in")]


def live(workflow: Workflow, object_info: ObjectInfo) -> Workflow:
    """The nodes that lead to an output: ComfyUI looks at no others.

    A class that is not known may be an output too, where it is linked to others and none to it. Without a known output
    all count.
    """
    ends = output_nodes(workflow, object_info)
    if not ends:
        return workflow
    used = {source for node in workflow.values() for _, source, _ in links(node)}
    unknown = [node_id for node_id, node in workflow.items() if node["class_type"] not in object_info]
    ends += [node_id for node_id in unknown if node_id not in used and any(links(workflow[node_id]))]
    reached: set[str] = set()
    while ends:
        node_id = ends.pop()
        if node_id not in reached and node_id in workflow:
            reached.add(node_id)
            ends += [source for _, source, _ in links(workflow[node_id])]
    return {node_id: node for node_id, node in workflow.items() if node_id in reached}


def linked(workflow: Workflow, object_info: ObjectInfo) -> Workflow:
    """The workflow as it is, or only :func:`live` nodes where links of others lead nowhere or in a loop.

    Raises InvalidRequest where a link of a live node does.
    """
    if not link_problems(workflow):
        return workflow
    kept = live(workflow, object_info)
    if problems := link_problems(kept):
        raise InvalidRequest.from_problems(problems, "workflow")
    return kept


def registry_problems(
    workflow: Workflow, object_info: ObjectInfo, failed_imports: Mapping[str, str] | None = None
) -> list[Problem]:
    """Return what ComfyUI is certain to refuse: unknown classes, required inputs that are missing, bad link slots.

    Values are left to ComfyUI itself, because a class may bring a check of its own that `/object_info` does not
    show (VALIDATE_INPUTS): its verdict is explained by :func:`explain` afterwards. ``failed_imports``: custom nodes
    that ComfyUI could not import, and why.
    """
    problems: list[Problem] = []
    near: dict[str, list[str]] = {}
    for node_id, node in live(workflow, object_info).items():
        class_type = node["class_type"]
        base = {"node_id": node_id, "class_type": class_type}
        known = object_info.get(class_type)
        if known is None:
            if class_type not in near:
                # Each costs milliseconds on a worker with thousands of classes.
                near[class_type] = near_matches(class_type, object_info) if len(near) < MAX_NEAR else []
            problems.append(
                {
                    "path": f"workflow.{node_id}",
                    **base,
                    "type": "unknown_class",
                    "problem": f"no such node class on this worker: {_remedy(failed_imports or {})}",
                    "near": near[class_type],
                }
            )
            continue
        for name, spec in (known.get("input", {}).get("required") or {}).items():
            if name not in node["inputs"] and _is_plain(spec):
                problems.append(
                    {
                        "path": f"workflow.{node_id}.inputs.{name}",
                        **base,
                        "input": name,
                        "type": "required_input_missing",
                        "problem": f"the required input {name!r} is missing",
                    }
                )
        for name, source, slot in links(node):
            outputs = object_info.get(workflow[source]["class_type"], {}).get("output")
            if isinstance(outputs, list) and slot >= len(outputs):
                problems.append(
                    {
                        "path": f"workflow.{node_id}.inputs.{name}",
                        **base,
                        "input": name,
                        "value": [source, slot],
                        "type": "bad_link_slot",
                        "problem": f"node {source} ({workflow[source]['class_type']}) has {len(outputs)} "
                        f"output(s), so there is no output {slot}",
                    }
                )
    return problems


def _remedy(failed_imports: Mapping[str, str]) -> str:
    if not failed_imports:
        return "install its custom node, or fix the name"
    failed = ", ".join(f"{name} ({why})" for name, why in [*failed_imports.items()][:5])
    more = f" and {len(failed_imports) - 5} more" if len(failed_imports) > 5 else ""
    return f"if it is of a custom node that ComfyUI could not import, mend that: {failed}{more}"


def without_unknown(workflow: Workflow, object_info: ObjectInfo) -> Workflow:
    """The workflow without nodes of unknown classes, and all that depends on one: ComfyUI would refuse it whole."""
    dropped: set[str] = set()
    unknown = [node_id for node_id, node in workflow.items() if node["class_type"] not in object_info]
    while unknown:
        dropped.update(unknown)
        unknown = [
            node_id
            for node_id, node in workflow.items()
            if node_id not in dropped and any(source in dropped for _, source, _ in links(node))
        ]
    return {node_id: node for node_id, node in workflow.items() if node_id not in dropped} if dropped else workflow


#: ComfyUI's `/node_replacements` (0.33): entries by the old class name, of which it takes the first.
Replacements = Mapping[str, Any]


def replacement(class_type: str, replacements: Replacements, object_info: ObjectInfo) -> Mapping[str, Any]:
    """Return the entry by which ComfyUI would replace a class, {} for none."""
    entries = replacements.get(class_type) if class_type not in object_info else None
    entry = entries[0] if entries else {}
    return entry if entry.get("new_node_id") in object_info else {}


def replaced(workflow: Workflow, replacements: Replacements, object_info: ObjectInfo) -> Workflow:
    """The workflow with today's classes for those that ComfyUI would replace.

    It does so before it checks a prompt (app/node_replace_manager.py), but drops the inputs where the entry maps none,
    and breaks off at a node without `_meta`. Done here, all else that looks at classes and inputs sees what will run.
    """
    changed: Workflow = {}
    moved: dict[tuple[str, int], int] = {}
    for node_id, node in workflow.items():
        entry = replacement(node["class_type"], replacements, object_info)
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


def respelled(workflow: Workflow, object_info: ObjectInfo, coming: Iterable[str]) -> tuple[Workflow, list[str]]:
    """The workflow with names of models as this worker spells them, and a warning for each that was changed.

    A workflow made on Windows has ``XL\\a.safetensors``. ``coming``: names that ComfyUI does not list yet.
    """
    changed, warnings = dict(workflow), list[str]()
    for node_id, node in workflow.items():
        for name, value in node["inputs"].items():
            if isinstance(value, str) and ("\\" in value or "/" in value):
                choices = choices_of(spec_of(object_info, node["class_type"], name))
            elif isinstance(value, (dict, list)) and any("\\" in text for _, text, _ in texts(name, value)):
                choices = _names_in_folders(object_info)  # no class declares what is within an object
            else:
                continue
            respelt = value if choices is None else _respelt(value, [*choices, *coming])
            if respelt != value:
                changed[node_id] = {**changed[node_id], "inputs": {**changed[node_id]["inputs"], name: respelt}}
                warnings.append(f"node {node_id} ({node['class_type']}): {name} {value!r} was taken as {respelt!r}")
    return changed, warnings


def _respelt(value: Any, names: list[Any]) -> Any:
    if isinstance(value, dict):
        return {key: _respelt(item, names) for key, item in value.items()}
    if isinstance(value, list):
        return [_respelt(item, names) for item in value]
    if not isinstance(value, str) or value in names:
        return value
    same = {name for name in names if str(name).replace("\\", "/") == value.replace("\\", "/")}
    return same.pop() if len(same) == 1 else value


def _names_in_folders(object_info: ObjectInfo) -> list[str]:
    """Return every choice of any class that has a folder in it."""
    sections = [section or {} for info in object_info.values() for section in info.get("input", {}).values()]
    choices = {str(each) for section in sections for spec in section.values() for each in choices_of(spec) or ()}
    return [each for each in choices if "/" in each or "\\" in each]


def _is_plain(spec: Any) -> bool:
    """False for the dynamic inputs of newer nodes (COMFY_AUTOGROW_V3 and kin), whose names are made up later."""
    return not (isinstance(spec, list) and spec and isinstance(spec[0], str) and spec[0].startswith("COMFY_"))


# --- what ComfyUI said -------------------------------------------------------------------------------------


def explain(node_errors: Mapping[str, Any], workflow: Workflow, object_info: ObjectInfo) -> list[Problem]:
    """ComfyUI's ``node_errors`` as problems that name node, class, input, value and near matches."""
    problems: list[Problem] = []
    for node_id, report in sorted(node_errors.items(), key=lambda item: natural_key(item[0])):
        if not isinstance(report, dict):
            continue
        node_id = own_node(workflow, node_id)
        node = workflow.get(node_id, {"inputs": {}})
        class_type = report.get("class_type") or node.get("class_type")
        errors = report.get("errors")
        for error in errors if isinstance(errors, list) else ():
            if not isinstance(error, dict):
                continue
            info = error.get("extra_info")
            info = info if isinstance(info, dict) else {}
            name = info.get("input_name")
            value = info.get("received_value", node["inputs"].get(name) if name and "inputs" in node else None)
            problem: Problem = {
                "path": f"workflow.{node_id}" + (f".inputs.{name}" if name else ""),
                "node_id": node_id,
                "class_type": class_type,
                "type": error.get("type"),
                "problem": sentence(error),
            }
            if name:
                problem["input"] = name
                problem["value"] = value if not isinstance(value, str) else value[:200]
                choices = choices_of(spec_of(object_info, str(class_type), name))
                if choices is not None and not is_link(value):
                    # Each search costs milliseconds: a graph that is all wrong has no use for more.
                    problem["near"] = near_matches(value, choices) if len(problems) < MAX_NEAR else []
                    problem["choices"] = len(choices)
            problems.append(problem)
    return problems


def explained(error: WorkflowRejected, graph: Workflow, object_info: ObjectInfo) -> WorkflowRejected:
    """ComfyUI's refusal of a graph, with every problem that it has, in our words; as it was when it says none."""
    problems = explain(error.details.get("node_errors") or {}, graph, object_info)
    said = error.details.get("error") or {}
    if not problems and not said:
        return error
    if not problems:
        info = said.get("extra_info")
        node_id = str(info.get("node_id")) if isinstance(info, dict) else ""  # 0.33's, of a class that it does not know
        of_node = {"node_id": node_id, "class_type": graph[node_id]["class_type"]} if node_id in graph else {}
        where = f"workflow.{node_id}" if of_node else "workflow"
        problems = [{"path": where, **of_node, "type": said.get("type"), "problem": sentence(said)}]
    return WorkflowRejected.from_problems(problems, "workflow")


def sentence(error: Mapping[str, Any]) -> str:
    message = str(error.get("message") or error.get("type") or "refused by ComfyUI")
    details = " ".join(neutral(str(error.get("details") or "")).split())
    # A combo's details repeat its whole list, thousands of models long on some workers.
    return f"{neutral(message)}: {details}" if 0 < len(details) <= 200 else neutral(message)
