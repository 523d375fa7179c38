"""Seeds: which inputs hold one, and what they get."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator

from settee.client.changes import Change, shown_node
from settee.client.errors import UsageError
from settee.workflow import Workflow, is_link, natural_key

SEED_INPUTS = ("seed", "noise_seed")
#: What ComfyUI's own samplers take at most.
MAX_SEED = 2**64 - 1
#: Several API nodes refuse a larger one (their registry says so, and the client may not have it).
MAX_DRAWN = 2**31 - 1


def drawn_seed() -> int:
    """A random seed that every node takes, API nodes too."""
    return secrets.randbelow(MAX_DRAWN + 1)


def seed_changes(
    workflow: Workflow, *, seed: int | None, keep: bool, draw: Callable[[], int] = drawn_seed
) -> list[Change]:
    """Every literal whole number in an input named ``seed`` or ``noise_seed`` gets ``seed``, or with None a drawn one.

    Links are left alone, dead nodes are not: what a graph runs is ComfyUI's to say. Seeds that are equal now are drawn
    once and stay equal, so that two passes over one noise remain that. ``keep`` changes nothing.

    Raises UsageError for a seed that ComfyUI does not take, and for one that has no place.
    """
    if seed is None:
        if keep:
            return []
    elif keep:
        raise UsageError("--seed sets the seeds and --keep-seed keeps them: use one of the two")
    elif not 0 <= seed <= MAX_SEED:
        raise UsageError(f"--seed {str(seed)[:30]}: a seed is a whole number from 0 to {MAX_SEED}")
    changes = []
    drawn: dict[int, int] = {}
    for node_id, name, present in _seeds(workflow):
        if seed is None and present not in drawn:
            drawn[present] = draw()
        changes.append(Change(node_id, name, drawn[present] if seed is None else seed, "seed"))
    if seed is not None and not changes:
        raise UsageError(_no_place(workflow))
    return changes


def _seeds(workflow: Workflow) -> Iterator[tuple[str, str, int]]:
    for node_id in sorted(workflow, key=natural_key):
        inputs = workflow[node_id]["inputs"]
        for name in SEED_INPUTS:
            # JSON's true and false are Python's ints too.
            if type(inputs.get(name)) is int:
                yield node_id, name, inputs[name]


def _no_place(workflow: Workflow) -> str:
    linked = [
        f"{name} of {shown_node(workflow, node_id)} comes from {shown_node(workflow, value[0])}"
        for node_id in sorted(workflow, key=natural_key)
        for name, value in workflow[node_id]["inputs"].items()
        if name in SEED_INPUTS and is_link(value) and value[0] in workflow
    ]
    if not linked:
        return "--seed: no node of this workflow has a seed"
    return f"--seed: no seed is written in this workflow; set it with --set where it is made: {'; '.join(linked)}"
