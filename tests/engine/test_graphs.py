"""What of a graph is a reason to refuse it, what is left out, and what it is told: before anything runs."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import requests
from PIL import Image

from settee.base.errors import InvalidRequest, PayloadTooLarge, WorkflowRejected
from tests.support.embedded import COMFY_COMMAND, EmbeddedServer
from tests.support.rig import Rig, b64, empty, picture, png

LOOSE: dict[str, Any] = {
    "20": {"class_type": "LoadImage", "inputs": {"image": "not_sent.png"}},
    "21": {"class_type": "ImageScale", "inputs": {"image": ["20", 0]}},
    "22": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "no_such.safetensors"}},
}


def test_nodes_that_lead_to_no_output_are_no_reason_to_refuse(rig: Rig) -> None:
    """A file that was not sent, inputs that are missing, a model that is not there: ComfyUI looks at none of them."""
    result = rig.run({**empty(41), **LOOSE})
    assert [output.node_id for output in result.outputs] == ["9"]
    assert result.warnings == ()


@pytest.mark.parametrize("links", [{"20": "99"}, {"20": "21", "21": "20"}, {"20": "20"}])
def test_links_to_nowhere_and_loops_are_refused_only_where_an_output_needs_them(
    rig: Rig, links: dict[str, str]
) -> None:
    """Both ComfyUI 0.3.64 and 0.33 run the outputs that need none of these nodes."""
    loose = {i: {"class_type": "ImageInvert", "inputs": {"image": [source, 0]}} for i, source in links.items()}
    result = rig.run({**empty(45), **loose})
    assert [output.node_id for output in result.outputs] == ["9"]
    graph = {**empty(45), **loose}
    graph["9"]["inputs"]["images"] = ["20", 0]
    with pytest.raises(InvalidRequest, match=r"not in the workflow|form a loop"):
        rig.run(graph)


def test_a_class_that_is_not_there_is_left_out_with_a_warning_where_no_output_needs_it(rig: Rig) -> None:
    loose = {
        "20": {"class_type": "NoSuchLoader", "inputs": {}},
        "21": {"class_type": "ImageInvert", "inputs": {"image": ["20", 0]}},
    }
    result = rig.run({**empty(42), **loose})
    assert [output.node_id for output in result.outputs] == ["9"]
    [warning] = result.warnings
    assert "20 (NoSuchLoader), 21 (ImageInvert)" in warning


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (
            {"class_type": "NoSuchFilter", "inputs": {"image": ["1", 0]}},
            "workflow.20 (NoSuchFilter): no such node class",
        ),
        ({"class_type": "ImageScale", "inputs": {"image": ["1", 0]}}, "workflow.20.inputs."),
        ({"class_type": "ImageInvert", "inputs": {"image": ["1", 5]}}, "workflow.2"),
    ],
)
def test_allow_partial_runs_the_outputs_that_have_no_problem(rig: Rig, bad: dict[str, Any], says: str) -> None:
    save = {"class_type": "SaveImage", "inputs": {"images": ["20", 0], "filename_prefix": "bad"}}
    graph = {**empty(43), "20": bad, "21": save}
    with pytest.raises(WorkflowRejected):
        rig.run(graph)
    result = rig.run(graph, allow_partial=True)
    assert [output.node_id for output in result.outputs] == ["9"]
    assert any(warning.startswith(f"not run (allow_partial): {says}") for warning in result.warnings), result.warnings


def test_allow_partial_of_nothing_is_the_refusal(rig: Rig) -> None:
    graph = empty(44)
    graph["1"]["class_type"] = "NoSuchImage"
    with pytest.raises(WorkflowRejected, match=r"workflow\.1 \(NoSuchImage\): no such node class"):
        rig.run(graph, allow_partial=True)


def test_a_custom_node_that_failed_to_import_is_named_with_the_reason(tmp_path: Path) -> None:
    """ComfyUI prints it at its start, 0.33 in colours, and goes on without the node."""
    said = tmp_path / "said"
    said.write_text(
        "Cannot import /comfyui/custom_nodes/Pack-A module for custom nodes: No module named 'cv2'\n"
        "\033[33m[WARNING]\033[0m Cannot import /comfyui/custom_nodes/b.py module for custom nodes: /etc/x/y.so\n"
        "Skip /comfyui/custom_nodes/empty module for custom nodes due to the lack of NODE_CLASS_MAPPINGS\n"
    )
    script = tmp_path / "comfyui.sh"
    script.write_text(f'cat {said}\nexec {COMFY_COMMAND} "$@"\n')
    graph = {**empty(46), "2": {"class_type": "PackLoader", "inputs": {"image": ["1", 0]}}}
    with Rig(tmp_path, embedded=True, comfy_command=f"/bin/sh {script}") as rig:
        with pytest.raises(WorkflowRejected, match=r"workflow\.2 \(PackLoader\): no such node class") as caught:
            rig.run(graph)
        assert "Pack-A (No module named 'cv2'), b.py (y.so), empty (the lack of" in caught.value.message
        rig.server.restart("the test wants it")
        with pytest.raises(WorkflowRejected, match="Pack-A"):
            rig.run(graph)


def test_what_is_larger_than_comfyui_takes_is_called_that(tmp_path: Path) -> None:
    large = b64(bytes(1_500_000))
    with (
        EmbeddedServer(tmp_path / "comfy", args=["--max-upload-size", "1"]) as server,
        Rig(tmp_path, comfy_url=server.url) as rig,
    ):
        with pytest.raises(PayloadTooLarge, match=r"the input file 'x.bin' is larger .* --max-upload-size"):
            rig.run(empty(), files={"x.bin": large})
        graph = empty()
        graph["1"]["_meta"] = {"title": large}
        with pytest.raises(PayloadTooLarge, match=r"the workflow is larger .* --max-upload-size"):
            rig.run(graph)
        assert rig.run(empty()).outputs


def has(rig: Rig, class_type: str) -> None:
    """Skip the test where this ComfyUI has no such class: only a real one at COMFY_URL has them all."""
    if not requests.get(f"{rig.url}/object_info/{class_type}", timeout=5).json():
        pytest.skip(f"needs a real ComfyUI with {class_type} (tests/support/comfy_pack)")


def test_base64_is_no_path_where_a_custom_class_takes_it(rig: Rig) -> None:
    has(rig, "ETN_LoadImageBase64")
    file = io.BytesIO()
    Image.new("RGB", (48, 64), (200, 0, 0)).save(file, "JPEG")
    graph = empty(47)
    graph["1"] = {"class_type": "ETN_LoadImageBase64", "inputs": {"image": b64(file.getvalue())}}
    assert graph["1"]["inputs"]["image"].startswith("/9j/")
    [output] = rig.run(graph).outputs
    assert picture(output).size == (48, 64)


@pytest.mark.parametrize("class_type", ["AnyKeySaver", "AcceptAllSaver"])
def test_a_class_with_open_ended_inputs_saves_again_and_sees_no_input_of_ours(rig: Rig, class_type: str) -> None:
    has(rig, class_type)
    if class_type == "AcceptAllSaver":
        has(rig, "ImageCropV2")  # 0.33
    graph = empty(48, save=False)
    inputs = {"image_1": ["1", 0], "image_2": ["1", 0], "filename_prefix": "day/any"}
    graph["2"] = {"class_type": class_type, "inputs": inputs}
    for _ in range(2):
        names = [(output.subfolder, output.filename) for output in rig.run(graph).outputs]
        assert names == [("day", "any_00001_.png"), ("day", "any_00002_.png")]


def test_previews_on_the_way_to_an_output_come_back_on_a_repeat(rig: Rig) -> None:
    """ComfyUI 0.33 reports what a cached node showed, whose temp file is long wiped."""
    has(rig, "ImageCropV2")
    graph = empty(49)
    crop = {"x": 0, "y": 0, "width": 32, "height": 32}
    graph["2"] = {"class_type": "ImageCropV2", "inputs": {"image": ["1", 0], "crop_region": crop}}
    graph["9"]["inputs"]["images"] = ["2", 0]
    for _ in range(2):
        result = rig.run(graph, delivery={"include_temp": True})
        assert [output.node_id for output in result.outputs] == ["2", "9"]


def test_a_class_that_comfyui_replaces_is_taken_under_its_old_name(rig: Rig) -> None:
    has(rig, "ImageScaleToMaxDimension")
    if not rig.engine.backend._session.registry.replacements:
        pytest.skip("needs a ComfyUI that replaces classes (0.33)")
    graph = empty(50)
    graph["2"] = {"class_type": "ResizeImagesByLongerEdge", "inputs": {"images": ["1", 0], "longer_edge": 32}}
    graph["9"]["inputs"]["images"] = ["2", 0]
    [output] = rig.run(graph).outputs
    assert picture(output).size == (32, 32)


def test_two_jobs_with_files_of_one_name_within_an_object(rig: Rig) -> None:
    """Load3D has no fingerprint, and keeps the names of its pictures in an object."""
    has(rig, "Load3D")
    names = dict.fromkeys(("image", "mask", "normal", "lineart"), "p.png")
    image = {**names, "recording": "", "camera_info": {}}
    load = {"model_file": "3d/m.glb", "image": image, "width": 64, "height": 64}
    graph = {
        "1": {"class_type": "Load3D", "inputs": load},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "made"}},
    }
    seen = []
    for colour in ((200, 0, 0), (0, 0, 200)):
        [output] = rig.run(graph, files={"3d/m.glb": b64(b"glTF")}, images={"p.png": b64(png(colour))}).outputs
        seen.append(picture(output).getpixel((3, 3)))
    assert seen == [(200, 0, 0), (0, 0, 200)]


def replacing(rig: Rig, replacements: dict[str, Any]) -> None:
    session = rig.engine.backend._session
    session.registry = replace(session.registry, replacements=replacements)


def test_policy_holds_for_the_class_that_comfyui_would_put_in_its_place(tmp_path: Path) -> None:
    graph = empty()
    graph["9"] = {"class_type": "OldSave", "inputs": {"pictures": ["1", 0], "filename_prefix": "made"}}
    mapping = [{"new_id": "images", "old_id": "pictures"}, {"new_id": "filename_prefix", "old_id": "filename_prefix"}]
    entry = {"new_node_id": "SaveImage", "old_node_id": "OldSave", "input_mapping": mapping, "output_mapping": None}
    with EmbeddedServer(tmp_path / "comfy") as server:
        with Rig(tmp_path, **server.shared) as rig:
            rig.run(empty())
            rig.engine.backend._session.registry = replace(
                rig.engine.backend._session.registry, replacements={"OldSave": [entry]}
            )
            [output] = rig.run(graph).outputs
            assert output.filename == "made_00001_.png"
        with Rig(tmp_path / "strict", denied_nodes=("SaveImage",), **server.shared) as rig:
            rig.run({**empty(save=False), "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})
            rig.engine.backend._session.registry = replace(
                rig.engine.backend._session.registry, replacements={"OldSave": [entry]}
            )
            with pytest.raises(InvalidRequest, match="DENIED_NODES"):
                rig.run(graph)
