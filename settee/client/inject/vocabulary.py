"""What names of classes and inputs say about prompts: the part of ComfyUI's registry that the client carries with it.

Classes of ComfyUI's own are listed (its /object_info is the source), as a target is often not asked before a prompt is
placed, and a listed class is never guessed about. Of any other class, the names of its inputs are all that is known.
"""

from __future__ import annotations

import re
from enum import Enum
from functools import lru_cache

#: Text encoders and the inputs that hold their prompt. Several inputs of one encoder are the same prompt for several
#: language models. What is not listed is no prompt: lyrics, a system prompt.
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

#: Classes with a text of another meaning: GLIGEN's names what is in a box, on top of the prompt.
NO_PROMPT = frozenset(["GLIGENTextBoxApply", "WanTrackToVideo", "LoadImageTextSetFromFolderNode"])

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
TWO_SIDED = frozenset(
    [
        "ConditioningStableAudio",
        "ControlNetApplyAdvanced",
        "ControlNetApplySD3",
        "ControlNetInpaintingAliMamaApply",
        "HunyuanRefinerLatent",
        "InpaintModelConditioning",
        "InstructPixToPixConditioning",
        "LTXVAddGuide",
        "LTXVConditioning",
        "LTXVCropGuides",
        "LTXVImgToVideo",
        "PairConditioningCombine",
        "PairConditioningSetDefaultCombine",
        "PairConditioningSetProperties",
        "PairConditioningSetPropertiesAndCombine",
        "SD_4XUpscale_Conditioning",
        "Wan22FunControlToVideo",
        "WanAnimateToVideo",
        "WanCameraImageToVideo",
        "WanFirstLastFrameToVideo",
        "WanFunControlToVideo",
        "WanFunInpaintToVideo",
        "WanHuMoImageToVideo",
        "WanImageToVideo",
        "WanPhantomSubjectToVideo",
        "WanSoundImageToVideo",
        "WanSoundImageToVideoExtend",
        "WanTrackToVideo",
        "WanVaceToVideo",
    ]
)

#: ComfyUI's own that pass one side's conditioning on.
ONE_SIDED = frozenset(
    [
        "ConditioningAverage",
        "ConditioningCombine",
        "ConditioningConcat",
        "ConditioningSetArea",
        "ConditioningSetAreaPercentage",
        "ConditioningSetAreaPercentageVideo",
        "ConditioningSetAreaStrength",
        "ConditioningSetDefaultCombine",
        "ConditioningSetMask",
        "ConditioningSetProperties",
        "ConditioningSetPropertiesAndCombine",
        "ConditioningSetTimestepRange",
        "ConditioningZeroOut",
        "ControlNetApply",
        "FluxDisableGuidance",
        "FluxGuidance",
        "FluxKontextMultiReferenceLatentMethod",
        "GLIGENTextBoxApply",
        "HunyuanImageToVideo",
        "LotusConditioning",
        "ReferenceLatent",
        "StableCascade_StageB_Conditioning",
        "StyleModelApply",
        "unCLIPConditioning",
    ]
)

GUIDERS = frozenset(["BasicGuider", "CFGGuider", "DualCFGGuider", "PerpNegGuider"])

#: ComfyUI's own that end in nothing where they are not connected on: no output of a workflow, though no link leaves.
DANGLING = (
    TWO_SIDED
    | ONE_SIDED
    | GUIDERS
    | ENCODERS.keys()
    | TEXT_FUNCTIONS.keys()
    | frozenset(
        [
            "CLIPSetLastLayer",
            "CheckpointLoader",
            "CheckpointLoaderSimple",
            "CreateVideo",
            "ImageScale",
            "ImageScaleBy",
            "ImageScaleToTotalPixels",
            "ImageUpscaleWithModel",
            "KSampler",
            "KSamplerAdvanced",
            "LatentUpscale",
            "LatentUpscaleBy",
            "LoraLoader",
            "LoraLoaderModelOnly",
            "Reroute",
            "SamplerCustom",
            "SamplerCustomAdvanced",
            "VAEDecode",
            "VAEDecodeAudio",
            "VAEDecodeTiled",
            "VAEEncode",
            "VAEEncodeForInpaint",
        ]
    )
)

ZERO_OUT = re.compile(r"zero_?out", re.IGNORECASE)

#: Inputs of sampling nodes. A node with one of them samples, also when it passes its conditioning on.
SAMPLING_INPUTS = frozenset(["sampler_name", "steps", "cfg", "denoise", "noise_seed", "sigmas", "sampler"])
NAG = re.compile(r"NAG(?![a-z])")


class Side(Enum):
    POSITIVE = 0
    NEGATIVE = 1
    #: Conditioning of no side of its own: that of who asks, and a sampler's positive.
    NEUTRAL = 2
    #: Guidance without a prompt (PerpNegGuider): no place for one.
    EMPTY = 3
    #: Whatever a sampler needs in one link; the name of the output taken from it says the side.
    BUNDLE = 4


def words(name: str) -> list[str]:
    """A name's words, lower case: ``positive_A`` → positive, a; ``promptText2`` → prompt, text, 2."""
    return [word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|\d+", name)]


_OF_OTHER_KINDS = frozenset(
    [
        "model",
        "models",
        "vae",
        "clip",
        "image",
        "images",
        "img",
        "mask",
        "masks",
        "latent",
        "latents",
        "strength",
        "scale",
        "weight",
        "weights",
        "noise",
        "sigmas",
        "net",
        "vision",
        "mode",
        "type",
        "start",
        "end",
    ]
)
_PIPES = frozenset(["pipe", "ctx", "context", "bus"])


@lru_cache(maxsize=4096)
def conditioning_side(name: str) -> Side | None:
    """The side of a linked input by its name; None when it does not sound like conditioning."""
    said = set(words(name))
    if said & _OF_OTHER_KINDS:
        return None
    if "empty" in said:
        return Side.EMPTY
    side = sided(name)
    if side is not None:
        return side
    if said & {"cond", "conds", "conditioning", "conditionings"}:
        return Side.NEUTRAL
    return Side.BUNDLE if said & _PIPES or said & {"embeds", "embed"} else None


def sided(name: str) -> Side | None:
    """POSITIVE or NEGATIVE where a name of an input or an output says so."""
    said = set(words(name))
    if said & {"negative", "neg", "uncond", "unconditional"} or name.endswith("-"):
        return Side.NEGATIVE
    return Side.POSITIVE if said & {"positive", "pos"} or name.endswith("+") else None


#: Inputs that hold one prompt for one of several language models.
PARTS = frozenset(["clip_l", "clip_g", "t5xxl", "llama", "bert", "mt5xl", "text_g", "text_l", "qwen25_7b"])
_TEXT = frozenset(
    ["text", "texts", "prompt", "prompts", "string", "strings", "caption", "captions", "tags", "description"]
)
#: Words of inputs that hold a choice, a file or a text which is no prompt.
_NO_TEXT = frozenset(
    [
        "action",
        "algorithm",
        "attention",
        "backend",
        "base",
        "bracket",
        "case",
        "ckpt",
        "clean",
        "combine",
        "crop",
        "delimiter",
        "device",
        "directory",
        "dtype",
        "encoder",
        "file",
        "filename",
        "fit",
        "folder",
        "format",
        "index",
        "instruction",
        "instructions",
        "interpolation",
        "joiner",
        "key",
        "language",
        "length",
        "level",
        "log",
        "lora",
        "lyrics",
        "method",
        "mode",
        "model",
        "name",
        "norm",
        "normalization",
        "operation",
        "option",
        "padding",
        "parser",
        "path",
        "position",
        "precision",
        "prefix",
        "preset",
        "quality",
        "quantization",
        "resolution",
        "role",
        "sampler",
        "scheduler",
        "separator",
        "seq",
        "size",
        "strength",
        "style",
        "suffix",
        "system",
        "task",
        "template",
        "tidy",
        "token",
        "tokenizer",
        "type",
        "url",
        "version",
        "weight",
        "weighting",
    ]
)


@lru_cache(maxsize=4096)
def is_text_name(name: str) -> bool:
    """Whether an input sounds as if it held a prompt, or a part of one."""
    said = set(words(name))
    return name in PARTS or (bool(said & _TEXT) and not said & _NO_TEXT)


@lru_cache(maxsize=4096)
def is_choice_name(name: str) -> bool:
    """Whether an input sounds as if its text were a choice, a file or a setting."""
    return name not in PARTS and bool(set(words(name)) & _NO_TEXT)


def is_number_name(name: str) -> bool:
    """Whether a linked input sounds as if it chose among texts by a number."""
    return bool(set(words(name)) & {"seed", "index", "select", "selector", "count", "start", "end", "length", "switch"})


#: Inputs of a class that is neither sampler nor encoder and takes its prompt itself: those of ComfyUI's API nodes.
PROMPT_INPUTS = frozenset(["prompt", "prompt_text", "positive_prompt", "text_prompt"])
NEGATIVE_PROMPT_INPUTS = frozenset(["negative_prompt", "negative_prompt_text", "prompt_negative"])

_MEDIA = frozenset(
    [
        "image",
        "images",
        "img",
        "picture",
        "pictures",
        "video",
        "videos",
        "audio",
        "mesh",
        "svg",
        "glb",
        "3d",
        "frame",
        "frames",
        "sample",
        "samples",
        "latent",
        "latents",
        "pixels",
        "id",
        "voxel",
        "source",
        "destination",
        "animation",
    ]
)
_MASK = frozenset(["mask", "masks", "bbox", "bboxes", "segs", "seg", "sams", "detector"])


_SWITCH = re.compile(r"(?:input|any|value|in|a|b|x|on_true|on_false|if_true|if_false|true|false|option)[_ ]?\d*")


def is_other_kind(name: str) -> bool:
    """Whether a linked input sounds like a picture, a model or the like."""
    return bool(set(words(name)) & (_OF_OTHER_KINDS | _MEDIA | _MASK))


def is_switch_name(name: str) -> bool:
    """Whether an input is one of those that a reroute or a switch chooses from, whatever their kind."""
    return bool(_SWITCH.fullmatch(name.lower())) or not name.strip()


def is_encoder_model(name: str) -> bool:
    """Whether a linked input sounds like the language model of a text encoder."""
    return bool(set(words(name)) & {"clip", "t", "encoder", "conditioner", "tokenizer"})


def keeps_texts(class_type: str) -> bool:
    """Whether a class sounds as if it noted a prompt with a picture, or showed one."""
    return bool(set(words(class_type)) & {"save", "saver", "preview", "show", "display", "metadata"})


def makes(consumers: list[str]) -> str | None:
    """What a node makes, by the names of the inputs that take it: ``media``, ``mask``, ``text``; None: it is unclear."""
    kinds = set()
    for name in consumers:
        said = set(words(name))
        if said & _MASK:
            kinds.add("mask")
        elif said & _MEDIA or name == "3d":
            kinds.add("media")
        elif is_text_name(name):
            kinds.add("text")
        else:
            return None
    for kind in ("media", "text", "mask"):
        if kind in kinds:
            return kind
    return "media"
