"""The named values of a job, which bindings write into its workflow: :func:`context`. docs/agent.md lists the names.

A field of `parameters` takes precedence over the same name in `extra`, and that over workflow_defaults, which fill
gaps only and none of the sampling fields. What the agent itself decides (names of models) a caller cannot give.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, StrictStr, ValidationError
from pydantic.alias_generators import to_camel

from settee.base.errors import problems_of
from settee.comfyui.workflow import Problem
from settee.doors.agent.config import REQUIRED_SAMPLING
from settee.doors.agent.envelope import Asset, Envelope, Resolution
from settee.doors.agent.fields import Cfg, Seed, Side, Steps, is_number, refusal


def _not_blank(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be empty")
    return value


class _Checked(BaseModel):
    """Values that the envelope's own fields have been checked for; those of `extra` have not."""

    steps: Steps
    cfg_scale: Cfg
    sampler: Annotated[StrictStr, AfterValidator(_not_blank)]
    scheduler: Annotated[StrictStr, AfterValidator(_not_blank)]
    width: Side
    height: Side
    seed: Seed
    negative_prompt: StrictStr = ""


@dataclass(frozen=True)
class PlacedModel:
    """A model of the job: its name as ComfyUI lists it, and its file on this host."""

    name: str
    path: str = field(repr=False)


@dataclass(frozen=True, kw_only=True)
class LoraUse:
    """A LoRA of the job, and how strongly it is applied (-2 to 2)."""

    #: As ComfyUI lists it.
    name: str
    strength_model: float
    strength_clip: float
    #: Its entry in extra.loras, with name and key, and the strengths that are applied.
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: For a person, what of that goes too far: "strength_model 5 is limited to 2".
    limited: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Context:
    """The named values of a job."""

    values: dict[str, Any] = field(repr=False)
    #: True if the seed was drawn here, because the request gave none.
    seed_drawn: bool
    #: In the envelope's order.
    loras: tuple[LoraUse, ...] = ()
    #: Full paths of the job's models on this host, which may stand in the graph and in no error.
    own_paths: frozenset[str] = field(default=frozenset(), repr=False)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Notes for a person on values that are not taken as they were given."""
        return tuple(f"loras[{at}]: {limited}" for at, use in enumerate(self.loras) for limited in use.limited)


def context(
    envelope: Envelope, models: Sequence[PlacedModel], *, defaults: Mapping[str, Any], draw: Callable[[], int]
) -> Context:
    """Return the values of a job's names. ``models`` are its base model and its LoRAs; ``draw`` makes a seed.

    Raises InvalidRequest with every sampling field that is missing or out of its range, by the caller's names, and
    every mistake in extra.loras.
    """
    base, *loras = models
    parameters = envelope.parameters
    extra = parameters.extra
    uses, problems = lora_uses(envelope.loras, [each.name for each in loras], extra.get("loras"))
    values = {name: value for name, value in defaults.items() if name not in REQUIRED_SAMPLING} | extra
    given = parameters.model_dump(include={*_Checked.model_fields}, exclude_none=True) | dict(
        parameters.resolution or ()
    )
    values |= given
    seed_drawn = values.get("seed") is None
    if seed_drawn:
        values["seed"] = draw()
    known = {name: values[name] for name in _Checked.model_fields if values.get(name) is not None}
    try:
        values |= _Checked.model_validate(known)
    except ValidationError as error:
        for each in problems_of(error.errors(include_input=False)):
            name = each["path"]
            where = f"parameters.{'resolution.' if name in Resolution.model_fields else ''}{to_camel(name)}"
            where += "" if name in given else f" (or parameters.extra.{name})"
            problems.append({"path": where, "parameter": name, "problem": each["problem"]})
    if problems:
        raise refusal(problems, "parameters")
    primary = uses[0] if uses else None
    values |= {
        "prompt": parameters.prompt,
        "base_model_path": base.name,
        "base_model_name": base.name,
        "base_model_full_path": base.path,
        "loras": [use.name for use in uses],
        "loras_metadata": [use.metadata for use in uses],
        **{
            f"primary_lora_{name}": getattr(primary, name, None) for name in ("name", "strength_model", "strength_clip")
        },
    }
    own_paths = frozenset(each.path for each in models if each.path)
    return Context(values=values, seed_drawn=seed_drawn, loras=uses, own_paths=own_paths)


# --- strengths of LoRAs -----------------------------------------------------------------------------------------

#: Strengths beyond it spoil any picture; the contract's limit, ComfyUI takes up to 100.
MAX_STRENGTH = 2.0
_WHERE = "parameters.extra.loras"
_NAMES = ("name", "filename", "file", "displayName", "display_name", "originalName", "original_name", "title")
_SPELLINGS = {
    "strength_model": ("strength_model", "strengthModel"),
    "strength_clip": ("strength_clip", "strengthClip"),
    "strength": ("strength",),
}


@dataclass(frozen=True)
class _Entry:
    """One entry of extra.loras."""

    path: str
    #: Its index in a list, or its name in an object, whose order means nothing.
    place: int | str
    said: Mapping[str, Any]

    @property
    def names(self) -> set[str]:
        given = (*(self.said.get(key) for key in _NAMES), self.place)
        return {_stem(text) for text in given if text and isinstance(text, str)}

    def value(self, kind: str) -> Any:
        return next((self.said[name] for name in _SPELLINGS[kind] if self.said.get(name) is not None), None)


def lora_uses(assets: Sequence[Asset], names: Sequence[str], given: Any) -> tuple[tuple[LoraUse, ...], list[Problem]]:
    """Return the job's LoRAs with their strengths, in order, and every mistake of extra.loras (``given``).

    ``names``: as ComfyUI lists them. ``given`` is a list of objects, or an object by key or name, of objects or plain
    numbers. An entry belongs to the LoRA whose key it gives, else to the one it names (by any of its names, with or
    without folders and suffix), else to the one at its own place in the list. Without an entry the strengths are 1.
    """
    problems: list[Problem] = []
    matched = _matched(assets, names, list(_entries(given, problems)), problems)
    uses = []
    for at, (asset, name) in enumerate(zip(assets, names, strict=True)):
        entry = matched.get(at, _Entry("", at, {}))
        strengths, limited = _strengths(entry, problems)
        metadata = {**entry.said, "name": name, "key": asset.key, **strengths}
        uses.append(LoraUse(name=name, **strengths, metadata=metadata, limited=limited))
    return tuple(uses), problems


def _entries(given: Any, problems: list[Problem]) -> Iterator[_Entry]:
    if given is not None and not isinstance(given, (dict, list)):
        problems.append({"path": _WHERE, "problem": "must be a list with an object for each LoRA"})
        return
    for place, entry in given.items() if isinstance(given, dict) else enumerate(given or ()):
        path = f"{_WHERE}[{place}]" if isinstance(place, int) else f"{_WHERE}.{place[:100]}"
        said = {"strength": entry} if is_number(entry) else {"name": entry} if isinstance(entry, str) else entry
        if isinstance(said, dict):
            yield _Entry(path, place, said)
        elif said is not None:
            problems.append({"path": path, "problem": "must be an object with strength_model and strength_clip"})


def _matched(
    assets: Sequence[Asset], names: Sequence[str], left: list[_Entry], problems: list[Problem]
) -> dict[int, _Entry]:
    """Match entries to LoRAs, by their places in the envelope; each to one at most."""

    def has_key(entry: _Entry, at: int) -> bool:
        key, bucket = entry.said.get("key"), entry.said.get("bucket", assets[at].bucket)
        return entry.place == assets[at].key or (key, bucket) == (assets[at].key, assets[at].bucket)

    def has_name(entry: _Entry, at: int) -> bool:
        asset = assets[at]
        called = (names[at], asset.key, asset.display_name, asset.original_name)
        return not entry.names.isdisjoint(_stem(text) for text in called if text)

    found: dict[int, _Entry] = {}
    for fits in (has_key, has_name, lambda entry, at: entry.place == at):
        for entry in list(left):
            # A key that is not of this job's LoRAs belongs to another LoRA, whatever its name and place.
            if fits is not has_key and "key" in entry.said:
                continue
            at = next((at for at in range(len(assets)) if at not in found and fits(entry, at)), None)
            if at is not None:
                found[at] = entry
                left.remove(entry)
    for entry in left:
        if any(entry.value(kind) is not None for kind in _SPELLINGS):
            problems.append({"path": entry.path, "problem": "belongs to no LoRA of this job: give it the LoRA's key"})
    return found


def _stem(name: str) -> str:
    """Return a name without its folders and its suffix, in one case."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()
    stem, dot, suffix = last.rpartition(".")
    return stem if dot and suffix in ("safetensors", "sft", "ckpt", "pt", "pth", "bin") else last


def _strengths(entry: _Entry, problems: list[Problem]) -> tuple[dict[str, float], tuple[str, ...]]:
    """Return the strengths of the model and of the text encoder, and a note for each that is limited.

    Each is its own, else `strength`; the encoder's follows the model's.
    """
    values: dict[str, float] = {}
    for kind in _SPELLINGS:
        value = entry.value(kind)
        if is_number(value):
            values[kind] = value
        elif value is not None:
            problems.append({"path": f"{entry.path}.{kind}", "problem": "must be a number"})
    within = {kind: max(-MAX_STRENGTH, min(MAX_STRENGTH, float(value))) for kind, value in values.items()}
    model = next((kind for kind in ("strength_model", "strength") if kind in values), "")
    clip = next((kind for kind in ("strength_clip", "strength", "strength_model") if kind in values), "")
    limited = tuple(
        f"{kind} {values[kind]:g} is limited to {within[kind]:g}"
        for kind in dict.fromkeys((model, clip))
        if kind and within[kind] != values[kind]
    )
    return {"strength_model": within.get(model, 1.0), "strength_clip": within.get(clip, 1.0)}, limited
