"""ComfyUI's nodes for values and text; a conditioning is the hash of the text and of the CLIP that read it."""

from __future__ import annotations

import contextlib
import json
from typing import Any

from settee.embedded.nodes.models import Conditioning, Weights, digest_of
from settee.embedded.nodes.node import Outcome, integer, node, value

_LIMIT = 2**63 - 1

for _name, _title, _value in (
    ("PrimitiveInt", "Int", integer(None, -_LIMIT, _LIMIT, control_after_generate="fixed")),
    ("PrimitiveFloat", "Float", value("FLOAT", min=-_LIMIT, max=_LIMIT, step=0.1)),
    ("PrimitiveString", "Text", value("STRING", multiline=False)),
    ("PrimitiveStringMultiline", "Text (Multiline)", value("STRING", multiline=True)),
    ("PrimitiveBoolean", "Boolean", value("BOOLEAN")),
):

    @node(_name, "utilities/primitive", _title, _value.kind, extras="nodes_primitive")
    def primitive(value: Any = _value) -> Any:
        return value


@node("PreviewAny", "utilities", "Preview as Text", "STRING", module="comfy_extras.nodes_preview_any", output_node=True)
def preview_any(source: Any = value("*")) -> Outcome:
    """Show any value as text, under the key ``text``."""
    text = str(source)
    if not isinstance(source, (str, int, float, type(None))):
        with contextlib.suppress(TypeError):  # pictures and the like have no JSON
            text = json.dumps(source, indent=4, ensure_ascii=False)
    return Outcome((text,), {"text": [text]})


_TEXT: Any = value("STRING", multiline=True, dynamicPrompts=True)


def _encoded(clip: Weights | None, **inputs: Any) -> Conditioning:
    """Everything but the CLIP itself goes into the hash as it is."""
    if clip is None:
        raise RuntimeError("the CLIP input is empty: the linked node returns none")
    return Conditioning(digest_of(clip.digest, {name: str(given) for name, given in sorted(inputs.items())}))


@node("CLIPTextEncode", "model/conditioning", "CLIP Text Encode (Prompt)", "CONDITIONING")
def clip_text_encode(text: str = _TEXT, clip: Weights | None = value("CLIP")) -> Conditioning:
    return _encoded(clip, text=text)


@node(
    "CLIPTextEncodeSDXL",
    "model/conditioning/stable diffusion",
    "CLIP Text Encode (SDXL)",
    "CONDITIONING",
    extras="nodes_clip_sdxl",
)
def clip_text_encode_sdxl(
    clip: Weights | None = value("CLIP"),
    width: int = integer(1024),
    height: int = integer(1024),
    crop_w: int = integer(0),
    crop_h: int = integer(0),
    target_width: int = integer(1024),
    target_height: int = integer(1024),
    text_g: str = _TEXT,
    text_l: str = _TEXT,
) -> Conditioning:
    """Read a text with each of SDXL's two encoders, and the sizes that SDXL was given in training."""
    sizes = {"size": (width, height), "crop": (crop_w, crop_h), "target": (target_width, target_height)}
    return _encoded(clip, text_g=text_g, text_l=text_l, **sizes)
