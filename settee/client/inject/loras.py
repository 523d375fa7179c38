"""``--lora NAME[:STRENGTH]``: other LoRAs for the loaders that a workflow has."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from settee.client.changes import Change
from settee.client.errors import Ambiguous, UsageError
from settee.client.inject.selectors import only_place
from settee.comfyui.literals import Place
from settee.comfyui.workflow import Workflow, listed_nodes, natural_key, shown_node

_STRENGTHS = ("strength_model", "strength_clip")
#: ComfyUI's limit.
_MOST = 100.0


@dataclass(frozen=True)
class Lora:
    """A LoRA by name, and how strongly it is applied; None leaves the loader's strength as it is."""

    name: str
    strength: float | None = None


def parse_lora(text: str) -> Lora:
    """``NAME`` or ``NAME:STRENGTH``. Raises UsageError."""
    name, colon, number = text.rpartition(":")
    if not colon:
        name, number = text, ""
    try:
        strength = float(number) if colon else None
    except ValueError:
        strength = math.nan
    if not name.strip() or (strength is not None and not -_MOST <= strength <= _MOST):
        raise UsageError(f"--lora {text}: write NAME or NAME:STRENGTH, such as style.safetensors:0.8")
    return Lora(name, strength)


def lora_changes(workflow: Workflow, texts: Sequence[str], alive: Collection[str]) -> list[Change]:
    """The changes for these LoRAs: in natural order of the loaders' ids, and as many as there are loaders.

    Loaders of the same file (one for each of two models) count as one. A strength goes to the model's and the
    text encoder's alike, each LoRA with its own. No loader is added or taken out. Raises UsageError for a workflow
    without LoRA loaders, Ambiguous for another number of them, or where one strength would replace different ones.
    """
    loras = [parse_lora(text) for text in texts]
    if not loras:
        return []
    # By file; a linked name is a loader of its own.
    groups: dict[str, list[str]] = {}
    for node_id in sorted(alive, key=natural_key):
        name = workflow[node_id]["inputs"].get("lora_name")
        if name is not None:
            groups.setdefault(name if isinstance(name, str) else f"\0{node_id}", []).append(node_id)
    if not groups:
        raise UsageError("--lora: this workflow has no node that loads a LoRA; add one in the editor")
    if len(groups) != len(loras):
        lines = [
            f"  {shown_node(workflow, node_id)}: {workflow[node_id]['inputs']['lora_name']}"
            for node_ids in groups.values()
            for node_id in node_ids
        ]
        first = Place(next(iter(groups.values()))[0], "lora_name").shown()
        raise Ambiguous(
            f"--lora: {len(loras)} given, and the workflow has {len(groups)}; give as many (by node id, lowest first), "
            f"or set the one you mean (--set {first}=…):\n" + "\n".join(lines)
        )
    for lora, node_ids in zip(loras, groups.values(), strict=True):
        present = [[workflow[node_id]["inputs"].get(name) for name in _STRENGTHS] for node_id in node_ids]
        if lora.strength is not None and any(strengths != present[0] for strengths in present):
            raise Ambiguous(
                f"--lora {lora.name}: several nodes load it, each with a strength of its own; give the name alone, and "
                f"their strengths with --set:\n{listed_nodes(workflow, node_ids)}"
            )
    return [
        change
        for lora, node_ids in zip(loras, groups.values(), strict=True)
        for node_id in node_ids
        for change in _of_one(workflow, node_id, lora)
    ]


def _of_one(workflow: Workflow, node_id: str, lora: Lora) -> list[Change]:
    inputs = workflow[node_id]["inputs"]
    wanted: dict[str, str | float] = {"lora_name": lora.name}
    if lora.strength is not None:
        wanted |= {name: lora.strength for name in _STRENGTHS if name in inputs}
        if len(wanted) == 1:
            raise UsageError(f"--lora {lora.name}: node {shown_node(workflow, node_id)} has no strength to set")
    changes = []
    for name, value in wanted.items():
        try:
            place = only_place(workflow, node_id, name)
        except UsageError as error:
            raise UsageError(f"--lora {lora.name}: {error.message}") from error
        changes.append(Change(place.node_id, place.input, value, "--lora"))
    return changes
