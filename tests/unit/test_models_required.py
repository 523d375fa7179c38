"""Which models a workflow names, which entries supply them, and advice for missing ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import ModelMissing, WorkflowRejected
from settee.base.settings import load
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.problems import explain
from settee.models import spec
from settee.models.required import as_missing, missing_models, named_models, supplying

DATA = Path(__file__).parents[1] / "data"
OBJECT_INFO = json.loads((DATA / "object_info.json").read_text())


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def supplied(workflow: dict[str, Any], models: str) -> list[str]:
    entries = spec.configured(load(models=models))
    return [str(entry.path) for named in named_models(workflow) for entry in supplying(named, entries)]


def test_the_published_workflows_name_the_models_that_a_reader_would_find() -> None:
    counts = {}
    for file in sorted((DATA / "real-workflows").glob("*.api.json")):
        workflow = json.loads(file.read_text())
        counts[file.name] = len(named_models(workflow))
        text = json.dumps([graph_node["inputs"] for graph_node in workflow.values()])
        for named in named_models(workflow):
            assert json.dumps(named.value) in text
            assert named.folders, (file.name, named)
    assert sum(counts.values()) > 100


def test_a_name_means_the_folder_that_its_input_reads() -> None:
    models = "o/r:a.safetensors:vae,o/r:a.safetensors:checkpoints,o/r:a.safetensors:loras"
    assert supplied({"1": node("VAELoader", vae_name="a.safetensors")}, models) == ["vae/a.safetensors"]
    assert supplied({"1": node("SomeLoader", whatever="a.safetensors")}, models) == [
        "vae/a.safetensors",
        "checkpoints/a.safetensors",
        "loras/a.safetensors",
    ]
    # Nothing in its own folder: a custom node may read another one.
    assert supplied({"1": node("X", unet_name="a.safetensors")}, models) != []


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("sdxl/b.safetensors", True),
        ("sdxl\\b.safetensors", True),
        ("SDXL/B.safetensors", True),
        ("b.safetensors", True),
    ],
)
def test_names_below_a_folder(name: str, found: bool) -> None:
    workflow = {"1": node("CheckpointLoaderSimple", ckpt_name=name)}
    assert bool(supplied(workflow, "o/r:b.safetensors:checkpoints/sdxl")) is found
    assert not supplied(workflow, "o/r:bb.safetensors:checkpoints/sdxl")


def test_numbered_inputs_objects_lists_and_wrapped_values() -> None:
    workflow = {
        "1": node("DualCLIPLoader", clip_name1="a.sft", clip_name2="b.sft"),
        "2": node("PowerLora", lora_1={"on": True, "lora": "c.safetensors", "strength": 1}),
        "3": node("Stack", items=[{"deep": ["d.gguf"]}], link=["1", 0], wrapped={"__value__": "e.pt"}),
    }
    assert [named.value for named in named_models(workflow)] == [
        "a.sft",
        "b.sft",
        "c.safetensors",
        "d.gguf",
        "e.pt",
    ]
    assert named_models(workflow)[0].folders[0] == "text_encoders"


def test_embeddings_within_prompts() -> None:
    workflow = {
        "1": node("CLIPTextEncode", text="a cat, (embedding:style/bad:1.2), embedding:good.pt, bad", clip=["2", 0])
    }
    models = "o/r:bad.safetensors:embeddings/style,o/r:good.pt:embeddings,o/r:other.pt:embeddings,o/r:bad.pt:loras"
    assert supplied(workflow, models) == ["embeddings/style/bad.safetensors", "embeddings/good.pt"]


def test_a_prompt_that_ends_like_a_model_is_harmless() -> None:
    workflow = {"1": node("CLIPTextEncode", text="x" * 2000 + ".safetensors"), "2": node("X", text="a\nb.pt")}
    assert named_models(workflow) == []


def test_a_core_loaders_missing_model_is_said_before_comfyui_is_asked() -> None:
    info = json.loads(json.dumps(OBJECT_INFO))
    info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0] = ["sd_xl_base_1.0.safetensors"]
    workflow = {"4": node("CheckpointLoaderSimple", ckpt_name="sdxl/sd_xl_base.safetensors")}
    (problem,) = missing_models(workflow, NodeRegistry(info), ())
    assert problem["near"] == ["sd_xl_base_1.0.safetensors"]
    assert problem["add"] == "ORG/REPO:sd_xl_base.safetensors:checkpoints/sdxl"
    assert problem["path"] == "workflow.4.inputs.ckpt_name"
    entries = spec.configured(load(models="o/r:sd_xl_base.safetensors:checkpoints/sdxl"))
    assert missing_models(workflow, NodeRegistry(info), entries) == []
    there = {"4": node("CheckpointLoaderSimple", ckpt_name="sd_xl_base_1.0.safetensors")}
    assert missing_models(there, NodeRegistry(info), ()) == []


def test_a_custom_nodes_missing_model_is_left_to_comfyui() -> None:
    info = {"Mine": {"python_module": "custom_nodes.mine", "input": {"required": {"ckpt_name": [["a.ckpt"], {}]}}}}
    assert missing_models({"1": node("Mine", ckpt_name="b.ckpt")}, NodeRegistry(info), ()) == []


def _refused(workflow: dict[str, Any], info: dict[str, Any], *names: str) -> WorkflowRejected:
    """ComfyUI's refusal as it was recorded, explained as the session does it."""
    errors = {
        node_id: {
            "errors": [
                {
                    "type": "value_not_in_list",
                    "message": "Value not in list",
                    "details": f"{name}: '{workflow[node_id]['inputs'][name]}' not in []",
                    "extra_info": {"input_name": name, "received_value": workflow[node_id]["inputs"][name]},
                }
                for name in names
                if name in workflow[node_id]["inputs"]
            ],
            "class_type": workflow[node_id]["class_type"],
        }
        for node_id in workflow
    }
    return WorkflowRejected.from_problems(explain(errors, workflow, NodeRegistry(info)), "workflow")


def test_comfyuis_refusal_of_models_alone_is_a_missing_model() -> None:
    workflow = {"1": node("Mine", ckpt_name="b.ckpt")}
    info = {"Mine": {"input": {"required": {"ckpt_name": [["bb.ckpt"], {}]}}}}
    error = as_missing(_refused(workflow, info, "ckpt_name"), workflow, ())
    assert isinstance(error, ModelMissing)
    assert "add ORG/REPO:b.ckpt:checkpoints" in error.message
    assert "did you mean 'bb.ckpt'" in error.message
    assert error.details["problems"][0]["near"] == ["bb.ckpt"]


def test_comfyuis_refusal_of_more_than_models_stays_what_it_is() -> None:
    workflow = {"1": node("Mine", ckpt_name="b.ckpt", sampler="eulre")}
    info = {"Mine": {"input": {"required": {"ckpt_name": [[], {}], "sampler": [["euler"], {}]}}}}
    error = as_missing(_refused(workflow, info, "ckpt_name", "sampler"), workflow, ())
    assert isinstance(error, WorkflowRejected)
    assert [problem["type"] for problem in error.details["problems"]] == ["model_missing", "value_not_in_list"]
    bare = WorkflowRejected("no details")
    assert as_missing(bare, workflow, ()) is bare


def test_a_prompt_that_ends_with_an_embeddings_file_name_is_a_prompt() -> None:
    (named,) = named_models({"1": node("CLIPTextEncode", text="a cat, embedding:bad-hands.pt")})
    assert (named.value, named.folders) == ("bad-hands.pt", ("embeddings",))
    prompt = {"1": node("CLIPTextEncode", text="embedding:one.safetensors embedding:two.safetensors")}
    assert supplied(prompt, "o/r:one.safetensors:embeddings,o/r:two.pt:embeddings") == [
        "embeddings/one.safetensors",
        "embeddings/two.pt",
    ]


def test_near_matches_are_looked_for_a_bounded_number_of_times() -> None:
    """Each takes milliseconds, on a worker with many models a hundred: a caller could stop the worker for an hour."""
    workflow = {
        str(number): node("CheckpointLoaderSimple", ckpt_name=f"sd15-{number}.safetensors") for number in range(500)
    }
    info = {
        "CheckpointLoaderSimple": {
            "python_module": "nodes",
            "input": {"required": {"ckpt_name": [["sd15.safetensors"], {}]}},
        }
    }
    problems = missing_models(workflow, NodeRegistry(info), ())
    assert len(problems) == 500
    assert problems[0]["near"] == ["sd15.safetensors"]
    assert sum(bool(problem["near"]) for problem in problems) <= 10


def test_a_model_in_a_folder_where_its_node_does_not_look_is_said_so() -> None:
    info = json.loads(json.dumps(OBJECT_INFO))
    workflow = {"4": node("CheckpointLoaderSimple", ckpt_name="a.safetensors")}
    (problem,) = missing_models(workflow, NodeRegistry(info), spec.configured(load(models="o/r:a.safetensors:loras")))
    assert "MODELS entry 1 puts it into loras; let its Target be checkpoints" in problem["problem"]


def test_a_file_that_another_loader_has_is_said_to_be_in_its_folder() -> None:
    info = json.loads(json.dumps(OBJECT_INFO))
    for each in ("a.safetensors", "flux/b.safetensors"):
        info["UNETLoader"]["input"]["required"]["unet_name"][0].append(each)
    workflow = {
        "4": node("CheckpointLoaderSimple", ckpt_name="x/a.safetensors"),
        "5": node("VAELoader", vae_name="b.safetensors"),
    }
    found = missing_models(workflow, NodeRegistry(info), ())
    assert [problem["near"] for problem in found] == [["a.safetensors"], ["flux/b.safetensors"]]
    assert found[0]["problem"] == (
        "no model 'x/a.safetensors' in checkpoints, where this node looks, but diffusion_models has it: "
        "move it there, or load it with UNETLoader"
    )
