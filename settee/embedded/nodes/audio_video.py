"""settee's stand-in for nodes that save other things than images, so that collecting every kind can be tested."""

from __future__ import annotations

import json
import os
import struct
import wave
from collections.abc import Callable
from typing import Any

from PIL import Image

from settee.embedded.folders import Slot
from settee.embedded.nodes.base import Node, NodeEnv, NodeSpec, Outcome, choice
from settee.embedded.nodes.saving import FILE_HIDDEN, saved


def write_wav(path: str) -> None:
    """A tenth of a second of silence, 8 kHz mono."""
    with wave.open(path, "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(8000)
        file.writeframes(bytes(1600))


def write_glb(path: str) -> None:
    """A glTF 2.0 binary with an empty scene."""
    scene = json.dumps({"asset": {"version": "2.0"}, "scene": 0, "scenes": [{}]}).encode()
    scene += b" " * (-len(scene) % 4)
    with open(path, "wb") as file:
        file.write(b"glTF" + struct.pack("<II", 2, 20 + len(scene)))
        file.write(struct.pack("<I", len(scene)) + b"JSON" + scene)


def write_mp4(path: str) -> None:
    """The boxes of an MP4 file without a track in it."""
    brand = b"isom" + struct.pack(">I", 512) + b"isomiso2mp41"
    header = struct.pack(">4I", 0, 0, 0, 1000) + struct.pack(">I", 0) + bytes(80)
    movie = _box(b"mvhd", header)
    with open(path, "wb") as file:
        file.write(_box(b"ftyp", brand) + _box(b"moov", movie) + _box(b"mdat", b"settee"))


def _box(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", 8 + len(content)) + kind + content


def write_gif(path: str) -> None:
    """Two frames."""
    frames = [Image.new("RGB", (16, 16), colour) for colour in ("red", "blue")]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=100, loop=0)


def write_text(path: str) -> None:
    """A line of text."""
    with open(path, "w", encoding="utf-8") as file:
        file.write("written by SetteeSaveFiles\n")


Writer = Callable[[str], None]

KINDS: dict[str, tuple[str, str, Writer]] = {
    "audio": ("audio", "wav", write_wav),
    "3d": ("3d", "glb", write_glb),
    "video": ("images", "mp4", write_mp4),
    "gifs": ("gifs", "gif", write_gif),
    "file": ("files", "txt", write_text),
}
"""What can be asked for: the key it is listed under, the suffix, and how to write it."""


class SetteeSaveFiles(Node):
    """Writes a small file of one kind, or of all, and lists it under the key real nodes use.

    video comes under ``images`` with ``animated: [true]`` as from SaveVideo; gifs carries the extra fields of
    VideoHelperSuite, an absolute path among them; text writes no file and shows a string.
    """

    spec = NodeSpec(
        "SetteeSaveFiles",
        "settee",
        required={
            "kind": choice("all", *KINDS, "text"),
            "filename_prefix": ("STRING", {"default": "files/settee"}),
        },
        optional={"image": ("IMAGE",), "text": ("STRING", {"default": "hello", "multiline": True})},
        hidden=FILE_HIDDEN,
        output_node=True,
        module="settee.embedded.nodes.audio_video",
        display_name="Settee Save Files",
    )

    def run(self, env: NodeEnv, **inputs: Any) -> Outcome:
        wanted = inputs["kind"]
        ui: dict[str, list[Any]] = {}
        for kind, (key, suffix, write) in KINDS.items():
            if wanted in (kind, "all"):
                slot = env.folders.next_slot(inputs["filename_prefix"], env.folders.output, 0, 0)
                ui.setdefault(key, []).append(self._file(env, slot, suffix, write))
        if "images" in ui:
            ui["animated"] = [True]
        for entry in ui.get("gifs", []):
            path = os.path.join(env.folders.output, entry["subfolder"], entry["filename"])
            entry |= {"format": "image/gif", "frame_rate": 10.0, "workflow": "", "fullpath": path}
        if wanted in ("text", "all"):
            ui["text"] = [inputs.get("text", "hello")]
        return Outcome(ui=ui)

    @staticmethod
    def _file(env: NodeEnv, slot: Slot, suffix: str, write: Writer) -> dict[str, Any]:
        name = f"{slot.stem}_{slot.counter:05}_.{suffix}"
        write(os.path.join(slot.folder, name))
        return {**saved(env, slot, name, "output")}


NODES: tuple[type[Node], ...] = (SetteeSaveFiles,)
