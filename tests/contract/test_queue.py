"""Queue, history and interrupts."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any

import pytest

from tests.contract import generations, recording
from tests.contract.driver import Comfy, Graph, Listener, empty_to_save
from tests.support.waiting import eventually

Slow = Callable[[int], Graph]


def running(comfy: Comfy, slow_graph: Slow, steps: int = 100) -> tuple[Listener, str]:
    """A prompt that is past its first step."""
    listener = comfy.listen()
    prompt_id = comfy.submit(slow_graph(steps), listener)
    listener.wait_label(f"progress:1/{steps}")
    return listener, prompt_id


def end_now(comfy: Comfy, prompt_id: str) -> dict[str, Any]:
    comfy.post("/interrupt", json={"prompt_id": prompt_id})
    return comfy.wait_history(prompt_id)


def test_the_queue_shows_whole_prompts(comfy: Comfy, slow_graph: Slow) -> None:
    _, running_id = running(comfy, slow_graph)
    graph = empty_to_save()
    waiting_id = comfy.submit(graph, client_id="me", extra_data={"a": 1})
    queue = comfy.get("/queue").json()
    (now,), (later,) = queue["queue_running"], queue["queue_pending"]
    assert [now[1], len(now)] == [running_id, 5]
    later[3] = recording.brought(later[3])
    assert later[1:] == [waiting_id, graph, {"a": 1, "client_id": "me"}, ["2"]]
    assert comfy.get("/prompt").json() == {"exec_info": {"queue_remaining": 2}}
    assert comfy.history(running_id) is None
    end_now(comfy, running_id)


def test_numbers_decide_the_order(comfy: Comfy, slow_graph: Slow) -> None:
    listener, running_id = running(comfy, slow_graph)
    fields: dict[str, dict[str, Any]] = {
        "normal": {},
        "later": {"number": 1e9},
        "front": {"front": True},
        "half": {"number": 0.5},
        "first": {"number": -1e9},
    }
    ids = {}
    for name, field in fields.items():
        ids[comfy.submit(empty_to_save(), listener, **field)] = name
    numbers = {ids[item[1]]: item[0] for item in comfy.get("/queue").json()["queue_pending"]}
    assert numbers["front"] < 0 < numbers["half"] < numbers["normal"]
    end_now(comfy, running_id)
    for prompt_id in ids:
        listener.wait_end(prompt_id)
    started = [m["data"]["prompt_id"] for m in listener.messages if m["type"] == "execution_start"]  # type: ignore[call-overload]
    assert [ids[prompt_id] for prompt_id in started[1:]] == ["first", "front", "half", "normal", "later"]


def test_a_waiting_prompt_is_deleted_without_a_word(comfy: Comfy, slow_graph: Slow) -> None:
    _, running_id = running(comfy, slow_graph)
    waiter = comfy.listen()
    gone = comfy.submit(empty_to_save(), waiter)
    waiter.wait_label("status:2")
    assert comfy.post("/queue", json={"delete": [gone, "unknown"]}).status_code == 200
    waiter.wait_label("status:1", count=2)
    end_now(comfy, running_id)
    waiter.wait_label("status:0")
    assert waiter.labels() == ["status:1+sid", *recording.labels("deleted_while_waiting")[3:]]
    assert comfy.history(gone) is None


def test_deleting_the_running_prompt_does_nothing(comfy: Comfy, slow_graph: Slow) -> None:
    listener, running_id = running(comfy, slow_graph, 20)
    assert comfy.post("/queue", json={"delete": [running_id]}).status_code == 200
    listener.wait_end(running_id)
    assert comfy.wait_history(running_id)["status"]["status_str"] == "success"


def test_clearing_the_queue_spares_the_running_prompt(comfy: Comfy, slow_graph: Slow) -> None:
    listener, running_id = running(comfy, slow_graph, 20)
    waiting = [comfy.submit(empty_to_save(), listener) for _ in range(3)]
    assert comfy.post("/queue", json={"clear": True}).status_code == 200
    listener.wait_end(running_id)
    comfy.wait_idle()
    assert [comfy.history(prompt_id) for prompt_id in waiting] == [None] * 3


def test_an_interrupt_ends_the_prompt_it_names(comfy: Comfy, slow_graph: Slow) -> None:
    listener, running_id = running(comfy, slow_graph)
    waiting_id = comfy.submit(empty_to_save(), listener)
    assert comfy.post("/interrupt", json={"prompt_id": "nope"}).status_code == 200
    assert comfy.post("/interrupt", json={"prompt_id": waiting_id}).status_code == 200
    seen = len(listener.messages)
    listener.wait_for(lambda message: "progress:" in str(message) or listener.messages.index(message) >= seen)
    entry = end_now(comfy, running_id)
    listener.wait_end(waiting_id)
    assert entry["status"]["status_str"] == "error"
    assert entry["status"]["completed"] is False
    kind, data = entry["status"]["messages"][-1]
    assert kind == "execution_interrupted"
    assert set(data) == {"prompt_id", "node_id", "node_type", "executed", "timestamp"}
    assert data["node_id"] == "3"
    labels = listener.labels()
    after = labels[labels.index("execution_interrupted") :]
    want = recording.labels("interrupt_prompt_id")
    assert after == want[want.index("execution_interrupted") :]


def test_an_interrupt_without_id_ends_whatever_runs(comfy: Comfy, slow_graph: Slow) -> None:
    listener, running_id = running(comfy, slow_graph)
    assert comfy.post("/interrupt").status_code == 200
    listener.wait_end(running_id)
    assert comfy.wait_history(running_id)["status"]["status_str"] == "error"


def test_everyone_hears_of_the_interrupt_of_a_prompt_without_client(comfy: Comfy, slow_graph: Slow) -> None:
    listener = comfy.listen()
    running_id = comfy.submit(slow_graph(100))
    listener.wait_label("progress:1/100")
    comfy.post("/interrupt", json={})
    comfy.wait_history(running_id)
    listener.wait_label("status:0")
    assert listener.labels()[-2:] == recording.labels("interrupt_no_ws_client", "B")[-2:]


@pytest.mark.parametrize(
    ("event", "status"),
    [(e, e["status"]) for e in recording.http_events("interrupt_idle") if e["path"] == "/interrupt"],
)
def test_an_interrupt_while_idle_has_no_effect(comfy: Comfy, event: dict[str, Any], status: int) -> None:
    body = event["request_body"]
    if isinstance(body, str):
        answer = comfy.post("/interrupt", data=body, headers=event["request_headers"])
    else:
        answer = comfy.post("/interrupt", json=body)
    assert answer.status_code == status
    assert comfy.run(empty_to_save())["status"]["status_str"] == "success"


def test_an_id_may_be_brought(comfy: Comfy) -> None:
    prompt_id = str(uuid.uuid4())
    listener = comfy.listen()
    assert comfy.submit(empty_to_save(), listener, prompt_id=prompt_id) == prompt_id
    listener.wait_end(prompt_id)
    assert comfy.history(prompt_id) is not None


any_prompt_id = pytest.mark.skipif(
    not generations.under_test().takes_any_prompt_id, reason="this generation takes UUIDs only"
)


@any_prompt_id
@pytest.mark.parametrize(("given", "becomes"), [("job", "job"), (12345, "12345"), (None, "None")])
def test_any_prompt_id_may_be_brought(comfy: Comfy, given: Any, becomes: str) -> None:
    if isinstance(given, str):
        given = becomes = f"{given}-{uuid.uuid4().hex[:6]}"
    listener = comfy.listen()
    assert comfy.submit(empty_to_save(), listener, prompt_id=given) == becomes
    listener.wait_end(becomes)
    assert comfy.history(becomes) is not None


@any_prompt_id
@pytest.mark.parametrize("prompt_id", ["a/b", ""])
def test_some_prompt_ids_cannot_be_found_again(comfy: Comfy, prompt_id: str) -> None:
    listener = comfy.listen()
    comfy.submit(empty_to_save(), listener, prompt_id=prompt_id)
    listener.wait_end(prompt_id)
    assert comfy.get(f"/history/{prompt_id}").status_code == 404
    assert comfy.get("/history").json()[prompt_id]["status"]["completed"]


def test_a_prompt_id_used_again_overwrites_history(comfy: Comfy) -> None:
    prompt_id = str(uuid.uuid4())
    listener = comfy.listen()
    files = []
    for count in (1, 2):
        comfy.submit(empty_to_save(), listener, prompt_id=prompt_id)
        listener.wait_for(lambda m: m["type"] == "executing" and m["data"]["node"] is None, count=count)  # type: ignore[call-overload]
        files.append(comfy.wait_history(prompt_id)["outputs"]["2"]["images"])
    assert files[0] != files[1]


def test_equal_ids_and_numbers_are_answered_500_and_run(comfy: Comfy, slow_graph: Slow) -> None:
    _, running_id = running(comfy, slow_graph)
    prompt_id = str(uuid.uuid4())
    same = {"prompt_id": prompt_id, "number": 12.5}
    comfy.submit(empty_to_save(), **same)
    assert comfy.post("/prompt", json={"prompt": empty_to_save(), **same}).status_code == 500
    assert len(comfy.get("/queue").json()["queue_pending"]) == 2
    end_now(comfy, running_id)
    comfy.wait_idle()


def test_history_pages(comfy: Comfy) -> None:
    ids = [comfy.run(empty_to_save())["prompt"][1] for _ in range(3)]
    assert list(comfy.get("/history?max_items=1").json()) == ids[-1:]
    assert list(comfy.get("/history?max_items=2").json()) == ids[-2:]
    everything = list(comfy.get("/history").json())
    assert everything[-3:] == ids
    assert list(comfy.get("/history?max_items=2&offset=0").json()) == everything[:2]
    assert list(comfy.get(f"/history?offset={len(everything) - 1}").json()) == ids[-1:]
    assert comfy.get("/history?max_items=x").status_code == 500
    assert comfy.get("/history/unknown").json() == {}


def test_history_is_deleted(comfy: Comfy) -> None:
    first, second = (comfy.run(empty_to_save())["prompt"][1] for _ in range(2))
    assert comfy.post("/history", json={"delete": [first, "unknown"]}).status_code == 200
    assert comfy.history(first) is None
    assert comfy.history(second) is not None
    assert comfy.post("/history", json={"clear": True}).status_code == 200
    assert eventually(lambda: comfy.get("/history").text) == "{}"
