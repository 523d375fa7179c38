"""What the server's node registry says of a class, as the editor understands it: slots, widgets, and their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from settee.comfyui.workflow import ObjectInfo

#: Types that are widgets. All others are slots, or widgets of a kind that only a browser can work (refused below).
WIDGETS = frozenset(["INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"])
#: Types whose widgets draw, record or build more inputs: what they export is made in the browser.
BROWSER_WIDGETS = frozenset(
    [
        "AUDIO_RECORD",
        "AUDIO_UI",
        "AUDIOUPLOAD",
        "BOUNDING_BOX",
        "BOUNDING_BOXES",
        "CHART",
        "COLOR",
        "COLORS",
        "CURVE",
        "FILEUPLOAD",
        "GALLERIA",
        "HISTOGRAM",
        "IMAGECOMPARE",
        "IMAGECROP",
        "IMAGEUPLOAD",
        "LOAD_3D",
        "LOAD_3D_ADVANCED",
        "LOAD_3D_ANIMATION",
        "MARKDOWN",
        "MULTISELECT",
        "PAINTER",
        "RANGE",
        "SELECTBUTTON",
        "TEXTAREA",
        "TEXTPREVIEW",
        "TREESELECT",
        "WEBCAM",
    ]
)
#: Begins the types of inputs that make other inputs (dynamic combos, growing lists, matched types).
DYNAMIC = "COMFY_"
#: Custom nodes of ComfyUI's own repository.
_OWN_CUSTOM_NODES = frozenset(["custom_nodes.websocket_image_save"])
SEEDS = frozenset(["seed", "noise_seed"])


@dataclass(frozen=True)
class Input:
    name: str
    #: Of its slot; ``COMBO`` for a list of choices.
    type: str
    is_widget: bool
    optional: bool
    options: Mapping[str, Any]
    #: Of a combo, where the registry lists them.
    choices: tuple[Any, ...] = ()

    @property
    def controls(self) -> int:
        """How many widgets for "control after generate" follow this one: a combo's also has a filter."""
        controlled = self.options.get("control_after_generate", self.type == "INT" and self.name in SEEDS)
        if not controlled or self.type not in ("INT", "COMBO"):
            return 0
        return 1 if self.type == "INT" else 2


@dataclass(frozen=True)
class Definition:
    name: str
    display_name: str
    #: In the order of the editor's widgets.
    inputs: tuple[Input, ...]
    outputs: tuple[str, ...]
    #: Why no node of this class can be converted; None when they can.
    scripted: str | None
    #: Why none can that runs: a browser makes one of its inputs.
    browser_made: str | None

    @property
    def slots(self) -> tuple[Input, ...]:
        """The inputs as the editor's node has them: those without a widget first."""
        return tuple(sorted(self.inputs, key=lambda item: item.is_widget))

    def input(self, name: str) -> Input | None:
        return next((item for item in self.inputs if item.name == name), None)


def definition(class_type: str, object_info: ObjectInfo, extensions: Iterable[str] | None) -> Definition | None:
    """A class of the registry; None when it is not there, or not as /object_info says it."""
    entry = object_info.get(class_type)
    if not isinstance(entry, Mapping) or not isinstance(entry.get("input"), Mapping):
        return None
    inputs = [
        _input(name, spec, optional=kind == "optional")
        for kind in ("required", "optional")
        for name, spec in _in_order(entry, kind)
    ]
    outputs = entry.get("output") or []
    if None in inputs or not isinstance(outputs, list):
        return None
    known = [item for item in inputs if item is not None]
    return Definition(
        name=class_type,
        display_name=str(entry.get("display_name") or class_type),
        inputs=tuple(known),
        outputs=tuple(kind if isinstance(kind, str) else "COMBO" for kind in outputs),
        scripted=_script(entry.get("python_module"), extensions),
        browser_made=_browser_made(known),
    )


def _in_order(entry: Mapping[str, Any], kind: str) -> list[tuple[Any, Any]]:
    """The declared inputs of a kind. Those that ``input_order`` does not list as they are come out unreadable."""
    named, orders = entry["input"].get(kind) or {}, entry.get("input_order") or {}
    order = orders.get(kind) if isinstance(orders, Mapping) else None
    if order is None and isinstance(named, Mapping):
        order = list(named)
    if not isinstance(named, Mapping) or not isinstance(order, list):
        return [("", None)]
    if len(order) != len(named) or any(not isinstance(name, str) or name not in named for name in order):
        return [("", None)]
    return [(name, named[name]) for name in order]


def _input(name: str, spec: Any, *, optional: bool) -> Input | None:
    if not isinstance(spec, (list, tuple)) or not spec:
        return None
    options = spec[1] if len(spec) > 1 and isinstance(spec[1], Mapping) else {}
    choices = spec[0] if isinstance(spec[0], list) else options.get("options")
    kind = "COMBO" if isinstance(spec[0], list) else spec[0]
    if not isinstance(kind, str):
        return None
    return Input(
        name=name,
        type=kind,
        is_widget=kind in WIDGETS and not options.get("forceInput"),
        optional=optional,
        options=options,
        choices=tuple(choices) if kind == "COMBO" and isinstance(choices, list) else (),
    )


def _script(module: Any, extensions: Iterable[str] | None) -> str | None:
    """A pack of custom nodes may change with a script of its own what the editor exports."""
    if not isinstance(module, str):
        return "is of a class of which the server does not say where it is from"
    if not module.startswith("custom_nodes.") or module in _OWN_CUSTOM_NODES:
        return None
    pack = module.split(".", 1)[1]
    if extensions is None:
        return f"is of the custom nodes {pack}, which may bring an editor script that changes what is exported"
    if any(path.startswith(f"/extensions/{pack}/") for path in extensions):
        return f"is of the custom nodes {pack}, whose editor script may change what is exported"
    return None


def _browser_made(inputs: Iterable[Input]) -> str | None:
    for item in inputs:
        if item.type in BROWSER_WIDGETS or item.type.startswith(DYNAMIC) or item.options.get("widgetType"):
            return f"has an input {item.name} of type {item.type}, which only a browser can export"
        if item.options.get("remote"):
            return f"has an input {item.name} whose choices the browser asks the server for"
    return None
