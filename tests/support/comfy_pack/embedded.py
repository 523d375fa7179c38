"""The embedded ComfyUI with nodes that do what those of popular packs do; ``__init__.py`` has the same for a real one.

Run as a script, it is ``python -m settee.embedded`` that has these nodes too.
"""

from __future__ import annotations

import base64
import copy
import io
import json
import os
import sys
import time
from functools import partial
from typing import Any

from PIL import Image

from settee.embedded.__main__ import main
from settee.embedded.broadcast import PreviewImage
from settee.embedded.nodes.image_files import PREFIX, save_pngs
from settee.embedded.nodes.node import (
    IMAGE,
    PROMPT,
    Env,
    ImageBatch,
    Outcome,
    choice,
    hidden,
    integer,
    node,
    optional,
    value,
)

saver = partial(node, category="packs", module="custom_nodes.packs", output_node=True)


@saver("BatchManagerLike")
def batch_manager_like(
    env: Env,
    images: ImageBatch = IMAGE,
    filename_prefix: str = PREFIX,
    batches: int = integer(3),
    requeue: int = integer(0),
    how: str = optional(choice("queue", "post")),
    fail: bool = optional(value("BOOLEAN", default=False)),
    prompt: Any = PROMPT,
    unique_id: str = hidden("UNIQUE_ID"),
) -> Outcome:
    """Queue the prompt that runs once more, under a new id and ahead of all others; the last one saves.

    ``how``: "post" as a POST to the server itself would, without a client id. ``fail``: the last one raises.
    """
    time.sleep(0.02)  # its work
    env.check_interrupted()
    if requeue + 1 < batches:
        prompt = copy.deepcopy(prompt)
        prompt[unique_id]["inputs"]["requeue"] = requeue + 1
        env.enqueue(prompt, how != "post")
        return Outcome(ui={"unfinished_batch": [True]})
    if fail:
        raise RuntimeError("the last batch failed")
    return Outcome(ui={"images": save_pngs(env, images, filename_prefix, {})})


@saver("Image Save")
def image_save(
    env: Env,
    images: ImageBatch = IMAGE,
    output_path: str = value("STRING", default=""),
    filename_prefix: str = PREFIX,
    show_previews: str = choice("true", "false"),
) -> Outcome:
    """Save below a folder of its own, joined to the prefix, and keep quiet about what cannot be written."""
    folder = os.path.join(env.folders.output, output_path)
    os.makedirs(folder, exist_ok=True)
    entries = []
    for number, image in enumerate(images, 1):
        name = f"{filename_prefix}_{number:04}.png"
        try:
            image.save(os.path.join(folder, name))
        except OSError as error:
            print(f"cannot save: {error}")
            continue
        entries.append({"filename": name, "subfolder": output_path, "type": "output"})
    return Outcome(ui={"images": entries if show_previews == "true" else []})


@saver("ETN_SendImageWebSocket")
def send_image(env: Env, images: ImageBatch = IMAGE, format: str = choice("PNG", "JPEG")) -> Outcome:
    """Send pictures over the socket; history gets entries without a filename."""
    for image in images:
        env.send(PreviewImage(format, image, None))
    entry = {"source": "websocket", "content-type": f"image/{format.lower()}", "type": "output"}
    return Outcome(ui={"images": [entry] * len(images)})


@saver("QuietSaver")
def quiet_saver(env: Env, images: ImageBatch = IMAGE, folder: str = value("STRING", default="quiet")) -> Outcome:
    """Write below output and report nothing."""
    root = os.path.join(env.folders.output, folder)
    os.makedirs(root, exist_ok=True)
    for number, image in enumerate(images, 1):
        image.save(os.path.join(root, f"q{number}.png"))
    with open(os.path.join(root, "captions.txt"), "w", encoding="utf-8") as file:
        file.write("a caption")
    return Outcome()


@saver("Teller")
def teller(said: str = value("STRING", default="{}")) -> Outcome:
    """Report ``said``, a JSON object, as it is."""
    return Outcome(ui=json.loads(said))


@node("ETN_LoadImageBase64", "packs", returns="IMAGE", module="custom_nodes.packs")
def load_base64(image: str = value("STRING", multiline=False)) -> ImageBatch:
    """Read a picture from base64 in an input that is called as if it were a name."""
    with Image.open(io.BytesIO(base64.b64decode(image))) as picture:
        return ImageBatch([picture.convert("RGB")])


if __name__ == "__main__":
    sys.exit(main())
