"""What the node registry shows of a workflow: what runs, what is missing, what ComfyUI said."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import WorkflowRejected
from settee.comfyui.graph import Graph
from settee.comfyui.node_registry import UNKNOWN, NodeRegistry, choices_of
from settee.comfyui.problems import explain, explained, near_matches, registry_problems
from settee.comfyui.rewrite import replaced, respelled, without_unknown

DATA = Path(__file__).parents[1] / "data"
RECORDINGS = Path(__file__).parents[1] / "contract" / "recordings"


@pytest.fixture(scope="module")
def nodes() -> NodeRegistry:
    return NodeRegistry(json.loads((DATA / "object_info.json").read_text()))


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


EMPTY = node("EmptyImage", width=8, height=8, batch_size=1, color=0)
SAVE = node("SaveImage", images=["1", 0], filename_prefix="x")

# --- what runs ------------------------------------------------------------------------------------------------


def test_nodes_that_lead_to_no_output_are_no_reason_to_refuse(nodes: NodeRegistry) -> None:
    graph = {
        "1": EMPTY,
        "2": SAVE,
        "3": node("ImageScale", image=["1", 0]),  # most inputs are missing
        "4": node("NoSuchLoader"),
        "5": node("ImageInvert", image=["4", 7]),
        "6": node("NoSuchNote", text="a note"),
    }
    assert list(Graph(graph, nodes).live) == ["1", "2"]
    assert registry_problems(graph, nodes) == []
    # ComfyUI refuses a prompt with a class that it does not know, wherever that stands.
    assert list(without_unknown(graph, nodes)) == ["1", "2", "3"]


def test_an_unknown_class_at_an_end_may_have_been_an_output(nodes: NodeRegistry) -> None:
    graph = {"1": EMPTY, "2": SAVE, "3": node("NoSuchSaver", images=["1", 0])}
    [problem] = registry_problems(graph, nodes)
    assert problem["node_id"] == "3"
    assert list(without_unknown(graph, nodes)) == ["1", "2"]


def test_without_any_output_every_problem_is_named(nodes: NodeRegistry) -> None:
    graph = {"1": node("EmtyImage"), "2": node("SaveImages", images=["1", 0]), "3": node("ImageInvert")}
    assert {problem["node_id"] for problem in registry_problems(graph, nodes)} == {"1", "2", "3"}


def test_an_unknown_class_is_named_in_the_line_with_what_to_do(nodes: NodeRegistry) -> None:
    graph = {"1": node("EmptyImag"), "2": SAVE}
    problems = registry_problems(graph, nodes)
    line = str(WorkflowRejected.from_problems(problems, "workflow"))
    assert "workflow.1 (EmptyImag): no such node class on this worker: install its custom node" in line
    assert "did you mean 'EmptyImage'" in line


def test_a_custom_node_that_failed_to_import_is_told_apart_from_one_that_is_not_there(
    nodes: NodeRegistry,
) -> None:
    failed = {"ComfyUI-Pack": "No module named 'cv2'"}
    [problem] = registry_problems({"1": node("PackLoader"), "2": SAVE}, nodes, failed)
    assert "ComfyUI-Pack (No module named 'cv2')" in problem["problem"]


def test_a_class_that_only_comfyui_misses_is_named_in_the_line() -> None:
    """As 0.33 answers; the registry may be older than the server."""
    said = {
        "type": "missing_node_type",
        "message": "Node 'X' not found. The custom node may not be installed.",
        "details": "Node ID '#1'",
        "extra_info": {"node_id": "1", "class_type": "Gone", "node_title": "X"},
    }
    refused = WorkflowRejected(details={"error": said, "node_errors": {}})
    error = explained(refused, {"1": node("Gone")}, UNKNOWN)
    assert error.message.startswith("invalid workflow: workflow.1 (Gone): Node 'X' not found")


# --- what is called otherwise ----------------------------------------------------------------------------------

#: As /node_replacements of ComfyUI 0.33 has them.
REPLACEMENTS: dict[str, Any] = {
    "T2IAdapterLoader": [
        {
            "new_node_id": "ControlNetLoader",
            "old_node_id": "T2IAdapterLoader",
            "old_widget_ids": None,
            "input_mapping": [{"new_id": "control_net_name", "old_id": "t2i_adapter_name"}],
            "output_mapping": None,
        }
    ],
    "ResizeImagesByLongerEdge": [
        {
            "new_node_id": "ImageScaleToMaxDimension",
            "input_mapping": [
                {"new_id": "image", "old_id": "images"},
                {"new_id": "upscale_method", "set_value": "lanczos"},
            ],
            "output_mapping": [{"new_idx": 2, "old_idx": 0}],
        }
    ],
    "Preview3DAnimation": [{"new_node_id": "Preview3D", "input_mapping": None, "output_mapping": None}],
    "ImageScaleBy": [{"new_node_id": "ResizeImageMaskNode", "input_mapping": [], "output_mapping": None}],
    "Gone": [{"new_node_id": "GoneToo", "input_mapping": None, "output_mapping": None}],
}
TODAYS = NodeRegistry(
    {"ControlNetLoader": {}, "ImageScaleToMaxDimension": {}, "Preview3D": {}, "ImageScaleBy": {}}, REPLACEMENTS
)


def test_classes_that_comfyui_replaces_are_replaced_before_anything_looks_at_them() -> None:
    graph = {
        "1": node("T2IAdapterLoader", t2i_adapter_name="a.pth"),
        "2": node("ResizeImagesByLongerEdge", images=["9", 0], longer_edge=5),
        "3": node("Preview3DAnimation", model_file="x.glb", image=["2", 0]),
        "4": node("ImageScaleBy", image=["2", 1]),
        "5": node("Gone", a=1),
    }
    assert replaced(graph, TODAYS) == {
        "1": node("ControlNetLoader", control_net_name="a.pth"),
        "2": node("ImageScaleToMaxDimension", image=["9", 0], upscale_method="lanczos"),
        "3": node("Preview3D", model_file="x.glb", image=["2", 2]),
        "4": graph["4"],
        "5": graph["5"],
    }
    assert replaced({"4": graph["4"]}, TODAYS) == {"4": graph["4"]}


@pytest.mark.parametrize(
    ("choices", "coming"), [(["XL/a.safetensors", "a.safetensors"], []), (["b.safetensors"], ["XL/a.safetensors"])]
)
def test_a_name_that_differs_in_its_separators_only_is_taken_with_a_warning(
    choices: list[str], coming: list[str]
) -> None:
    info = {"CheckpointLoaderSimple": {"input": {"required": {"ckpt_name": [choices, {}]}}}}
    graph = {"4": node("CheckpointLoaderSimple", ckpt_name="XL\\a.safetensors")}
    changed, [warning] = respelled(graph, NodeRegistry(info), coming)
    assert changed["4"]["inputs"]["ckpt_name"] == "XL/a.safetensors"
    assert "node 4 (CheckpointLoaderSimple)" in warning
    assert graph["4"]["inputs"]["ckpt_name"] == "XL\\a.safetensors"
    stack = {"on": True, "loras": [{"lora": "XL\\a.safetensors"}, {"lora": "XL\\other"}, ["1", 0]]}
    changed, [warning] = respelled({"5": node("Stack", stack=stack, text=["4", 0])}, NodeRegistry(info), coming)
    spelt = changed["5"]["inputs"]["stack"]["loras"]
    assert spelt == [{"lora": "XL/a.safetensors"}, {"lora": "XL\\other"}, ["1", 0]]
    assert "node 5 (Stack)" in warning


@pytest.mark.parametrize("name", ["XL/other.safetensors", "XL/a.safetensors", "a"])
def test_other_names_stay_as_they_are(name: str) -> None:
    info = {"Loader": {"input": {"required": {"ckpt_name": [["XL/a.safetensors", "y\\z", "y/z"], {}]}}}}
    graph = {"4": node("Loader", ckpt_name=name), "5": node("Loader", ckpt_name="y\\z")}
    assert respelled(graph, NodeRegistry(info), []) == (graph, [])


# --- near matches and ComfyUI's own words -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "choices", "best"),
    [
        ("sdxl_base.safetensor", ["sd15.safetensors", "sdxl_base.safetensors"], "sdxl_base.safetensors"),
        ("SDXL_BASE.safetensors", ["xl/sdxl_base.safetensors"], "xl/sdxl_base.safetensors"),
        ("euler_a", ["euler", "euler_ancestral", "ddim"], "euler"),
    ],
)
def test_near_matches(value: str, choices: list[str], best: str) -> None:
    assert near_matches(value, choices)[0] == best


def test_no_near_match_is_made_up() -> None:
    assert near_matches("zzzz", ["euler", "ddim"]) == []
    assert near_matches("x" * 1000, ["euler"]) == []


@pytest.mark.parametrize(
    ("spec", "choices"),
    [
        ([["a", "b"], {}], ["a", "b"]),
        (["COMBO", {"options": ["a"]}], ["a"]),
        (["COMBO", {"remote": {}}], None),
        (["INT", {"default": 1}], None),
        (None, None),
    ],
)
def test_both_forms_of_a_combo(spec: Any, choices: Any) -> None:
    assert choices_of(spec) == choices


@pytest.mark.parametrize("version", ["0.3.64", "0.33.0"])
def test_comfyuis_own_words_are_explained(version: str, nodes: NodeRegistry) -> None:
    """Every recorded rejection turns into problems that name the node, the input and the value."""
    recorded = json.loads((RECORDINGS / version / "validation_errors.json").read_text())
    explained = 0
    for event in recorded["events"]:
        body = event.get("response_body")
        if event.get("path") != "/prompt" or not isinstance(body, dict) or not body.get("node_errors"):
            continue
        graph = event["request_body"]["prompt"]
        problems = explain(body["node_errors"], graph, nodes)
        assert len(problems) == sum(len(report["errors"]) for report in body["node_errors"].values())
        for problem in problems:
            assert problem["node_id"] in body["node_errors"]
            assert problem["class_type"]
            assert problem["problem"]
        explained += len(problems)
    assert explained > 15
