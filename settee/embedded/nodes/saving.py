"""ComfyUI's nodes that write images, preview them or send them over the socket."""

from __future__ import annotations

import json
import os
import secrets
import string
import time
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from settee.embedded.broadcast import PreviewImage
from settee.embedded.folders import Slot
from settee.embedded.nodes.base import ImageBatch, Node, NodeEnv, NodeSpec, Outcome, choice, decimal, integer
from settee.embedded.nodes.pictures import ImageCrop

FILE_HIDDEN = {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
PREFIX = ("STRING", {"default": "ComfyUI"})
_NEWER_PREFIX = ("STRING", {"default": "ComfyUI", "multiline": False})


def saved(env: NodeEnv, slot: Slot, name: str, kind: str) -> dict[str, str]:
    """The entry of a file just written, after the faults that spoil files had their turn."""
    path = os.path.join(slot.folder, name)
    if env.faults.get("truncate_outputs"):
        os.truncate(path, os.path.getsize(path) // 2)
    if env.faults.get("delete_outputs"):
        os.unlink(path)
    return {"filename": name, "subfolder": slot.subfolder, "type": kind}


def texts_of(env: NodeEnv, inputs: dict[str, Any]) -> dict[str, str]:
    """The JSON texts that belong in a file's metadata, by key: the graph as ``prompt``, and extra_pnginfo's."""
    if env.disable_metadata:
        return {}
    texts = {}
    if inputs.get("prompt") is not None:
        texts["prompt"] = json.dumps(inputs["prompt"])
    for key, value in (inputs.get("extra_pnginfo") or {}).items():
        texts[key] = json.dumps(value)
    return texts


class SaveImage(Node):
    """One PNG per picture below the output directory."""

    spec = NodeSpec(
        "SaveImage",
        "image",
        required={"images": ("IMAGE", {}), "filename_prefix": PREFIX},
        hidden=FILE_HIDDEN,
        output_node=True,
        display_name="Save Image",
        returns=("IMAGE",),
        return_names=("images",),
    )
    kind = "output"
    compress_level = 4
    prefix_end = ""

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        images: ImageBatch = inputs["images"]
        root = env.folders.of_type(self.kind)
        assert root is not None
        prefix = inputs.get("filename_prefix", "ComfyUI") + self.prefix_end
        slot = env.folders.next_slot(prefix, root, *images.size)
        metadata = PngInfo()
        for key, text in texts_of(env, inputs).items():
            metadata.add_text(key, text)
        entries = []
        for number, image in enumerate(images):
            stem = slot.stem.replace("%batch_num%", str(number))
            name = f"{stem}_{slot.counter + number:05}_.png"
            image.save(
                os.path.join(slot.folder, name),
                format="PNG",
                pnginfo=metadata,
                compress_level=self.compress_level,
            )
            entries.append(saved(env, slot, name, self.kind))
        return Outcome((images,), {"images": entries})


class ShowImage(SaveImage):
    """SaveImage into the temp directory under a name that is random per node object."""

    spec = NodeSpec(
        "PreviewImage",
        "image",
        required={"images": ("IMAGE",)},
        hidden=FILE_HIDDEN,
        output_node=True,
        display_name="Preview Image",
        returns=("IMAGE",),
        return_names=("images",),
    )
    kind = "temp"
    compress_level = 1

    def __init__(self) -> None:
        letters = (secrets.choice(string.ascii_lowercase) for _ in range(5))
        self.prefix_end = "_temp_" + "".join(letters)


class ImageCropV2(ShowImage):
    """A rectangle, which is shown too: again whenever its result comes from the cache."""

    spec = NodeSpec(
        "ImageCropV2",
        "image/transform",
        required={
            "image": ("IMAGE",),
            "crop_region": (
                "BOUNDING_BOX",
                {
                    "default": {"x": 0, "y": 0, "width": 512, "height": 512},
                    "socketless": True,
                    "component": "ImageCrop",
                },
            ),
        },
        returns=("IMAGE",),
        module="comfy_extras.nodes_images",
        display_name="Crop Image",
        newer_schema=True,
        intermediate_output=True,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        region = {"x": 0, "y": 0, "width": 512, "height": 512, **inputs["crop_region"]}
        cropped = ImageCrop().run(env, image=inputs["image"], **region).values
        shown = super().run(env, images=cropped[0])
        return Outcome(cropped, {**(shown.ui or {}), "animated": [False]})


class SaveAnimatedWEBP(Node):
    """The batch as one animated WEBP, listed under ``images``."""

    spec = NodeSpec(
        "SaveAnimatedWEBP",
        "image",
        required={
            "images": ("IMAGE",),
            "filename_prefix": _NEWER_PREFIX,
            "fps": decimal(6.0, 0.01, 1000.0),
            "lossless": ("BOOLEAN", {"default": True}),
            "quality": integer(80, 0, 100),
            "method": choice("default", "fastest", "slowest"),
        },
        hidden=FILE_HIDDEN,
        output_node=True,
        module="comfy_extras.nodes_images",
        display_name="Save Animated WEBP",
        newer_schema=True,
        returns=("IMAGE",),
        return_names=("images",),
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        images: ImageBatch = inputs["images"]
        slot = env.folders.next_slot(inputs["filename_prefix"], env.folders.output, *images.size)
        name = f"{slot.stem}_{slot.counter:05}_.webp"
        images[0].save(
            os.path.join(slot.folder, name),
            save_all=True,
            append_images=images[1:],
            duration=int(1000 / inputs["fps"]),
            lossless=inputs["lossless"],
            quality=inputs["quality"],
            method={"default": 4, "fastest": 0, "slowest": 6}[inputs["method"]],
            exif=self._exif(env, inputs),
        )
        entry = saved(env, slot, name, "output")
        return Outcome((images,), {"images": [entry], "animated": [len(images) != 1]})

    @staticmethod
    def _exif(env: NodeEnv, inputs: dict[str, Any]) -> Image.Exif:
        """The metadata texts as EXIF tags: Model holds the graph, Make and the tags below it the rest."""
        exif = Image.Exif()
        tag = 0x010F
        for key, text in texts_of(env, inputs).items():
            if key == "prompt":
                exif[0x0110] = f"prompt:{text}"
            else:
                exif[tag] = f"{key}:{text}"
                tag -= 1
        return exif


class SaveAnimatedPNG(Node):
    """The batch as one animated PNG, listed under ``images``."""

    spec = NodeSpec(
        "SaveAnimatedPNG",
        "image",
        required={
            "images": ("IMAGE",),
            "filename_prefix": _NEWER_PREFIX,
            "fps": decimal(6.0, 0.01, 1000.0),
            "compress_level": integer(4, 0, 9),
        },
        hidden=FILE_HIDDEN,
        output_node=True,
        module="comfy_extras.nodes_images",
        display_name="Save Animated PNG",
        newer_schema=True,
        returns=("IMAGE",),
        return_names=("images",),
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        images: ImageBatch = inputs["images"]
        slot = env.folders.next_slot(inputs["filename_prefix"], env.folders.output, *images.size)
        name = f"{slot.stem}_{slot.counter:05}_.png"
        metadata = PngInfo()
        for key, text in texts_of(env, inputs).items():
            chunk = key.encode("latin-1") + b"\0" + text.encode("latin-1")
            metadata.add(b"comf", chunk, after_idat=True)
        images[0].save(
            os.path.join(slot.folder, name),
            save_all=True,
            append_images=images[1:],
            duration=int(1000 / inputs["fps"]),
            compress_level=inputs["compress_level"],
            pnginfo=metadata,
        )
        return Outcome((images,), {"images": [saved(env, slot, name, "output")], "animated": [True]})


class SaveImageWebsocket(Node):
    """Each picture as a PNG over the socket; nothing on disk, nothing in history."""

    spec = NodeSpec(
        "SaveImageWebsocket",
        "image",
        required={"images": ("IMAGE",)},
        output_node=True,
        module="custom_nodes.websocket_image_save",
        display_name="Save Image (Websocket)",
    )
    has_fingerprint = True

    @classmethod
    def fingerprint(cls, env: NodeEnv, inputs: dict[str, Any]) -> Any:
        return time.time()

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        images: ImageBatch = inputs["images"]
        for number, image in enumerate(images):
            env.report(number, len(images), PreviewImage("PNG", image, None))
        return Outcome()


NODES: tuple[type[Node], ...] = (
    SaveImage,
    ShowImage,
    ImageCropV2,
    SaveAnimatedWEBP,
    SaveAnimatedPNG,
    SaveImageWebsocket,
)
