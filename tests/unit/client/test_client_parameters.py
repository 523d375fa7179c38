"""--steps, --cfg, --width, … in published workflows and in graphs whose places are less than obvious."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from settee.client.errors import Ambiguous, UsageError
from settee.client.inject.loras import Lora, parse_lora
from settee.client.inject.parameters import Parameters, parameter_changes

DATA = Path(__file__).parents[2] / "data"
INFO = json.loads((DATA / "object_info.json").read_text())
ALL = sorted(path.name.removesuffix(".api.json") for path in (DATA / "real-workflows").glob("*.api.json"))

#: Values unlike any in the workflows, for one parameter at a time.
VALUES: dict[str, Any] = {
    "steps": 33,
    "cfg": 2.25,
    "width": 640,
    "height": 384,
    "denoise": 0.45,
    "sampler": "heun",
    "scheduler": "karras",
    "ckpt": "other.safetensors",
    "lora": ("other.safetensors:0.75",),
}
_KSAMPLER = "steps cfg denoise sampler_name scheduler"


def real(name: str) -> dict[str, Any]:
    return json.loads((DATA / "real-workflows" / f"{name}.api.json").read_text())


def on(**names: Any) -> Parameters:
    return Parameters(**names)


def places(workflow: dict[str, Any], info: Any = None, **wanted: Any) -> list[str]:
    return [f"{change.node_id}.{change.input}" for change in parameter_changes(workflow, on(**wanted), info)]


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def ksampler(latent: str = "5", slot: int = 0, **other: Any) -> dict[str, Any]:
    settings = {"seed": 1, "steps": 20, "cfg": 7, "sampler_name": "euler", "scheduler": "normal", "denoise": 1}
    sources = {"model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": [latent, slot]}
    return node("KSampler", **{**settings, **sources, **other})


def simple(**others: dict[str, Any]) -> dict[str, Any]:
    """Text to image; ``n12=node(…)`` adds or replaces node 12."""
    return {
        "3": ksampler(),
        "4": node("CheckpointLoaderSimple", ckpt_name="a.safetensors"),
        "5": node("EmptyLatentImage", width=512, height=512, batch_size=1),
        "6": node("CLIPTextEncode", text="a", clip=["4", 1]),
        "7": node("CLIPTextEncode", text="b", clip=["4", 1]),
        "8": node("VAEDecode", samples=["3", 0], vae=["4", 2]),
        "9": node("SaveImage", images=["8", 0], filename_prefix="x"),
        **{name[1:]: other for name, other in others.items()},
    }


# --- the published workflows -----------------------------------------------------------------------------


def _expected(sampler: str, size: str = "", ckpt: str = "", lora: str = "", inputs: str = _KSAMPLER) -> dict[str, str]:
    """Places by parameter: all of a KSampler's in ``sampler``, and the size's, checkpoint's and LoRA's nodes."""
    found = {name.removesuffix("_name"): f"{sampler}.{name}" for name in inputs.split()}
    if size:
        found |= {"width": f"{size}.width", "height": f"{size}.height"}
    if ckpt:
        found["ckpt"] = f"{ckpt}.ckpt_name"
    if lora:
        found["lora"] = lora
    return found


_TWICE = {
    **{name: f"95.{name} 96.{name}" for name in ("steps", "cfg", "scheduler")},
    "sampler": "95.sampler_name 96.sampler_name",
    "width": "111.width",
    "height": "111.height",
    "lora": "ambiguous",
}
_CAUSVID = "{0}.lora_name {0}.strength_model {0}.strength_clip"
_VACE = _expected("3", lora=_CAUSVID.format(165)) | {"width": "137.value", "height": "139.value"}
_LTXV = {"steps": "71.steps", "cfg": "72.cfg", "sampler": "73.sampler_name", "ckpt": "44.ckpt_name"}
_HIDREAM = {"steps": "49.steps", "denoise": "49.denoise", "sampler": "46.sampler_name", "scheduler": "49.scheduler"}
_LOTUS = dict.fromkeys(("steps", "denoise", "sampler", "scheduler"), "ambiguous")

#: Where each parameter goes; what is not named has no place. API nodes and the rest of the 56 have none but these.
EXPECTED: dict[str, dict[str, str]] = {
    "3d_hunyuan3d_multiview_to_model_turbo": _expected("3", ckpt="54"),
    "api_stability_ai_text_to_audio": {"steps": "4.steps"},
    "audio_ace_step_1_m2m_editing": _expected("52", ckpt="40"),
    "controlnet_example": _expected("3", "5", "14"),
    "flux_dev_checkpoint_example": _expected("31", "27", "30"),
    "hidream_e1_full": _HIDREAM,
    "hidream_i1_fast": _expected("94", "84"),
    "image2image": _expected("3", ckpt="14"),
    "image_chroma1_radiance_text_to_image": {
        "steps": "751.steps",
        "cfg": "694.cfg",
        "sampler": "700.sampler_name",
        "width": "760.width",
        "height": "760.height",
    },
    "image_flux.1_fill_dev_OneReward": _expected("3", lora="100.lora_name 100.strength_model"),
    "image_lotus_depth_v1_1": {
        "steps": "20.steps",
        "denoise": "20.denoise",
        "scheduler": "20.scheduler",
        "sampler": "21.sampler_name",
    },
    "image_qwen_image_instantx_controlnet": {**_LOTUS, "cfg": "3.cfg"},
    "image_to_video_wan": _expected("3", "50"),
    "ltxv_image_to_video": {**_LTXV, "width": "77.width", "height": "77.height"},
    "ltxv_text_to_video": {**_LTXV, "width": "70.width", "height": "70.height"},
    "n_api_bfl_flux1_expand_image": {"steps": "7.steps"},
    "n_api_bfl_flux_1_kontext_max_image": {"steps": "95.steps"},
    "n_api_bfl_flux_1_kontext_multiple_images_input": {"steps": "83.steps"},
    "n_flux1_krea_dev": _expected("200:197", "200:196"),
    "n_flux_canny_model_example": _expected("3"),
    "n_flux_schnell": _expected("31", "27", "30"),
    "n_hidream_e1_full": _HIDREAM,
    "n_image_qwen_image_instantx_controlnet": {
        **_LOTUS,
        "cfg": "111:3.cfg",
        "lora": "111:80.lora_name 111:80.strength_model",
    },
    "n_ltxv_image_to_video": {**_LTXV, "width": "77.width", "height": "77.height"},
    "n_sd3.5_simple_example": _expected("3", "53", "4"),
    "n_sdxl_simple_example": {
        **{name: f"10.{name} 11.{name}" for name in ("steps", "cfg", "scheduler")},
        "sampler": "10.sampler_name 11.sampler_name",
        "width": "5.width",
        "height": "5.height",
        "ckpt": "ambiguous",
    },
    "n_text_to_video_wan": _expected("3", "40"),
    "n_video_wan2_2_14B_fun_inpaint": _TWICE,
    "n_video_wan2_2_5B_fun_control": _expected("3", "60"),
    "n_video_wan_vace_outpainting": _VACE,
    "n_wan2.1_fun_control": _expected("3", "55"),
    "sd3.5_large_depth": _expected("56", "33", "4"),
    "sd3.5_simple_example": _expected("3", "53", "4"),
    "text_to_video_wan": _expected("3", "40"),
    "video_wan2.1_alpha_t2v_14B": {**_expected("3", "40"), "lora": "ambiguous"},
    "video_wan2_2_14B_fun_inpaint": _TWICE,
    "video_wan_vace_14B_ref2v": _expected("108", "109", lora=_CAUSVID.format(115)),
    "video_wan_vace_inpainting": _expected("3", "49", lora="154.lora_name 154.strength_model"),
    "video_wan_vace_outpainting": _VACE,
    "wan2.1_flf2v_720_f16": _expected("90", "83"),
}


@pytest.mark.parametrize("info", [None, INFO], ids=["alone", "registry"])
@pytest.mark.parametrize("name", ALL)
def test_published_workflows(name: str, info: Any) -> None:
    assert set(EXPECTED) <= set(ALL)
    found = {parameter: outcome(real(name), info, parameter) for parameter in VALUES}
    assert {parameter: where for parameter, where in found.items() if where} == EXPECTED.get(name, {})


def outcome(workflow: dict[str, Any], info: Any, parameter: str) -> str:
    """Where it goes, ``ambiguous``, or "" for nowhere."""
    try:
        return " ".join(places(workflow, info, **{parameter: VALUES[parameter]}))
    except Ambiguous as error:
        return "ambiguous" if re.search(r"--set \S+=…", error.message) else error.message
    except UsageError as error:
        return "" if "has no " in error.message else error.message


def test_values_and_reasons() -> None:
    wanted = on(steps=30, cfg=6.5, width=640, height=768, denoise=0.5, sampler="heun", scheduler="karras", ckpt="b")
    found = {(c.node_id, c.input): (c.value, c.why) for c in parameter_changes(simple(), wanted, INFO)}
    assert found == {
        ("3", "steps"): (30, "--steps"),
        ("3", "cfg"): (6.5, "--cfg"),
        ("5", "width"): (640, "--width"),
        ("5", "height"): (768, "--height"),
        ("3", "denoise"): (0.5, "--denoise"),
        ("3", "sampler_name"): ("heun", "--sampler"),
        ("3", "scheduler"): ("karras", "--scheduler"),
        ("4", "ckpt_name"): ("b", "--ckpt"),
    }


def test_nothing_asked_changes_nothing() -> None:
    assert parameter_changes({}, Parameters()) == []


# --- several places --------------------------------------------------------------------------------------


def two_passes(between: dict[str, Any], **second: Any) -> dict[str, Any]:
    """A second sampler goes on from the first one's latent, through node 10."""
    return simple(n10=between, n11=ksampler("10", **second), n8=node("VAEDecode", samples=["11", 0], vae=["4", 2]))


_UPSCALE_BY = node("LatentUpscaleBy", samples=["3", 0], upscale_method="nearest-exact", scale_by=1.5)


def test_two_passes_of_equal_settings_are_set_together() -> None:
    workflow = two_passes(_UPSCALE_BY, denoise=0.5)
    assert places(workflow, steps=30) == ["3.steps", "11.steps"]
    assert places(workflow, width=768) == ["5.width"]
    with pytest.raises(
        Ambiguous, match=r"(?s)--denoise: 2 nodes.*3 KSampler: denoise is 1\n.*11 KSampler: denoise is 0.5"
    ):
        places(workflow, denoise=0.7)


def test_a_latent_that_is_scaled_to_a_size_on_its_way() -> None:
    scaled = node(
        "LatentUpscale", samples=["3", 0], upscale_method="bilinear", width=1024, height=1024, crop="disabled"
    )
    with pytest.raises(Ambiguous, match=r"(?s)--width: 2 nodes.*5 EmptyLatentImage: width is 512\n  10 LatentUpscale"):
        places(two_passes(scaled), width=768)
    scaled["inputs"]["width"] = 512
    assert places(two_passes(scaled), width=768) == ["5.width", "10.width"]


def test_a_second_pass_through_pixels_is_not_the_first() -> None:
    workflow = two_passes(node("VAEEncode", pixels=["12", 0], vae=["4", 2]))
    workflow["12"] = node("VAEDecode", samples=["3", 0], vae=["4", 2])
    with pytest.raises(Ambiguous):
        places(workflow, steps=30)
    assert places(workflow, width=768) == ["5.width"]


def test_samplers_side_by_side() -> None:
    workflow = simple(n11=ksampler(), n12=node("SaveLatent", samples=["11", 0], filename_prefix="x"))
    with pytest.raises(Ambiguous, match=r"3 KSampler: steps is 20\n  11 KSampler: steps is 20"):
        places(workflow, steps=30)
    assert places(workflow, width=640) == ["5.width"]


def test_a_reroute_between_two_passes() -> None:
    workflow = two_passes(node("Reroute", **{"": ["3", 0]}))
    assert places(workflow, steps=30) == ["3.steps", "11.steps"]


def test_what_no_output_is_made_from_is_no_place() -> None:
    workflow = simple(n11=ksampler(), n12=node("VAEDecode", samples=["11", 0], vae=["4", 2]))
    assert places(workflow, INFO, steps=30) == places(workflow, steps=30) == ["3.steps"]
    workflow["12"]["class_type"] = "SomebodysDecoder"
    with pytest.raises(Ambiguous):
        places(workflow, steps=30)


def test_custom_samplers_have_their_places_apart() -> None:
    workflow = simple(
        n3=node(
            "SamplerCustomAdvanced",
            noise=["20", 0],
            guider=["21", 0],
            sampler=["22", 0],
            sigmas=["23", 0],
            latent_image=["5", 0],
        ),
        n20=node("RandomNoise", noise_seed=1),
        n21=node("CFGGuider", model=["4", 0], positive=["6", 0], negative=["7", 0], cfg=5),
        n22=node("KSamplerSelect", sampler_name="euler"),
        n23=node("SplitSigmasDenoise", sigmas=["24", 0], denoise=0.5),
        n24=node("BasicScheduler", model=["4", 0], scheduler="simple", steps=20, denoise=1),
    )
    wanted = {name: VALUES[name] for name in ("steps", "cfg", "denoise", "sampler", "scheduler", "width")}
    assert places(workflow, INFO, **wanted) == [
        *("24.steps", "21.cfg", "5.width", "24.denoise", "22.sampler_name", "24.scheduler")
    ]


def test_one_checkpoint_loaded_twice_is_one() -> None:
    again = node("CheckpointLoaderSimple", ckpt_name="a.safetensors")
    workflow = simple(n11=ksampler(model=["14", 0]), n12=node("SaveLatent", samples=["11", 0]), n14=again)
    assert places(workflow, ckpt="b") == ["4.ckpt_name", "14.ckpt_name"]
    again["inputs"]["ckpt_name"] = "c.safetensors"
    with pytest.raises(Ambiguous):
        places(workflow, ckpt="b")


def test_without_a_sampler_the_one_node_with_a_size() -> None:
    workflow = {"1": node("ApiImage", width=1000, height=500, steps=5), "2": node("SaveImage", images=["1", 0])}
    assert places(workflow, width=999, steps=6) == ["1.steps", "1.width"]
    workflow["3"] = node("ImageScale", image=["1", 0], width=1000, height=500)
    workflow["2"]["inputs"]["images"] = ["3", 0]
    with pytest.raises(Ambiguous):
        places(workflow, width=999)


def test_no_place_names_what_may_be_meant() -> None:
    workflow = simple(
        n5=node("VAEEncode", pixels=["15", 0], vae=["4", 2]), n15=node("ImageScale", width=512, height=512)
    )
    with pytest.raises(UsageError, match=r"does not start from a latent .*--set 15\.inputs\.width=…\n  15 ImageScale"):
        places(workflow, width=640)
    workflow = simple(n4=node("UNETLoader", unet_name="flux.safetensors"))
    with pytest.raises(UsageError, match=r"--ckpt: .* no place .*--set 4\.inputs\.unet_name=…"):
        places(workflow, ckpt="x")


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
    with pytest.raises(UsageError, match=r"--width: it comes from node 20 PrimitiveInt, which feeds 5\.height too"):
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
