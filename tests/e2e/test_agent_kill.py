"""An agent that is killed, or told to end, in every state of a job: one terminal callback, and nothing runs on."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from tests.support.agent import HOLDS, Agent, HeldStore, comfy, held_in, is_idle, parameters
from tests.support.embedded import EmbeddedServer
from tests.support.receiver import Receiver
from tests.support.waiting import eventually


@pytest.fixture
def store() -> Iterator[HeldStore]:
    with HeldStore().running() as store:
        assert isinstance(store, HeldStore)
        yield store


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with comfy(tmp_path_factory.mktemp("comfy"), faults={"step_slow": 0.05}) as server:
        yield server


def terminal(receiver: Receiver) -> list[str]:
    return [call.key for call in receiver.calls if not call.path.endswith("status")]


@pytest.mark.parametrize("state", ["QUEUED", *HOLDS])
def test_killed(state: str, tmp_path: Path, store: HeldStore, server: EmbeddedServer) -> None:
    job_id = f"killed in {state}"
    agent = Agent(tmp_path, store, server, paths={"outputs": str(server.output_dir)}, state_dir=str(tmp_path / "state"))
    with Receiver() as receiver, agent:
        with held_in(state, store, server) as parameters:
            envelope = store.envelope(receiver, jobId=job_id, parameters=parameters)
            assert agent.post(envelope, headers={"Idempotency-Key": "one"}).status_code == 202
            if state != "QUEUED":
                eventually(lambda: agent.state(job_id) == state, what=state)
            agent.kill()
            assert terminal(receiver) == []
        agent.start()
        eventually(lambda: not agent.is_busy(), what="the slot is free")
        assert is_idle(server), "a free slot is a ComfyUI that is idle"
        call = receiver.wait_for_key(f"{job_id}-FAILED")
        assert (call.body["state"], call.body["reason_code"]) == ("FAILED", "SYSTEM_ERROR")
        told = agent.ended(job_id)
        assert (told["state"], told["error"]["reason_code"]) == ("FAILED", "SYSTEM_ERROR")
        history = requests.get(f"{server.url}/history", timeout=5).text
        assert "neon samurai" not in history, "its prompt is readable in ComfyUI's history"
        assert not list((server.root / "models" / "loras").iterdir()), "the LoRA of the job stays"
        # A dispatch that was answered is no other job when it is sent again, after a restart too.
        again = agent.post(envelope, headers={"Idempotency-Key": "one"})
        assert (again.status_code, again.json()["jobId"], agent.is_busy()) == (202, job_id, False)

        assert agent.post(store.envelope(receiver, jobId=job_id)).status_code == 202
        assert agent.ended(job_id)["state"] == "SUCCESS", agent.log_path.read_text()
        receiver.wait_for_key(f"{job_id}-SUCCESS")
        assert [path.name for path in server.output_dir.glob("settee-*")] == []
    assert terminal(receiver) == [f"{job_id}-FAILED", f"{job_id}-SUCCESS"]


def test_killed_while_the_job_runs_once_more(tmp_path: Path, store: HeldStore, server: EmbeddedServer) -> None:
    """What ran out of memory is submitted again, as another prompt."""
    agent = Agent(tmp_path, store, server, paths={"outputs": str(server.output_dir)}, state_dir=str(tmp_path / "state"))
    failed = server.stats()["prompts_failed"]
    with agent:
        server.fault("oom", 1)
        agent.post(store.envelope(jobId="a job", parameters=parameters(steps=10_000)))
        eventually(lambda: server.stats()["prompts_failed"] > failed and not is_idle(server), what="it runs again")
        agent.kill()
        assert not is_idle(server)
        agent.start()
        eventually(lambda: is_idle(server) and not agent.is_busy(), what="ComfyUI is idle")
        server.fault("oom", 1)
        agent.post(store.envelope(jobId="next"))
        ended = agent.ended("next")
        assert ended["state"] == "SUCCESS"
        assert "ran out of memory" in str(ended["result"]["warnings"])
        assert [path.name for path in server.output_dir.glob("settee-*")] == []


@pytest.mark.parametrize("state", ["RUNNING", "UPLOADING"])
def test_told_to_end(state: str, tmp_path: Path, store: HeldStore, server: EmbeddedServer) -> None:
    """Somebody who follows the job sees its end, and does not hold the agent up."""
    with Receiver() as receiver, Agent(tmp_path, store, server) as agent:
        with held_in(state, store, server) as parameters:
            agent.post(store.envelope(receiver, jobId="a job", parameters=parameters))
            eventually(lambda: agent.state("a job") == state, what=state)
            assert state == "RUNNING" or store.is_holding.wait(20), "S3 is silent with the upload under way"
            with agent.session.get(f"{agent.url}/jobs/a job/events", stream=True, timeout=20) as events:
                assert agent.end(signal.SIGTERM) == 0
                told = [json.loads(line[5:]) for line in events.iter_lines() if line.startswith(b"data:")]
        assert is_idle(server)
        call = receiver.wait_for_key("a job-FAILED")
        assert (call.body["state"], call.body["reason_code"]) == ("FAILED", "SYSTEM_ERROR")
        assert told[-1]["state"] == "FAILED"
        assert receiver.states[-2:] == ["FAILED", "FAILED"]
    assert terminal(receiver) == ["a job-FAILED"]
    assert "Traceback" not in agent.log_path.read_text()


def test_what_was_never_delivered_arrives_after_a_restart(
    tmp_path: Path, store: HeldStore, server: EmbeddedServer
) -> None:
    with Receiver() as receiver, Agent(tmp_path, store, server) as agent:
        receiver.down()
        agent.post(store.envelope(receiver, jobId="a job"))
        told = agent.ended("a job")
        assert told["state"] == "SUCCESS"
        agent.kill()
        receiver.up()
        agent.start()
        assert agent.ended("a job") == told
        receiver.wait_for_key("a job-SUCCESS")
    assert terminal(receiver) == ["a job-SUCCESS"]
