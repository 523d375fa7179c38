"""Names of inputs and classes, and their meaning for prompts: all that is known of a class without a registry.

ComfyUI's own classes, as far as prompts go, are listed: a target is often not asked for its registry before a prompt is
placed, and a listed class is never guessed about. The source is ComfyUI's /object_info.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from enum import Enum
from functools import lru_cache


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

#: Classes that give conditioning, and take that of one side or none. Their texts are not prompts: GLIGEN's names the
#: content of a box.
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


class Side(Enum):
    """The side of the conditioning that an input takes."""

    POSITIVE = 0
    NEGATIVE = 1
    #: Conditioning of no side of its own: that of who asks, and a sampler's positive.
    NEUTRAL = 2
    #: Guidance by no prompt at all (PerpNegGuider).
    EMPTY = 3
    #: All that a sampler needs in one link; the output of an unpacking node that is taken decides the side.
    BUNDLE = 4


#: Inputs of sampling nodes. One that has two of them samples, also when it passes its conditioning on.
SAMPLING_INPUTS = frozenset(["sampler_name", "steps", "cfg", "denoise", "noise_seed", "sigmas", "sampler"])
#: Inputs for one prompt's words in one of several language models.
PARTS = frozenset(["clip_l", "clip_g", "t5xxl", "llama", "bert", "mt5xl", "text_g", "text_l", "qwen25_7b"])
#: Inputs of nodes that take a prompt themselves, as ComfyUI's API nodes do.
PROMPT_INPUTS = frozenset(["prompt", "prompt_text", "positive_prompt", "text_prompt"])
NEGATIVE_PROMPT_INPUTS = frozenset(["negative_prompt", "negative_prompt_text", "prompt_negative"])


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_TEXTS = _words("text texts prompt prompts string strings caption captions tags description")
#: Words of inputs that hold a choice, a file or a text which is not a prompt.
_CHOICES = _words(
    """
    action algorithm attention backend base bracket case ckpt clean combine crop delimiter device directory dtype
    embed embedding embeddings embeds encoder file filename fit folder format index instruction instructions
    interpolation joiner key language length level log lora lyrics method mode model name norm normalization operation
    option padding parser path position precision prefix preset quality quantization resolution role sampler scheduler
    separator seq size strength style suffix system task template tidy token tokenizer type url version weight
    weighting
    """
)
_SETTINGS = _words(
    """
    model models vae clip strength scale weight weights noise sigmas net vision mode type start end point points
    coordinates coords
    """
)
_MEDIA = _words(
    """
    image images img picture pictures video videos audio mesh svg glb frame frames sample samples latent latents pixels
    id voxel source destination animation
    """
)
_MASKS = _words("mask masks bbox bboxes segs seg sams detector")
_SWITCH = re.compile(r"(?:input|any|value|in|a|b|x|on_true|on_false|if_true|if_false|true|false|option)[_ ]?\d*")


def words(name: str) -> frozenset[str]:
    """Return a name's words, lower case: ``positive_A`` → positive, a; ``promptText2`` → prompt, text, 2."""
    return frozenset(word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name))


# --- conditioning ----------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def conditioning_side(name: str) -> Side | None:
    """Return the side that a linked input takes, by its name; None when it does not sound like conditioning."""
    said = words(name)
    if is_other_kind(name):
        return None
    if "empty" in said:
        return Side.EMPTY
    side = sided(name)
    if side is not None:
        return side
    if said & _words("cond conds conditioning conditionings"):
        return Side.NEUTRAL
    return Side.BUNDLE if said & _words("pipe ctx context bus embed embeds") else None


def sided(name: str) -> Side | None:
    """POSITIVE or NEGATIVE, where the name of an input or an output says so (``CONDITIONING+``)."""
    said = words(name)
    if said & _words("negative neg uncond unconditional") or name.endswith("-"):
        return Side.NEGATIVE
    return Side.POSITIVE if said & _words("positive pos") or name.endswith("+") else None


def is_other_kind(name: str) -> bool:
    """Return True if a linked input sounds like a picture, a model or a number."""
    return bool(words(name) & (_SETTINGS | _MEDIA | _MASKS))


def is_switch_name(name: str) -> bool:
    """Return True if an input is one of those that a reroute or a switch chooses from, whatever they carry."""
    return bool(_SWITCH.fullmatch(name.lower())) or not name.strip()


def empties(class_type: str) -> bool:
    """Return True if a class makes conditioning that keeps nothing of its source."""
    return bool(re.search(r"zero_?out", class_type, re.IGNORECASE))


def is_kept_away_from(class_type: str) -> bool:
    """Return True if a class takes its one condition as a negative: normalized attention guidance."""
    return bool(re.search(r"NAG(?![a-z])", class_type))


# --- texts -----------------------------------------------------------------------------------------------


@lru_cache(maxsize=4096)
def is_text_name(name: str) -> bool:
    """Return True if an input sounds as if it held a prompt, or a part of one."""
    return name in PARTS or bool(words(name) & _TEXTS and not words(name) & _CHOICES)


def is_choice_name(name: str) -> bool:
    """Return True if an input sounds as if its text were a choice, a file or a setting."""
    return name not in PARTS and bool(words(name) & _CHOICES)


def is_number_name(name: str) -> bool:
    """Return True if a linked input sounds as if it chose among texts by a number."""
    return bool(words(name) & _words("seed index select selector count start end length switch"))


def is_value_name(name: str) -> bool:
    """Return True if the one text of a node that has no other input sounds as if it were what the node is for."""
    return name.lower() in ("value", "content", "contents", "positive", "negative")


def is_language_model(name: str) -> bool:
    """Return True if a linked input sounds like what a text encoder encodes with."""
    said = words(name)
    is_one = name.lower() in ("t5", "t5xxl") or bool(said & _words("clip encoder conditioner tokenizer"))
    return is_one and "vision" not in said


def keeps_texts(class_type: str) -> bool:
    """Return True if a class sounds as if it wrote a prompt into a picture's metadata, or showed one."""
    return bool(words(class_type) & _words("save saver preview show display metadata inspect inspector"))


def made(consumers: Iterable[str]) -> str | None:
    """Return the kind of a node's output by the names of the inputs that take it: ``media``, ``text`` or ``mask``, the
    first of these that fits one of them; ``media`` when nothing takes it; None when a name gives no hint."""
    kinds = set()
    for name in consumers:
        said = words(name)
        if said & _MASKS:
            kinds.add("mask")
        elif said & _MEDIA:
            kinds.add("media")
        elif is_text_name(name):
            kinds.add("text")
        else:
            return None
    return next((kind for kind in ("media", "text", "mask") if kind in kinds), "media")
