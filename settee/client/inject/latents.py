"""The samplers of a workflow, and the latents that go from one to the next."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence

from settee.comfyui.literals import Use
from settee.comfyui.workflow import Workflow, links, natural_key

#: Inputs that take a latent, by their names in ComfyUI and in the usual packs.
_LATENT = re.compile(r"(?:init_)?(?:latents?(?:_image)?|samples)\d*")
#: What a node has besides a latent when it samples; a scheduler (LTXVScheduler) or conditioning (LTXVAddGuide) may
#: take a latent too.
_SAMPLING = frozenset(["sigmas", "sampler", "sampler_name", "guider", "cfg"])


class Samplers:
    """Nodes that sample: they take a latent, and sigmas, a guider, cfg or a sampler by name."""

    def __init__(self, workflow: Workflow, alive: Iterable[str], used: Mapping[str, Sequence[Use]]) -> None:
        """``alive``, ``used``: as :mod:`settee.client.inject.selectors` tells them."""
        self._workflow, self._used = workflow, used
        self._alive = frozenset(alive)
        #: In natural order.
        self.ids = sorted((i for i in self._alive if self._samples(i)), key=natural_key)

    def _samples(self, node_id: str) -> bool:
        is_sampling = not _SAMPLING.isdisjoint(self._workflow[node_id]["inputs"])
        return is_sampling and any(True for _ in self._latents_of(node_id))

    def _latents_of(self, node_id: str) -> Iterator[str]:
        """The nodes that this one's latents come from."""
        for name, source, _ in links(self._workflow[node_id]):
            if _LATENT.fullmatch(name) and source in self._workflow:
                yield source

    def _behind(self, node_ids: Iterable[str]) -> list[str]:
        """Every node that the latents of these come through, by way of latents only, in no order."""
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
        """The nodes with a width and a height that the samplers' latents come from or through, in natural order."""
        nodes = [i for i in self._behind(self.ids) if {"width", "height"} <= set(self._workflow[i]["inputs"])]
        return sorted(nodes, key=natural_key)

    def in_sequence(self, node_ids: Sequence[str]) -> bool:
        """Whether these nodes (samplers, or what feeds or sizes them) all belong to one row of samplers.

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
        """The samplers that a node is, or that use what it makes; not through another sampler."""
        found, seen, pending = set(), set(), [node_id]
        while pending:
            at = pending.pop()
            if at in self.ids:
                found.add(at)
            elif at not in seen:
                seen.add(at)
                pending += [use.node_id for use in self._used[at] if use.node_id in self._alive]
        return found
