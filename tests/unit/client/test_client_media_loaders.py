"""Which file goes to which loader, held to the labels of 56 published workflows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from settee.client.client_errors import Ambiguous, UsageError
from settee.client.inject import Given, applied
from settee.client.inject.media_files import loaders, media_changes
from settee.client.inject.selectors import LiveGraph
from settee.client.targets.comfy_api import well_described
from tests.support.editor_files import DATA
from tests.support.editor_files import OBJECT_INFO as INFO
from tests.support.media_graphs import file_of, graph, inpainting, sent, two_pictures
from tests.support.published import real

LABELS = json.loads((DATA / "real-workflows" / "labels.json").read_text())
OPTIONS = {"image": "images", "mask": "masks", "video": "videos", "audio": "audio"}

# --- the published workflows -----------------------------------------------------------------------------


@pytest.mark.parametrize("info", [None, INFO], ids=["alone", "registry"])
@pytest.mark.parametrize("name", LABELS)
def test_loaders_are_those_of_the_labels(name: str, info: Any) -> None:
    found = [
        (x.place.node_id, x.place.input, x.kind, x.live)
        for x in loaders(LiveGraph(real(name), well_described(info or {})))
    ]
    assert found == [(m["id"], m["input"], m["kind"], m["live"]) for m in LABELS[name]["media"]]


@pytest.mark.parametrize("info", [None, INFO], ids=["alone", "registry"])
@pytest.mark.parametrize("name", LABELS)
def test_every_file_comes_to_its_loader_and_to_nothing_else(name: str, info: Any, tmp_path: Path) -> None:
    """All files have the same name: only their folders differ."""
    live = [m for m in LABELS[name]["media"] if m["live"]]
    given: dict[str, list[Given]] = {option: [] for option in OPTIONS.values()}
    expected = {}
    for at, media in enumerate(live):
        kind = "image" if media["kind"] == "image+mask" else media["kind"]
        path = file_of(kind, tmp_path / str(at), "same")
        given[OPTIONS[kind]].append(Given(path))
        expected[media["id"], media["input"]] = path
    workflow = real(name)
    changes, files = media_changes(workflow, **given, registry=well_described(info or {}))
    by_name = {file.name: file.path for file in files}
    assert {(c.node_id, c.input): by_name[c.value] for c in changes} == expected
    assert len(by_name) == len(files) == len(live)
    after = applied(workflow, changes)
    for node_id, node in real(name).items():
        untouched = {k: v for k, v in node["inputs"].items() if (node_id, k) not in expected}
        assert untouched == {k: v for k, v in after[node_id]["inputs"].items() if (node_id, k) not in expected}


@pytest.mark.parametrize("name", LABELS)
def test_one_file_too_many_is_an_error_that_lists_the_nodes(name: str, tmp_path: Path) -> None:
    for kind, option in OPTIONS.items():
        live = [m for m in LABELS[name]["media"] if m["live"] and m["kind"].removesuffix("+mask") == kind]
        path = file_of(kind, tmp_path, "one")
        given = {"images": (), option: [Given(path)] * (len(live) + 1)}
        with pytest.raises(UsageError) as caught:
            media_changes(real(name), **given)
        for media in live:
            assert f"  {media['id']} {media['cls']}" in caught.value.message


def test_masks_and_videos_and_images_of_one_workflow(tmp_path: Path) -> None:
    image, mask, video = (file_of(kind, tmp_path, kind) for kind in ("image", "mask", "video"))
    changes, files = media_changes(
        real("video_wan_vace_inpainting"), images=[Given(image)], masks=[Given(mask)], videos=[Given(video)]
    )
    assert sent(changes) == {"162.image": "162_image.png", "215.image": "215_mask.png", "209.file": "209_video.mp4"}
    assert [(c.why, f.kind) for c, f in zip(changes, files, strict=True)] == [
        ("--img", "image"),
        ("--mask", "mask"),
        ("--video", "video"),
    ]


# --- which file goes where -------------------------------------------------------------------------------


def test_ids_are_taken_in_natural_order(tmp_path: Path) -> None:
    first, second = file_of("image", tmp_path, "first"), file_of("image", tmp_path, "second")
    changes, _ = media_changes(two_pictures(), images=[Given(first), Given(second)])
    assert sent(changes) == {"9.image": "9_first.png", "57:8.image": "57_8_second.png"}


def test_a_named_file_goes_there_and_the_rest_is_for_the_others(tmp_path: Path) -> None:
    first, second = file_of("image", tmp_path, "first"), file_of("image", tmp_path, "second")
    for name in ("9", "Person", "person"):
        changes, _ = media_changes(two_pictures(), images=[Given(first), Given(second, name)])
        assert sent(changes) == {"9.image": "9_second.png", "57:8.image": "57_8_first.png"}


def test_a_named_file_alone_leaves_the_other_loader_as_it_is(png: Path) -> None:
    changes, _ = media_changes(two_pictures(), images=[Given(png, "57:8")])
    assert sent(changes) == {"57:8.image": "57_8_photo.png"}


def test_nothing_given_changes_nothing() -> None:
    assert media_changes(two_pictures(), images=[]) == ([], [])


@pytest.mark.parametrize("count", [1, 3])
def test_too_few_and_too_many_list_the_nodes(count: int, png: Path) -> None:
    with pytest.raises(UsageError) as caught:
        media_changes(two_pictures(), images=[Given(png)] * count)
    assert '  9 LoadImage "Person"\n  57:8 LoadImage "Background"' in caught.value.message
    assert "--img 9=FILE" in caught.value.message


def test_too_few_counts_what_names_have_left(png: Path) -> None:
    with pytest.raises(UsageError) as caught:
        media_changes(two_pictures(), images=[Given(png), Given(png), Given(png, "9")])
    assert "57:8" in caught.value.message
    assert "Person" not in caught.value.message


def test_two_files_for_one_node(png: Path) -> None:
    with pytest.raises(UsageError, match=r"node 9 .* already"):
        media_changes(two_pictures(), images=[Given(png, "9"), Given(png, "Person")])


def test_a_node_that_is_not_there_has_near_matches(png: Path) -> None:
    with pytest.raises(UsageError, match=r"(?s)--img Backgroud=.*did you mean.*57:8 LoadImage"):
        media_changes(two_pictures(), images=[Given(png, "Backgroud")])


def test_two_nodes_of_one_title(png: Path) -> None:
    workflow = two_pictures()
    workflow["9"]["_meta"]["title"] = "background"
    changes, _ = media_changes(workflow, images=[Given(png, "Background")])
    assert sent(changes) == {"57:8.image": "57_8_photo.png"}
    with pytest.raises(Ambiguous, match=r"(?s)--img BACKGROUND=.*9 LoadImage.*57:8 LoadImage"):
        media_changes(workflow, images=[Given(png, "BACKGROUND")])


def test_a_node_that_loads_nothing_or_something_else(png: Path) -> None:
    with pytest.raises(UsageError, match="node 101 SaveImage loads no file"):
        media_changes(two_pictures(), images=[Given(png, "101")])
    with pytest.raises(UsageError, match=r"node 9 .* loads an image: use --img"):
        media_changes(two_pictures(), images=[], videos=[Given(png, "9")])


def test_a_loader_that_nothing_uses_is_none(png: Path) -> None:
    """As the LoadAudio of a published workflow is; without a registry a result nobody takes counts as an output."""
    workflow = two_pictures()
    workflow["3"] = {"class_type": "LoadImage", "inputs": {"image": "c.png"}}
    workflow["4"] = {"class_type": "LoadImage", "inputs": {"image": "d.png"}}
    workflow["5"] = {"class_type": "ImageInvert", "inputs": {"image": ["4", 0]}}
    changes, _ = media_changes(workflow, images=[Given(png)] * 2, registry=well_described(INFO))
    assert sorted(sent(changes)) == ["57:8.image", "9.image"]
    assert len(media_changes(workflow, images=[Given(png)] * 3)[0]) == 3
    with pytest.raises(UsageError, match="node 3 LoadImage is connected to no output"):
        media_changes(workflow, images=[Given(png, "3")])
    sound = "api_wan_text_to_video"
    with pytest.raises(UsageError, match=r"(?s)--audio: 1 given.*3 LoadAudio .*: connected to no output"):
        media_changes(real(sound), images=[], audio=[Given(png)])


def test_a_loader_of_a_mask_alone_takes_masks(png: Path) -> None:
    changes, files = media_changes(inpainting(1), images=[], masks=[Given(png)])
    assert [(c.why, f.kind) for c, f in zip(changes, files, strict=True)] == [("--mask", "mask")]
    with pytest.raises(UsageError, match=r"(?s)--img: 1 given.*1 LoadImage: for --mask"):
        media_changes(inpainting(1), images=[Given(png)])
    changes, files = media_changes(inpainting(1), images=[Given(png, "1")])
    assert (changes[0].why, files[0].kind) == ("--img", "mask")


def test_a_loader_of_both_takes_one_image_for_both(png: Path) -> None:
    changes, files = media_changes(inpainting(0, 1), images=[Given(png)])
    assert (sent(changes), files[0].kind) == ({"1.image": "1_photo.png"}, "image")
    for node in (None, "1"):
        with pytest.raises(UsageError, match=r"alpha channel.*--img"):
            media_changes(inpainting(0, 1), images=[], masks=[Given(png, node)])


def test_a_mask_that_only_a_dead_end_uses_does_not_count(png: Path) -> None:
    workflow = inpainting(0)
    workflow["9"] = {"class_type": "InvertMask", "inputs": {"mask": ["1", 1]}}
    assert [loader.kind for loader in loaders(LiveGraph(workflow, well_described(INFO)))] == ["image"]
    assert [loader.kind for loader in loaders(LiveGraph(workflow))] == ["image+mask"]


@pytest.mark.parametrize(
    ("class_type", "name", "slot", "option"),
    [
        ("LoadImageMask", "image", 0, "masks"),
        ("LoadImageOutput", "image", 0, "images"),
        ("LoadAndResizeImage", "image", 1, "masks"),
        ("VHS_LoadVideo", "video", 0, "videos"),
        ("VHS_LoadVideoFFmpeg", "video", 0, "videos"),
        ("VHS_LoadAudioUpload", "audio", 0, "audio"),
    ],
)
def test_classes_known_without_a_registry(class_type: str, name: str, slot: int, option: str, png: Path) -> None:
    workflow = graph(n1=(class_type, {name: "old"}), n2=("Custom", {"x": ["1", slot]}))
    changes, _ = media_changes(workflow, **{"images": (), option: [Given(png)]})
    assert sent(changes) == {f"1.{name}": "1_photo.png"}


def test_a_registry_tells_other_loaders(png: Path) -> None:
    info = {
        "Custom": {
            "input": {"optional": {"picture": ["COMBO", {"image_upload": True}], "clip": [[], {"video_upload": True}]}},
            "output": ["MASK", "IMAGE"],
        },
        "Save": {"input": {}, "output": [], "output_node": True},
    }
    workflow = graph(n1=("Custom", {"picture": "a", "clip": "b", "picture2": "c"}), n2=("Save", {"x": ["1", 0]}))
    found = [(x.place.input, x.kind) for x in loaders(LiveGraph(workflow, well_described(info)))]
    assert found == [("picture", "mask"), ("clip", "video")]
    assert loaders(LiveGraph(workflow)) == []
    changes, _ = media_changes(
        workflow, images=[], masks=[Given(png)], videos=[Given(png, "1")], registry=well_described(info or {})
    )
    assert sent(changes) == {"1.picture": "1_photo.png", "1.clip": "1_photo-2.png"}


def test_a_named_node_of_an_unknown_class_has_one_input_for_a_file(png: Path) -> None:
    workflow = graph(n1=("MyLoader", {"image": "a.png", "mode": "fast"}), n2=("Save", {"x": ["1", 0]}))
    assert sent(media_changes(workflow, images=[Given(png, "1")])[0]) == {"1.image": "1_photo.png"}
    with pytest.raises(UsageError, match=r"no node is known to load an image$"):
        media_changes(workflow, images=[Given(png)])
    # A text instead of a choice is a path on the worker.
    info = {"MyLoader": {"input": {"required": {"image": ["STRING", {}]}}, "output": ["IMAGE"]}}
    with pytest.raises(UsageError, match="loads no file"):
        media_changes(workflow, images=[Given(png, "1")], registry=well_described(info or {}))


def test_a_loader_fed_by_a_primitive(png: Path) -> None:
    workflow = graph(
        n1=("LoadImage", {"image": ["2", 0]}),
        n2=("PrimitiveString", {"value": "a.png"}),
        n3=("SaveImage", {"images": ["1", 0], "filename_prefix": "x"}),
    )
    assert sent(media_changes(workflow, images=[Given(png)])[0]) == {"2.value": "2_photo.png"}
    workflow["3"]["inputs"]["filename_prefix"] = ["2", 0]
    with pytest.raises(UsageError, match=r"--img .*: 1\.image comes from .*feeds 3\.filename_prefix too"):
        media_changes(workflow, images=[Given(png)])
    workflow["1"]["inputs"]["image"] = ["4", 0]
    workflow["4"] = {"class_type": "StringConcatenate", "inputs": {"string_a": "a", "string_b": "b", "delimiter": ""}}
    with pytest.raises(UsageError, match="a link from node 4 StringConcatenate"):
        media_changes(workflow, images=[Given(png)])
