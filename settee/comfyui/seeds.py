"""Seeds: which inputs of a workflow hold one, where it is written, and the numbers drawn for them.

Pure functions, by which worker and client draw alike."""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from settee.comfyui.graph import Computed, Graph, Place
from settee.comfyui.node_registry import UNKNOWN, NodeRegistry, options_of, type_of
from settee.comfyui.workflow import Workflow, natural_key, shown_node

#: The last part of an input's name, in lower case: Rodin's is "Seed", a dynamic combo's "sampling_mode.seed".
SEED_INPUTS = ("seed", "noise_seed")
#: The greatest that ComfyUI's own samplers take.
MAX_SEED = 2**64 - 1
#: The greatest that is drawn: several API nodes refuse a larger one.
MAX_DRAWN = 2**31 - 1
#: Stands for "draw one".
DRAW_ONE = -1

#: Takes the least and the greatest number that may be drawn.
Draw = Callable[[int, int], int]


def random_seed(least: int, most: int) -> int:
    return least + secrets.randbelow(most - least + 1)


class _Seed(NamedTuple):
    """A whole number that one or more seed inputs take, and the range of them all."""

    place: Place
    value: int
    least: int
    most: int
    #: It is DRAW_ONE, and the node has no meaning of its own for that.
    asks: bool


class _Stuck(NamedTuple):
    """Why a seed input's number cannot be set, and the node that the number comes from."""

    why: str
    source: str
    asks: bool = False


@dataclass(frozen=True)
class Drawn:
    """New seeds, and a line for each seed that was to be drawn and could not be."""

    values: Mapping[Place, int]
    stuck: tuple[str, ...] = ()

    def shown(self) -> dict[str, int]:
        """By ``node.input``, as results show them."""
        return {f"{place.node_id}.{place.input}": value for place, value in self.values.items()}


def draw_seeds(workflow: Workflow, registry: NodeRegistry = UNKNOWN, *, every: bool, draw: Draw = random_seed) -> Drawn:
    """Draw ``every`` seed, or only those that are -1.

    Seeds that are equal now stay equal, so that two passes over one noise remain that; each -1 is drawn by itself.
    Nodes that lead to no output are not left out: ComfyUI decides that.
    """
    if not every and not any(_is_draw_one(value) for node in workflow.values() for value in node["inputs"].values()):
        return Drawn({})
    graph = Graph(workflow, registry)
    seeds, stuck = _found(graph)
    wanted = [seed for seed in seeds if every or seed.asks]
    equal: dict[int, int] = {}
    values: dict[Place, int] = {}
    # The narrowest range first: its number fits the others.
    for seed in sorted(wanted, key=lambda seed: seed.most - seed.least):
        number = equal.get(seed.value, math.inf)
        if seed.value == DRAW_ONE or not seed.least <= number <= seed.most:
            number = equal[seed.value] = draw(seed.least, seed.most)
        values[seed.place] = int(number)
    drawn = {place.node_id for place in values}
    lines = [one.why for one in stuck if one.asks or (every and graph.needed([one.source]).isdisjoint(drawn))]
    return Drawn({seed.place: values[seed.place] for seed in wanted}, tuple(lines))


def _found(graph: Graph) -> tuple[list[_Seed], list[_Stuck]]:
    """Return every place where a seed is written, in natural order, and the seed inputs whose number cannot be set.

    A linked seed is written in the primitive that it comes from.
    """
    workflow, stuck = graph.workflow, list[_Stuck]()
    takers: dict[Place, list[Place]] = {}
    for node_id in sorted(workflow, key=natural_key):
        for name in workflow[node_id]["inputs"]:
            if not is_seed(name) or not _takes_numbers(graph.spec(asked := Place(node_id, name))):
                continue
            try:
                place = graph.literal(asked)
            except Computed as error:
                source = shown_node(workflow, error.source) if error.source in workflow else error.source
                why = f"{name} of node {shown_node(workflow, node_id)} is computed by node {source}"
                stuck.append(_Stuck(why, error.source))
                continue
            value = workflow[place.node_id]["inputs"][place.input]
            if type(value) is int or _is_draw_one(value):  # JSON's true and false are Python's ints too
                takers.setdefault(place, []).append(asked)
    seeds = []
    for place, inputs in takers.items():
        value = workflow[place.node_id]["inputs"][place.input]
        # A node with a seed of its own decides on -1 itself; for a primitive those do that take its number.
        decides = [place] if is_seed(place.input) else inputs
        asks = _is_draw_one(value) and not all(_limit(graph, one, "min", 0) <= DRAW_ONE for one in decides)
        # A range may be of fractions, with no whole number in it.
        least = math.ceil(max([0, *(_limit(graph, one, "min", 0) for one in (place, *inputs))]))
        most = math.floor(min([MAX_DRAWN, *(_limit(graph, one, "max", MAX_DRAWN) for one in (place, *inputs))]))
        others = () if is_seed(place.input) else graph.fed_by(place)
        other = next((one for one in others if not is_seed(one.input) and not _takes_any(graph, one)), None)
        if other is None and least <= most:
            seeds.append(_Seed(place, DRAW_ONE if _is_draw_one(value) else value, least, most, asks))
            continue
        by = f"{other.input} of node {shown_node(workflow, other.node_id)} takes too" if other else "cannot be drawn"
        why = f"{inputs[0].input} of node {shown_node(workflow, inputs[0].node_id)} is the number of node "
        stuck.append(_Stuck(f"{why}{shown_node(workflow, place.node_id)}, which {by}", place.node_id, asks))
    return seeds, stuck


def is_seed(name: str) -> bool:
    return name.lower().rpartition(".")[2] in SEED_INPUTS


def _takes_numbers(spec: Any) -> bool:
    """Return False for a choice and a text, where "-1" means what the class wants it to."""
    return type_of(spec) not in ("COMBO", "STRING")


def _is_draw_one(value: Any) -> bool:
    """ComfyUI takes a text or a fraction for a whole number, too."""
    return value in (DRAW_ONE, str(DRAW_ONE))


def _limit(graph: Graph, place: Place, name: str, default: float) -> float:
    limit = options_of(graph.spec(place)).get(name)
    return limit if isinstance(limit, (int, float)) and not isinstance(limit, bool) else default


def _takes_any(graph: Graph, place: Place) -> bool:
    """Return True if an input that holds no seed takes any number: one that ends up in a text or a file's name."""
    return graph.spec(place) is not None and _limit(graph, place, "max", MAX_DRAWN) >= MAX_DRAWN
