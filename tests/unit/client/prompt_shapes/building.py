"""How the shapes are written down."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from settee.client.client_errors import Ambiguous, UsageError

Graph = dict[str, Any]
#: ``node.input`` of every place, or the error and words of its message.
Expected = list[str] | tuple[type[UsageError], str]


@dataclass(frozen=True)
class Shape:
    graph: Graph
    positive: Expected
    negative: Expected


def node(class_type: str, **inputs: Any) -> dict[str, Any]:
    """Inputs whose value is ``"6"`` or ``"6/1"`` with a leading ``@`` are links: ``@6`` is node 6's first output."""
    return {"class_type": class_type, "inputs": {name: _value(value) for name, value in inputs.items()}}


def _value(value: Any) -> Any:
    if isinstance(value, str) and value.startswith("@"):
        node_id, _, slot = value[1:].partition("/")
        return [node_id, int(slot or 0)]
    return value


def sd15(positive: str = "@6", negative: str = "@7", **more: Any) -> Graph:
    """A checkpoint, one KSampler (3) that takes these, two encoders (6, 7), and a saved picture; ``more`` nodes by id
    with a leading ``n`` (``n12``) are put in, in place of those there are; None takes one out."""
    graph: Graph = {
        "1": node("CheckpointLoaderSimple", ckpt_name="v1-5.safetensors"),
        "3": node(
            "KSampler",
            seed=1,
            steps=20,
            cfg=7.0,
            sampler_name="euler",
            scheduler="normal",
            denoise=1.0,
            model="@1",
            positive=positive,
            negative=negative,
            latent_image="@5",
        ),
        "5": node("EmptyLatentImage", width=512, height=512, batch_size=1),
        "6": node("CLIPTextEncode", text="a fox", clip="@1/1"),
        "7": node("CLIPTextEncode", text="blurry", clip="@1/1"),
        "8": node("VAEDecode", samples="@3", vae="@1/2"),
        "9": node("SaveImage", filename_prefix="fox", images="@8"),
    }
    for name, one in more.items():
        graph[name.removeprefix("n").replace("_", ":")] = one
    return {node_id: one for node_id, one in graph.items() if one is not None}


def encoder(text: Any, clip: str = "@1/1") -> dict[str, Any]:
    return node("CLIPTextEncode", text=text, clip=clip)


def sampler(**inputs: Any) -> dict[str, Any]:
    return node("KSampler", **{"seed": 2, "steps": 5, "model": "@1", "latent_image": "@3", **inputs})


SHARED = (Ambiguous, "is also used as")
DIFFER = (Ambiguous, "several places")
NONE = (UsageError, "no input was found for a")


def guided(guider: dict[str, Any], **more: Any) -> Graph:
    return sd15(
        n3=node("SamplerCustomAdvanced", noise="@40", guider="@41", sampler="@42", sigmas="@43", latent_image="@5"),
        n40=node("RandomNoise", noise_seed=5),
        n41=guider,
        n42=node("KSamplerSelect", sampler_name="euler"),
        n43=node("BasicScheduler", scheduler="simple", steps=4, denoise=1.0, model="@1"),
        **more,
    )


def joined(a: Any, b: Any) -> dict[str, Any]:
    return node("StringConcatenate", string_a=a, string_b=b, delimiter=", ")
