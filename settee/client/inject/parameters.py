"""``--steps``, ``--cfg``, ``--width`` … where a workflow has one obvious place for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from settee.client.changes import Change
from settee.client.errors import Ambiguous, UsageError
from settee.client.inject.latents import Samplers
from settee.client.inject.loras import lora_changes
from settee.client.inject.selectors import declared, live_nodes, near, place_of
from settee.comfyui.literals import Place, fed_by, users
from settee.comfyui.workflow import ObjectInfo, Workflow, is_link, natural_key, shown_node, unwrapped


@dataclass(frozen=True)
class Parameters:
    """What is to be set; None and () leave it as it is."""

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
    """One parameter: the input it is, and what it may be."""

    input: str
    #: The type its values have: int, float (whole ones too) or str.
    type: type
    least: float = 0
    most: float = math.inf
    #: Classes whose input of that name is another thing.
    not_in: frozenset[str] = frozenset()
    #: Inputs that a caller may mean instead, told where there is no place.
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


def parameter_changes(
    workflow: Workflow, parameters: Parameters, object_info: ObjectInfo | None = None
) -> list[Change]:
    """The changes that these parameters ask for.

    - A place is an input of that name (``sampler_name``, ``ckpt_name``) in a node that an output is made from,
      whatever its class; a linked one is set in the primitive it comes from.
    - ``width`` and ``height`` are those of the latent that the sampler starts from, and of nodes that scale it on its
      way to the next one. Without samplers (API nodes), of the one node that has them.
    - Several places are set together where their present values are equal and their samplers go on from each other's
      latent (base and refiner, high and low noise), or, for ``ckpt``, where they load the same file. Anything else is
      Ambiguous: two passes of their own settings, or a helper's sampler (depth, upscaling) beside the main one.
    - ``lora``: see :func:`settee.client.inject.loras.lora_changes`.

    Raises UsageError for a value out of range, for a parameter without a place, and for a place that another node
    computes; Ambiguous names the candidates. Each says which ``--set`` does it instead.
    """
    changes = []
    asked = {field.name: getattr(parameters, field.name) for field in fields(parameters) if field.name != "lora"}
    asked = {name: value for name, value in asked.items() if value is not None}
    if not asked and not parameters.lora:
        return []
    graph = _Graph(workflow, object_info)
    for name, value in asked.items():
        value = _checked(f"--{name}", value, _KINDS[name])
        for place in graph.places(name):
            graph.check_fit(name, place, value)
            changes.append(Change(place.node_id, place.input, value, f"--{name}"))
    graph.check_shared(changes)
    return [*changes, *lora_changes(workflow, parameters.lora, graph.alive)]


def _checked(option: str, value: Any, kind: _Kind) -> Any:
    """A value of the parameter's type within its limits. Raises UsageError."""
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


class _Graph:
    """A workflow, with what is asked of it more than once."""

    def __init__(self, workflow: Workflow, object_info: ObjectInfo | None) -> None:
        self.workflow, self.object_info = workflow, object_info or {}
        self.alive = live_nodes(workflow, object_info)
        self.used = users(workflow)
        self.samplers = Samplers(workflow, self.alive, self.used)

    def places(self, name: str) -> list[Place]:
        """Where a parameter goes, in natural order. Raises UsageError for nowhere, Ambiguous for too many places."""
        kind = _KINDS[name]
        found = self._having(
            kind, self._sized() if name in ("width", "height") else sorted(self.alive, key=natural_key)
        )
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

    def _having(self, kind: _Kind, node_ids: Sequence[str]) -> list[str]:
        """Those of the nodes that have this parameter, as a value of its type or as a link."""
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
        """Nodes whose width and height are the picture's."""
        if self.samplers.ids:
            return self.samplers.latent_nodes()
        sized = [node_id for node_id in self.alive if {"width", "height"} <= set(self.workflow[node_id]["inputs"])]
        return sorted(sized, key=natural_key)

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
        """One place a line, each with its present value."""
        lines = []
        for place in places:
            value = unwrapped(self._value(place))
            now = f"from node {value[0]}" if is_link(value) else repr(value)
            now = now if len(now) < 60 else now[:59] + "…"
            lines.append(f"  {shown_node(self.workflow, place.node_id)}: {place.input} is {now}")
        return "\n".join(lines)

    def check_fit(self, name: str, place: Place, value: Any) -> None:
        """Raises UsageError for what the places would cut, refuse or never come to."""
        kind = _KINDS[name]
        for target in fed_by(self.workflow, place, self.used):
            node = self.workflow[target.node_id]
            if target.input != kind.input:
                continue
            shown = f"--{name} {value}: node {shown_node(self.workflow, target.node_id)}"
            spec = declared(self.object_info, str(node["class_type"])).get(kind.input, [])
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
        """A primitive may feed other inputs than those asked for: of the same name, they change with it; others not.

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
            fed = fed_by(self.workflow, place, self.used)
            others = [use for use in fed if use != place and not _is_named(use.input, inputs)]
            if others:
                named = ", ".join(f"{use.node_id}.{use.input}" for use in others[:10])
                raise UsageError(
                    f"{change.why}: it comes from node {shown_node(self.workflow, place.node_id)}, which feeds {named} "
                    f"too: if all of them are to change, --set {place.shown()}=…"
                )


def _is_named(name: str, inputs: set[str]) -> bool:
    """``target_width`` is a width too."""
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
