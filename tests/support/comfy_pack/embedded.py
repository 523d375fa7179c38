"""The embedded ComfyUI with nodes that do what those of popular packs do; ``__init__.py`` has the same for a real one.
And with nodes that are slow, fail or save other things than images on request.

Run as a script, it is ``python -m settee.embedded`` that has these nodes too, and the faults of faults.py.
"""

from __future__ import annotations

import base64
import copy
import hashlib
import io
import json
import math
import os
import struct
import sys
import time
import wave
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import faults
from PIL import Image

from settee.embedded.broadcast import PreviewImage
from settee.embedded.nodes import image_files
from settee.embedded.nodes.image_files import PREFIX, save_pngs
from settee.embedded.nodes.node import (
    IMAGE,
    PROMPT,
    Env,
    ImageBatch,
    Outcome,
    choice,
    decimal,
    hidden,
    integer,
    model_file,
    node,
    optional,
    value,
)
from settee.embedded.nodes.sampling import SEED, STEPS, clouds

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
        faults.FaultyExecutor.running.enqueue(prompt, how != "post")
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
def send_image(images: ImageBatch = IMAGE, format: str = choice("PNG", "JPEG")) -> Outcome:
    """Send pictures over the socket; history gets entries without a filename."""
    for image in images:
        faults.FaultyExecutor.running.send(PreviewImage(format, image, None))
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


# --- settee's own ---------------------------------------------------------------------------------------

_MODULE = "custom_nodes.settee"
_POLL_SECONDS = 0.005


@node("SetteeSampler", "settee", "Settee Sampler", "IMAGE", module=_MODULE)
def settee_sampler(
    env: Env,
    image: ImageBatch = IMAGE,
    seed: int = SEED,
    steps: int = STEPS,
    delay_ms: int = integer(50, 0, 60_000),
) -> ImageBatch:
    """Turn a picture into noise that depends on the seed only, as a sampler's output would; a step takes delay_ms."""
    noise = clouds(seed, image.size)

    def blended(start: Image.Image, step: int) -> Image.Image:
        return Image.blend(start.convert("RGB"), noise, 0.8 * step / steps)

    for step in range(1, steps + 1):
        time.sleep(delay_ms / 1000)
        size = env.options.preview_size
        env.report(step, steps, None if size is None else PreviewImage("JPEG", blended(image[0], step), size))
    return image.each(lambda each: blended(each, steps))


@node("SetteeCheckpointTint", "settee", "Settee Checkpoint Tint", "IMAGE", module=_MODULE)
def settee_checkpoint_tint(
    env: Env, image: ImageBatch = IMAGE, ckpt_name: str = model_file("checkpoints")
) -> ImageBatch:
    """Tint a picture with a colour from the SHA-256 of a checkpoint file: shows which model was really there."""
    digest = hashlib.sha256(Path(env.folders.model_path("checkpoints", ckpt_name)).read_bytes()).digest()
    tint = Image.new(image[0].mode, image.size, tuple(digest[: len(image[0].getbands())]))
    return image.each(lambda each: Image.blend(each, tint, 0.5))


@node("SetteeFault", "settee", "Settee Fault", "IMAGE", module=_MODULE)
def settee_fault(
    env: Env,
    image: ImageBatch = IMAGE,
    fault: str = choice("none", "error", "oom", "sleep", "exit", "hang"),
    seconds: float = optional(decimal(1.0, 0.0, 3600.0)),
    message: str = optional(value("STRING", default="SetteeFault was asked to fail")),
    times: int = optional(integer(0, 0, 1000)),
    until_free: bool = optional(value("BOOLEAN", default=False)),
) -> ImageBatch:
    """Pass a picture through and fail as asked.

    error: raises RuntimeError(message). oom: raises torch.OutOfMemoryError, the first ``times`` times it runs in
    this server (0: always), or with until_free whenever /free was not posted since the last time. sleep: ignores
    interrupts for ``seconds``. exit: the process dies with exit code 9. hang: runs until interrupted.
    """
    if fault == "error":
        raise RuntimeError(message)
    if fault == "oom" and not _memory_suffices(times, until_free):
        raise faults.out_of_memory()
    if fault == "sleep":
        time.sleep(seconds)
    if fault == "exit":
        faults.exit_soon()
    while fault == "hang":  # ended by Interrupted, or with the process
        env.check_interrupted()
        time.sleep(_POLL_SECONDS)
    return image


class _Memory:
    """The memory of a GPU that is not there."""

    #: How many out-of-memory errors there were.
    raised = 0
    #: The server's count of /free at the last one; what was freed before any counts for nothing.
    frees = math.inf


def _memory_suffices(times: int, until_free: bool) -> bool:
    frees = faults.stats.counts["memory_frees"]
    if frees > _Memory.frees if until_free else 0 < times <= _Memory.raised:
        _Memory.frees = math.inf
        return True
    _Memory.raised, _Memory.frees = _Memory.raised + 1, frees
    return False


# --- saving other things than images ----------------------------------------------------------------------


def _wav() -> bytes:
    """A tenth of a second of silence, 8 kHz mono."""
    with wave.open(buffer := io.BytesIO(), "wb") as file:
        file.setparams((1, 2, 8000, 0, "NONE", "not compressed"))
        file.writeframes(bytes(1600))
    return buffer.getvalue()


def _glb() -> bytes:
    """A glTF 2.0 binary with an empty scene."""
    scene = json.dumps({"asset": {"version": "2.0"}, "scene": 0, "scenes": [{}]}).encode()
    scene += b" " * (-len(scene) % 4)
    return b"glTF" + struct.pack("<III", 2, 20 + len(scene), len(scene)) + b"JSON" + scene


def _mp4() -> bytes:
    """The boxes of an MP4 file without a track in it."""

    def box(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", 8 + len(content)) + kind + content

    header = box(b"mvhd", struct.pack(">5I", 0, 0, 0, 1000, 0) + bytes(80))
    brand = box(b"ftyp", b"isom" + struct.pack(">I", 512) + b"isomiso2mp41")
    return brand + box(b"moov", header) + box(b"mdat", b"settee")


def _gif() -> bytes:
    """Two frames."""
    red, blue = (Image.new("RGB", (16, 16), colour) for colour in ("red", "blue"))
    red.save(buffer := io.BytesIO(), "GIF", save_all=True, append_images=[blue], duration=100, loop=0)
    return buffer.getvalue()


def _put(content: bytes, path: str) -> None:
    Path(path).write_bytes(content)


KINDS: dict[str, tuple[str, str, Callable[[], bytes]]] = {
    "audio": ("audio", "wav", _wav),
    "3d": ("3d", "glb", _glb),
    "video": ("images", "mp4", _mp4),
    "gifs": ("gifs", "gif", _gif),
    "file": ("files", "txt", lambda: b"written by SetteeSaveFiles\n"),
}
"""What can be asked for: the key it is listed under, the suffix, and its content."""


@node("SetteeSaveFiles", "settee", "Settee Save Files", module=_MODULE, output_node=True)
def settee_save_files(
    env: Env,
    kind: str = choice("all", *KINDS, "text"),
    filename_prefix: str = value("STRING", default="files/settee"),
    image: ImageBatch | None = optional(IMAGE),
    text: str = optional(value("STRING", default="hello", multiline=True)),
) -> Outcome:
    """Write a small file of one kind, or of all, and list it under the key that real nodes use.

    video comes under ``images`` with ``animated: [true]`` as from SaveVideo; gifs has the extra fields of
    VideoHelperSuite, an absolute path among them; text writes no file and shows a string.
    """
    ui: dict[str, list[Any]] = {}
    for name, (key, suffix, content) in KINDS.items():
        if kind in (name, "all"):
            slot = env.folders.next_slot(filename_prefix, "output", 0, 0)
            entry = image_files.write(slot, suffix, partial(_put, content()))
            if name == "gifs":
                path = os.path.join(slot.folder, entry["filename"])
                entry |= {"format": "image/gif", "frame_rate": 10.0, "workflow": "", "fullpath": path}
            ui.setdefault(key, []).append(entry)
    if "images" in ui:
        ui["animated"] = [True]
    if kind in ("text", "all"):
        ui["text"] = [text]
    return Outcome(ui=ui)


if __name__ == "__main__":
    sys.exit(faults.run(sys.argv[1:]))
