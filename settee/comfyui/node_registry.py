"""ComfyUI's node classes, as its `/object_info` lists them: made once for each start, and asked by everything else.

The shape of the answer is ``{Class: {"input": {"required": {name: spec}, "optional": …}, "output": [...],
"output_node": bool}}``, a spec being ``[type, options]`` or ``[[choice, …], options]``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from settee.comfyui.workflow import Workflow, natural_key

#: Input options by which ComfyUI (and VideoHelperSuite) mark a combo that lists the input folder, and the files there.
_UPLOADS = {
    "image_upload": "image",
    "animated_image_upload": "image",
    "video_upload": "video",
    "audio_upload": "audio",
    "file_upload": "file",
    "upload": "file",
}


@dataclass(frozen=True)
class NodeRegistry:
    """The classes of one ComfyUI. Without any, every class counts as unknown."""

    classes: Mapping[str, Any] = field(default_factory=dict, repr=False)
    #: Class → what ComfyUI puts in its place (`/node_replacements`, since 0.33).
    replacements: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def __contains__(self, class_type: object) -> bool:
        return class_type in self.classes

    def __iter__(self) -> Iterator[str]:
        return iter(self.classes)

    def __bool__(self) -> bool:
        return bool(self.classes)

    # --- one class ------------------------------------------------------------------------------------------

    def entry(self, class_type: str) -> Mapping[str, Any]:
        """Return a class as it is listed; empty for an unknown one."""
        found: Mapping[str, Any] = self.classes.get(class_type) or {}
        return found

    def inputs(self, class_type: str) -> dict[str, Any]:
        """Return the declared inputs, name → spec, without those that ComfyUI sets itself."""
        sections = self.entry(class_type).get("input") or {}
        return {**(sections.get("required") or {}), **(sections.get("optional") or {})}

    def hidden(self, class_type: str) -> dict[str, Any]:
        """Return the inputs that ComfyUI sets itself, name → kind."""
        return (self.entry(class_type).get("input") or {}).get("hidden") or {}

    def spec(self, class_type: str, name: str) -> Any:
        """Return the spec of an input; None when its class is unknown or has no such input."""
        return _declared(self.entry(class_type).get("input") or {}, name)

    def outputs(self, class_type: str) -> list[str]:
        """Return the types of what a class gives; choices count as COMBO, and an unknown class gives nothing."""
        given = self.entry(class_type).get("output")
        return [kind if isinstance(kind, str) else "COMBO" for kind in given] if isinstance(given, list) else []

    def is_core(self, class_type: str) -> bool:
        """Return True for a class of ComfyUI's own."""
        module = str(self.entry(class_type).get("python_module", ""))
        return module == "nodes" or module.startswith("comfy_extras.")

    def is_output(self, class_type: str) -> bool:
        return bool(self.entry(class_type).get("output_node"))

    def leaves_previews(self, class_type: str) -> bool:
        """Return True for a class that leaves temp files on the way to an output."""
        return bool(self.entry(class_type).get("has_intermediate_output"))

    def replacement(self, class_type: str) -> Mapping[str, Any]:
        """Return the entry by which ComfyUI would replace a class, the first of several; {} for none."""
        entries = self.replacements.get(class_type) if class_type not in self else None
        entry: Mapping[str, Any] = entries[0] if entries else {}
        return entry if entry.get("new_node_id") in self else {}

    # --- a graph ----------------------------------------------------------------------------------------------

    def output_nodes(self, workflow: Workflow) -> list[str]:
        """Return the ids of the nodes that end in an output, in natural order."""
        return sorted((i for i, node in workflow.items() if self.is_output(node["class_type"])), key=natural_key)

    def picture_senders(self, workflow: Workflow) -> set[str]:
        """Return the ids of the nodes that may send their output over the event socket: output nodes that are not core.

        SaveImageWebsocket is among them: it comes with ComfyUI as a custom node.
        """
        return {i for i in self.output_nodes(workflow) if not self.is_core(workflow[i]["class_type"])}

    def stand_ins(self, workflow: Workflow) -> list[str]:
        """Return the nodes, as ``4 (CheckpointLoaderSimple)``, that only stand in for a model (settee.embedded)."""
        classes = {node_id: node["class_type"] for node_id, node in workflow.items()}
        return [f"{i} ({name})" for i, name in classes.items() if self.entry(name).get("settee_stand_in")]


#: Of a ComfyUI that was not asked.
UNKNOWN = NodeRegistry()


def _declared(sections: Mapping[str, Any], name: str) -> Any:
    for section in ("required", "optional"):
        found = (sections.get(section) or {}).get(name)
        if found is not None:
            return found
    # A dynamic combo declares further inputs for each of its choices: ``model`` and ``model.seed``.
    parent, _, child = name.partition(".")
    choices = options_of(_declared(sections, parent)).get("options") if child else None
    for choice in choices if isinstance(choices, list) else ():
        found = _declared(choice.get("inputs") or {}, child) if isinstance(choice, dict) else None
        if found is not None:
            return found
    return None


# --- a spec -------------------------------------------------------------------------------------------------------


def type_of(spec: Any) -> str | None:
    """Return the type of an input; COMBO for a list of choices, None where it is not known."""
    kind = spec[0] if isinstance(spec, list) and spec else None
    return "COMBO" if isinstance(kind, list) else kind if isinstance(kind, str) else None


def options_of(spec: Any) -> Mapping[str, Any]:
    """Return the options of an input, such as its minimum and maximum."""
    return spec[1] if isinstance(spec, list) and len(spec) > 1 and isinstance(spec[1], dict) else {}


def choices_of(spec: Any) -> list[Any] | None:
    """Return the list of a combo input, in either of ComfyUI's forms (``[[…], {}]`` or ``["COMBO", {"options"}]``)."""
    if not isinstance(spec, list) or not spec:
        return None
    if isinstance(spec[0], list):
        return spec[0]
    if spec[0] == "COMBO" and isinstance(options_of(spec).get("options"), list):
        return list(options_of(spec)["options"])
    return None


def upload_kind(spec: Any) -> str | None:
    """Return ``image``, ``video``, ``audio`` or ``file`` if an input names a file of the input folder; else None."""
    return next((kind for name, kind in _UPLOADS.items() if options_of(spec).get(name)), None)


def is_dynamic(spec: Any) -> bool:
    """Return True for an input that stands for others (COMFY_AUTOGROW_V3 and similar), named later."""
    return isinstance(spec, list) and bool(spec) and isinstance(spec[0], str) and spec[0].startswith("COMFY_")
