"""``--prompt`` and ``--negative``: the text inputs that they mean, or an error that says why there is no saying."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

from settee.client.changes import Change
from settee.client.errors import Ambiguous, UsageError
from settee.client.inject import classes
from settee.client.inject.graph import Graph
from settee.client.inject.own_prompts import own_prompts
from settee.client.inject.tracing import Encoder, Text, Tracing
from settee.comfyui.literals import Place
from settee.comfyui.workflow import ObjectInfo, Workflow, listed_nodes, natural_key, shown_node

Side = Literal["positive", "negative"]
_OPTIONS: dict[Side, str] = {"positive": "--prompt", "negative": "--negative"}
_WANTED: dict[Side, str] = {"positive": "prompt", "negative": "negative prompt"}


def prompt_changes(
    workflow: Workflow, *, prompt: str | None, negative: str | None, object_info: ObjectInfo | None = None
) -> list[Change]:
    """The inputs that get the prompt, then those that get the negative one, each in natural order of their nodes.

    Found by following what every sampler takes as positive and as negative back to its text encoders, through any
    conditioning nodes, and a text that comes by a link to where it is written; for nodes that take a prompt themselves
    (API nodes), by the names of their inputs. ``object_info``, the target's registry, says more about the classes in
    it. Only what an output needs counts. Several encoders are all set when their texts are equal now, the texts for
    several language models of one encoder always.

    Raises UsageError where there is no place, and Ambiguous where it cannot be told which of several places is meant,
    or whether a text is not the other side's too.
    """
    asked: dict[Side, str | None] = {"positive": prompt, "negative": negative}
    if prompt is None and negative is None:
        return []
    search = _Search(Tracing(Graph(workflow, object_info)))
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
        """A second condition's encoder belongs to the side whose text it has; else it makes both ambiguous."""
        sides = self._encoders.values()
        known = {encoder.node_id for found in sides for encoder in found}
        for encoder in middle:
            if encoder.node_id not in known:
                alike = [found for found in sides if self._said(encoder) in map(self._said, found)]
                for found in alike or sides:
                    found.append(encoder)

    def places(self, side: Side) -> list[Place]:
        """Where this side's prompt is written."""
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
        """What an encoder's texts are now."""
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
                f"{option}: it cannot be told which output of these nodes is the positive and which the negative one. "
                f"Use --set NODE.inputs.NAME=… for the text that is meant\n{listed_nodes(self._workflow, doubtful)}"
            )
        if self._own.unexplained:
            raise Ambiguous(
                f"{option}: it cannot be told whether these texts are a prompt, a negative one or neither. "
                f"Choose instead with\n{self._choices(self._own.unexplained)}"
            )
        strays = self._tracing.strays(side)
        if strays:
            named = {f"{use.input!r} of {shown_node(self._workflow, use.node_id)}" for use in strays}
            raise Ambiguous(
                f"{option}: what it would change also goes to {', '.join(sorted(named))}, of which it cannot be told "
                f"whether it is positive or negative. Choose instead with\n{self._choices(self._written(side))}"
            )

    def _undecided(self, side: Side, texts: list[Text]) -> UsageError:
        option = _OPTIONS[side]
        makers = {maker for text in texts for maker in text.makers}
        literals = [place for text in texts for place in text.literals]
        if makers:
            said = f"{option}: the text is not written, but made by\n{listed_nodes(self._workflow, makers)}\n"
            if literals:
                return Ambiguous(f"{said}Choose instead among what is written\n{self._choices(literals)}")
            return UsageError(f"{said}Set an input of that node with --set, or write the text into its encoder")
        if literals:
            return Ambiguous(
                f"{option}: the text is put together from several. Choose instead with\n{self._choices(literals)}"
            )
        nodes = listed_nodes(self._workflow, (text.place.node_id for text in texts))
        return UsageError(f"{option}: what these nodes have in place of a text is none\n{nodes}")

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
            for name in classes.ENCODERS.get(graph.class_of(node_id), ())
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
