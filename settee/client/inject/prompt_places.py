"""``--prompt`` and ``--negative``: the text inputs that they mean, or an error that states why it is not certain."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping

from settee.client.client_errors import Ambiguous, UsageError
from settee.client.inject import Change, vocabulary
from settee.client.inject.conditioning import Link, PromptGraph
from settee.client.inject.selectors import about
from settee.client.inject.tracing import Reach, Text, Tracing
from settee.client.inject.vocabulary import PROMPT_INPUTS, Side
from settee.comfyui.graph import Place
from settee.comfyui.node_registry import UNKNOWN, NodeRegistry
from settee.comfyui.workflow import Workflow, listed_nodes, natural_key, shown_node

_OPTIONS: dict[Side, str] = {"positive": "--prompt", "negative": "--negative"}
_WANTED: dict[Side, str] = {"positive": "prompt", "negative": "negative prompt"}


def prompt_changes(
    workflow: Workflow, *, prompt: str | None, negative: str | None, registry: NodeRegistry = UNKNOWN
) -> list[Change]:
    """Return the inputs that get the prompt, then those that get the negative one, each in natural order.

    Found by following what every sampler takes as positive and as negative back to its text encoders, through any
    conditioning nodes, and a text that comes by a link to where it is written; for nodes that take a prompt themselves
    (API nodes), by the names of their inputs. Only what an output needs counts. Several encoders are all set when their
    texts are equal now, the texts for several language models of one encoder always.

    Raises UsageError where there is no place, and Ambiguous where it is not known which of several places is meant,
    or whether a text is the other side's too.
    """
    asked: dict[Side, str | None] = {"positive": prompt, "negative": negative}
    if prompt is None and negative is None:
        return []
    search, changes = _Search(PromptGraph(workflow, registry)), []
    for side, text in asked.items():
        if text is not None:
            with about(_OPTIONS[side]):
                places = search.places(side)
            changes += [Change(place.node_id, place.input, text, _OPTIONS[side]) for place in places]
    return changes


class _Search:
    def __init__(self, graph: PromptGraph) -> None:
        self._graph, self._workflow = graph, graph.workflow
        self._tracing = Tracing(graph)
        #: By the inputs that hold or take them.
        self._texts: dict[Side, dict[Place, Text]] = {side: {**self._tracing.reaches[side].texts} for side in _OPTIONS}
        #: Of nodes that make nothing but texts: meant when nothing else can be.
        self._writers: dict[Place, Text] = {}
        #: Texts that matter to an output by a way that is not known: they may be a sampler's positive or negative.
        self._unexplained: list[Place] = []
        visited = self._tracing.visited
        for node_id in graph.live:
            if node_id not in visited:
                self._add_own(node_id)
        self._texts["positive"] = self._texts["positive"] or self._writers
        self._share_out(self._tracing.reaches["middle"].texts)

    def _add_own(self, node_id: str) -> None:
        """Add the prompts of a live node that no sampler's conditioning comes from.

        The names of its inputs show that a node takes a prompt. A text encoder takes it for a node unknown here.
        """
        graph, name = self._graph, self._graph.class_of(node_id)
        own = {side: self._prompt_inputs(node_id, side) for side in _OPTIONS}
        is_labelled = all(own.values()) or bool(graph.registry.entry(name).get("api_node"))
        linked = [name for name, value in graph.inputs[node_id].items() if isinstance(value, Link)]
        is_encoder = not is_labelled and any(map(vocabulary.is_language_model, linked))
        if name in vocabulary.ENCODERS or is_encoder:
            if node_id not in graph.samplers:
                self._unexplained += [Place(node_id, text) for text in graph.own_texts(node_id, only_named=True)]
            return
        if not any(own.values()) or vocabulary.says(name, "keeper"):
            return
        uses = graph.uses_behind_reroutes(node_id)
        makes = "media" if is_labelled else vocabulary.made(use.input for use in uses)
        for side, names in own.items():
            if makes is None:
                self._unexplained += [Place(node_id, text) for text in names]
            elif makes != "mask" and names:
                found = self._writers if side == "positive" and makes == "text" else self._texts[side]
                places = [Place(node_id, text) for text in names]
                found.update((place, self._tracing.text(place, side, Reach())) for place in places)

    def _prompt_inputs(self, node_id: str, side: Side) -> list[str]:
        """Return a node's inputs for a prompt of this side. A link named ``positive`` is a sampler's."""
        return [
            name
            for name, value in self._graph.inputs[node_id].items()
            if (name.lower() in PROMPT_INPUTS[side] or (name.lower() == side and isinstance(value, str)))
            and self._graph.may_be_text(node_id, name)
        ]

    def _share_out(self, middle: Mapping[Place, Text]) -> None:
        """Give a second condition's encoder to the side that has the same text; else it makes both ambiguous."""
        sides = self._texts.values()
        known = {place.node_id for found in sides for place in found}
        for node_id, said in self._said(middle).items():
            if node_id not in known:
                alike = [found for found in sides if said in self._said(found).values()]
                for found in alike or sides:
                    found.update((place, text) for place, text in middle.items() if place.node_id == node_id)

    def places(self, side: Side) -> list[Place]:
        found = self._texts[side]
        self._refuse_the_unknown(side)
        if not found:
            raise UsageError(f"no input was found for a {_WANTED[side]} in this workflow{self._why(side)}")
        exact = [text.literals[0] for text in found.values() if len(text.literals) == 1 and not text.makers]
        if len(exact) < len(found):
            raise self._undecided(found)
        said = self._said(found)
        is_clear = all(len(said[place.node_id]) == 1 or self._is_part(place) for place in found)
        if not is_clear or any(one != other for one, other in itertools.pairwise(said.values())):
            why = f"this workflow has several places for a {_WANTED[side]}, and their texts differ"
            raise self._ambiguous(why, exact)
        self._refuse_the_shared(side, exact)
        return _in_order(exact)

    def _is_part(self, place: Place) -> bool:
        """Return True if a text is one prompt with the others of its encoder, for several language models."""
        return place.input in vocabulary.PARTS or self._graph.class_of(place.node_id) in vocabulary.ENCODERS

    def _said(self, texts: Mapping[Place, Text]) -> dict[str, set[str]]:
        """Return what the texts of each node say."""
        said: dict[str, set[str]] = {}
        for place, text in texts.items():
            literals = (str(self._graph.value(literal)).strip() for literal in text.literals)
            said.setdefault(place.node_id, set()).update(literals)
        return said

    # --- refusals -----------------------------------------------------------------------------------------

    def _refuse_the_unknown(self, side: Side) -> None:
        if doubtful := self._tracing.doubtful:
            raise Ambiguous(
                "it is not known which output of these nodes is positive and which is negative. "
                f"Use --set NODE.inputs.NAME=… for the text that is meant\n{listed_nodes(self._workflow, doubtful)}"
            )
        if self._unexplained:
            raise self._ambiguous("these texts may be a prompt, a negative prompt or neither", self._unexplained)
        strays = {f"{use.input!r} of {shown_node(self._workflow, use.node_id)}" for use in self._tracing.strays(side)}
        if strays:
            why = f"what it would change also goes to {', '.join(sorted(strays))}, which may be positive or negative"
            raise self._ambiguous(why, _literals(self._texts[side]))

    def _undecided(self, texts: Mapping[Place, Text]) -> UsageError:
        makers = {maker for text in texts.values() for maker in text.makers}
        literals = _literals(texts)
        if makers:
            nodes = listed_nodes(self._workflow, makers)
            message = f"the text is not written in the workflow, but made by\n{nodes}\n"
            if literals:
                return Ambiguous(f"{message}Choose instead among the written texts\n{self._choices(literals)}")
            return UsageError(f"{message}Set an input of that node with --set, or write the text into its encoder")
        if literals:
            return self._ambiguous("the text is put together from several", literals)
        nodes = listed_nodes(self._workflow, (place.node_id for place in texts))
        return UsageError(f"these nodes have no text where one belongs\n{nodes}")

    def _refuse_the_shared(self, side: Side, places: Iterable[Place]) -> None:
        other: Side = "negative" if side == "positive" else "positive"
        empty = self._tracing.reaches["empty"].texts
        for use, texts in ((f"the {_WANTED[other]}", self._texts[other]), ("no prompt at all", empty)):
            if shared := {*_literals(texts)} & {*places}:
                raise Ambiguous(
                    f"this text is also used as {use}, which would change with it. Give the sampler an encoder "
                    f"for each, or change both with\n{self._choices(shared)}"
                )

    def _why(self, side: Side) -> str:
        reach = self._tracing.reaches[side]
        for nodes, why in ((reach.zeroed, "is emptied by"), (reach.ends, "comes without a string from")):
            if nodes:
                return f": the sampler's {side} conditioning {why}\n{listed_nodes(self._workflow, nodes)}"
        idle = [
            Place(node_id, name)
            for node_id in self._workflow.keys() - self._tracing.visited
            for name in vocabulary.ENCODERS.get(self._graph.class_of(node_id), ())
            if isinstance(self._graph.inputs[node_id].get(name), str)
        ]
        return f"; these texts lead to no sampler that an output needs\n{self._choices(idle)}" if idle else ""

    def _ambiguous(self, why: str, places: Iterable[Place]) -> Ambiguous:
        return Ambiguous(f"{why}. Choose instead with\n{self._choices(places)}")

    def _choices(self, places: Iterable[Place]) -> str:
        return "\n".join(
            f"  {shown_node(self._workflow, place.node_id)}: --set {place.shown()}=…" for place in _in_order(places)
        )


def _literals(texts: Mapping[Place, Text]) -> list[Place]:
    return [place for text in texts.values() for place in text.literals]


def _in_order(places: Iterable[Place]) -> list[Place]:
    return sorted(dict.fromkeys(places), key=lambda place: natural_key(place.node_id))
