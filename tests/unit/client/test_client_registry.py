"""ComfyUI's node registry, from a server and from a file."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from settee.backends.comfy.process import free_port
from settee.client import Endpoint
from settee.client.client_errors import NetworkError, UsageError
from settee.client.targets import comfy_api
from settee.comfyui.node_registry import NodeRegistry
from tests.support.file_server import FileServer
from tests.support.http_double import Ask, HttpDouble, Reply

INFO: dict[str, Any] = {"SaveImage": {"input": {"required": {"images": ["IMAGE"]}}, "output_node": True}}


def test_from_a_file(tmp_path: Path) -> None:
    (tmp_path / "info.json").write_text(json.dumps(INFO))
    assert comfy_api.read_registry(tmp_path / "info.json").classes == INFO


@pytest.mark.parametrize("path", ["", "/", "/object_info", "/object_info/"])
def test_from_a_server(path: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "netrc").write_text("machine 127.0.0.1 login somebody password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with FileServer(json.dumps(INFO).encode()).running() as server:
        assert comfy_api.read_registry(server.url.replace("/file.bin", path)).classes == INFO
        (asked,) = server.asked
        assert asked.path == "/object_info"
        assert "Authorization" not in asked.headers


def test_one_that_is_busy_is_asked_again() -> None:
    def rule(ask: Ask, reply: Reply) -> None:
        if len(server.asked) < 2:
            reply.status = 503

    with FileServer(json.dumps(INFO).encode(), rule=rule).running() as server:
        assert comfy_api.read_registry(server.url.replace("/file.bin", "")).classes == INFO


@pytest.mark.parametrize(
    "spoilt", [5, None, [], {}, {"input": []}, {"input": {"required": 5}}, {"input": {}, "output": 5}], ids=str
)
def test_a_class_that_is_described_badly_spoils_no_other(spoilt: Any, tmp_path: Path) -> None:
    content = json.dumps({"Bad": spoilt, **INFO})
    (tmp_path / "info.json").write_text(content)
    assert comfy_api.read_registry(tmp_path / "info.json").classes == INFO
    bad = {"1": {"class_type": "Bad", "inputs": {"image": "a.png", "steps": 1, "seed": 2}}}
    with FileServer(content.encode()).running() as server:
        address = server.url.replace("/file.bin", "")
        with Endpoint(address, comfy=True) as endpoint:
            assert endpoint.node_registry == NodeRegistry(INFO)
            assert endpoint.prepare(bad).workflow["1"]["class_type"] == "Bad"


@pytest.mark.parametrize("content", ["{}", "[]", '{"a": 1}', '{"a": {}}', "no", '"' + "[" * 2000])
def test_what_is_no_registry(content: str, tmp_path: Path) -> None:
    (tmp_path / "info.json").write_text(content)
    with pytest.raises(UsageError, match=r"--registry .*info\.json: "):
        comfy_api.read_registry(tmp_path / "info.json")
    with pytest.raises(UsageError, match=r"--registry .*absent\.json: No such file"):
        comfy_api.read_registry(tmp_path / "absent.json")


def test_a_server_that_is_no_comfyui() -> None:
    with FileServer(b"[]").running() as server, pytest.raises(NetworkError, match="does not answer as ComfyUI does"):
        comfy_api.read_registry(server.url.replace("/file.bin", ""))
    with FileServer(b"{}").running() as server, pytest.raises(UsageError, match="that is not a node registry"):
        comfy_api.read_registry(server.url.replace("/file.bin", ""))


def test_a_server_that_is_not_there() -> None:
    with pytest.raises(NetworkError, match=r"--registry http://127\.0\.0\.1:\d+: the server cannot be reached"):
        comfy_api.read_registry(f"http://127.0.0.1:{free_port()}")


@pytest.mark.parametrize(
    ("extensions", "converts"),
    [(["/extensions/core/noteNode.js"], True), (["/extensions/mine/changes_exports.js"], False)],
)
def test_custom_nodes_of_a_server_that_says_what_scripts_it_has(extensions: list[str], converts: bool) -> None:
    """A pack without scripts of its own cannot change what the editor exports."""
    known = json.loads((Path(__file__).parents[2] / "data" / "object_info.json").read_text())
    info = {
        "Mine": {**known["EmptyImage"], "name": "Mine", "python_module": "custom_nodes.mine"},
        "SaveImage": known["SaveImage"],
    }
    editor = {
        "nodes": [
            {
                "id": 1,
                "type": "Mine",
                "mode": 0,
                "inputs": [],
                "outputs": [{"name": "IMAGE", "type": "IMAGE", "links": [1]}],
                "properties": {},
                "widgets_values": [64, 64, 1, 0],
            },
            {
                "id": 2,
                "type": "SaveImage",
                "mode": 0,
                "inputs": [{"name": "images", "type": "IMAGE", "link": 1}],
                "outputs": [],
                "properties": {},
                "widgets_values": ["mine"],
            },
        ],
        "links": [[1, 1, 0, 2, 0, "IMAGE"]],
        "version": 0.4,
    }

    def rule(ask: Ask, reply: Reply) -> None:
        reply.body = memoryview(json.dumps(extensions if ask.path == "/extensions" else info).encode())
        reply.headers["Content-Length"] = str(len(reply.body))

    with FileServer(b"", rule=rule).running() as server:
        endpoint = Endpoint("http://127.0.0.1:9", registry=f"http://127.0.0.1:{server.port}")
        if converts:
            assert endpoint.prepare(editor).workflow["1"]["class_type"] == "Mine"
        else:
            with pytest.raises(UsageError, match="1 Mine"):
                endpoint.prepare(editor)


@pytest.mark.parametrize("status", [400, 404, 501])
def test_a_limit_that_is_not_known_is_none(status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is in front of an older ComfyUI answers for the route that it lacks."""

    class Older(HttpDouble):
        def answer(self, ask: Ask) -> Reply:
            if ask.method != "POST":
                return Reply(404 if ask.method == "HEAD" else status)
            return Reply(200, body=json.dumps({"name": "a.png", "subfolder": subfolder}).encode())

    subfolder = f"settee/{hashlib.sha256(b'file').hexdigest()[:16]}"
    monkeypatch.setattr(comfy_api, "ASK_FIRST_BYTES", 1)
    with Older() as server:
        wire = comfy_api.Wire(server.origin, name="it")
        assert wire.put("a.png", b"file") == f"{subfolder}/a.png"
        wire.close()
