"""Names of inputs and classes, and their meaning for prompts: all that is known of a class without a registry.

ComfyUI's own classes, as far as prompts go, are listed: a target is often not asked for its registry before a prompt is
placed, and a listed class is never guessed about. The source is ComfyUI's /object_info.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from typing import Literal


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: Text encoders and the inputs that hold their prompt. Several inputs of one encoder are the same prompt for several
#: language models. An input that is not listed is not a prompt: lyrics, a system prompt.
ENCODERS: dict[str, tuple[str, ...]] = {
    "CLIPTextEncode": ("text",),
    "CLIPTextEncodeControlnet": ("text",),
    "CLIPTextEncodeFlux": ("clip_l", "t5xxl"),
    "CLIPTextEncodeHiDream": ("clip_l", "clip_g", "t5xxl", "llama"),
    "CLIPTextEncodeHunyuanDiT": ("bert", "mt5xl"),
    "CLIPTextEncodeKandinsky5": ("clip_l", "qwen25_7b"),
    "CLIPTextEncodeLumina2": ("user_prompt",),
    "CLIPTextEncodePixArtAlpha": ("text",),
    "CLIPTextEncodeSD3": ("clip_l", "clip_g", "t5xxl"),
    "CLIPTextEncodeSDXL": ("text_g", "text_l"),
    "CLIPTextEncodeSDXLRefiner": ("text",),
    "PhotoMakerEncode": ("text",),
    "TextEncodeAceStepAudio": ("tags",),
    "TextEncodeAceStepAudio1.5": ("tags",),
    "TextEncodeHunyuanVideo_ImageToVideo": ("prompt",),
    "TextEncodeQwenImageEdit": ("prompt",),
    "TextEncodeQwenImageEditPlus": ("prompt",),
    "TextEncodeZImageOmni": ("prompt",),
}

#: Classes that pass a text on, and the inputs that make it up.
TEXT_FUNCTIONS: dict[str, tuple[str, ...]] = {
    "PrimitiveString": ("value",),
    "PrimitiveStringMultiline": ("value",),
    "CaseConverter": ("string",),
    "RegexExtract": ("string",),
    # What replaces may be the prompt as well as what it is put into.
    "RegexReplace": ("string", "replace"),
    "StringConcatenate": ("string_a", "string_b"),
    "StringReplace": ("string", "replace"),
    "StringSubstring": ("string",),
    "StringTrim": ("string",),
    "ShowText|pysssss": ("text",),
}

#: Classes with a positive and a negative input that give the first on output 0 and the second on those after it.
TWO_SIDED = _names(
    """
    ConditioningStableAudio ControlNetApplyAdvanced ControlNetApplySD3 ControlNetInpaintingAliMamaApply
    HunyuanRefinerLatent InpaintModelConditioning InstructPixToPixConditioning LTXVAddGuide LTXVConditioning
    LTXVCropGuides LTXVImgToVideo PairConditioningCombine PairConditioningSetDefaultCombine
    PairConditioningSetProperties PairConditioningSetPropertiesAndCombine SD_4XUpscale_Conditioning
    Wan22FunControlToVideo WanAnimateToVideo WanCameraImageToVideo WanFirstLastFrameToVideo WanFunControlToVideo
    WanFunInpaintToVideo WanHuMoImageToVideo WanImageToVideo WanPhantomSubjectToVideo WanSoundImageToVideo
    WanSoundImageToVideoExtend WanTrackToVideo WanVaceToVideo
    """
)

#: Classes that give conditioning, and take one side's or none. Their texts are not prompts: GLIGEN's is of a box.
ONE_SIDED = _names(
    """
    ConditioningAverage ConditioningCombine ConditioningConcat ConditioningSetArea ConditioningSetAreaPercentage
    ConditioningSetAreaPercentageVideo ConditioningSetAreaStrength ConditioningSetDefaultCombine ConditioningSetMask
    ConditioningSetProperties ConditioningSetPropertiesAndCombine ConditioningSetTimestepRange
    ConditioningTimestepsRange ConditioningZeroOut ControlNetApply FluxDisableGuidance FluxGuidance
    FluxKontextMultiReferenceLatentMethod GLIGENTextBoxApply Hunyuan3Dv2Conditioning Hunyuan3Dv2ConditioningMultiView
    HunyuanImageToVideo LoadImageTextSetFromFolderNode LotusConditioning ReferenceLatent SV3D_Conditioning
    SVD_img2vid_Conditioning StableCascade_StageB_Conditioning StableZero123_Conditioning
    StableZero123_Conditioning_Batched StyleModelApply unCLIPConditioning
    """
)

#: What gives conditioning and samples nothing.
CONDITIONING = TWO_SIDED | ONE_SIDED | frozenset(ENCODERS)

#: Classes that are not outputs of a workflow, though nothing takes their result.
NO_OUTPUT = (
    CONDITIONING
    | frozenset(TEXT_FUNCTIONS)
    | _names(
        """
        BasicGuider CFGGuider CLIPLoader CLIPSetLastLayer CheckpointLoader CheckpointLoaderSimple CreateVideo
        DualCFGGuider DualCLIPLoader ImageScale ImageScaleBy ImageScaleToTotalPixels ImageUpscaleWithModel KSampler
        KSamplerAdvanced LatentUpscale LatentUpscaleBy LoadImage LoraLoader LoraLoaderModelOnly PerpNegGuider Reroute
        SamplerCustom SamplerCustomAdvanced UNETLoader VAEDecode VAEDecodeAudio VAEDecodeTiled VAEEncode
        VAEEncodeForInpaint VAELoader
        """
    )
)


#: What conditioning is for. Inputs take ``positive``, ``negative``, ``neutral`` (no side of its own: that of the path,
#: and a sampler's positive), ``empty`` (guidance by no prompt at all, PerpNegGuider's) or a ``bundle`` (all that a
#: sampler needs in one link; the output of an unpacking node that is taken decides the side). Paths may also be
#: ``middle``, either side's (DualCFGGuider's second condition, a model patch's), and ``erased``, without effect.
Side = Literal["positive", "negative", "neutral", "empty", "bundle", "middle", "erased"]

#: Inputs of sampling nodes. One that has two of them samples, also when it passes its conditioning on.
SAMPLING_INPUTS = frozenset(["sampler_name", "steps", "cfg", "denoise", "noise_seed", "sigmas", "sampler"])
#: Inputs for one prompt's words in one of several language models.
PARTS = frozenset(["clip_l", "clip_g", "t5xxl", "llama", "bert", "mt5xl", "text_g", "text_l", "qwen25_7b"])
#: Inputs of nodes that take a prompt themselves, as ComfyUI's API nodes do.
PROMPT_INPUTS: dict[Side, frozenset[str]] = {
    "positive": frozenset(["prompt", "prompt_text", "positive_prompt", "text_prompt"]),
    "negative": frozenset(["negative_prompt", "negative_prompt_text", "prompt_negative"]),
}
#: Names of the one text of a node that has no other input, where it is what the node is for.
VALUE_NAMES = frozenset(["value", "content", "contents", "positive", "negative"])

#: Words that names of inputs and classes are made of, by what they speak of.
_WORDS = {
    "positive": "positive pos",
    "negative": "negative neg uncond unconditional",
    "conditioning": "cond conds conditioning conditionings",
    "bundle": "pipe ctx context bus embed embeds",
    "text": "text texts prompt prompts string strings caption captions tags description",
    # A choice, a file or a text which is not a prompt.
    "choice": """
    action algorithm attention backend base bracket case ckpt clean combine crop delimiter device directory dtype
    embed embedding embeddings embeds encoder file filename fit folder format index instruction instructions
    interpolation joiner key language length level log lora lyrics method mode model name norm normalization operation
    option padding parser path position precision prefix preset quality quantization resolution role sampler scheduler
    separator seq size strength style suffix system task template tidy token tokenizer type url version weight
    weighting
    """,
    "setting": """
    model models vae clip strength scale weight weights noise sigmas net vision mode type start end point points
    coordinates coords
    """,
    "media": """
    image images img picture pictures video videos audio mesh svg glb frame frames sample samples latent latents pixels
    id voxel source destination animation
    """,
    "mask": "mask masks bbox bboxes segs seg sams detector",
    # It chooses among texts.
    "number": "seed index select selector count start end length switch",
    # A class that writes a prompt into a picture's metadata, or shows one.
    "keeper": "save saver preview show display metadata inspect inspector",
}
_KINDS = {kind: _names(words) for kind, words in _WORDS.items()}
_SWITCH = re.compile(r"(?:input|any|value|in|a|b|x|on_true|on_false|if_true|if_false|true|false|option)[_ ]?\d*")


@lru_cache(maxsize=4096)
def words(name: str) -> frozenset[str]:
    """Return a name's words, lower case: ``positive_A`` → positive, a; ``promptText2`` → prompt, text, 2."""
    return frozenset(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name))


def says(name: str, *kinds: str) -> bool:
    """Return True if one of a name's words is of these kinds."""
    return any(words(name) & _KINDS[kind] for kind in kinds)


def is_other_kind(name: str) -> bool:
    """Return True if a linked input sounds like a picture, a model or a number."""
    return says(name, "setting", "media", "mask")


def conditioning_side(name: str) -> Side | None:
    """Return the side that a linked input takes, by its name; None when it does not sound like conditioning."""
    if is_other_kind(name):
        return None
    if "empty" in words(name):
        return "empty"
    return sided(name) or ("neutral" if says(name, "conditioning") else "bundle" if says(name, "bundle") else None)


def sided(name: str) -> Side | None:
    """Return positive or negative, where the name of an input or an output has it (``CONDITIONING+``)."""
    if says(name, "negative") or name.endswith("-"):
        return "negative"
    return "positive" if says(name, "positive") or name.endswith("+") else None


def is_switch_name(name: str) -> bool:
    """Return True if an input is one of those that a reroute or a switch chooses from, whatever they carry."""
    return bool(_SWITCH.fullmatch(name.lower())) or not name.strip()


def is_text_name(name: str) -> bool:
    """Return True if an input sounds as if it held a prompt, or a part of one."""
    return name in PARTS or (says(name, "text") and not says(name, "choice"))


def is_language_model(name: str) -> bool:
    """Return True if a linked input sounds like what a text encoder encodes with."""
    is_one = name.lower() in ("t5", "t5xxl") or bool(words(name) & {"clip", "encoder", "conditioner", "tokenizer"})
    return is_one and "vision" not in words(name)


def made(consumers: Iterable[str]) -> str | None:
    """Return the kind of a node's output by the names of the inputs that take it: ``media``, ``text`` or ``mask``, the
    first of these that fits one of them; ``media`` when nothing takes it; None when a name gives no hint."""
    kinds = set()
    for name in consumers:
        kind = next((kind for kind in ("mask", "media") if says(name, kind)), "text" if is_text_name(name) else None)
        if kind is None:
            return None
        kinds.add(kind)
    return next((kind for kind in ("media", "text", "mask") if kind in kinds), "media")
