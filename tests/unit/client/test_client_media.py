"""Files for loaders: which goes where (held to the labels of 56 published workflows), their names, and what is none."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from settee.client.changes import applied
from settee.client.errors import Ambiguous, UsageError
from settee.client.inject.loaders import loaders
from settee.client.inject.media import Given, _free_name, media_changes, parse_given, unfed
from settee.workspace import safe_relative

DATA = Path(__file__).parents[2] / "data"
LABELS = json.loads((DATA / "real-workflows" / "labels.json").read_text())
INFO = json.loads((DATA / "object_info.json").read_text())
OPTIONS = {"image": "images", "mask": "masks", "video": "videos", "audio": "audio"}


def real(name: str) -> dict[str, Any]:
    return json.loads((DATA / "real-workflows" / f"{name}.api.json").read_text())


def graph(**nodes: tuple[str, dict[str, Any]]) -> dict[str, Any]:
    """``n57_8=("LoadImage", {...})`` is node 57:8; titles come with ``_title``."""
    found = {}
    for name, (class_type, inputs) in nodes.items():
        inputs = dict(inputs)
        node: dict[str, Any] = {"class_type": class_type}
        if "_title" in inputs:
            node["_meta"] = {"title": inputs.pop("_title")}
        found[name[1:].replace("_", ":")] = {**node, "inputs": inputs}
    return found


def two_pictures() -> dict[str, Any]:
    """Two loaders whose ids do not sort as text, one inside a subgraph."""
    return graph(
        n57_8=("LoadImage", {"image": "b.png", "_title": "Background"}),
        n9=("LoadImage", {"image": "a.png", "_title": "Person"}),
        n100=("ImageBatch", {"image1": ["9", 0], "image2": ["57:8", 0]}),
        n101=("SaveImage", {"images": ["100", 0], "filename_prefix": "x"}),
    )


@pytest.fixture
def png(tmp_path: Path) -> Path:
    path = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(path)
    return path


def file_of(kind: str, folder: Path, name: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.{ {'image': 'png', 'mask': 'png', 'video': 'mp4', 'audio': 'mp3'}[kind] }"
    if kind in ("image", "mask"):
        Image.new("L", (2, 2)).save(path)
    else:
        path.write_bytes(b"not looked at")
    return path


def sent(changes: list[Any]) -> dict[str, str]:
    return {f"{change.node_id}.{change.input}": change.value for change in changes}


# --- the published workflows -----------------------------------------------------------------------------


@pytest.mark.parametrize("info", [None, INFO], ids=["alone", "registry"])
@pytest.mark.parametrize("name", LABELS)
def test_loaders_are_those_of_the_labels(name: str, info: Any) -> None:
    found = [(x.place.node_id, x.place.input, x.kind, x.live) for x in loaders(real(name), info)]
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
    changes, files = media_changes(workflow, **given, object_info=info)
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
    changes, _ = media_changes(workflow, images=[Given(png)] * 2, object_info=INFO)
    assert sorted(sent(changes)) == ["57:8.image", "9.image"]
    assert len(media_changes(workflow, images=[Given(png)] * 3)[0]) == 3
    with pytest.raises(UsageError, match="node 3 LoadImage is connected to no output"):
        media_changes(workflow, images=[Given(png, "3")])
    sound = "api_wan_text_to_video"
    with pytest.raises(UsageError, match=r"(?s)--audio: 1 given.*3 LoadAudio .*: connected to no output"):
        media_changes(real(sound), images=[], audio=[Given(png)])


def inpainting(*slots: int) -> dict[str, Any]:
    used = {("pixels", "mask")[slot]: ["1", slot] for slot in slots}
    return graph(
        n1=("LoadImage", {"image": "a.png"}),
        n2=("VAEEncodeForInpaint", {**used, "vae": ["3", 2]}),
        n3=("CheckpointLoaderSimple", {"ckpt_name": "x"}),
        n4=("SaveLatent", {"samples": ["2", 0]}),
    )


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
    assert [loader.kind for loader in loaders(workflow, INFO)] == ["image"]
    assert [loader.kind for loader in loaders(workflow)] == ["image+mask"]


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
    found = [(x.place.input, x.kind) for x in loaders(workflow, info)]
    assert found == [("picture", "mask"), ("clip", "video")]
    assert loaders(workflow) == []
    changes, _ = media_changes(workflow, images=[], masks=[Given(png)], videos=[Given(png, "1")], object_info=info)
    assert sent(changes) == {"1.picture": "1_photo.png", "1.clip": "1_photo-2.png"}


def test_a_named_node_of_an_unknown_class_has_one_input_for_a_file(png: Path) -> None:
    workflow = graph(n1=("MyLoader", {"image": "a.png", "mode": "fast"}), n2=("Save", {"x": ["1", 0]}))
    assert sent(media_changes(workflow, images=[Given(png, "1")])[0]) == {"1.image": "1_photo.png"}
    with pytest.raises(UsageError, match=r"no node is known to load an image$"):
        media_changes(workflow, images=[Given(png)])
    # A text instead of a choice is a path on the worker.
    info = {"MyLoader": {"input": {"required": {"image": ["STRING", {}]}}, "output": ["IMAGE"]}}
    with pytest.raises(UsageError, match="loads no file"):
        media_changes(workflow, images=[Given(png, "1")], object_info=info)


def test_a_loader_fed_by_a_primitive(png: Path) -> None:
    workflow = graph(
        n1=("LoadImage", {"image": ["2", 0]}),
        n2=("PrimitiveString", {"value": "a.png"}),
        n3=("SaveImage", {"images": ["1", 0], "filename_prefix": "x"}),
    )
    assert sent(media_changes(workflow, images=[Given(png)])[0]) == {"2.value": "2_photo.png"}
    workflow["3"]["inputs"]["filename_prefix"] = ["2", 0]
    with pytest.raises(UsageError, match=r"--img .*feeds 3\.filename_prefix too"):
        media_changes(workflow, images=[Given(png)])
    workflow["1"]["inputs"]["image"] = ["4", 0]
    workflow["4"] = {"class_type": "StringConcatenate", "inputs": {"string_a": "a", "string_b": "b", "delimiter": ""}}
    with pytest.raises(UsageError, match="a link from node 4 StringConcatenate"):
        media_changes(workflow, images=[Given(png)])


# --- files -----------------------------------------------------------------------------------------------

#: What Pillow writes, and ComfyUI loads.
FORMATS = ("png", "jpg", "webp", "gif", "bmp", "tiff", "avif", "jp2", "ico", "ppm", "tga")


@pytest.mark.parametrize("suffix", FORMATS)
def test_every_format_of_pictures_is_one(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a.{suffix}"
    Image.init()
    if Image.registered_extensions().get(f".{suffix}") not in Image.SAVE:
        pytest.skip(f"this Pillow writes no {suffix}")
    Image.new("RGB", (16, 16)).save(path)
    assert len(media_changes(inpainting(0), images=[Given(path)])[1]) == 1


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "is empty"),
        (b"hello", "is no picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "is no picture"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "HEIC .* convert"),
        (b"BMX is text that begins as a bitmap does", "is no picture"),
    ],
)
@pytest.mark.parametrize("option", ["images", "masks"])
def test_what_is_no_picture(content: bytes, what: str, option: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    path.write_bytes(content)
    with pytest.raises(UsageError, match=rf"--(img|mask) 1={path}: .*{what}"):
        media_changes(inpainting(0 if option == "images" else 1), **{"images": (), option: [Given(path, "1")]})


def test_sound_and_video_are_not_looked_into_but_must_be_there(tmp_path: Path) -> None:
    workflow = graph(n1=("LoadAudio", {"audio": "a"}), n2=("SaveAudio", {"audio": ["1", 0]}))
    path = tmp_path / "a.wav"
    with pytest.raises(UsageError, match=r"--audio .*there is no such file"):
        media_changes(workflow, images=[], audio=[Given(path)])
    path.write_bytes(b"x")
    assert len(media_changes(workflow, images=[], audio=[Given(path)])[1]) == 1


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        (tmp_path / "missing.png", "there is no such file"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is no ordinary file"),
        (tmp_path / ("x" * 300), "cannot be read"),
        (Path("a\0b"), "cannot be read"),
    ):
        with pytest.raises(UsageError, match=what) as caught:
            media_changes(inpainting(0), images=[Given(path)])
        assert caught.value.message.startswith(f"--img {path}: ")


def test_one_file_for_two_loaders_is_sent_once(png: Path, tmp_path: Path) -> None:
    link = tmp_path / "link.png"
    link.symlink_to(png)
    changes, files = media_changes(two_pictures(), images=[Given(png), Given(link)])
    assert len(files) == 1
    assert sent(changes) == {"9.image": "9_photo.png", "57:8.image": "9_photo.png"}


def test_an_image_that_is_a_mask_too_is_sent_twice(png: Path) -> None:
    """Images may be sent as JPEG, which has no alpha channel."""
    workflow = two_pictures()
    workflow["57:8"]["class_type"] = "LoadImageMask"
    _, files = media_changes(workflow, images=[Given(png)], masks=[Given(png)])
    assert [(file.name, file.kind) for file in files] == [("9_photo.png", "image"), ("57_8_photo.png", "mask")]


def test_no_name_of_a_loader_that_is_left_alone_is_taken(png: Path) -> None:
    workflow = two_pictures()
    workflow["57:8"]["inputs"]["image"] = "9_Photo.png [input]"
    changes, _ = media_changes(workflow, images=[Given(png, "9")])
    assert sent(changes) == {"9.image": "9_photo-2.png"}
    workflow["9"]["inputs"]["image"] = "9_photo.png"  # as a run before has left it
    workflow["57:8"]["inputs"]["image"] = "b.png"
    assert sent(media_changes(workflow, images=[Given(png, "9")])[0]) == {"9.image": "9_photo.png"}


def test_ids_that_look_alike_do_not_collide(png: Path, tmp_path: Path) -> None:
    other = file_of("image", tmp_path / "other", "photo")
    workflow = two_pictures()
    workflow["57_8"] = workflow.pop("9")
    workflow["100"]["inputs"]["image1"] = ["57_8", 0]
    changes, _ = media_changes(workflow, images=[Given(png), Given(other)])
    assert len(set(sent(changes).values())) == 2


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("Café über.JPG", "1_Cafe_uber.JPG"),
        ("日本.png", "1_image.png"),
        ("a b&c(1).png", "1_a_b_c_1.png"),
        (".hidden", "1_hidden"),
        ("x" * 200 + ".png", "1_" + "x" * 60 + ".png"),
        ("a.tar.gz", "1_a.tar.gz"),
        ("name.with.a_long_ending_that_is_none", "1_name.with.a_long_ending_that_is_none"),
        ("dot.", "1_dot"),
        ("a [output].png", "1_a_output.png"),
    ],
)
def test_names_are_safe_and_keep_their_suffix(file: str, name: str) -> None:
    assert _free_name("1", Path(file), "image", set()) == name


@settings(max_examples=300, deadline=None)
@given(
    node_id=st.text(min_size=1, max_size=80),
    file=st.text(st.characters(exclude_characters="/\0"), min_size=1, max_size=250),
)
def test_any_name_becomes_one_that_workers_take(node_id: str, file: str) -> None:
    taken: set[str] = set()
    names = [_free_name(node_id, Path("folder") / file, "image", taken) for _ in range(3)]
    for name in names:
        assert str(safe_relative(name)) == name
        assert name.isascii()
        assert len(name) <= 120
    assert len({name.casefold() for name in names}) == 3


# --- NODE=FILE -------------------------------------------------------------------------------------------


def test_a_file_for_a_node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("12=a.png", "c=d.png"):
        (tmp_path / name).write_bytes(b"x")
    for text, expected in {
        "a.png": Given(Path("a.png")),
        "9=a.png": Given(Path("a.png"), "9"),
        "57:8=in/a.png": Given(Path("in/a.png"), "57:8"),
        "The title=a.png": Given(Path("a.png"), "The title"),
        "12=a.png": Given(Path("12=a.png")),
        "./12=a.png": Given(Path("12=a.png")),
        "Style=x=c=d.png": Given(Path("c=d.png"), "Style=x"),
        "9=c=d.png": Given(Path("c=d.png"), "9"),
        "9=e=f.png": Given(Path("e=f.png"), "9"),
        "9=~/a.png": Given(tmp_path / "a.png", "9"),
        "~/a.png": Given(tmp_path / "a.png"),
        "9=a\0.png": Given(Path("a\0.png"), "9"),
    }.items():
        assert parse_given(text) == expected


@pytest.mark.parametrize("text", ["", "=a.png", "9=", " =a.png"])
def test_half_of_it_missing(text: str) -> None:
    with pytest.raises(UsageError):
        parse_given(text)


def test_it_is_shown_as_it_was_given() -> None:
    assert str(Given(Path("a.png"), "9")) == "9=a.png"
    assert str(Given(Path("a.png"))) == "a.png"


def test_loaders_that_get_no_file_are_named() -> None:
    workflow = graph(
        n1=("LoadImage", {"image": "a.png", "_title": "First"}),
        n2=("LoadImage", {"image": "b.png"}),
        n3=("LoadImageOutput", {"image": "its own.png [output]"}),
        n4=("LoadImage", {"image": "nobody looks.png"}),
        n5=("LoadAudio", {"audio": ["1", 0]}),
        n9=("PreviewAny", {"a": ["1", 0], "b": ["2", 0], "c": ["3", 0], "d": ["5", 0]}),
    )
    changes, _ = media_changes(workflow, images=[Given(Path(__file__).parents[3] / "workflows/example.png", "2")])
    assert unfed(workflow, changes) == ["1 LoadImage \"First\" loads 'a.png', and no file is given for it: --img FILE"]
