"""ComfyUI's text encoders, standing in: a conditioning is the hash of the texts and of the CLIP that read them."""

from __future__ import annotations

from typing import Any

from settee.embedded.nodes.base import InputType, Node, NodeEnv, NodeSpec, Outcome, integer
from settee.embedded.nodes.weights import Conditioning, Weights, digest_of

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


NODES: tuple[type[Node], ...] = (CLIPTextEncode, CLIPTextEncodeSDXL)
