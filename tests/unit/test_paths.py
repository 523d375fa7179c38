"""Inputs that name files: those that must come with a job, and those that lead outside its folders."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import pytest

from settee.comfyui import problems
from settee.comfyui.node_registry import NodeRegistry

DATA = Path(__file__).parents[1] / "data"
#: Of ComfyUI 0.33.
NEWER: dict[str, Any] = {
    "Load3D": {
        "input": {
            "required": {
                "model_file": ["COMBO", {"options": ["none", "3d/a.glb"], "file_upload": True}],
                "image": ["LOAD_3D", {}],
            }
        }
    },
    "Painter": {"input": {"required": {"mask": ["STRING", {"image_upload": True, "default": ""}]}}},
}


@pytest.fixture(scope="module")
def nodes() -> NodeRegistry:
    return NodeRegistry(json.loads((DATA / "object_info.json").read_text()))


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def loads(graph: dict[str, Any], registry: NodeRegistry) -> list[tuple[str, str]]:
    """(node, file) for everything that a graph loads."""
    return [(problem["node_id"], problem["value"]) for problem in problems.load_problems(graph, registry, {})]


def test_the_files_that_a_workflow_loads(nodes: NodeRegistry) -> None:
    graph = {
        "1": node("LoadImage", image="a.png"),
        "2": node("LoadImageMask", image="b.png [input]", channel="alpha"),
        "3": node("LoadAudio", audio="c.wav"),
        "4": node("LoadImage", image=["1", 0]),
        "5": node("CLIPTextEncode", text="d.png", clip=["9", 0]),
    }
    assert loads(graph, nodes) == [
        ("1", "a.png"),
        ("2", "b.png"),
        ("3", "c.wav"),
    ]


@pytest.mark.parametrize(
    ("given", "refused"),
    [
        (node("LoadImage", image="/etc/passwd"), True),
        (node("LoadImage", image="../x.png"), True),
        (node("LoadImage", image="a/../../x.png"), True),
        (node("LoadImage", image="a\\..\\x.png"), True),
        (node("LoadImage", image="C:\\x.png"), True),
        (node("LoadImage", image="x.png [output]"), True),
        (node("LoadImage", image="x.png [temp]"), True),
        (node("LoadImage", image="/etc/passwd [input]"), True),
        (node("SomeCustomLoader", video_path="/etc/passwd"), True),
        (node("SomeCustomLoader", directory="../.."), True),
        (node("SaveImage", filename_prefix="/etc/x"), True),
        (node("LoadImage", image="faces/x.png [input]"), False),
        (node("CLIPTextEncode", text="/imagine ../ a cat"), False),
        (node("SaveImage", filename_prefix="%date:yyyy-MM-dd%/x"), False),
        (node("CheckpointLoaderSimple", ckpt_name="sdxl/base.safetensors"), False),
    ],
)
def test_paths_outside_the_jobs_folders(given: dict[str, Any], refused: bool, nodes: NodeRegistry) -> None:
    assert bool(problems.path_problems({"1": given}, nodes)) is refused


@pytest.mark.parametrize(
    "value",
    [
        {"image": "/etc/passwd", "mask": "m.png"},
        {"image": "i.png", "normal": "../../n.png"},
        {"image": "threed/scene.png [temp]"},
        {"frames": [{"recording": "C:\\x.mp4"}]},
        '{"image": "../x.png"}',
        {"__value__": ["a.png", "/srv/b.png"]},
    ],
)
@pytest.mark.parametrize("name", ["image", "viewport_state"])
def test_names_within_values_of_any_shape_are_looked_at(name: str, value: Any) -> None:
    [problem] = problems.path_problems({"1": node("Load3D", **{name: value})}, NodeRegistry(NEWER))
    assert problem["input"] == name


@pytest.mark.parametrize(
    "value",
    [
        {"image": "a.png", "recording": "", "camera_info": {"position": {"x": 1}}},
        {"prompt": "/imagine a cat ../ or two", "on": True},
        "[a cat] /imagine ../x",
        {"words": ["~ 5.9", "/imagine a cat v5.2", "/imagine\na cat, ../etc"]},
        ["4", 0],
    ],
)
def test_values_that_lead_nowhere_are_left_alone(value: Any) -> None:
    assert problems.path_problems({"1": node("Any", settings=value)}, NodeRegistry()) == []


JPEG = base64.b64encode(b"\xff\xd8\xff\xe0\x00\x10JFIF" + bytes(range(200))).decode()


@pytest.mark.parametrize("data", [JPEG, "/" + "a/" * 3000])
def test_what_cannot_be_a_path_is_none(data: str) -> None:
    """A JPEG in base64 begins with a slash; some custom classes take it in an input called `image`."""
    assert problems.path_problems({"1": node("ETN_LoadImageBase64", image=data)}, NodeRegistry()) == []


def test_base64_where_a_name_belongs_is_called_that(nodes: NodeRegistry) -> None:
    [problem] = problems.path_problems({"1": node("LoadImage", image=JPEG)}, nodes)
    assert "base64" in problem["problem"]
    assert "`images`" in problem["problem"]


def test_one_of_an_inputs_own_choices_is_no_foreign_path() -> None:
    info = {"Loader": {"input": {"required": {"path": [["/models/a", "../b"]]}}}}
    for value in ("/models/a", "../b"):
        assert problems.path_problems({"1": node("Loader", path=value)}, NodeRegistry(info)) == []
    assert problems.path_problems({"1": node("Loader", path="/models/c")}, NodeRegistry(info))


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (
            node("CheckpointLoaderSimple", ckpt_name="/runpod-volume/models/checkpoints/plain.safetensors"),
            "as ComfyUI lists",
        ),
        (node("SomeLoader", model_path="../x.safetensors"), "as ComfyUI lists"),
        (node("SaveImage", filename_prefix="../pic"), "below ComfyUI's output folder"),
        (node("SaveImage", filename_prefix="/out/pic"), "below ComfyUI's output folder"),
        (node("KSampler", sampler_name="/euler"), "one of this input's choices"),
        (node("LoadImage", image="/home/me/a.png"), "send the file with the job"),
    ],
)
def test_the_advice_is_for_what_the_input_names(given: dict[str, Any], advice: str, nodes: NodeRegistry) -> None:
    [problem] = problems.path_problems({"1": given}, nodes)
    assert advice in problem["problem"]


def test_a_models_full_path_gets_its_name_in_comfyui_as_a_near_match() -> None:
    info = {"CheckpointLoaderSimple": {"input": {"required": {"ckpt_name": [["xl/plain.safetensors"], {}]}}}}
    graph = {"1": node("CheckpointLoaderSimple", ckpt_name="/volume/plain.safetensors")}
    assert problems.path_problems(graph, NodeRegistry(info))[0]["near"] == ["xl/plain.safetensors"]


def test_a_choice_that_is_no_file_need_not_come_with_the_job() -> None:
    graph = {"1": node("Load3D", model_file="none", image={}), "2": node("Painter", mask="")}
    assert loads(graph, NodeRegistry(NEWER)) == []
    graph = {"1": node("Load3D", model_file="3d/a.glb", image={}), "2": node("Painter", mask="m.png")}
    assert loads(graph, NodeRegistry(NEWER)) == [("1", "3d/a.glb"), ("2", "m.png")]


def test_each_of_several_files_at_one_input_must_come_with_the_job() -> None:
    info = {"Loader": {"input": {"required": {"image": ["COMBO", {"image_upload": True, "multiselect": True}]}}}}
    graph = {"1": node("Loader", image={"__value__": ["a.png", "b.png", "c.png"]})}
    assert [item["value"] for item in problems.load_problems(graph, NodeRegistry(info), {"b.png": None})] == [
        "a.png",
        "c.png",
    ]


def test_a_file_that_a_core_loader_would_cut_is_named_and_left_to_a_custom_one(nodes: NodeRegistry) -> None:
    graph = {"1": node("LoadImage", image="a.heic"), "2": node("HeicLoader", image="a.heic")}
    files = {"a.heic": "this HEIC is …: convert it to JPEG or PNG first"}
    [problem] = problems.load_problems(graph, nodes, files)
    assert problem["node_id"] == "1"
    assert "convert it" in problem["problem"]
