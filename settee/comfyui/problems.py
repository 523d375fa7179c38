"""Problems of a graph: by this worker's policy, by ComfyUI's node registry, in the names of files, and in ComfyUI's own
words. Pure functions, for worker and client."""

from __future__ import annotations

import difflib
import fnmatch
import posixpath
import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from settee.base.errors import WorkflowRejected
from settee.base.text import neutral
from settee.comfyui.graph import Graph
from settee.comfyui.history import mapping
from settee.comfyui.model_folders import SUFFIXES
from settee.comfyui.node_registry import NodeRegistry, choices_of, is_dynamic, upload_kind
from settee.comfyui.workflow import Problem, Text, Workflow, is_link, links, natural_key, own_node, problem_at, texts

#: So many different unknown names get near matches; a graph that is all wrong has no use for more.
MAX_NEAR = 10


def near_matches(value: Any, choices: Iterable[Any], limit: int = 3, *, are_files: bool = True) -> list[str]:
    """Return choices that look like ``value``, best first: by spelling, else by file name, whatever the case.

    A file's suffix counts for nothing: by it alone every model would look like every other.
    """
    stem = _stem if are_files else str.lower
    known = [str(choice) for choice in choices][:20_000]
    wanted = str(value)
    if len(wanted) > 300:
        return []
    lowered: dict[str, str] = {}
    for text in known:
        lowered.setdefault(stem(text), text)
        lowered.setdefault(stem(re.split(r"[\\/]", text)[-1]), text)
    found: list[str] = []
    for candidate in dict.fromkeys((stem(wanted), stem(re.split(r"[\\/]", wanted)[-1]))):
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
                problem = f"node {source} ({kind}) has {len(outputs)} output(s), so it has no output {slot}"
                problems.append(problem_at(node_id, node, name, value=value, type="bad_link_slot", problem=problem))
    return problems


def _remedy(failed_imports: Mapping[str, str]) -> str:
    if not failed_imports:
        return "install its custom node, or fix the name"
    failed = ", ".join(f"{name} ({why})" for name, why in [*failed_imports.items()][:5])
    more = f" and {len(failed_imports) - 5} more" if len(failed_imports) > 5 else ""
    return f"if it is of a custom node that ComfyUI could not import, repair that: {failed}{more}"


# --- files ------------------------------------------------------------------------------------------------

#: Inputs that custom loaders use for a file or folder without marking them.
_PATH_INPUT = re.compile(
    r"^(image|images|mask|audio|video|file|files|folder|directory|dir|path|model_file|filename|image_path"
    r"|.*_(path|file|dir|directory|folder|filepath|filename))$"
)
_PREFIX = "filename_prefix"
_ANNOTATION = re.compile(r"^(?P<name>.*?) ?\[(?P<folder>input|output|temp)\]$", re.DOTALL)
_WINDOWS_DRIVE = re.compile(r"^[A-Za-z]:[\\/]")
#: What may be a file's name within an object whose keys are not known: a line that ends with a suffix.
_LIKE_A_FILE = re.compile(r"[^\n]*\.[A-Za-z]\w{0,11}( ?\[\w+\])?\Z", re.ASCII)
#: PATH_MAX of Linux: nothing longer can be opened.
_MAX_PATH = 4096
#: A JPEG in base64, which is the one format that begins with a slash there.
_BASE64_JPEG = re.compile(r"/9j/[A-Za-z0-9+/\s]{60,}={0,2}\s*$")


def _inputs(workflow: Workflow, registry: NodeRegistry) -> Iterator[tuple[str, Mapping[str, Any], str, Any, Any]]:
    """Yield (node id, node, name, value, spec) of every input."""
    for node_id, node in workflow.items():
        for name, value in node["inputs"].items():
            yield node_id, node, name, value, registry.spec(node["class_type"], name)


def load_problems(workflow: Workflow, registry: NodeRegistry, files: Mapping[str, str | None]) -> list[Problem]:
    """Return every file of the input folder that the workflow names, by the registry's upload marks, and cannot load.

    ``files`` came with the job, by name, with what bars a core loader from them.
    """
    problems: list[Problem] = []
    for node_id, node, name, value, spec in _inputs(workflow, registry):
        for text in texts(name, value) if upload_kind(spec) else ():
            is_choice = "." not in text.text and text.text in (choices_of(spec) or ())  # Load3D's "none"
            if text.name != name or not text.text or is_choice:
                continue
            match = _ANNOTATION.match(text.text)
            given = match["name"] if match else text.text
            key, shown = posixpath.normpath(given), given[:200]
            if key not in files:
                problem = f"loads {shown!r}, which did not come with the job: add it to `images` or `files`"
                more = {"problem": problem, "near": near_matches(given, files)}
            elif files[key] and registry.is_core(node["class_type"]):
                more = {"problem": f"loads {shown!r}: {files[key]}"}
            else:
                continue
            problems.append(problem_at(node_id, node, name, value=shown, **more))
    return problems


def path_problems(workflow: Workflow, registry: NodeRegistry, own: Collection[str] = ()) -> list[Problem]:
    """Return inputs that would make ComfyUI read or write outside the job's own folders.

    LoadImage opens absolute names and ``../`` gladly, and names annotated "[output]" or "[temp]" point at folders that
    are wiped between jobs. Load3D does so with the names within its `image`. ``own``: full paths of the job's own
    models, which custom loaders may be given: no file is written under them, and no problem shows them.
    """
    problems: list[Problem] = []
    for node_id, node, name, value, spec in _inputs(workflow, registry):
        for text in texts(name, value):
            is_own = text.text in own
            if (is_own and name != _PREFIX) or not _may_be_path(name, text, spec):
                continue
            if problem := _broken_rule(name, text.text, spec):
                shown = "a model's full path" if is_own else text.text[:200]
                problems.append(problem_at(node_id, node, name, value=shown, **problem))
    return problems


def _may_be_path(name: str, text: Text, spec: Any) -> bool:
    if len(text.text) > _MAX_PATH:
        return False
    if text.is_inside:
        return bool(_PATH_INPUT.match(name) or _PATH_INPUT.match(text.name) or _LIKE_A_FILE.match(text.text))
    choices = choices_of(spec)
    if upload_kind(spec) or _PATH_INPUT.match(name) or name == _PREFIX:
        return bool(upload_kind(spec)) or text.text not in (choices or ())
    # A combo names one of its choices; a class with a check of its own may take more (LoadLatent does).
    return choices is not None and text.text not in choices


def _broken_rule(name: str, text: str, spec: Any) -> Problem | None:
    """Return the rule that a string breaks, with advice for what it names: an input file, a model, or where to save."""
    match = _ANNOTATION.match(text)
    if match and match["folder"] != "input" and (upload_kind(spec) or _LIKE_A_FILE.match(match["name"])):
        where = f"ComfyUI's {match['folder']} folder, which is wiped between jobs"
        return {"problem": f"names {where}: send the file with the job"}
    path = match["name"] if match else text
    if "\0" in path:
        return {"problem": "holds a NUL character"}
    if path.startswith(("/", "\\", "~")) or _WINDOWS_DRIVE.match(path):
        if _BASE64_JPEG.match(path):
            advice = "send it under `images` and give its name here"
            return {"problem": f"is a picture in base64, not a name: {advice}"} if upload_kind(spec) else None
        rule = "is an absolute path"
    elif ".." in re.split(r"[\\/]", path):
        rule = 'leaves its folder with ".."'
    else:
        return None
    if name == _PREFIX:
        return {"problem": f'{rule}: files are saved below ComfyUI\'s output folder; give a name, or "folder/name"'}
    choices = choices_of(spec)
    if path.lower().endswith(SUFFIXES):
        file = re.split(r"[\\/]", path)[-1]
        advice = f"name the model as ComfyUI lists it, below its folder of models, such as {file[:100]!r}"
        return {"problem": f"{rule}: {advice}", "near": near_matches(file, choices or ())}
    if choices is not None and not upload_kind(spec):
        return {"problem": f"{rule}: give one of this input's choices", "near": near_matches(path, choices)}
    return {"problem": f"{rule}: send the file with the job and name it as you named it there"}


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
