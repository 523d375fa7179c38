"""Patterns in the prefixes of file names, such as ``%date:yyyy-MM-dd%`` and ``%KSampler.seed%``.

ComfyUI's editor fills them in before it sends a graph (applyTextReplacements, formatDate). Its server does not: its
folder_paths.get_save_image_path knows ``%width%``, ``%year%`` and their like. Pure; for worker and client.
"""

from __future__ import annotations

import re
import time

from settee.literals import Computed, Place, literal_of
from settee.workflow import Workflow, title, unwrapped

PREFIX_INPUT = "filename_prefix"
_PATTERN = re.compile("%([^%]+)%")
_DATE_PART = re.compile("dd?|MM?|hh?|mm?|ss?|yyy?y?")
_NOT_IN_NAMES = re.compile(r'[/?<>\\:*|"\x00-\x1f\x7f]')


def filled_prefixes(workflow: Workflow, now: time.struct_time) -> dict[Place, str]:
    """The prefixes whose patterns stand for something, filled in. What names no node's value stays as it is."""
    found = {}
    for node_id, node in workflow.items():
        given = node["inputs"].get(PREFIX_INPUT)
        if isinstance(given, str) and "%" in given:
            filled = _PATTERN.sub(lambda match: _replacement(match, workflow, now), given)
            if filled != given:
                found[Place(node_id, PREFIX_INPUT)] = filled
    return found


def _replacement(match: re.Match[str], workflow: Workflow, now: time.struct_time) -> str:
    name, *rest = match[1].split(".")
    if len(rest) != 1:
        return _date(name.removeprefix("date:"), now) if name.startswith("date:") else match[0]
    # The editor looks for a node's name for search and replace, which is its class unless its user has changed it.
    named = [i for i, node in workflow.items() if node["class_type"] == name]
    named += [i for i, node in workflow.items() if title(node) == name]
    if not named or rest[0] not in workflow[named[0]]["inputs"]:
        return match[0]
    try:
        place = literal_of(workflow, named[0], rest[0])
    except Computed:
        return match[0]
    value = unwrapped(workflow[place.node_id]["inputs"][place.input])
    if isinstance(value, bool):
        text = str(value).lower()
    elif isinstance(value, float) and value.is_integer():
        text = str(int(value))
    elif isinstance(value, (str, int, float)):
        text = str(value)
    else:
        return match[0]
    return _NOT_IN_NAMES.sub("_", text)


def _date(form: str, now: time.struct_time) -> str:
    numbers = {"d": now.tm_mday, "M": now.tm_mon, "h": now.tm_hour, "m": now.tm_min, "s": now.tm_sec}

    def part(match: re.Match[str]) -> str:
        text = match[0]
        if text[0] == "y":
            year = str(now.tm_year)
            return {"yy": year[2:], "yyyy": year}.get(text, text)
        return str(numbers[text[0]]).zfill(len(text))

    return _DATE_PART.sub(part, form)
