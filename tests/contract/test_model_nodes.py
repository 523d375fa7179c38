"""Loaders, text encoders, latents and the sampler: what is told of them, and what their pictures follow from."""

from __future__ import annotations

import copy
from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageChops, ImageStat

from tests.contract import recording
from tests.contract.conftest import place_models
from tests.contract.driver import Comfy, Graph, empty, ksampler_graph, step_of
from tests.support.embedded import EmbeddedServer
from tests.support.models import safetensors

Change = Callable[[Graph], None]


@pytest.fixture
def own(comfy: Comfy) -> Comfy:
    if comfy.is_real:
        pytest.skip("the pictures are those of the embedded server")
    return comfy


def sdxl_graph() -> Graph:
    """Checkpoint, two LoRAs, both text encoders, sampler, VAE: node "9" saves."""
    graph = ksampler_graph(4, "tiny-sd15.safetensors")
    sizes = {"width": 64, "height": 64, "crop_w": 0, "crop_h": 0, "target_width": 64, "target_height": 64}
    lora = {"strength_model": 1.0, "strength_clip": 1.0}
    graph["3"]["inputs"] |= {"seed": 7, "model": ["12", 0]}
    graph["11"] = node("LoraLoader", model=["4", 0], clip=["4", 1], lora_name="first.safetensors", **lora)
    graph["12"] = node("LoraLoader", model=["11", 0], clip=["11", 1], lora_name="second.safetensors", **lora)
    graph["13"] = node("CLIPSetLastLayer", clip=["12", 1], stop_at_clip_layer=-2)
    graph["6"] = node("CLIPTextEncodeSDXL", clip=["13", 0], text_g="a cat", text_l="a cat, sharp", **sizes)
    graph["7"]["inputs"]["clip"] = ["13", 0]
    return graph


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def pictures(comfy: Comfy, graph: Graph, output: str = "9") -> list[Image.Image]:
    entry = comfy.run(graph)
    assert entry["status"]["status_str"] == "success", entry["status"]
    return [Image.open(BytesIO(comfy.view(file))).convert("RGB") for file in entry["outputs"][output]["images"]]


def picture(comfy: Comfy, graph: Graph) -> bytes:
    (found,) = pictures(comfy, graph)
    return found.tobytes()


# --- as recorded -----------------------------------------------------------------------------------------


def test_a_sampling_graph_sends_every_message_as_recorded(comfy: Comfy, checkpoint: str) -> None:
    comfy.post("/free", json={"free_memory": True})
    listener = comfy.listen()
    comfy.run(ksampler_graph(4, checkpoint), listener)
    got, want = listener.labels(), recording.labels("success_ksampler")
    assert recording.without_quick_steps(got) == recording.without_quick_steps(want)


def test_previews_come_as_recorded(embedded: Callable[..., EmbeddedServer]) -> None:
    server = embedded(wait=False, args=["--preview-method", "auto"])
    place_models(server.root)
    server.wait_until_up()
    comfy = Comfy(server.url)
    listener = comfy.listen()
    comfy.run(ksampler_graph(4, "tiny-sd15.safetensors"), listener)
    want = recording.labels("success_ksampler_preview")
    assert listener.labels()[: len(want)] == want
    comfy.close()


def test_a_corrupt_checkpoint_fails_as_recorded(comfy: Comfy) -> None:
    case = dict(recording.cases("execution_errors"))["corrupt_checkpoint"]
    graph = case["request_body"]["prompt"]
    names = comfy.get("/object_info/CheckpointLoaderSimple").json()["CheckpointLoaderSimple"]["input"]["required"]
    if "corrupt.safetensors" not in names["ckpt_name"][0]:
        pytest.skip("the real server has no corrupt.safetensors")
    errors = [m["data"] for m in recording.messages("execution_errors", "A") if "execution_error" in str(m)]
    want = next(error for error in errors if error.get("node_type") == "CheckpointLoaderSimple")
    kind, got = comfy.run(graph)["status"]["messages"][-1]
    assert kind == "execution_error"
    for key in ("node_id", "node_type", "executed", "exception_message", "exception_type", "current_inputs"):
        assert got[key] == want[key]


# --- what a picture follows from -------------------------------------------------------------------------


def test_the_same_graph_gives_the_same_picture(own: Comfy) -> None:
    first = picture(own, sdxl_graph())
    own.post("/free", json={"free_memory": True})
    assert picture(own, sdxl_graph()) == first


CHANGES: dict[str, tuple[str, dict[str, Any]]] = {
    "seed": ("3", {"seed": 8}),
    "largest seed": ("3", {"seed": 2**64 - 1}),
    "steps": ("3", {"steps": 5}),
    "cfg": ("3", {"cfg": 5.1}),
    "sampler": ("3", {"sampler_name": "dpmpp_2m_sde_gpu"}),
    "scheduler": ("3", {"scheduler": "karras"}),
    "denoise": ("3", {"denoise": 0.9}),
    "prompt": ("6", {"text_g": "a dog"}),
    "prompt of the other encoder": ("6", {"text_l": "a dog"}),
    "prompts exchanged": ("6", {"text_g": "a cat, sharp", "text_l": "a cat"}),
    "prompt in another script": ("6", {"text_g": "ein Kätzchen 猫 🐈\nقطة"}),
    "target size": ("6", {"target_width": 128}),
    "negative prompt": ("7", {"text": "worse"}),
    "LoRA": ("12", {"lora_name": "first.safetensors"}),
    "LoRA's strength": ("12", {"strength_model": 0.8}),
    "LoRA's strength for the CLIP": ("12", {"strength_clip": -0.5}),
    "LoRA off": ("12", {"strength_model": 0.0, "strength_clip": 0.0}),
    "first LoRA's strength": ("11", {"strength_model": 0.8}),
    "clip skip": ("13", {"stop_at_clip_layer": -1}),
    "size": ("5", {"width": 128}),
}


@pytest.mark.parametrize("what", CHANGES)
def test_every_input_changes_the_picture(own: Comfy, what: str) -> None:
    number, inputs = CHANGES[what]
    graph = sdxl_graph()
    before = picture(own, copy.deepcopy(graph))
    graph[number]["inputs"] |= inputs
    assert picture(own, graph) != before


def test_the_vae_changes_the_picture(own: Comfy) -> None:
    found = set()
    for name in (None, "own.safetensors", "pixel_space"):
        graph = sdxl_graph()
        if name:
            graph["14"] = node("VAELoader", vae_name=name)
            graph["8"]["inputs"]["vae"] = ["14", 0]
        found.add(picture(own, graph))
    assert len(found) == 3


def test_a_lora_for_the_model_only_is_one_without_strength_for_the_clip(own: Comfy) -> None:
    graph = sdxl_graph()
    graph["12"]["inputs"]["strength_clip"] = 0.0
    before = picture(own, graph)
    only = sdxl_graph()
    only["12"] = node("LoraLoaderModelOnly", model=["11", 0], lora_name="second.safetensors", strength_model=1.0)
    only["13"]["inputs"]["clip"] = ["11", 1]
    assert picture(own, only) == before


def test_the_order_of_loras_does_not_count_but_which_has_which_strength_does(own: Comfy) -> None:
    graph = sdxl_graph()
    graph["11"]["inputs"]["strength_model"] = 0.5
    before = picture(own, copy.deepcopy(graph))
    first, second = graph["11"]["inputs"], graph["12"]["inputs"]
    for name in ("lora_name", "strength_model"):
        first[name], second[name] = second[name], first[name]
    assert picture(own, copy.deepcopy(graph)) == before
    first["strength_model"], second["strength_model"] = second["strength_model"], first["strength_model"]
    assert picture(own, graph) != before


def test_the_models_bytes_change_the_picture(embedded: Callable[..., EmbeddedServer]) -> None:
    server = embedded(args=["--cache-none"])
    place_models(server.root)
    found = set()
    for fill in (1, 1, 9):
        (server.root / "models/checkpoints/tiny-sd15.safetensors").write_bytes(safetensors(fill=fill))
        found.add(picture(Comfy(server.url), sdxl_graph()))
    assert len(found) == 2


def test_a_batch_has_pictures_of_its_own_and_of_the_size_asked_for(own: Comfy) -> None:
    graph = sdxl_graph()
    graph["5"]["inputs"] |= {"width": 96, "height": 64, "batch_size": 3}
    batch = pictures(own, graph)
    assert [each.size for each in batch] == [(96, 64)] * 3
    assert len({each.tobytes() for each in batch}) == 3


def img2img_graph(denoise: float) -> Graph:
    graph = sdxl_graph()
    graph["5"] = empty(color=0x20C060)
    graph["10"] = node("VAEEncode", pixels=["5", 0], vae=["14", 0])
    graph["14"] = node("VAELoader", vae_name="pixel_space")
    graph["8"]["inputs"]["vae"] = ["14", 0]
    graph["3"]["inputs"] |= {"latent_image": ["10", 0], "denoise": denoise}
    return graph


def test_with_less_denoise_more_of_the_start_is_left(own: Comfy) -> None:
    start = Image.new("RGB", (64, 64), (0x20, 0xC0, 0x60))
    away = []
    for denoise in (0.0, 0.3, 1.0):
        (found,) = pictures(own, img2img_graph(denoise))
        assert found.size == (64, 64)
        away.append(sum(ImageStat.Stat(ImageChops.difference(found, start)).mean))
    assert away[0] == 0
    assert away[0] < away[1] < away[2]


@pytest.mark.parametrize(
    ("number", "inputs", "kind"),
    [
        ("4", {"ckpt_name": "../checkpoints/tiny-sd15.safetensors"}, "value_not_in_list"),
        ("11", {"lora_name": "missing.safetensors"}, "value_not_in_list"),
        ("3", {"scheduler": "nope"}, "value_not_in_list"),
        ("3", {"model": ["4", 1]}, "return_type_mismatch"),
        ("11", {"strength_model": 101}, "value_bigger_than_max"),
        ("5", {"width": 8}, "value_smaller_than_min"),
    ],
)
def test_what_does_not_fit_is_refused(own: Comfy, number: str, inputs: dict[str, Any], kind: str) -> None:
    graph = sdxl_graph()
    graph[number]["inputs"] |= inputs
    answer = own.post("/prompt", json={"prompt": graph})
    assert answer.status_code == 400
    assert [error["type"] for error in answer.json()["node_errors"][number]["errors"]] == [kind]


def models_of(own: Comfy) -> Path:
    assert own.input_dir is not None
    return own.input_dir.parent / "models"


def test_a_new_model_is_a_choice_at_once(own: Comfy) -> None:
    def choices() -> list[str]:
        info = own.get("/object_info/LoraLoader").json()
        return info["LoraLoader"]["input"]["required"]["lora_name"][0]  # type: ignore[no-any-return]

    before = choices()
    new = models_of(own) / "loras/styles/third.safetensors"
    new.parent.mkdir()
    new.write_bytes(safetensors())
    assert choices() == sorted([*before, "styles/third.safetensors"])


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"short", "header too small"),
        (b"\xff" * 64, "header too large"),
        (safetensors()[:20], "invalid header length"),
        (safetensors()[:-1], "incomplete metadata, file not fully covered"),
        (b"\x02" + bytes(7) + b"[]", "invalid JSON in header"),
    ],
)
def test_a_damaged_file_is_not_sampled_with(own: Comfy, data: bytes, problem: str) -> None:
    (models_of(own) / "loras/damaged.safetensors").write_bytes(data)
    graph = sdxl_graph()
    graph["12"]["inputs"]["lora_name"] = "damaged.safetensors"
    kind, error = own.run(graph)["status"]["messages"][-1]
    assert (kind, error["node_id"]) == ("execution_error", "12")
    assert error["exception_message"] == f"Error while deserializing header: {problem}\n"


def test_sampling_is_interrupted_between_steps(own: Comfy) -> None:
    own.post("/settee/faults", json={"step_slow": 0.05})
    listener = own.listen()
    graph = sdxl_graph()
    graph["3"]["inputs"]["steps"] = 10_000
    prompt_id = own.submit(graph, listener)
    listener.wait_for(lambda message: step_of(message) >= 2)
    own.post("/interrupt", json={"prompt_id": prompt_id})
    kind, data = own.wait_history(prompt_id)["status"]["messages"][-1]
    own.post("/settee/faults", json={"step_slow": None})
    assert (kind, data["node_id"]) == ("execution_interrupted", "3")
