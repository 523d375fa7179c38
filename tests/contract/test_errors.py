"""Prompts that fail while they run."""

from __future__ import annotations

from typing import Any

import pytest

from tests.contract import recording
from tests.contract.driver import Comfy, Graph, empty, empty_to_save


def corrupt_graph() -> Graph:
    graph = empty_to_save()
    graph["1"] = {"class_type": "LoadImage", "inputs": {"image": "corrupt.png"}}
    return graph


def recorded_error(node_type: str) -> dict[str, Any]:
    """The first recorded execution_error of a node class."""
    for message in recording.messages("execution_errors", "A"):
        if isinstance(message, dict) and message["type"] == "execution_error":
            data: dict[str, Any] = message["data"]
            if data["node_type"] == node_type:
                return data
    raise LookupError(node_type)


def test_a_broken_input_file(comfy: Comfy) -> None:
    comfy.upload("corrupt.png", b"this is no image")
    listener = comfy.listen()
    entry = comfy.run(corrupt_graph(), listener)
    kind, error = entry["status"]["messages"][-1]
    want = recorded_error("LoadImage")
    assert kind == "execution_error"
    assert list(error) == list(want)
    for key in ("node_id", "node_type", "executed", "exception_type", "current_inputs"):
        assert error[key] == want[key]
    assert error["exception_message"].startswith("cannot identify image file '")
    assert error["exception_message"].endswith("corrupt.png'\n")
    assert all(isinstance(line, str) for line in error["traceback"])
    assert sorted(error["current_outputs"]) == sorted(want["current_outputs"])
    assert entry["outputs"] == entry["meta"] == {}
    assert (entry["status"]["status_str"], entry["status"]["completed"]) == ("error", False)
    labels = recording.labels("execution_errors")
    first = labels.index("execution_error")
    assert listener.labels() == labels[: first + 3]


@pytest.mark.parametrize("prefix", ["../../evil", "/tmp/evil/x"])
def test_saving_outside_the_output_directory(comfy: Comfy, prefix: str) -> None:
    entry = comfy.run(empty_to_save(prefix))
    kind, error = entry["status"]["messages"][-1]
    want = recorded_error("SaveImage")
    assert kind == "execution_error"
    for key in ("node_id", "node_type", "executed", "exception_type"):
        assert error[key] == want[key]
    first, *rest = error["exception_message"].split("\n")
    assert first == want["exception_message"].split("\n")[0]
    assert [line.split(":")[0] for line in rest] == [
        line.split(":")[0] for line in want["exception_message"].split("\n")[1:]
    ]
    assert set(error["current_inputs"]) == set(want["current_inputs"])


def test_outputs_before_an_error_are_not_lost(comfy: Comfy) -> None:
    """A node that saved before another failed is in history next to the error."""
    comfy.upload("corrupt.png", b"this is no image")
    graph = {**corrupt_graph(), "3": empty(), "4": {"class_type": "PreviewAny", "inputs": {"source": 5}}}
    entry = comfy.run(graph)
    assert entry["status"]["status_str"] == "error"
    assert set(entry["outputs"]) == {"4"}


def test_the_next_prompt_runs(comfy: Comfy) -> None:
    comfy.upload("corrupt.png", b"this is no image")
    comfy.run(corrupt_graph())
    assert comfy.run(empty_to_save())["status"]["status_str"] == "success"


def test_what_ran_before_the_error_is_listed(comfy: Comfy) -> None:
    graph = empty_to_save("../../evil")
    error = comfy.run(graph)["status"]["messages"][-1][1]
    assert error["executed"] == ["1"]
    again = comfy.run(graph)["status"]["messages"]
    assert again[1][1]["nodes"] == ["1"]
    assert again[-1][1]["executed"] == []


def test_a_link_into_an_unknown_input(comfy: Comfy) -> None:
    graph = empty_to_save()
    graph["2"]["inputs"]["bogus"] = ["1", 0]
    kind, error = comfy.run(graph)["status"]["messages"][-1]
    assert (kind, error["exception_type"]) == ("execution_error", "TypeError")
    assert "got an unexpected keyword argument 'bogus'" in error["exception_message"]
