"""What a workflow means to one ComfyUI, by its node registry (`/object_info`): files loaded, mistakes, near matches.

Pure functions: the registry is an argument. Its shape is ``{Class: {"input": {"required": {name: spec}, "optional":
…}, "output": [...], "output_node": bool}}``, a spec being ``[type, options]`` or ``[[choice, …], options]``.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from settee.errors import WorkflowRejected
from settee.redact import neutral
from settee.workflow import ObjectInfo, Problem, Workflow, is_core, is_link, links, natural_key, output_nodes, unwrapped

# --- loading nodes ---------------------------------------------------------------------------------------

#: Input options by which ComfyUI (and VideoHelperSuite) mark a combo that lists the input folder.
_UPLOAD_OPTIONS = ("image_upload", "audio_upload", "video_upload", "file_upload", "upload")
#: Inputs that custom loaders use for a file or folder without marking them.
PATH_INPUT = re.compile(
    r"^(image|images|mask|audio|video|file|files|folder|directory|dir|path|model_file|filename|image_path"
    r"|.*_(path|file|dir|directory|folder|filepath|filename))$"
)
ANNOTATION = re.compile(r"^(?P<name>.*?) ?\[(?P<folder>input|output|temp)\]$", re.DOTALL)
WINDOWS_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")


@dataclass(frozen=True)
class Load:
    """A file of ComfyUI's input folder that a node loads."""

    node_id: str
    class_type: str
    input: str
    #: As the workflow names it, without its "[input]" annotation.
    name: str


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
    """Whether an input names a file of ComfyUI's input folder, which people upload to."""
    return any(options_of(spec).get(name) for name in _UPLOAD_OPTIONS)


def picture_senders(workflow: Workflow, object_info: ObjectInfo) -> set[str]:
    """Ids of the nodes that may send their output over the event socket: output nodes of classes that are not core.

    SaveImageWebsocket is among them: it comes with ComfyUI as a custom node.
    """
    ends = output_nodes(workflow, object_info)
    return {node_id for node_id in ends if not is_core(object_info, workflow[node_id]["class_type"])}


def loads(workflow: Workflow, object_info: ObjectInfo) -> list[Load]:
    """Every file of the input folder that the workflow names, by the registry's upload marks."""
    found = []
    for node_id, node in workflow.items():
        for name, value in node["inputs"].items():
            value = unwrapped(value)
            if isinstance(value, str) and is_upload(spec_of(object_info, node["class_type"], name)):
                match = ANNOTATION.match(value)
                found.append(Load(node_id, node["class_type"], name, match["name"] if match else value))
    return found


def path_problems(workflow: Workflow, object_info: ObjectInfo, own: Collection[str] = ()) -> list[Problem]:
    """Inputs that would make ComfyUI read or write outside the job's own folders.

    LoadImage opens absolute names and ``../`` gladly (contracts/comfyui.md), and names annotated "[output]" or
    "[temp]" point at folders that are wiped between jobs. ``own``: full paths of the job's own models, which custom
    loaders may be given: no file is written under them, and no problem shows them.
    """
    problems = []
    for node_id, node in workflow.items():
        class_type = node["class_type"]
        for name, value in node["inputs"].items():
            value = unwrapped(value)
            if not isinstance(value, str) or (value in own and name != "filename_prefix"):
                continue
            spec = spec_of(object_info, class_type, name)
            is_file = is_upload(spec)
            # A combo names one of its choices; a class with a check of its own may take more (LoadLatent does).
            if not (is_file or choices_of(spec) is not None or PATH_INPUT.match(name) or name == "filename_prefix"):
                continue
            if rule := _unsafe(value, is_file):
                problems.append(
                    {
                        "path": f"workflow.{node_id}.inputs.{name}",
                        "node_id": node_id,
                        "class_type": class_type,
                        "input": name,
                        "value": "a model's full path" if value in own else value[:200],
                        "problem": rule,
                    }
                )
    return problems


def _unsafe(value: str, is_file: bool) -> str | None:
    match = ANNOTATION.match(value)
    if match and match["folder"] != "input" and is_file:
        return f"names ComfyUI's {match['folder']} folder, which is wiped between jobs: send the file with the job"
    name = match["name"] if match else value
    parts = re.split(r"[\\/]", name)
    if name.startswith(("/", "\\", "~")) or WINDOWS_DRIVE.match(name):
        return "is an absolute path: send the file with the job and name it as you named it there"
    if ".." in parts:
        return 'leaves its folder with "..": send the file with the job and name it as you named it there'
    if "\0" in name:
        return "holds a NUL character"
    return None


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


def registry_problems(workflow: Workflow, object_info: ObjectInfo) -> list[Problem]:
    """What ComfyUI is certain to refuse: unknown classes, required inputs that are missing, bad link slots.

    Values are left to ComfyUI itself, because a class may bring a check of its own that `/object_info` does not
    show (VALIDATE_INPUTS): its verdict is explained by :func:`explain` afterwards.
    """
    problems: list[Problem] = []
    near: dict[str, list[str]] = {}
    for node_id, node in workflow.items():
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
                    "problem": "no such node class on this worker: install its custom node, or fix the name",
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
        problems = [{"path": "workflow", "type": said.get("type"), "problem": sentence(said)}]
    return WorkflowRejected.from_problems(problems, "workflow")


def sentence(error: Mapping[str, Any]) -> str:
    message = str(error.get("message") or error.get("type") or "refused by ComfyUI")
    details = str(error.get("details") or "")
    # A combo's details repeat its whole list, thousands of models long on some workers.
    return neutral(f"{message}: {details}" if 0 < len(details) <= 200 else message)
