"""Prompts in random graphs of ComfyUI's own nodes, held to what really reaches the samplers.

The oracle runs the graph forwards: every conditioning is the set of texts that it was made of. It shares nothing with
the search, which walks backwards and by names.
"""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest

from settee.client.client_errors import Ambiguous, UsageError
from settee.client.inject.prompt_places import prompt_changes
from settee.client.targets.comfy_api import well_described
from tests.unit.client.prompt_shapes.building import encoder, joined, node, sampler, sd15

DATA = Path(__file__).parents[2] / "data"
Graph = dict[str, Any]
#: A conditioning or a text: the literals that it was made of, by ``node.input``.
Made = frozenset[str]
_ERASED: Made = frozenset()


def random_graph(rand: random.Random) -> Graph:
    """Two to four encoders, nodes that pass their conditioning on in any way, one or two samplers."""
    graph = {key: one for key, one in sd15().items() if key in "158"}
    strings: list[str] = []
    for number in range(rand.randint(0, 3)):
        value = rand.choice(["a fox", "blurry", ""])
        graph[f"2{number}"] = rand.choice(
            [
                node("PrimitiveString", value=value),
                joined(f"@{rand.choice(strings)}" if strings else value, rand.choice(["", "snow"])),
            ]
        )
        strings.append(f"2{number}")
    outputs: list[str] = []
    for number in range(rand.randint(2, 4)):
        literal = rand.choice(["a fox", "a fox", "blurry", "blurry", ""])
        graph[f"3{number}"] = encoder(f"@{rand.choice(strings)}" if strings and rand.random() < 0.4 else literal)
        outputs.append(f"@3{number}")
    for number in range(rand.randint(0, 6)):
        one, other = rand.choice(outputs), rand.choice(outputs)
        graph[f"4{number}"] = rand.choice(
            [
                node("FluxGuidance", conditioning=one, guidance=3.5),
                node("Reroute", **{"": one}),
                node("ConditioningZeroOut", conditioning=one),
                node("ConditioningCombine", conditioning_1=one, conditioning_2=other),
                node("ControlNetApplyAdvanced", positive=one, negative=other, strength=1.0),
                node("WanImageToVideo", positive=one, negative=other, width=64, height=64),
            ]
        )
        two_sided = "positive" in graph[f"4{number}"]["inputs"]
        outputs += [f"@4{number}", f"@4{number}/1"] if two_sided else [f"@4{number}"]
    graph["3"] = sampler(positive=rand.choice(outputs), negative=rand.choice(outputs), latent_image="@5")
    graph["9"] = node("SaveImage", filename_prefix="a", images="@8")
    if rand.random() < 0.4:
        graph["10"] = sampler(positive=rand.choice(outputs), negative=rand.choice(outputs), latent_image="@3")
        if rand.random() < 0.5:
            graph["8"] = node("VAEDecode", samples="@10", vae="@1/2")
    return graph


def made(graph: Graph, value: Any, node_id: str, name: str) -> Made:
    """What an input's value is made of."""
    if isinstance(value, str):
        return frozenset([f"{node_id}.{name}"])
    source, slot = value
    inputs, kind = graph[source]["inputs"], graph[source]["class_type"]

    def of(*names: str) -> Made:
        return frozenset().union(*(made(graph, inputs[one], source, one) for one in names))

    if kind == "CLIPTextEncode":
        return of("text")
    if kind == "PrimitiveString":
        return of("value")
    if kind == "StringConcatenate":
        filled = [one for one in ("string_a", "string_b") if inputs[one] != ""]
        return of(*(filled or ("string_a", "string_b")))
    if kind == "ConditioningZeroOut":
        return _ERASED
    if kind == "ConditioningCombine":
        return of("conditioning_1", "conditioning_2")
    if "positive" in inputs:
        return of("positive" if slot == 0 else "negative")
    return of("conditioning" if "conditioning" in inputs else "")


def reaching(graph: Graph, side: str) -> Made:
    live = ["3", "10"] if graph["8"]["inputs"]["samples"][0] == "10" else ["3"]
    return frozenset().union(*(made(graph, graph[one]["inputs"][side], one, side) for one in live))


def both(graph: Graph, side: str) -> tuple[Made, Made]:
    """What really reaches this side, and the other."""
    other = "negative" if side == "positive" else "positive"
    return reaching(graph, side), reaching(graph, other)


def placed(graph: Graph, side: str, registry: dict[str, Any] | None = None) -> set[str]:
    option = {"prompt": None, "negative": None, "prompt" if side == "positive" else "negative": "X"}
    return {
        f"{change.node_id}.{change.input}"
        for change in prompt_changes(graph, **option, registry=well_described(registry or {}))
    }


def check(graph: Graph, side: str, registry: dict[str, Any] | None) -> str:
    ours, theirs = both(graph, side)
    try:
        places = placed(graph, side, registry)
    except Ambiguous:
        said = {graph[place.split(".")[0]]["inputs"][place.split(".")[1]].strip() for place in ours}
        is_joined = any(one["class_type"] == "StringConcatenate" for one in graph.values())
        assert ours & theirs or len(said) > 1 or is_joined
        return "ambiguous"
    except UsageError:
        assert ours == _ERASED
        return "none"
    assert places == ours
    assert not places & theirs
    return "placed"


@pytest.mark.parametrize("with_registry", [False, True], ids=["names only", "registry"])
def test_a_text_lands_on_all_that_makes_its_side_and_on_nothing_of_the_other(with_registry: bool) -> None:
    registry = json.loads((DATA / "object_info.json").read_text()) if with_registry else None
    ends: dict[str, int] = {}
    for seed in range(120):
        graph = random_graph(random.Random(seed))
        for side in ("positive", "negative"):
            end = check(graph, side, registry)
            ends[end] = ends.get(end, 0) + 1
    # That all of them are met is what the figures are for.
    assert min(ends.get(end, 0) for end in ("placed", "ambiguous", "none")) > 10, ends


#: Everything but what a graph of custom nodes still has of ComfyUI's own.
_KEPT = ("PrimitiveString", "StringConcatenate", "SaveImage", "CheckpointLoaderSimple")


def test_with_classes_that_nobody_knows_a_text_lands_where_it_belongs_or_nowhere() -> None:
    """However two-sided nodes are wired: what is not the custom of all is refused, not guessed."""
    found = refused = 0
    for seed in range(200):
        graph = random_graph(random.Random(seed))
        strange = {
            node_id: one if one["class_type"] in _KEPT else one | {"class_type": f"Fancy{one['class_type']}"}
            for node_id, one in graph.items()
        }
        # Without a list of ComfyUI's own, whatever nothing is taken from may be an output: here only the picture is.
        needed = alive(strange)
        strange = {node_id: one for node_id, one in strange.items() if node_id in needed}
        for side in ("positive", "negative"):
            ours, theirs = both(graph, side)
            try:
                places = placed(strange, side)
            except UsageError:
                refused += 1
            else:
                found += 1
                assert places == ours, (seed, side)
                assert not places & theirs, (seed, side)
    assert found > 20
    assert refused > 20


def alive(graph: Graph) -> set[str]:
    found, waiting = {"9"}, ["9"]
    while waiting:
        for value in graph[waiting.pop()]["inputs"].values():
            if isinstance(value, list) and value[0] not in found:
                found.add(value[0])
                waiting.append(value[0])
    return found
