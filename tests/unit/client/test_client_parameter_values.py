"""What --steps, --width, --lora, … are set to: values that come through links, values out of range, and LoRAs."""

from __future__ import annotations

from typing import Any

import pytest

from settee.client.client_errors import Ambiguous, UsageError
from settee.client.inject.parameter_places import Lora, parameter_changes, parse_lora
from tests.support.editor_files import OBJECT_INFO as INFO
from tests.support.parameters import ksampler, node, on, places, simple
from tests.support.published import real

# --- linked values ---------------------------------------------------------------------------------------


def fed(**inputs: str) -> dict[str, Any]:
    """The latent's width and height come from nodes."""
    return simple(n5=node("EmptyLatentImage", batch_size=1, **{name: [source, 0] for name, source in inputs.items()}))


def test_a_primitive_is_set_where_it_is() -> None:
    workflow = fed(width="20", height="21") | {
        "20": node("PrimitiveInt", value=512),
        "21": node("INTConstant", value=512),
    }
    assert places(workflow, width=640, height=768) == ["20.value", "21.value"]
    # ModelSamplingFlux and SDXL's encoders are told the same width.
    workflow["4"]["inputs"] |= {"width": ["20", 0], "target_width": ["20", 0]}
    assert places(workflow, width=640) == ["20.value"]


def test_a_primitive_that_is_width_and_height() -> None:
    workflow = fed(width="20", height="20") | {"20": node("PrimitiveInt", value=512)}
    with pytest.raises(
        UsageError, match=r"--width: 5\.width comes from node 20 PrimitiveInt, which feeds 5\.height too"
    ):
        places(workflow, width=640)
    with pytest.raises(UsageError, match=r"--width and --height both come from node 20"):
        places(workflow, width=640, height=768)
    assert set(places(workflow, width=640, height=640)) == {"20.value"}


def test_two_samplers_fed_by_one_primitive_are_one_place() -> None:
    workflow = simple(
        n20=node("PrimitiveInt", value=20),
        n3=ksampler(steps=["20", 0]),
        n11=ksampler(steps=["20", 0]),
        n12=node("SaveLatent", samples=["11", 0]),
    )
    assert places(workflow, steps=30) == ["20.value"]


def test_a_size_that_is_computed() -> None:
    workflow = fed(width="20", height="20") | {
        "20": node("GetImageSize", image=["21", 0]),
        "21": node("LoadImage", image="a"),
    }
    with pytest.raises(UsageError, match=r"--width: 'width' of node 5 .* a link from node 20 GetImageSize"):
        places(workflow, width=640)


# --- values ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"steps": 0}, "--steps 0: must be a whole number from 1 to 10000"),
        ({"steps": 2.5}, "must be a whole number"),
        ({"steps": True}, "must be a whole number"),
        ({"steps": 10_001}, "must be a whole number"),
        ({"cfg": -1}, "--cfg -1: must be a number from 0 to 100"),
        ({"cfg": float("nan")}, "must be a number"),
        ({"cfg": "7"}, "must be a number"),
        ({"denoise": 1.01}, "--denoise 1.01: must be a number from 0 to 1"),
        ({"denoise": float("inf")}, "must be a number"),
        ({"width": 0}, "must be a whole number from 1 to 16384"),
        ({"height": 16_392}, "must be a whole number"),
        ({"width": 513}, r"--width 513: node 5 EmptyLatentImage takes multiples of 8 only: 512 or 520"),
        ({"width": 4}, r"multiples of 8 only: 8$"),
        ({"sampler": ""}, "--sampler: give a name"),
        ({"ckpt": " "}, "--ckpt: give a name"),
        ({"lora": ("",)}, "--lora : write NAME"),
    ],
)
def test_values_out_of_range(wanted: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        places(simple(), **wanted)


def test_a_registry_tells_names_and_limits() -> None:
    with pytest.raises(UsageError, match=r"--sampler eular: node 3 KSampler does not know it; did you mean 'euler'"):
        places(simple(), INFO, sampler="eular")
    with pytest.raises(UsageError, match=r"--scheduler zzz.* it has "):
        places(simple(), INFO, scheduler="zzz")
    # The worker fetches a checkpoint that ComfyUI does not list yet.
    assert places(simple(), INFO, ckpt="new.safetensors") == ["4.ckpt_name"]
    with pytest.raises(UsageError, match="takes no less than 16"):
        places(simple(), INFO, width=8)
    workflow = simple(n5=node("EmptySD3LatentImage", width=512, height=512, batch_size=1))
    with pytest.raises(UsageError, match="multiples of 16 only: 512 or 528"):
        places(workflow, INFO, width=520)


@pytest.mark.parametrize("linked", [False, True])
def test_steps_must_reach_where_samplers_hand_over(linked: bool) -> None:
    workflow = real("n_sdxl_simple_example")
    if linked:
        workflow["90"] = node("PrimitiveInt", value=20)
        workflow["10"]["inputs"]["end_at_step"] = workflow["11"]["inputs"]["start_at_step"] = ["90", 0]
    with pytest.raises(UsageError, match=r"--steps 20: node 10 .* has end_at_step 20, which 20 steps do not reach"):
        places(workflow, steps=20)
    assert places(workflow, steps=21) == ["10.steps", "11.steps"]


# --- LoRAs -----------------------------------------------------------------------------------------------


def lora_loader(name: str, **inputs: Any) -> dict[str, Any]:
    return node("LoraLoader", lora_name=name, strength_model=1, strength_clip=0.5, **inputs)


def chain(*names: str) -> dict[str, Any]:
    """LoRA loaders, each on the one before, with ids that do not sort as text."""
    workflow, last = simple(), "4"
    for at, name in enumerate(names):
        node_id = str(9 + at) if at else "2"
        node_id = {"9": "90"}.get(node_id, node_id)
        workflow[node_id] = lora_loader(name, model=[last, 0], clip=[last, 1])
        last = node_id
    workflow["3"]["inputs"]["model"] = [last, 0]
    return workflow


def lora_values(workflow: dict[str, Any], *loras: str) -> dict[str, Any]:
    return {f"{c.node_id}.{c.input}": c.value for c in parameter_changes(workflow, on(lora=loras))}


def test_a_lora_by_name_keeps_its_strength() -> None:
    assert lora_values(chain("a"), "b.safetensors") == {"2.lora_name": "b.safetensors"}


def test_a_chain_takes_as_many_in_natural_order_each_with_its_own_strength() -> None:
    assert lora_values(chain("a", "b"), "x:0.25", "y:-1") == {
        "2.lora_name": "x",
        "2.strength_model": 0.25,
        "2.strength_clip": 0.25,
        "10.lora_name": "y",
        "10.strength_model": -1.0,
        "10.strength_clip": -1.0,
    }


@pytest.mark.parametrize("loras", [("x",), ("x", "y", "z")])
def test_another_number_of_loras(loras: tuple[str, ...]) -> None:
    with pytest.raises(
        Ambiguous, match=r"(?s)has 2;.*--set 2\.inputs\.lora_name=….*2 LoraLoader: a\n  10 LoraLoader: b"
    ):
        lora_values(chain("a", "b"), *loras)


def test_the_same_lora_for_two_models_is_one() -> None:
    workflow = chain("a", "a")
    assert lora_values(workflow, "x") == {"2.lora_name": "x", "10.lora_name": "x"}
    assert len(lora_values(workflow, "x:0.5")) == 6
    workflow["10"]["inputs"]["strength_model"] = 0.3
    with pytest.raises(Ambiguous, match="strength of its own"):
        lora_values(workflow, "x:0.5")


def test_no_lora_loader() -> None:
    with pytest.raises(UsageError, match="no node that loads a LoRA"):
        lora_values(simple(), "x")


def test_a_lora_whose_name_or_strength_is_linked() -> None:
    workflow = chain("a")
    workflow["50"] = node("PrimitiveString", value="a")
    workflow["2"]["inputs"]["lora_name"] = ["50", 0]
    assert lora_values(workflow, "x") == {"50.value": "x"}
    workflow["50"]["class_type"] = "PickOne"
    workflow["50"]["inputs"]["list"] = ["4", 0]
    with pytest.raises(UsageError, match="--lora x: 'lora_name' of node 2"):
        lora_values(workflow, "x")


def test_a_loader_without_strengths() -> None:
    workflow = chain("a")
    del workflow["2"]["inputs"]["strength_model"], workflow["2"]["inputs"]["strength_clip"]
    with pytest.raises(UsageError, match="no strength to set"):
        lora_values(workflow, "x:1")


@pytest.mark.parametrize(
    ("text", "lora"),
    [
        ("a.safetensors", Lora("a.safetensors")),
        ("a.safetensors:0.8", Lora("a.safetensors", 0.8)),
        ("sub/a b.safetensors:-2", Lora("sub/a b.safetensors", -2.0)),
        ("a:b:1", Lora("a:b", 1.0)),
    ],
)
def test_a_lora_as_text(text: str, lora: Lora) -> None:
    assert parse_lora(text) == lora


@pytest.mark.parametrize("text", ["", ":0.8", "a:", "a:o.8", "a:nan", "a:101", "a:inf", "  "])
def test_a_lora_that_is_none(text: str) -> None:
    with pytest.raises(UsageError, match="write NAME or NAME:STRENGTH"):
        parse_lora(text)
