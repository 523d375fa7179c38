"""Models that a workflow names and nobody has: said before it runs, with near matches and what to add.

Two looks. Before ComfyUI is asked, at the core loaders only, whose combos mean what they list; a custom node may bring
a check of its own that `/object_info` does not show. And at ComfyUI's own refusal, which is final for all others.
Pure functions.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any

from settee.comfyui.node_registry import NodeRegistry, choices_of
from settee.comfyui.problems import MAX_NEAR, near_matches
from settee.comfyui.workflow import Problem, Workflow
from settee.errors import ModelMissing, WorkflowRejected
from settee.models.entry import ModelEntry
from settee.models.needs import Named, folders_of, named_models, supplying
from settee.models.places import SUFFIXES


def missing_models(workflow: Workflow, registry: NodeRegistry, entries: Sequence[ModelEntry]) -> list[Problem]:
    """A problem for every model of a core loader that is neither there nor supplied by an entry."""
    problems: list[Problem] = []
    for named in named_models(workflow):
        choices = _choices(named, registry)
        if choices is None or named.value in choices:
            continue
        if any(entry.target.split("/")[0] in named.folders for entry in supplying(named, entries)):
            continue
        # Each search costs milliseconds, with thousands of models on a volume a hundred of them.
        looked_through = [*choices, *names_of(entries)] if len(problems) < MAX_NEAR else []
        problems.append(_problem(named, looked_through, entries))
        if len(problems) <= MAX_NEAR and (other := _in_another_folder(named, registry)):
            problems[-1] |= other
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


def _choices(named: Named, registry: NodeRegistry) -> list[Any] | None:
    if not named.folders or not registry.is_core(named.class_type):
        return None
    return choices_of(registry.spec(named.class_type, named.input))


def _problem(named: Named, choices: Iterable[Any], entries: Sequence[ModelEntry]) -> Problem:
    return {
        "path": f"workflow.{named.node_id}.inputs.{named.input}",
        "node_id": named.node_id,
        "class_type": named.class_type,
        "input": named.input,
        "value": named.value[:200],
        "type": "model_missing",
        **_advice(named.value, named.folders, entries),
        "near": near_matches(named.value, choices),
    }


def _advice(value: str, folders: Sequence[str], entries: Sequence[ModelEntry]) -> Problem:
    folder = folders[0] if folders else "FOLDER"
    subfolder, _, name = value.replace("\\", "/").rpartition("/")
    target = f"{folder}{f'/{subfolder}' if subfolder else ''}"
    elsewhere = next((entry for entry in entries if entry.name == name), None)
    if elsewhere is not None and elsewhere.target.split("/")[0] in folders:
        return {
            "problem": f"{elsewhere.position} is in place in {elsewhere.target}, but ComfyUI does not list "
            f"{value[:200]!r} there: the models folder must be one that this ComfyUI reads"
        }
    if elsewhere is not None:
        problem = (
            f"no model {value[:200]!r} where this node looks: {elsewhere.position} puts it into {elsewhere.target}"
        )
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
    """ComfyUI's refusal as ModelMissing, when models are all that it is about; else with advice where it is."""
    problems = error.details.get("problems")
    if not isinstance(problems, list):
        return error
    named = {(item.node_id, item.input, item.value): item for item in named_models(workflow)}
    told: list[Problem] = []
    all_models = bool(problems)
    for problem in problems:
        value = problem.get("value")
        is_model = (
            problem.get("type") == "value_not_in_list" and isinstance(value, str) and value.lower().endswith(SUFFIXES)
        )
        all_models = all_models and is_model
        if is_model:
            known = named.get((str(problem.get("node_id")), str(problem.get("input")), str(value)))
            near = [*problem.get("near", ())]
            if len(told) < MAX_NEAR:
                near += near_matches(value, names_of(entries))
            advice = _advice(str(value), known.folders if known else (), entries)
            problem = {**problem, **advice, "type": "model_missing", "near": list(dict.fromkeys(near))[:3]}
        told.append(problem)
    kind = ModelMissing if all_models else WorkflowRejected
    return kind.from_problems(told, "workflow")


def names_of(entries: Iterable[ModelEntry]) -> list[str]:
    """The entries as a workflow would name them: below their first folder."""
    return ["/".join(entry.path.parts[1:]) for entry in entries]


__all__ = ["as_missing", "missing_models", "names_of"]
