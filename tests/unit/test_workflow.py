"""Workflows: shape, loops, isolation, and what the registry shows, against real graphs and a real registry."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from settee.comfyui import isolation, problems, workflow
from settee.comfyui.node_registry import NodeRegistry

DATA = Path(__file__).parents[1] / "data"
REAL = sorted((DATA / "real-workflows").glob("*.api.json"))


@pytest.fixture(scope="module")
def nodes() -> NodeRegistry:
    return NodeRegistry(json.loads((DATA / "object_info.json").read_text()))


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


# --- shape ----------------------------------------------------------------------------------------------------


def test_there_are_real_workflows() -> None:
    assert len(REAL) == 56


@pytest.mark.parametrize("path", REAL, ids=lambda path: path.name.removesuffix(".api.json"))
def test_published_workflows_are_never_refused_by_mistake(path: Path, nodes: NodeRegistry) -> None:
    """What is left to say about them is only that this registry has no API nodes."""
    graph = json.loads(path.read_text())
    assert workflow.shape_problems(graph, max_nodes=1000) == workflow.link_problems(graph) == []
    assert problems.path_problems(graph, nodes) == []
    assert [item for item in problems.registry_problems(graph, nodes) if item["type"] != "unknown_class"] == []


@pytest.mark.parametrize(
    "path", sorted((DATA / "real-workflows").glob("*.ui.json")), ids=lambda path: path.name.removesuffix(".ui.json")
)
def test_the_editors_format_gets_a_word_on_how_to_export(path: Path) -> None:
    [problem] = workflow.shape_problems(json.loads(path.read_text()), max_nodes=1000)
    assert "Workflow > Export (API)" in problem["problem"]


@pytest.mark.parametrize(
    ("graph", "says"),
    [
        ({}, "no nodes"),
        ({"1": []}, "must be an object"),
        ({"1": {"inputs": {}}}, "no class_type"),
        ({"1": {"class_type": 3, "inputs": {}}}, "no class_type"),
        ({"1": {"class_type": "A"}}, 'no "inputs"'),
        ({"1": {"class_type": "A", "inputs": []}}, 'no "inputs"'),
        ({"1": node("A", x=["2", 0])}, "not in the workflow"),
        ({"1": node("A", x=["1", 0])}, "1 -> 1 form a loop"),
        ({"1": node("A", x=["2", 0]), "2": node("B", x=["3", 0]), "3": node("C", x=["2", 1])}, "2 -> 3 -> 2"),
        ({"1": node("A", x=["2", -1]), "2": node("B")}, "count from 0"),
        ({"1": node("A", x=[2, 0]), "2": node("B")}, 'node ids are strings: write ["2", 0]'),
        ({"prompt": {"1": node("A")}, "client_id": "x"}, "whole POST /prompt body"),
        ({str(index): node("A") for index in range(11)}, "MAX_NODES allows 10"),
    ],
)
def test_what_is_wrong_with_a_shape_is_said(graph: dict[str, Any], says: str) -> None:
    found = workflow.shape_problems(graph, max_nodes=10) or workflow.link_problems(graph)
    assert any(says in item["problem"] for item in found)


def test_two_numbers_that_name_no_node_are_left_to_comfyui() -> None:
    assert workflow.shape_problems({"1": node("A", size=[512, 512])}, max_nodes=10) == []


def test_a_long_chain_is_no_loop_and_needs_no_recursion() -> None:
    graph = {str(index): node("A", x=[str(index + 1), 0]) for index in range(4999)} | {"4999": node("A")}
    assert workflow.walk(graph)[0] == []


def test_a_diamond_is_no_loop() -> None:
    graph = {
        "1": node("A"),
        "2": node("B", x=["1", 0]),
        "3": node("B", x=["1", 0]),
        "4": node("C", a=["2", 0], b=["3", 0]),
    }
    assert workflow.walk(graph)[0] == []


def test_natural_order_takes_subgraph_ids() -> None:
    ids = ["10", "57:8", "2", "57:10", "57", "a"]
    assert sorted(ids, key=workflow.natural_key) == ["2", "10", "57", "57:8", "57:10", "a"]


@pytest.mark.parametrize("value", [["1"], ["1", 0, 0], [1, 0], "1", ["1", "0"], None])
def test_what_is_no_link(value: Any) -> None:
    assert not workflow.is_link(value)


# --- isolation ------------------------------------------------------------------------------------------------


def test_isolation_touches_output_nodes_only_and_never_the_original(nodes: NodeRegistry) -> None:
    graph = {
        "1": node("EmptyImage", width=8, height=8, batch_size=1, color=0),
        "2": node("SaveImage", images=["1", 0], filename_prefix="a/b"),
        "3": node("PreviewImage", images=["1", 0]),
        "4": node("SaveImage", images=["1", 0], filename_prefix=["9", 0]),
    }
    before = copy.deepcopy(graph)
    isolated = isolation.isolate(graph, nodes, "job")
    assert graph == before
    assert isolated["1"] == graph["1"]
    assert isolated["2"]["inputs"]["filename_prefix"] == "job/a/b"
    assert isolated["3"]["inputs"][isolation.SALT_INPUT] == "job"
    assert isolated["4"]["inputs"]["filename_prefix"] == ["9", 0]
    assert isolated["4"]["inputs"][isolation.SALT_INPUT] == "job"


def test_a_prefix_by_another_name_is_isolated_too() -> None:
    """Below output/loras ComfyUI would look for LoRAs, and miss the folder once it is wiped."""
    graph = {"1": {"class_type": "SaveLoRA", "inputs": {"prefix": "loras/mine"}}}
    info = {"SaveLoRA": {"output_node": True, "python_module": "comfy_extras.nodes_train"}}
    assert isolation.isolate(graph, NodeRegistry(info), "job")["1"]["inputs"] == {"prefix": "job/loras/mine"}


def test_only_prefixes_that_comfyuis_own_classes_make_a_path_of_are_rewritten() -> None:
    core = {"output_node": True, "python_module": "comfy_extras.nodes_dataset"}
    info = {"SaveImageDataSetToFolder": core, "Image Save": {**core, "python_module": "custom_nodes.pack"}}
    for class_type in info:
        graph = {"1": node(class_type, filename_prefix="day/a")}
        assert isolation.isolate(graph, NodeRegistry(info), "job")["1"]["inputs"] == {
            "filename_prefix": "day/a",
            isolation.SALT_INPUT: "job",
        }


def test_the_salt_of_a_custom_class_hides_where_comfyui_puts_values_of_its_own() -> None:
    """Of what is a name of the class's hidden inputs no class sees what a prompt says, open-ended ones neither."""
    hidden = {"key": "MY_OWN", "prompt": "PROMPT", "unique_id": "UNIQUE_ID"}
    info = {"Any": {"output_node": True, "input": {"optional": {}, "hidden": hidden}}}
    graph = {"1": node("Any", a=1), "2": node("Any", prompt="mine")}
    isolated = isolation.isolate(graph, NodeRegistry(info), "job")
    assert isolated["1"]["inputs"] == {"a": 1, "prompt": "settee_job:job"}
    assert isolated["2"]["inputs"] == {"prompt": "mine", "unique_id": "settee_job:job"}
    # ComfyUI's newer node API writes them as lists, and fills in none of them.
    newer = {"Any": {"output_node": True, "input": {"hidden": {"prompt": ["PROMPT"]}}}}
    assert isolation.isolate(graph, NodeRegistry(newer), "job")["1"]["inputs"] == {"a": 1, isolation.SALT_INPUT: "job"}


def test_nodes_with_temp_files_on_the_way_run_again_when_previews_are_asked_for() -> None:
    info = {"ImageCropV2": {"output_node": False, "has_intermediate_output": True, "python_module": "nodes"}}
    graph = {"1": node("ImageCropV2", a=1), "2": node("Other", a=["1", 0])}
    assert isolation.isolate(graph, NodeRegistry(info), "job") == graph
    isolated = isolation.isolate(graph, NodeRegistry(info), "job", previews=True)
    assert isolated["1"]["inputs"] == {"a": 1, isolation.SALT_INPUT: "job"}
    assert isolated["2"] == graph["2"]


def test_a_node_that_names_an_input_file_gets_a_salt_of_its_content() -> None:
    digests = {"a.png": "1", "set/b.png": "2", "set/c.png": "3"}
    graph = {
        "1": node("Loader", image="a.png"),
        "2": node("Loader", folder="set"),
        "3": node("Loader", image="set/b.png [input]"),
        "4": node("Text", text="a.png is nice"),
        "5": node("Loader", image=["1", 0]),
    }
    salts = isolation.salts(graph, digests)
    assert set(salts) == {"1", "2", "3"}
    assert isolation.salts(graph, {**digests, "set/c.png": "4"}).items() - salts.items() == {
        ("2", isolation.salts(graph, {**digests, "set/c.png": "4"})["2"])
    }
    isolated = isolation.isolate(graph, NodeRegistry(), "job", salts)
    assert isolated["1"]["inputs"] == {"image": "a.png", isolation.SALT_INPUT: salts["1"]}
    assert isolated["4"] == graph["4"]


@pytest.mark.parametrize(
    "value",
    [
        {"image": "a.png", "recording": ""},
        {"__value__": ["x.png", "a.png"]},
        [["a.png", 0], "b"],
        {"layers": [{"source": {"file": "a.png [input]"}}]},
        '{"layers": [{"file": "./a.png"}]}',
    ],
)
def test_a_file_within_a_value_of_any_shape_is_a_file_that_the_node_reads(value: Any) -> None:
    graph = {"1": node("Load3D", image=value)}
    assert set(isolation.salts(graph, {"a.png": "1"})) == {"1"}
    assert isolation.salts(graph, {"a.png": "1"}) != isolation.salts(graph, {"a.png": "2"})
    assert isolation.salts(graph, {"other.png": "1"}) == {}


def test_a_chain_that_comfyui_cannot_follow() -> None:
    graph = {str(i): node("A", x=[str(i + 1), 0]) for i in range(workflow.MAX_CHAIN)}
    graph |= {str(workflow.MAX_CHAIN): node("A")}
    assert "ComfyUI follows at most" in workflow.link_problems(graph)[0]["problem"]
    del graph["0"]
    assert workflow.link_problems(graph) == []


def test_policy_takes_names_and_patterns() -> None:
    graph = {"1": node("SaveImage"), "2": node("LoadImage")}
    assert [item["node_id"] for item in problems.class_problems(graph, (), ("Save*",))] == ["1"]
    assert [item["node_id"] for item in problems.class_problems(graph, ("SaveImage",), ())] == ["2"]
    assert problems.class_problems(graph, ("*",), ("Nothing",)) == []
