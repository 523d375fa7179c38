"""The seed document's dispatch envelope, all the way: S3, the agent as a process, ComfyUI, callbacks."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote

import pytest
import requests
from PIL import Image

from settee.doors.agent.envelope_example import EXAMPLE
from tests.support.agent import Agent, Store, comfy
from tests.support.receiver import Receiver
from tests.support.s3 import S3Server
from tests.support.waiting import eventually

STATES = ["QUEUED", "PREPARING", "MATERIALIZING", "SUBMITTED", "RUNNING", "UPLOADING", "SUCCESS"]


@pytest.fixture(scope="module")
def store(s3: S3Server) -> Store:
    return Store(s3)


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory, s3: S3Server) -> Iterator[Agent]:
    root: Path = tmp_path_factory.mktemp("agent")
    with comfy(root / "comfy") as server, Agent(root / "agent", s3, server) as agent:
        yield agent


def test_the_seeds_envelope_runs_from_end_to_end(agent: Agent, store: Store) -> None:
    with Receiver() as receiver:
        envelope = store.envelope(receiver)
        answer = agent.post(envelope)
        assert answer.status_code == 202, answer.text
        assert answer.json() == {"status": "accepted", "jobId": EXAMPLE["jobId"]}
        ended = agent.ended(EXAMPLE["jobId"])
        assert ended["state"] == "SUCCESS", (ended, agent.log_path.read_text())
        eventually(lambda: any(call.path.endswith("completion") for call in receiver.calls), timeout_s=10)
        calls = list(receiver.calls)

    states = list(dict.fromkeys(call.state for call in calls if call.path.endswith("status")))
    assert states == STATES
    numbers = [call.body["heartbeat_seq"] for call in calls if call.path.endswith("status")]
    assert numbers == sorted(set(numbers))
    assert calls[-1].path.endswith("completion")
    assert calls[-1].key == f"{EXAMPLE['jobId']}-SUCCESS"
    done = calls[-1].body
    assert done["params"] == {
        "model": "sdxl_base_1.0.safetensors",
        "vae": None,
        "clip": None,
        "seed": 987654321,
        "steps": 80,
        "cfg": 7.5,
        "sampler": "dpmpp_2m_sde_gpu",
        "scheduler": "karras",
        "denoise": 1.0,
        "width": 832,
        "height": 1216,
        "loras": done["params"]["loras"],
    }
    assert [lora["name"] for lora in done["params"]["loras"]] == ["cyber_fantasy.safetensors"]
    (artifact,) = done["artifacts"]
    assert artifact["s3"]["key"] == f"{EXAMPLE['output']['prefix']}/01_987654321.png"

    found = store.s3.admin.get_object(Bucket=store.outputs, Key=artifact["s3"]["key"])
    content = found["Body"].read()
    with Image.open(io.BytesIO(content)) as image:
        image.load()
        assert image.size == (832, 1216)
    assert requests.get(artifact["s3"]["url"], timeout=10).content == content
    metadata = {name: unquote(value) for name, value in found["Metadata"].items()}
    assert metadata["prompt"] == "portrait of a neon samurai"
    assert metadata["negative_prompt"] == "lowres, blurry"
    assert metadata["sha256"] == artifact["sha256"]

    # What stays, and what goes.
    assert (agent.comfy.root / "models" / "checkpoints" / "sdxl_base_1.0.safetensors").is_file()
    assert not list((agent.comfy.root / "models" / "loras").glob("*.safetensors"))
    archive = agent.outputs / "logs" / EXAMPLE["jobId"]
    events = [json.loads(line)["event"] for line in (archive / "events.jsonl").read_text().splitlines()]
    assert list(dict.fromkeys(events)) == [
        "queued", "preparing", "materializing", "submitted", "running", "uploading", "succeeded"
    ]  # fmt: skip
    applied = json.loads((archive / "applied-workflow.json").read_text())
    assert applied["6"]["inputs"]["steps"] == 80
    assert applied["3"]["inputs"]["text_g"] == "portrait of a neon samurai"
    (manifest,) = archive.glob("manifest-*.json")
    assert json.loads(manifest.read_text())["envelope"]["jobId"] == EXAMPLE["jobId"]
