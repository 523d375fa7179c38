"""The switches of tests/support/comfy_pack/faults.py, which make the embedded server fail."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.contract.driver import Comfy, Listener, empty_to_save, sampler_graph
from tests.support.embedded import START_SECONDS, EmbeddedServer
from tests.support.waiting import eventually

SHORT = 0.3
"""Seconds that something is watched not to happen."""


@pytest.fixture(scope="module")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    if os.environ.get("COMFY_URL"):
        pytest.skip("a real server has no fault switches")
    with EmbeddedServer(tmp_path_factory.mktemp("faulty")) as server:
        yield server


def test_a_port_that_is_taken_is_one_line(server: EmbeddedServer) -> None:
    command = [
        sys.executable,
        "-m",
        "settee.embedded",
        "--port",
        str(server.port),
        "--base-directory",
        str(server.root),
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert f"port {server.port} cannot be listened on: choose another" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def server(_server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    yield _server
    _server.clear_faults()


@pytest.fixture
def comfy(server: EmbeddedServer) -> Iterator[Comfy]:
    comfy = Comfy(server.url, server.input_dir, server.output_dir, server.temp_dir)
    yield comfy
    comfy.close()


def does_not_hear(listener: Listener, label: str) -> None:
    with pytest.raises(AssertionError, match="not received"):
        listener.wait_for(lambda message: label in str(message), SHORT)


def test_switches_are_listed_and_unknown_ones_refused(server: EmbeddedServer) -> None:
    assert requests.get(f"{server.url}/settee/faults", timeout=5).json() == {}
    server.fault("oom", 2)
    assert requests.get(f"{server.url}/settee/faults", timeout=5).json() == {"oom": 2}
    for name, value in (("nope", True), ("oom", "many"), ("view_404", "perhaps")):
        with pytest.raises(ValueError, match=name):
            server.fault(name, value)


@pytest.mark.parametrize(
    ("name", "value", "becomes"),
    [
        ("oom", "2", {"oom": 2}),
        ("oom", True, {"oom": True}),
        ("slow_start", "0.5", {"slow_start": 0.5}),
        ("http_hang", "/view", {"http_hang": "/view"}),
        ("view_404", "false", {}),
    ],
)
def test_values_are_read_in_the_form_of_their_switch(
    server: EmbeddedServer, name: str, value: Any, becomes: dict[str, Any]
) -> None:
    server.fault(name, value)
    assert requests.get(f"{server.url}/settee/faults", timeout=5).json() == becomes


def test_ws_drop_after(server: EmbeddedServer, comfy: Comfy) -> None:
    listener = comfy.listen()
    server.fault("ws_drop_after", 4)
    prompt_id = comfy.submit(empty_to_save(), listener)
    listener.wait_closed()
    told = [label for label in listener.labels() if not label.startswith("status")]
    assert told == ["execution_start", "execution_cached:[]", "progress_state", "executing:1"]
    assert comfy.wait_history(prompt_id)["status"]["status_str"] == "success"
    assert comfy.run(empty_to_save(), comfy.listen(listener.client_id)) is not None


def test_ws_refuse(server: EmbeddedServer, comfy: Comfy) -> None:
    server.fault("ws_refuse")
    with pytest.raises(Exception, match="503"):
        comfy.listen()
    server.fault("ws_refuse", None)
    comfy.listen()


def test_ws_silent(server: EmbeddedServer, comfy: Comfy) -> None:
    listener = comfy.listen()
    server.fault("ws_silent")
    comfy.run(empty_to_save(), client_id=listener.client_id)
    assert listener.labels() == ["status:0+sid"]
    assert not listener.closed


def test_no_final_message(server: EmbeddedServer, comfy: Comfy) -> None:
    server.fault("no_final_message")
    listener = comfy.listen()
    comfy.run(empty_to_save(), client_id=listener.client_id)
    listener.wait_label("execution_success")
    does_not_hear(listener, "'node': None")


def test_history_late(server: EmbeddedServer, comfy: Comfy) -> None:
    server.fault("history_late", SHORT)
    listener = comfy.listen()
    prompt_id = comfy.submit(empty_to_save(), listener)
    listener.wait_end(prompt_id)
    assert comfy.history(prompt_id) is None
    assert comfy.wait_history(prompt_id)["status"]["completed"]


def test_history_lost(server: EmbeddedServer, comfy: Comfy) -> None:
    server.fault("history_lost")
    listener = comfy.listen()
    prompt_id = comfy.submit(empty_to_save(), listener)
    listener.wait_end(prompt_id)
    comfy.wait_idle()
    assert comfy.history(prompt_id) is None


def test_prompt_lost_response(server: EmbeddedServer, comfy: Comfy) -> None:
    server.fault("prompt_lost_response", 1)
    prompt_id = str(uuid.uuid4())
    body = {"prompt": empty_to_save(), "prompt_id": prompt_id}
    with pytest.raises(requests.ConnectionError):
        comfy.post("/prompt", json=body)
    assert comfy.wait_history(prompt_id)["status"]["completed"]
    comfy.run(empty_to_save())


def test_prompt_500(server: EmbeddedServer, comfy: Comfy) -> None:
    server.fault("prompt_500", 2)
    queued = server.stats()["prompts_queued"]
    statuses = [comfy.post("/prompt", json={"prompt": empty_to_save()}).status_code for _ in range(3)]
    assert statuses == [500, 500, 200]
    assert server.stats()["prompts_queued"] == queued + 1


def test_http_hang(server: EmbeddedServer, comfy: Comfy) -> None:
    server.fault("http_hang", "/history")
    with pytest.raises(requests.ReadTimeout):
        requests.get(f"{server.url}/history", timeout=SHORT)
    assert comfy.get("/queue").status_code == 200


def test_executor_dead(server: EmbeddedServer, comfy: Comfy) -> None:
    server.fault("executor_dead")
    prompt_id = comfy.submit(empty_to_save())
    with pytest.raises(AssertionError):
        comfy.wait_history(prompt_id, SHORT)
    assert len(comfy.get("/queue").json()["queue_pending"]) == 1
    server.fault("executor_dead", None)
    comfy.wait_history(prompt_id)


@pytest.mark.parametrize("name", ["delete_outputs", "truncate_outputs"])
def test_spoilt_outputs(server: EmbeddedServer, comfy: Comfy, name: str) -> None:
    color = len(name)  # another for each: ComfyUI keeps what it made for earlier prompts
    whole = comfy.view(comfy.run(empty_to_save("whole", color=color))["outputs"]["2"]["images"][0])
    server.fault(name)
    (file,) = comfy.run(empty_to_save("spoil", color=color))["outputs"]["2"]["images"]
    answer = comfy.get("/view", params=file)
    if name == "delete_outputs":
        assert answer.status_code == 404
    else:
        assert answer.content == whole[: len(whole) // 2]


def test_view_404(server: EmbeddedServer, comfy: Comfy) -> None:
    (file,) = comfy.run(empty_to_save())["outputs"]["2"]["images"]
    server.fault("view_404")
    assert comfy.get("/view", params=file).status_code == 404
    server.fault("view_404", None)
    assert comfy.get("/view", params=file).status_code == 200


def test_ignore_interrupt(server: EmbeddedServer, comfy: Comfy) -> None:
    server.fault("ignore_interrupt")
    listener = comfy.listen()
    prompt_id = comfy.submit(sampler_graph(6), listener)
    listener.wait_label("progress:1/6")
    assert comfy.post("/interrupt", json={}).status_code == 200
    assert comfy.wait_history(prompt_id)["status"]["status_str"] == "success"


def test_interrupt_slow(server: EmbeddedServer, comfy: Comfy) -> None:
    server.fault("interrupt_slow", SHORT)
    listener = comfy.listen()
    prompt_id = comfy.submit(sampler_graph(1000), listener)
    listener.wait_label("progress:1/1000")
    started = time.monotonic()
    comfy.post("/interrupt", json={"prompt_id": prompt_id})
    assert comfy.wait_history(prompt_id)["status"]["status_str"] == "error"
    assert time.monotonic() - started >= SHORT


def test_oom(server: EmbeddedServer, comfy: Comfy) -> None:
    server.fault("oom", 2)
    entries = [comfy.run(empty_to_save()) for _ in range(3)]
    assert [entry["status"]["status_str"] for entry in entries] == ["error", "error", "success"]
    error = entries[0]["status"]["messages"][-1][1]
    assert error["exception_type"] == "torch.OutOfMemoryError"
    assert "CUDA out of memory" in error["exception_message"]


def test_crash_on_prompt(embedded: Any) -> None:
    server = embedded(faults={"crash_on_prompt": 2})
    comfy = Comfy(server.url)
    comfy.run(empty_to_save())
    comfy.submit(empty_to_save())
    assert server.process.wait(5) == 9


def test_slow_start(embedded: Any) -> None:
    started = time.monotonic()
    embedded(faults={"slow_start": SHORT})
    assert time.monotonic() - started >= SHORT


def test_die_at_start(embedded: Any) -> None:
    server = embedded(wait=False, faults={"die_at_start": True})
    assert server.process.wait(START_SECONDS) == 1
    assert "ModuleNotFoundError" in server.log_text()


def test_an_unknown_fault_stops_the_start(embedded: Any) -> None:
    server = embedded(wait=False, faults={"nope": True})
    assert server.process.wait(START_SECONDS) == 2
    assert "no fault called 'nope'" in server.log_text()


def test_stats_count_what_happened(server: EmbeddedServer, comfy: Comfy) -> None:
    before = server.stats()
    listener = comfy.listen()
    comfy.run(empty_to_save(), listener)
    comfy.post("/interrupt", json={})
    comfy.post("/free", json={"free_memory": True, "unload_models": True})
    eventually(lambda: server.stats()["cache_drops"] == before["cache_drops"] + 1)
    after = server.stats()
    grown = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    expected = {
        **dict.fromkeys(["prompts_queued", "prompts_executed", "prompts_succeeded"], 1),
        **dict.fromkeys(["interrupts", "frees", "unloads", "cache_drops", "sockets_opened"], 1),
        "nodes_executed": 2,
    }
    assert grown.items() >= expected.items()


def test_directories_can_be_given_one_by_one(embedded: Any, tmp_path: Path) -> None:
    places = [tmp_path / name for name in ("in", "out", "scratch")]
    options = ["--input-directory", "--output-directory", "--temp-directory"]
    args = [part for option, place in zip(options, places, strict=True) for part in (option, str(place))]
    comfy = Comfy(embedded(args=[*args, "--cpu", "--disable-auto-launch", "--lowvram"]).url)
    comfy.upload("a.png", b"x")
    graph = empty_to_save()
    graph["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    outputs = comfy.run(graph)["outputs"]
    assert (places[0] / "a.png").exists()
    assert (places[1] / outputs["2"]["images"][0]["filename"]).exists()
    assert (places[2] / "temp" / outputs["3"]["images"][0]["filename"]).exists()
