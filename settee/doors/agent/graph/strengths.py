"""The strengths of a job's LoRAs: entries of `parameters.extra.loras`, matched to the envelope's LoRAs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from settee.comfyui.workflow import Problem
from settee.doors.agent.envelope import Asset, Envelope

#: Strengths beyond it spoil any picture; the contract's limit, ComfyUI takes up to 100.
MAX_STRENGTH = 2.0
_WHERE = "parameters.extra.loras"
_NAMES = ("name", "filename", "file", "displayName", "display_name", "originalName", "original_name", "title")
_SPELLINGS = {
    "strength_model": ("strength_model", "strengthModel"),
    "strength_clip": ("strength_clip", "strengthClip"),
    "strength": ("strength",),
}


@dataclass(frozen=True, kw_only=True)
class LoraUse:
    """A LoRA of the job, and how strongly it is applied (-2 to 2)."""

    #: As ComfyUI lists it.
    name: str
    bucket: str
    key: str
    strength_model: float = 1.0
    strength_clip: float = 1.0
    #: The file on this host, as far as it is known.
    path: str = field(default="", repr=False)
    #: What extra.loras says of it.
    metadata: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: For a person, what of that goes too far: "strength_model 5 is limited to 2".
    limited: tuple[str, ...] = ()

    def shown(self) -> dict[str, Any]:
        """Return its entry in extra.loras, and the strengths that are applied."""
        strengths = {"strength_model": self.strength_model, "strength_clip": self.strength_clip}
        return {**self.metadata, "name": self.name, "key": self.key, **strengths}


@dataclass(frozen=True)
class _Said:
    """One entry of extra.loras."""

    where: str
    entry: Mapping[str, Any]
    #: None where the entry stands in an object, whose order says nothing.
    position: int | None
    names: frozenset[str]


def lora_uses(
    envelope: Envelope, names: Sequence[str], paths: Sequence[str] = ()
) -> tuple[tuple[LoraUse, ...], list[Problem]]:
    """The job's LoRAs with their strengths, in order, and every mistake of extra.loras.

    ``names``: as ComfyUI lists them, one for each of the envelope's. extra.loras is a list of objects, or an object by
    key or name, of objects or plain numbers. An entry belongs to the LoRA whose key it gives, else to the one it
    names (by any of its names, with or without folders and suffix), else to the one at its own place in the list.
    Without an entry the strengths are 1.
    """
    problems: list[Problem] = []
    said = list(_read(envelope.parameters.extra.get("loras"), problems))
    matched = _matched(envelope.loras, names, said, problems)
    uses = []
    for at, (asset, name) in enumerate(zip(envelope.loras, names, strict=True)):
        mine = matched.get(at)
        model, clip, limited = _strengths(mine, problems) if mine else (1.0, 1.0, ())
        uses.append(
            LoraUse(
                name=name,
                bucket=asset.bucket,
                key=asset.key,
                strength_model=model,
                strength_clip=clip,
                path=paths[at] if paths else "",
                metadata=dict(mine.entry) if mine else {},
                limited=limited,
            )
        )
    return tuple(uses), problems


def _read(given: Any, problems: list[Problem]) -> Iterator[_Said]:
    if given is None:
        return
    entries: list[tuple[str, int | None, str, Any]]
    if isinstance(given, dict):
        entries = [(f"{_WHERE}.{name[:100]}", None, name, entry) for name, entry in given.items()]
    elif isinstance(given, list):
        entries = [(f"{_WHERE}[{at}]", at, "", entry) for at, entry in enumerate(given)]
    else:
        problems.append({"path": _WHERE, "problem": "must be a list with an object for each LoRA"})
        return
    for where, position, name, entry in entries:
        if isinstance(entry, (int, float)) and not isinstance(entry, bool):
            entry = {"strength": entry}
        elif isinstance(entry, str):
            entry = {"name": entry}
        if isinstance(entry, dict):
            named = [entry[key] for key in _NAMES if isinstance(entry.get(key), str)]
            yield _Said(where, entry, position, frozenset(_spelled(text) for text in (*named, name) if text))
        elif entry is not None:
            problems.append({"path": where, "problem": "must be an object with strength_model and strength_clip"})


def _matched(
    assets: Sequence[Asset], names: Sequence[str], said: Sequence[_Said], problems: list[Problem]
) -> dict[int, _Said]:
    """Match entries to LoRAs, by their places in the envelope; each to one at most."""
    found: dict[int, _Said] = {}
    left = list(said)
    called = [_called(asset, name) for asset, name in zip(assets, names, strict=True)]

    def claim(fits: Any) -> None:
        for entry in list(left):
            at = next((at for at in range(len(assets)) if at not in found and fits(entry, at)), None)
            if at is not None:
                found[at] = entry
                left.remove(entry)

    claim(lambda entry, at: _has_key(entry, assets[at]))
    claim(lambda entry, at: "key" not in entry.entry and entry.names & called[at])
    # A key that is not of this job's LoRAs is about another LoRA, wherever it stands.
    claim(lambda entry, at: "key" not in entry.entry and entry.position == at)
    for entry in left:
        if any(_value(entry, kind) is not None for kind in _SPELLINGS):
            problems.append({"path": entry.where, "problem": "is about no LoRA of this job: give it the LoRA's key"})
    return found


def _has_key(said: _Said, asset: Asset) -> bool:
    if said.position is None and said.where == f"{_WHERE}.{asset.key[:100]}":
        return True
    return said.entry.get("key") == asset.key and said.entry.get("bucket", asset.bucket) == asset.bucket


def _called(asset: Asset, name: str) -> frozenset[str]:
    return frozenset(_spelled(text) for text in (name, asset.key, asset.display_name, asset.original_name) if text)


def _spelled(name: str) -> str:
    """A name without its folders and its suffix, in one case."""
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2].casefold()
    stem, dot, suffix = last.rpartition(".")
    return stem if dot and suffix in ("safetensors", "sft", "ckpt", "pt", "pth", "bin") else last


def _value(said: _Said, kind: str) -> Any:
    return next((said.entry[name] for name in _SPELLINGS[kind] if said.entry.get(name) is not None), None)


def _strengths(said: _Said, problems: list[Problem]) -> tuple[float, float, tuple[str, ...]]:
    """Return the strengths of the model and of the text encoder, and a note for each that is limited.

    Each is its own, else `strength`; the encoder's follows the model's.
    """
    values: dict[str, float] = {}
    for kind in _SPELLINGS:
        value = _value(said, kind)
        if isinstance(value, bool) or not isinstance(value, (int, float, type(None))):
            problems.append({"path": f"{said.where}.{kind}", "problem": "must be a number"})
        elif value is not None:
            values[kind] = value
    model = next((kind for kind in ("strength_model", "strength") if kind in values), "")
    clip = next((kind for kind in ("strength_clip", "strength", "strength_model") if kind in values), "")
    within = {kind: max(-MAX_STRENGTH, min(MAX_STRENGTH, float(value))) for kind, value in values.items()}
    limited = tuple(
        f"{kind} {values[kind]:g} is limited to {within[kind]:g}"
        for kind in dict.fromkeys((model, clip))
        if kind and within[kind] != values[kind]
    )
    return within.get(model, 1.0), within.get(clip, 1.0), limited


__all__ = ["MAX_STRENGTH", "LoraUse", "lora_uses"]
