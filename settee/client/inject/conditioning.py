"""Prompts in the nodes of a workflow: their texts, the conditioning that they take, and the nodes that sample."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cached_property
from typing import NamedTuple

from settee.client.inject import vocabulary
from settee.client.inject.selectors import LiveGraph
from settee.client.inject.vocabulary import Side
from settee.comfyui.graph import Place, Use, reached
from settee.comfyui.node_registry import type_of
from settee.comfyui.workflow import links

#: Types of ComfyUI's registry that are neither conditioning nor a text.
_OTHER_TYPES = frozenset(
    ["MODEL", "CLIP", "VAE", "IMAGE", "MASK", "LATENT", "INT", "FLOAT", "BOOLEAN", "COMBO", "CONTROL_NET"]
)


class Link(NamedTuple):
    node_id: str
    slot: int


class PromptGraph(LiveGraph):
    """A workflow whose classes are known by the registry, and by names where that does not describe them."""

    @cached_property
    def inputs(self) -> dict[str, dict[str, str | Link]]:
        """For every node, the inputs that may matter: links to existing nodes, and texts."""
        found = {}
        for node_id, node in self.workflow.items():
            linked = {name: Link(source, slot) for name, source, slot in links(node) if source in self.workflow}
            texts = {name: value for name, value in node["inputs"].items() if isinstance(value, str)}
            given: dict[str, str | Link] = {**linked, **texts}
            found[node_id] = {name: given[name] for name in node["inputs"] if name in given}
        return found

    @cached_property
    def sides(self) -> dict[str, dict[str, Side]]:
        """For every node, its inputs for conditioning and their sides: links, or texts (``positive: "a cat"``)."""
        found: dict[str, dict[str, Side]] = {}
        for node_id, inputs in self.inputs.items():
            sides = {name: self._side_of_input(node_id, name, value) for name, value in inputs.items()}
            found[node_id] = {name: side for name, side in sides.items() if side}
        return found

    def taking(self, node_id: str, *sides: Side) -> list[str]:
        """Return a node's inputs for conditioning of these sides."""
        return [name for name, side in self.sides[node_id].items() if side in sides]

    def _side_of_input(self, node_id: str, name: str, value: str | Link) -> Side | None:
        kind, side = self._type_of(node_id, name), vocabulary.conditioning_side(name)
        if isinstance(value, str):
            is_prompt = name.lower() in ("positive", "negative") or vocabulary.is_text_name(name)
            return side if is_prompt and side in ("positive", "negative") and kind in (None, "STRING") else None
        if kind == "CONDITIONING":
            return "neutral" if side in (None, "bundle") else side
        return None if kind in _OTHER_TYPES else side

    # --- the registry -------------------------------------------------------------------------------------

    def _type_of(self, node_id: str, name: str) -> str | None:
        return type_of(self.spec(Place(node_id, name)))

    def may_be_text(self, node_id: str, name: str) -> bool:
        """Return True if an input takes a text, as far as the registry knows."""
        return self._type_of(node_id, name) in (None, "STRING", "*")

    def _of_output(self, link: Link, key: str) -> str | None:
        listed = self.registry.entry(self.class_of(link.node_id)).get(key)
        return str(listed[link.slot]) if isinstance(listed, list) and link.slot < len(listed) else None

    def gives_text(self, link: Link) -> bool:
        """Return True if what a link takes is known to be a text."""
        kind = self._of_output(link, "output")
        return kind == "STRING" if kind is not None else self.class_of(link.node_id) in vocabulary.TEXT_FUNCTIONS

    def side_of_output(self, link: Link) -> Side | None:
        """Return the side of an output of a node of two sides, where it is known."""
        side = vocabulary.sided(self._of_output(link, "output_name") or "")
        if side is None and self.class_of(link.node_id) in vocabulary.TWO_SIDED:
            return "positive" if link.slot == 0 else "negative"
        return side

    # --- nodes --------------------------------------------------------------------------------------------

    def _linked(self, node_id: str) -> dict[str, Link]:
        """Return the links that a node takes conditioning by."""
        inputs = self.inputs[node_id]
        return {name: link for name in self.sides[node_id] if isinstance(link := inputs[name], Link)}

    @cached_property
    def samplers(self) -> list[str]:
        """Live nodes that conditioning ends at, samplers and guiders of whatever make, in natural order."""
        passed_on = {self._behind_reroutes(link.node_id) for i in self.live for link in self._linked(i).values()}
        return [node_id for node_id in self.live if self._samples(node_id, is_passed_on=node_id in passed_on)]

    def _samples(self, node_id: str, *, is_passed_on: bool) -> bool:
        # API nodes take a negative_prompt, which may be linked and is not conditioning.
        name = self.class_of(node_id)
        if all(map(vocabulary.is_text_name, self._linked(node_id))) or name in vocabulary.CONDITIONING:
            return False
        if len(self.workflow[node_id]["inputs"].keys() & vocabulary.SAMPLING_INPUTS) > 1:
            return True
        gives_conditioning = "CONDITIONING" in self.registry.outputs(name)
        return not (is_passed_on or gives_conditioning or vocabulary.says(name, "keeper"))

    def neutral_side(self, sampler: str) -> Side:
        """Return the side of the conditioning that a sampler takes under a name of neither."""
        # Normalized attention guidance takes its one condition as a negative.
        if re.search(r"NAG(?![a-z])", self.class_of(sampler)):
            return "negative"
        # A node that gives a model and nothing else has its conditioning for its own use.
        gives = {use.input for use in self.live_uses(sampler)}
        is_patch = bool(gives) and all("model" in vocabulary.words(name) for name in gives)
        is_only = len(self.taking(sampler, "neutral")) == 1 and not self.taking(sampler, "positive")
        return "positive" if is_only and not is_patch else "middle"

    def left_unused(self, node_id: str) -> list[str]:
        """Return the inputs of a node of ComfyUI's own whose conditioning is unused: it may serve for its latent."""
        kind = self.class_of(node_id)
        slots = {use.slot for use in self.live_uses(node_id) if not vocabulary.is_other_kind(use.input)}
        if kind in vocabulary.ONE_SIDED and 0 not in slots:
            return list(self.sides[node_id])
        if kind in vocabulary.TWO_SIDED:
            unused = {"positive": 0 not in slots, "negative": not slots - {0}}
            return [name for name, side in self.sides[node_id].items() if unused.get(side)]
        return []

    def own_texts(self, node_id: str, *, only_named: bool = False) -> list[str]:
        """Return the inputs of a node that hold its prompt, if it is an encoder."""
        name, inputs = self.class_of(node_id), self.inputs[node_id]
        if name in vocabulary.CONDITIONING:
            return [text for text in vocabulary.ENCODERS.get(name, ()) if text in inputs]
        texts = [text for text in inputs if self.may_be_text(node_id, text)]
        named = [text for text in texts if vocabulary.is_text_name(text)]
        # An encoder has its language model by a link. What is left then is a text under a name of its own.
        linked = [text for text, value in inputs.items() if isinstance(value, Link)]
        is_encoder = any(vocabulary.is_language_model(text) or "model" in vocabulary.words(text) for text in linked)
        if named or only_named or not is_encoder or self.sides[node_id]:
            return named
        is_choice = {text for text in texts if text not in vocabulary.PARTS and vocabulary.says(text, "choice")}
        return [text for text in texts if isinstance(inputs[text], str) and text not in is_choice]

    # --- reroutes and switches ----------------------------------------------------------------------------

    def passed_through(self, node_id: str) -> list[str]:
        """Return the inputs of a reroute or a switch."""
        inputs = self.inputs[node_id]
        linked = [name for name, value in inputs.items() if isinstance(value, Link)]
        if len(linked) == 1 and len(inputs) == 1 and not vocabulary.is_other_kind(linked[0]):
            return linked
        return [name for name in linked if vocabulary.is_switch_name(name)]

    def _behind_reroutes(self, node_id: str) -> str:
        def source(node_id: str) -> Iterator[str]:
            inputs = self.inputs[node_id]
            if len(inputs) == 1 and not vocabulary.conditioning_side(next(iter(inputs))):
                yield from (value.node_id for value in inputs.values() if isinstance(value, Link))

        return reached([node_id], source)[-1]

    def uses_behind_reroutes(self, node_id: str) -> list[Use]:
        """Return where a node's outputs end up, as far as it matters."""

        def is_reroute(node_id: str) -> bool:
            is_one = len(self.inputs[node_id]) == 1 and self.passed_through(node_id)
            return bool(is_one and self.live_uses(node_id))

        users = reached([node_id], lambda i: (use.node_id for use in self.live_uses(i) if is_reroute(use.node_id)))
        return [use for user in users for use in self.live_uses(user) if not is_reroute(use.node_id)]
