"""``--prompt`` and ``--negative``: the text inputs that they mean, or an error that states why it is not certain."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from settee.client.client_errors import Ambiguous, UsageError
from settee.client.inject import Change, vocabulary
from settee.client.inject.tracing import Encoder, Reach, Role, Text, Tracing
from settee.client.inject.workflow_graph import Graph, Link
from settee.comfyui.literals import Place
from settee.comfyui.node_registry import UNKNOWN, NodeRegistry
from settee.comfyui.workflow import Workflow, listed_nodes, natural_key, shown_node


@dataclass
class OwnPrompts:
    positive: list[Encoder] = field(default_factory=list)
    negative: list[Encoder] = field(default_factory=list)
    #: They make nothing but texts: meant when nothing else can be.
    writers: list[Encoder] = field(default_factory=list)
    #: Texts that matter to an output by a way that is not known: they may be a sampler's positive or negative.
    unexplained: list[Place] = field(default_factory=list)


def own_prompts(tracing: Tracing) -> OwnPrompts:
    """Return the prompts of live nodes that no sampler's conditioning comes from.

    The names of its inputs show that a node takes a prompt. A text encoder takes it for another node, which is unknown
    here.
    """
    graph, visited, own = tracing.graph, tracing.visited, OwnPrompts()
    for node_id in graph.live:
        if node_id in visited:
            continue
        name = graph.class_of(node_id)
        positive, negative = _prompt_inputs(graph, node_id)
        is_labelled = bool(positive and negative) or graph.is_api_node(node_id)
        if name in vocabulary.ENCODERS or (not is_labelled and _has_language_model(graph, node_id)):
            if node_id not in graph.samplers:
                own.unexplained += [Place(node_id, text) for text in tracing.own_texts(node_id, only_named=True)]
            continue
        if not (positive or negative) or vocabulary.keeps_texts(name):
            continue
        makes = "media" if is_labelled else vocabulary.made(use.input for use in graph.uses_behind_reroutes(node_id))
        if makes is None:
            own.unexplained += [Place(node_id, text) for text in positive + negative]
        elif makes != "mask":
            found = own.positive if makes == "media" else own.writers
            found += _encoders(tracing, node_id, positive, "positive")
            own.negative += _encoders(tracing, node_id, negative, "negative")
    return own


def _encoders(tracing: Tracing, node_id: str, names: list[str], role: Role) -> list[Encoder]:
    texts = tuple(tracing.text(Place(node_id, name), role, Reach()) for name in names)
    return [Encoder(node_id, texts)] if texts else []


def _prompt_inputs(graph: Graph, node_id: str) -> tuple[list[str], list[str]]:
    """Return a node's inputs for a prompt, and for a negative one. A link named ``positive`` is a sampler's."""
    inputs = {name: value for name, value in graph.inputs(node_id).items() if graph.may_be_text(node_id, name)}

    def meant(side: str, names: frozenset[str]) -> list[str]:
        return [
            name
            for name, value in inputs.items()
            if name.lower() in names or (name.lower() == side and isinstance(value, str))
        ]

    return meant("positive", vocabulary.PROMPT_INPUTS), meant("negative", vocabulary.NEGATIVE_PROMPT_INPUTS)


def _has_language_model(graph: Graph, node_id: str) -> bool:
    inputs = graph.inputs(node_id)
    return any(isinstance(value, Link) and vocabulary.is_language_model(name) for name, value in inputs.items())


Side = Literal["positive", "negative"]
_OPTIONS: dict[Side, str] = {"positive": "--prompt", "negative": "--negative"}
_WANTED: dict[Side, str] = {"positive": "prompt", "negative": "negative prompt"}


def prompt_changes(
    workflow: Workflow, *, prompt: str | None, negative: str | None, registry: NodeRegistry = UNKNOWN
) -> list[Change]:
    """Return the inputs that get the prompt, then those that get the negative one, each in natural order of their
    nodes.

    Found by following what every sampler takes as positive and as negative back to its text encoders, through any
    conditioning nodes, and a text that comes by a link to where it is written; for nodes that take a prompt themselves
    (API nodes), by the names of their inputs. ``registry``, the target's, describes the classes in
    it. Only what an output needs counts. Several encoders are all set when their texts are equal now, the texts for
    several language models of one encoder always.

    Raises UsageError where there is no place, and Ambiguous where it is not known which of several places is meant,
    or whether a text is the other side's too.
    """
    asked: dict[Side, str | None] = {"positive": prompt, "negative": negative}
    if prompt is None and negative is None:
        return []
    search = _Search(Tracing(Graph(workflow, registry)))
    return [
        Change(place.node_id, place.input, text, _OPTIONS[side])
        for side, text in asked.items()
        if text is not None
        for place in search.places(side)
    ]


class _Search:
    def __init__(self, tracing: Tracing) -> None:
        self._tracing = tracing
        self._workflow = tracing.graph.workflow
        self._own = own = own_prompts(tracing)
        traced = {role: list(reach.encoders.values()) for role, reach in tracing.reaches.items()}
        self._encoders: dict[Side, list[Encoder]] = {
            "positive": traced["positive"] + own.positive or own.writers,
            "negative": traced["negative"] + own.negative,
        }
        self._empty = traced["empty"]
        self._share_out(traced["middle"])

    def _share_out(self, middle: list[Encoder]) -> None:
        """Give a second condition's encoder to the side that has the same text; else it makes both ambiguous."""
        sides = self._encoders.values()
        known = {encoder.node_id for found in sides for encoder in found}
        for encoder in middle:
            if encoder.node_id not in known:
                alike = [found for found in sides if self._said(encoder) in map(self._said, found)]
                for found in alike or sides:
                    found.append(encoder)

    def places(self, side: Side) -> list[Place]:
        """Return where this side's prompt is written."""
        found = self._encoders[side]
        self._refuse_the_unknown(side)
        if not found:
            raise UsageError(self._no_place(side))
        texts = [text for encoder in found for text in encoder.texts]
        exact = [text.literals[0] for text in texts if len(text.literals) == 1 and not text.makers]
        if len(exact) < len(texts):
            raise self._undecided(side, texts)
        is_clear = all(encoder.is_one_prompt or len(self._said(encoder)) == 1 for encoder in found)
        if not is_clear or len({self._said(encoder) for encoder in found}) > 1:
            raise Ambiguous(
                f"{_OPTIONS[side]}: this workflow has several places for a {_WANTED[side]}, and their texts differ. "
                f"Choose instead with\n{self._choices(exact)}"
            )
        self._refuse_the_shared(side, exact)
        return _in_order(exact)

    def _said(self, encoder: Encoder) -> frozenset[str]:
        """Return an encoder's present texts."""
        return frozenset(
            str(self._workflow[place.node_id]["inputs"][place.input]).strip()
            for text in encoder.texts
            for place in text.literals
        )

    # --- refusals -----------------------------------------------------------------------------------------

    def _refuse_the_unknown(self, side: Side) -> None:
        option, doubtful = _OPTIONS[side], self._tracing.doubtful
        if doubtful:
            raise Ambiguous(
                f"{option}: it is not known which output of these nodes is positive and which is negative. "
                f"Use --set NODE.inputs.NAME=… for the text that is meant\n{listed_nodes(self._workflow, doubtful)}"
            )
        if self._own.unexplained:
            raise Ambiguous(
                f"{option}: it is not known whether these texts are a prompt, a negative prompt or neither. "
                f"Choose instead with\n{self._choices(self._own.unexplained)}"
            )
        strays = self._tracing.strays(side)
        if strays:
            named = {f"{use.input!r} of {shown_node(self._workflow, use.node_id)}" for use in strays}
            raise Ambiguous(
                f"{option}: what it would change also goes to {', '.join(sorted(named))}, and it is not known "
                f"whether that is positive or negative. Choose instead with\n{self._choices(self._written(side))}"
            )

    def _undecided(self, side: Side, texts: list[Text]) -> UsageError:
        option = _OPTIONS[side]
        makers = {maker for text in texts for maker in text.makers}
        literals = [place for text in texts for place in text.literals]
        if makers:
            nodes = listed_nodes(self._workflow, makers)
            message = f"{option}: the text is not written in the workflow, but made by\n{nodes}\n"
            if literals:
                return Ambiguous(f"{message}Choose instead among the written texts\n{self._choices(literals)}")
            return UsageError(f"{message}Set an input of that node with --set, or write the text into its encoder")
        if literals:
            return Ambiguous(
                f"{option}: the text is put together from several. Choose instead with\n{self._choices(literals)}"
            )
        nodes = listed_nodes(self._workflow, (text.place.node_id for text in texts))
        return UsageError(f"{option}: these nodes have no text where one belongs\n{nodes}")

    def _refuse_the_shared(self, side: Side, places: Iterable[Place]) -> None:
        other: Side = "negative" if side == "positive" else "positive"
        uses = {f"the {_WANTED[other]}": set(self._written(other)), "no prompt at all": _literals(self._empty)}
        for use, used in uses.items():
            shared = [place for place in places if place in used]
            if shared:
                raise Ambiguous(
                    f"{_OPTIONS[side]}: this text is also what is used as {use}, which would change with it. Give the "
                    f"sampler an encoder for each, or change both with\n{self._choices(shared)}"
                )

    def _written(self, side: Side) -> set[Place]:
        return _literals(self._encoders[side])

    def _no_place(self, side: Side) -> str:
        said = f"{_OPTIONS[side]}: there is no place for a {_WANTED[side]} in this workflow"
        reach = self._tracing.reaches[side]
        for nodes, why in ((reach.zeroed, "is emptied by"), (reach.ends, "comes without a text from")):
            if nodes:
                return f"{said}: the sampler's {side} conditioning {why}\n{listed_nodes(self._workflow, nodes)}"
        graph, visited = self._tracing.graph, self._tracing.visited
        idle = [
            Place(node_id, name)
            for node_id in self._workflow
            if node_id not in visited
            for name in vocabulary.ENCODERS.get(graph.class_of(node_id), ())
            if isinstance(graph.inputs(node_id).get(name), str)
        ]
        if idle:
            return f"{said}; these texts lead to no sampler that an output needs\n{self._choices(idle)}"
        return said

    def _choices(self, places: Iterable[Place]) -> str:
        return "\n".join(
            f"  {shown_node(self._workflow, place.node_id)}: --set {place.shown()}=…" for place in _in_order(places)
        )


def _literals(encoders: Iterable[Encoder]) -> set[Place]:
    return {place for encoder in encoders for text in encoder.texts for place in text.literals}


def _in_order(places: Iterable[Place]) -> list[Place]:
    return sorted(dict.fromkeys(places), key=lambda place: natural_key(place.node_id))
