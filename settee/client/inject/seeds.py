"""``--seed`` and ``--keep-seed``: the changes that they ask for."""

from __future__ import annotations

from collections.abc import Mapping

from settee.client.changes import Change
from settee.client.errors import UsageError
from settee.comfyui.literals import Place
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.seeds import DRAW_ONE, MAX_SEED, Draw, draw_seeds, find_seeds, random_seed
from settee.comfyui.workflow import ObjectInfo, Workflow


def seed_changes(
    workflow: Workflow,
    *,
    seed: int | None,
    keep: bool,
    object_info: ObjectInfo | None = None,
    draw: Draw = random_seed,
) -> tuple[list[Change], tuple[str, ...]]:
    """Every seed gets ``seed``, or with None or -1 a drawn one; a line for each that cannot be set.

    ``keep`` changes nothing. Raises UsageError for a seed that ComfyUI does not take, and for one that has no place.
    """
    if keep and seed is not None:
        raise UsageError("--seed sets the seeds and --keep-seed keeps them: use one of the two")
    if keep:
        return [], ()
    if seed is None or seed == DRAW_ONE:
        drawn = draw_seeds(workflow, NodeRegistry(object_info or {}), every=True, draw=draw)
        return as_changes(drawn.values), drawn.stuck
    if not 0 <= seed <= MAX_SEED:
        raise UsageError(f"--seed {str(seed)[:30]}: a seed is a whole number from 0 to {MAX_SEED}, or -1 to draw one")
    found, stuck = find_seeds(workflow, NodeRegistry(object_info or {}))
    if not found and stuck:
        raise UsageError(
            f"--seed has no place; set it with --set where it is made: {'; '.join(one.why for one in stuck)}"
        )
    if not found:
        raise UsageError("--seed: no node of this workflow has a seed")
    values = {one.place: seed for one in found}
    return as_changes(values), tuple(one.why for one in stuck if not one.is_behind(workflow, values))


def as_changes(values: Mapping[Place, int]) -> list[Change]:
    return [Change(place.node_id, place.input, value, "seed") for place, value in values.items()]
