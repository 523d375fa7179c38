"""Encoders and guiders that a family of models brings."""

from __future__ import annotations

from tests.unit.client.prompt_shapes.building import DIFFER, NONE, SHARED, Shape, encoder, guided, node, sampler, sd15

MODELS = {
    "flux, one guided prompt": Shape(
        guided(
            node("BasicGuider", model="@1", conditioning="@12"),
            n12=node("FluxGuidance", guidance=3.5, conditioning="@6"),
            n6=node("CLIPTextEncodeFlux", clip="@1/1", clip_l="fox", t5xxl="a fox in deep snow", guidance=3.5),
            n7=None,
        ),
        ["6.clip_l", "6.t5xxl"],
        NONE,
    ),
    "flux kontext, a reference": Shape(
        sd15(
            "@13",
            "@12",
            n12=node("ConditioningZeroOut", conditioning="@6"),
            n13=node("FluxGuidance", guidance=2.5, conditioning="@14"),
            n14=node("ReferenceLatent", conditioning="@6", latent="@15"),
            n15=node("VAEEncode", pixels="@16", vae="@1/2"),
            n16=node("LoadImage", image="a.png"),
            n7=None,
        ),
        ["6.text"],
        NONE,
    ),
    "a guider with both": Shape(
        guided(node("CFGGuider", model="@1", positive="@6", negative="@7", cfg=3.0)), ["6.text"], ["7.text"]
    ),
    "two conditions, the second the negative's": Shape(
        guided(
            node("DualCFGGuider", model="@1", cond1="@12", cond2="@13", negative="@7", cfg_conds=5.0),
            n12=node("ReferenceLatent", conditioning="@6", latent="@5"),
            n13=node("ReferenceLatent", conditioning="@7", latent="@5"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "two conditions, each with a prompt": Shape(
        guided(
            node("DualCFGGuider", model="@1", cond1="@6", cond2="@12", negative="@7", cfg_conds=5.0),
            n12=encoder("a wolf"),
        ),
        DIFFER,
        DIFFER,
    ),
    "two conditions, the second the prompt again": Shape(
        guided(
            node("DualCFGGuider", model="@1", cond1="@6", cond2="@12", negative="@7", cfg_conds=5.0),
            n12=encoder("a fox"),
        ),
        ["6.text", "12.text"],
        ["7.text"],
    ),
    "perpendicular negative": Shape(
        guided(
            node("PerpNegGuider", model="@1", positive="@6", negative="@7", empty_conditioning="@12", cfg=3.0),
            n12=encoder(""),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "perpendicular negative, empty for both": Shape(
        guided(
            node("PerpNegGuider", model="@1", positive="@6", negative="@7", empty_conditioning="@7", cfg=3.0),
            n7=encoder(""),
        ),
        ["6.text"],
        SHARED,
    ),
    "sdxl, base and refiner": Shape(
        sd15(
            n6=node("CLIPTextEncodeSDXL", clip="@1/1", text_g="a fox", text_l="a fox", width=1024, height=1024),
            n7=node("CLIPTextEncodeSDXL", clip="@1/1", text_g="blurry", text_l="blurry", width=1024, height=1024),
            n2=node("CheckpointLoaderSimple", ckpt_name="refiner"),
            n16=node("CLIPTextEncodeSDXLRefiner", clip="@2/1", ascore=6.0, text="a fox", width=1024, height=1024),
            n17=node("CLIPTextEncodeSDXLRefiner", clip="@2/1", ascore=2.5, text="blurry", width=1024, height=1024),
            n18=sampler(model="@2", positive="@16", negative="@17"),
            n8=node("VAEDecode", samples="@18", vae="@2/2"),
        ),
        ["6.text_g", "6.text_l", "16.text"],
        ["7.text_g", "7.text_l", "17.text"],
    ),
    "sdxl, two texts in one encoder": Shape(
        sd15(n6=node("CLIPTextEncodeSDXL", clip="@1/1", text_g="a fox in snow", text_l="photo, 35mm", width=1024)),
        ["6.text_g", "6.text_l"],
        ["7.text"],
    ),
    "sd3": Shape(
        sd15(n6=node("CLIPTextEncodeSD3", clip="@1/1", clip_l="fox", clip_g="", t5xxl="a fox", empty_padding="none")),
        ["6.clip_l", "6.clip_g", "6.t5xxl"],
        ["7.text"],
    ),
    "qwen, editing a picture": Shape(
        sd15(
            n6=node("TextEncodeQwenImageEdit", clip="@1/1", vae="@1/2", image="@14", prompt="put a hat on the fox"),
            n7=node("TextEncodeQwenImageEdit", clip="@1/1", vae="@1/2", image="@14", prompt=""),
            n14=node("LoadImage", image="a.png"),
        ),
        ["6.prompt"],
        ["7.prompt"],
    ),
    "qwen, editing two pictures": Shape(
        sd15(
            "@20",
            n6=node("TextEncodeQwenImageEditPlus", clip="@1/1", vae="@1/2", image1="@14", image2="@15", prompt="both"),
            n7=node("TextEncodeQwenImageEditPlus", clip="@1/1", vae="@1/2", image1="@14", prompt=""),
            n20=node("FluxKontextMultiReferenceLatentMethod", conditioning="@6", reference_latents_method="index"),
            n14=node("LoadImage", image="a.png"),
            n15=node("LoadImage", image="b.png"),
        ),
        ["6.prompt"],
        ["7.prompt"],
    ),
    "lumina, with a system prompt": Shape(
        sd15(n6=node("CLIPTextEncodeLumina2", clip="@1/1", system_prompt="superior", user_prompt="a fox")),
        ["6.user_prompt"],
        ["7.text"],
    ),
    "a song": Shape(
        sd15(
            "@6",
            "@12",
            n6=node("TextEncodeAceStepAudio", clip="@1/1", tags="folk", lyrics="[verse] la", lyrics_strength=1.0),
            n12=node("ConditioningZeroOut", conditioning="@6"),
            n7=None,
        ),
        ["6.tags"],
        NONE,
    ),
}
