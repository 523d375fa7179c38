"""Uses that nodes have for a job's values, by ComfyUI's registry: a seed is a sampler's, a size a latent's, …

Known are the parts that nodes play by what they give: something with a LATENT, SAMPLER, SIGMAS, NOISE or GUIDER
samples or makes latents, something with CONDITIONING encodes, something with a MODEL loads. In ComfyUI's own classes
names of inputs mean what they say, so there the name must fit too; custom nodes call theirs as they like.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from settee.comfyui.node_registry import NodeRegistry, is_dynamic, options_of
from settee.comfyui.problems import near_matches
from settee.comfyui.workflow import Problem, Workflow, links

#: Outputs that are values: a node with no others passes on, or calculates with, what it was given.
_VALUES = frozenset(["INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "NUMBER", "*"])
_SAMPLING = frozenset(["LATENT", "SAMPLER", "SIGMAS", "NOISE", "GUIDER", "CONDITIONING", "MODEL"])
_MEDIA = frozenset(["IMAGE", "MASK", "VIDEO", "AUDIO", "MESH"])
_SIZED = _SAMPLING | _MEDIA | {"WAN_CAMERA_EMBEDDING"}
_MODELS = frozenset(["MODEL", "CLIP", "HOOKS"])


@dataclass(frozen=True)
class _Role:
    """The use of a parameter."""

    #: For a person: "no node uses it there as …".
    meant: str
    #: Outputs of ComfyUI's own classes that use it; a custom node may also do everything and give a picture.
    gives: frozenset[str]
    #: The input's name in ComfyUI's own classes.
    name: str


_TEXT = _Role("a text encoder's text", frozenset(["CONDITIONING"]), r".*")
_BASE = _Role("the name at a node that loads a model", frozenset(["MODEL", "HOOKS"]), r"(ckpt|unet|model)_(name|path)")
_ROLES: dict[str, _Role] = {
    "prompt": _TEXT,
    "negative_prompt": _TEXT,
    "seed": _Role("a sampler's seed", _SAMPLING | _MEDIA, r"(noise_)?seed"),
    "steps": _Role("a sampler's steps", _SAMPLING, r"steps|(start|end)_at_step"),
    "cfg_scale": _Role("a sampler's cfg", _SAMPLING, r"cfg(_.*)?|guidance"),
    "sampler": _Role("a sampler's name", _SAMPLING, r"sampler(_name)?"),
    "scheduler": _Role("a sampler's scheduler", _SAMPLING, r"scheduler"),
    "width": _Role("the width of a latent, a picture or a text encoder", _SIZED, r"(?!spacing_)(.*_)?width"),
    "height": _Role("the height of a latent, a picture or a text encoder", _SIZED, r"(?!spacing_)(.*_)?height"),
    "base_model_path": _BASE,
    "base_model_name": _BASE,
    "base_model_full_path": _BASE,
    "primary_lora_name": _Role("the name at a node that loads a LoRA", _MODELS, r"lora_name"),
    "primary_lora_strength_model": _Role("the strength at a node that loads a LoRA", _MODELS, r"strength(_model)?"),
    "primary_lora_strength_clip": _Role("the strength at a node that loads a LoRA", _MODELS, r"strength(_clip)?"),
}
#: The side that each prompt must not be on alone.
_OTHER_SIDE = {"prompt": "negative", "negative_prompt": "positive"}


def is_named_for(parameter: str, name: str) -> bool:
    """Return True if ComfyUI's own classes give inputs for this parameter such a name."""
    # Inputs that another one brings with it have its name before theirs ("resize_type.width").
    return bool(re.fullmatch(_ROLES[parameter].name, name.rpartition(".")[2]))


class Uses:
    """A graph as its values flow."""

    def __init__(self, workflow: Workflow, registry: NodeRegistry) -> None:
        self.workflow = workflow
        self._registry = registry
        #: Walks that were made: thousands of bindings may begin at the same places.
        self._ends: dict[tuple[str, str], list[tuple[str, str]]] = {}
        self._sides: dict[tuple[str, bool], set[str]] = {}

    @cached_property
    def live(self) -> frozenset[str]:
        """The nodes that an output needs."""
        found = set(self._registry.output_nodes(self.workflow))
        waiting = list(found)
        while waiting:
            for _, source, _ in links(self.workflow[waiting.pop()]):
                if source in self.workflow and source not in found:
                    found.add(source)
                    waiting.append(source)
        return frozenset(found)

    @cached_property
    def _users(self) -> dict[str, list[tuple[str, str]]]:
        """By node, the inputs of live nodes that take something of it."""
        found: dict[str, list[tuple[str, str]]] = {}
        for node_id in self.live:
            for name, source, _ in links(self.workflow[node_id]):
                found.setdefault(source, []).append((node_id, name))
        return found

    def _outputs(self, node_id: str) -> frozenset[str]:
        """Types of what a node gives; a list of choices counts as COMBO."""
        given = self._registry.entry(self.workflow[node_id]["class_type"]).get("output")
        return frozenset(kind if isinstance(kind, str) else "COMBO" for kind in given or ())

    # --- one input ----------------------------------------------------------------------------------------

    def name_problem(self, node_id: str, name: str) -> Problem | None:
        """Why a node has no input of this name, of ComfyUI's own classes: a custom one may make names up later."""
        class_type = self.workflow[node_id]["class_type"]
        if "." in name or not self._registry.is_core(class_type):
            return None
        # Not the hidden ones, which ComfyUI fills itself.
        inputs = self._registry.inputs(class_type)
        if name in inputs or any(map(is_dynamic, inputs.values())):
            return None
        near = [f"inputs.{key}" for key in near_matches(name, inputs)]
        return {"problem": f"a {class_type} has no such input", "near": near}

    def input_problem(self, node_id: str, name: str, value: Any) -> Problem | None:
        """Why a class's input cannot take a value, as far as the registry tells."""
        class_type = self.workflow[node_id]["class_type"]
        spec = self._registry.spec(class_type, name)
        if "." in name or spec is None:
            return self.name_problem(node_id, name)
        return self._value_problem(spec, value, is_strict=self._registry.is_core(class_type))

    @staticmethod
    def _value_problem(spec: Any, value: Any, *, is_strict: bool) -> Problem | None:
        kind = spec[0] if isinstance(spec, list) and spec and isinstance(spec[0], str) else "COMBO"
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if kind == "INT" and not (is_number and value == int(value)):
            return {"problem": "it takes a whole number"}
        if kind == "FLOAT" and not is_number:
            return {"problem": "it takes a number"}
        if kind == "STRING" and not isinstance(value, str):
            return {"problem": "it takes a text"}
        if kind == "BOOLEAN" and not isinstance(value, bool):
            return {"problem": "it takes true or false"}
        if is_strict and is_number and kind in ("INT", "FLOAT"):
            least, most = options_of(spec).get("min"), options_of(spec).get("max")
            if (isinstance(least, (int, float)) and value < least) or (isinstance(most, (int, float)) and value > most):
                return {"problem": f"it takes {least} to {most}"}
        return None

    # --- what it is used for ------------------------------------------------------------------------------

    def role_problem(self, parameter: str, node_id: str, name: str) -> Problem | None:
        """Why a parameter at this input does not reach a node that uses it as what it is."""
        role = _ROLES.get(parameter)
        if role is None:
            return None
        fitting = self._fitting(parameter, node_id, name)
        if not fitting:
            return {"problem": f"no node uses it there as {role.meant}"}
        other = _OTHER_SIDE.get(parameter)
        if other and set().union(*(self.sides(end) for end in fitting)) == {other}:
            return {"problem": f"what this node encodes is used as {other} prompt only"}
        return None

    def other_side(self, parameter: str, node_id: str, name: str) -> str | None:
        """The side that a prompt at this input is on besides its own: "negative" for the prompt, or "positive"."""
        other = _OTHER_SIDE.get(parameter)
        if other is None:
            return None
        fitting = self._fitting(parameter, node_id, name)
        return other if any(other in self.sides(end, zeroed=False) for end in fitting) else None

    def _fitting(self, parameter: str, node_id: str, name: str) -> list[str]:
        """The nodes that use a parameter at this input as what it is."""
        return [end for end, its_name in self.ends(node_id, name) if self._fits(parameter, end, its_name)]

    def _fits(self, parameter: str, node_id: str, name: str) -> bool:
        role = _ROLES[parameter]
        given, is_ours = self._outputs(node_id), self._registry.is_core(self.workflow[node_id]["class_type"])
        if is_ours:
            return bool(is_named_for(parameter, name) and given & role.gives)
        # Nodes that do it all may give a picture, or nothing; and "*" may be anything.
        return not given or bool(given & (role.gives | _MEDIA | {"*", "LATENT"}))

    def sides(self, node_id: str, *, zeroed: bool = True) -> set[str]:
        """Return which prompt a node's conditioning is used as: positive, negative, unknown (only a custom node knows).

        ``zeroed``: also where it is set to zero first, so that nothing of the text is left.
        """
        if (node_id, zeroed) in self._sides:
            return self._sides[node_id, zeroed]
        found = self._sides[node_id, zeroed] = set()
        waiting, seen = [node_id], {node_id}
        while waiting:
            for user, name in self._users.get(waiting.pop(), []):
                if name in ("positive", "negative"):
                    found.add(name)
                elif "CONDITIONING" not in self._outputs(user):
                    found.add("positive" if name == "conditioning" else "unknown")
                elif user not in seen and (zeroed or self.workflow[user]["class_type"] != "ConditioningZeroOut"):
                    seen.add(user)
                    waiting.append(user)
        return found

    def ends(self, node_id: str, name: str) -> list[tuple[str, str]]:
        """The inputs that a value gets to, through nodes that give nothing but values."""
        if (node_id, name) in self._ends:
            return self._ends[node_id, name]
        found = self._ends[node_id, name] = []
        waiting, seen = [(node_id, name)], {(node_id, name)}
        while waiting:
            at = waiting.pop()
            outputs, users = self._outputs(at[0]), self._users.get(at[0], [])
            if users and outputs and outputs <= _VALUES:
                new = [user for user in users if user not in seen]
                seen.update(new)
                waiting += new
            else:
                found.append(at)
        return found


__all__ = ["Uses", "is_named_for"]
