"""Jobs for a real ComfyUI, with all kinds of inputs, and the files and nodes of such jobs."""

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


# --- files -----------------------------------------------------------------------------------------------------------


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
SOUND = ("EmptyAudio", {"duration": 0.2, "sample_rate": 8000, "channels": 2})
LATENT = ("EmptyLatentImage", {"width": 32, "height": 32, "batch_size": 1})
VIDEO = ("CreateVideo", {"images": "@a", "fps": 8.0})
MODEL = ("CheckpointLoaderSimple", {"ckpt_name": "tiny-sd15.safetensors"})
TEXT = ("CLIPTextEncode", {"clip": "@m.1", "text": "a"})


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
