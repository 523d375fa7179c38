"""The models that a workflow names: which entries supply them, and advice for those that are missing. Pure functions.

`/object_info` lists a combo's choices, not the folder they come from, and does not exist yet while ComfyUI starts. So a
model is recognised by its suffix, wherever it stands among a node's inputs, and an entry supplies it when the name is
the end of the entry's path. Inputs of well-known loaders have a known folder, which decides between namesakes.

Missing models are reported twice: before ComfyUI is asked, for the core loaders only, whose combos mean what they list
(a custom node may bring a check of its own that `/object_info` does not show); and from ComfyUI's own refusal, which is
final for all others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

from settee.base.errors import ModelMissing, WorkflowRejected
from settee.comfyui.model_folders import SUFFIXES, folders_of
from settee.comfyui.node_registry import NodeRegistry, choices_of
from settee.comfyui.problems import MAX_NEAR, near_matches
from settee.comfyui.workflow import Problem, Workflow, problem_at, texts
from settee.models.entry import ModelEntry

#: `embedding:name` within a prompt, with or without suffix.
_EMBEDDING = re.compile(r"embedding:([\w./\\-]+)")
_EMBEDDING_SUFFIX = re.compile(r"\.(safetensors|pt|bin)$")
#: No file name is longer, and prompts are: they are not searched for suffixes.
_MAX_NAME = 512


@dataclass(frozen=True)
class Named:
    """A model as a node names it."""

    node_id: str
    class_type: str
    input: str
    #: As written: ``sdxl/base.safetensors``.
    value: str
    #: Folders below models that this input reads; empty when that is not known.
    folders: tuple[str, ...] = ()

    @cached_property
    def parts(self) -> tuple[str, ...]:
        return tuple(part for part in re.split(r"[\\/]", self.value.lower()) if part not in ("", "."))

    @cached_property
    def stem(self) -> str:
        """Return the beginning of the names of files that this may mean."""
        return _EMBEDDING_SUFFIX.sub("", self.parts[-1])


def named_models(workflow: Workflow) -> list[Named]:
    """Return every model that the workflow names, in the order of its nodes; the same name at one input once."""
    found: dict[Named, None] = {}
    for node_id, node in workflow.items():
        class_type = node["class_type"]
        for name, value in node["inputs"].items():
            for _, text, _ in texts(name, value):
                # A prompt may well end with the name of a model.
                if "embedding:" in text:
                    for match in _EMBEDDING.finditer(text):
                        found[Named(node_id, class_type, name, match[1], ("embeddings",))] = None
                elif text.lower().endswith(SUFFIXES) and len(text) <= _MAX_NAME and "\n" not in text:
                    found[Named(node_id, class_type, name, text, folders_of(class_type, name))] = None
    return list(found)


def naming_repositories(workflow: Workflow, entries: Iterable[ModelEntry]) -> list[ModelEntry]:
    """Return entries of whole repositories whose folder a node names, by itself or at the beginning of a path."""
    repositories = [entry for entry in entries if entry.is_repository]
    if not repositories:
        return []
    parts: set[str] = set()
    for node in workflow.values():
        for name, given in node["inputs"].items():
            for _, text, _ in texts(name, given):
                parts.update(re.split(r"[\\/]", text.lower()) if len(text) <= _MAX_NAME else ())
    return [entry for entry in repositories if entry.name.lower() in parts]


def supplying(named: Named, entries: Iterable[ModelEntry]) -> list[ModelEntry]:
    """Return the entries whose file ``named`` may mean: in the folders its input reads, else wherever its name fits."""
    fitting = [entry for entry in entries if _fits(named, entry)]
    meant = [entry for entry in fitting if entry.target.split("/")[0] in named.folders]
    return meant or ([] if named.folders == ("embeddings",) else fitting)


def wanted(workflow: Workflow, entries: Iterable[ModelEntry]) -> dict[str, ModelEntry]:
    """Return the entries that the workflow needs, by their paths."""
    entries = list(entries)
    if not entries:
        return {}
    supplied = [entry for named in named_models(workflow) for entry in supplying(named, entries)]
    found: dict[str, ModelEntry] = {}
    for entry in (*supplied, *naming_repositories(workflow, entries)):
        found.setdefault(str(entry.path), entry)
    return found


def _fits(named: Named, entry: ModelEntry) -> bool:
    if entry.is_repository:
        return entry.name.lower() in named.parts[:-1]
    # Nearly all end here, and a workflow may have thousands of names for thousands of entries.
    if not named.parts or not entry.name.lower().startswith(named.stem):
        return False
    path = str(entry.path).lower()
    if named.folders == ("embeddings",):
        path = re.sub(r"\.\w+$", "", path)
        wanted = tuple(_EMBEDDING_SUFFIX.sub("", part) for part in named.parts)
    else:
        wanted = named.parts
    # The first folder is ComfyUI's, and not part of a name.
    inner = tuple(path.split("/"))[1:]
    return bool(wanted) and inner[-len(wanted) :] == wanted


# --- missing models ----------------------------------------------------------------------------------------


def missing_models(workflow: Workflow, registry: NodeRegistry, entries: Sequence[ModelEntry]) -> list[Problem]:
    """Return a problem for every model of a core loader that neither exists nor is supplied by an entry."""
    problems: list[Problem] = []
    for named in named_models(workflow):
        if not named.folders or not registry.is_core(named.class_type):
            continue
        choices = choices_of(registry.spec(named.class_type, named.input))
        if choices is None or named.value in choices:
            continue
        if any(entry.target.split("/")[0] in named.folders for entry in supplying(named, entries)):
            continue
        # Each search costs milliseconds, with thousands of models on a volume a hundred of them.
        looked_through = [*choices, *names_of(entries)] if len(problems) < MAX_NEAR else []
        node_id, name, value = named.node_id, named.input, named.value
        near = {"near": near_matches(value, looked_through), **_advice(value, named.folders, entries)}
        if len(problems) < MAX_NEAR and (other := _in_another_folder(named, registry)):
            near |= other
        problem = problem_at(node_id, workflow[node_id], name, value=value[:200], type="model_missing", **near)
        problems.append(problem)
    return problems


def _in_another_folder(named: Named, registry: NodeRegistry) -> Problem | None:
    """Return what is wrong with a name whose file exists, but in a folder that another loader reads."""
    for class_type in filter(registry.is_core, registry):
        for name, spec in registry.inputs(class_type).items():
            folders = folders_of(class_type, name)
            if not folders or set(folders) & set(named.folders):
                continue
            for choice in choices_of(spec) or ():
                if re.split(r"[\\/]", str(choice).lower())[-1] == named.parts[-1]:
                    return {
                        "problem": f"no model {named.value[:200]!r} in {named.folders[0]}, where this node looks, but "
                        f"{folders[0]} has it: move it there, or load it with {class_type}",
                        "near": [choice],
                    }
    return None


def _advice(value: str, folders: Sequence[str], entries: Sequence[ModelEntry]) -> Problem:
    folder = folders[0] if folders else "FOLDER"
    subfolder, _, name = value.replace("\\", "/").rpartition("/")
    target = f"{folder}{f'/{subfolder}' if subfolder else ''}"
    elsewhere = next((entry for entry in entries if entry.name == name), None)
    if elsewhere is not None:
        position, place = elsewhere.position, elsewhere.target
        if place.split("/")[0] in folders:
            problem = f"{position} is in place in {place}, but ComfyUI does not list {value[:200]!r} there"
            return {"problem": f"{problem}: the models folder must be one that this ComfyUI reads"}
        problem = f"no model {value[:200]!r} where this node looks: {position} puts it into {place}"
        return {"problem": f"{problem}; let its Target be {target}", "add": f"…:{target}"}
    add = f"ORG/REPO:{name}:{target}"
    return {
        "problem": f"no model {value[:200]!r} on this worker, and no entry of MODELS supplies it: "
        f"add {add} (with its real repository) to MODELS, or to the job's models",
        "add": add,
    }


def as_missing(
    error: WorkflowRejected, workflow: Workflow, entries: Sequence[ModelEntry]
) -> WorkflowRejected | ModelMissing:
    """Return ComfyUI's refusal as ModelMissing when it is about models only; else with advice for those."""
    problems = error.details.get("problems")
    if not isinstance(problems, list):
        return error
    named = {(item.node_id, item.input, item.value): item for item in named_models(workflow)}
    explained: list[Problem] = []
    for problem in problems:
        value = problem.get("value")
        if problem.get("type") == "value_not_in_list" and isinstance(value, str) and value.lower().endswith(SUFFIXES):
            known = named.get((str(problem.get("node_id")), str(problem.get("input")), value))
            near = [*problem.get("near", ())]
            if len(explained) < MAX_NEAR:
                near += near_matches(value, names_of(entries))
            advice = _advice(value, known.folders if known else (), entries)
            problem = {**problem, **advice, "type": "model_missing", "near": list(dict.fromkeys(near))[:3]}
        explained.append(problem)
    all_models = explained and all(problem.get("type") == "model_missing" for problem in explained)
    return (ModelMissing if all_models else WorkflowRejected).from_problems(explained, "workflow")


def names_of(entries: Iterable[ModelEntry]) -> list[str]:
    """Return the entries as a workflow would name them: below their first folder."""
    return ["/".join(entry.path.parts[1:]) for entry in entries]
