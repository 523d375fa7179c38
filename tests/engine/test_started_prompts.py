"""Prompts that a job's nodes start: followed, returned, failed and stopped with the job.

The classes are those of tests/support/comfy_pack/embedded.py; a real ComfyUI at COMFY_URL has them with
tests/support/comfy_pack and settee/comfy_nodes/settee_patches in its custom_nodes, without which these are skipped.
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import pytest
import requests

from settee.backends.backend import Limits
from settee.backends.comfy.prompts import Prompts
from settee.backends.comfy.watcher import Watcher
from settee.base.errors import ExecutionFailed, JobCanceled, JobTimeout
from settee.base.job import Cancel, Progress, Status
from settee.comfyui.event_socket import Event, EventSocket, ImageEvent
from tests.support.embedded import EmbeddedServer
from tests.support.rig import Rig, empty, slow, told, with_node
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("comfy_pack")


def batches(count: int = 3, **inputs: Any) -> dict[str, Any]:
    return with_node("BatchManagerLike", filename_prefix="v", batches=count, requeue=0, **inputs)


@pytest.mark.parametrize("how", ["queue", "post"])
def test_prompts_that_a_job_starts_are_followed_and_their_outputs_returned(rig: Rig, how: str) -> None:
    graph = batches(how=how)
    graph["9"] = empty()["9"]
    result = rig.run(graph)
    assert sorted(output.node_id for output in result.outputs) == ["2", "9"]
    assert any("2 more prompt" in warning for warning in result.warnings)
    rig.engine.backend._session.prompts.settle()
    history = requests.get(f"{rig.url}/history", timeout=5).json()
    assert not [entry for entry in history.values() if "BatchManagerLike" in json.dumps(entry["prompt"])]


def test_prompts_that_ended_unseen_while_another_was_followed_are_not_lost(rig: Rig) -> None:
    def look_away(_: Progress) -> None:
        """Hold the watcher at its first event until some of the prompts have ended, and one waits."""
        if not is_over:
            is_over.append(True)
            first = rig.running_id()
            eventually(lambda: rig.running_id() not in (first, ""), what="a second batch")
            rig.fault("executor_dead")
            eventually(lambda: not rig.queue()["queue_running"], what="the end of what runs")
            rig.fault("executor_dead", None)

    is_over: list[bool] = []
    result = rig.run(batches(count=30), on_progress=lambda step: look_away(step) if step.node_id else None)
    assert any("29 more prompt" in warning for warning in result.warnings), result.warnings


def test_a_prompt_that_ended_before_it_is_followed_is_not_waited_for(own_rig: Rig) -> None:
    """Two batch managers in one workflow start more prompts than one, and each cost a second."""
    both = []
    for number in range(2):
        answer = requests.post(f"{own_rig.url}/prompt", json={"prompt": empty(number)}, timeout=5).json()
        both.append(answer["prompt_id"])
        eventually(lambda: requests.get(f"{own_rig.url}/history/{both[-1]}", timeout=5).json(), what="its end")

    class Ending(EventSocket):
        is_open = True

        def receive(self, until: float, cancel: Cancel | None = None) -> Iterator[Event | ImageEvent]:
            assert watcher.prompt_id == both[0], "waits for an event that came before"
            yield Event("executing", {"node": None, "prompt_id": both[0]})

    class Starting(Prompts):
        def started(self, prompt_id: str, client_id: str | None, known: Collection[str], newest: int = 0) -> list[str]:
            return [each for each in both if each not in known]

    prompts = Starting(own_rig.server, own_rig.settings, lambda _: None)
    with Cancel() as cancel:
        limits = Limits(cancel=cancel, deadline=time.monotonic() + 10)
        socket, settings = Ending(own_rig.url), own_rig.settings
        watcher = Watcher(own_rig.server, socket, both[0], empty(), settings, lambda *_, **__: None, prompts, limits)
        entries = [*watcher.entries()]
    assert [bool(entry["outputs"]) for entry in entries] == [True, True]


def test_a_prompt_that_a_job_started_fails_the_job(rig: Rig) -> None:
    with pytest.raises(ExecutionFailed, match="the last batch failed"):
        rig.run(batches(fail=True))
    assert rig.is_idle()


@pytest.mark.parametrize("how", ["queue", "post"])
def test_cancel_stops_the_prompts_that_a_job_started(rig: Rig, how: str) -> None:
    run = rig.start(batches(count=10_000, how=how))
    first = rig.running_id()
    eventually(lambda: rig.running_id() != first, what="a second batch")
    run.cancel.set()
    with pytest.raises(JobCanceled):
        run.end()
    assert rig.is_idle()
    assert len(rig.run(empty(201)).outputs) == 1


def test_the_deadline_holds_for_the_prompts_that_a_job_started(rig: Rig) -> None:
    started = time.monotonic()
    with pytest.raises(JobTimeout):
        rig.run(batches(count=10_000), timeout_s=1)
    assert time.monotonic() - started < 10
    assert rig.is_idle()


def test_a_failure_stops_what_the_failed_prompt_had_queued(rig: Rig) -> None:
    graph = batches(count=10_000)
    graph["3"] = {"class_type": "Teller", "inputs": {"said": "no JSON"}}
    with pytest.raises(ExecutionFailed):
        rig.run(graph)
    assert rig.is_idle()


def test_prompts_of_others_on_a_server_that_is_not_ours_are_left_alone(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "comfy") as server, Rig(tmp_path / "own", comfy_url=server.url) as rig:
        others = {"prompt": slow(steps=40, delay_ms=20), "client_id": "another"}
        run = rig.start(slow(steps=10, delay_ms=20))
        run.reach(Status.RUNNING)
        other = requests.post(f"{server.url}/prompt", json=others, timeout=5).json()["prompt_id"]
        assert len(run.end().outputs) == 1
        assert len(rig.run(batches()).outputs) == 1
        eventually(lambda: requests.get(f"{server.url}/history/{other}", timeout=5).json(), what="the other's prompt")
        assert requests.get(f"{server.url}/history/{other}", timeout=5).json()[other]["status"]["completed"]


def test_what_an_earlier_jobs_nodes_queued_after_its_end_does_not_run_into_the_next(own_rig: Rig) -> None:
    assert own_rig.run(empty(3)).outputs
    for _ in range(3):
        body = {"prompt": slow(steps=1000, delay_ms=20)}
        requests.post(f"{own_rig.url}/prompt", json=body, timeout=5)
    started = time.monotonic()
    assert [output.node_id for output in own_rig.run(empty(4)).outputs] == ["9"]
    assert time.monotonic() - started < 10
    assert own_rig.is_idle()


def test_what_ended_before_a_job_is_none_of_its_prompts(own_rig: Rig) -> None:
    def ran(word: str) -> str:
        prompt_id = str(requests.post(f"{own_rig.url}/prompt", json={"prompt": told(text=[word])}).json()["prompt_id"])
        eventually(lambda: requests.get(f"{own_rig.url}/history/{prompt_id}", timeout=5).json(), what="its end")
        return prompt_id

    _, own, started = ran("of an earlier job's thread"), ran("the job"), ran("started by it")
    prompts = own_rig.engine.backend._session.prompts
    assert prompts.started(own, "client", {own}) == [started]
    assert prompts.started(own, "client", {own, started}) == []


def test_a_started_prompt_with_a_graph_of_its_own_is_stopped_on_a_server_that_is_not_ours(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "comfy") as server, Rig(tmp_path / "own", comfy_url=server.url) as rig:
        run = rig.start(slow(steps=1000, delay_ms=20))
        run.reach(Status.RUNNING)
        socket = rig.engine.backend._session._socket
        assert socket is not None
        body = {"prompt": slow(steps=1000, delay_ms=20), "client_id": socket.client_id}
        requests.post(f"{server.url}/prompt", json=body, timeout=5)
        run.cancel.set()
        with pytest.raises(JobCanceled):
            run.end()
        assert rig.is_idle()


def test_what_a_job_started_after_its_end_is_stopped_on_a_server_that_is_not_ours(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "comfy") as server, Rig(tmp_path / "own", comfy_url=server.url) as rig:
        assert rig.run(empty(5)).outputs
        socket = rig.engine.backend._session._socket
        assert socket is not None
        body = {"prompt": slow(steps=1000, delay_ms=20), "client_id": socket.client_id}
        requests.post(f"{server.url}/prompt", json=body, timeout=5)
        assert [output.node_id for output in rig.run(empty(6), timeout_s=8).outputs] == ["9"]
        assert rig.is_idle()
