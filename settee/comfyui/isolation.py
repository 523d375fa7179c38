"""Isolation: every saving node runs for this job, and the traces of that are taken out of the pictures again.

ComfyUI answers a graph it has seen from its cache, with the names of files that were wiped after the last job
(resubmit_cached.json), so its own saving nodes get a `filename_prefix` of this job's own, and others an input that only
the cache sees, the salt.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import posixpath
import re
import struct
import zlib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from settee.comfyui.media import HEAD, format_of, png_chunks, riff_chunks
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.workflow import NODE_KEYS, Workflow, texts

#: An input no class declares: ComfyUI ignores it, but its cache key covers it, so the node runs again. Classes with
#: open-ended inputs would get it as an argument; ComfyUI drops it for them where `settee_patches` is loaded.
SALT_INPUT = "settee_job"
#: Hidden inputs that ComfyUI sets itself whatever the prompt has under their names (execution.get_input_data): the
#: salt's place in custom classes that have one, since no class gets to see it there.
_HIDDEN = frozenset({"PROMPT", "DYNPROMPT", "EXTRA_PNGINFO", "UNIQUE_ID"})
#: ComfyUI's own classes that put `filename_prefix` straight before a file's name: a folder in it would not be made.
_BARE_PREFIX = frozenset({"SaveImageDataSetToFolder", "SaveImageTextDataSetToFolder", "LossGraphNode"})
#: ComfyUI's own classes whose prefix has another name.
_PREFIX_INPUTS = {"SaveLoRA": "prefix", "SaveLoRANode": "prefix"}

#: Node id → text that changes when what the node reads changes.
Salts = Mapping[str, str]


def isolate(
    workflow: Workflow,
    registry: NodeRegistry,
    prefix: str,
    salts: Salts | None = None,
    *,
    previews: bool = False,
    expanding: Collection[str] = (),
) -> Workflow:
    """Return a copy in which every saving node runs for this job, ComfyUI's own ones to write below ``prefix``.

    What a custom class makes of its prefix is not known, so its own stays: it and output nodes without one get the
    salt, and so do the nodes of ``salts``: a loader without an IS_CHANGED would show the file that had its name before.
    With ``previews`` so do nodes that leave temp files on the way to an output: ComfyUI 0.33 reports a cached one's
    again. Nodes of the classes ``expanding`` become others, with savers among them, which do not exist when the node is
    cached. Nothing else upstream runs again.
    """
    isolated: Workflow = {}
    for node_id, node in workflow.items():
        isolated[node_id] = kept = {key: node[key] for key in NODE_KEYS if key in node}
        class_type = node["class_type"]
        name_input = _PREFIX_INPUTS.get(class_type, "filename_prefix")
        name = node["inputs"].get(name_input)
        is_output = registry.is_output(class_type)
        is_ours = registry.is_core(class_type) and class_type not in _BARE_PREFIX
        if is_output and is_ours and isinstance(name, str):
            # A prefix that names no file would make ComfyUI name it after our folder.
            is_name = posixpath.normpath(name.strip("/")) != "."
            kept["inputs"] = {**node["inputs"], name_input: f"{prefix}/{name if is_name else 'ComfyUI'}"}
        elif is_output or class_type in expanding or (previews and registry.leaves_previews(class_type)):
            kept["inputs"] = salted(node, registry, prefix)
        elif salts and node_id in salts:
            kept["inputs"] = salted(node, registry, salts[node_id])
    return isolated


def salted(node: Mapping[str, Any], registry: NodeRegistry, salt: str) -> dict[str, Any]:
    """Return a node's inputs with ``salt`` among them, where its class does not see it."""
    inputs, class_type = node["inputs"], node["class_type"]
    for name, kind in () if registry.is_core(class_type) else registry.hidden(class_type).items():
        if isinstance(kind, str) and kind in _HIDDEN and name not in inputs:
            return {**inputs, name: f"{SALT_INPUT}:{salt}"}
    return {**inputs, SALT_INPUT: salt}


def is_salt(name: str, value: Any) -> bool:
    return name == SALT_INPUT or (isinstance(value, str) and value.startswith(f"{SALT_INPUT}:"))


def salts(workflow: Workflow, digests: Mapping[str, str]) -> dict[str, str]:
    """Return the salt of every node that names an input file, or a folder of them: ``digests`` is by file name."""
    found = {}
    for node_id, node in workflow.items():
        named: set[str] = set()
        for text in {text.text for name, value in node["inputs"].items() for text in texts(name, value)}:
            if 0 < len(text) < 1000:
                name = posixpath.normpath(text.removesuffix(" [input]"))
                named.update(file for file in digests if file == name or file.startswith(f"{name}/"))
        if named:
            found[node_id] = hashlib.sha256("".join(digests[name] for name in sorted(named)).encode()).hexdigest()
    return found


# --- in pictures --------------------------------------------------------------------------------------------------

# ComfyUI writes the whole prompt into the files that it saves. A caller who opens such a picture in ComfyUI must find
# the workflow that was sent, and the same job must give the same bytes. JSON allows spaces between its tokens, so the
# traces are blanked in place: the file keeps its length, and nothing is copied.

_SALT = re.compile(rb'(?:, )?(?:"%b": "[\w-]*"|"[\w.-]+": "%b:[\w-]*")' % (SALT_INPUT.encode(), SALT_INPUT.encode()))
#: Format → its walk, and the chunks that may hold a prompt: texts, and the one of ComfyUI's own that SaveAnimatedPNG
#: writes behind the first picture; EXIF, which follows the pictures.
_CHUNKS = {"PNG": (png_chunks, {b"tEXt", b"iTXt", b"comf"}), "WEBP": (riff_chunks, {b"EXIF"})}
#: Metadata beyond this is not a prompt.
_MAX_CHUNK = 16 * 1024 * 1024
#: An animation of more frames keeps the traces; a file of zeroes is not walked byte by byte.
_MAX_CHUNKS = 10_000


def restore(path: Path, prefix: str) -> bool:
    """Blank what isolation with ``prefix`` left in a PNG or WEBP file; True when there was something.

    Other formats are left alone, and so is anything that does not look as expected.
    """
    fd, found = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC), False

    def read_at(at: int, size: int) -> bytes:
        return os.pread(fd, size, at)

    try:
        known = format_of(read_at(0, HEAD))
        if known not in _CHUNKS:
            return False
        walk, kinds = _CHUNKS[known]
        for part in itertools.islice(walk(read_at), _MAX_CHUNKS):
            if part.kind in kinds and part.last - part.first <= _MAX_CHUNK:
                data = read_at(part.first, part.last - part.first)
                changed = blanked(data, prefix)
                if changed != data:
                    crc = struct.pack(">I", zlib.crc32(part.kind + changed)) if known == "PNG" else b""
                    os.pwrite(fd, changed + crc, part.first)
                    found = True
        return found
    finally:
        os.close(fd)


def blanked(text: bytes, prefix: str) -> bytes:
    """Return the JSON text with this job's prefix and salt replaced by spaces; as long as before."""
    text = _SALT.sub(lambda match: b" " * len(match[0]), text)
    trace = b'"%b/' % prefix.encode()
    return text.replace(trace, b" " * (len(trace) - 1) + b'"')
