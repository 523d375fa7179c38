"""From what a sampler takes as positive and negative back to the texts that it is made of.

A walk answers with every text input it meets, and decides nothing: that is :mod:`settee.client.inject.prompt_places`'s.
Nothing here recurses or trusts a graph to be free of loops.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from settee.client.inject import vocabulary
from settee.client.inject.conditioning import Link, PromptGraph
from settee.client.inject.vocabulary import Side
from settee.comfyui.graph import Place, Use, reached

#: The last is found by what the others left.
_WALKED: tuple[Side, ...] = ("positive", "negative", "middle", "empty", "erased")
#: The negative guides cond2, and that one cond1: a second prompt, or the negative with an image.
_DUAL_CFG: dict[Side, list[str]] = {"positive": ["cond1"], "middle": ["cond2"], "negative": ["negative"]}


class Text(NamedTuple):
    """Where the text of an input is written: there, or at the literals that its link leads to."""

    literals: tuple[Place, ...]
    #: Nodes on the way that make a text themselves (a caption, a language model's answer).
    makers: tuple[str, ...] = ()


@dataclass
class Reach:
    """The end of one side's paths through the graph."""

    #: The text inputs: of encoders, which turn them into conditioning, and of nodes that take a prompt themselves.
    texts: dict[Place, Text] = field(default_factory=dict)
    visited: set[str] = field(default_factory=set)
    #: The outputs that the ways went through.
    outputs: set[Link] = field(default_factory=set)
    #: Nodes at which a way ends because they erase their conditioning.
    zeroed: set[str] = field(default_factory=set)
    #: Nodes at which a way ends without a text.
    ends: set[str] = field(default_factory=set)


class _Step(NamedTuple):
    at: Link
    #: It came out of a bundle, whose outputs' numbers are unrelated to the inputs'.
    is_carried: bool = False


class Tracing:
    """Every side's ways through a graph."""

    def __init__(self, graph: PromptGraph) -> None:
        self.graph = graph
        #: Outputs by which paths left nodes of two sides, where only custom assigns them.
        self._left_by: dict[str, dict[Side, set[int]]] = {}
        self.reaches: dict[Side, Reach] = {}
        for side in _WALKED:
            self.reaches[side] = self._walked(side)

    @property
    def visited(self) -> set[str]:
        """Return the nodes whose side is known."""
        return set().union(*(reach.visited for reach in self.reaches.values()))

    @property
    def doubtful(self) -> list[str]:
        """Return the nodes with a positive and a negative input whose outputs cannot be assigned to a side.

        By custom the first output is positive and the second negative. Nodes that have other outputs before those still
        have them in this order, which shows where both are used. All else may be anything.
        """
        found = []
        for node_id, slots in self._left_by.items():
            positive, negative = slots.get("positive", set()), slots.get("negative", set())
            is_custom = positive <= {0} and negative <= {1}
            is_in_order = positive and negative and max(positive) < min(negative)
            if not (is_custom or is_in_order):
                found.append(node_id)
        return found

    def strays(self, side: Side) -> list[Use]:
        """Return the inputs that take this side's conditioning for an unknown purpose, perhaps the other side's."""
        known = self.visited.union(self.graph.samplers)
        return [
            use
            for output in self.reaches[side].outputs
            for use in self.graph.live_uses(*output)
            if not (use.node_id in known and self._is_followed(use))
            and not vocabulary.is_other_kind(use.input)
            and not vocabulary.says(self.graph.class_of(use.node_id), "keeper")
        ]

    def _is_followed(self, use: Use) -> bool:
        return use.input in (*self.graph.sides[use.node_id], *self.graph.passed_through(use.node_id))

    # --- the walk -----------------------------------------------------------------------------------------

    def _walked(self, side: Side) -> Reach:
        reach = Reach()
        starts = [step for node_id, names in self._starts(side) for step in self._enter(node_id, names, side, reach)]
        reached(starts, lambda step: self._beyond(step, side, reach))
        return reach

    def _starts(self, side: Side) -> Iterator[tuple[str, list[str]]]:
        graph = self.graph
        if side == "erased":
            for node_id in set().union(*(reach.zeroed for reach in self.reaches.values())):
                yield node_id, list(graph.sides[node_id])
            for node_id in graph.live:
                yield node_id, graph.left_unused(node_id)
            return
        for node_id in graph.samplers:
            if graph.class_of(node_id) == "DualCFGGuider":
                yield node_id, _DUAL_CFG.get(side, [])
            else:
                bundle: list[Side] = ["bundle"] if side in ("positive", "negative") else []
                neutral: list[Side] = ["neutral"] if graph.neutral_side(node_id) == side else []
                yield node_id, graph.taking(node_id, side, *bundle, *neutral)

    def _enter(self, node_id: str, names: list[str], side: Side, reach: Reach, own: Iterable[str] = ()) -> list[_Step]:
        """Through these inputs of a node: to where they come from; texts among them, its ``own`` all, are found."""
        steps = []
        for name in (*names, *own):
            value = self.graph.inputs[node_id].get(name)
            is_text = name in own or vocabulary.is_text_name(name)
            if isinstance(value, Link) and not is_text and not self.graph.gives_text(value):
                steps.append(_Step(value, vocabulary.conditioning_side(name) == "bundle"))
            elif value is not None:
                reach.texts[Place(node_id, name)] = self.text(Place(node_id, name), side, reach)
        return steps

    def _beyond(self, step: _Step, side: Side, reach: Reach) -> list[_Step]:
        """Visit one node of a path: note its texts, and return where the path goes on."""
        node_id, graph = step.at.node_id, self.graph
        reach.visited.add(node_id)
        reach.outputs.add(step.at)
        if side != "erased" and re.search(r"zero_?out", graph.class_of(node_id), re.IGNORECASE):
            reach.zeroed.add(node_id)
            return []
        positive, negative = graph.taking(node_id, "positive"), graph.taking(node_id, "negative")
        bundles, neutral = graph.taking(node_id, "bundle"), graph.taking(node_id, "neutral")
        own = graph.own_texts(node_id, only_named=step.is_carried)
        texts = [name for name in own if name not in positive + negative]
        if positive and negative:
            taken = positive if self._chosen(step, side) == "positive" else negative
        elif bundles:
            # A link next to a bundle replaces the one in the bundle.
            taken = (positive if side == "positive" else negative) or bundles
        elif step.is_carried and side == "negative" and (positive or neutral or texts):
            # A bundle without sides holds a prompt, and no negative one.
            return []
        else:
            taken = positive + negative
        taken = taken + neutral
        if not taken and not texts:
            taken = graph.passed_through(node_id)
        if not taken and not texts:
            reach.ends.add(node_id)
        steps = self._enter(node_id, taken, side, reach, texts)
        # What a bundle was taken through, a reroute, leaves it one.
        return steps if graph.sides[node_id] else [one._replace(is_carried=step.is_carried) for one in steps]

    def _chosen(self, step: _Step, side: Side) -> Side:
        """Return the one of a node's two sides that a path goes on to."""
        known = self.graph.side_of_output(step.at)
        if known is not None and not step.is_carried:
            return known
        if side not in ("positive", "negative"):
            return "positive" if step.at.slot == 0 else "negative"
        if not step.is_carried:
            self._left_by.setdefault(step.at.node_id, {}).setdefault(side, set()).add(step.at.slot)
        return side

    # --- texts --------------------------------------------------------------------------------------------

    def text(self, place: Place, side: Side, reach: Reach) -> Text:
        """Return a text input, followed to the literals that it is made of; the nodes on the way count as visited."""
        literals: dict[Place, None] = {}
        makers: dict[str, None] = {}

        def parts(one: Place) -> list[Place]:
            value = self.graph.inputs[one.node_id].get(one.input)
            if isinstance(value, str):
                literals[one] = None
            if not isinstance(value, Link):
                return []
            reach.visited.add(value.node_id)
            names = self._parts(value, side)
            if not names:
                makers[value.node_id] = None
            # Where a text is put together, an empty part is not a prompt.
            filled = [name for name in names if self.graph.inputs[value.node_id][name] != ""]
            return [Place(value.node_id, name) for name in reversed(filled or names)]

        reached([place], parts)
        return Text(tuple(literals), tuple(makers))

    def _parts(self, link: Link, side: Side) -> list[str]:
        """Return the inputs that a node's text is made of; none when it makes it of something else."""
        node_id, name = link.node_id, self.graph.class_of(link.node_id)
        inputs = self.graph.inputs[node_id]
        if name in vocabulary.TEXT_FUNCTIONS:
            return [part for part in vocabulary.TEXT_FUNCTIONS[name] if part in inputs]
        passed = self.graph.passed_through(node_id)
        if passed:
            return passed
        texts = [part for part in inputs if self.graph.may_be_text(node_id, part)]
        named = [part for part in texts if vocabulary.is_text_name(part)]
        others = [part for part, value in inputs.items() if isinstance(value, Link) and part not in named]
        if not all(vocabulary.says(part, "number") for part in others):
            return []
        positive = [part for part in named if vocabulary.sided(part) == "positive"]
        negative = [part for part in named if vocabulary.sided(part) == "negative"]
        if positive and negative:
            return positive if self._chosen(_Step(link), side) == "positive" else negative
        return named or [part for part in texts if part.lower() in vocabulary.VALUE_NAMES]
