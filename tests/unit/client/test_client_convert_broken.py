"""Broken and hostile files of the editor: an error that names the node, never a wrong graph or another error."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

import pytest

from settee.client.client_errors import UsageError
from settee.comfyui.workflow import links
from tests.support.editor_files import OBJECT_INFO, comparable, converted, graphs, pair, real, refusal

# --- the published workflows, broken --------------------------------------------------------------------------


def changed(name: str, node_id: int, **fields: Any) -> dict[str, Any]:
    editor = copy.deepcopy(real(name))
    next(node for node in editor["nodes"] if node["id"] == node_id).update(fields)
    return editor


BREAKABLE = ["n_sdxl_simple_example", "hidream_e1_full", "controlnet_example", "image_flux.1_fill_dev_OneReward"]


@pytest.mark.parametrize("name", BREAKABLE)
def test_an_unknown_class_is_refused_whatever_its_mode(name: str) -> None:
    for node in real(name)["nodes"]:
        for mode in (0, 2, 4):
            message = refusal(changed(name, node["id"], type="NoSuchNode", mode=mode))
            assert f"node {node['id']} NoSuchNode" in message


@pytest.mark.parametrize("name", BREAKABLE)
def test_a_link_that_only_one_end_knows_is_refused(name: str) -> None:
    editor = real(name)
    for place, graph in enumerate(graphs(editor)):
        for number in range(len(graph["links"])):
            broken = copy.deepcopy(editor)
            del graphs(broken)[place]["links"][number]
            assert "does not exist" in refusal(broken)


@pytest.mark.parametrize("name", BREAKABLE)
def test_lost_values_are_refused(name: str) -> None:
    for node in real(name)["nodes"]:
        if node["type"] in OBJECT_INFO and node["mode"] == 0 and node.get("widgets_values"):
            assert f"node {node['id']} {node['type']}" in refusal(changed(name, node["id"], widgets_values=[]))


@pytest.mark.parametrize("name", BREAKABLE)
def test_a_muted_node_is_gone_with_its_links_and_nothing_else(name: str) -> None:
    """Except that a widget fed by it is refused: editors disagree about what it then holds."""
    whole = comparable(converted(real(name), OBJECT_INFO))
    accepted = 0
    for node_id, node in whole.items():
        if ":" in node_id:
            continue
        editor = changed(name, int(node_id), mode=2)
        fed = [(other, key) for other, rest in whole.items() for key, source, _ in links(rest) if source == node_id]
        if any(is_widget(whole[other]["class_type"], key) for other, key in fed):
            assert f"the muted node {node_id} feeds" in refusal(editor)
            continue
        expected = {
            other: {
                "class_type": rest["class_type"],
                "inputs": {key: value for key, value in rest["inputs"].items() if (other, key) not in fed},
            }
            for other, rest in whole.items()
            if other != node_id
        }
        assert comparable(converted(editor, OBJECT_INFO)) == expected, node["class_type"]
        accepted += 1
    assert accepted > 5


def is_widget(class_type: str, name: str) -> bool:
    inputs = OBJECT_INFO[class_type]["input"]
    kind = {**inputs.get("required", {}), **inputs.get("optional", {})}[name][0]
    return isinstance(kind, list) or kind in ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO")


@pytest.mark.parametrize("name", BREAKABLE)
def test_a_bypassed_node_is_gone_and_no_link_leads_nowhere(name: str) -> None:
    accepted = 0
    for node in real(name)["nodes"]:
        if node["type"] not in OBJECT_INFO or node["mode"] != 0:
            continue
        try:
            workflow = converted(changed(name, node["id"], mode=4), OBJECT_INFO)
        except UsageError:
            continue
        accepted += 1
        assert str(node["id"]) not in workflow
        for other in workflow.values():
            for key, source, slot in links(other):
                given = OBJECT_INFO[workflow[source]["class_type"]]["output"][slot]
                inputs = OBJECT_INFO[other["class_type"]]["input"]
                taken = {**inputs.get("required", {}), **inputs.get("optional", {})}[key][0]
                assert given == taken
    assert accepted > 5


# --- hostile files ---


def test_loops_are_refused_and_long_chains_are_not() -> None:
    editor = pair("reroutes")["editor"]
    [first, second] = [node for node in editor["nodes"] if node["type"] == "Reroute"]
    chain = copy.deepcopy(editor)
    # Ever more reroutes behind the last one.
    last = next(node for node in chain["nodes"] if node["id"] == second["id"])
    end = next(link for link in chain["links"] if link[1] == last["id"])
    for number in range(100, 3100):
        entry = copy.deepcopy(last) | {"id": number}
        entry["inputs"][0]["link"], entry["outputs"][0]["links"] = number, [number + 1]
        chain["nodes"].append(entry)
        chain["links"].append([number, number - 1 if number > 100 else last["id"], 0, number, 0, "*"])
    last["outputs"][0]["links"] = [100]
    chain["links"].append([3100, 3099, 0, *end[3:]])
    chain["links"].remove(end)
    target = next(node for node in chain["nodes"] if node["id"] == end[3])
    target["inputs"][end[4]]["link"] = 3100
    assert comparable(converted(chain, OBJECT_INFO)) == pair("reroutes")["api"]

    [back] = [link for link in editor["links"] if link[3] == first["id"]]
    source = next(node for node in editor["nodes"] if node["id"] == back[1])
    source["outputs"][back[2]]["links"] = []
    back[1:3] = [second["id"], 0]
    second["outputs"][0]["links"].append(back[0])
    assert "Reroute feeds itself" in refusal(editor)


def nested_in_itself(copies: int) -> dict[str, Any]:
    editor = pair("subgraph")["editor"]
    [outer] = [node for node in editor["nodes"] if node["id"] == 57]
    inner = {"id": 900, "type": outer["type"], "mode": 0, "inputs": [], "outputs": []}
    editor["definitions"]["subgraphs"][0]["nodes"] += [inner | {"id": 900 + number} for number in range(copies)]
    return editor


@pytest.mark.parametrize("copies", [1, 3])
def test_a_subgraph_within_itself_is_refused_at_once(copies: int) -> None:
    assert "nested too deep, or in itself" in refusal(nested_in_itself(copies))


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield from places(value, (*path, key))


JUNK: list[Any] = [
    None,
    True,
    0,
    -1,
    -10,
    1.5,
    float("nan"),
    10**400,
    "",
    "x",
    "*",
    [],
    {},
    [[]],
    [1, 2],
    {"name": "a"},
]


@pytest.mark.parametrize("name", ["bypass_lora", "nested_values", "subgraph_proxies", "primitive_numbers"])
def test_a_broken_file_or_registry_is_refused_and_nothing_else(name: str) -> None:
    """What is not refused still has only links to nodes that are there."""
    chance = random.Random(name)
    whole = pair(name)["editor"]
    classes = {node["type"] for graph in graphs(whole) for node in graph["nodes"]} & OBJECT_INFO.keys()
    refusals = 0
    for number in range(400):
        broken = {"editor": copy.deepcopy(whole), "registry": copy.deepcopy({key: OBJECT_INFO[key] for key in classes})}
        *way, last = chance.choice(list(places(broken["editor" if number % 4 else "registry"])))
        inside: Any = broken["editor" if number % 4 else "registry"]
        for key in way:
            inside = inside[key]
        if chance.random() < 0.2:
            del inside[last]
        else:
            inside[last] = copy.deepcopy(chance.choice(JUNK))
        try:
            workflow = converted(broken["editor"], broken["registry"])
        except UsageError:
            refusals += 1
        else:
            assert {source for node in workflow.values() for _, source, _ in links(node)} <= workflow.keys()
    assert 100 < refusals < 400
