"""Custom nodes for a real ComfyUI that do what popular packs do: copy this folder into its custom_nodes, then run the
tests of tests/engine with COMFY_URL. ``embedded.py`` has them for the embedded server."""

import base64
import io
import json
import os
import time
import urllib.request
import uuid

import folder_paths
import numpy as np
import server
import torch
from comfy import model_management
from comfy_api.latest import io as io_v3
from comfy_execution.graph_utils import GraphBuilder
from PIL import Image

IMAGES = {"images": ("IMAGE",)}
PREFIX = ("STRING", {"default": "ComfyUI"})


def pictures(images):
    return [Image.fromarray((255 * image.cpu().numpy()).clip(0, 255).astype(np.uint8)) for image in images]


def save(images, prefix):
    """Pictures below output, as SaveImage names them; their entries."""
    folder, stem, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, folder_paths.get_output_directory())
    entries = []
    for number, picture in enumerate(pictures(images)):
        name = f"{stem}_{counter + number:05}_.png"
        picture.save(os.path.join(folder, name))
        entries.append({"filename": name, "subfolder": subfolder, "type": "output"})
    return entries


class Saver:
    CATEGORY, FUNCTION, OUTPUT_NODE, RETURN_TYPES = "packs", "run", True, ()


class BatchManagerLike(Saver):
    """Queues the prompt that runs once more, under a new id and ahead of all others; the last one saves."""

    @classmethod
    def INPUT_TYPES(cls):
        more = {"batches": ("INT", {"default": 3}), "requeue": ("INT", {"default": 0})}
        return {
            "required": {**IMAGES, "filename_prefix": PREFIX, **more},
            "optional": {"how": (["queue", "post"],), "fail": ("BOOLEAN", {"default": False})},
            "hidden": {"unique_id": "UNIQUE_ID"},
        }

    def run(self, images, filename_prefix, batches, requeue, unique_id, how="queue", fail=False):
        time.sleep(0.02)  # its work
        model_management.throw_exception_if_processing_interrupted()
        if requeue + 1 >= batches:
            if fail:
                raise RuntimeError("the last batch failed")
            return {"ui": {"images": save(images, filename_prefix)}}
        instance = server.PromptServer.instance
        _, _, prompt, *rest = next(iter(instance.prompt_queue.currently_running.values()))
        prompt = json.loads(json.dumps(prompt))
        prompt[unique_id]["inputs"]["requeue"] = requeue + 1
        if how == "post":
            body = json.dumps({"prompt": prompt, "front": True}).encode()
            headers = {"Content-Type": "application/json"}
            url = f"http://127.0.0.1:{instance.port}/prompt"
            urllib.request.urlopen(urllib.request.Request(url, body, headers)).read()
        else:
            instance.prompt_queue.put((-instance.number, str(uuid.uuid4()), prompt, *rest))
            instance.number += 1
        return {"ui": {"unfinished_batch": [True]}}


class ImageSave(Saver):
    """Has a folder of its own, joins the prefix to it, and keeps quiet about what it cannot write."""

    @classmethod
    def INPUT_TYPES(cls):
        more = {"output_path": ("STRING", {"default": ""}), "filename_prefix": PREFIX}
        return {"required": {**IMAGES, **more, "show_previews": (["true", "false"],)}}

    def run(self, images, output_path, filename_prefix, show_previews):
        folder = os.path.join(folder_paths.get_output_directory(), output_path)
        os.makedirs(folder, exist_ok=True)
        entries = []
        for number, picture in enumerate(pictures(images), 1):
            name = f"{filename_prefix}_{number:04}.png"
            try:
                picture.save(os.path.join(folder, name))
            except OSError as error:
                print(f"cannot save: {error}")
                continue
            entries.append({"filename": name, "subfolder": output_path, "type": "output"})
        return {"ui": {"images": entries if show_previews == "true" else []}}


class SendImage(Saver):
    """Sends pictures over the socket; history gets entries without a filename."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {**IMAGES, "format": (["PNG", "JPEG"],)}}

    def run(self, images, format):
        instance = server.PromptServer.instance
        for picture in pictures(images):
            instance.send_sync(
                server.BinaryEventTypes.UNENCODED_PREVIEW_IMAGE, [format, picture, None], instance.client_id
            )
        kind = f"image/{format.lower()}"
        return {"ui": {"images": [{"source": "websocket", "content-type": kind, "type": "output"} for _ in images]}}


class QuietSaver(Saver):
    """Writes below output and reports nothing."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {**IMAGES, "folder": ("STRING", {"default": "quiet"})}}

    def run(self, images, folder):
        root = os.path.join(folder_paths.get_output_directory(), folder)
        os.makedirs(root, exist_ok=True)
        for number, picture in enumerate(pictures(images), 1):
            picture.save(os.path.join(root, f"q{number}.png"))
        with open(os.path.join(root, "captions.txt"), "w") as file:
            file.write("a caption")
        return {}


class Teller(Saver):
    """Reports ``said``, a JSON object, as it is."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"said": ("STRING", {"default": "{}"})}}

    def run(self, said):
        return {"ui": json.loads(said)}


class ExpandingSaver(Saver):
    """Becomes three SaveImage nodes, of prefixes that do not depend on the job."""

    RETURN_TYPES = ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {**IMAGES, "count": ("INT", {"default": 3})}, "optional": {"filename_prefix": PREFIX}}

    def run(self, images, count, filename_prefix=None):
        graph = GraphBuilder()
        for number in range(count):
            graph.node("SaveImage", images=images, filename_prefix=f"{filename_prefix or 'expanded'}_{number}")
        return {"result": (images,), "expand": graph.finalize()}


class ExpandingLinked(ExpandingSaver):
    """The same, with the picture made inside."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"color": ("INT", {"default": 0}), "count": ("INT", {"default": 3})}}

    def run(self, color, count):
        graph = GraphBuilder()
        for number in range(count):
            made = graph.node("EmptyImage", width=16, height=16, batch_size=1, color=color + number)
            graph.node("SaveImage", images=made.out(0), filename_prefix=f"linked_{number}")
        return {"result": (made.out(0),), "expand": graph.finalize()}


class ExpandingLoop(ExpandingLinked):
    """The same, and no output node itself: a loop with savers in it."""

    OUTPUT_NODE = False


class LoadBase64:
    """A picture from base64 in an input that is called as if it were a name."""

    CATEGORY, FUNCTION, RETURN_TYPES = "packs", "run", ("IMAGE",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"image": ("STRING", {"multiline": False})}}

    def run(self, image):
        picture = Image.open(io.BytesIO(base64.b64decode(image))).convert("RGB")
        return (torch.from_numpy(np.array(picture).astype(np.float32) / 255)[None],)


class AnyKey(dict):
    """Contains every key, as the `optional` of classes with as many inputs as one likes."""

    def __contains__(self, key):
        return True

    def __getitem__(self, key):
        return super().__getitem__(key) if key in self.keys() else ("*",)


class AnyKeySaver(Saver):
    """Takes any inputs, and wants each to be a batch of pictures."""

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"filename_prefix": PREFIX}, "optional": AnyKey()}

    def run(self, filename_prefix, **images):
        return {"ui": {"images": save(torch.cat(list(images.values())), filename_prefix)}}


class AcceptAllSaver(io_v3.ComfyNode):
    """The same in ComfyUI's newer node API (`accept_all_inputs` is of 0.33)."""

    @classmethod
    def define_schema(cls):
        prefix = io_v3.String.Input("filename_prefix", default="ComfyUI")
        flag = {"accept_all_inputs": True} if hasattr(io_v3.Schema, "accept_all_inputs") else {}
        return io_v3.Schema("AcceptAllSaver", category="packs", inputs=[prefix], is_output_node=True, **flag)

    @classmethod
    def execute(cls, filename_prefix, **images):
        return io_v3.NodeOutput(ui={"images": save(torch.cat(list(images.values())), filename_prefix)})


NODE_CLASS_MAPPINGS = {
    "ETN_LoadImageBase64": LoadBase64,
    "AnyKeySaver": AnyKeySaver,
    "AcceptAllSaver": AcceptAllSaver,
    "ExpandingLoop": ExpandingLoop,
    "BatchManagerLike": BatchManagerLike,
    "Image Save": ImageSave,
    "ETN_SendImageWebSocket": SendImage,
    "QuietSaver": QuietSaver,
    "Teller": Teller,
    "ExpandingSaver": ExpandingSaver,
    "ExpandingLinked": ExpandingLinked,
}


# --- what only models or paid services make otherwise ----------------------------------------------------------------


class Source:
    CATEGORY, FUNCTION = "packs", "run"

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {}}


class MakeSVG(Source):
    RETURN_TYPES = ("SVG",)

    def run(self):
        from comfy_api.latest._util.image_types import SVG

        return (SVG([io.BytesIO(b'<svg xmlns="http://www.w3.org/2000/svg"/>') for _ in range(2)]),)


class MakePLY(Source):
    RETURN_TYPES = ("FILE_3D_PLY",)

    def run(self):
        from comfy_api.latest import Types

        head = "ply\nformat ascii 1.0\nelement vertex 1\n"
        rows = "property float x\nproperty float y\nproperty float z\nend_header\n0 0 0\n"
        return (Types.File3D(io.BytesIO((head + rows).encode()), "ply"),)


class MakeLoss(Source):
    RETURN_TYPES = ("LOSS_MAP",)

    def run(self):
        return ({"loss": [3.0, 1.0, 2.0]},)


class MakeTrackData(Source):
    RETURN_TYPES = ("SAM3_TRACK_DATA",)

    def run(self):
        return ({"packed_masks": None, "orig_size": (32, 32), "n_frames": 3},)


class TinyClipVision(Source):
    RETURN_TYPES = ("CLIP_VISION",)

    def run(self):
        return (self,)

    def get_sd(self):
        return {}


NODE_CLASS_MAPPINGS |= {
    "MakeLoss": MakeLoss,
    "MakePLY": MakePLY,
    "MakeSVG": MakeSVG,
    "MakeTrackData": MakeTrackData,
    "TinyClipVision": TinyClipVision,
}
