"""settee's own nodes: the sampler without a model, and the one that fails on request."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.contract.driver import Comfy, Graph, empty, sampler_graph


@pytest.fixture
def own(comfy: Comfy) -> Comfy:
    if comfy.is_real:
        pytest.skip("these are nodes of the embedded server")
    return comfy


def fault_graph(fault: str, **inputs: Any) -> Graph:
    return {
        "1": empty(),
        "2": {"class_type": "SetteeFault", "inputs": {"image": ["1", 0], "fault": fault, **inputs}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }


def last(entry: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    kind, data = entry["status"]["messages"][-1]
    return kind, data


def test_the_same_seed_gives_the_same_picture(own: Comfy) -> None:
    pictures = []
    for seed in (5, 5, 6):
        own.post("/free", json={"free_memory": True})
        graph = sampler_graph(3, delay_ms=0)
        graph["1"] = empty(color=0x808080)
        graph["3"]["inputs"]["seed"] = seed
        graph["9"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["3", 0]}}
        listener = own.listen(first='{"type": "hello"}')
        own.run(graph, listener)
        pictures.append(next(message for message in listener.messages if isinstance(message, tuple)))
    assert pictures[0] == pictures[1] != pictures[2]


def test_no_fault_passes_the_picture_through(own: Comfy) -> None:
    assert last(own.run(fault_graph("none")))[0] == "execution_success"


def test_an_error_is_the_nodes_own(own: Comfy) -> None:
    kind, error = last(own.run(fault_graph("error", message="on purpose")))
    assert (kind, error["exception_type"], error["exception_message"]) == (
        "execution_error",
        "RuntimeError",
        "on purpose\n",
    )
    assert (error["node_id"], error["node_type"]) == ("2", "SetteeFault")


def test_memory_runs_out_until_it_is_freed(own: Comfy) -> None:
    graph = fault_graph("oom", until_free=True)
    for _ in range(2):
        assert last(own.run(graph))[1]["exception_type"] == "torch.OutOfMemoryError"
    own.post("/free", json={"unload_models": True})
    # As in ComfyUI, a prompt that comes before the thread that runs prompts wakes still finds what was kept.
    own.run({"1": empty(), "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})
    assert last(own.run(graph))[0] == "execution_success"
    assert last(own.run(fault_graph("oom", until_free=True)))[0] == "execution_error"


def test_memory_runs_out_a_number_of_times(embedded: Any) -> None:
    comfy = Comfy(embedded().url)
    graph = fault_graph("oom", times=2)
    assert [last(comfy.run(graph))[0] for _ in range(3)] == ["execution_error"] * 2 + ["execution_success"]


def test_a_sleep_is_not_interrupted(own: Comfy) -> None:
    listener = own.listen()
    prompt_id = own.submit(fault_graph("sleep", seconds=0.3), listener)
    listener.wait_label("executing:2")
    started = time.monotonic()
    own.post("/interrupt", json={"prompt_id": prompt_id})
    kind, told = last(own.wait_history(prompt_id))
    assert time.monotonic() - started > 0.2
    assert (kind, told["node_id"]) == ("execution_interrupted", "3")


def test_a_hang_ends_when_interrupted(own: Comfy) -> None:
    listener = own.listen()
    prompt_id = own.submit(fault_graph("hang"), listener)
    listener.wait_label("executing:2")
    own.post("/interrupt", json={"prompt_id": prompt_id})
    kind, told = last(own.wait_history(prompt_id))
    assert (kind, told["node_id"], told["executed"]) == ("execution_interrupted", "2", ["1"])


def test_an_exit_takes_the_process(embedded: Any) -> None:
    server = embedded()
    Comfy(server.url).submit(fault_graph("exit"))
    assert server.process.wait(5) == 9


def test_a_tint_depends_on_the_file_that_is_there(own: Comfy) -> None:
    assert own.input_dir is not None
    checkpoints = own.input_dir.parent / "models/checkpoints/sub"
    checkpoints.mkdir(parents=True)
    graph = {
        "1": empty(color=0),
        "2": {"class_type": "SetteeCheckpointTint", "inputs": {"image": ["1", 0], "ckpt_name": "sub/a.safetensors"}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["2", 0]}},
    }
    refused = own.post("/prompt", json={"prompt": graph})
    assert refused.json()["node_errors"]["2"]["errors"][0]["type"] == "value_not_in_list"
    (checkpoints / "a.safetensors").write_bytes(b"model")
    (checkpoints / "readme.txt").write_bytes(b"not a model")
    assert [name for name in own.get("/models/checkpoints").json() if "sub" in name] == ["sub/a.safetensors"]
    assert last(own.run(graph))[0] == "execution_success"
