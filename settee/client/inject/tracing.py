"""From what a sampler takes as positive and negative back to the texts that it is made of.

A walk answers with every text input it meets, and decides nothing: that is :mod:`settee.client.inject.prompt_places`'s.
Nothing here recurses or trusts a graph to be free of loops.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

from settee.client.inject import vocabulary
from settee.client.inject.vocabulary import Side
from settee.client.inject.workflow_graph import Graph, Link
from settee.comfyui.literals import Place, Use

#: ``middle`` is either side's (DualCFGGuider's second condition, that of a model's patch), ``empty`` guides by no
#: prompt at all, and what ``erased`` leads to has no effect.
Role = Literal["positive", "negative", "middle", "empty", "erased"]
_WALKED: tuple[Role, ...] = ("positive", "negative", "middle", "empty")


@dataclass(frozen=True)
class Text:
    """A text input, and where its text is written: there, or at the literals that its link leads to."""

    place: Place
    literals: tuple[Place, ...]
    #: Nodes on the way that make a text themselves (a caption, a language model's answer).
    makers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoder:
    """A node that turns texts into conditioning, or a prompt into a result."""

    node_id: str
    texts: tuple[Text, ...]
    #: Whether its texts are one prompt, given to several language models.
    is_one_prompt: bool = False


@dataclass
class Reach:
    """The end of one role's paths through the graph."""

    encoders: dict[str, Encoder] = field(default_factory=dict)
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
    """Every role's ways through a graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        #: Outputs by which paths left nodes of two sides, where only custom assigns them.
        self._left_by: dict[str, dict[Role, set[int]]] = {}
        self.reaches: dict[Role, Reach] = {role: self._walked(role) for role in _WALKED}
        self.reaches["erased"] = self._walked("erased")

    @property
    def visited(self) -> set[str]:
        """Return the nodes whose role is known."""
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

    def strays(self, role: Role) -> list[Use]:
        """Return the inputs that take this role's conditioning for an unknown purpose: they may belong to the other
        side."""
        known = self.visited.union(self.graph.samplers)
        return [
            use
            for output in self.reaches[role].outputs
            for use in self.graph.live_uses(*output)
            if not (use.node_id in known and self._is_followed(use))
            and not vocabulary.is_other_kind(use.input)
            and not vocabulary.keeps_texts(self.graph.class_of(use.node_id))
        ]

    def _is_followed(self, use: Use) -> bool:
        if any(use.input in names for names in self.graph.sides(use.node_id).values()):
            return True
        return use.input in self.graph.passed_through(use.node_id)

    # --- the walk -----------------------------------------------------------------------------------------

    def _walked(self, role: Role) -> Reach:
        reach = Reach()
        waiting: list[_Step] = []
        for node_id, names in self._starts(role):
            waiting += self._enter(node_id, names, role, reach)
        seen: set[_Step] = set()
        while waiting:
            step = waiting.pop()
            if step not in seen:
                seen.add(step)
                reach.visited.add(step.at.node_id)
                reach.outputs.add(step.at)
                waiting += self._beyond(step, role, reach)
        return reach

    def _starts(self, role: Role) -> Iterable[tuple[str, list[str]]]:
        """Return the inputs that a role begins at."""
        if role == "erased":
            for node_id in set().union(*(reach.zeroed for reach in self.reaches.values())):
                yield node_id, [name for names in self.graph.sides(node_id).values() for name in names]
            for node_id in self.graph.live:
                yield node_id, self._left_unused(node_id)
            return
        for node_id in self.graph.samplers:
            sides, name = self.graph.sides(node_id), self.graph.class_of(node_id)
            if name == "DualCFGGuider":
                # The negative guides cond2, and that one cond1: a second prompt, or the negative with an image.
                yield node_id, {"positive": ["cond1"], "middle": ["cond2"], "negative": ["negative"]}.get(role, [])
            elif role in ("positive", "negative"):
                own = sides[Side.POSITIVE if role == "positive" else Side.NEGATIVE]
                yield (
                    node_id,
                    own + sides[Side.BUNDLE] + (sides[Side.NEUTRAL] if self._neutral(node_id) == role else []),
                )
            elif role == "middle":
                yield node_id, sides[Side.NEUTRAL] if self._neutral(node_id) == role else []
            elif role == "empty":
                yield node_id, sides[Side.EMPTY]

    def _neutral(self, sampler: str) -> Role:
        """Return the role of the conditioning that a sampler takes under a name of neither side."""
        sides = self.graph.sides(sampler)
        if vocabulary.is_kept_away_from(self.graph.class_of(sampler)):
            return "negative"
        is_only_one = len(sides[Side.NEUTRAL]) == 1 and not sides[Side.POSITIVE]
        return "positive" if is_only_one and not self.graph.is_patch(sampler) else "middle"

    def _left_unused(self, node_id: str) -> list[str]:
        """Return the inputs of a node of ComfyUI's own whose conditioning is unused: the node may serve for its latent
        only."""
        kind, sides = self.graph.class_of(node_id), self.graph.sides(node_id)
        slots = {use.slot for use in self.graph.live_uses(node_id) if not vocabulary.is_other_kind(use.input)}
        if kind in vocabulary.ONE_SIDED and 0 not in slots:
            return [name for names in sides.values() for name in names]
        if kind in vocabulary.TWO_SIDED:
            return ([] if 0 in slots else sides[Side.POSITIVE]) + ([] if slots - {0} else sides[Side.NEGATIVE])
        return []

    def _enter(self, node_id: str, names: list[str], role: Role, reach: Reach, own: Iterable[str] = ()) -> list[_Step]:
        """Through these inputs of a node: to where they come from; texts among them, its ``own`` all, are found."""
        inputs = self.graph.inputs(node_id)
        texts, steps = [], []
        for name in (*names, *own):
            value = inputs.get(name)
            is_text = name in own or vocabulary.is_text_name(name)
            if isinstance(value, Link) and not is_text and not self.graph.gives_text(value):
                steps.append(_Step(value, vocabulary.conditioning_side(name) is Side.BUNDLE))
            elif value is not None:
                texts.append(self.text(Place(node_id, name), role, reach))
        if texts:
            known = reach.encoders.get(node_id)
            merged = {text.place: text for text in (*(known.texts if known else ()), *texts)}
            is_one_prompt = self.graph.class_of(node_id) in vocabulary.ENCODERS or all(
                place.input in vocabulary.PARTS for place in merged
            )
            reach.encoders[node_id] = Encoder(node_id, tuple(merged.values()), is_one_prompt)
        return steps

    def _beyond(self, step: _Step, role: Role, reach: Reach) -> list[_Step]:
        """Visit one node of a path: note its texts, and return where the path goes on."""
        node_id = step.at.node_id
        if vocabulary.empties(self.graph.class_of(node_id)) and role != "erased":
            reach.zeroed.add(node_id)
            return []
        sides = self.graph.sides(node_id)
        positive, negative, bundles = sides[Side.POSITIVE], sides[Side.NEGATIVE], sides[Side.BUNDLE]
        own = self.own_texts(node_id, only_named=step.is_carried)
        texts = [name for name in own if name not in positive + negative]
        if positive and negative:
            taken = positive if self._side(step, role) is Side.POSITIVE else negative
        elif bundles:
            # A link next to a bundle replaces the one in the bundle.
            taken = (positive if role == "positive" else negative) or bundles
        elif step.is_carried and role == "negative" and (positive or sides[Side.NEUTRAL] or texts):
            # A bundle without sides holds a prompt, and no negative one.
            return []
        else:
            taken = positive + negative
        taken = taken + sides[Side.NEUTRAL]
        if not taken and not texts:
            taken = self.graph.passed_through(node_id)
        if not taken and not texts:
            reach.ends.add(node_id)
        steps = self._enter(node_id, taken, role, reach, texts)
        # What a bundle was taken through, a reroute, leaves it one.
        return steps if any(sides.values()) else [one._replace(is_carried=step.is_carried) for one in steps]

    def _side(self, step: _Step, role: Role) -> Side:
        """Return the one of a node's two sides that a path goes on to."""
        known = self.graph.side_of_output(step.at)
        if known is not None and not step.is_carried:
            return known
        if role not in ("positive", "negative"):
            return Side.POSITIVE if step.at.slot == 0 else Side.NEGATIVE
        if not step.is_carried:
            self._left_by.setdefault(step.at.node_id, {}).setdefault(role, set()).add(step.at.slot)
        return Side.POSITIVE if role == "positive" else Side.NEGATIVE

    def own_texts(self, node_id: str, *, only_named: bool = False) -> list[str]:
        """Return the inputs of a node that hold its prompt, if it is an encoder."""
        name, inputs = self.graph.class_of(node_id), self.graph.inputs(node_id)
        if name in vocabulary.ENCODERS:
            return [text for text in vocabulary.ENCODERS[name] if text in inputs]
        if name in vocabulary.CONDITIONING:
            return []
        texts = [text for text in inputs if self.graph.may_be_text(node_id, text)]
        named = [text for text in texts if vocabulary.is_text_name(text)]
        # An encoder has its language model by a link. What is left then is a text under a name of its own.
        linked = [text for text, value in inputs.items() if isinstance(value, Link)]
        is_encoder = any(vocabulary.is_language_model(text) or "model" in vocabulary.words(text) for text in linked)
        if named or only_named or not is_encoder or any(self.graph.sides(node_id).values()):
            return named
        return [text for text in texts if isinstance(inputs[text], str) and not vocabulary.is_choice_name(text)]

    # --- texts --------------------------------------------------------------------------------------------

    def text(self, place: Place, role: Role, reach: Reach) -> Text:
        """Return a text input, followed to the literals that it is made of; the nodes on the way count as visited."""
        literals: dict[Place, None] = {}
        makers: dict[str, None] = {}
        waiting, seen = [place], set()
        while waiting:
            one = waiting.pop()
            value = self.graph.inputs(one.node_id).get(one.input)
            if one in seen or value is None:
                continue
            seen.add(one)
            if isinstance(value, str):
                literals[one] = None
                continue
            reach.visited.add(value.node_id)
            parts = self._parts(value, role)
            if not parts:
                makers[value.node_id] = None
            # Where a text is put together, an empty part is not a prompt.
            filled = [name for name in parts if self.graph.inputs(value.node_id)[name] != ""]
            waiting += [Place(value.node_id, name) for name in reversed(filled or parts)]
        return Text(place, tuple(literals), tuple(makers))

    def _parts(self, link: Link, role: Role) -> list[str]:
        """Return the inputs that a node's text is made of; none when it makes it of something else."""
        node_id, name = link.node_id, self.graph.class_of(link.node_id)
        inputs = self.graph.inputs(node_id)
        if name in vocabulary.TEXT_FUNCTIONS:
            return [part for part in vocabulary.TEXT_FUNCTIONS[name] if part in inputs]
        passed = self.graph.passed_through(node_id)
        if passed:
            return passed
        texts = [part for part in inputs if self.graph.may_be_text(node_id, part)]
        named = [part for part in texts if vocabulary.is_text_name(part)]
        others = [part for part, value in inputs.items() if isinstance(value, Link) and part not in named]
        if not all(vocabulary.is_number_name(part) for part in others):
            return []
        sides = {side: [part for part in named if vocabulary.sided(part) is side] for side in Side}
        if sides[Side.POSITIVE] and sides[Side.NEGATIVE]:
            return sides[self._side(_Step(link), role)]
        return named or [part for part in texts if vocabulary.is_value_name(part)]
