"""Custom nodes, named as their authors have them or made up, and nodes that take a prompt themselves."""

from __future__ import annotations

from settee.client.client_errors import Ambiguous
from tests.unit.client.prompt_shapes.building import DIFFER, NONE, SHARED, Shape, encoder, node, sampler, sd15

CUSTOM = {
    "a sampler nobody knows": Shape(
        sd15(n3=node("FancySampler", model="@1", positive="@6", negative="@7", latent="@5", strength="high")),
        ["6.text"],
        ["7.text"],
    ),
    "a sampler nobody knows, with names of its own": Shape(
        sd15(n3=node("FancySampler", model="@1", c="@6", uc="@7", latent="@5")),
        (Ambiguous, "a prompt, a negative prompt or neither"),
        (Ambiguous, "a prompt, a negative prompt or neither"),
    ),
    "cond and uncond": Shape(
        sd15(n3=node("FancySampler", model="@1", cond="@6", uncond="@7", latent="@5")), ["6.text"], ["7.text"]
    ),
    "an encoder nobody knows": Shape(
        sd15(
            n6=node("FancyEncode", clip="@1/1", words="a fox", mode="fancy"),
            n7=node("FancyEncode", clip="@1/1", words="blurry", mode="fancy"),
        ),
        ["6.words"],
        ["7.words"],
    ),
    "an encoder nobody knows, with two texts": Shape(
        sd15(n6=node("FancyEncode", clip="@1/1", subject="a fox", scene="snow")), DIFFER, ["7.text"]
    ),
    "weights by another parser": Shape(
        sd15(
            n6=node("BNK_CLIPTextEncodeAdvanced", clip="@1/1", text="a fox", token_normalization="none"),
            n7=node("BNK_CLIPTextEncodeAdvanced", clip="@1/1", text="blurry", token_normalization="none"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "a controlnet nobody knows": Shape(
        sd15("@12", "@12/1", n12=node("FancyControl", positive="@6", negative="@7", weight_type="linear", image="@14"))
        | {"14": node("LoadImage", image="a.png")},
        ["6.text"],
        ["7.text"],
    ),
    "a controlnet nobody knows, the wrong way round": Shape(
        sd15("@12/1", "@12", n12=node("FancyControl", positive="@6", negative="@7", image="@14"))
        | {"14": node("LoadImage", image="a.png")},
        (Ambiguous, "it is not known which output"),
        (Ambiguous, "it is not known which output"),
    ),
    "the prompt goes somewhere nobody knows": Shape(
        sd15(
            n12=node("FancyGuide", thing="@6", samples="@3"),
            n8=node("VAEDecode", samples="@12", vae="@1/2"),
        ),
        (Ambiguous, "also goes to 'thing' of 12 FancyGuide"),
        ["7.text"],
    ),
    "attention guidance by a negative of its own": Shape(
        sd15(
            n3=sampler(model="@12", positive="@6", negative="@7", latent_image="@5"),
            n12=node("WanVideoNAG", model="@1", conditioning="@7", nag_scale=11.0),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "two conditions of no side": Shape(
        sd15(n3=node("FancySampler", model="@1", cond_1="@6", cond_2="@7", latent="@5")), DIFFER, DIFFER
    ),
    "two conditions of no side, both empty": Shape(
        sd15(
            n3=node("FancySampler", model="@1", cond_1="@6", cond_2="@7", latent="@5"),
            n6=encoder(""),
            n7=encoder(""),
        ),
        SHARED,
        SHARED,
    ),
    "a patch by a text that is empty like the negative": Shape(
        sd15(
            n3=sampler(model="@12", positive="@6", negative="@7", latent_image="@5"),
            n7=encoder(""),
            n12=node("FancyPatch", model="@1", conditioning="@13"),
            n13=encoder(""),
        ),
        ["6.text"],
        ["7.text", "13.text"],
    ),
    "a patch by a text of its own": Shape(
        sd15(
            n3=sampler(model="@12", positive="@6", negative="@7", latent_image="@5"),
            n12=node("FancyPatch", model="@1", conditioning="@13"),
            n13=encoder("watercolor"),
        ),
        DIFFER,
        DIFFER,
    ),
    "the negative, inspected": Shape(
        sd15(n12=node("ConditioningInspector", conditioning="@7"), n13=node("ShowAny", anything="@12")),
        ["6.text"],
        ["7.text"],
    ),
    "points, positive and negative": Shape(
        sd15(
            n20=node("Sam2Segmentation", image="@21", coordinates_positive="@22", coordinates_negative="@22/1"),
            n21=node("LoadImage", image="a.png"),
            n22=node("PointsEditor", points_store="[]", coordinates="[]", neg_coordinates="[]", bg_image="@21"),
            n5=node("VAEEncodeForInpaint", pixels="@21", mask="@20", vae="@1/2", grow_mask_by=6),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "conditioning of a picture": Shape(
        sd15("@12", n12=node("FancyPictureEncode", image="@13", region="left"), n13=node("LoadImage", image="a.png")),
        NONE,
        ["7.text"],
    ),
    "a pipe": Shape(
        sd15(
            "@21/3",
            "@21/4",
            n20=node("ToBasicPipe", model="@1", clip="@1/1", vae="@1/2", positive="@6", negative="@7"),
            n21=node("FromBasicPipe", basic_pipe="@20"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "a sampler that takes a pipe": Shape(
        sd15(
            n3=node("ImpactKSamplerBasicPipe", basic_pipe="@20", latent_image="@5", seed=3, steps=20, cfg=8.0),
            n20=node("ToBasicPipe", model="@1", clip="@1/1", vae="@1/2", positive="@6", negative="@7"),
            n8=node("VAEDecode", samples="@3/1", vae="@3/2"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "a context, its positive replaced": Shape(
        sd15(
            "@21/4",
            "@21/5",
            n20=node("Context (rgthree)", model="@1", clip="@1/1", vae="@1/2", positive="@22", negative="@7"),
            n21=node("Context (rgthree)", base_ctx="@20", positive="@6"),
            n22=encoder("replaced"),
        ),
        (Ambiguous, "a prompt, a negative prompt or neither"),
        (Ambiguous, "a prompt, a negative prompt or neither"),
    ),
    "a context": Shape(
        sd15(
            "@21/4",
            "@21/5",
            n20=node("Context (rgthree)", model="@1", clip="@1/1", vae="@1/2", positive="@6", negative="@7"),
            n21=node("Context (rgthree)", base_ctx="@20"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "a context, its positive put in later": Shape(
        sd15(
            "@21/4",
            "@21/5",
            n20=node("Context (rgthree)", model="@1", clip="@1/1", vae="@1/2", negative="@7"),
            n21=node("Context (rgthree)", base_ctx="@20", positive="@6"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "a pipe through a reroute": Shape(
        sd15(
            "@21/3",
            "@21/4",
            n20=node("ToBasicPipe", model="@1", clip="@1/1", vae="@1/2", positive="@6", negative="@7"),
            n21=node("FromBasicPipe", basic_pipe="@22"),
            n22=node("Reroute", **{"": "@20"}),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "a context that is none": Shape(
        sd15(
            n3=sampler(positive="@6", negative="@7", latent_image="@5", context_options="@20"),
            n20=node("FancyContextOptions", model="@1", flavour="flat"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "attention guidance by another text": Shape(
        sd15(
            n3=sampler(model="@12", positive="@6", negative="@7", latent_image="@5"),
            n12=node("WanVideoNAG", model="@1", conditioning="@13", nag_scale=11.0),
            n13=encoder("grainy"),
        ),
        ["6.text"],
        DIFFER,
    ),
    "a loader with both texts, and two samplers": Shape(
        {
            "1": node("Efficient Loader", ckpt_name="v1-5", vae_name="Baked VAE", positive="a fox", negative="blurry"),
            "2": node("KSampler (Efficient)", seed=1, steps=20, cfg=7.0, model="@1", positive="@1/1", negative="@1/2"),
            "3": node("KSampler (Efficient)", seed=2, steps=9, cfg=7.0, model="@2", positive="@2/1", negative="@2/2"),
            "4": node("SaveImage", filename_prefix="a", images="@3/5"),
        },
        ["1.positive"],
        ["1.negative"],
    ),
    "wan by its wrapper": Shape(
        {
            "1": node("LoadWanVideoT5TextEncoder", model_name="umt5", precision="bf16"),
            "2": node("WanVideoTextEncode", t5="@1", positive_prompt="a fox", negative_prompt="blurry"),
            "3": node("WanVideoSampler", model="@4", text_embeds="@2", image_embeds="@5", steps=30, seed=1),
            "4": node("WanVideoModelLoader", model="wan", quantization="disabled"),
            "5": node("WanVideoEmptyEmbeds", width=832, height=480, num_frames=81),
            "6": node("WanVideoDecode", vae="@7", samples="@3"),
            "7": node("WanVideoVAELoader", model_name="vae"),
            "8": node("VHS_VideoCombine", images="@6", frame_rate=16, filename_prefix="wan", format="video/h264-mp4"),
        },
        ["2.positive_prompt"],
        ["2.negative_prompt"],
    ),
    "one text in an embedding": Shape(
        {
            "1": node("LoadWanVideoT5TextEncoder", model_name="umt5", precision="bf16"),
            "2": node("WanVideoTextEncodeSingle", t5="@1", prompt="a fox"),
            "3": node("WanVideoSampler", model="@4", text_embeds="@2", steps=30, seed=1),
            "4": node("WanVideoModelLoader", model="wan", quantization="disabled"),
            "5": node("WanVideoDecode", samples="@3"),
            "6": node("VHS_VideoCombine", images="@5", frame_rate=16, filename_prefix="wan"),
        },
        ["2.prompt"],
        NONE,
    ),
    "a detailer of faces": Shape(
        sd15(
            n20=node(
                "FaceDetailer",
                image="@8",
                model="@1",
                clip="@1/1",
                vae="@1/2",
                positive="@6",
                negative="@7",
                bbox_detector="@21",
                seed=4,
                steps=20,
                wildcard="",
            ),
            n21=node("UltralyticsDetectorProvider", model_name="bbox/face.pt"),
            n9=node("SaveImage", filename_prefix="a", images="@20"),
        ),
        ["6.text"],
        ["7.text"],
    ),
}

SERVICES = {
    "an api node": Shape(
        {
            "1": node("FancyTextToImageNode", prompt="a fox", model="v3", size="1024x1024", seed=1),
            "2": node("SaveImage", filename_prefix="a", images="@1"),
        },
        ["1.prompt"],
        NONE,
    ),
    "an api node with a negative by a link": Shape(
        {
            "1": node("FancyTextToVideoNode", prompt_text="a fox", negative_prompt="@3", seed=1),
            "2": node("SaveVideo", filename_prefix="a", video="@1"),
            "3": node("PrimitiveStringMultiline", value=""),
        },
        ["1.prompt_text"],
        ["3.value"],
    ),
    "an api node after an api node": Shape(
        {
            "1": node("FancyTextToImageNode", prompt="a fox", seed=1),
            "2": node("FancyImageToVideoNode", prompt="it runs", image="@1", seed=1),
            "3": node("SaveVideo", filename_prefix="a", video="@2"),
        },
        DIFFER,
        NONE,
    ),
    "an api node before a sampler": Shape(
        sd15(
            n20=node("FancyTextToImageNode", prompt="a forest", seed=1),
            n5=node("VAEEncode", pixels="@20", vae="@1/2"),
        ),
        DIFFER,
        ["7.text"],
    ),
    "a mask by a word": Shape(
        sd15(
            n20=node("GroundingDinoSAMSegment", prompt="face", image="@21", sam_model="@22", threshold=0.3),
            n21=node("LoadImage", image="a.png"),
            n22=node("SAMModelLoader", model_name="sam"),
            n5=node("VAEEncodeForInpaint", pixels="@21", mask="@20/1", vae="@1/2", grow_mask_by=6),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "a mask by a word, and no prompt": Shape(
        {
            "1": node("LoadImage", image="a.png"),
            "2": node("GroundingDinoSAMSegment", prompt="face", image="@1", threshold=0.3),
            "3": node("FancyCutOut", image="@1", mask="@2/1"),
            "4": node("SaveImage", filename_prefix="a", images="@3"),
        },
        NONE,
        NONE,
    ),
    "a sampler beside an answer that is only shown": Shape(
        sd15(
            n20=node("FancyChatNode", prompt="tell me of foxes", persist_context=False),
            n21=node("SaveText", text="@20"),
        ),
        ["6.text"],
        ["7.text"],
    ),
    "an answer that is only shown": Shape(
        {
            "1": node("FancyChatNode", prompt="tell me of foxes", persist_context=False, model="v3"),
            "2": node("SaveText", text="@1"),
        },
        ["1.prompt"],
        NONE,
    ),
    "a prompt noted with the picture": Shape(
        sd15(n9=node("Image Saver", images="@8", positive="unknown", negative="unknown", filename="a")),
        ["6.text"],
        ["7.text"],
    ),
    "a scaler": Shape(
        {
            "1": node("LoadImage", image="a.png"),
            "2": node("ImageScaleBy", image="@1", upscale_method="lanczos", scale_by=2.0),
            "3": node("SaveImage", filename_prefix="a", images="@2"),
        },
        NONE,
        NONE,
    ),
}
