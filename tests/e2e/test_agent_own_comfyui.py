"""An agent that starts its ComfyUI itself (comfyui.dir): restarts it, and ends it."""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from settee.backends.comfy.process import free_port
from settee.backends.comfy.prompts import folder_of
from tests.support.agent import Agent, HeldStore, is_idle, parameters
from tests.support.embedded import EmbeddedServer, comfyui_in
from tests.support.receiver import Receiver
from tests.support.waiting import eventually

LONG = parameters(steps=10_000)


@pytest.fixture
def comfyui(tmp_path: Path) -> EmbeddedServer:
    """The one that the agent starts: its address and models."""
    return EmbeddedServer(tmp_path / "comfy", port=free_port())


@pytest.fixture
def agent(tmp_path: Path, store: HeldStore, comfyui: EmbeddedServer) -> Iterator[Agent]:
    folder = comfyui_in(tmp_path / "ComfyUI", "--fault", "step_slow=0.02")
    own = {"api_url": None, "dir": str(folder), "port": comfyui.port}
    with Agent(tmp_path / "agent", store, comfyui, comfyui=own) as agent:
        yield agent
    assert "Traceback" not in agent.log_path.read_text()
    eventually(lambda: not answers(comfyui), what="ComfyUI ends with its agent")


def answers(comfyui: EmbeddedServer) -> bool:
    try:
        return requests.get(f"{comfyui.url}/system_stats", timeout=5).ok
    except requests.ConnectionError:
        return False


def process_id(comfyui: EmbeddedServer) -> int | None:
    """Of the ComfyUI that listens there."""
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):  # it has ended
            words = path.read_bytes().split(b"\0")
            if str(comfyui.port).encode() in words and any(word.endswith(b"main.py") for word in words):
                return int(path.parent.name)
    return None


def test_a_job(agent: Agent, store: HeldStore) -> None:
    assert agent.post(store.envelope(jobId="a job")).status_code == 202
    ended = agent.ended("a job", 60)
    assert ended["state"] == "SUCCESS", (ended, agent.log_path.read_text())
    [artifact] = ended["result"]["artifacts"]
    path = Path(artifact["abs_path"])
    assert artifact["rel_path"] == f"{folder_of(ended['promptId'])}/render_00001_.png"
    assert path == agent.root / "temp" / "workspace" / "output" / artifact["rel_path"]
    assert path.parent.parent.is_dir()
    assert not path.exists(), "it is wiped with its job"


def test_comfyui_dies_under_a_job_and_comes_back(agent: Agent, store: HeldStore, comfyui: EmbeddedServer) -> None:
    agent.post(store.envelope(jobId="unlucky", parameters=LONG, cancelToken="stop"))
    eventually(lambda: agent.state("unlucky") == "RUNNING", 60)
    killed = process_id(comfyui)
    assert killed is not None
    os.kill(killed, signal.SIGKILL)
    eventually(lambda: answers(comfyui) and process_id(comfyui) != killed, 60)
    eventually(lambda: not is_idle(comfyui), 30, "the job runs once more")
    assert agent.cancel("stop") == 200
    assert agent.ended("unlucky")["state"] == "CANCELED"
    assert is_idle(comfyui)
    agent.post(store.envelope(jobId="next"))
    assert agent.ended("next")["state"] == "SUCCESS"
    assert "settee_comfyui_restarts 1.0" in agent.session.get(f"{agent.url}/metrics", timeout=5).text


def test_killed_with_its_comfyui(agent: Agent, store: HeldStore, comfyui: EmbeddedServer) -> None:
    with Receiver() as receiver:
        agent.post(store.envelope(receiver, jobId="a job", parameters=LONG))
        eventually(lambda: agent.state("a job") == "RUNNING", 60)
        agent.kill()
        eventually(lambda: not answers(comfyui), what="ComfyUI ends with its agent")
        agent.start()
        receiver.wait_for_key("a job-FAILED")
        agent.post(store.envelope(receiver, jobId="next"))
        assert agent.ended("next", 60)["state"] == "SUCCESS"
