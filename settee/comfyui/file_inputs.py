"""Inputs that name files: which must have come with the job, and which lead outside its folders. Pure functions."""

from __future__ import annotations

import posixpath
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from settee.comfyui.model_folders import SUFFIXES
from settee.comfyui.node_registry import NodeRegistry, choices_of, upload_kind
from settee.comfyui.problems import near_matches
from settee.comfyui.workflow import Problem, Text, Workflow, problem_at, texts

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


def _texts(workflow: Workflow, registry: NodeRegistry) -> Iterator[tuple[str, Mapping[str, Any], str, Any, Text]]:
    """Yield (node id, node, input, its spec, a string in it) for every string of a workflow."""
    for node_id, node in workflow.items():
        for name, value in node["inputs"].items():
            spec = registry.spec(node["class_type"], name)
            for text in texts(name, value):
                yield node_id, node, name, spec, text


def load_problems(workflow: Workflow, registry: NodeRegistry, files: Mapping[str, str | None]) -> list[Problem]:
    """Return every file of the input folder that the workflow names, by the registry's upload marks, and cannot load.

    ``files`` came with the job, by name, with what bars a core loader from them.
    """
    problems: list[Problem] = []
    for node_id, node, name, spec, text in _texts(workflow, registry):
        if not upload_kind(spec) or text.name != name or _is_no_file(text.text, spec):
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


def _is_no_file(text: str, spec: Any) -> bool:
    """Return True for a choice that stands for no file: Load3D's "none", the empty mask of a Painter."""
    return not text or ("." not in text and text in (choices_of(spec) or ()))


def path_problems(workflow: Workflow, registry: NodeRegistry, own: Collection[str] = ()) -> list[Problem]:
    """Return inputs that would make ComfyUI read or write outside the job's own folders.

    LoadImage opens absolute names and ``../`` gladly, and names annotated "[output]" or "[temp]" point at folders that
    are wiped between jobs. Load3D does so with the names within its `image`. ``own``: full paths of the job's own
    models, which custom loaders may be given: no file is written under them, and no problem shows them.
    """
    problems: list[Problem] = []
    for node_id, node, name, spec, text in _texts(workflow, registry):
        is_own = text.text in own
        if (is_own and name != _PREFIX) or not _may_be_path(name, text, spec):
            continue
        if problem := _problem(name, text.text, spec):
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


def _problem(name: str, text: str, spec: Any) -> Problem | None:
    """The rule that a text breaks, with advice for what it names: an input file, a model, or where to save."""
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
