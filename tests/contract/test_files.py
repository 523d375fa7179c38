"""/view and /upload."""

from __future__ import annotations

import copy
import re
from io import BytesIO
from typing import Any

import pytest
from PIL import Image

from tests.contract import generations, recording
from tests.contract.driver import Comfy, empty_to_save

BOUNDARY = "settee-boundary"


def png(colour: str = "red", mode: str = "RGB", size: tuple[int, int] = (4, 4)) -> bytes:
    buffer = BytesIO()
    Image.new(mode, size, colour).save(buffer, "PNG")
    return buffer.getvalue()


VIEWS = [
    event
    for event in recording.http_events("view_cases")
    if event["method"] in ("GET", "HEAD")
    and "If-None-Match" not in (event["request_headers"] or {})
    and not re.search("preview=|channel=", event["path"])  # pictures for the editor, which only a real one makes
]


@pytest.fixture
def viewme(comfy: Comfy) -> Comfy:
    comfy.upload("viewme.png", png())
    return comfy


@pytest.mark.parametrize("event", VIEWS, ids=[f"{e['method']} {e['path']} {e['request_headers']}" for e in VIEWS])
def test_a_view_is_answered_as_recorded(viewme: Comfy, event: dict[str, Any]) -> None:
    url = viewme.url + event["path"]
    answer = viewme.session.request(event["method"], url, headers=event["request_headers"], timeout=10)
    assert answer.status_code == event["status"]
    headers = event["response_headers"] or {}
    for name in ("Content-Disposition", "Content-Type", "Accept-Ranges"):
        assert answer.headers.get(name) == headers.get(name) or not headers
    if event["status"] == 206:
        assert answer.content == png()[:10]
        assert answer.headers["Content-Range"] == f"bytes 0-9/{len(png())}"


def test_an_unchanged_file_is_not_sent_again(viewme: Comfy) -> None:
    params = {"filename": "viewme.png", "type": "input"}
    etag = viewme.get("/view", params=params).headers["Etag"]
    assert viewme.get("/view", params=params, headers={"If-None-Match": etag}).status_code == 304


def test_a_page_is_served_as_plain_bytes(comfy: Comfy) -> None:
    comfy.upload("page.html", b"<script>")
    answer = comfy.get("/view", params={"filename": "page.html", "type": "input"})
    assert answer.headers["Content-Type"] == "application/octet-stream"


def test_the_name_of_an_upload(comfy: Comfy) -> None:
    """The recorded sequence: same bytes, other bytes, overwrite, a word that is not overwrite, a subfolder."""
    name = f"up_{id(comfy)}"

    def uploaded(data: bytes, **fields: str) -> tuple[str, str, str]:
        files = {"image": (f"{name}.png", data, "image/png")}
        answer = comfy.post("/upload/image", files=files, data=fields).json()
        return answer["name"].replace(name, "N"), answer["subfolder"], answer["type"]

    comfy.upload(f"{name}.png", png("red"))
    assert uploaded(png("red")) == ("N.png", "", "input")
    one, two = png("blue", size=(3, 3)), png("blue", size=(2, 2))
    assert uploaded(one)[0] in ("N (1).png",)
    assert uploaded(one)[0] == "N (1).png"
    assert uploaded(two, overwrite="True")[0] == "N (2).png"
    assert uploaded(two, overwrite="true")[0] == "N.png"
    assert uploaded(one, overwrite="1")[0] == "N.png"
    assert uploaded(one, subfolder="sub/dir", overwrite="1") == ("N.png", "sub/dir", "input")
    assert uploaded(one, type="temp", overwrite="1") == ("N.png", "", "temp")
    assert uploaded(one, type="output", overwrite="1") == ("N.png", "", "output")


def part(name: str, value: bytes, filename: str | None = None) -> bytes:
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{name}"'
    if filename is not None:
        head += f'; filename="{filename}"\r\nContent-Type: image/png'
    return head.encode() + b"\r\n\r\n" + value + b"\r\n"


def post_form(comfy: Comfy, *parts: bytes, path: str = "/upload/image") -> Any:
    headers = {"Content-Type": f"multipart/form-data; boundary={BOUNDARY}"}
    return comfy.post(path, data=b"".join(parts) + f"--{BOUNDARY}--\r\n".encode(), headers=headers)


@pytest.mark.parametrize(
    ("filename", "status"),
    [
        ("d1/d2.png", 500),
        ("../evil.png", 400),
        ("/tmp/evil.png", (400, 500)),
        ("..", 400),
        ("", 500),
        ("l" * 300, 500),
        ("ünï cödé 图.png", 200),
        ("zero.png", 200),
    ],
)
def test_a_bare_file_name_is_judged_as_recorded(comfy: Comfy, filename: str, status: Any) -> None:
    answer = post_form(comfy, part("overwrite", b"true"), part("image", png(), filename))
    assert answer.status_code in (status if isinstance(status, tuple) else (status,))
    if status == 200:
        assert answer.json() == {"name": filename, "subfolder": "", "type": "input"}


@pytest.mark.parametrize(
    ("parts", "status"),
    [
        ([part("overwrite", b"true")], 400),
        ([part("file", b"x", "a.png")], 400),
        ([part("image", b"x", "a.png"), part("type", b"bogus")], 500),
        ([part("image", b"x", "a.png"), part("subfolder", b"../../evil")], 400),
        ([part("image", b"x", "a.png"), part("subfolder", b"/tmp/evil")], 400),
        ([part("image", b"", "zero.png"), part("overwrite", b"1")], 200),
    ],
)
def test_other_forms(comfy: Comfy, parts: list[bytes], status: int) -> None:
    assert post_form(comfy, *parts).status_code == status


def test_an_upload_that_is_no_form(comfy: Comfy) -> None:
    answer = comfy.post("/upload/image", data=b"raw", headers={"Content-Type": "application/octet-stream"})
    assert answer.status_code == 400


def test_an_upload_over_100_mib_is_refused(comfy: Comfy) -> None:
    event = next(event for event in recording.http_events("uploads") if event["status"] == 413)
    answer = comfy.post("/upload/image", files={"image": ("big.bin", bytes(101 * 1024 * 1024))})
    assert (answer.status_code, answer.text) == (413, event["response_body"])


def load_graph(image: str) -> dict[str, Any]:
    graph = copy.deepcopy(empty_to_save("up"))
    graph["1"] = {"class_type": "LoadImage", "inputs": {"image": image}}
    return graph


def test_loading_takes_names_from_everywhere(comfy: Comfy) -> None:
    """ComfyUI does not confine LoadImage to its input directory, so whoever submits graphs must."""
    comfy.upload("in.png", png(), subfolder="jobs/j1")
    comfy.upload("in_temp.png", png(), type="temp")
    comfy.upload("in_output.png", png(), type="output")
    names = ["jobs/j1/in.png", "in_temp.png [temp]", "in_output.png [output]", "jobs/../jobs/j1/in.png"]
    if comfy.input_dir is not None:
        names += [str(comfy.input_dir / "jobs" / "j1" / "in.png"), f"../{comfy.input_dir.name}/jobs/j1/in.png"]
    for name in names:
        assert comfy.run(load_graph(name))["status"]["status_str"] == "success", name


def damaged(data: bytes, keep: float) -> bytes:
    return data[: int(len(data) * keep)]


def noise(kind: str) -> bytes:
    buffer = BytesIO()
    Image.effect_noise((64, 64), 60).convert("RGB").save(buffer, kind)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("name", "data", "error"),
    [
        ("trunc.png", damaged(noise("PNG"), 0.5), None),
        ("trunc.jpg", damaged(noise("JPEG"), 0.5), None),
        ("empty.png", b"", generations.under_test().undecodable),
        ("header.png", noise("PNG")[:30], "PIL.UnidentifiedImageError"),
        ("note.txt", b"hello", generations.under_test().undecodable),
    ],
)
def test_damaged_files(comfy: Comfy, name: str, data: bytes, error: str | None) -> None:
    comfy.upload(name, data)
    entry = comfy.run(load_graph(name))
    kind, told = entry["status"]["messages"][-1]
    if error is None:
        assert kind == "execution_success"
    else:
        assert (kind, told["exception_type"]) == ("execution_error", error)
