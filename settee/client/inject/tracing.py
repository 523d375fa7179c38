"""From a sampler's positive and negative inputs back to the texts that feed them.

A walk answers with every text input it meets, and never decides between them: that is
:mod:`settee.client.inject.prompts`'s. Nothing here recurses, and nothing trusts a graph to be free of loops.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal, NamedTuple

from settee.client.inject import vocabulary
from settee.client.inject.vocabulary import Side
from settee.workflow import ObjectInfo, Workflow, is_link, links, natural_key

#: ``middle`` is DualCFGGuider's second condition, which is either side's; ``empty`` is for no prompt at all.
Role = Literal["positive", "negative", "middle", "empty"]
ROLES: tuple[Role, ...] = ("positive", "negative", "middle", "empty")


class Place(NamedTuple):
    """An input that holds a text."""

    node_id: str
    input: str


@dataclass(frozen=True)
class Text:
    """A text input, and where its text is written: there, or at the literals that its link leads to."""

    place: Place
    literals: tuple[Place, ...]
    #: Nodes on the way that make a text themselves (a caption, an answer of a language model).
    makers: tuple[str, ...] = ()


@dataclass(frozen=True)
class Encoder:
    """A node that turns texts into conditioning, or a prompt into a result."""

    node_id: str
    texts: tuple[Text, ...]
    #: Whether its texts are one prompt, given to several language models.
    is_one_prompt: bool


@dataclass
class Reach:
    """What one role's ways lead to."""

    encoders: dict[str, Encoder] = field(default_factory=dict)
    visited: set[str] = field(default_factory=set)
    #: Nodes at which a way ends because they erase the conditioning.
    zeroed: set[str] = field(default_factory=set)
    #: Nodes at which a way ends without a text.
    ends: set[str] = field(default_factory=set)


class _Step(NamedTuple):
    node_id: str
    slot: int
    #: It came out of a bundle, whose outputs' numbers say nothing about the inputs'.
    is_carried: bool


class Graph:
    """A workflow, seen from its outputs. ``object_info`` helps where a class is in it."""

    def __init__(self, workflow: Workflow, object_info: ObjectInfo | None = None) -> None:
        self.workflow = workflow
        self._object_info = object_info or {}
        #: Output slots by which nodes of two sides were left, where no registry says which slot is which side's.
        self._left_by: dict[str, dict[Role, set[int]]] = {}

    def class_of(self, node_id: str) -> str:
        return str(self.workflow[node_id]["class_type"])

    def inputs(self, node_id: str) -> dict[str, Any]:
        """The inputs that may matter here: links to nodes that there are, and texts."""
        return {
            name: value
            for name, value in self.workflow[node_id]["inputs"].items()
            if isinstance(value, str) or (is_link(value) and value[0] in self.workflow)
        }

    # --- what reaches an output ---------------------------------------------------------------------------

    @cached_property
    def consumers(self) -> dict[str, list[tuple[str, str]]]:
        """Node id → the ``(node id, input)`` that take something of it."""
        found: dict[str, list[tuple[str, str]]] = {node_id: [] for node_id in self.workflow}
        for node_id, node in self.workflow.items():
            for name, source, _ in links(node):
                if source in found:
                    found[source].append((node_id, name))
        return found

    @cached_property
    def live(self) -> list[str]:
        """Nodes that an output needs, in natural order; all of them when no output can be told."""
        found = {node_id for node_id in self.workflow if self._is_output(node_id)}
        waiting = list(found)
        while waiting:
            for _, source, _ in links(self.workflow[waiting.pop()]):
                if source in self.workflow and source not in found:
                    found.add(source)
                    waiting.append(source)
        return sorted(found or self.workflow, key=natural_key)

    def _is_output(self, node_id: str) -> bool:
        """Without a registry, a node that nothing is taken from may well be one, unless its class is known."""
        entry = self._registered(node_id)
        if entry is not None:
            return bool(entry.get("output_node"))
        name = self.class_of(node_id)
        if name.startswith(("Save", "Preview")):
            return True
        return not self.consumers[node_id] and name not in vocabulary.DANGLING

    # --- what inputs are ----------------------------------------------------------------------------------

    def _registered(self, node_id: str) -> Mapping[str, Any] | None:
        entry = self._object_info.get(self.class_of(node_id))
        return entry if isinstance(entry, Mapping) else None

    def kind_of(self, node_id: str, name: str) -> str | None:
        """An input's type as the registry has it (``COMBO`` for choices); None when it does not know."""
        entry = self._registered(node_id)
        groups = entry.get("input") if entry is not None else None
        for group in groups.values() if isinstance(groups, Mapping) else ():
            if isinstance(group, Mapping) and name in group:
                spec = group[name]
                kind = spec[0] if isinstance(spec, list) and spec else None
                return kind if isinstance(kind, str) else "COMBO"
        return None

    def is_api_node(self, node_id: str) -> bool:
        """Whether the registry says that a node calls a service, which takes the prompt itself."""
        entry = self._registered(node_id)
        return bool(entry is not None and entry.get("api_node"))

    def _conditioning(self, node_id: str) -> dict[Side, list[str]]:
        """A node's inputs for conditioning, by side: links, and texts in their stead (``positive: "a cat"``)."""
        found: dict[Side, list[str]] = {side: [] for side in Side}
        for name, value in self.inputs(node_id).items():
            kind = self.kind_of(node_id, name)
            side = vocabulary.conditioning_side(name)
            if isinstance(value, str):
                is_meant = name.lower() in ("positive", "negative") or vocabulary.is_text_name(name)
                if side not in (Side.POSITIVE, Side.NEGATIVE) or not is_meant or kind not in (None, "STRING"):
                    continue
            elif kind == "CONDITIONING":
                side = side if side is not None and side is not Side.BUNDLE else Side.NEUTRAL
            elif kind in ("MODEL", "CLIP", "VAE", "IMAGE", "MASK", "LATENT", "INT", "FLOAT", "BOOLEAN", "COMBO"):
                continue
            if side is not None:
                found[side].append(name)
        return found

    # --- where ways begin ---------------------------------------------------------------------------------

    @cached_property
    def samplers(self) -> list[str]:
        """Live nodes at which conditioning ends: samplers and guiders, of whatever make."""
        passed_on: set[str] = set()
        for node_id in self.live:
            inputs = self.inputs(node_id)
            for name in (name for names in self._conditioning(node_id).values() for name in names):
                if is_link(inputs[name]):
                    passed_on.add(self._behind_reroutes(inputs[name][0]))
        return [
            node_id
            for node_id in self.live
            if self.class_of(node_id) not in vocabulary.TWO_SIDED | vocabulary.ONE_SIDED | vocabulary.ENCODERS.keys()
            and self._takes_conditioning(node_id)
            and (node_id not in passed_on or self.workflow[node_id]["inputs"].keys() & vocabulary.SAMPLING_INPUTS)
        ]

    def _takes_conditioning(self, node_id: str) -> bool:
        """By a link: one that is no text's, as API nodes have it (``negative_prompt``)."""
        inputs = self.inputs(node_id)
        names = [name for names in self._conditioning(node_id).values() for name in names]
        return any(is_link(inputs[name]) and not vocabulary.is_text_name(name) for name in names)

    def _behind_reroutes(self, node_id: str) -> str:
        seen = set()
        while node_id not in seen:
            seen.add(node_id)
            values = list(self.inputs(node_id).items())
            if len(values) == 1 and is_link(values[0][1]) and vocabulary.conditioning_side(values[0][0]) is None:
                node_id = values[0][1][0]
        return node_id

    def _starts(self, sampler: str, role: Role) -> Iterator[str]:
        """The inputs of a sampler that a role begins at."""
        sides = self._conditioning(sampler)
        if self.class_of(sampler) == "DualCFGGuider":
            # Its cond2 is guided by the negative and guides cond1: a second prompt, or the negative with an image.
            yield from {"positive": ["cond1"], "middle": ["cond2"], "negative": ["negative"], "empty": []}[role]
        elif role in ("positive", "negative"):
            # Normalized attention guidance takes one condition: what to keep away from.
            neutral = "negative" if vocabulary.NAG.search(self.class_of(sampler)) else "positive"
            yield from sides[Side.POSITIVE if role == "positive" else Side.NEGATIVE]
            yield from sides[Side.NEUTRAL] if role == neutral else []
            yield from sides[Side.BUNDLE]
        elif role == "empty":
            yield from sides[Side.EMPTY]

    # --- the walk -----------------------------------------------------------------------------------------

    @cached_property
    def reaches(self) -> dict[Role, Reach]:
        """Every role's reach."""
        return {role: self._walk(role) for role in ROLES}

    @property
    def doubtful(self) -> list[str]:
        """Nodes with a positive and a negative input of which it cannot be told what output is whose.

        Without a registry, that the first output is the positive one is the custom of all. A node that is used
        otherwise, or whose one output goes to both sides, may be anything.
        """
        assert self.reaches
        found = []
        for node_id, slots in self._left_by.items():
            positive, negative = slots.get("positive", set()), slots.get("negative", set())
            if 0 in negative or positive & negative or (positive and negative and max(positive) > min(negative)):
                found.append(node_id)
        return found

    def _walk(self, role: Role) -> Reach:
        reach = Reach()
        waiting: list[_Step] = []
        for sampler in self.samplers:
            names = list(self._starts(sampler, role))
            waiting += self._enter(sampler, names, role, reach)
        seen: set[_Step] = set()
        while waiting:
            step = waiting.pop()
            if step not in seen:
                seen.add(step)
                reach.visited.add(step.node_id)
                waiting += self._beyond(step, role, reach)
        return reach

    def _enter(self, node_id: str, names: list[str], role: Role, reach: Reach) -> list[_Step]:
        """Through these inputs of a node: to the nodes they are linked to; texts among them are found."""
        inputs = self.inputs(node_id)
        texts = []
        steps = []
        for name in names:
            value = inputs.get(name)
            if isinstance(value, str) or (value is not None and self._gives_text(value[0], value[1])):
                texts.append(self.text(Place(node_id, name), role, reach))
            elif value is not None:
                is_bundle = vocabulary.conditioning_side(name) is Side.BUNDLE
                steps.append(_Step(value[0], int(value[1]), is_bundle))
        if texts:
            self._found(reach, node_id, texts)
        return steps

    def _found(self, reach: Reach, node_id: str, texts: list[Text]) -> None:
        known = reach.encoders.get(node_id)
        merged = {text.place: text for text in (*(known.texts if known else ()), *texts)}
        is_one = self.class_of(node_id) in vocabulary.ENCODERS or all(
            place.input in vocabulary.PARTS for place in merged
        )
        reach.encoders[node_id] = Encoder(node_id, tuple(merged.values()), is_one)

    def _beyond(self, step: _Step, role: Role, reach: Reach) -> list[_Step]:
        """One node of a way: its texts are found, and where it goes on is answered."""
        node_id = step.node_id
        if vocabulary.ZERO_OUT.search(self.class_of(node_id)):
            reach.zeroed.add(node_id)
            return []
        sides = self._conditioning(node_id)
        positive, negative, bundles = sides[Side.POSITIVE], sides[Side.NEGATIVE], sides[Side.BUNDLE]
        if step.is_carried and role == "negative" and not negative and not bundles:
            # A bundle without sides holds a prompt, and no negative one.
            return []
        if positive and negative:
            taken = positive if self._side(step, role) is Side.POSITIVE else negative
        elif bundles:
            # A link beside a bundle takes the place of what is in the bundle.
            taken = (positive if role == "positive" else negative) or bundles
        else:
            taken = positive + negative
        taken = taken + sides[Side.NEUTRAL]
        texts = [name for name in self._own_texts(step) if name not in positive + negative]
        if not taken and not texts:
            taken = self._passed_through(node_id)
        if not taken and not texts:
            reach.ends.add(node_id)
        steps = self._enter(node_id, taken + texts, role, reach)
        # What a bundle was taken through, a reroute, leaves it one.
        return steps if any(sides.values()) else [one._replace(is_carried=step.is_carried) for one in steps]

    def _side(self, step: _Step, role: Role) -> Side:
        """Which of a node's two sides an output has."""
        entry = self._registered(step.node_id)
        names = entry.get("output_name") if entry is not None else None
        if isinstance(names, list) and step.slot < len(names):
            side = vocabulary.sided(str(names[step.slot]))
            if side is not None:
                return side
        if self.class_of(step.node_id) in vocabulary.TWO_SIDED:
            return Side.POSITIVE if step.slot == 0 else Side.NEGATIVE
        if role in ("middle", "empty"):
            return Side.POSITIVE if step.slot == 0 else Side.NEGATIVE
        if not step.is_carried:
            self._left_by.setdefault(step.node_id, {}).setdefault(role, set()).add(step.slot)
        return Side.POSITIVE if role == "positive" else Side.NEGATIVE

    def _passed_through(self, node_id: str) -> list[str]:
        """The inputs of a reroute or a switch."""
        inputs = self.inputs(node_id)
        linked = [name for name, value in inputs.items() if is_link(value)]
        if len(linked) == 1 and len(inputs) == 1 and not vocabulary.is_other_kind(linked[0]):
            return linked
        return [name for name in linked if vocabulary.is_switch_name(name)]

    # --- texts --------------------------------------------------------------------------------------------

    def _own_texts(self, step: _Step) -> list[str]:
        """The inputs of a node that hold its prompt, if it is an encoder."""
        node_id, name = step.node_id, self.class_of(step.node_id)
        inputs = self.inputs(node_id)
        if name in vocabulary.NO_PROMPT | vocabulary.TWO_SIDED | vocabulary.ONE_SIDED:
            return []
        if name in vocabulary.ENCODERS:
            return [text for text in vocabulary.ENCODERS[name] if text in inputs]
        strings = {text for text in inputs if self.kind_of(node_id, text) in (None, "STRING")}
        named = [text for text in inputs if text in strings and vocabulary.is_text_name(text)]
        if named or step.is_carried or any(self._conditioning(node_id).values()):
            return named
        # An encoder has a language model by a link. What is left is a text whose input has a name of its own.
        if not any(is_link(value) for value in inputs.values()):
            return []
        return [
            text
            for text, value in inputs.items()
            if text in strings and isinstance(value, str) and not vocabulary.is_choice_name(text)
        ]

    def _gives_text(self, node_id: str, slot: float) -> bool:
        entry = self._registered(node_id)
        outputs = entry.get("output") if entry is not None else None
        if isinstance(outputs, list) and int(slot) < len(outputs):
            return bool(outputs[int(slot)] == "STRING")
        return self.class_of(node_id) in vocabulary.TEXT_FUNCTIONS

    def text(self, place: Place, role: Role, reach: Reach | None = None) -> Text:
        """A text input, followed to the literals it is made of; the nodes on the way count as visited."""
        literals: dict[Place, None] = {}
        makers: dict[str, None] = {}
        waiting, seen = [place], set()
        while waiting:
            one = waiting.pop()
            if one in seen:
                continue
            seen.add(one)
            value = self.inputs(one.node_id).get(one.input)
            if isinstance(value, str):
                literals[one] = None
            elif value is not None:
                if reach is not None:
                    reach.visited.add(value[0])
                parts = self._text_parts(_Step(value[0], int(value[1]), False), role)
                if not parts:
                    makers[value[0]] = None
                sources = self.inputs(value[0])
                # Where a text is put together, a part left empty is nobody's prompt.
                filled = [name for name in parts if sources[name] != ""]
                waiting += [Place(value[0], name) for name in reversed(filled or parts)]
        return Text(place, tuple(literals), tuple(makers))

    def _text_parts(self, step: _Step, role: Role) -> list[str]:
        """The inputs that a node's text is made of; none when it makes it of something else."""
        node_id, name = step.node_id, self.class_of(step.node_id)
        inputs = self.inputs(node_id)
        if name in vocabulary.TEXT_FUNCTIONS:
            return [part for part in vocabulary.TEXT_FUNCTIONS[name] if part in inputs]
        passed = self._passed_through(node_id)
        if passed:
            return passed
        strings = [part for part in inputs if self.kind_of(node_id, part) in (None, "STRING", "*")]
        named = [part for part in strings if vocabulary.is_text_name(part)]
        others = [part for part in inputs if is_link(inputs[part]) and part not in named]
        if any(not vocabulary.is_number_name(part) for part in others):
            return []
        sides = {side: [part for part in named if vocabulary.sided(part) is side] for side in Side}
        if sides[Side.POSITIVE] and sides[Side.NEGATIVE]:
            side = self._side(step, role)
            return sides[side]
        return named or [
            part for part in strings if isinstance(inputs[part], str) and not vocabulary.is_choice_name(part)
        ]
