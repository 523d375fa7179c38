"""ComfyUI's nodes for values and texts; a conditioning is the hash of the texts and of the CLIP that read them."""

from __future__ import annotations

import json
from typing import Any

from settee.embedded.nodes.base import InputType, Node, NodeEnv, NodeSpec, Outcome, integer
from settee.embedded.nodes.models import Conditioning, Weights, digest_of

_LIMIT = 2**63 - 1


class _Primitive(Node):
    """Gives its ``value`` on."""

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        return Outcome((inputs["value"],))


def _spec(name: str, display_name: str, value: InputType) -> NodeSpec:
    return NodeSpec(
        name,
        "utilities/primitive",
        required={"value": value},
        returns=(str(value[0]),),
        module="comfy_extras.nodes_primitive",
        display_name=display_name,
        newer_schema=True,
    )


class PrimitiveInt(_Primitive):
    """A whole number."""

    spec = _spec("PrimitiveInt", "Int", integer(None, -_LIMIT, _LIMIT, control_after_generate="fixed"))


class PrimitiveFloat(_Primitive):
    """A number."""

    spec = _spec("PrimitiveFloat", "Float", ("FLOAT", {"min": -_LIMIT, "max": _LIMIT, "step": 0.1}))


class PrimitiveString(_Primitive):
    """One line of text."""

    spec = _spec("PrimitiveString", "Text", ("STRING", {"multiline": False}))


class PrimitiveStringMultiline(_Primitive):
    """Text."""

    spec = _spec("PrimitiveStringMultiline", "Text (Multiline)", ("STRING", {"multiline": True}))


class PrimitiveBoolean(_Primitive):
    """Yes or no."""

    spec = _spec("PrimitiveBoolean", "Boolean", ("BOOLEAN", {}))


class PreviewAny(Node):
    """Shows any value as text, under the key ``text``."""

    spec = NodeSpec(
        "PreviewAny",
        "utilities",
        required={"source": ("*", {})},
        returns=("STRING",),
        output_node=True,
        module="comfy_extras.nodes_preview_any",
        display_name="Preview as Text",
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        source = inputs.get("source")
        if isinstance(source, str):
            text = source
        elif source is None or isinstance(source, (int, float)):
            text = str(source)
        else:
            try:
                text = json.dumps(source, indent=4, ensure_ascii=False)
            except TypeError:
                text = str(source)
        return Outcome((text,), {"text": [text]})


_SIDE = integer(1024)
_CROP = integer(0)


_TEXT: InputType = ("STRING", {"multiline": True, "dynamicPrompts": True})


class _Encoder(Node):
    """Everything but the CLIP itself goes into the hash as it is."""

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        clip: Weights | None = inputs.pop("clip")
        if clip is None:
            raise RuntimeError("the CLIP input is empty: what it is linked to gives none")
        said = {name: str(value) for name, value in sorted(inputs.items())}
        return Outcome((Conditioning(digest_of(clip.digest, said)),))


class CLIPTextEncode(_Encoder):
    """A prompt."""

    spec = NodeSpec(
        "CLIPTextEncode",
        "model/conditioning",
        required={"text": _TEXT, "clip": ("CLIP", {})},
        returns=("CONDITIONING",),
        display_name="CLIP Text Encode (Prompt)",
    )


class CLIPTextEncodeSDXL(_Encoder):
    """A prompt for each of SDXL's two encoders, with the sizes that SDXL was told in training."""

    spec = NodeSpec(
        "CLIPTextEncodeSDXL",
        "model/conditioning/stable diffusion",
        required={
            "clip": ("CLIP", {}),
            "width": _SIDE,
            "height": _SIDE,
            "crop_w": _CROP,
            "crop_h": _CROP,
            "target_width": _SIDE,
            "target_height": _SIDE,
            "text_g": _TEXT,
            "text_l": _TEXT,
        },
        returns=("CONDITIONING",),
        module="comfy_extras.nodes_clip_sdxl",
        display_name="CLIP Text Encode (SDXL)",
        newer_schema=True,
    )


NODES: tuple[type[Node], ...] = (
    PrimitiveInt,
    PrimitiveFloat,
    PrimitiveString,
    PrimitiveStringMultiline,
    PrimitiveBoolean,
    PreviewAny,
    CLIPTextEncode,
    CLIPTextEncodeSDXL,
)
