"""``--prompt`` and ``--negative``: the text inputs that they mean, or an error that says why there is no saying."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from settee.client.changes import Change, listed_nodes, shown_node
from settee.client.errors import Ambiguous, UsageError
from settee.client.inject import vocabulary
from settee.client.inject.tracing import ROLES, Encoder, Graph, Place, Text
from settee.workflow import ObjectInfo, Workflow, is_link, natural_key

PromptRole = Literal["positive", "negative"]
_OPTION: dict[PromptRole, str] = {"positive": "--prompt", "negative": "--negative"}
_WANTED: dict[PromptRole, str] = {"positive": "prompt", "negative": "negative prompt"}


def prompt_changes(
    workflow: Workflow, *, prompt: str | None, negative: str | None, object_info: ObjectInfo | None = None
) -> list[Change]:
    """The inputs that get the prompt and the negative prompt, nodes in natural order.

    Found by following what every sampler takes as positive and as negative back to its text encoders, through any
    conditioning nodes, and a text that comes by a link to where it is written; for nodes that take a prompt themselves
    (API nodes), by the names of their inputs. ``object_info``, the target's registry, says more about the classes in
    it. Only what an output needs counts. Several encoders are all set when their texts are equal now.

    Raises UsageError where there is no place, or where a text is also what the other side uses; Ambiguous where it
    cannot be told which of several places is meant.
    """
    if prompt is None and negative is None:
        return []
    search = _Search(Graph(workflow, object_info))
    changes = []
    for role, text in (("positive", prompt), ("negative", negative)):
        if text is not None:
            changes += [Change(*place, text, _OPTION[role]) for place in search.places(role)]
    return changes


@dataclass
class _OwnPrompts:
    """Nodes that take a prompt themselves."""

    positive: list[Encoder] = field(default_factory=list)
    negative: list[Encoder] = field(default_factory=list)
    #: They make nothing but texts: meant when nothing else can be.
    writers: list[Encoder] = field(default_factory=list)
    #: They may be encoders of some sampler's positive or negative.
    unclear: list[str] = field(default_factory=list)


class _Search:
    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._workflow = graph.workflow
        self._reaches = graph.reaches
        self._own = self._own_prompts()
        encoders = {role: list(graph.reaches[role].encoders.values()) for role in ROLES}
        self._encoders: dict[PromptRole, list[Encoder]] = {
            "positive": encoders["positive"] + self._own.positive,
            "negative": encoders["negative"] + self._own.negative,
        }
        if not self._encoders["positive"]:
            self._encoders["positive"] = self._own.writers
        self._share_out(encoders["middle"])

    def _share_out(self, middle: list[Encoder]) -> None:
        """A second condition's encoder belongs to the side whose text it has; else it makes both ambiguous."""
        sides = self._encoders
        known = {encoder.node_id for found in sides.values() for encoder in found}
        for encoder in middle:
            if encoder.node_id not in known:
                said = self._said(encoder)
                alike = [found for found in sides.values() if any(self._said(one) == said for one in found)]
                for found in alike or sides.values():
                    found.append(encoder)

    def places(self, role: PromptRole) -> list[Place]:
        """Where this side's prompt is written."""
        option, found = _OPTION[role], self._encoders[role]
        self._refuse_the_unclear(option)
        if not found:
            raise UsageError(self._no_place(role))
        exact = [self._exact(text) for encoder in found for text in encoder.texts]
        certain = [place for place in exact if place is not None]
        if len(certain) < len(exact):
            raise self._undecided(option, found)
        meanings = {frozenset(self._present(place) for place in self._certain(encoder)) for encoder in found}
        one_by_one = [encoder for encoder in found if not encoder.is_one_prompt and len(self._said(encoder)) > 1]
        if len(meanings) > 1 or one_by_one:
            raise Ambiguous(
                f"{option}: this workflow has several places for it, and their texts differ. Choose with --set:\n"
                + self._choices(certain)
            )
        self._refuse_the_shared(role, certain)
        return sorted(set(certain), key=lambda place: natural_key(place.node_id))

    # --- what a text input is now -------------------------------------------------------------------------

    def _exact(self, text: Text) -> Place | None:
        """The one literal that a text is made of, if it is one."""
        return text.literals[0] if len(text.literals) == 1 and not text.makers else None

    def _certain(self, encoder: Encoder) -> list[Place]:
        return [place for text in encoder.texts for place in [self._exact(text)] if place is not None]

    def _present(self, place: Place) -> str:
        return str(self._workflow[place.node_id]["inputs"][place.input]).strip()

    def _said(self, encoder: Encoder) -> frozenset[str]:
        return frozenset(self._present(place) for text in encoder.texts for place in text.literals)

    # --- refusals -----------------------------------------------------------------------------------------

    def _refuse_the_unclear(self, option: str) -> None:
        doubtful = self._graph.doubtful
        if doubtful:
            raise Ambiguous(
                f"{option}: it cannot be told which output of these nodes is the positive and which the negative one. "
                f"Use --set NODE.inputs.NAME=… on the text that is meant:\n{listed_nodes(self._workflow, doubtful)}"
            )
        if self._own.unclear:
            raise Ambiguous(
                f"{option}: these nodes have a prompt, and it cannot be told whether it is the positive or the "
                f"negative one. Choose with --set:\n"
                + self._choices(
                    Place(node_id, name) for node_id in self._own.unclear for name in self._prompt_inputs(node_id)[0]
                )
            )

    def _undecided(self, option: str, found: list[Encoder]) -> UsageError:
        texts = [text for encoder in found for text in encoder.texts]
        makers = {maker for text in texts for maker in text.makers}
        literals = [place for text in texts for place in text.literals]
        if makers:
            said = f"{option}: a text is made by a node, not written:\n{listed_nodes(self._workflow, makers)}"
            if not literals:
                return UsageError(f"{said}\nUse --set on an input of that node, or write the text into the encoder")
            return Ambiguous(f"{said}\nChoose with --set among what is written:\n{self._choices(literals)}")
        if len(literals) > 1:
            return Ambiguous(
                f"{option}: the text is put together from several. Choose with --set:\n{self._choices(literals)}"
            )
        nodes = listed_nodes(self._workflow, (text.place.node_id for text in texts if not text.literals))
        return UsageError(f"{option}: these nodes have no text to set; give them one:\n{nodes}")

    def _refuse_the_shared(self, role: PromptRole, places: Iterable[Place]) -> None:
        others: dict[str, list[Encoder]] = {
            "positive": self._encoders["positive"],
            "negative": self._encoders["negative"],
            "empty": list(self._reaches["empty"].encoders.values()),
        }
        others.pop(role)
        for other, encoders in others.items():
            used = {place for encoder in encoders for text in encoder.texts for place in text.literals}
            shared = [place for place in places if place in used]
            if shared:
                side = "no prompt (empty_conditioning)" if other == "empty" else f"the {other} prompt"
                raise Ambiguous(
                    f"{_OPTION[role]}: this text is also what is used as {side}, and would be changed for both. "
                    f"Give the sampler an encoder for each, or set it for both with --set:\n{self._choices(shared)}"
                )

    def _no_place(self, role: PromptRole) -> str:
        said = f"{_OPTION[role]}: there is no place for a {_WANTED[role]} in this workflow"
        reach = self._reaches[role]
        if reach.zeroed:
            return f"{said}: the sampler's {role} conditioning is emptied by\n" + listed_nodes(
                self._workflow, reach.zeroed
            )
        if reach.ends:
            return f"{said}: the sampler's {role} conditioning comes without a text from\n" + listed_nodes(
                self._workflow, reach.ends
            )
        visited = set().union(*(reach.visited for reach in self._reaches.values()))
        idle = [
            Place(node_id, name)
            for node_id in sorted(self._workflow, key=natural_key)
            if node_id not in visited
            for name in vocabulary.ENCODERS.get(self._graph.class_of(node_id), ())
            if isinstance(self._workflow[node_id]["inputs"].get(name), str)
        ]
        if idle:
            return f"{said} that a sampler's {role} input leads to. If one of these is meant:\n{self._choices(idle)}"
        return said

    def _choices(self, places: Iterable[Place]) -> str:
        ordered = sorted(set(places), key=lambda place: natural_key(place.node_id))
        return "\n".join(
            f"  {shown_node(self._workflow, place.node_id)}: --set {place.node_id}.inputs.{place.input}=…"
            for place in ordered
        )

    # --- nodes that take a prompt themselves --------------------------------------------------------------

    def _own_prompts(self) -> _OwnPrompts:
        """Of API nodes, and of others that say by an input's name that they take a prompt, and are no encoders."""
        own = _OwnPrompts()
        visited = set().union(*(reach.visited for reach in self._reaches.values()))
        for node_id in self._graph.live:
            positive, negative = self._prompt_inputs(node_id)
            if node_id in visited or not (positive or negative):
                continue
            makes = self._makes(node_id) if not negative or not positive else "media"
            if makes is None:
                own.unclear.append(node_id)
            elif makes != "mask":
                if positive:
                    found = own.positive if makes == "media" else own.writers
                    found.append(self._encoder(node_id, positive, "positive"))
                if negative:
                    own.negative.append(self._encoder(node_id, negative, "negative"))
        return own

    def _encoder(self, node_id: str, names: list[str], role: PromptRole) -> Encoder:
        texts = tuple(self._graph.text(Place(node_id, name), role) for name in names)
        return Encoder(node_id, texts, is_one_prompt=False)

    def _prompt_inputs(self, node_id: str) -> tuple[list[str], list[str]]:
        """Of a node: its inputs for a prompt, and for a negative one."""
        name = self._graph.class_of(node_id)
        if name in vocabulary.ENCODERS or vocabulary.keeps_texts(name):
            return [], []
        texts = [
            (text, value)
            for text, value in self._graph.inputs(node_id).items()
            if self._graph.kind_of(node_id, text) in (None, "STRING")
        ]
        positive, negative = vocabulary.PROMPT_INPUTS, vocabulary.NEGATIVE_PROMPT_INPUTS
        return (
            [text for text, value in texts if text.lower() in positive or (text == "positive" and not is_link(value))],
            [text for text, value in texts if text.lower() in negative or (text == "negative" and not is_link(value))],
        )

    def _makes(self, node_id: str) -> str | None:
        """What comes of a node's prompt; None when it may be conditioning."""
        if self._graph.is_api_node(node_id):
            return "media"
        inputs = self._graph.inputs(node_id)
        if any(is_link(value) and vocabulary.is_encoder_model(name) for name, value in inputs.items()):
            return None
        live = set(self._graph.live)
        return vocabulary.makes([name for taker, name in self._graph.consumers[node_id] if taker in live])
