"""Nodes that take a prompt themselves, without a sampler (ComfyUI's API nodes), and texts whose part is not known."""

from __future__ import annotations

from dataclasses import dataclass, field

from settee.client.inject import classes, vocabulary
from settee.client.inject.graph import Graph, Link
from settee.client.inject.tracing import Encoder, Reach, Role, Tracing
from settee.comfyui.literals import Place


@dataclass
class OwnPrompts:
    positive: list[Encoder] = field(default_factory=list)
    negative: list[Encoder] = field(default_factory=list)
    #: They make nothing but texts: meant when nothing else can be.
    writers: list[Encoder] = field(default_factory=list)
    #: Texts that matter to an output by a way that is not known: they may be a sampler's positive or negative.
    unexplained: list[Place] = field(default_factory=list)


def own_prompts(tracing: Tracing) -> OwnPrompts:
    """Of the live nodes that no sampler's conditioning comes from.

    A node says by the names of its inputs that it takes a prompt. One that is or may be a text encoder takes it for
    somebody else, of whom nothing is known.
    """
    graph, visited, own = tracing.graph, tracing.visited, OwnPrompts()
    for node_id in graph.live:
        if node_id in visited:
            continue
        name = graph.class_of(node_id)
        positive, negative = _prompt_inputs(graph, node_id)
        is_labelled = bool(positive and negative) or graph.is_api_node(node_id)
        if name in classes.ENCODERS or (not is_labelled and _has_language_model(graph, node_id)):
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
    """A node's inputs for a prompt, and for a negative one. A link named ``positive`` is a sampler's."""
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
