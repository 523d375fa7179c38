"""Chains of LoRA loaders, from the ones in a template: :func:`chained`.

A LoraLoader or LoraLoaderModelOnly of the template is a pattern: where it stands, the job's LoRAs are applied, each by
a copy of it with a name and strengths of its own. Without LoRAs it goes, and what used it takes the model and the
text encoder that it took. One whose title has the word "fixed" is the template's own, and stays as it is.

Loaders in a row share the LoRAs: the first applies the first, and so on, the last all that are left; those that get
none go. What takes from between two of a row gets what is applied up to there. Loaders next to each other (a base
model's and a refiner's, the two models of a video) each apply all of them.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator, Mapping, Sequence
from graphlib import TopologicalSorter
from typing import Any

from settee.comfyui.graph import Graph
from settee.comfyui.workflow import Workflow, links, natural_key, problem_at, texts, title
from settee.doors.agent.fields import refusal
from settee.doors.agent.graph.parameters import LoraUse

#: Class → the input that each of its outputs is made from.
_LOADERS: dict[str, tuple[str, ...]] = {"LoraLoader": ("model", "clip"), "LoraLoaderModelOnly": ("model",)}
#: Parameter → the input of a pattern that it is for.
PRIMARY = {
    "primary_lora_name": "lora_name",
    "primary_lora_strength_model": "strength_model",
    "primary_lora_strength_clip": "strength_clip",
}
_FIXED = re.compile(r"\bfixed\b", re.IGNORECASE)
#: Class → its output that is a model, and its output that is a text encoder, for templates without a pattern.
_SOURCES: dict[str, tuple[int | None, int | None]] = {
    **dict.fromkeys(
        ("CheckpointLoaderSimple", "CheckpointLoader", "unCLIPCheckpointLoader", "DiffusersLoader"), (0, 1)
    ),
    **dict.fromkeys(("ImageOnlyCheckpointLoader", "UNETLoader"), (0, None)),
    **dict.fromkeys(("CLIPLoader", "DualCLIPLoader", "TripleCLIPLoader", "QuadrupleCLIPLoader"), (None, 0)),
}
Link = tuple[str, int]


def is_pattern(node: Mapping[str, Any]) -> bool:
    """Return True if the job's LoRAs take this node's place."""
    return node["class_type"] in _LOADERS and not _FIXED.search(title(node))


def primary_problem(node: Mapping[str, Any], parameter: str, path: str) -> str | None:
    """Return why one of :data:`PRIMARY` has no effect here: the chain writes a pattern's LoRA values itself."""
    name, class_type = PRIMARY[parameter], node["class_type"]
    if name == "strength_clip" and "clip" not in _LOADERS[class_type]:
        return f"a {class_type} has no strength_clip: take the binding out, or make it a LoraLoader"
    return None if path == f"inputs.{name}" else f"at a {class_type} it goes to 'inputs.{name}' only"


def strings(node: Mapping[str, Any]) -> set[str]:
    """Return every string of a node's inputs: some loaders keep a LoRA in an object, ``{"on": true, "lora": …}``."""
    return {text.text for name, value in node["inputs"].items() for text in texts(name, value)}


def chained(workflow: Workflow, uses: Sequence[LoraUse]) -> Workflow:
    """Return a copy with one loader for each LoRA, in their order, wherever the template has a pattern for them.

    In a template without a pattern they go behind the one node that loads the model (and the one that loads the text
    encoder), except those that a node there names, a custom node's loader say. The first LoRA at a pattern keeps the
    pattern's id; new nodes get whole numbers that are free. Raises InvalidRequest where there is no such one node, or
    a pattern that must go has no model to pass on.
    """
    patterns = sorted((node_id for node_id, node in workflow.items() if is_pattern(node)), key=natural_key)
    if not patterns:
        named = set().union(*map(strings, workflow.values()))
        left = [use for use in uses if use.name not in named]
        return _inserted(workflow, left) if left else copy.deepcopy(workflow)
    depths, lasts = _in_rows(workflow, set(patterns))
    ids = _free_ids(workflow)
    changed = copy.deepcopy(workflow)
    moved: dict[Link, Link] = {}
    for pattern in patterns:
        outputs = _LOADERS[workflow[pattern]["class_type"]]
        mine = uses[depths[pattern] :] if pattern in lasts else uses[depths[pattern] :][:1]
        if mine:
            tail = _grow(changed, pattern, mine, ids)
            moved |= {(pattern, slot): (tail, slot) for slot in range(len(outputs))}
        else:
            took = {name: (source, slot) for name, source, slot in links(workflow[pattern])}
            moved |= {(pattern, slot): took[name] for slot, name in enumerate(outputs) if name in took}
            del changed[pattern]
    return _rewired(workflow, changed, moved)


def _in_rows(workflow: Workflow, patterns: set[str]) -> tuple[dict[str, int], set[str]]:
    """Return how many patterns each one has before it, on the longest way to it, and which have none behind."""
    graph, depths = Graph(workflow), dict[str, int]()
    sources = {node_id: graph.sources(node_id) for node_id in workflow}
    for node_id in TopologicalSorter(sources).static_order():  # without a loop: the workflow's shape was checked
        depths[node_id] = max((depths[source] + (source in patterns) for source in sources[node_id]), default=0)
    return depths, patterns - graph.needed(source for pattern in patterns for source in sources[pattern])


def _free_ids(workflow: Workflow) -> Iterator[str]:
    """Yield whole numbers above all of the workflow's: some custom nodes take their id for one."""
    numbers = [int(part) for node_id in workflow for part in node_id.split(":") if part.isascii() and part.isdigit()]
    number = max((number for number in numbers if number < 10**12), default=0)
    while True:
        number += 1
        if str(number) not in workflow:
            yield str(number)


def _grow(changed: Workflow, pattern: str, uses: Sequence[LoraUse], ids: Iterator[str]) -> str:
    """Make one loader for each LoRA, the pattern itself for the first; return the id of the last."""
    outputs, last = _LOADERS[changed[pattern]["class_type"]], pattern
    for at, use in enumerate(uses):
        if at:
            new = next(ids)
            changed[new] = copy.deepcopy(changed[pattern])
            changed[new]["inputs"] |= {name: [last, slot] for slot, name in enumerate(outputs)}
            last = new
        changed[last]["inputs"] |= {"lora_name": use.name, "strength_model": use.strength_model}
        if "clip" in outputs:
            changed[last]["inputs"]["strength_clip"] = use.strength_clip
    return last


def _rewired(workflow: Workflow, changed: Workflow, moved: Mapping[Link, Link]) -> Workflow:
    """Lead every link of the template to where its source is now; a chain's own links stay as they were made."""
    for node_id, node in workflow.items():
        if node_id not in changed:
            continue
        for name, source, slot in links(node):
            link = (source, slot)
            while link[0] not in changed and link in moved:
                link = moved[link]
            if link[0] not in changed:
                problem = (
                    f"it takes output {slot} of the LoRA loader {source!r}, which this job has no LoRA for, and which "
                    "takes nothing that could go in its place: link its model and clip in the template"
                )
                raise refusal([problem_at(node_id, node, name, problem=problem)], "workflow")
            changed[node_id]["inputs"][name] = list(moved.get(link, link))
    return changed


def _inserted(workflow: Workflow, uses: Sequence[LoraUse]) -> Workflow:
    """Put the LoRAs behind the nodes that load the model and the text encoder of a template without a pattern."""
    used = {(source, slot) for node in workflow.values() for _, source, slot in links(node)}
    sources: tuple[list[Link], list[Link]] = ([], [])
    for node_id, node in workflow.items():
        for found, output in zip(sources, _SOURCES.get(node["class_type"], (None, None)), strict=True):
            if output is not None and (node_id, output) in used:
                found.append((node_id, output))
    models, clips = sources
    if len(models) != 1 or len(clips) > 1:
        problem = (
            f"this job has LoRAs, and the template has no LoRA loader, and {len(models)} nodes that load a model and "
            f"{len(clips)} that load a text encoder: put a LoraLoader where they belong"
        )
        raise refusal([{"path": "loras", "problem": problem}], "workflow")
    pattern = next(_free_ids(workflow))
    class_type = "LoraLoader" if clips else "LoraLoaderModelOnly"
    ends = [*models, *clips]
    changed = _rewired(workflow, copy.deepcopy(workflow), {end: (pattern, slot) for slot, end in enumerate(ends)})
    inputs = {name: list(end) for name, end in zip(_LOADERS[class_type], ends, strict=True)}
    changed[pattern] = {"class_type": class_type, "inputs": inputs}
    return chained(changed, uses)
