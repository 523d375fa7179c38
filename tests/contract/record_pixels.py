"""Record what a real ComfyUI makes of small pictures: ``COMFY_URL=… python -m tests.contract.record_pixels``.

Writes recordings/pixels.json: for each graph, size and bytes of every output picture, in hex.
"""

from __future__ import annotations

import json
import os
import random
from io import BytesIO
from typing import Any

from PIL import Image

from tests.contract.driver import Comfy, Graph
from tests.contract.recording import RECORDINGS

METHODS = ("nearest-exact", "bilinear", "area", "lanczos")
"""At twice the size Pillow's filters give what PyTorch's do; elsewhere only lanczos does."""
MODES = ("normal", "multiply", "screen", "overlay", "soft_light", "difference")


def picture(seed: int, size: tuple[int, int], mode: str = "RGB") -> bytes:
    """A PNG of random pixels, the same for the same seed."""
    length = size[0] * size[1] * len(mode)
    buffer = BytesIO()
    Image.frombytes(mode, size, random.Random(seed).randbytes(length)).save(buffer, "PNG")
    return buffer.getvalue()


UPLOADS = {
    "pixels_a.png": picture(1, (12, 9)),
    "pixels_b.png": picture(2, (12, 9)),
    "pixels_c.png": picture(3, (20, 9)),
    "pixels_alpha.png": picture(4, (12, 9), "RGBA"),
    "pixels_bytes.png": picture(5, (64, 64)),
}


def _node(class_type: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": class_type, "inputs": inputs}


def graphs() -> dict[str, Graph]:
    """Every graph by name; node "9" is previewed."""
    found: dict[str, dict[str, Any]] = {}
    for method in METHODS:
        size = {"width": 24, "height": 18, "crop": "disabled"}
        found[f"scale {method} 24x18"] = _node("ImageScale", image=["a", 0], upscale_method=method, **size)
    for mode in MODES:
        found[f"blend {mode} 0.3"] = _node(
            "ImageBlend", image1=["a", 0], image2=["b", 0], blend_factor=0.3, blend_mode=mode
        )
    found |= {
        "scale lanczos center": _node(
            "ImageScale", image=["c", 0], upscale_method="lanczos", width=9, height=9, crop="center"
        ),
        "scale by lanczos": _node("ImageScaleBy", image=["a", 0], upscale_method="lanczos", scale_by=1.7),
        "blend other size": _node(
            "ImageBlend", image1=["a", 0], image2=["c", 0], blend_factor=0.5, blend_mode="normal"
        ),
        "invert": _node("ImageInvert", image=["bytes", 0]),
        "load": _node("ImageCrop", image=["bytes", 0], width=64, height=64, x=0, y=0),
        "crop": _node("ImageCrop", image=["a", 0], width=50, height=4, x=7, y=30),
        "batch": _node("ImageBatch", image1=["a", 0], image2=["c", 0]),
        "pad": _node("ImagePadForOutpaint", image=["a", 0], left=8, top=0, right=0, bottom=8, feathering=3),
        "pad mask": _node("MaskToImage", mask=["pad", 1]),
        "mask of alpha": _node("MaskToImage", mask=["alpha", 1]),
        "mask of none": _node("MaskToImage", mask=["a", 1]),
        "loaded red": _node("MaskToImage", mask=["red", 0]),
        "loaded alpha": _node("MaskToImage", mask=["mask", 0]),
        "green": _node("MaskToImage", mask=["green", 0]),
        "inverted mask": _node("MaskToImage", mask=["notgreen", 0]),
        "solid": _node("MaskToImage", mask=["solid", 0]),
    }
    return {
        name: {**_sources(), "8": node, "9": _node("PreviewImage", images=["8", 0])} for name, node in found.items()
    }


def _sources() -> Graph:
    return {
        "a": _node("LoadImage", image="pixels_a.png"),
        "b": _node("LoadImage", image="pixels_b.png"),
        "c": _node("LoadImage", image="pixels_c.png"),
        "alpha": _node("LoadImage", image="pixels_alpha.png"),
        "bytes": _node("LoadImage", image="pixels_bytes.png"),
        "red": _node("LoadImageMask", image="pixels_alpha.png", channel="red"),
        "mask": _node("LoadImageMask", image="pixels_alpha.png", channel="alpha"),
        "green": _node("ImageToMask", image=["a", 0], channel="green"),
        "notgreen": _node("InvertMask", mask=["green", 0]),
        "solid": _node("SolidMask", value=0.3, width=5, height=4),
        "pad": _node("ImagePadForOutpaint", image=["c", 0], left=8, top=0, right=0, bottom=8, feathering=3),
    }


def pixels(comfy: Comfy, graph: Graph) -> list[dict[str, Any]]:
    """The pictures a graph makes on a server."""
    entry = comfy.run(graph)
    assert entry["status"]["status_str"] == "success", entry["status"]
    found = []
    for file in entry["outputs"]["9"]["images"]:
        with Image.open(BytesIO(comfy.view(file))) as image:
            found.append({"size": list(image.size), "mode": image.mode, "bytes": image.tobytes().hex()})
    return found


def main() -> None:
    """Record every graph."""
    comfy = Comfy(os.environ["COMFY_URL"])
    for name, data in UPLOADS.items():
        comfy.upload(name, data)
    recorded = {name: pixels(comfy, graph) for name, graph in graphs().items()}
    lines = ",\n".join(f"{json.dumps(name)}: {json.dumps(made)}" for name, made in recorded.items())
    (RECORDINGS / "pixels.json").write_text("{\n" + lines + "\n}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
