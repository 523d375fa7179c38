"""Workflows are found and read from files, pipes, names, pictures and films; anything else is one clear error."""

from __future__ import annotations

import io
import json
import os
import random
import struct
import threading
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from settee.client import media_metadata, workflow_files
from settee.client.client_errors import UsageError
from settee.comfyui.isolation import isolate
from settee.comfyui.node_registry import NodeRegistry

FILES = Path(__file__).parents[2] / "data" / "with-prompt"
GRAPH: dict[str, Any] = {
    "1": {"class_type": "EmptyImage", "inputs": {"width": 64, "color": 5}, "_meta": {"title": "Grün 🙂"}},
    "57:8": {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "out"}},
}
EDITOR = {"nodes": [], "links": [], "version": 0.4}
FIFO = hasattr(os, "mkfifo")


read = workflow_files.read


@pytest.fixture
def only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The one folder whose workflows have names."""
    monkeypatch.setattr(workflow_files, "FOLDERS", (tmp_path / "workflows",))
    (tmp_path / "workflows").mkdir()
    return tmp_path / "workflows"


def refusal(text: str | Path) -> str:
    with pytest.raises(UsageError) as error:
        read(text)
    return error.value.message


def written(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


# --- files, pipes and names --------------------------------------------------------------------------


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
def test_a_file_in_any_spelling_of_unicode(tmp_path: Path, encoding: str) -> None:
    path = written(tmp_path / "a.json", json.dumps(GRAPH, ensure_ascii=False).encode(encoding))
    assert read(path) == (GRAPH, str(path))


def test_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(json.dumps(GRAPH).encode())))
    assert read("-") == (GRAPH, "standard input")
    monkeypatch.setattr("sys.stdin", None)
    assert "is empty" in refusal("-"), "a service has none"


def test_a_picture_through_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO((FILES / "still.png").read_bytes())))
    assert read("-")[0]["9:1"]["class_type"] == "SaveImage"


@pytest.mark.skipif(not FIFO, reason="no named pipes here")
@pytest.mark.parametrize("name", ["still.png", "film.mp4"])
def test_a_pipe_that_nobody_can_seek_in(tmp_path: Path, name: str) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_bytes((FILES / name).read_bytes()))
    writer.start()
    try:
        assert "9:1" in read(pipe)[0]
    finally:
        writer.join(10)


def test_a_name_is_a_workflow_of_the_folder(only: Path) -> None:
    path = written(only / "invert.json", json.dumps(GRAPH))
    assert read("invert")[1] == str(path)
    assert read("invert.json")[0] == GRAPH


def test_the_shipped_workflows_have_names_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert read("invert")[0]["1"]["class_type"] == "LoadImage"
    (tmp_path / "workflows").mkdir()
    written(tmp_path / "workflows" / "invert.json", json.dumps(GRAPH))
    assert read("invert")[0] == GRAPH, "one's own goes before the shipped one"
    (tmp_path / "invert").mkdir()
    assert read("invert")[0] == GRAPH, "a folder of the same name hides nothing"


def test_a_name_does_not_leave_the_folder(only: Path) -> None:
    written(only.parent / "secret.json", json.dumps(GRAPH))
    assert "no file" in refusal("../secret")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("invrt", "no file 'invrt', and no workflow of that name; did you mean invert?"),
        ("flux.schnel.json", "did you mean flux.schnell"),
        ("zzz", "there are blend, flux.dev, flux.schnell, invert"),
        ("", "name a workflow"),
        ("a/b.json", "no file 'a/b.json'"),
        ("x\0y", "no file 'x\\x00y'"),
        ("n" * 5000, "no file 'nnnn"),
    ],
)
def test_what_is_not_there(only: Path, text: str, words: str) -> None:
    for name in ("invert", "blend", "flux.dev", "flux.schnell"):
        written(only / f"{name}.json", "{}")
    assert words in refusal(text)


def test_a_folder_is_no_workflow(tmp_path: Path) -> None:
    assert "is a folder" in refusal(tmp_path)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root reads everything")
def test_a_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = written(tmp_path / "a.json", "{}")
    path.chmod(0)
    assert refusal(path) == f"{path} cannot be read: Permission denied"


def test_the_editors_format_is_passed_on_for_the_converter(tmp_path: Path) -> None:
    graph = {"nodes": [{"id": 1, "type": "SaveImage"}], "links": []}
    assert read(written(tmp_path / "a.json", json.dumps(graph)))[0] == graph


# --- what is wrong with it ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b" \n", "is empty"),
        (b'{\n "1": }', "is not valid JSON: Expecting value at line 2, column 7"),
        (b"\xff\xd8\xff\xe0 a JPEG", "a workflow is JSON, or a PNG"),
        (b"\x00\x01\x02\x03", "a workflow is JSON, or a PNG"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"1": ' + b"9" * 5000 + b"}", "too long a number"),
        (b"[]", "must be an object of nodes"),
        (b'"text"', "must be an object of nodes"),
        (b"null", "must be an object of nodes"),
        (b"{}", "has no nodes"),
        (b'{"input": {"workflow": {"1": {}}}}', "give the content of its 'input.workflow'"),
        (b'{"workflow": {"1": {}}, "images": []}', "give the content of its 'workflow'"),
        (b'{"prompt": {"1": {}}, "client_id": "x"}', "give the content of its 'prompt'"),
        (b'{"1": 5}', "1: a node must be an object"),
        (b'{"1": {"class_type": "A"}}', '1: the node has no "inputs" object'),
        (b'{"1": {"inputs": {}}}', "1: the node has no class_type"),
        (b'{"1": {"class_type": "A", "inputs": {"x": ["2", 0]}}}', "1.inputs.x: is linked to node '2'"),
        (b'{"1": {"class_type": "A", "inputs": {"x": ["1", 0]}}}', "form a loop"),
        (b'{"1": {"class_type": "A", "inputs": {"x": NaN}}}', "1.x holds NaN"),
        (b'{"1": {"class_type": "A", "inputs": {"x": [[1e999]]}}}', "1.x holds NaN or an infinite"),
        (b'{"1": {"class_type": "A", "inputs": {"x": %s1%s}}}' % (b"[" * 70, b"]" * 70), "1.x is nested more than 64"),
    ],
)
def test_what_is_no_workflow(tmp_path: Path, content: bytes, words: str) -> None:
    path = written(tmp_path / "a.json", content)
    message = refusal(path)
    assert words in message
    assert message.startswith(str(path))


def test_all_problems_are_told_up_to_a_few(tmp_path: Path) -> None:
    graph = {str(number): {"inputs": {}} for number in range(9)}
    lines = refusal(written(tmp_path / "a.json", json.dumps(graph))).splitlines()
    assert len(lines) == 6
    assert lines[-1] == "… and 4 more"


def test_a_file_that_is_too_large_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with path.open("wb") as file:
        file.write(b"{")
        file.truncate(workflow_files.MAX_BYTES + 10)
    assert "too large for a workflow (over 64 MiB)" in refusal(path)


# --- what a run leaves in it -------------------------------------------------------------------------


def test_what_comfyui_and_isolation_left_is_taken_out(tmp_path: Path) -> None:
    registry = {"SaveImage": {"output_node": True}, "PreviewAny": {"output_node": True}}
    graph = {**GRAPH, "3": {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}}
    made = graph
    for run in ("settee-0123abcd-9f00", "settee-fedcba98-0001"):  # of a film sent in again
        made = isolate(made, NodeRegistry(registry), run, {"1": "salt"})
    made["1"]["is_changed"] = ["a" * 64]
    made["57:8"]["is_changed"] = float("nan")
    assert read(written(tmp_path / "a.json", json.dumps(made)))[0] == graph


def test_names_that_only_look_like_isolation_stay() -> None:
    graph = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "settee-mine/a"}}}
    assert workflow_files.cleaned(graph) == graph
    linked = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": ["2", 0]}}}
    assert workflow_files.cleaned(linked) == linked


# --- pictures and films that ComfyUI made ------------------------------------------------------------


@pytest.mark.parametrize("name", ["still.png", "moving.png", "moving.webp", "film.mp4", "film.webm"])
def test_files_of_a_real_comfyui(name: str) -> None:
    data, shown = read(FILES / name)
    assert list(data) == ["1", "2", *(f"9:{number}" for number in range(1, 10))]
    assert data["1"]["_meta"] == {"title": "Grün 🙂"}
    assert data["2"] == {"class_type": "LoadAudio", "inputs": {"audio": "tone.wav"}}, "without is_changed"
    assert shown == str(FILES / name)


def png(path: Path, *chunks: tuple[bytes, bytes], crc: int | None = None) -> Path:
    """A PNG of one pixel with these chunks before its pixels."""
    header = (b"IHDR", struct.pack(">IIBBBBB", 1, 1, 8, 0, 0, 0, 0))
    pixels = (b"IDAT", zlib.compress(b"\0\0"))
    content = b"\x89PNG\r\n\x1a\n"
    for kind, data in (header, *chunks, pixels, (b"IEND", b"")):
        check = zlib.crc32(kind + data) if crc is None else crc
        content += struct.pack(">I", len(data)) + kind + data + struct.pack(">I", check)
    return written(path, content)


TEXT = json.dumps(GRAPH, ensure_ascii=False).encode()


@pytest.mark.parametrize(
    "chunk",
    [
        (b"tEXt", b"prompt\0" + json.dumps(GRAPH).encode()),
        (b"tEXt", b"prompt\0" + TEXT),
        (b"zTXt", b"prompt\0\0" + zlib.compress(TEXT)),
        (b"iTXt", b"prompt\0\0\0en\0Anweisung\0" + TEXT),
        (b"iTXt", b"prompt\0\1\0\0\0" + zlib.compress(TEXT)),
        (b"comf", b"prompt\0" + TEXT),
    ],
)
def test_every_kind_of_text_in_a_png(tmp_path: Path, chunk: tuple[bytes, bytes]) -> None:
    assert read(png(tmp_path / "a.png", (b"tEXt", b"parameters\0steps: 20"), chunk))[0] == GRAPH


def test_a_png_that_pillow_wrote(tmp_path: Path) -> None:
    info = PngInfo()
    info.add_text("workflow", json.dumps(EDITOR))
    info.add_text("prompt", json.dumps(GRAPH, ensure_ascii=False), zip=True)
    Image.new("RGB", (2, 2)).save(tmp_path / "a.png", pnginfo=info)
    assert read(tmp_path / "a.png")[0] == GRAPH


def test_latin_1_as_pngs_specification_has_it(tmp_path: Path) -> None:
    graph = {"1": {"class_type": "A", "inputs": {"text": "Grün"}}}
    text = json.dumps(graph, ensure_ascii=False).encode("latin-1")
    assert read(png(tmp_path / "a.png", (b"tEXt", b"prompt\0" + text)))[0] == graph


def test_the_editors_graph_where_there_is_no_prompt(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", (b"tEXt", b"workflow\0" + json.dumps(EDITOR).encode()))
    assert read(path)[0] == EDITOR


def test_a_picture_cut_off_after_its_prompt_is_enough(tmp_path: Path) -> None:
    whole = (FILES / "still.png").read_bytes()
    assert "9:1" in read(written(tmp_path / "a.png", whole[: len(whole) - 30]))[0]


@pytest.mark.parametrize(
    ("chunk", "crc", "words"),
    [
        ((b"tEXt", b"parameters\0steps: 20"), None, "holds no workflow: this PNG was not made by ComfyUI"),
        ((b"tEXt", b"prompt\0a fox in the snow"), None, "the prompt in {} is not valid JSON"),
        ((b"tEXt", b"prompt\0[1]"), None, "must be an object of nodes"),
        ((b"tEXt", b"prompt\0" + TEXT), 7, "{} is damaged: the checksum of its prompt does not match"),
        ((b"zTXt", b"prompt\0\0xxxx"), None, "{} is damaged: its metadata does not inflate"),
        ((b"zTXt", b"prompt\0\0" + zlib.compress(TEXT)[:-6]), None, "is cut off, or too much of it"),
        ((b"iTXt", b"prompt\0"), None, "the prompt in {} is not valid JSON"),
        ((b"iTXt", b"prompt"), None, "the prompt in {} is not valid JSON"),
    ],
)
def test_what_a_png_may_have_instead(tmp_path: Path, chunk: tuple[bytes, bytes], crc: int | None, words: str) -> None:
    path = png(tmp_path / "a.png", chunk, crc=crc)
    assert words.format(path) in refusal(path)


def test_a_text_that_inflates_without_end(tmp_path: Path) -> None:
    bomb = zlib.compress(b"[" * (media_metadata.MAX_TEXT + 1), 9)
    assert "too much of it for a workflow" in refusal(png(tmp_path / "a.png", (b"zTXt", b"prompt\0\0" + bomb)))


def test_only_the_first_of_many_texts_is_inflated(tmp_path: Path) -> None:
    bomb = zlib.compress(b"[" * (media_metadata.MAX_TEXT // 2), 9)
    path = png(tmp_path / "a.png", *[(b"zTXt", b"workflow\0\0" + bomb)] * 100, (b"tEXt", b"prompt\0" + TEXT))
    assert read(path)[0] == GRAPH


def test_a_size_that_no_file_has(tmp_path: Path) -> None:
    content = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 0xFFFFFFFF) + b"tEXtprompt\0{}"
    assert "4,295 MB of metadata" in refusal(written(tmp_path / "a.png", content))


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("prefix", [b"", b"Exif\0\0"])
def test_a_webp_in_either_byte_order(tmp_path: Path, order: str, prefix: bytes) -> None:
    text = b"Prompt: " + TEXT + b"\0"
    exif = prefix + (b"II*\0" if order == "<" else b"MM\0*")
    exif += struct.pack(f"{order}IHHHIII", 8, 1, 0x0110, 2, len(text), 26, 0) + text
    body = b"EXIF" + struct.pack("<I", len(exif)) + exif
    assert read(written(tmp_path / "a.webp", b"RIFF\0\0\0\0WEBP" + body))[0] == GRAPH


def test_a_webp_that_pillow_wrote(tmp_path: Path) -> None:
    image = Image.new("RGB", (4, 4))
    exif = image.getexif()
    exif[0x0110] = f"prompt:{json.dumps(GRAPH)}"
    exif[0x010F] = f"workflow:{json.dumps(EDITOR)}"
    image.save(tmp_path / "a.webp", exif=exif)
    assert read(tmp_path / "a.webp")[0] == GRAPH


def box(kind: bytes, *content: bytes) -> bytes:
    inside = b"".join(content)
    return struct.pack(">I", len(inside) + 8) + kind + inside


def film(values: dict[str, bytes], *, quicktime: bool = False, large: bool = False) -> bytes:
    """An MP4 without pictures whose keys have these values."""
    keys = box(b"keys", struct.pack(">II", 0, len(values)), *(box(b"mdta", name.encode()) for name in values))
    data = [
        box(struct.pack(">I", number), box(b"data", struct.pack(">II", 1, 0), value))
        for number, value in enumerate(values.values(), 1)
    ]
    meta = box(b"meta", b"" if quicktime else bytes(4), box(b"hdlr", bytes(25)), keys, box(b"ilst", *data))
    moov = box(b"mvhd", bytes(100)) + (meta if quicktime else box(b"udta", meta))
    head = box(b"ftyp", b"isom\0\0\2\0")
    if large:
        return head + struct.pack(">I4sQ", 1, b"mdat", 16 + 5) + bytes(5) + struct.pack(">I", 0) + b"moov" + moov
    return head + box(b"mdat", bytes(5)) + box(b"moov", moov)


@pytest.mark.parametrize("how", [{}, {"quicktime": True}, {"large": True}])
def test_an_mp4_however_it_is_built(tmp_path: Path, how: dict[str, bool]) -> None:
    path = written(tmp_path / "a.mp4", film({"encoder": b"x", "prompt": TEXT}, **how))
    assert read(path)[0] == GRAPH


def test_boxes_in_boxes_in_boxes(tmp_path: Path) -> None:
    nested = b""
    for _ in range(5000):
        nested = box(b"udta", nested)
    path = written(tmp_path / "a.mp4", box(b"ftyp", b"isom") + box(b"moov", nested))
    assert "holds no workflow" in refusal(path)


@pytest.mark.parametrize("inner", [GRAPH, json.dumps(GRAPH)])
def test_a_comment_that_holds_both(tmp_path: Path, inner: object) -> None:
    comment = json.dumps({"workflow": EDITOR, "prompt": inner, "CreationTime": "…"}).encode()
    assert read(written(tmp_path / "a.mp4", film({"comment": comment})))[0] == GRAPH


@pytest.mark.parametrize("comment", [b"my film", b"[1]", b"{}", b"[" * 100_000])
def test_a_comment_of_somebodys(tmp_path: Path, comment: bytes) -> None:
    path = written(tmp_path / "a.mp4", film({"comment": comment}))
    assert "this MP4 was not made by ComfyUI" in refusal(path)


@pytest.mark.parametrize("name", ["still.png", "moving.png", "moving.webp", "film.mp4", "film.webm"])
def test_a_damaged_file_is_a_clear_error_or_no_matter(tmp_path: Path, name: str) -> None:
    """Bytes changed, runs of them cut out, the end cut off: never another exception, never a wait."""
    whole = (FILES / name).read_bytes()
    chance = random.Random(name)
    path = tmp_path / name
    messages = []
    for _ in range(300):
        content = bytearray(whole)
        for _ in range(chance.choice((1, 1, 3, 20))):
            content[chance.randrange(len(content))] = chance.choice((0, 1, 0x7F, 0x80, 0xFF, chance.randrange(256)))
        if chance.random() < 0.3:
            del content[chance.randrange(len(content)) :]
        elif chance.random() < 0.3:
            start = chance.randrange(len(content))
            del content[start : start + chance.randrange(40)]
        try:
            assert read(written(path, bytes(content)))[0]
        except UsageError as error:
            messages.append(error.message)
    assert messages
    assert all(str(path) in message for message in messages)
