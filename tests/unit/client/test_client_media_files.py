"""Files for loaders: their names, what is none, and how they are given."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from settee.client.arguments import parse_given
from settee.client.client_errors import UsageError
from settee.client.inject import Given
from settee.client.inject.media_files import _free_name, media_changes, unfed
from settee.staging.workspace import safe_relative
from tests.support.media_graphs import file_of, graph, inpainting, sent, two_pictures

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
        (b"hello", "is not a picture"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "is not a picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0", "is not a picture"),
        (b"\0\0\0\x18ftypheic\0\0\0\0mif1heic", "does not load HEIC pictures whole: convert"),
        (b"\0\0\0\x18ftypmif1\0\0\0\0miafheic", "HEIC .* convert"),
        (b"BMX is text that begins as a bitmap does", "is not a picture"),
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
    with pytest.raises(UsageError, match=r"--audio .*the file does not exist"):
        media_changes(workflow, images=[], audio=[Given(path)])
    path.write_bytes(b"x")
    assert len(media_changes(workflow, images=[], audio=[Given(path)])[1]) == 1


def test_what_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, what in (
        (tmp_path / "missing.png", "the file does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is not an ordinary file"),
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


@settings(max_examples=300)
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
