"""Checks that every bound value is used where it was meant to be: :func:`check`.

A binding names a node by its id, and ids of another version of the template name other nodes. So after binding and
chaining, each bound value is looked up in the graph: it must be there, at an input that its node's class has and that
takes such a value, in a node that an output needs; and a sampling field, a prompt or a model must be at (or lead,
through nodes that only pass values on, to) a node that can use it as that.

The registry shows the parts that nodes play by what they give: something with a LATENT, SAMPLER, SIGMAS, NOISE or
GUIDER samples or makes latents, something with CONDITIONING encodes, something with a MODEL loads. In ComfyUI's own
classes names of inputs mean what they say, so there the name must fit too; custom nodes call theirs as they like.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from settee.comfyui.graph import Graph, Place, reached
from settee.comfyui.model_folders import SUFFIXES
from settee.comfyui.node_registry import NodeRegistry, choices_of, is_dynamic, options_of, type_of, upload_kind
from settee.comfyui.problems import MAX_NEAR, near_matches, path_problems, registry_problems
from settee.comfyui.workflow import Problem, Workflow, is_link, problem_at, unwrapped
from settee.doors.agent.config import REQUIRED_SAMPLING
from settee.doors.agent.envelope import Binding, Envelope
from settee.doors.agent.fields import is_number, refusal
from settee.doors.agent.graph.bindings import find_path, where
from settee.doors.agent.graph.loras import PRIMARY, is_pattern, strings
from settee.doors.agent.graph.parameters import Context

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


_BASE = _Role("the name at a node that loads a model", frozenset(["MODEL", "HOOKS"]), r"(ckpt|unet|model)_(name|path)")
_BASE_MODEL = ("base_model_name", "base_model_path", "base_model_full_path")
_ROLES: dict[str, _Role] = {
    **dict.fromkeys(("prompt", "negative_prompt"), _Role("a text encoder's text", frozenset(["CONDITIONING"]), r".*")),
    "seed": _Role("a sampler's seed", _SAMPLING | _MEDIA, r"(noise_)?seed"),
    "steps": _Role("a sampler's steps", _SAMPLING, r"steps|(start|end)_at_step"),
    "cfg_scale": _Role("a sampler's cfg", _SAMPLING, r"cfg(_.*)?|guidance"),
    "sampler": _Role("a sampler's name", _SAMPLING, r"sampler(_name)?"),
    "scheduler": _Role("a sampler's scheduler", _SAMPLING, r"scheduler"),
    "width": _Role("the width of a latent, a picture or a text encoder", _SIZED, r"(?!spacing_)(.*_)?width"),
    "height": _Role("the height of a latent, a picture or a text encoder", _SIZED, r"(?!spacing_)(.*_)?height"),
    **dict.fromkeys(_BASE_MODEL, _BASE),
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


class Uses(Graph):
    """A graph as its values flow."""

    def __init__(self, workflow: Workflow, registry: NodeRegistry) -> None:
        super().__init__(workflow, registry)
        # Thousands of bindings may begin at the same places.
        self._ends_of, self._sides_of = functools.cache(self._find_ends), functools.cache(self._find_sides)

    def _outputs(self, node_id: str) -> set[str]:
        """Return the types of what a node gives."""
        return set(self.registry.outputs(self.class_of(node_id)))

    # --- one input ----------------------------------------------------------------------------------------

    def name_problem(self, node_id: str, name: str) -> Problem | None:
        """Return a problem if one of ComfyUI's own classes has no such input: a custom one may make names up later."""
        class_type = self.class_of(node_id)
        # Not the hidden ones, which ComfyUI fills itself.
        inputs = self.registry.inputs(class_type)
        is_known = name in inputs or "." in name or any(map(is_dynamic, inputs.values()))
        if is_known or not self.registry.is_core(class_type):
            return None
        near = [f"inputs.{key}" for key in near_matches(name, inputs)]
        return {"problem": f"a {class_type} has no such input", "near": near}

    def input_problem(self, node_id: str, name: str, value: Any) -> Problem | None:
        """Return why a class's input cannot take a value, as far as the registry tells."""
        class_type = self.class_of(node_id)
        spec = self.registry.spec(class_type, name)
        if "." in name or spec is None:
            return self.name_problem(node_id, name)
        kind = type_of(spec) or "COMBO"
        fits, meant = {
            "INT": (is_number(value) and value == int(value), "a whole number"),
            "FLOAT": (is_number(value), "a number"),
            "STRING": (isinstance(value, str), "a string"),
            "BOOLEAN": (isinstance(value, bool), "true or false"),
        }.get(kind, (True, ""))
        if fits and kind in ("INT", "FLOAT") and self.registry.is_core(class_type):
            least, most = options_of(spec).get("min"), options_of(spec).get("max")
            fits = not (is_number(least) and value < least) and not (is_number(most) and value > most)
            meant = f"{least} to {most}"
        return None if fits else {"problem": f"it takes {meant}"}

    # --- what it is used for ------------------------------------------------------------------------------

    def role_problem(self, binding: Binding) -> Problem | None:
        """Return why a bound parameter does not reach a node that uses it as what it is."""
        if binding.parameter not in _ROLES:
            return None
        fitting = self._fitting(binding)
        if not fitting:
            return {"problem": f"no node uses it there as {_ROLES[binding.parameter].meant}"}
        other = _OTHER_SIDE.get(binding.parameter)
        if other and set().union(*(self._sides_of(end, True) for end in fitting)) == {other}:
            return {"problem": f"this node's text is used as {other} prompt only"}
        return None

    def other_side(self, binding: Binding) -> str | None:
        """Return the side that a bound prompt is on besides its own: "negative" or "positive"."""
        other = _OTHER_SIDE.get(binding.parameter)
        is_both = other and any(other in self._sides_of(end, False) for end in self._fitting(binding))
        return other if is_both else None

    def _fitting(self, binding: Binding) -> list[str]:
        """Return the nodes that use a bound parameter as what it is."""
        ends = self._ends_of(binding.node, binding.path.removeprefix("inputs."))
        return [end.node_id for end in ends if self._fits(binding.parameter, end)]

    def _fits(self, parameter: str, end: Place) -> bool:
        gives, given = _ROLES[parameter].gives, self._outputs(end.node_id)
        if self.registry.is_core(self.class_of(end.node_id)):
            return bool(is_named_for(parameter, end.input) and given & gives)
        # Nodes that do it all may give a picture, or nothing; and "*" may be anything.
        return not given or bool(given & (gives | _MEDIA | {"*", "LATENT"}))

    def _find_sides(self, node_id: str, zeroed: bool) -> set[str]:
        """Return which prompt a node's conditioning is used as: positive, negative, unknown (only a custom node knows).

        ``zeroed``: also where it is set to zero first, so that nothing of the text is left.
        """
        found: set[str] = set()

        def beyond(node_id: str) -> Iterator[str]:
            for use in self.live_uses(node_id):
                if use.input in ("positive", "negative"):
                    found.add(use.input)
                elif "CONDITIONING" not in self._outputs(use.node_id):
                    found.add("positive" if use.input == "conditioning" else "unknown")
                elif zeroed or self.class_of(use.node_id) != "ConditioningZeroOut":
                    yield use.node_id

        reached([node_id], beyond)
        return found

    def _find_ends(self, node_id: str, name: str) -> list[Place]:
        """Return the inputs that a value gets to, through nodes that give nothing but values."""
        ends = []

        def beyond(at: Place) -> list[Place]:
            outputs, uses = self._outputs(at.node_id), self.live_uses(at.node_id)
            if uses and outputs and outputs <= _VALUES:
                return [Place(use.node_id, use.input) for use in uses]
            ends.append(at)
            return []

        reached([Place(node_id, name)], beyond)
        return ends


# --- checks -----------------------------------------------------------------------------------------------------

_REPLACED = (
    "this node loads one of the job's LoRAs, so its name and strengths come from loras and parameters.extra.loras; "
    'if it is to stay as the template has it, put the word "fixed" into its title'
)


def check(workflow: Workflow, envelope: Envelope, context: Context, registry: NodeRegistry) -> None:
    """Raises InvalidRequest that names parameter, node and path of every bound value that is not used as meant, and
    every name in the graph that ComfyUI has no file or choice for (:func:`unknown_names`).

    ``workflow`` is the graph after :func:`bound` and :func:`chained`. A binding to a LoRA loader that went with the
    chain's making does not count; the LoRAs themselves are checked to be in the graph. Of a graph that this ComfyUI
    cannot run at all that is reported alone.
    """
    problems = path_problems(workflow, registry, context.own_paths) + registry_problems(workflow, registry)
    if not problems and not registry.output_nodes(workflow):
        problems = [{"path": "workflow", "problem": "the workflow has no output node: add one, such as SaveImage"}]
    if problems:
        raise refusal(problems, "workflow")
    uses = Uses(workflow, registry)
    problems += _binding_problems(uses, envelope, context)
    problems += _override_problems(uses, envelope)
    loaded = set().union(*map(strings, uses.live.values()))
    problems += [
        {"path": f"loras[{at}]", "problem": "no output uses the LoRA loaders of this workflow"}
        for at, use in enumerate(context.loras)
        if use.name not in loaded
    ]
    problems += unknown_names(workflow, registry, context)
    if problems:
        raise refusal(problems, "workflow parameters")


def _binding_problems(uses: Uses, envelope: Envelope, context: Context) -> Iterator[Problem]:
    for at, binding in enumerate(envelope.workflow_parameters):
        node = uses.workflow.get(binding.node)
        # A loader without a LoRA for it is gone; the LoRAs are looked at by themselves.
        if node is None or (is_pattern(node) and binding.parameter in PRIMARY):
            continue
        if problem := _binding_problem(uses, binding, context):
            place = {"parameter": binding.parameter, **where("workflowParameters", at, binding)}
            yield {**place, "class_type": node["class_type"], **problem}


def _binding_problem(uses: Uses, binding: Binding, context: Context) -> Problem | None:
    node, value = uses.workflow[binding.node], context.values.get(binding.parameter)
    place = find_path(node, binding.path)
    if place is None or not place.exists or place.value != value:
        return {"problem": _REPLACED}
    if binding.node not in uses.live:
        return {"problem": f"no output depends on this {node['class_type']}"}
    name = binding.path.removeprefix("inputs.")
    return uses.input_problem(binding.node, name, value) or uses.role_problem(binding)


def _override_problems(uses: Uses, envelope: Envelope) -> Iterator[Problem]:
    """Yield overrides without an effect: of what the chain of LoRAs sets itself, of what no class of that name has."""
    for at, override in enumerate(envelope.workflow_overrides):
        node = uses.workflow.get(override.node)
        part, _, name = override.path.partition(".")
        if node is None or part != "inputs" or not name:
            continue
        is_set_later = is_pattern(node) and name in PRIMARY.values() and node["inputs"].get(name) != override.value
        problem = {"problem": _REPLACED} if is_set_later else uses.name_problem(override.node, name)
        if problem:
            yield {**where("workflowOverrides", at, override), "class_type": node["class_type"], **problem}


def unknown_names(workflow: Workflow, registry: NodeRegistry, context: Context) -> list[Problem]:
    """Return every name that a choice of the registry does not have, with near matches: ComfyUI would refuse it.

    The job's own models may not be there yet. Classes of custom nodes may check their inputs in their own way, which
    the registry does not tell, so there only names of model files are looked at.
    """
    problems: list[Problem] = []
    base = context.values["base_model_name"]
    coming = {base, *(use.name for use in context.loras)}
    is_base_bound = any(base in strings(node) for node in workflow.values())
    for node_id, node in Graph(workflow, registry).live.items():
        for name, given in node["inputs"].items():
            value, spec = unwrapped(given), registry.spec(node["class_type"], name)
            choices = choices_of(spec)
            if choices is None or is_link(value) or isinstance(value, (list, dict)) or value in choices:
                continue
            is_model = isinstance(value, str) and value.lower().endswith(SUFFIXES)
            if value in coming or upload_kind(spec) or not (is_model or registry.is_core(node["class_type"])):
                continue
            is_path = value in context.own_paths
            shown = "a model's full path" if is_path else str(value)[:200]
            problem = f"{shown if is_path else repr(shown)} is not one of the {len(choices)} that ComfyUI has there"
            if is_path or (is_named_for("base_model_name", name) and not is_base_bound):
                problem += ": bind base_model_name to it"
            found = problem_at(node_id, node, name, value=shown, type="value_not_in_list", problem=problem)
            near = near_matches(value, choices) if len(problems) < MAX_NEAR else []
            # A number may be spelled as the string that is given.
            problems.append({**found, "near": [each for each in near if each != str(value)]})
    return problems


# --- warnings ---------------------------------------------------------------------------------------------------


def warnings(workflow: Workflow, envelope: Envelope, context: Context, registry: NodeRegistry) -> tuple[str, ...]:
    """Return warnings for a graph that :func:`check` took: what of the job it has no place for, prompts that are the
    other prompt too, and what was not taken as it was given."""
    left = unplaced(workflow, envelope, context)
    said = "the workflow has no place for it (bind {} with workflowParameters), and used its own value"
    order = ["prompt", "negative_prompt", *REQUIRED_SAMPLING, "baseModel"]
    unused = [
        f"{name}: {said.format('base_model_name' if name == 'baseModel' else 'it')}" for name in order if name in left
    ]
    uses = Uses(workflow, registry)
    both = dict.fromkeys(
        f"{binding.parameter}: it is used as {other} prompt too"
        for binding in envelope.workflow_parameters
        if binding.node in workflow and (other := uses.other_side(binding))
    )
    return (*unused, *both, *context.warnings)


def unplaced(workflow: Workflow, envelope: Envelope, context: Context) -> frozenset[str]:
    """Return the names of what of the job the graph does not have (``baseModel`` for that): it used values of its own.

    Neither bound nor at an input that is named for it; a template may well be meant so. The base model's name is no
    other value by chance, so it may stand anywhere.
    """
    bound_names = {binding.parameter for binding in envelope.workflow_parameters}
    wanted = {"prompt", *REQUIRED_SAMPLING} | ({"negative_prompt"} if envelope.parameters.negative_prompt else set())
    inputs = [item for node in workflow.values() for item in node["inputs"].items()]
    left = {
        parameter
        for parameter in wanted - bound_names
        if not any(value == context.values[parameter] and is_named_for(parameter, name) for name, value in inputs)
    }
    base = context.values["base_model_name"]
    if bound_names.isdisjoint(_BASE_MODEL) and not any(base in strings(node) for node in workflow.values()):
        left.add("baseModel")
    return frozenset(left)
