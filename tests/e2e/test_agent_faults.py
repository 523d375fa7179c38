"""What may go wrong around the agent's one job: cancels, receivers, S3, many dispatchers at once."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from settee.doors.agent.contract import example
from tests.support.agent import HOLDS, TEMPLATE, Agent, HeldStore, Store, comfy, held_in, is_idle, parameters
from tests.support.embedded import EmbeddedServer
from tests.support.faulty_s3 import CUT, DENIED, ERROR, LOST
from tests.support.http_double import Reply
from tests.support.receiver import CUT as CUT_CALL
from tests.support.receiver import OK, SILENT, Receiver, then
from tests.support.s3 import S3Server
from tests.support.waiting import eventually

EXAMPLE: dict[str, Any] = example("envelope")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with comfy(tmp_path_factory.mktemp("comfy"), faults={"step_slow": 0.02}) as server:
        yield server


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory, store: HeldStore, server: EmbeddedServer) -> Iterator[Agent]:
    with Agent(tmp_path_factory.mktemp("agent"), store, server) as agent:
        yield agent
        assert "Traceback" not in agent.log_path.read_text()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


# --- cancel ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", ["QUEUED", *HOLDS])
def test_cancel(state: str, agent: Agent, store: HeldStore, server: EmbeddedServer, receiver: Receiver) -> None:
    job_id, before = f"canceled in {state}", store.outputs()
    server.fault("interrupt_slow", 0.3)
    try:
        with held_in(state, store, server) as wanted:
            envelope = store.envelope(receiver, jobId=job_id, parameters=wanted, cancelToken="the-cancel-token")
            assert agent.post(envelope).status_code == 202
            if state != "QUEUED":
                eventually(lambda: agent.state(job_id) == state, what=state)
            assert state != "UPLOADING" or store.is_holding.wait(20), "S3 is silent with the upload under way"
            assert (agent.cancel("another"), agent.cancel(" ")) == (404, 400)
            assert agent.cancel("the-cancel-token") == 200
            # Also where S3 is silent for minutes.
            eventually(lambda: not agent.is_busy(), what="the slot is free")
            assert is_idle(server)
    finally:
        server.fault("interrupt_slow", None)
    call = receiver.wait_for_key(f"{job_id}-CANCELED")
    assert (call.body["state"], call.body["reason_code"]) == ("CANCELED", "CANCELED")
    assert (agent.state(job_id), agent.cancel("the-cancel-token")) == ("CANCELED", 404)
    # What S3 stores when it wakes up is taken back by who sent it.
    eventually(lambda: store.outputs() == before, what="nothing stays in S3")
    assert not list((server.root / "models" / "loras").iterdir())
    archive = agent.outputs / "logs"
    assert all("the-cancel-token" not in path.read_text() for path in archive.rglob("*.json*"))
    assert "the-cancel-token" not in agent.log_path.read_text()


def test_the_slot_is_free_only_when_comfyui_is_idle(agent: Agent, store: HeldStore, server: EmbeddedServer) -> None:
    """Also where a ComfyUI that is not ours takes longer to stop than COMFY_INTERRUPT_S (5 seconds here)."""
    with held_in("RUNNING", store, server) as wanted:
        server.fault("interrupt_slow", 7)
        agent.post(store.envelope(jobId="hard to stop", parameters=wanted, cancelToken="stop"))
        eventually(lambda: agent.state("hard to stop") == "RUNNING")
        assert agent.cancel("stop") == 200
        eventually(lambda: agent.state("hard to stop") == "CANCELED", 7)
        assert not is_idle(server)
        assert agent.post(store.envelope(jobId="too early")).status_code == 409
        eventually(lambda: not agent.is_busy(), what="the slot is free")
        assert is_idle(server)
        server.fault("interrupt_slow", None)
    assert agent.post(store.envelope(jobId="in time")).status_code == 202
    assert agent.ended("in time")["state"] == "SUCCESS"


def test_a_bucket_that_is_not_there_is_found_before_the_render(
    tmp_path: Path, s3: S3Server, server: EmbeddedServer, receiver: Receiver
) -> None:
    store = Store(s3)
    with Agent(tmp_path, s3, server) as agent:
        agent.post({**store.envelope(receiver, jobId="nowhere"), "output": {"bucket": "no-such-bucket", "prefix": ""}})
        ended = agent.ended("nowhere")
    assert ended["error"]["reason_code"] == "VALIDATION_ERROR"
    assert ended["error"]["reason"] == "S3 has no bucket 'no-such-bucket': create it, or set output.bucket"
    assert "SUBMITTED" not in {call.body["state"] for call in receiver.delivered}


def test_a_comfyui_that_is_waited_for_is_named(tmp_path: Path, store: HeldStore) -> None:
    with comfy(tmp_path / "comfy") as gone:
        pass
    with Agent(tmp_path / "agent", store, gone) as agent:
        agent.post(store.envelope(jobId="waits", cancelToken="stop"))
        eventually(lambda: agent.job("waits").get("message") == "waiting for ComfyUI to answer")
        assert agent.cancel("stop") == 200


def test_a_model_that_lands_after_its_job(agent: Agent, store: HeldStore, server: EmbeddedServer) -> None:
    """S3 goes on the moment that the slot is free: what still arrives does not stay, whole or in part."""
    with held_in("MATERIALIZING", store, server) as wanted:
        envelope = store.envelope(jobId="too late", parameters=wanted, cancelToken="the-cancel-token")
        assert agent.post(envelope).status_code == 202
        assert store.is_holding.wait(20)
        assert agent.cancel("the-cancel-token") == 200
        eventually(lambda: not agent.is_busy())
    # One that had landed would be taken for a model that was there before, and stay for good.
    agent.post(store.envelope(jobId="the next one"))
    assert agent.ended("the next one")["state"] == "SUCCESS"
    assert not list((server.root / "models" / "loras").iterdir())


# --- dispatch --------------------------------------------------------------------------------------------


def test_one_of_200(agent: Agent, store: HeldStore, server: EmbeddedServer) -> None:
    with held_in("PREPARING", store, server):
        barrier = threading.Barrier(50)

        def post(number: int) -> int:
            if number < 50:
                barrier.wait(30)
            envelope = store.envelope(jobId=f"job {number}", cancelToken="stop")
            return requests.post(f"{agent.url}/jobs", json=envelope, timeout=60).status_code

        with ThreadPoolExecutor(50) as pool:
            answers = Counter(pool.map(post, range(200)))
        assert answers == {202: 1, 409: 199}
        agent.cancel("stop")
        eventually(lambda: not agent.is_busy())


def test_idempotency(agent: Agent, store: HeldStore, server: EmbeddedServer, receiver: Receiver) -> None:
    envelope = store.envelope(receiver, jobId="once")
    key = {"Idempotency-Key": "the same"}
    with held_in("PREPARING", store, server), ThreadPoolExecutor(10) as pool:
        # At once, as from an impatient proxy.
        answers = list(pool.map(lambda _: requests.post(f"{agent.url}/jobs", json=envelope, headers=key), range(10)))
        assert [answer.status_code for answer in answers] == [202] * 10
        other = agent.post({**envelope, "jobId": "another"}, headers=key)
        assert (other.status_code, "Idempotency-Key" in other.json()["detail"]) == (422, True)
    assert agent.ended("once")["state"] == "SUCCESS"
    assert agent.post(envelope, headers=key).json() == {"status": "accepted", "jobId": "once"}
    assert not agent.is_busy()
    receiver.wait_for_key("once-SUCCESS")
    assert [call.key for call in receiver.calls].count("once-SUCCESS") == 1


# --- receivers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "rule", "tries"),
    [
        ("slow", then(Reply(delay_s=0.5)), 1),
        ("500 then 200", then(Reply(500), Reply(503), OK), 3),
        ("429", then(Reply(429, {"Retry-After": "0"}), OK), 2),
        ("cut", then(CUT_CALL, OK), 2),
        ("silent", then(SILENT, OK), 2),
        ("gone", then(Reply(410)), 1),
        ("redirect", then(Reply(302, {"Location": "/elsewhere"})), 1),
    ],
)
def test_receivers(name: str, rule: Any, tries: int, agent: Agent, store: HeldStore) -> None:
    """Of completions: same key, same bytes; none after one that was delivered, or refused for good."""
    with Receiver(lambda call: rule(call) if call.path.endswith("completion") else OK) as receiver:
        agent.post(store.envelope(receiver, jobId=name))
        assert agent.ended(name)["state"] == "SUCCESS"
        eventually(lambda: len([c for c in receiver.calls if c.path.endswith("completion")]) == tries)
        eventually(lambda: "settee_callbacks_pending 0.0" in metrics(agent))
        calls = [call for call in receiver.calls if not call.path.endswith("status")]
    assert {(call.key, call.raw) for call in calls} == {(f"{name}-SUCCESS", calls[0].raw)}
    assert len(calls) == tries


def test_a_receiver_that_is_down_holds_nobody_up(agent: Agent, store: HeldStore) -> None:
    with Receiver() as receiver, Receiver() as other:
        receiver.down()
        agent.post(store.envelope(receiver, jobId="nobody hears"))
        assert agent.ended("nobody hears")["state"] == "SUCCESS"
        agent.post(store.envelope(other, jobId="somebody does"))
        assert agent.ended("somebody does")["state"] == "SUCCESS"
        other.wait_for_key("somebody does-SUCCESS")
        receiver.up()
        receiver.wait_for_key("nobody hears-SUCCESS", 15)


def metrics(agent: Agent) -> str:
    return agent.session.get(f"{agent.url}/metrics", timeout=5).text


@pytest.mark.parametrize("url", ["/relative/path", "ftp://host/x", "http://169.254.169.254/latest", "http://a b/"])
def test_addresses_that_are_none(url: str, agent: Agent, store: HeldStore) -> None:
    answer = agent.post(store.envelope(callbacks={"status": url}))
    assert answer.status_code == 422, answer.text
    assert answer.json()["problems"][0]["path"] == "callbacks.status"


# --- S3 --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("fault", [CUT, ERROR, LOST])
def test_an_upload_that_breaks_is_tried_again(fault: str, agent: Agent, store: HeldStore) -> None:
    seed = {CUT: 1, ERROR: 2, LOST: 3}[fault]
    hook = store.on_request

    def once(line: str) -> None:
        hook(line)
        if line.startswith("PUT "):
            store.on_request = hook
            store.faults = [fault]

    store.on_request = once
    agent.post(store.envelope(jobId=fault, parameters=parameters(seed=seed)))
    ended = agent.ended(fault)
    assert ended["state"] == "SUCCESS", ended
    (artifact,) = ended["result"]["artifacts"]
    assert len(store.objects[f"outputs/{artifact['s3']['key']}"]) == artifact["bytes"]


def test_an_upload_that_is_refused(agent: Agent, store: HeldStore, receiver: Receiver) -> None:
    hook = store.on_request

    def refused(line: str) -> None:
        hook(line)
        store.then = DENIED if line.startswith("PUT ") else "ok"

    store.on_request = refused
    try:
        agent.post(store.envelope(receiver, jobId="refused", parameters=parameters(seed=77)))
        ended = agent.ended("refused")
    finally:
        store.on_request, store.then = hook, "ok"
    assert (ended["state"], ended["error"]["reason_code"]) == ("FAILED", "SYSTEM_ERROR")
    assert not [key for key in store.outputs() if "_77" in key]
    call = receiver.wait_for_key("refused-FAILED")
    assert store.endpoint_url not in call.raw.decode()
    assert store.secret_key not in agent.log_path.read_text()


def test_a_wrong_checksum(agent: Agent, store: HeldStore, server: EmbeddedServer) -> None:
    lora = {**EXAMPLE["loras"][0], "bucket": "loras", "checksum": "sha256:" + "0" * 64}
    agent.post(store.envelope(jobId="wrong sum", loras=[lora]))
    ended = agent.ended("wrong sum")
    error = ended["error"]
    assert (error["reason_code"], "sha256" in error["reason"]) == ("VALIDATION_ERROR", True), ended
    assert not list((server.root / "models" / "loras").glob("*"))


@pytest.mark.parametrize("what", ["baseModel", "loras", "workflow"])
def test_what_is_not_there(what: str, agent: Agent, store: HeldStore) -> None:
    envelope = store.envelope(jobId=f"no {what}")
    place = envelope[what][0] if what == "loras" else envelope[what]
    place["minioKey" if what == "workflow" else "key"] = "nowhere/to/be/found.safetensors"
    agent.post(envelope)
    error = agent.ended(f"no {what}")["error"]
    assert (error["reason_code"], "nowhere/to/be/found" in error["reason"]) == ("VALIDATION_ERROR", True)


# --- ComfyUI ---------------------------------------------------------------------------------------------


def test_a_model_that_came_since(agent: Agent, store: HeldStore, server: EmbeddedServer) -> None:
    """ComfyUI's answer of before the file was there is not the last word."""
    agent.post(store.envelope(jobId="first"))
    assert agent.ended("first")["state"] == "SUCCESS"
    (server.root / "models" / "vae").mkdir(exist_ok=True)
    model = store.objects[f"models/{EXAMPLE['baseModel']['key']}"]
    (server.root / "models" / "vae" / "new.safetensors").write_bytes(model)
    graph = {**TEMPLATE, "9": {"class_type": "VAELoader", "inputs": {"vae_name": "new.safetensors"}}}
    graph["7"] = {"class_type": "VAEDecode", "inputs": {"samples": ["6", 0], "vae": ["9", 0]}}
    agent.post(store.envelope(jobId="second", workflow={"id": "w", "inline": graph}))
    ended = agent.ended("second")
    assert ended["state"] == "SUCCESS", ended
    assert ended["result"]["params"]["vae"] == "new.safetensors"
