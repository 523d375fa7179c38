"""ComfyUI's own node classes, as far as prompts go: the part of its registry that the client carries with it.

A target is often not asked for its registry before a prompt is placed, and a class that is listed here is never guessed
about. The source is ComfyUI's /object_info.
"""

from __future__ import annotations


def _names(text: str) -> frozenset[str]:
    return frozenset(text.split())


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

#: Classes that give conditioning, and take that of one side or none. A text of theirs is no prompt: GLIGEN's names what
#: is in a box.
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

#: Classes that are no output of a workflow, though nothing takes what they give.
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
