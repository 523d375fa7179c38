"""settee's own stand-ins: a sampler and a user of models, a saver of other things than images, and a node that fails on
request."""

from __future__ import annotations

import hashlib
import io
import json
import os
import struct
import time
import wave
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from settee.embedded.nodes.image_files import write
from settee.embedded.nodes.node import (
    IMAGE,
    Env,
    ImageBatch,
    Outcome,
    choice,
    decimal,
    integer,
    model_file,
    node,
    optional,
    value,
)
from settee.embedded.nodes.sampling import SEED, STEPS, clouds, sampled

_MODULE = "settee.embedded.nodes.own"
_POLL_SECONDS = 0.005
_CRASH_DELAY_SECONDS = 0.05


@node("SetteeSampler", "settee", "Settee Sampler", "IMAGE", module=_MODULE)
def settee_sampler(
    env: Env,
    image: ImageBatch = IMAGE,
    seed: int = SEED,
    steps: int = STEPS,
    delay_ms: int = integer(50, 0, 60_000),
) -> ImageBatch:
    """Turn a picture into noise that depends on the seed only, as a sampler's output would; a step takes delay_ms."""
    return sampled(env, image, [clouds(seed, image.size)] * len(image), steps, 0.8, delay_ms / 1000)


@node("SetteeCheckpointTint", "settee", "Settee Checkpoint Tint", "IMAGE", module=_MODULE)
def settee_checkpoint_tint(
    env: Env, image: ImageBatch = IMAGE, ckpt_name: str = model_file("checkpoints")
) -> ImageBatch:
    """Tint a picture with a colour from the SHA-256 of a checkpoint file: shows which model was really there."""
    digest = hashlib.sha256(Path(env.folders.model_path("checkpoints", ckpt_name)).read_bytes()).digest()
    tint = Image.new(image[0].mode, image.size, tuple(digest[: len(image[0].getbands())]))
    return image.each(lambda each: Image.blend(each, tint, 0.5))


# --- failing ----------------------------------------------------------------------------------------------


class OutOfMemoryError(RuntimeError):
    """Reported under the name of PyTorch's exception."""


OutOfMemoryError.__module__ = "torch"


def out_of_memory() -> OutOfMemoryError:
    """Return an exception that reads like CUDA's."""
    return OutOfMemoryError(
        "CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 15.99 GiB of which "
        "1.23 GiB is free."
    )


def exit_soon() -> None:
    """End the process as a crash would, once the messages sent so far are on their way."""
    time.sleep(_CRASH_DELAY_SECONDS)
    os._exit(9)


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
    if fault == "oom" and not _memory_suffices(env, times, until_free):
        raise out_of_memory()
    if fault == "sleep":
        time.sleep(seconds)
    if fault == "exit":
        exit_soon()
    while fault == "hang":  # ended by Interrupted, or with the process
        env.check_interrupted()
        time.sleep(_POLL_SECONDS)
    return image


def _memory_suffices(env: Env, times: int, until_free: bool) -> bool:
    memory = env.memory
    if memory.freed if until_free else 0 < times <= memory.raised:
        memory.freed = False
        return True
    memory.raised += 1
    memory.full, memory.freed = True, False
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
            entry = write(env, slot, suffix, partial(_put, content()))
            if name == "gifs":
                path = os.path.join(slot.folder, entry["filename"])
                entry |= {"format": "image/gif", "frame_rate": 10.0, "workflow": "", "fullpath": path}
            ui.setdefault(key, []).append(entry)
    if "images" in ui:
        ui["animated"] = [True]
    if kind in ("text", "all"):
        ui["text"] = [text]
    return Outcome(ui=ui)
