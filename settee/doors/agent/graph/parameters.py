"""The named values of a job, which bindings write into its workflow: :func:`context`.

The names: prompt, negative_prompt, seed, cfg_scale, steps, width, height, sampler, scheduler, base_model_path and
base_model_name (both the name ComfyUI lists the file under), base_model_full_path, loras (their names), loras_metadata
(an object for each), primary_lora_name, primary_lora_strength_model, primary_lora_strength_clip (None without a LoRA),
and every key of the envelope's extra that is not one of these.

A field of `parameters` takes precedence over the same name in `extra`, and that over workflow_defaults, which
fill gaps only and none of the sampling fields. What the agent itself decides (names of models) a caller cannot give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from settee.comfyui.seeds import MAX_SEED
from settee.doors.agent.config import REQUIRED_SAMPLING
from settee.doors.agent.envelope import Envelope
from settee.doors.agent.fields import MAX_SIDE, MAX_STEPS, refusal, whole
from settee.doors.agent.graph.strengths import LoraUse, lora_uses

#: Where the envelope says what a name stands for, for errors.
_WRITTEN = {
    "seed": "parameters.seed",
    "steps": "parameters.steps",
    "cfg_scale": "parameters.cfgScale",
    "sampler": "parameters.sampler",
    "scheduler": "parameters.scheduler",
    "width": "parameters.resolution.width",
    "height": "parameters.resolution.height",
    "negative_prompt": "parameters.negativePrompt",
}


@dataclass(frozen=True, kw_only=True)
class ModelNames:
    """Names of the job's models where ComfyUI looks for them."""

    #: As ComfyUI lists it: "sdxl_base_1.0.safetensors".
    base_model: str
    #: The file on this host.
    base_model_full_path: str = field(default="", repr=False)
    #: In the envelope's order.
    loras: tuple[str, ...] = ()
    #: Their files on this host, as many.
    lora_paths: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Context:
    """The named values of a job."""

    values: dict[str, Any] = field(repr=False)
    #: Whether the seed was drawn here, because the request gave none.
    seed_drawn: bool
    #: In the envelope's order.
    loras: tuple[LoraUse, ...] = ()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Notes for a person on values that are not taken as they were given."""
        return tuple(f"loras[{at}]: {limited}" for at, use in enumerate(self.loras) for limited in use.limited)

    @property
    def own_paths(self) -> frozenset[str]:
        """Full paths of the job's models on this host, which may stand in the graph and in no error."""
        paths = (self.values["base_model_full_path"], *(use.path for use in self.loras))
        return frozenset(path for path in paths if path)


def context(envelope: Envelope, *, names: ModelNames, defaults: Mapping[str, Any], draw: Callable[[], int]) -> Context:
    """The values of a job's names. ``draw`` makes a seed, 0 to 2**64 - 1.

    Raises InvalidRequest with every sampling field that is missing or out of its range, by the caller's names, and
    every mistake in extra.loras.
    """
    uses, problems = lora_uses(envelope, names.loras, names.lora_paths)
    extra = envelope.parameters.extra
    values: dict[str, Any] = {name: value for name, value in defaults.items() if name not in REQUIRED_SAMPLING}
    values |= {name: value for name, value in extra.items() if name not in REQUIRED_SAMPLING}
    values["prompt"] = envelope.parameters.prompt
    given = _given(envelope)
    for name in REQUIRED_SAMPLING:
        value = given[name] if given[name] is not None else extra.get(name)
        seed_drawn = name == "seed" and value is None
        value, problem = _checked(name, draw() if seed_drawn else value)
        values[name] = value
        if problem:
            problems.append({"path": _where(name, given), "parameter": name, "problem": problem})
    if given["negative_prompt"] is not None:
        values["negative_prompt"] = given["negative_prompt"]
    elif values.get("negative_prompt") is None:
        values["negative_prompt"] = ""
    if not isinstance(values["negative_prompt"], str):
        problems.append(
            {"path": _where("negative_prompt", given), "parameter": "negative_prompt", "problem": "must be a text"}
        )
    if problems:
        raise refusal(problems, "parameters")
    values |= _of_models(names, uses)
    return Context(values=values, seed_drawn=seed_drawn, loras=uses)


def _given(envelope: Envelope) -> dict[str, Any]:
    """The fields of `parameters`, by their names in a binding; None where there is none."""
    parameters = envelope.parameters
    size = parameters.resolution
    return {
        "steps": parameters.steps,
        "cfg_scale": parameters.cfg_scale,
        "sampler": _text(parameters.sampler),
        "scheduler": _text(parameters.scheduler),
        "width": size.width if size else None,
        "height": size.height if size else None,
        "negative_prompt": parameters.negative_prompt,
        "seed": parameters.seed,
    }


def _text(value: str | None) -> str | None:
    """Blank is as good as nothing: extra may have it."""
    return value if value and value.strip() else None


def _where(name: str, given: Mapping[str, Any]) -> str:
    return _WRITTEN[name] if given[name] is not None else f"{_WRITTEN[name]} (or parameters.extra.{name})"


def _checked(name: str, value: Any) -> tuple[Any, str | None]:
    """A sampling field as the graph takes it, and what is wrong with it: `extra` has not been looked at before."""
    if value is None:
        return None, "is missing: the request must give it"
    if name in ("sampler", "scheduler"):
        good = isinstance(value, str) and bool(value.strip())
        return value, None if good else "must be a text that is not empty"
    if name == "cfg_scale":
        good = isinstance(value, (int, float)) and not isinstance(value, bool) and value > 0
        return value, None if good else "must be a number greater than 0"
    least, most = {"seed": (0, MAX_SEED), "steps": (1, MAX_STEPS)}.get(name, (1, MAX_SIDE))
    try:
        return whole(value, least, most), None
    except ValueError as error:
        return value, str(error)


def _of_models(names: ModelNames, uses: tuple[LoraUse, ...]) -> dict[str, Any]:
    primary = uses[0] if uses else None
    return {
        "base_model_path": names.base_model,
        "base_model_name": names.base_model,
        "base_model_full_path": names.base_model_full_path,
        "loras": [use.name for use in uses],
        "loras_metadata": [use.shown() for use in uses],
        "primary_lora_name": primary.name if primary else None,
        "primary_lora_strength_model": primary.strength_model if primary else None,
        "primary_lora_strength_clip": primary.strength_clip if primary else None,
    }


__all__ = ["Context", "LoraUse", "ModelNames", "context"]
