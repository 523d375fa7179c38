"""Nodes that do what those of popular packs do, and ComfyUI's own do not; tests/support/comfy_pack has the same for a
real ComfyUI."""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import time
from typing import Any

from PIL import Image

from settee.embedded.broadcast import PreviewImage
from settee.embedded.nodes.base import ImageBatch, Node, NodeEnv, NodeSpec, Outcome, choice, integer
from settee.embedded.nodes.saving import PREFIX, SaveImage

_MODULE = "custom_nodes.packs"
_IMAGES = {"images": ("IMAGE",)}


class BatchManagerLike(SaveImage):
    """Queues the prompt that runs once more, under a new id and ahead of all others; the last one saves.

    ``how``: "post" as a POST to the server itself would, without a client id. ``fail``: the last one raises.
    """

    spec = NodeSpec(
        "BatchManagerLike",
        "packs",
        required={**_IMAGES, "filename_prefix": PREFIX, "batches": integer(3), "requeue": integer(0)},
        optional={"how": choice("queue", "post"), "fail": ("BOOLEAN", {"default": False})},
        hidden={"prompt": "PROMPT", "unique_id": "UNIQUE_ID"},
        output_node=True,
        module=_MODULE,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        time.sleep(0.02)  # its work
        env.check_interrupted()
        if inputs["requeue"] + 1 < inputs["batches"]:
            prompt = copy.deepcopy(inputs["prompt"])
            prompt[inputs["unique_id"]]["inputs"]["requeue"] = inputs["requeue"] + 1
            env.enqueue(prompt, inputs.get("how") != "post")
            return Outcome(ui={"unfinished_batch": [True]})
        if inputs.get("fail"):
            raise RuntimeError("the last batch failed")
        return super().run(env, **inputs)


class ImageSave(Node):
    """Has a folder of its own, joins the prefix to it, and keeps quiet about what it cannot write."""

    spec = NodeSpec(
        "Image Save",
        "packs",
        required={
            **_IMAGES,
            "output_path": ("STRING", {"default": ""}),
            "filename_prefix": PREFIX,
            "show_previews": choice("true", "false"),
        },
        output_node=True,
        module=_MODULE,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        folder = os.path.join(env.folders.output, inputs["output_path"])
        os.makedirs(folder, exist_ok=True)
        entries = []
        for number, image in enumerate(inputs["images"], 1):
            name = f"{inputs['filename_prefix']}_{number:04}.png"
            try:
                image.save(os.path.join(folder, name))
            except OSError as error:
                env.log.info("cannot save: %s", error)
                continue
            entries.append({"filename": name, "subfolder": inputs["output_path"], "type": "output"})
        return Outcome(ui={"images": entries if inputs["show_previews"] == "true" else []})


class SendImage(Node):
    """Sends pictures over the socket; history gets entries without a filename."""

    spec = NodeSpec(
        "ETN_SendImageWebSocket",
        "packs",
        required={**_IMAGES, "format": choice("PNG", "JPEG")},
        output_node=True,
        module=_MODULE,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        for image in inputs["images"]:
            env.send(PreviewImage(inputs["format"], image, None))
        kind = f"image/{inputs['format'].lower()}"
        entry = {"source": "websocket", "content-type": kind, "type": "output"}
        return Outcome(ui={"images": [entry] * len(inputs["images"])})


class QuietSaver(Node):
    """Writes below output and reports nothing."""

    spec = NodeSpec(
        "QuietSaver",
        "packs",
        required={**_IMAGES, "folder": ("STRING", {"default": "quiet"})},
        output_node=True,
        module=_MODULE,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        folder = os.path.join(env.folders.output, inputs["folder"])
        os.makedirs(folder, exist_ok=True)
        for number, image in enumerate(inputs["images"], 1):
            image.save(os.path.join(folder, f"q{number}.png"))
        with open(os.path.join(folder, "captions.txt"), "w", encoding="utf-8") as file:
            file.write("a caption")
        return Outcome()


class Teller(Node):
    """Reports ``said``, a JSON object, as it is."""

    spec = NodeSpec(
        "Teller", "packs", required={"said": ("STRING", {"default": "{}"})}, output_node=True, module=_MODULE
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        return Outcome(ui=json.loads(inputs["said"]))


class LoadBase64(Node):
    """A picture from base64 in an input that is called as if it were a name."""

    spec = NodeSpec(
        "ETN_LoadImageBase64",
        "packs",
        required={"image": ("STRING", {"multiline": False})},
        returns=("IMAGE",),
        module=_MODULE,
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        with Image.open(io.BytesIO(base64.b64decode(inputs["image"]))) as image:
            return Outcome((ImageBatch([image.convert("RGB")]),))


NODES: tuple[type[Node], ...] = (BatchManagerLike, ImageSave, SendImage, QuietSaver, Teller, LoadBase64)
