"""Which nodes of a workflow load files, and of what kind."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from settee.client.inject.selectors import declared, live_nodes
from settee.comfyui.literals import Place, Use, users
from settee.comfyui.workflow import ObjectInfo, Workflow, natural_key

#: class → (input, kind, slots that give a mask). For what a registry does not tell, or where none is known: ComfyUI's
#: own, VideoHelperSuite's (whose upload buttons are its own, without a flag) and KJNodes'.
_LOADERS: dict[str, tuple[str, str, frozenset[int]]] = {
    "LoadImage": ("image", "image", frozenset([1])),
    "LoadImageOutput": ("image", "image", frozenset([1])),
    "LoadImageMask": ("image", "image", frozenset([0])),
    "LoadVideo": ("file", "video", frozenset()),
    "LoadAudio": ("audio", "audio", frozenset()),
    "VHS_LoadVideo": ("video", "video", frozenset()),
    "VHS_LoadVideoFFmpeg": ("video", "video", frozenset()),
    "VHS_LoadAudioUpload": ("audio", "audio", frozenset()),
    "LoadAndResizeImage": ("image", "image", frozenset([1])),
}
#: What ComfyUI's editor shows an upload button for.
_FLAGS = {"image_upload": "image", "animated_image_upload": "image", "video_upload": "video", "audio_upload": "audio"}
#: Inputs that name a file, in a class of which nothing else is known.
_FILE_INPUTS = frozenset(["image", "mask", "video", "audio", "file", "filename"])


@dataclass(frozen=True)
class Loader:
    """An input that takes the name of a file."""

    place: Place
    #: ``image``, ``mask``, ``image+mask`` (both from one file, the mask from its alpha channel), ``video``, ``audio``.
    kind: str
    #: Whether an output is made from it.
    live: bool

    @property
    def takes(self) -> str:
        """The kind of file for it: ``image``, ``mask``, ``video`` or ``audio``."""
        return "image" if self.kind == "image+mask" else self.kind


def loaders(workflow: Workflow, object_info: ObjectInfo | None = None) -> list[Loader]:
    """Every input that takes a file's name, in natural order of node ids.

    What is one, the registry's upload flags say, and a table of the usual classes. A picture's loader is a mask's
    where only its mask goes anywhere.
    """
    alive, used = live_nodes(workflow, object_info), users(workflow)
    found = []
    for node_id in sorted(workflow, key=natural_key):
        node = workflow[node_id]
        for name, (kind, masks) in _file_inputs(str(node["class_type"]), object_info).items():
            if name in node["inputs"]:
                live = [use for use in used[node_id] if use.node_id in alive]
                found.append(Loader(Place(node_id, name), _kind(kind, masks, live or used[node_id]), bool(live)))
    return found


def unlisted(workflow: Workflow, node_id: str, kind: str, object_info: ObjectInfo | None = None) -> Loader | None:
    """The one input that names a file in a node that :func:`loaders` does not list, for a file of ``kind``.

    Where its class is known, the input must be a choice: a free text would be a path on the worker.
    """
    node = workflow[node_id]
    specs = declared(object_info, str(node["class_type"]))
    names = [
        name
        for name, value in node["inputs"].items()
        if name in _FILE_INPUTS and isinstance(value, str) and specs.get(name, [None])[0] != "STRING"
    ]
    return Loader(Place(node_id, names[0]), kind, bool(users(workflow)[node_id])) if len(names) == 1 else None


def _file_inputs(class_type: str, object_info: ObjectInfo | None) -> dict[str, tuple[str, frozenset[int]]]:
    """input → (``image``, ``video`` or ``audio``; slots that give a mask)."""
    found: dict[str, tuple[str, frozenset[int]]] = {}
    if class_type in _LOADERS:
        name, kind, masks = _LOADERS[class_type]
        found[name] = kind, masks
    known = (object_info or {}).get(class_type) or {}
    masks = frozenset(slot for slot, kind in enumerate(known.get("output") or ()) if kind == "MASK")
    for name, spec in declared(object_info, class_type).items():
        options = spec[1] if len(spec) > 1 and isinstance(spec[1], dict) else {}
        for flag, kind in _FLAGS.items():
            if options.get(flag):
                found[name] = kind, masks
    return found


def _kind(kind: str, masks: frozenset[int], uses: Iterable[Use]) -> str:
    slots = {use.slot for use in uses}
    if kind != "image" or not slots & masks:
        return kind
    return "mask" if slots <= masks else "image+mask"
