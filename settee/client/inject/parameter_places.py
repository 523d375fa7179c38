"""``--steps``, ``--cfg``, ``--width`` … where a workflow has one obvious place for them."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

from settee.client.client_errors import Ambiguous, UsageError
from settee.client.inject import Change
from settee.client.inject.selectors import near, only_place, place_of
from settee.client.inject.workflow_graph import Graph, Samplers
from settee.comfyui.literals import Place, fed_by
from settee.comfyui.node_registry import UNKNOWN, NodeRegistry
from settee.comfyui.workflow import Workflow, is_link, listed_nodes, natural_key, shown_node, unwrapped


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
    not_in: frozenset[str] = frozenset()
    #: Inputs that a caller may mean instead, named where there is no place.
    like: tuple[str, ...] = ()


_KINDS = {
    "steps": _Kind("steps", int, 1, 10_000, frozenset(["ExtendIntermediateSigmas", "TrainLoraNode", "SaveLoRANode"])),
    "cfg": _Kind("cfg", float, 0, 100, like=("cfg_conds", "cfg_cond2_negative", "guidance")),
    "width": _Kind("width", int, 1, 16_384),
    "height": _Kind("height", int, 1, 16_384),
    "denoise": _Kind("denoise", float, 0, 1, frozenset(["SplitSigmasDenoise"])),
    "sampler": _Kind("sampler_name", str),
    "scheduler": _Kind("scheduler", str),
    "ckpt": _Kind(
        "ckpt_name",
        str,
        not_in=frozenset(["CreateHookModelAsLora", "CreateHookModelAsLoraModelOnly"]),
        like=("unet_name",),
    ),
}


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
    computes; Ambiguous names the candidates. Each says which ``--set`` does it instead.
    """
    changes = []
    asked = {field.name: getattr(parameters, field.name) for field in fields(parameters) if field.name != "lora"}
    asked = {name: value for name, value in asked.items() if value is not None}
    if not asked and not parameters.lora:
        return []
    search = _Search(Graph(workflow, registry))
    for name, value in asked.items():
        value = _checked(f"--{name}", value, _KINDS[name])
        for place in search.places(name):
            search.check_fit(name, place, value)
            changes.append(Change(place.node_id, place.input, value, f"--{name}"))
    search.check_shared(changes)
    return [*changes, *lora_changes(workflow, parameters.lora, search.graph.live)]


def _checked(option: str, value: Any, kind: _Kind) -> Any:
    """Return a value of the parameter's type within its limits. Raises UsageError."""
    if kind.type is str:
        if not isinstance(value, str) or not value.strip():
            raise UsageError(f"{option}: give a name")
        return value
    whole = kind.type is int
    limits = f"a {'whole ' if whole else ''}number from {kind.least:g} to {kind.most:g}"
    number = isinstance(value, int if whole else (int, float)) and not isinstance(value, bool)
    if not number or not kind.least <= value <= kind.most:
        raise UsageError(f"{option} {value}: must be {limits}")
    return value


class _Search:
    """The search for the places of parameters in one workflow."""

    def __init__(self, graph: Graph) -> None:
        self.graph, self.workflow = graph, graph.workflow
        self.samplers = Samplers(graph)

    def places(self, name: str) -> list[Place]:
        """Return where a parameter goes, in natural order. Raises UsageError for nowhere, Ambiguous for too many
        places."""
        kind = _KINDS[name]
        found = self._having(kind, self._sized() if name in ("width", "height") else self.graph.live)
        if not found:
            raise UsageError(self._nowhere(name, kind))
        places: dict[Place, str] = {}
        for node_id in found:
            try:
                places.setdefault(place_of(self.workflow, node_id, kind.input), node_id)
            except UsageError as error:
                raise UsageError(f"--{name}: {error.message}") from error
        values = [self._value(place) for place in places]
        together = name == "ckpt" or self.samplers.in_sequence(list(places.values()))
        if len(places) > 1 and (any(value != values[0] for value in values) or not together):
            raise Ambiguous(self._several(name, places))
        return list(places)

    def _having(self, kind: _Kind, node_ids: Iterable[str]) -> list[str]:
        """Return the nodes that have this parameter, as a value of its type or as a link."""
        wanted = str if kind.type is str else (int, float)
        found = []
        for node_id in node_ids:
            node = self.workflow[node_id]
            value = unwrapped(node["inputs"].get(kind.input))
            fits = is_link(value) or (isinstance(value, wanted) and not isinstance(value, bool))
            if fits and node["class_type"] not in kind.not_in:
                found.append(node_id)
        return found

    def _sized(self) -> list[str]:
        """Return nodes whose width and height are the picture's."""
        if self.samplers.ids:
            return self.samplers.latent_nodes()
        return [i for i in self.graph.live if {"width", "height"} <= set(self.workflow[i]["inputs"])]

    def _value(self, place: Place) -> Any:
        return self.workflow[place.node_id]["inputs"][place.input]

    def _nowhere(self, name: str, kind: _Kind) -> str:
        message = f"--{name}: this workflow has no place for it"
        if name in ("width", "height") and self.samplers.ids:
            message += ": the sampler does not start from a latent of a size that is given"
        everything = sorted(self.workflow, key=natural_key)
        inputs = (kind.input, *kind.like)
        others = [Place(i, input) for i in everything for input in inputs if input in self.workflow[i]["inputs"]]
        if not others:
            return message
        return f"{message}; if you mean one of these, --set {others[0].shown()}=…\n{self._listed(others)}"

    def _several(self, name: str, places: dict[Place, str]) -> str:
        kind = _KINDS[name]
        example = f"--set {next(iter(places)).shown()}=…"
        listed = self._listed([Place(node_id, kind.input) for node_id in places.values()])
        return f"--{name}: {len(places)} nodes have it; set the one you mean ({example}):\n{listed}"

    def _listed(self, places: Sequence[Place]) -> str:
        """Return one place a line, each with its present value."""
        lines = []
        for place in places:
            value = unwrapped(self._value(place))
            now = f"from node {value[0]}" if is_link(value) else repr(value)
            now = now if len(now) < 60 else now[:59] + "…"
            lines.append(f"  {shown_node(self.workflow, place.node_id)}: {place.input} is {now}")
        return "\n".join(lines)

    def check_fit(self, name: str, place: Place, value: Any) -> None:
        """Check the value against the inputs' declared limits. Raises UsageError for what they would cut or refuse."""
        kind = _KINDS[name]
        for target in fed_by(self.workflow, place, self.graph.users):
            if target.input != kind.input:
                continue
            shown = f"--{name} {value}: node {shown_node(self.workflow, target.node_id)}"
            spec = self.graph.declared(target.node_id).get(kind.input, [])
            choices = spec[0] if spec and isinstance(spec[0], list) else []
            # Files (ckpt) may be there by the time the job runs: the worker fetches what it lacks.
            if name in ("sampler", "scheduler") and choices and value not in choices:
                raise UsageError(f"{shown} does not know it; {near(value, map(str, choices))}")
            limits = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
            if kind.type is not str:
                _within(shown, value, limits.get("min"), limits.get("max"))
            if name in ("width", "height"):
                step = limits.get("step", 8 if self.samplers.ids else 1)
                _multiple(shown, value, step if isinstance(step, int) else 1)
            if name == "steps":
                self._check_split(shown, value, target.node_id)

    def _check_split(self, shown: str, steps: int, node_id: str) -> None:
        """KSamplerAdvanced's share of the steps stays as it is; it must still lie within them."""
        for name in ("start_at_step", "end_at_step"):
            if name not in self.workflow[node_id]["inputs"]:
                continue
            try:
                at = self._value(place_of(self.workflow, node_id, name))
            except UsageError:  # computed, maybe from the steps
                continue
            # 10,000 is how its editor writes "to the end".
            if isinstance(at, int) and 0 < at < 10_000 and steps <= at:
                raise UsageError(
                    f"{shown} has {name} {at}, which {steps} steps do not reach: set that one too, with --set"
                )

    def check_shared(self, changes: Sequence[Change]) -> None:
        """Refuse to change a primitive that also feeds other inputs than those asked for, unless they have the same
        name.

        Raises UsageError naming them, and for one primitive that is to be two things.
        """
        values: dict[Place, Change] = {}
        for change in changes:
            other = values.setdefault(Place(change.node_id, change.input), change)
            if other.value != change.value:
                where = shown_node(self.workflow, change.node_id)
                raise UsageError(f"{other.why} and {change.why} both come from node {where}: give them the same value")
        inputs = {_KINDS[change.why[2:]].input for change in changes}
        for place, change in values.items():
            fed = fed_by(self.workflow, place, self.graph.users)
            others = [use for use in fed if use != place and not _is_named(use.input, inputs)]
            if others:
                named = ", ".join(f"{use.node_id}.{use.input}" for use in others[:10])
                raise UsageError(
                    f"{change.why}: it comes from node {shown_node(self.workflow, place.node_id)}, which feeds {named} "
                    f"too: if all of them are to change, --set {place.shown()}=…"
                )


def _is_named(name: str, inputs: set[str]) -> bool:
    """Return True if the name is one of these inputs, or ends with it: ``target_width`` is a width too."""
    return any(name == wanted or name.endswith(f"_{wanted}") for wanted in inputs)


def _within(shown: str, value: float, least: Any, most: Any) -> None:
    if isinstance(least, (int, float)) and value < least:
        raise UsageError(f"{shown} takes no less than {least}")
    if isinstance(most, (int, float)) and value > most:
        raise UsageError(f"{shown} takes no more than {most}")


def _multiple(shown: str, value: int, step: int) -> None:
    """ComfyUI rounds the size of a latent down without a word."""
    if step > 1 and value % step:
        below = value - value % step
        near_ones = " or ".join(str(size) for size in (below, below + step) if size)
        raise UsageError(f"{shown} takes multiples of {step} only: {near_ones}")


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


def lora_changes(workflow: Workflow, texts: Sequence[str], alive: Collection[str]) -> list[Change]:
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
