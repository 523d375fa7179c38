"""What a node can use a job's values for, by ComfyUI's registry: a seed is a sampler's, a size a latent's, …

Known are the parts that nodes play by what they give: something with a LATENT, SAMPLER, SIGMAS, NOISE or GUIDER
samples or makes latents, something with CONDITIONING encodes, something with a MODEL loads. In ComfyUI's own classes
names of inputs mean what they say, so there the name must fit too; custom nodes call theirs as they like.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from settee.registry import near_matches
from settee.workflow import ObjectInfo, Problem, Workflow, links, output_nodes

#: Outputs that are values: a node with no others passes on, or calculates with, what it was given.
_VALUES = frozenset(["INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "NUMBER", "*"])
_PICTURES = frozenset(["IMAGE", "VIDEO", "AUDIO", "MASK", "MESH"])
_SAMPLING = frozenset(["LATENT", "SAMPLER", "SIGMAS", "NOISE", "GUIDER", "CONDITIONING", "MODEL"]) | _PICTURES
#: Parameter → what a node that uses it gives, and its input's name in ComfyUI's own classes.
_ROLES: dict[str, tuple[frozenset[str], str]] = {
    "prompt": (frozenset(["CONDITIONING"]) | _SAMPLING, r"(?!.*prefix|.*path|.*file).*"),
    "negative_prompt": (frozenset(["CONDITIONING"]) | _SAMPLING, r"(?!.*prefix|.*path|.*file).*"),
    "seed": (_SAMPLING, r"(noise_)?seed"),
    "steps": (_SAMPLING, r"steps|(start|end)_at_step"),
    "cfg_scale": (_SAMPLING, r"cfg(_.*)?|guidance"),
    "sampler": (_SAMPLING, r"sampler(_name)?"),
    "scheduler": (_SAMPLING, r"scheduler"),
    "width": (_SAMPLING | {"WAN_CAMERA_EMBEDDING"}, r"(.*_)?width"),
    "height": (_SAMPLING | {"WAN_CAMERA_EMBEDDING"}, r"(.*_)?height"),
    "base_model_path": (frozenset(["MODEL", "HOOKS"]), r"(ckpt|unet|model)_(name|path)"),
    "base_model_name": (frozenset(["MODEL", "HOOKS"]), r"(ckpt|unet|model)_(name|path)"),
    "base_model_full_path": (frozenset(["MODEL", "HOOKS"]), r"(ckpt|unet|model)_(name|path)"),
    "primary_lora_name": (frozenset(["MODEL", "HOOKS"]), r"lora_name"),
    "primary_lora_strength_model": (frozenset(["MODEL", "HOOKS"]), r"strength_model"),
    "primary_lora_strength_clip": (frozenset(["MODEL", "CLIP", "HOOKS"]), r"strength_clip"),
}
_MEANT = {
    "prompt": "a text encoder's text",
    "negative_prompt": "a text encoder's text",
    "width": "the width of a latent, a picture or a text encoder",
    "height": "the height of a latent, a picture or a text encoder",
    "base_model_path": "the name at a node that loads a model",
    "base_model_name": "the name at a node that loads a model",
    "base_model_full_path": "the name at a node that loads a model",
    "primary_lora_name": "the name at a node that loads a LoRA",
    "primary_lora_strength_model": "the strength at a node that loads a LoRA",
    "primary_lora_strength_clip": "the strength at a node that loads a LoRA",
}


def spec_of(object_info: ObjectInfo, class_type: str, name: str) -> Any:
    """The registry's ``[type, options]`` of an input; None when its class is unknown or has no such input."""
    sections = object_info.get(class_type, {}).get("input", {})
    for section in ("required", "optional"):
        found = (sections.get(section) or {}).get(name)
        if found is not None:
            return found
    return None


def options_of(spec: Any) -> Mapping[str, Any]:
    """The options of an input, such as its least and most."""
    return spec[1] if isinstance(spec, list) and len(spec) > 1 and isinstance(spec[1], dict) else {}


def is_core(object_info: ObjectInfo, class_type: str) -> bool:
    """Whether a class is one of ComfyUI's own."""
    module = str(object_info.get(class_type, {}).get("python_module", ""))
    return module == "nodes" or module.startswith("comfy_extras.")


class Uses:
    """A graph as its values flow."""

    def __init__(self, workflow: Workflow, object_info: ObjectInfo) -> None:
        self.workflow = workflow
        self._object_info = object_info

    @cached_property
    def live(self) -> frozenset[str]:
        """The nodes that an output needs."""
        found = set(output_nodes(self.workflow, self._object_info))
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
        given = self._object_info.get(self.workflow[node_id]["class_type"], {}).get("output")
        return frozenset(kind if isinstance(kind, str) else "COMBO" for kind in given or ())

    # --- one input ----------------------------------------------------------------------------------------

    def input_problem(self, node_id: str, name: str, value: Any) -> Problem | None:
        """Why a class's input cannot take a value, as far as the registry tells."""
        class_type = self.workflow[node_id]["class_type"]
        known = self._object_info.get(class_type)
        if known is None or "." in name:
            return None
        spec = spec_of(self._object_info, class_type, name)
        if spec is None:
            names = [key for part in (known.get("input") or {}).values() if isinstance(part, dict) for key in part]
            if not is_core(self._object_info, class_type) or any(_is_dynamic(known, key) for key in names):
                return None
            near = near_matches(f"inputs.{name}", [f"inputs.{key}" for key in names])
            return {"problem": f"a {class_type} has no such input", "near": near}
        return self._value_problem(spec, value, is_strict=is_core(self._object_info, class_type))

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
        used = self.ends(node_id, name)
        if any(self._fits(role, end, input_name) for end, input_name in used):
            return None
        meant = _MEANT.get(parameter, f"a sampler's {parameter}")
        return {"problem": f"no node uses it there as {meant}"}

    def _fits(self, role: tuple[frozenset[str], str], node_id: str, name: str) -> bool:
        given, pattern = role
        class_type = self.workflow[node_id]["class_type"]
        if class_type not in self._object_info:
            return True
        if is_core(self._object_info, class_type) and not re.fullmatch(pattern, name):
            return False
        return bool(given & self._outputs(node_id)) or (
            not is_core(self._object_info, class_type) and "*" in self._outputs(node_id)
        )

    def ends(self, node_id: str, name: str) -> list[tuple[str, str]]:
        """The inputs that a value gets to, through nodes that give nothing but values."""
        found: list[tuple[str, str]] = []
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


def _is_dynamic(known: Mapping[str, Any], name: str) -> bool:
    """Whether an input stands for others, whose names are made up later."""
    sections = known.get("input", {})
    spec = (sections.get("required") or {}).get(name) or (sections.get("optional") or {}).get(name)
    return isinstance(spec, list) and bool(spec) and isinstance(spec[0], str) and spec[0].startswith("COMFY_")


__all__ = ["Uses", "is_core", "options_of", "spec_of"]
