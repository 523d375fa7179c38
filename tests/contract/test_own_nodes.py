"""Interrupts and freed memory, by the node of tests/support/comfy_pack that fails on request."""

from __future__ import annotations

import time
from typing import Any

import pytest

from tests.contract.driver import Comfy, Graph, empty


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


def test_memory_runs_out_until_it_is_freed(own: Comfy) -> None:
    graph = fault_graph("oom", until_free=True)
    for _ in range(2):
        assert last(own.run(graph))[1]["exception_type"] == "torch.OutOfMemoryError"
    own.post("/free", json={"unload_models": True})
    # As in ComfyUI, a prompt that comes before the thread that runs prompts wakes still finds what was kept.
    own.run({"1": empty(), "2": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}})
    assert last(own.run(graph))[0] == "execution_success"
    assert last(own.run(fault_graph("oom", until_free=True)))[0] == "execution_error"


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
