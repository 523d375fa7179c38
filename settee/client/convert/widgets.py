"""Widgets of the nodes: what the server's registry declares for a class, and which value of the file belongs to which.

``widgets_values`` is a list without names, so a node that changed since it was saved would get its values shifted, in
the editor too. Therefore the count must be right and each value must be of its widget's type, or the node is refused.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from settee.client.convert.editor_file import Node, shown
from settee.comfyui.node_registry import NodeRegistry, choices_of, options_of, type_of
from settee.comfyui.seeds import SEED_INPUTS

#: Types that are widgets. All others are slots, or widgets of a kind that only a browser can work (refused below).
WIDGETS = frozenset(["INT", "FLOAT", "STRING", "BOOLEAN", "COMBO"])
#: Types whose widgets draw, record or build more inputs: what they export is made in the browser.
_BROWSER_WIDGETS = """
    AUDIO_RECORD AUDIO_UI AUDIOUPLOAD BOUNDING_BOX BOUNDING_BOXES CHART COLOR COLORS CURVE FILEUPLOAD GALLERIA HISTOGRAM
    IMAGECOMPARE IMAGECROP IMAGEUPLOAD LOAD_3D LOAD_3D_ADVANCED LOAD_3D_ANIMATION MARKDOWN MULTISELECT PAINTER RANGE
    SELECTBUTTON TEXTAREA TEXTPREVIEW TREESELECT WEBCAM
"""
BROWSER_WIDGETS = frozenset(_BROWSER_WIDGETS.split())
#: Begins the types of inputs that make other inputs (dynamic combos, growing lists, matched types).
DYNAMIC = "COMFY_"
#: Custom nodes of ComfyUI's own repository.
_OWN_CUSTOM_NODES = frozenset(["custom_nodes.websocket_image_save"])


class Misfit(ValueError):
    """The values do not fit the class; the message continues a sentence that begins with the node."""


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
        """Return how many widgets for "control after generate" follow this one: a combo's also has a filter."""
        controlled = self.options.get("control_after_generate", self.type == "INT" and self.name in SEED_INPUTS)
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

    @property
    def slots(self) -> tuple[Input, ...]:
        """Return the inputs as the editor's node has them: those without a widget first."""
        return tuple(sorted(self.inputs, key=lambda item: item.is_widget))

    def check(self) -> None:
        """Raise :class:`Misfit` where no node that runs can be converted: a browser makes one of its inputs."""
        for item in self.inputs:
            if item.type in BROWSER_WIDGETS or item.type.startswith(DYNAMIC) or item.options.get("widgetType"):
                raise Misfit(f"has an input {item.name} of type {item.type}, which only a browser can export")
            if item.options.get("remote"):
                raise Misfit(f"has an input {item.name} whose choices the browser asks the server for")

    def input(self, name: str) -> Input | None:
        return next((item for item in self.inputs if item.name == name), None)


def definition(class_type: str, classes: NodeRegistry, extensions: Iterable[str] | None) -> Definition:
    """Return a class of the registry. Raises :class:`Misfit` where it is missing, not described as /object_info
    describes classes, or may have a script that changes what the editor exports."""
    entry = classes.entry(class_type)
    try:
        inputs = tuple(item for section in ("required", "optional") for item in _inputs(entry, section))
    except LookupError as error:
        raise Misfit("is of a class that the server does not know") from error
    _check_script(entry.get("python_module"), extensions)
    name = str(entry.get("display_name") or class_type)
    return Definition(class_type, name, inputs, tuple(classes.outputs(class_type)))


def _inputs(entry: Mapping[str, Any], section: str) -> Iterator[Input]:
    """Yield the declared inputs of a section, in order. Raises LookupError for what is not readable."""
    named, orders = entry["input"].get(section) or {}, entry.get("input_order") or {}
    order = orders.get(section) if isinstance(orders, Mapping) else None
    order = list(named) if order is None else order
    if not isinstance(order, list) or len(order) != len(named):
        raise LookupError(section)
    for name in order:
        spec = named[name] if isinstance(name, str) else None
        kind = type_of(spec)
        if kind is None:
            raise LookupError(name)
        options = options_of(spec)
        is_widget = kind in WIDGETS and not options.get("forceInput")
        choices = tuple(choices_of(spec) or ())
        yield Input(name, kind, is_widget, optional=section == "optional", options=options, choices=choices)


def _check_script(module: Any, extensions: Iterable[str] | None) -> None:
    if not isinstance(module, str):
        raise Misfit("is of a class whose origin the server does not state")
    if not module.startswith("custom_nodes.") or module in _OWN_CUSTOM_NODES:
        return
    pack = module.split(".", 1)[1]
    if extensions is None:
        raise Misfit(f"is of the custom nodes {pack}, which may have an editor script that changes the exported values")
    if any(path.startswith(f"/extensions/{pack}/") for path in extensions):
        raise Misfit(f"is of the custom nodes {pack}, whose editor script may change the exported values")


#: Values of the widget "control after generate"; old editors had a switch.
_CONTROLS = ("fixed", "increment", "decrement", "randomize", "increment-wrap", True, False)
#: Classes with widgets of the editor's own after those of the registry: previews of sound and of 3D, and text.
_PREVIEWS = {"PreviewAny": 3} | dict.fromkeys(
    ["Preview3D", "Preview3DAnimation", "PreviewAudio", "SaveAudio", "SaveAudioMP3", "SaveAudioOpus", "SaveGLB"], 1
)
#: As a JavaScript number no larger one is exact.
_LARGEST = 2**53


def by_name(node: Node, definition: Definition) -> dict[str, Any]:
    """Return the node's values by input, as the file has them. Raises :class:`Misfit`."""
    values = [] if node.values is None else node.values
    if not isinstance(values, list):
        raise Misfit("keeps its values in a way of its own (widgets_values is not a list)")
    named, missing, controls = _read(values, definition)
    for name, control in controls.items():
        if not isinstance(control, (str, bool)) or control not in _CONTROLS:
            raise Misfit(f"has {shown(control)} after {name}, where its control after a run should stand")
    # A KSampler of the first editors lacks what follows its seed; then all that comes later is shifted.
    if missing:
        count_all = f"({len(values)} in all)"
        raise Misfit(f"has no value in the file for {missing[0]} {count_all}: another version of it was saved")
    count = sum(1 + item.controls for item in definition.inputs if item.is_widget)
    # Names prove that what comes after is the server's lack: of a newer node's inputs.
    if len(values) > count + _own_widgets(definition) and not isinstance(node.named_values, Mapping):
        more = f"({len(values)}) than its class takes ({count})"
        raise Misfit(f"has more values in the file {more}: another version was saved")
    for name, value in named.items() if node.named_values is not None else ():
        said = node.named_values
        if not isinstance(said, Mapping) or name not in said or not same(said[name], value):
            raise Misfit(f"has {shown(value)} for {name} by its place, and another value by its name")
    for other in _without_forced(values, definition):
        if not same(_read(other, definition)[0], named):
            raise Misfit("has a value in the file that may be for an input which takes none now")
    return named


def same(one: Any, other: Any) -> bool:
    """Return True if two values are exported alike; true is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _read(values: list[Any], definition: Definition) -> tuple[dict[str, Any], list[str], dict[str, Any]]:
    """Return (the values by input, the inputs without one, by input what stands where its control should)."""
    named, missing, controls, place = dict[str, Any](), list[str](), dict[str, Any](), 0
    for item in definition.inputs:
        if not item.is_widget:
            continue
        if place < len(values):
            named[item.name] = values[place]
        elif item.optional and "default" in item.options:
            # The node is older than this input: the editor takes the default.
            named[item.name] = item.options["default"]
        else:
            missing.append(item.name)
        if item.controls and place + 1 < len(values):
            controls[item.name] = values[place + 1]
        place += 1 + item.controls
    return named, missing, controls


def _without_forced(values: list[Any], definition: Definition) -> Iterator[list[Any]]:
    """Yield the values without those of inputs that lost their widget (forceInput), which old files still have. Editors
    recognise such a file by its number of values, counted in two ways, and drop the values at the inputs' own
    places."""
    takers = [item for item in definition.inputs if item.type in WIDGETS]
    forced = [place for place, item in enumerate(takers) if not item.is_widget]
    controls = sum(item.controls for item in takers if item.is_widget)
    if forced and len(values) in (len(takers), len(takers) + controls):
        yield [value for place, value in enumerate(values) if place not in forced]


def _own_widgets(definition: Definition) -> int:
    """Return how many values the editor's own widgets may add at the end: upload buttons, players, previews."""
    flags = {flag for item in definition.inputs for flag, on in item.options.items() if on}
    uploads = 2 if "audio_upload" in flags else 1 if flags & {"image_upload", "video_upload"} else 0
    return uploads + _PREVIEWS.get(definition.name, 0)


def exported(item: Input, value: Any, *, raw: bool = False) -> Any:
    """Return a widget's value as the editor exports it. ``raw``: it comes from a subgraph's widget, on which the
    widget's own changes are not certain, so that a string which they would change is refused.

    Raises :class:`Misfit` for a value that this widget cannot have.
    """
    if isinstance(value, list) and (item.options.get("multiselect") or item.options.get("multi_select")):
        if not all(isinstance(part, str) for part in value):
            raise Misfit(f"has a choice for {item.name} that is not text")
        # Else ComfyUI would take a list of two for a link.
        return {"__value__": list(value)}
    if not _fits(item, value):
        why = f"which is not a value of type {item.type}: another version of it was saved"
        raise Misfit(f"has {shown(value)} for {item.name}, {why}")
    if isinstance(value, str):
        return _text(item, value, raw=raw)
    # JavaScript has one kind of number: 1.0 is written as 1.
    return int(value) if isinstance(value, float) and value.is_integer() and abs(value) < _LARGEST else value


def _fits(item: Input, value: Any) -> bool:
    if item.type == "BOOLEAN":
        return isinstance(value, bool)
    if item.type == "STRING":
        return isinstance(value, str)
    if item.type == "COMBO":
        kinds = {type(choice) for choice in item.choices} or {str}
        return _is_number(value) if type(value) in (int, float) and kinds & {int, float} else type(value) in kinds
    return _is_number(value) and (item.type == "FLOAT" or float(value).is_integer())


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= _LARGEST and math.isfinite(value)


def _text(item: Input, text: str, *, raw: bool) -> str:
    if item.name == "sampler_name" and text.startswith("sample_"):
        raise Misfit(f"has the old name {shown(text)} for its sampler, which editors rename")
    if item.name == "filename_prefix" and _PATTERN.search(text):
        raise Misfit(f"has the pattern {shown(text)} for {item.name}, which the editor fills in as it exports")
    if item.options.get("multiline") and "\r" in text:
        raise Misfit(f"has old line ends in {item.name}, which some editors change")
    if not item.options.get("dynamicPrompts"):
        return text
    said = dynamic(text)
    if said is None:
        raise Misfit(f"has a dynamic prompt for {item.name}, of which the editor draws one by chance as it exports")
    if raw and said != text:
        raise Misfit(f"has a comment or an escape in its {item.name}, which is its subgraph's widget")
    return said


#: Comments in dynamic prompts. JavaScript's "." stops at these four line ends, and Python's only at the first.
_COMMENT = re.compile(r"/\*[\s\S]*?\*/|//[^\n\r\u2028\u2029]*")
_ESCAPED = re.compile(r"\\([{}|])")
#: ``%KSampler.seed%``; what else stands between two % is for comfyui.rewrite (a date) or the server (``%width%``).
_PATTERN = re.compile(r"%[^%.]+\.[^%.]+%")


def dynamic(text: str) -> str | None:
    """Return a dynamic prompt as it is exported: without comments, escapes undone. None where the editor draws by
    chance (``{a|b}``), or where it may."""
    text = _COMMENT.sub("", text)
    if re.search(r"(?<!\\)\{", text) or "\\\\" in text:
        return None
    return _ESCAPED.sub(r"\1", text)
