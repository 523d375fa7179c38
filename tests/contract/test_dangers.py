"""Requests that ComfyUI accepts and dies of. Whoever forwards requests must keep them away."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest
import requests

from tests.contract import recording
from tests.contract.driver import Comfy, empty_to_save
from tests.support.waiting import eventually

NOTHING_FOR = 0.3
"""Seconds in which a living server would have run the prompt a hundred times."""


def recorded_case(name: str) -> dict[str, Any]:
    """The first request of a case."""
    found = False
    for event in recording.load("worker_death")["events"]:
        if event["kind"] == "note" and event["text"].startswith("case "):
            found = event["text"] == f"case {name}"
        elif found and event["kind"] == "http":
            body: dict[str, Any] = event["request_body"]
            return body
    raise LookupError(name)


@pytest.mark.parametrize("case", ["extra_data_null", "extra_data_int"])
def test_a_broken_extra_data_is_no_longer_taken(embedded: Any, case: str) -> None:
    """0.3.64 takes it, and runs nothing after it."""
    comfy = Comfy(embedded().url)
    assert comfy.post("/prompt", json=recorded_case(case)).status_code == 500
    assert comfy.run(empty_to_save())["status"]["status_str"] == "success"


@pytest.mark.parametrize("case", ["client_id_list", "client_id_object"])
def test_a_client_id_that_is_no_value_ends_the_process(embedded: Any, case: str) -> None:
    server = embedded()
    # ComfyUI answers 200 before it dies; the answer can be lost on the way.
    with contextlib.suppress(requests.ConnectionError):
        assert requests.post(f"{server.url}/prompt", json=recorded_case(case), timeout=5).status_code == 200
    assert server.process.wait(5) != 0
    assert "unhashable" in server.log_text()


def test_a_client_id_that_is_a_number_is_harmless(embedded: Any) -> None:
    comfy = Comfy(embedded().url)
    prompt_id = comfy.post("/prompt", json=recorded_case("client_id_int")).json()["prompt_id"]
    assert comfy.wait_history(prompt_id)["status"]["status_str"] == "success"
    assert comfy.run(empty_to_save())["status"]["status_str"] == "success"


def test_an_unused_node_without_inputs_ends_all_work(embedded: Any) -> None:
    """Validation only follows links from outputs, the cache looks at every node. HTTP goes on answering."""
    server = embedded()
    comfy = Comfy(server.url)
    deadly = comfy.submit({**empty_to_save(), "5": {"class_type": "ImageInvert"}})
    eventually(lambda: "KeyError: 'inputs'" in server.log_text())
    comfy.submit(empty_to_save())
    queue = comfy.get("/queue").json()
    assert [len(queue["queue_running"]), len(queue["queue_pending"])] == [1, 1]
    with pytest.raises(AssertionError):
        comfy.wait_history(deadly, NOTHING_FOR)
    assert comfy.get("/system_stats").status_code == 200
    assert server.process.poll() is None


@pytest.mark.parametrize("stop", ["terminate", "kill"])
def test_a_stopped_server_closes_its_sockets_without_a_word(embedded: Any, stop: str) -> None:
    server = embedded()
    listener = Comfy(server.url).listen()
    getattr(server.process, stop)()
    listener.wait_closed()
    assert server.process.wait(5) == {"terminate": -15, "kill": -9}[stop]
