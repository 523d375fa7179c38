"""The client on a bare ComfyUI that loses sockets, answers, prompts, files or its life: no false success, no wait
without an end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
import requests

from settee.client.client_errors import JobStopped, NetworkError
from settee.client.follow import follow
from settee.client.targets import Status, comfy, comfy_run
from settee.client.targets.comfy import Comfy
from settee.comfyui import follower
from tests.support.bare_comfy import end, image, images, is_idle, loading, ran, running, sent
from tests.support.embedded import EmbeddedServer
from tests.support.rig import empty, png, slow
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def _server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("comfy"), args=["--preview-method", "auto"]) as server:
        yield server


@pytest.fixture
def server(_server: EmbeddedServer) -> Iterator[EmbeddedServer]:
    yield _server
    _server.clear_faults()
    requests.post(f"{_server.url}/queue", json={"clear": True}, timeout=5)
    requests.post(f"{_server.url}/interrupt", timeout=5)
    eventually(lambda: is_idle(_server), what="an idle ComfyUI")


@pytest.fixture
def target(server: EmbeddedServer) -> Iterator[Comfy]:
    target = Comfy(server.url)
    yield target
    target.close()


# --- the socket ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["ws_refuse", "ws_silent", "no_final_message"])
def test_without_the_socket_history_tells_the_end(server: EmbeddedServer, target: Comfy, fault: str) -> None:
    server.fault(fault)
    assert images(ran(target, slow(steps=5, delay_ms=5)))


def test_progress_goes_on_after_the_socket_broke(server: EmbeddedServer, target: Comfy) -> None:
    answer = sent(target, slow(steps=300, delay_ms=10))
    running(target, answer)
    sockets = server.stats()["sockets_opened"]
    server.fault("ws_drop_after", 1)
    eventually(lambda: server.stats()["sockets_opened"] > sockets, what="another socket")
    step = target.status(answer.job_id).progress.get("step", 0)
    eventually(lambda: target.status(answer.job_id).progress.get("step", 0) > step, what="the next step")
    assert images(end(target, answer))


def test_pictures_that_the_socket_lost_are_no_success(server: EmbeddedServer, target: Comfy) -> None:
    graph = {**empty(), **sending("1")}
    server.fault("ws_refuse")
    answer = ran(target, graph)
    assert (answer.status, answer.code) == (Status.FAILED, "output_missing")
    assert "send the job again" in (answer.error or "")
    later = Comfy(server.url)
    assert later.status(sent_id(server)).code == "output_missing", "nor for whoever resumes it"
    later.close()


def test_pictures_sent_while_the_socket_was_broken_are_no_success(server: EmbeddedServer, target: Comfy) -> None:
    """It is open again when the job ends, and may have missed one."""
    answer = sent(target, {**slow(steps=50, delay_ms=10), **sending("5")})
    running(target, answer)
    sockets = server.stats()["sockets_opened"]
    server.fault("ws_drop_after", 1)
    eventually(lambda: server.stats()["sockets_opened"] > sockets, what="another socket")
    assert end(target, answer).code == "output_missing"


def test_previews_are_no_outputs(target: Comfy) -> None:
    """Every step of a sampler sends one over the socket."""
    found = images(ran(target, {**slow(steps=5, delay_ms=5), **sending("5")}))
    assert [item["node_id"] for item in found] == ["9", "2"]


def sending(source: str) -> dict[str, object]:
    """SaveImageWebsocket "2"."""
    return {"2": {"class_type": "SaveImageWebsocket", "inputs": {"images": [source, 0]}}}


def sent_id(server: EmbeddedServer) -> str:
    """The last prompt in history."""
    history = requests.get(f"{server.url}/history", timeout=5).json()
    return list(history)[-1]


def test_pictures_may_come_after_history(
    server: EmbeddedServer, target: Comfy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the last message nobody knows whether all have come."""
    monkeypatch.setattr(comfy_run, "PICTURES_S", 2.0)
    server.fault("no_final_message")
    answer = sent(target, {**empty(), **sending("1")})
    eventually(lambda: is_idle(server) and target.status(answer.job_id).progress.get("percent") == 100.0)
    assert target.status(answer.job_id).status is Status.IN_PROGRESS
    assert end(target, answer).code == "output_missing"


# --- answers ------------------------------------------------------------------------------------------------------


def test_a_lost_answer_to_the_prompt_runs_it_once(server: EmbeddedServer, target: Comfy) -> None:
    before = server.stats()["prompts_queued"]
    server.fault("prompt_lost_response", 1)
    assert images(ran(target, empty(5)))
    assert server.stats()["prompts_queued"] == before + 1


def test_a_lost_answer_hides_no_refused_output(server: EmbeddedServer, target: Comfy) -> None:
    graph = {**empty(6), "3": {"class_type": "LoadImage", "inputs": {"image": "nowhere.png"}}}
    graph["4"] = {"class_type": "SaveImage", "inputs": {"images": ["3", 0], "filename_prefix": "x"}}
    server.fault("prompt_lost_response", 1)
    answer = ran(target, graph)
    assert (answer.status, answer.code) == (Status.FAILED, "workflow_rejected")
    assert "4 SaveImage: it would not run" in (answer.error or "")


def test_a_comfyui_that_freezes_holds_no_wait_beyond_its_limit(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path) as server, closing(Comfy(server.url)) as target:
        answer = sent(target, slow(steps=4000))
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            begun = time.monotonic()
            with pytest.raises(JobStopped, match=r"has not ended within 0\.5 s"):
                follow(target, answer, timeout_s=0.5)
            assert time.monotonic() - begun < 5
        finally:
            os.kill(server.process.pid, signal.SIGCONT)


def test_a_prompt_that_never_shows_up_is_not_sent_twice(
    server: EmbeddedServer, target: Comfy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comfy, "SEARCH_S", 0.2)
    server.fault("prompt_lost_response", 1)
    server.fault("history_lost")
    # It runs and leaves no trace before it is looked for.
    monkeypatch.setattr(target._wire, "item", lambda job_id: None)
    before = server.stats()["prompts_queued"]
    with pytest.raises(NetworkError, match=r"Endpoint\.job\('") as error:
        sent(target, empty(7))
    assert error.value.job_id
    assert server.stats()["prompts_queued"] == before + 1


def test_a_server_that_dies_of_the_prompt_is_told_of_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It goes with the answer: what was asked for is not known, and asked for only so long."""
    monkeypatch.setattr(comfy, "SEARCH_S", 0.3)
    with EmbeddedServer(tmp_path, faults={"crash_on_prompt": 1, "prompt_lost_response": 1}) as server:
        target = Comfy(server.url)
        monkeypatch.setattr(target._wire, "item", lambda job_id: target._wire.queue() and None)
        started = time.monotonic()
        with pytest.raises(NetworkError, match=r"Endpoint\.job\('"):
            sent(target, empty())
        assert time.monotonic() - started < 30
        target.close()


def test_comfyui_that_fails_while_it_validates(server: EmbeddedServer, target: Comfy) -> None:
    server.fault("prompt_500", 1)
    answer = sent(target, empty())
    assert (answer.status, answer.code) == (Status.FAILED, "workflow_rejected")


# --- prompts ------------------------------------------------------------------------------------------------------


def test_history_that_comes_late(server: EmbeddedServer, target: Comfy) -> None:
    server.fault("history_late", 0.5)
    assert images(ran(target, empty(8)))


@pytest.mark.parametrize("how", ["deleted", "never stored"])
def test_a_prompt_that_vanishes_is_lost(
    server: EmbeddedServer, target: Comfy, how: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(follower, "LOST_AFTER_S", 0.2)
    monkeypatch.setattr(comfy_run, "PICTURES_S", 0.2)
    if how == "deleted":
        first = sent(target, slow(steps=4000))
        answer = sent(target, empty())
        assert target.status(answer.job_id).status is Status.IN_QUEUE
        requests.post(f"{server.url}/queue", json={"delete": [answer.job_id]}, timeout=5)
    else:
        server.fault("history_lost")
        answer = sent(target, empty())
    lost = end(target, answer)
    assert (lost.status, lost.code) == (Status.FAILED, "prompt_lost")
    if how == "deleted":
        assert target.status(first.job_id).status is Status.IN_PROGRESS
        target.cancel(first.job_id)


def test_interrupted_by_somebody_else(server: EmbeddedServer, target: Comfy) -> None:
    answer = sent(target, slow(steps=4000))
    running(target, answer)
    requests.post(f"{server.url}/interrupt", timeout=5)
    assert end(target, answer).status is Status.CANCELLED


def test_restarted_while_the_job_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "LOST_AFTER_S", 0.2)
    monkeypatch.setattr(comfy_run, "PICTURES_S", 0.2)
    with EmbeddedServer(tmp_path) as server:
        target = Comfy(server.url)
        answer = sent(target, slow(steps=4000))
        running(target, answer)
        server.stop()
        with EmbeddedServer(tmp_path, port=server.port):
            assert end(target, answer, timeout_s=7).code == "prompt_lost", "however lately it was heard of"
        target.close()


def test_a_server_that_runs_nothing_is_told_of(
    server: EmbeddedServer, target: Comfy, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.fault("executor_dead")
    answer = sent(target, empty())
    assert target.status(answer.job_id).progress == {}
    monkeypatch.setattr(comfy_run, "STALL_S", 0.5)
    told = eventually(lambda: target.status(answer.job_id).progress.get("message"))
    assert "has run nothing for" in str(told)
    assert target.status(answer.job_id).status is Status.IN_QUEUE
    target.cancel(answer.job_id)


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", ["delete_outputs", "view_404"])
def test_an_output_that_is_not_there_is_no_success(server: EmbeddedServer, target: Comfy, fault: str) -> None:
    server.fault(fault)
    answer = ran(target, empty(9, prefix="gone"))
    assert (answer.status, answer.code) == (Status.FAILED, "output_missing")
    assert "gone_" in (answer.error or "")
    assert "node 9" in (answer.error or "")


def test_a_part_of_an_upload_is_not_taken_for_the_file(server: EmbeddedServer, target: Comfy) -> None:
    """A full disk leaves one behind."""
    photo = image("a.png", png((70, 80, 90)))
    assert images(ran(target, loading("a.png"), images=[photo]))
    [stored] = list((server.input_dir / "settee").rglob("a.png"))
    stored.write_bytes(stored.read_bytes()[:50])
    assert images(ran(target, loading("a.png"), images=[photo]))
    assert len(list(stored.parent.iterdir())) == 2
