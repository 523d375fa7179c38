"""One sampler and its conditioning: ComfyUI's own nodes, in the ways they are wired."""

from __future__ import annotations

from settee.client.client_errors import Ambiguous
from tests.unit.client.prompt_shapes.building import (
    DIFFER,
    NONE,
    SHARED,
    Shape,
    encoder,
    node,
    sampler,
    sd15,
)

SD15 = {
    "sd1.5": Shape(sd15(), ["6.text"], ["7.text"]),
    "ids of a subgraph": Shape(
        sd15("@57:8", "@57:12", n57_8=encoder("a fox"), n57_12=encoder("blurry"), n6=None, n7=None),
        ["57:8.text"],
        ["57:12.text"],
    ),
    "a negative left empty": Shape(sd15(n7=encoder("")), ["6.text"], ["7.text"]),
    "img2img with two loaders": Shape(
        sd15(
            n20=node("LoadImage", image="a.png"),
            n21=node("LoadImage", image="b.png"),
            n22=node("ImageBatch", image1="@20", image2="@21"),
            n5=node("VAEEncode", pixels="@22", vae="@1/2"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "a chain of LoRAs": Shape(
        sd15(
            n10=node("LoraLoader", lora_name="a", strength_model=1.0, strength_clip=1.0, model="@1", clip="@1/1"),
            n11=node("LoraLoader", lora_name="b", strength_model=1.0, strength_clip=1.0, model="@10", clip="@10/1"),
            n6=encoder("a fox", "@11/1"),
            n7=encoder("blurry", "@11/1"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "clip skip": Shape(
        sd15(n10=node("CLIPSetLastLayer", stop_at_clip_layer=-2, clip="@1/1"), n6=encoder("a fox", "@10")),
        ["6.text"],
        ["7.text"],
    ),
    "hires fix, two samplers over the same encoders": Shape(
        sd15(
            n30=node("LatentUpscaleBy", samples="@3", upscale_method="bislerp", scale_by=1.5),
            n31=sampler(positive="@6", negative="@7", latent_image="@30"),
            n8=node("VAEDecode", samples="@31", vae="@1/2"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "two samplers with prompts of their own": Shape(
        sd15(
            n31=sampler(positive="@32", negative="@7"),
            n32=encoder("a fox, sharp"),
            n8=node("VAEDecode", samples="@31", vae="@1/2"),
        ),
        DIFFER,
        ["7.text"],
    ),
    "a sampler that no output needs": Shape(
        sd15(n31=sampler(positive="@32", negative="@33"), n32=encoder("a draft"), n33=encoder("none")),
        ["6.text"],
        ["7.text"],
    ),
    "an encoder that nothing takes": Shape(sd15(n32=encoder("an idea for later")), ["6.text"], ["7.text"]),
    "a reroute on either side": Shape(
        sd15("@20", "@21", n20=node("Reroute", **{"": "@6"}), n21=node("Reroute", **{"": "@7"})),
        ["6.text"],
        ["7.text"],
    ),
}

CONDITIONING = {
    "controlnet": Shape(
        sd15(
            "@12",
            "@12/1",
            n12=node("ControlNetApplyAdvanced", positive="@6", negative="@7", control_net="@13", image="@14"),
            n13=node("ControlNetLoader", control_net_name="canny"),
            n14=node("LoadImage", image="a.png"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "controlnet, wired the wrong way round": Shape(
        sd15(
            "@12/1",
            "@12",
            n12=node("ControlNetApplyAdvanced", positive="@6", negative="@7", control_net="@13", image="@14"),
            n13=node("ControlNetLoader", control_net_name="canny"),
            n14=node("LoadImage", image="a.png"),
        ),
        ["7.text"],
        ["6.text"],
    ),
    "two controlnets in a row": Shape(
        sd15(
            "@15",
            "@15/1",
            n12=node("ControlNetApplyAdvanced", positive="@6", negative="@7", control_net="@13", image="@14"),
            n15=node("ControlNetApplySD3", positive="@12", negative="@12/1", control_net="@13", image="@14"),
            n13=node("ControlNetLoader", control_net_name="canny"),
            n14=node("LoadImage", image="a.png"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "the old controlnet, positive only": Shape(
        sd15(
            "@12",
            n12=node("ControlNetApply", conditioning="@6", control_net="@13", image="@14", strength=1.0),
            n13=node("ControlNetLoader", control_net_name="canny"),
            n14=node("LoadImage", image="a.png"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "inpaint": Shape(
        sd15(
            "@12",
            "@12/1",
            n12=node("InpaintModelConditioning", positive="@6", negative="@7", vae="@1/2", pixels="@14", mask="@14/1"),
            n14=node("LoadImage", image="a.png"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "inpaint, for its latent only": Shape(
        sd15(
            n3=sampler(positive="@6", negative="@7", latent_image="@12/2"),
            n12=node(
                "InpaintModelConditioning", positive="@20", negative="@21", vae="@1/2", pixels="@14", mask="@14/1"
            ),
            n14=node("LoadImage", image="a.png"),
            n20=encoder("of no effect"),
            n21=encoder("of none either"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "texts joined, different": Shape(
        sd15(
            "@12",
            n12=node("ConditioningConcat", conditioning_to="@6", conditioning_from="@13"),
            n13=encoder("in the snow"),
        ),
        DIFFER,
        ["7.text"],
    ),
    "areas with one text": Shape(
        sd15(
            "@12",
            n12=node("ConditioningCombine", conditioning_1="@13", conditioning_2="@14"),
            n13=node("ConditioningSetArea", conditioning="@6", width=64, height=64, x=0, y=0, strength=1.0),
            n14=node("ConditioningSetMask", conditioning="@6", mask="@15", strength=1.0, set_cond_area="default"),
            n15=node("SolidMask", value=1.0, width=64, height=64),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "pairs of conditioning": Shape(
        sd15(
            "@12",
            "@12/1",
            n12=node("PairConditioningCombine", positive_A="@6", negative_A="@7", positive_B="@13", negative_B="@14"),
            n13=encoder("a fox "),
            n14=encoder("noise"),
        ),
        ["6.text", "13.text"],
        DIFFER,
    ),
    "a box of GLIGEN's": Shape(
        sd15(
            "@12",
            n12=node(
                "GLIGENTextBoxApply", conditioning_to="@6", clip="@1/1", gligen_textbox_model="@13", text="a red ball"
            ),
            n13=node("GLIGENLoader", gligen_name="gligen"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "one encoder for both sides": Shape(sd15("@6", "@6", n7=None), SHARED, SHARED),
    "one encoder for both sides, guided on one": Shape(
        sd15("@12", "@6", n12=node("FluxGuidance", guidance=3.5, conditioning="@6"), n7=None), SHARED, SHARED
    ),
    "one sampler's positive is the other's negative": Shape(
        sd15(
            n31=sampler(positive="@32", negative="@6"),
            n32=encoder("a fox"),
            n8=node("VAEDecode", samples="@31", vae="@1/2"),
        ),
        SHARED,
        (Ambiguous, "their texts differ"),
    ),
    "a negative that is emptied": Shape(
        sd15("@6", "@12", n12=node("ConditioningZeroOut", conditioning="@6"), n7=None), ["6.text"], NONE
    ),
    "a negative that is emptied, of an encoder of its own": Shape(
        sd15("@6", "@12", n12=node("ConditioningZeroOut", conditioning="@7")), ["6.text"], NONE
    ),
    "an emptied one that nothing takes": Shape(
        sd15(
            "@6",
            "@13",
            n12=node("ConditioningZeroOut", conditioning="@14"),
            n13=node("ControlNetApplyAdvanced", positive="@7", negative="@12", strength=1.0),
            n14=encoder("of no effect"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "sd3, a negative for the first steps only": Shape(
        sd15(
            "@6",
            "@15",
            n12=node("ConditioningZeroOut", conditioning="@7"),
            n13=node("ConditioningSetTimestepRange", conditioning="@12", start=0.1, end=1.0),
            n14=node("ConditioningSetTimestepRange", conditioning="@7", start=0.0, end=0.1),
            n15=node("ConditioningCombine", conditioning_1="@13", conditioning_2="@14"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "a style by a picture": Shape(
        sd15(
            "@12",
            n12=node(
                "StyleModelApply",
                conditioning="@13",
                style_model="@14",
                clip_vision_output="@15",
                strength_type="multiply",
            ),
            n13=node("unCLIPConditioning", conditioning="@6", clip_vision_output="@15", strength=1.0),
            n14=node("StyleModelLoader", style_model_name="style"),
            n15=node("CLIPVisionEncode", clip_vision="@16", image="@17", crop="none"),
            n16=node("CLIPVisionLoader", clip_name="vision"),
            n17=node("LoadImage", image="a.png"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "a video from a picture only": Shape(
        sd15(
            "@12",
            "@12/1",
            n12=node("SVD_img2vid_Conditioning", clip_vision="@1/1", init_image="@14", vae="@1/2", width=1024),
            n14=node("LoadImage", image="a.png"),
            n6=None,
            n7=None,
        ),
        NONE,
        NONE,
    ),
    "wan, image to video": Shape(
        sd15(
            "@12",
            "@12/1",
            n12=node("WanImageToVideo", positive="@6", negative="@7", vae="@1/2", start_image="@14", width=832),
            n14=node("LoadImage", image="a.png"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "hunyuan, image to video": Shape(
        sd15(
            "@12",
            n12=node("HunyuanImageToVideo", positive="@6", vae="@1/2", start_image="@14", guidance_type="v1 (concat)"),
            n14=node("LoadImage", image="a.png"),
            n6=node("TextEncodeHunyuanVideo_ImageToVideo", clip="@1/1", clip_vision_output="@15", prompt="a fox runs"),
            n15=node("CLIPVisionEncode", clip_vision="@1/1", image="@14", crop="none"),
        ),
        ["6.prompt"],
        ["7.text"],
    ),
    "stable audio": Shape(
        sd15(
            "@12",
            "@12/1",
            n12=node("ConditioningStableAudio", positive="@6", negative="@7", seconds_start=0.0, seconds_total=47.0),
            n8=node("VAEDecodeAudio", samples="@3", vae="@1/2"),
            n9=node("SaveAudio", filename_prefix="a", audio="@8"),
        ),
        ["6.text"],
        ["7.text"],
    ),
}
