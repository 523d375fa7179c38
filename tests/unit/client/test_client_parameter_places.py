"""Where --steps, --cfg, --width, … go in published workflows and in graphs whose places are less than obvious."""

from __future__ import annotations

import re
from typing import Any

import pytest

from settee.client.client_errors import Ambiguous, UsageError
from settee.client.inject.parameter_places import Parameters, parameter_changes
from settee.client.targets.comfy_api import well_described
from tests.support.editor_files import DATA
from tests.support.editor_files import OBJECT_INFO as INFO
from tests.support.parameters import ksampler, node, on, places, simple
from tests.support.published import real

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
    found = {(c.node_id, c.input): (c.value, c.why) for c in parameter_changes(simple(), wanted, well_described(INFO))}
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
