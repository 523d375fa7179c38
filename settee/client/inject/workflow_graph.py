"""A workflow as the search for prompts sees it: what reaches an output, what an input takes, and where sampling is."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from typing import Any, NamedTuple

from settee.client.inject import vocabulary
from settee.client.inject.selectors import live_nodes
from settee.client.inject.vocabulary import Side
from settee.comfyui.literals import Use, users
from settee.comfyui.node_registry import UNKNOWN, NodeRegistry
from settee.comfyui.workflow import Workflow, links, natural_key

#: Types of ComfyUI's registry that are neither conditioning nor a text.
_OTHER_TYPES = frozenset(
    ["MODEL", "CLIP", "VAE", "IMAGE", "MASK", "LATENT", "INT", "FLOAT", "BOOLEAN", "COMBO", "CONTROL_NET"]
)


class Link(NamedTuple):
    """The output of another node that an input takes."""

    node_id: str
    slot: int


class Graph:
    """The links and texts of a workflow. ``registry`` describes the classes that it has; the others are known by
    names."""

    def __init__(self, workflow: Workflow, registry: NodeRegistry = UNKNOWN) -> None:
        self.workflow = workflow
        self.registry = registry
        self._inputs: dict[str, dict[str, str | Link]] = {}
        self._sides: dict[str, dict[Side, list[str]]] = {}

    def class_of(self, node_id: str) -> str:
        return str(self.workflow[node_id]["class_type"])

    def inputs(self, node_id: str) -> dict[str, str | Link]:
        """Return the inputs that may matter: links to existing nodes, and texts."""
        if node_id not in self._inputs:
            node = self.workflow[node_id]
            linked = {name: Link(source, slot) for name, source, slot in links(node) if source in self.workflow}
            self._inputs[node_id] = {
                name: linked.get(name, value)
                for name, value in node["inputs"].items()
                if name in linked or isinstance(value, str)
            }
        return self._inputs[node_id]

    # --- what reaches an output ---------------------------------------------------------------------------

    @cached_property
    def users(self) -> dict[str, list[Use]]:
        return users(self.workflow)

    @cached_property
    def live(self) -> dict[str, None]:
        """Return the nodes that an output needs, in natural order."""
        return dict.fromkeys(sorted(live_nodes(self.workflow, self.registry), key=natural_key))

    def live_uses(self, node_id: str, slot: int | None = None) -> list[Use]:
        """Return where an output goes, or all of a node's, as far as it matters."""
        return [use for use in self.users[node_id] if use.node_id in self.live and slot in (None, use.slot)]

    def uses_behind_reroutes(self, node_id: str) -> list[Use]:
        """Return where a node's outputs end up, as far as it matters."""
        found, waiting, seen = [], [node_id], {node_id}
        while waiting:
            for use in self.live_uses(waiting.pop()):
                is_reroute = len(self.inputs(use.node_id)) == 1 and self.passed_through(use.node_id)
                if not is_reroute or not self.live_uses(use.node_id):
                    found.append(use)
                elif use.node_id not in seen:
                    seen.add(use.node_id)
                    waiting.append(use.node_id)
        return found

    # --- the registry ---------------------------------------------------------------------------

    def _of_output(self, node_id: str, slot: int, key: str) -> str | None:
        listed = self.registry.entry(self.class_of(node_id)).get(key)
        return str(listed[slot]) if isinstance(listed, list) and slot < len(listed) else None

    def is_api_node(self, node_id: str) -> bool:
        """Return True if a node calls a service, which takes the prompt itself."""
        return bool(self.registry.entry(self.class_of(node_id)).get("api_node"))

    def may_be_text(self, node_id: str, name: str) -> bool:
        """Return True if an input takes a text, as far as the registry knows."""
        return self._type_of(node_id, name) in (None, "STRING", "*")

    def _type_of(self, node_id: str, name: str) -> str | None:
        """Return an input's type (``COMBO`` for choices); None when the registry does not know."""
        spec = self.declared(node_id).get(name)
        if spec is None:
            return None
        return spec[0] if isinstance(spec[0], str) else "COMBO"

    def declared(self, node_id: str) -> dict[str, list[Any]]:
        """Return the inputs that the registry declares for a node's class: name → ``[type or choices, options?]``."""
        declared = self.registry.inputs(self.class_of(node_id))
        return {name: spec for name, spec in declared.items() if isinstance(spec, list) and spec}

    def gives_text(self, link: Link) -> bool:
        """Return True if what a link takes is known to be a text."""
        kind = self._of_output(*link, "output")
        return kind == "STRING" if kind is not None else self.class_of(link.node_id) in vocabulary.TEXT_FUNCTIONS

    def side_of_output(self, link: Link) -> Side | None:
        """Return the side of an output of a node of two sides, where it is known."""
        side = vocabulary.sided(self._of_output(*link, "output_name") or "")
        if side is None and self.class_of(link.node_id) in vocabulary.TWO_SIDED:
            return Side.POSITIVE if link.slot == 0 else Side.NEGATIVE
        return side

    # --- conditioning -------------------------------------------------------------------------------------

    def sides(self, node_id: str) -> dict[Side, list[str]]:
        """Return a node's inputs for conditioning by side: links, and texts in their stead (``positive: "a cat"``)."""
        if node_id not in self._sides:
            self._sides[node_id] = {side: [] for side in Side}
            for name, value in self.inputs(node_id).items():
                side = self._side_of_input(node_id, name, value)
                if side is not None:
                    self._sides[node_id][side].append(name)
        return self._sides[node_id]

    def _side_of_input(self, node_id: str, name: str, value: str | Link) -> Side | None:
        kind, side = self._type_of(node_id, name), vocabulary.conditioning_side(name)
        if isinstance(value, str):
            is_prompt = name.lower() in ("positive", "negative") or vocabulary.is_text_name(name)
            is_meant = is_prompt and side in (Side.POSITIVE, Side.NEGATIVE) and kind in (None, "STRING")
            return side if is_meant else None
        if kind == "CONDITIONING":
            return Side.NEUTRAL if side in (None, Side.BUNDLE) else side
        return None if kind in _OTHER_TYPES else side

    def _conditioning(self, node_id: str) -> Iterator[tuple[str, Link]]:
        inputs = self.inputs(node_id)
        for name in (name for names in self.sides(node_id).values() for name in names):
            value = inputs[name]
            if isinstance(value, Link):
                yield name, value

    @cached_property
    def samplers(self) -> list[str]:
        """Live nodes that conditioning ends at, samplers and guiders of whatever make, in natural order."""
        passed_on = {
            self._behind_reroutes(link.node_id) for node_id in self.live for _, link in self._conditioning(node_id)
        }
        return [node_id for node_id in self.live if self._samples(node_id, is_passed_on=node_id in passed_on)]

    def _samples(self, node_id: str, *, is_passed_on: bool) -> bool:
        # API nodes take a negative_prompt, which may be linked and is not conditioning.
        taken = [name for name, _ in self._conditioning(node_id) if not vocabulary.is_text_name(name)]
        name = self.class_of(node_id)
        if not taken or name in vocabulary.CONDITIONING:
            return False
        if len(self.workflow[node_id]["inputs"].keys() & vocabulary.SAMPLING_INPUTS) > 1:
            return True
        given = self.registry.entry(self.class_of(node_id)).get("output")
        gives_conditioning = isinstance(given, list) and "CONDITIONING" in given
        return not (is_passed_on or gives_conditioning or vocabulary.keeps_texts(name))

    def is_patch(self, node_id: str) -> bool:
        """Return True if a node gives a model and nothing else, so that its conditioning is for its own use."""
        names = {use.input for use in self.live_uses(node_id)}
        return bool(names) and all("model" in vocabulary.words(name) for name in names)

    def _behind_reroutes(self, node_id: str) -> str:
        seen: set[str] = set()
        while node_id not in seen:
            seen.add(node_id)
            values = list(self.inputs(node_id).items())
            if len(values) == 1 and isinstance(values[0][1], Link) and not vocabulary.conditioning_side(values[0][0]):
                node_id = values[0][1].node_id
        return node_id

    def passed_through(self, node_id: str) -> list[str]:
        """Return the inputs of a reroute or a switch."""
        inputs = self.inputs(node_id)
        linked = [name for name, value in inputs.items() if isinstance(value, Link)]
        if len(linked) == 1 and len(inputs) == 1 and not vocabulary.is_other_kind(linked[0]):
            return linked
        return [name for name in linked if vocabulary.is_switch_name(name)]


#: Inputs that take a latent, by their names in ComfyUI and in the usual packs.
_LATENT = re.compile(r"(?:init_)?(?:latents?(?:_image)?|samples)\d*")
#: What a node has besides a latent when it samples; a scheduler (LTXVScheduler) or conditioning (LTXVAddGuide) may
#: take a latent too.
_SAMPLING = frozenset(["sigmas", "sampler", "sampler_name", "guider", "cfg"])


class Samplers:
    """Nodes that sample: they take a latent, and sigmas, a guider, cfg or a sampler by name."""

    def __init__(self, graph: Graph) -> None:
        self._graph, self._workflow = graph, graph.workflow
        #: In natural order.
        self.ids = [node_id for node_id in graph.live if self._samples(node_id)]

    def _samples(self, node_id: str) -> bool:
        is_sampling = not _SAMPLING.isdisjoint(self._workflow[node_id]["inputs"])
        return is_sampling and any(True for _ in self._latents_of(node_id))

    def _latents_of(self, node_id: str) -> Iterator[str]:
        """Yield the nodes that this one's latents come from."""
        for name, source, _ in links(self._workflow[node_id]):
            if _LATENT.fullmatch(name) and source in self._workflow:
                yield source

    def _behind(self, node_ids: Iterable[str]) -> list[str]:
        """Return every node that the latents of these come through, by way of latents only, in no order."""
        found: dict[str, None] = {}
        pending = list(node_ids)
        while pending:
            node_id = pending.pop()
            for source in [*self._latents_of(node_id), *self._rerouted(node_id)]:
                if source not in found:
                    found[source] = None
                    pending.append(source)
        return list(found)

    def _rerouted(self, node_id: str) -> list[str]:
        node = self._workflow[node_id]
        reroute = "reroute" in str(node["class_type"]).casefold()
        return [source for _, source, _ in links(node) if source in self._workflow] if reroute else []

    def latent_nodes(self) -> list[str]:
        """Return the nodes with a width and a height that the samplers' latents come from or through, in natural
        order."""
        nodes = [i for i in self._behind(self.ids) if {"width", "height"} <= set(self._workflow[i]["inputs"])]
        return sorted(nodes, key=natural_key)

    def in_sequence(self, node_ids: Sequence[str]) -> bool:
        """Return True if these nodes (samplers, or what feeds or sizes them) all belong to one row of samplers.

        A row: each sampler but the first goes on from the latent of another of them.
        """
        if len(node_ids) < 2:
            return True
        owners = [self._owners(node_id) for node_id in node_ids]
        row = {sampler for owned in owners for sampler in owned}
        if not all(owners):
            return False
        firsts = [sampler for sampler in row if not row & set(self._behind([sampler])) - {sampler}]
        return len(firsts) == 1

    def _owners(self, node_id: str) -> set[str]:
        """Return the samplers that a node is, or that use what it makes; not through another sampler."""
        found, seen, pending = set(), set(), [node_id]
        while pending:
            at = pending.pop()
            if at in self.ids:
                found.add(at)
            elif at not in seen:
                seen.add(at)
                pending += [use.node_id for use in self._graph.live_uses(at)]
        return found
