"""The seed document's dispatch envelope, all the way: S3, the agent as a process, ComfyUI, callbacks."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import pytest
import requests
from PIL import Image

from settee.backends.comfy.prompts import folder_of
from settee.doors.agent.contract import example
from tests.support.agent import TEMPLATE, Agent, Store, comfy, parameters
from tests.support.models import safetensors
from tests.support.receiver import Receiver
from tests.support.s3 import S3Server
from tests.support.waiting import eventually

EXAMPLE: dict[str, Any] = example("envelope")

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
        eventually(lambda: any(call.path.endswith("completion") for call in receiver.calls))
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

    assert artifact["rel_path"] == f"{folder_of(ended['promptId'])}/render_00001_.png"
    assert artifact["abs_path"] == str(agent.outputs / artifact["rel_path"])

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


def ran(agent: Agent, envelope: dict[str, Any]) -> dict[str, Any]:
    """The result of a job that must succeed."""
    answer = agent.post(envelope)
    assert answer.status_code == 202, answer.text
    ended = agent.ended(envelope["jobId"])
    assert ended["state"] == "SUCCESS", ended
    result: dict[str, Any] = ended["result"]
    return result


def applied(agent: Agent, job_id: str) -> dict[str, Any]:
    """The graph as ComfyUI got it."""
    (path,) = (path for path in (agent.outputs / "logs").glob("*/applied-workflow.json") if path.parent.name == job_id)
    found: dict[str, Any] = json.loads(path.read_text())
    return found


PROMPTS = {
    "latin": "Ein Bär mit Hut, façade, naïve — “quoted” 'text' \\ {json} %41",
    "cyrillic": "неоновый самурай",
    "greek": "νέον σαμουράι",
    "arabic": "ساموراي نيون",
    "hebrew": "סמוראי ניאון",
    "hindi": "नियॉन समुराई",
    "thai": "ซามูไรนีออน",
    "chinese": "霓虹武士",
    "japanese": "ネオンの侍　（全角）",
    "korean": "네온 사무라이",
    "emoji": "👩🏽‍🚀🏳️‍🌈 with joiners",
    "lines": "first line\nsecond line\r\n\tthird  ",
    "spaces": "  spaces at both ends  ",
}


@pytest.mark.parametrize("script", sorted(PROMPTS))
def test_prompts_arrive(script: str, agent: Agent, store: Store) -> None:
    prompt, job_id = PROMPTS[script], f"prompt-{script}"
    given = parameters(prompt=prompt, negativePrompt=f"not {prompt}")
    user = {"id": "1", "username": f"user {prompt.splitlines()[0].strip()}"}
    result = ran(agent, store.envelope(jobId=job_id, parameters=given, user=user))
    graph = applied(agent, job_id)
    assert (graph["3"]["inputs"]["text_g"], graph["4"]["inputs"]["text_l"]) == (prompt, f"not {prompt}")
    found = store.s3.admin.head_object(Bucket=store.outputs, Key=result["artifacts"][0]["s3"]["key"])["Metadata"]
    said = {name: unquote(value) for name, value in found.items()}
    assert (said["prompt"], said["negative_prompt"]) == (prompt, f"not {prompt}")
    assert (said["user"], said["job_id"]) == (user["username"], job_id)


def test_a_prompt_longer_than_metadata(agent: Agent, store: Store) -> None:
    prompt = "漢字" * 5000
    result = ran(agent, store.envelope(jobId="long", parameters=parameters(prompt=prompt)))
    found = store.s3.admin.head_object(Bucket=store.outputs, Key=result["artifacts"][0]["s3"]["key"])["Metadata"]
    assert unquote(found["prompt"].removesuffix("...")) == prompt[: len(unquote(found["prompt"])) - 3]
    assert found["seed"] == "987654321"


def chain(loaders: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The template with so many LoRA loaders in a chain, and the bindings that it has places for."""
    graph = {key: json.loads(json.dumps(node)) for key, node in TEMPLATE.items() if key != "2"}
    source = "1"
    for number in range(loaders):
        node = json.loads(json.dumps(TEMPLATE["2"]))
        node["inputs"] |= {"model": [source, 0], "clip": [source, 1]}
        source = f"{20 + number}"
        graph[source] = node
    graph["6"]["inputs"]["model"] = [source, 0]
    graph["3"]["inputs"]["clip"] = graph["4"]["inputs"]["clip"] = [source, 1]
    bindings = [each for each in EXAMPLE["workflowParameters"] if not each["parameter"].startswith("primary_lora")]
    return graph, bindings


@pytest.mark.parametrize("loaders", [0, 1, 2])
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_lora_chains_run(count: int, loaders: int, agent: Agent, store: Store) -> None:
    keys = [f"styles/style-{number}.safetensors" for number in range(count)]
    for number, key in enumerate(keys):
        store.put(store.loras, key, safetensors(100, 10 + number))
    graph, bindings = chain(loaders)
    strengths = [{"key": key, "strength": 0.25 * (number + 1)} for number, key in enumerate(keys)]
    extra = {**EXAMPLE["parameters"]["extra"], "loras": strengths}
    job_id = f"{count}-in-{loaders}"
    result = ran(
        agent,
        store.envelope(
            jobId=job_id,
            workflow={"id": "w", "inline": graph},
            loras=[{"bucket": store.loras, "key": key} for key in keys],
            workflowParameters=bindings,
            parameters=parameters(extra=extra),
        ),
    )
    nodes = applied(agent, job_id)
    found, at = [], nodes["6"]["inputs"]["model"][0]
    while nodes[at]["class_type"] == "LoraLoader":
        inputs = nodes[at]["inputs"]
        found.append((inputs["lora_name"], inputs["strength_model"], inputs["strength_clip"]))
        assert inputs["clip"] == [inputs["model"][0], 1]
        at = inputs["model"][0]
    assert nodes[at]["class_type"] == "CheckpointLoaderSimple"
    wanted = [(f"style-{number}.safetensors", 0.25 * (number + 1), 0.25 * (number + 1)) for number in range(count)]
    assert found[::-1] == wanted
    assert [lora["name"] for lora in result["params"]["loras"]] == [name for name, _, _ in wanted]
    assert not list((agent.comfy.root / "models" / "loras").glob("style-*")), "ephemeral LoRAs go"


ANIMATED = {"filename_prefix": "a", "fps": 6.0, "lossless": True, "quality": 80, "method": "default"}


def test_all_kinds_of_outputs(agent: Agent, store: Store) -> None:
    graph = {
        **TEMPLATE,
        "9": {"class_type": "SetteeSaveFiles", "inputs": {"kind": "all", "filename_prefix": "x/y", "text": "said"}},
        "10": {"class_type": "SaveAnimatedWEBP", "inputs": {**ANIMATED, "images": ["7", 0]}},
        "11": {"class_type": "PreviewAny", "inputs": {"source": "shown"}},
    }
    result = ran(
        agent, store.envelope(jobId="all kinds", workflow={"id": "w", "inline": graph}, parameters=parameters())
    )
    found: dict[str, list[tuple[str, str]]] = {}
    for artifact in result["artifacts"]:
        body = store.s3.admin.get_object(Bucket=artifact["s3"]["bucket"], Key=artifact["s3"]["key"])["Body"].read()
        assert len(body) == artifact["bytes"]
        found.setdefault(artifact["kind"], []).append((artifact["s3"]["key"].rpartition(".")[2], artifact["mime"]))
    kinds = {kind: sorted(suffix for suffix, _ in each) for kind, each in found.items()}
    assert kinds == {
        "images": ["gif", "png", "webp"],
        "videos": ["mp4"],
        "audio": ["wav"],
        "models_3d": ["glb"],
        "texts": ["txt", "txt", "txt"],
    }
    numbers = sorted(artifact["s3"]["key"].rpartition("/")[2][:2] for artifact in result["artifacts"])
    assert numbers == [f"{number + 1:02d}" for number in range(len(numbers))]


@pytest.mark.parametrize("strategy", ["persistent", "ephemeral"])
def test_a_lora_that_was_trained_anew_is_used(strategy: str, agent: Agent, store: Store) -> None:
    """Under the same key, of the same size."""
    key, pictures = f"retrained-{strategy}.safetensors", []
    for turn in range(2):
        store.put(store.loras, key, safetensors(100, 50 + turn))
        lora = {"bucket": store.loras, "key": key, "cacheStrategy": strategy}
        job_id = f"{strategy} {turn}"
        result = ran(agent, store.envelope(jobId=job_id, loras=[lora], parameters=parameters()))
        pictures.append(result["artifacts"][0]["sha256"])
    assert pictures[0] != pictures[1]


def test_a_template_may_begin_with_a_picture_that_lies_in_comfyuis_input_folder(agent: Agent, store: Store) -> None:
    Image.new("RGB", (64, 64), (200, 30, 30)).save(agent.comfy.input_dir / "base.png")
    graph = {key: json.loads(json.dumps(node)) for key, node in TEMPLATE.items() if key != "5"}
    graph["20"] = {"class_type": "LoadImage", "inputs": {"image": "base.png"}}
    graph["5"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["20", 0], "vae": ["1", 2]}}
    bindings = [each for each in EXAMPLE["workflowParameters"] if each["node"] != 5]
    given = {"workflowParameters": bindings, "parameters": parameters()}
    assert ran(agent, store.envelope(jobId="from a picture", workflow={"id": "w", "inline": graph}, **given))
    assert (agent.comfy.input_dir / "base.png").is_file()

    graph["20"]["inputs"]["image"] = "nowhere.png"
    agent.post(store.envelope(jobId="no picture", workflow={"id": "w", "inline": graph}, **given))
    ended = agent.ended("no picture")
    assert (ended["state"], ended["error"]["reason_code"]) == ("FAILED", "VALIDATION_ERROR")
    assert "nowhere.png" in ended["error"]["reason"]
    assert "`images`" not in ended["error"]["reason"]


def test_classes_and_names_that_the_engine_takes_in_another_spelling_pass(agent: Agent, store: Store) -> None:
    """ComfyUI 0.33 replaces T2IAdapterLoader, whose input has another name then; an override names the old one."""
    folder = agent.comfy.root / "models" / "controlnet" / "XL"
    folder.mkdir(parents=True)
    (folder / "edges.safetensors").write_bytes(safetensors(100, 60))
    graph = {
        **TEMPLATE,
        "20": {"class_type": "T2IAdapterLoader", "inputs": {"t2i_adapter_name": "none"}},
        "21": {"class_type": "PreviewAny", "inputs": {"source": ["20", 0]}},
    }
    override = {"node": "20", "path": "inputs.t2i_adapter_name", "value": "XL\\edges.safetensors"}
    given = {"workflow": {"id": "w", "inline": graph}, "workflowOverrides": [override], "parameters": parameters()}
    result = ran(agent, store.envelope(jobId="replaced", **given))
    assert "8" in {artifact["node_id"] for artifact in result["artifacts"]}
    assert any("XL/edges.safetensors" in warning for warning in result["warnings"])


def test_previews_are_no_outputs(agent: Agent, store: Store) -> None:
    graph = {**TEMPLATE, "9": {"class_type": "PreviewImage", "inputs": {"images": ["7", 0]}}}
    result = ran(
        agent, store.envelope(jobId="previews", workflow={"id": "w", "inline": graph}, parameters=parameters())
    )
    assert [artifact["node_id"] for artifact in result["artifacts"]] == ["8"]
    assert "1 preview file(s) were not returned" in result["warnings"]
