"""From what a caller wishes for to a workflow that is ready to be sent: every change, and the files that go with it."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from settee.client.client_errors import UsageError
from settee.client.inject import Change, Given, InputFile, applied
from settee.client.inject.media_files import media_changes
from settee.client.inject.parameter_places import Parameters, parameter_changes
from settee.client.inject.prompt_places import prompt_changes
from settee.client.inject.selectors import set_changes
from settee.comfyui.graph import Place
from settee.comfyui.node_registry import UNKNOWN, NodeRegistry
from settee.comfyui.rewrite import filled_prefixes
from settee.comfyui.seeds import DRAW_ONE, MAX_SEED, Draw, draw_seeds, random_seed
from settee.comfyui.workflow import Workflow


@dataclass(frozen=True, kw_only=True)
class Wishes:
    """The values to put into a workflow. Nothing that is unset is touched, except seeds, which are drawn again."""

    images: tuple[Given, ...] = ()
    masks: tuple[Given, ...] = ()
    videos: tuple[Given, ...] = ()
    audio: tuple[Given, ...] = ()
    prompt: str | None = None
    negative: str | None = None
    #: For every seed; None or -1 draws one for each that differs from the others now.
    seed: int | None = None
    keep_seed: bool = False
    parameters: Parameters = field(default_factory=Parameters)
    #: ``6.inputs.text=…``, ``Title.text=…``. They count for more than all else.
    sets: tuple[str, ...] = ()


@dataclass(frozen=True)
class Prepared:
    """A workflow as it will be sent."""

    workflow: Workflow = field(repr=False)
    changes: tuple[Change, ...] = ()
    files: tuple[InputFile, ...] = ()
    #: The seeds that were put in, by ``node.input``.
    seeds: dict[str, int] = field(default_factory=dict)
    #: The file as the editor saved it, for nodes that read it; None where it was API format.
    editor: dict[str, Any] | None = field(default=None, repr=False)
    #: Seeds that were to be drawn and could not be.
    warnings: tuple[str, ...] = ()


def prepared(
    workflow: Workflow,
    wishes: Wishes,
    registry: NodeRegistry = UNKNOWN,
    *,
    draw: Draw = random_seed,
) -> Prepared:
    """Find every place and its new value. Nothing is read or sent. Raises UsageError (Ambiguous)."""
    media, files = media_changes(
        workflow,
        images=wishes.images,
        masks=wishes.masks,
        videos=wishes.videos,
        audio=wishes.audio,
        registry=registry,
    )
    seeds, warnings = seed_changes(workflow, seed=wishes.seed, keep=wishes.keep_seed, registry=registry, draw=draw)
    found = [
        *media,
        *prompt_changes(workflow, prompt=wishes.prompt, negative=wishes.negative, registry=registry),
        *seeds,
        *parameter_changes(workflow, wishes.parameters, registry=registry),
    ]
    # Of what the rest has made of it, so that `--set` has the last word about one place of several.
    found += set_changes(applied(workflow, found), wishes.sets)
    if registry:
        # A -1 that was kept, or set; a worker's node registry decides where there is none here.
        late = draw_seeds(applied(workflow, found), registry, every=False, draw=draw)
        kept = as_changes(late.values)
        found, seeds, warnings = [*found, *kept], [*seeds, *kept], (*warnings, *late.stuck)
    prefixes = filled_prefixes(applied(workflow, found), time.localtime())
    found += [Change(place.node_id, place.input, value, "pattern") for place, value in prefixes.items()]
    last = {(change.node_id, change.input): change for change in found}
    changed = applied(workflow, last.values())
    return Prepared(
        workflow=changed,
        changes=tuple(last.values()),
        files=tuple(files),
        seeds={f"{c.node_id}.{c.input}": changed[c.node_id]["inputs"][c.input] for c in seeds},
        warnings=warnings,
    )


def seed_changes(
    workflow: Workflow,
    *,
    seed: int | None,
    keep: bool,
    registry: NodeRegistry = UNKNOWN,
    draw: Draw = random_seed,
) -> tuple[list[Change], tuple[str, ...]]:
    """Return the changes that set every seed to ``seed``, or with None or -1 to a drawn one; a line for each that
    cannot be set.

    ``keep`` changes nothing. Raises UsageError for a seed that ComfyUI does not take, and for one that has no place.
    """
    if keep and seed is not None:
        raise UsageError("--seed sets the seeds and --keep-seed keeps them: use one of the two")
    if keep:
        return [], ()
    given = None if seed == DRAW_ONE else seed
    if given is not None and not 0 <= given <= MAX_SEED:
        raise UsageError(f"--seed {str(seed)[:30]}: a seed is a whole number from 0 to {MAX_SEED}, or -1 to draw one")
    drawn = draw_seeds(workflow, registry, every=True, draw=draw if given is None else lambda least, most: given)
    if given is not None and not drawn.values:
        where = f" has no place; set it with --set where it is made: {'; '.join(drawn.stuck)}" if drawn.stuck else None
        raise UsageError(f"--seed{where or ': no node of this workflow has a seed'}")
    return as_changes(drawn.values), drawn.stuck


def as_changes(values: Mapping[Place, int]) -> list[Change]:
    return [Change(place.node_id, place.input, value, "seed") for place, value in values.items()]
