"""Jobs for a real ComfyUI, one for every output node class that needs no payment, and of all kinds of inputs: what each
must bring back. docs/api.md has the table that :func:`table` makes of them.

``python -m tests.support.real_jobs`` prints that table.
"""

from __future__ import annotations

import io
import json
import struct
import wave
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

Graph = dict[str, Any]
Inputs = dict[str, Any]

#: Output nodes of 0.33.0 that ask a paid service.
PAID = (
    *("Tencent" + name for name in ("TextToModelNode", "ImageToModelNode")),
    *(f"Meshy{name}ModelNode" for name in ("TextTo", "ImageTo", "MultiImageTo", "Rig", "Animate")),
    *("MeshyRefineNode", "MeshyTextureNode"),
    *(f"Tripo{name}ToModelNode" for name in ("Text", "Image", "Multiview")),
    *(f"Tripo{name}Node" for name in ("Texture", "Refine", "Rig", "Retarget", "Conversion")),
)


@dataclass(frozen=True)
class Case:
    """A job. ``made``: the suffixes of what comes back by the node that made it, "text" for a text."""

    graph: Graph
    made: dict[str, list[str]]
    files: dict[str, Callable[[], bytes]] = field(default_factory=dict)
    #: A warning says that these are previews.
    are_previews: bool = False
    #: Nodes that 0.3.64 does not have, or has in another form.
    is_new: bool = False


def graph(**nodes: tuple[str, Inputs]) -> Graph:
    """Nodes by id; a value such as "@a" or "@a.1" is a link."""

    def linked(value: Any) -> Any:
        if not isinstance(value, str) or not value.startswith("@"):
            return value
        node_id, _, slot = value[1:].partition(".")
        return [node_id, int(slot or 0)]

    return {
        node_id: {"class_type": class_type, "inputs": {name: linked(value) for name, value in inputs.items()}}
        for node_id, (class_type, inputs) in nodes.items()
    }


# --- inputs ----------------------------------------------------------------------------------------------------------


def image(mode: str = "RGB", kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new(mode, (24, 16), 0).save(file, kind)
    return file.getvalue()


def gif() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (16, 16)).save(file, "GIF", save_all=True, append_images=[Image.new("RGB", (16, 16), "red")])
    return file.getvalue()


def sound() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setnchannels(1)
        writer.setsampwidth(2)
        writer.setframerate(8000)
        writer.writeframes(bytes(8000))
    return file.getvalue()


def glb() -> bytes:
    scene = json.dumps({"asset": {"version": "2.0"}, "scene": 0, "scenes": [{}]}).encode()
    scene += b" " * (-len(scene) % 4)
    return b"glTF" + struct.pack("<II", 2, 20 + len(scene)) + struct.pack("<I", len(scene)) + b"JSON" + scene


def obj() -> bytes:
    return b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf 1 2 3\n"


def latent() -> bytes:
    """A .latent file: safetensors of one picture's latent."""
    names = {"latent_tensor": [1, 4, 2, 2], "latent_format_version_0": [0]}
    header = {
        name: {"dtype": "F32", "shape": shape, "data_offsets": [0, 64] if len(shape) > 1 else [64, 64]}
        for name, shape in names.items()
    }
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes(64)


# --- graphs ----------------------------------------------------------------------------------------------------------

IMAGE = ("EmptyImage", {"width": 16, "height": 16, "batch_size": 2, "color": 255})
MASK = ("SolidMask", {"value": 1.0, "width": 16, "height": 16})
SOUND = ("EmptyAudio", {"duration": 0.2, "sample_rate": 8000, "channels": 2})
LATENT = ("EmptyLatentImage", {"width": 32, "height": 32, "batch_size": 1})
VIDEO = ("CreateVideo", {"images": "@a", "fps": 8.0})
MODEL = ("CheckpointLoaderSimple", {"ckpt_name": "tiny-sd15.safetensors"})
TEXT = ("CLIPTextEncode", {"clip": "@m.1", "text": "a"})
MESH = ("Load3DAdvanced", {"model_file": "3d/a.glb", "viewport_state": {}, "width": 64, "height": 64})
PLY = ("MakePLY", {})
ONE = ("EmptyImage", {**IMAGE[1], "batch_size": 1})
VIEW = {"viewport_state": {}, "width": 64, "height": 64}
TRAINED = (
    "TrainLoraNode",
    {
        "model": "@m",
        "latents": "@a",
        "positive": "@t",
        "batch_size": 1,
        "grad_accumulation_steps": 1,
        "steps": 1,
        "learning_rate": 0.0005,
        "rank": 1,
        "optimizer": "SGD",
        "loss_function": "MSE",
        "seed": 0,
        "training_dtype": "fp32",
        "lora_dtype": "fp32",
        "quantized_backward": False,
        "algorithm": "LoRA",
        "gradient_checkpointing": False,
        "checkpoint_depth": 1,
        "offloading": False,
        "existing_lora": "[None]",
        "bucket_mode": False,
        "bypass_mode": False,
    },
)


def saver(class_type: str, made: str, source: tuple[str, Inputs] = IMAGE, /, **inputs: Any) -> Case:
    """A source "a" into the class at "z"; ``made``: suffixes with spaces between."""
    return Case(graph(a=source, z=(class_type, inputs)), {"z": made.split()})


def of_images(class_type: str, made: str, **inputs: Any) -> Case:
    return saver(class_type, made, images="@a", filename_prefix="sub/x", **inputs)


def of_model(class_type: str, made: str, **inputs: Any) -> Case:
    return Case(graph(m=MODEL, z=(class_type, {"filename_prefix": "checkpoints/x", **inputs})), {"z": [made]})


def of_mesh(class_type: str, name: str, made: str, is_preview: bool = False, **inputs: Any) -> Case:
    source = (MESH[0], {**MESH[1], "model_file": f"3d/{name}"})
    files = {f"3d/{name}": obj if name.endswith("obj") else glb}
    return Case(graph(a=source, z=(class_type, inputs)), {"z": [made]}, files, is_preview, is_new=True)


def previews(case: Case) -> Case:
    return Case(case.graph, case.made, case.files, are_previews=True, is_new=case.is_new)


def new(case: Case) -> Case:
    return Case(case.graph, case.made, case.files, case.are_previews, is_new=True)


#: One job for each output node class that comes with ComfyUI 0.33.0.
BY_CLASS: dict[str, Case] = {
    "SaveImage": of_images("SaveImage", ".png .png"),
    "PreviewImage": previews(saver("PreviewImage", ".png .png", images="@a")),
    "SaveLatent": saver("SaveLatent", ".latent", LATENT, samples="@a", filename_prefix="latents/x"),
    "MaskPreview": previews(saver("MaskPreview", ".png", MASK, mask="@a")),
    "CheckpointSave": of_model("CheckpointSave", ".safetensors", model="@m", clip="@m.1", vae="@m.2"),
    "CLIPSave": of_model("CLIPSave", ".safetensors", clip="@m.1"),
    "VAESave": of_model("VAESave", ".safetensors", vae="@m.2"),
    "ModelSave": of_model("ModelSave", ".safetensors", model="@m"),
    "SaveAnimatedWEBP": of_images("SaveAnimatedWEBP", ".webp", fps=6.0, lossless=True, quality=80, method="default"),
    "SaveAnimatedPNG": of_images("SaveAnimatedPNG", ".png", fps=6.0, compress_level=4),
    "SaveImageAdvanced": new(
        of_images(
            "SaveImageAdvanced",
            ".png .png",
            **{"format": "png", "format.bit_depth": "16-bit", "format.input_color_space": "sRGB"},
        )
    ),
    "SaveSVGNode": Case(
        graph(a=("MakeSVG", {}), z=("SaveSVGNode", {"svg": "@a", "filename_prefix": "svg/x"})),
        {"z": [".svg", ".svg"]},
        is_new=True,
    ),
    "ImageOnlyCheckpointSave": Case(
        graph(
            m=MODEL,
            a=("TinyClipVision", {}),
            z=(
                "ImageOnlyCheckpointSave",
                {"model": "@m", "clip_vision": "@a", "vae": "@m.2", "filename_prefix": "checkpoints/x"},
            ),
        ),
        {"z": [".safetensors"]},
    ),
    "CreateBoundingBoxes": Case(
        graph(
            a=("CreateBoundingBoxes", {"width": 64, "height": 64, "editor_state": {"__value__": []}}),
            z=("SaveImage", {"images": "@a", "filename_prefix": "x"}),
        ),
        {"z": [".png"]},
        is_new=True,
    ),
    "SaveLoRA": Case(
        graph(m=MODEL, t=TEXT, a=LATENT, b=TRAINED, z=("SaveLoRA", {"lora": "@b.0", "prefix": "loras/x", "steps": 1})),
        {"z": [".safetensors"]},
        is_new=True,
    ),
    "LossGraphNode": new(previews(saver("LossGraphNode", ".png", ("MakeLoss", {}), loss="@a", filename_prefix="x"))),
    "SaveImageDataSetToFolder": new(
        saver(
            "SaveImageDataSetToFolder",
            ".png",
            ONE,
            images="@a",
            folder_name="set",
            filename_prefix="x",
            mode="overwrite",
        )
    ),
    "SaveImageTextDataSetToFolder": new(
        saver(
            "SaveImageTextDataSetToFolder",
            ".png .txt",
            ONE,
            images="@a",
            folder_name="set",
            filename_prefix="x",
            mode="overwrite",
            texts="a caption",
        )
    ),
    "SaveTrainingDataset": Case(
        graph(
            m=MODEL,
            t=TEXT,
            a=LATENT,
            z=("SaveTrainingDataset", {"latents": "@a", "conditioning": "@t", "folder_name": "x", "shard_size": 10}),
        ),
        {"z": [".json", ".pkl"]},
        is_new=True,
    ),
    "SaveAudio": saver("SaveAudio", ".flac", SOUND, audio="@a", filename_prefix="audio/x"),
    "SaveAudioMP3": saver("SaveAudioMP3", ".mp3", SOUND, audio="@a", filename_prefix="audio/x", quality="128k"),
    "SaveAudioOpus": saver("SaveAudioOpus", ".opus", SOUND, audio="@a", filename_prefix="audio/x", quality="96k"),
    "SaveAudioAdvanced": new(
        saver("SaveAudioAdvanced", ".flac", SOUND, audio="@a", filename_prefix="audio/x", format="flac")
    ),
    "PreviewAudio": previews(saver("PreviewAudio", ".flac", SOUND, audio="@a")),
    "LoraSave": Case(
        graph(
            m=MODEL,
            a=("ModelMergeSubtract", {"model1": "@m", "model2": "@m", "multiplier": 1.0}),
            z=(
                "LoraSave",
                {
                    "filename_prefix": "loras/x",
                    "rank": 1,
                    "lora_type": "full_diff",
                    "bias_diff": True,
                    "model_diff": "@a",
                },
            ),
        ),
        {"z": [".safetensors"]},
    ),
    "Preview3D": of_mesh("Preview3D", "a.glb", ".glb", model_file="@a"),
    "Preview3DAdvanced": of_mesh("Preview3DAdvanced", "a.glb", ".glb", True, model_3d="@a", **VIEW),
    "PreviewGaussianSplat": new(previews(saver("PreviewGaussianSplat", ".ply", PLY, model_3d="@a", **VIEW))),
    "PreviewPointCloud": new(previews(saver("PreviewPointCloud", ".ply", PLY, model_3d="@a", **VIEW))),
    "SaveWEBM": of_images("SaveWEBM", ".webm", codec="vp9", fps=8.0, crf=32.0),
    "SaveVideo": Case(
        graph(
            a=IMAGE, b=VIDEO, z=("SaveVideo", {"video": "@b", "filename_prefix": "x", "format": "mp4", "codec": "auto"})
        ),
        {"z": [".mp4"]},
    ),
    "PreviewAny": saver("PreviewAny", "text", ("PrimitiveInt", {"value": 42}), source="@a"),
    "ImageCompare": previews(
        new(saver("ImageCompare", ".png .png .png .png", image_a="@a", image_b="@a", compare_view={"__value__": []}))
    ),
    "ImageCompositor": Case(
        graph(a=IMAGE, b=("AddLayer", {"image": "@a"}), z=("ImageCompositor", {"layers": "@b", "compositor": {}})),
        {"z": [".png"] * 3},
        are_previews=True,
        is_new=True,
    ),
    "SAM3_TrackPreview": Case(
        graph(a=("MakeTrackData", {}), z=("SAM3_TrackPreview", {"track_data": "@a", "opacity": 0.5, "fps": 8.0})),
        {"z": [".mp4"]},
        are_previews=True,
        is_new=True,
    ),
    "SaveGLB": of_mesh("SaveGLB", "a.glb", ".glb", mesh="@a", filename_prefix="mesh/x"),
    "Save3DAdvanced": of_mesh("Save3DAdvanced", "a.obj", ".obj", model_3d="@a", filename_prefix="3d/x", **VIEW),
    "SaveGaussianSplat": new(saver("SaveGaussianSplat", ".ply", PLY, model_3d="@a", filename_prefix="3d/x", **VIEW)),
    "SavePointCloud": new(saver("SavePointCloud", ".ply", PLY, model_3d="@a", filename_prefix="3d/x", **VIEW)),
    "SaveText": new(
        saver(
            "SaveText", ".md text", ("PrimitiveString", {"value": "# a"}), text="@a", filename_prefix="x", format="md"
        )
    ),
    "SaveImageWebsocket": saver("SaveImageWebsocket", ".png .png", images="@a"),
}


def loading(
    class_type: str, name: str, file: Callable[[], bytes], made: str, key: str, save: tuple[str, Inputs]
) -> Case:
    return Case(graph(a=(class_type, {key: name}), z=save), {"z": made.split()}, {name: file})


_SAVE = ("SaveImage", {"images": "@a", "filename_prefix": "x"})
_SAVE_SOUND = ("SaveAudio", {"audio": "@a", "filename_prefix": "x"})

#: Inputs of all kinds, and outputs together.
OTHERS: dict[str, Case] = {
    "a png": loading("LoadImage", "a.png", image, ".png", "image", _SAVE),
    "a jpeg in a subfolder": loading("LoadImage", "s/a.jpg", lambda: image(kind="JPEG"), ".png", "image", _SAVE),
    "a webp": loading("LoadImage", "a.webp", lambda: image(kind="WEBP"), ".png", "image", _SAVE),
    "a picture with alpha": loading("LoadImage", "a.png", lambda: image("RGBA"), ".png", "image", _SAVE),
    "a grey picture": loading("LoadImage", "a.png", lambda: image("L"), ".png", "image", _SAVE),
    "an animation": loading("LoadImage", "a.gif", gif, ".png .png", "image", _SAVE),
    "a sound": loading("LoadAudio", "a.wav", sound, ".flac", "audio", _SAVE_SOUND),
    "a latent": loading(
        "LoadLatent", "a.latent", latent, ".latent", "latent", ("SaveLatent", {"samples": "@a", "filename_prefix": "x"})
    ),
    "a mask": Case(
        graph(
            a=("LoadImageMask", {"image": "a.png", "channel": "red"}),
            b=("MaskToImage", {"mask": "@a"}),
            z=("SaveImage", {"images": "@b", "filename_prefix": "x"}),
        ),
        {"z": [".png"]},
        {"a.png": image},
    ),
    "two pictures and an unused output": Case(
        graph(
            a=("LoadImage", {"image": "a.png"}),
            b=("LoadImage", {"image": "b.png"}),
            y=("SaveImage", {"images": "@b", "filename_prefix": "same"}),
            z=("SaveImage", {"images": "@a", "filename_prefix": "same"}),
            p=("PreviewImage", {"images": "@a"}),
        ),
        {"y": [".png"], "z": [".png"]},
        {"a.png": image, "b.png": lambda: image("L")},
    ),
    "every kind of output at once": Case(
        graph(
            a=IMAGE,
            b=VIDEO,
            s=SOUND,
            l=LATENT,
            v=("SaveVideo", {"video": "@b", "filename_prefix": "v", "format": "mp4", "codec": "auto"}),
            w=("SaveAudio", {"audio": "@s", "filename_prefix": "w"}),
            x=("SaveLatent", {"samples": "@l", "filename_prefix": "x"}),
            y=("PreviewAny", {"source": "@a"}),
            z=("SaveImage", {"images": "@a", "filename_prefix": "z"}),
        ),
        {"v": [".mp4"], "w": [".flac"], "x": [".latent"], "y": ["text"], "z": [".png", ".png"]},
    ),
    "a sampler": Case(
        graph(
            m=MODEL,
            t=TEXT,
            a=LATENT,
            k=(
                "KSampler",
                {
                    "model": "@m",
                    "positive": "@t",
                    "negative": "@t",
                    "latent_image": "@a",
                    "seed": 1,
                    "steps": 2,
                    "cfg": 1.0,
                    "sampler_name": "euler",
                    "scheduler": "normal",
                    "denoise": 1.0,
                },
            ),
            d=("VAEDecode", {"samples": "@k", "vae": "@m.2"}),
            z=("SaveImage", {"images": "@d", "filename_prefix": "x"}),
        ),
        {"z": [".png"]},
    ),
    "a prefix with folders and a date": Case(
        graph(a=IMAGE, z=("SaveImage", {"images": "@a", "filename_prefix": "a/b/%year%-%width%"})),
        {"z": [".png", ".png"]},
    ),
}


def table() -> str:
    """The table in docs/api.md."""
    lines = ["| class | what comes back |", "|---|---|"]
    for name, case in BY_CLASS.items():
        suffixes = dict.fromkeys(suffix for made in case.made.values() for suffix in made)
        what = ", ".join("a text" if suffix == "text" else f"`{suffix}`" for suffix in suffixes)
        lines.append(f"| {name} | {what}{' (preview)' if case.are_previews else ''} |")
    lines.append(f"| {', '.join(PAID)} | not run: they ask a paid service, and save files as SaveGLB does |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
