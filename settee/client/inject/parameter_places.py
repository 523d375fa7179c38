"""``--steps``, ``--cfg``, ``--width`` … where a workflow has one obvious place for them."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from settee.base.text import one_line
from settee.client.client_errors import Ambiguous, UsageError
from settee.client.inject import Change
from settee.client.inject.selectors import LiveGraph, about, near
from settee.comfyui.graph import Place, reached
from settee.comfyui.node_registry import UNKNOWN, NodeRegistry, choices_of, options_of
from settee.comfyui.workflow import Workflow, is_link, links, listed_nodes, natural_key


@dataclass(frozen=True)
class Parameters:
    """The values to set; None and () leave the input as it is."""

    steps: int | None = None
    cfg: float | None = None
    #: Pixels.
    width: int | None = None
    height: int | None = None
    #: 0 to 1.
    denoise: float | None = None
    sampler: str | None = None
    scheduler: str | None = None
    ckpt: str | None = None
    #: ``NAME`` or ``NAME:STRENGTH``, one for each loader.
    lora: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Kind:
    """One parameter: its input, and its limits."""

    input: str
    #: The type its values have: int, float (whole ones too) or str.
    type: type
    least: float = 0
    most: float = math.inf
    #: Classes whose input of that name is another thing.
    not_in: tuple[str, ...] = ()
    #: Inputs that a caller may mean instead, named where there is no place.
    like: tuple[str, ...] = ()


_HOOKS = ("CreateHookModelAsLora", "CreateHookModelAsLoraModelOnly")
_KINDS = {
    "steps": _Kind("steps", int, 1, 10_000, ("ExtendIntermediateSigmas", "TrainLoraNode", "SaveLoRANode")),
    "cfg": _Kind("cfg", float, 0, 100, like=("cfg_conds", "cfg_cond2_negative", "guidance")),
    "width": _Kind("width", int, 1, 16_384),
    "height": _Kind("height", int, 1, 16_384),
    "denoise": _Kind("denoise", float, 0, 1, ("SplitSigmasDenoise",)),
    "sampler": _Kind("sampler_name", str),
    "scheduler": _Kind("scheduler", str),
    "ckpt": _Kind("ckpt_name", str, not_in=_HOOKS, like=("unet_name",)),
}
_SIZES = ("width", "height")


def parameter_changes(workflow: Workflow, parameters: Parameters, registry: NodeRegistry = UNKNOWN) -> list[Change]:
    """Return the changes that these parameters ask for.

    - A place is an input of that name (``sampler_name``, ``ckpt_name``) in a node that an output is made from,
      whatever its class; a linked one is set in the primitive it comes from.
    - ``width`` and ``height`` are those of the latent that the sampler starts from, and of nodes that scale it on its
      way to the next one. Without samplers (API nodes), of the one node that has them.
    - Several places are set together where their present values are equal and their samplers go on from each other's
      latent (base and refiner, high and low noise), or, for ``ckpt``, where they load the same file. Anything else is
      Ambiguous: two passes of their own settings, or a helper's sampler (depth, upscaling) next to the main one.
    - ``lora``: see :func:`settee.client.inject.parameter_places.lora_changes`.

    Raises UsageError for a value out of range, for a parameter without a place, and for a place that another node
    computes; Ambiguous names the candidates. Each names the ``--set`` that does it instead.
    """
    asked = {name: value for name, value in vars(parameters).items() if name != "lora" and value is not None}
    if not asked and not parameters.lora:
        return []
    graph = _Samplers(workflow, registry)
    changes: dict[Place, Change] = {}
    for name, value in asked.items():
        if problem := _misfit(name, value):
            raise UsageError(f"--{name}{problem}")
        with about(f"--{name}"):
            places = _places(graph, name, [_KINDS[each].input for each in asked])
        for place in places:
            _check_fit(graph, name, place, value)
            other = changes.setdefault(place, Change(place.node_id, place.input, value, f"--{name}"))
            if other.value != value:
                where = graph.shown(place.node_id)
                raise UsageError(f"{other.why} and --{name} both come from node {where}: give them the same value")
    return [*changes.values(), *lora_changes(graph, parameters.lora)]


# --- samplers and their latents -----------------------------------------------------------------------------

#: Inputs that take a latent, by their names in ComfyUI and in the usual packs.
_LATENT = re.compile(r"(?:init_)?(?:latents?(?:_image)?|samples)\d*")
#: Inputs that a node has in addition to a latent when it samples; a scheduler (LTXVScheduler) or conditioning
#: (LTXVAddGuide) may take a latent too.
_SAMPLING = frozenset(["sigmas", "sampler", "sampler_name", "guider", "cfg"])


class _Samplers(LiveGraph):
    """A graph, and the nodes in it that sample: they take a latent, and sigmas, a guider, cfg or a sampler by name."""

    @cached_property
    def samplers(self) -> list[str]:
        sampling = [i for i, node in self.live.items() if not _SAMPLING.isdisjoint(node["inputs"])]
        return [node_id for node_id in sampling if self._latents_of(node_id)]

    def _latents_of(self, node_id: str) -> list[str]:
        found = [source for name, source, _ in links(self.workflow[node_id]) if _LATENT.fullmatch(name)]
        return [source for source in found if source in self.workflow]

    def _behind(self, node_ids: Iterable[str]) -> set[str]:
        """Return every node that the latents of these come through, by way of latents only."""
        starts = [source for node_id in node_ids for source in self._latents_of(node_id)]
        return set(reached(starts, lambda i: self.sources(i) if self.is_reroute(i) else self._latents_of(i)))

    def sized(self) -> list[str]:
        """Return the nodes whose width and height are the picture's, in natural order: those that the samplers' latents
        come from or through; without samplers, all."""
        nodes = self._behind(self.samplers) if self.samplers else self.live
        return sorted((i for i in nodes if {*_SIZES} <= set(self.workflow[i]["inputs"])), key=natural_key)

    def in_sequence(self, node_ids: Collection[str]) -> bool:
        """Return True if these nodes (samplers, or what feeds or sizes them) all belong to one row of samplers.

        A row: each sampler but the first goes on from the latent of another of them.
        """
        if len(node_ids) < 2:
            return True
        owners = [self._owners(node_id) for node_id in node_ids]
        row = set().union(*owners)
        return all(owners) and len([each for each in row if not row & self._behind([each]) - {each}]) == 1

    def _owners(self, node_id: str) -> set[str]:
        """Return the samplers that a node is, or that use what it makes; not through another sampler."""
        users = reached([node_id], lambda i: () if i in self.samplers else (use.node_id for use in self.live_uses(i)))
        return set(users).intersection(self.samplers)


# --- places -------------------------------------------------------------------------------------------------


def _places(graph: _Samplers, name: str, also: Sequence[str]) -> list[Place]:
    """Return where a parameter goes, in natural order; a primitive may feed inputs ``also`` that are asked for.

    Raises UsageError for nowhere, Ambiguous for too many places.
    """
    kind = _KINDS[name]
    asked = [Place(i, kind.input) for i in (graph.sized() if name in _SIZES else graph.live) if _has(graph, i, kind)]
    if not asked:
        raise UsageError(_nowhere(graph, name))
    places: dict[Place, Place] = {}
    for one in asked:
        places.setdefault(graph.only_place(one.node_id, one.input, also), one)
    values = [graph.value(place) for place in places]
    together = name == "ckpt" or graph.in_sequence([one.node_id for one in places.values()])
    if len(places) > 1 and (any(value != values[0] for value in values) or not together):
        example, listed = next(iter(places)).shown(), _listed(graph, places.values())
        raise Ambiguous(f"{len(places)} nodes have it; set the one you mean (--set {example}=…):\n{listed}")
    return list(places)


def _has(graph: _Samplers, node_id: str, kind: _Kind) -> bool:
    value = graph.value(Place(node_id, kind.input))
    is_one = isinstance(value, str if kind.type is str else (int, float)) and not isinstance(value, bool)
    return (is_one or is_link(value)) and graph.class_of(node_id) not in kind.not_in


def _nowhere(graph: _Samplers, name: str) -> str:
    message = "this workflow has no place for it"
    if name in _SIZES and graph.samplers:
        message += ": the sampler does not start from a latent of a size that is given"
    inputs = (_KINDS[name].input, *_KINDS[name].like)
    nodes = sorted(graph.workflow, key=natural_key)
    others = [Place(i, input) for i in nodes for input in inputs if input in graph.workflow[i]["inputs"]]
    if not others:
        return message
    return f"{message}; if you mean one of these, --set {others[0].shown()}=…\n{_listed(graph, others)}"


def _listed(graph: _Samplers, places: Iterable[Place]) -> str:
    lines = []
    for place in places:
        value = graph.value(place)
        now = f"from node {value[0]}" if is_link(value) else repr(value)
        lines.append(f"  {graph.shown(place.node_id)}: {place.input} is {one_line(now, 60)}")
    return "\n".join(lines)


# --- values -------------------------------------------------------------------------------------------------


def _misfit(name: str, value: Any) -> str | None:
    kind = _KINDS[name]
    if kind.type is str:
        return None if isinstance(value, str) and value.strip() else ": give a name"
    is_whole = kind.type is int
    is_number = isinstance(value, int if is_whole else (int, float)) and not isinstance(value, bool)
    if is_number and kind.least <= value <= kind.most:
        return None
    return f" {value}: must be a {'whole ' if is_whole else ''}number from {kind.least:g} to {kind.most:g}"


def _check_fit(graph: _Samplers, name: str, place: Place, value: Any) -> None:
    """Check the value against the inputs' declared limits. Raises UsageError for what they would cut or refuse."""
    for target in graph.fed_by(place):
        if target.input == _KINDS[name].input and (problem := _unfit(graph, name, target, value)):
            raise UsageError(f"--{name} {value}: node {graph.shown(target.node_id)} {problem}")


def _unfit(graph: _Samplers, name: str, place: Place, value: Any) -> str | None:
    choices, limits = choices_of(graph.spec(place)) or (), options_of(graph.spec(place))
    # Files (ckpt) may be there by the time the job runs: the worker fetches what it lacks.
    if name in ("sampler", "scheduler") and choices and value not in choices:
        return f"does not know it; {near(value, map(str, choices))}"
    if _KINDS[name].type is str:
        return None
    least, most = limits.get("min"), limits.get("max")
    if isinstance(least, (int, float)) and value < least:
        return f"takes no less than {least}"
    if isinstance(most, (int, float)) and value > most:
        return f"takes no more than {most}"
    if name in _SIZES:
        # ComfyUI rounds the size of a latent down without a word.
        step = limits.get("step", 8 if graph.samplers else 1)
        if isinstance(step, int) and step > 1 and value % step:
            below = value - value % step
            sizes = " or ".join(str(size) for size in (below, below + step) if size)
            return f"takes multiples of {step} only: {sizes}"
    return _unreached(graph, value, place.node_id) if name == "steps" else None


def _unreached(graph: _Samplers, steps: int, node_id: str) -> str | None:
    """KSamplerAdvanced's share of the steps stays as it is; it must still lie within them."""
    for name in ("start_at_step", "end_at_step"):
        if name in graph.workflow[node_id]["inputs"]:
            try:
                at = graph.value(graph.place(node_id, name))
            except UsageError:  # computed, maybe from the steps
                continue
            # 10,000 is how its editor writes "to the end".
            if isinstance(at, int) and 0 < at < 10_000 and steps <= at:
                return f"has {name} {at}, which {steps} steps do not reach: set that one too, with --set"
    return None


# --- LoRAs --------------------------------------------------------------------------------------------------

_STRENGTHS = ("strength_model", "strength_clip")
#: ComfyUI's limit.
_MAX_STRENGTH = 100.0


@dataclass(frozen=True)
class Lora:
    """A LoRA by name, and how strongly it is applied; None leaves the loader's strength as it is."""

    name: str
    strength: float | None = None


def parse_lora(text: str) -> Lora:
    """Parse ``NAME`` or ``NAME:STRENGTH``. Raises UsageError."""
    name, colon, number = text.rpartition(":")
    if not colon:
        name, number = text, ""
    try:
        strength = float(number) if colon else None
    except ValueError:
        strength = math.nan
    if not name.strip() or (strength is not None and not -_MAX_STRENGTH <= strength <= _MAX_STRENGTH):
        raise UsageError(f"--lora {text}: write NAME or NAME:STRENGTH, such as style.safetensors:0.8")
    return Lora(name, strength)


def lora_changes(graph: LiveGraph, texts: Sequence[str]) -> list[Change]:
    """Return the changes for these LoRAs: in natural order of the loaders' ids, and as many as there are loaders.

    Loaders of the same file (one for each of two models) count as one. A strength goes to the model's and the
    text encoder's alike, each LoRA with its own. No loader is added or taken out. Raises UsageError for a workflow
    without LoRA loaders, Ambiguous for another number of them, or where one strength would replace different ones.
    """
    loras = [parse_lora(text) for text in texts]
    if not loras:
        return []
    # By file; a linked name is a loader of its own.
    groups: dict[str, list[str]] = {}
    for node_id, node in graph.live.items():
        name = node["inputs"].get("lora_name")
        if name is not None:
            groups.setdefault(name if isinstance(name, str) else f"\0{node_id}", []).append(node_id)
    if not groups:
        raise UsageError("--lora: this workflow has no node that loads a LoRA; add one in the editor")
    if len(groups) != len(loras):
        loaders = [node_id for node_ids in groups.values() for node_id in node_ids]
        lines = [f"\n  {graph.shown(i)}: {graph.workflow[i]['inputs']['lora_name']}" for i in loaders]
        raise Ambiguous(
            f"--lora: {len(loras)} given, and the workflow has {len(groups)}; give as many (by node id, lowest first), "
            f"or set the one you mean (--set {Place(loaders[0], 'lora_name').shown()}=…):" + "".join(lines)
        )
    changes: list[Change] = []
    for lora, node_ids in zip(loras, groups.values(), strict=True):
        with about(f"--lora {lora.name}"):
            changes += _lora_changes(graph, lora, node_ids)
    return changes


def _lora_changes(graph: LiveGraph, lora: Lora, node_ids: Sequence[str]) -> Iterator[Change]:
    present = [[graph.workflow[node_id]["inputs"].get(name) for name in _STRENGTHS] for node_id in node_ids]
    if lora.strength is not None and any(strengths != present[0] for strengths in present):
        raise Ambiguous(
            "several nodes load it, each with a strength of its own; give the name alone, and their strengths with "
            f"--set:\n{listed_nodes(graph.workflow, node_ids)}"
        )
    for node_id in node_ids:
        wanted: dict[str, str | float] = {"lora_name": lora.name}
        if lora.strength is not None:
            wanted |= {name: lora.strength for name in _STRENGTHS if name in graph.workflow[node_id]["inputs"]}
            if len(wanted) == 1:
                raise UsageError(f"node {graph.shown(node_id)} has no strength to set")
        for name, value in wanted.items():
            place = graph.only_place(node_id, name)
            yield Change(place.node_id, place.input, value, "--lora")
