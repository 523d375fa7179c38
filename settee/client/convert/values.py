"""``widgets_values``: which value belongs to which input, and what the editor exports for it.

The file has them as a list without names, so a node that changed since it was saved would get its values shifted, in
the editor too. Therefore the count must be right and each value must be of its widget's type, or the node is refused.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

from settee.client.convert import texts
from settee.client.convert.definitions import WIDGETS, Definition, Input
from settee.client.convert.graph import Node
from settee.client.convert.refusal import shown

#: What the widget "control after generate" says; old editors had a switch.
_CONTROLS = ("fixed", "increment", "decrement", "randomize", "increment-wrap", True, False)
#: Classes with widgets of the editor's own after those of the registry: previews of sound and of 3D, and text.
_PREVIEWS = {
    "Preview3D": 1,
    "Preview3DAnimation": 1,
    "PreviewAny": 3,
    "PreviewAudio": 1,
    "SaveAudio": 1,
    "SaveAudioMP3": 1,
    "SaveAudioOpus": 1,
    "SaveGLB": 1,
}
#: As a JavaScript number no larger one is exact.
_LARGEST = 2**53


class Misfit(ValueError):
    """The values do not fit the class; the message continues a sentence that begins with the node."""


def by_name(node: Node, definition: Definition) -> dict[str, Any]:
    """The node's values by input, as the file has them. Raises :class:`Misfit`."""
    values = [] if node.values is None else node.values
    if not isinstance(values, list):
        raise Misfit("keeps its values in a way of its own (widgets_values is not a list)")
    _check_controls(values, definition)
    named, place, missing = _read(values, definition)
    # A KSampler of the first editors lacks what follows its seed; then all that comes later is shifted.
    if missing:
        raise Misfit(
            f"has no value in the file for {missing[0]} ({len(values)} in all): another version of it was saved"
        )
    # Names prove that what comes after is the server's lack: of a newer node's inputs.
    if len(values) > place + _own_widgets(definition) and not isinstance(node.named_values, Mapping):
        raise Misfit(
            f"has more values in the file ({len(values)}) than its class takes ({place}): another version was saved"
        )
    if node.named_values is not None:
        _agree(named, node.named_values)
    for other in _without_forced(values, definition):
        if not same(_read(other, definition)[0], named):
            raise Misfit("has a value in the file that may be for an input which takes none now")
    return named


def same(one: Any, other: Any) -> bool:
    """Whether two values are exported alike; true is not 1."""
    return json.dumps(one, sort_keys=True) == json.dumps(other, sort_keys=True)


def _read(values: list[Any], definition: Definition) -> tuple[dict[str, Any], int, list[str]]:
    """The values by input, how many the class has places for, and the inputs that got none."""
    named: dict[str, Any] = {}
    missing = []
    place = 0
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
        place += 1 + item.controls
    return named, place, missing


def _check_controls(values: list[Any], definition: Definition) -> None:
    place = 0
    for item in definition.inputs:
        if item.is_widget:
            place += 1 + item.controls
            if item.controls and place - item.controls < len(values):
                control = values[place - item.controls]
                if not isinstance(control, (str, bool)) or control not in _CONTROLS:
                    raise Misfit(f"has {shown(control)} after {item.name}, where its control after a run should stand")


def _without_forced(values: list[Any], definition: Definition) -> Iterator[list[Any]]:
    """Inputs that lost their widget (forceInput) still have a value in old files. Editors tell such a file by how many
    values it has, which they count in two ways, and drop the values at the inputs' own places."""
    takers = [item for item in definition.inputs if item.type in WIDGETS]
    forced = [place for place, item in enumerate(takers) if not item.is_widget]
    controls = sum(item.controls for item in takers if item.is_widget)
    if forced and len(values) in (len(takers), len(takers) + controls):
        yield [value for place, value in enumerate(values) if place not in forced]


def _own_widgets(definition: Definition) -> int:
    """How many values the editor's own widgets may add at the end: upload buttons, players, previews."""
    flags = {flag for item in definition.inputs for flag, on in item.options.items() if on}
    uploads = 2 if "audio_upload" in flags else 1 if flags & {"image_upload", "video_upload"} else 0
    return uploads + _PREVIEWS.get(definition.name, 0)


def _agree(named: Mapping[str, Any], said: Any) -> None:
    for name, value in named.items():
        if not isinstance(said, Mapping) or name not in said or not same(said[name], value):
            raise Misfit(f"has {shown(value)} for {name} by its place, and another value by its name")


def exported(item: Input, value: Any, *, raw: bool = False) -> Any:
    """A widget's value as the editor exports it. ``raw``: it comes from a subgraph's widget, on which the widget's
    own changes are not certain, so that a text which they would change is refused.

    Raises :class:`Misfit` for a value that is none of this widget's.
    """
    name = item.name
    if isinstance(value, list) and (item.options.get("multiselect") or item.options.get("multi_select")):
        if not all(isinstance(part, str) for part in value):
            raise Misfit(f"has a choice for {name} that is not text")
        # Else ComfyUI would take a list of two for a link.
        return {"__value__": list(value)}
    if not _fits(item, value):
        raise Misfit(f"has {shown(value)} for {name}, which is no {item.type}: another version of it was saved")
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
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return False
    return abs(value) <= _LARGEST and math.isfinite(value)


def _text(item: Input, text: str, *, raw: bool) -> str:
    if item.name == "sampler_name" and text.startswith("sample_"):
        raise Misfit(f"has the old name {shown(text)} for its sampler, which editors rename")
    if item.name == "filename_prefix" and texts.has_pattern(text):
        raise Misfit(f"has the pattern {shown(text)} for {item.name}, which the editor fills in as it exports")
    if item.options.get("multiline") and "\r" in text:
        raise Misfit(f"has old line ends in {item.name}, which some editors change")
    if not item.options.get("dynamicPrompts"):
        return text
    said = texts.dynamic(text)
    if said is None:
        raise Misfit(f"has a dynamic prompt for {item.name}, of which the editor draws one by chance as it exports")
    if raw and said != text:
        raise Misfit(f"has a comment or an escape in its {item.name}, which is its subgraph's widget")
    return said
