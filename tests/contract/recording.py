"""Reading the recordings of real ComfyUIs, and making two runs comparable."""

from __future__ import annotations

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

from tests.contract import generations
from tests.contract.driver import Binary, Message, label

RECORDINGS = Path(__file__).parent / "recordings"
_UUID = re.compile(r"[0-9a-f]{8}-(?:[0-9a-f]{4}-){3}[0-9a-f]{12}|[0-9a-f]{32}")
_COUNTER = re.compile(r"_\d{5}_")
_TEMP = re.compile(r"_temp_[a-z]{5}")
_STEP = re.compile(r"progress:(\d+)/(\d+)")
_TIMES = ("timestamp", "create_time", "execution_start_time", "execution_end_time")
_NUMBERS = ("number", "priority", "total", "has_more")
_TRACEBACK = ("traceback", "current_inputs", "current_outputs")
_PROSE = ("tooltip", "output_tooltips", "description", "search_aliases", "essentials_category", "advanced")


@cache
def load(name: str, version: str | None = None) -> Any:
    """A recording of the generation under test, or of another version; do not change what it gives."""
    folder = RECORDINGS / (version or generations.under_test().version)
    return json.loads((folder / f"{name}.json").read_text(encoding="utf-8"))


def has(name: str) -> bool:
    """Whether the generation under test was recorded in a scenario."""
    return (RECORDINGS / generations.under_test().version / f"{name}.json").exists()


def http_events(name: str, version: str | None = None) -> list[dict[str, Any]]:
    """The HTTP exchanges of a recording, in order."""
    return [event for event in load(name, version)["events"] if event["kind"] == "http"]


def cases(name: str) -> list[tuple[str, dict[str, Any]]]:
    """Each HTTP exchange that follows a note ``case: NAME``, by that name; the last of each case is left out
    when it only reads history."""
    found, current = [], ""
    for event in load(name)["events"]:
        if event["kind"] == "note" and event["text"].startswith("case: "):
            current = event["text"].removeprefix("case: ")
        elif event["kind"] == "http" and current and event["method"] == "POST":
            found.append((current, event))
            current = ""
    return found


def messages(name: str, client: str) -> list[Message]:
    """What one client of a recording received."""
    found: list[Message] = []
    for event in load(name)["events"]:
        if event["kind"] == "ws" and event["client"] == client:
            message = event["msg"]
            found.append(Binary(message["binary"]["event"], b"") if "binary" in message else message)
    return found


def labels(name: str, client: str = "A") -> list[str]:
    """The same in a few letters each."""
    return [label(message) for message in messages(name, client)]


def without_quick_steps(labels: list[str]) -> list[str]:
    """Labels without the steps that a generation may not send (those between first and last), and their state."""
    if generations.under_test().sends_every_step:
        return labels
    kept: list[str] = []
    for each in labels:
        step = _STEP.fullmatch(each)
        if step and 1 < int(step[1]) < int(step[2]):
            kept.pop()
        else:
            kept.append(each)
    return kept


def brought(extra_data: dict[str, Any]) -> dict[str, Any]:
    """The extra_data of a prompt in queue or history without the time that 0.33 adds."""
    return {key: value for key, value in extra_data.items() if key != "create_time"}


def neutral(value: Any) -> Any:
    """A JSON value without what differs from run to run: ids, times, counters, colours, tracebacks and prose."""
    if isinstance(value, dict):
        kept = {key: neutral(item) for key, item in value.items() if key not in (*_PROSE, "client_id")}
        for key in kept:
            if key in _TIMES:
                kept[key] = "TIME"
            if key == "exception_message":
                kept[key] = kept[key].split("\n")[0]  # paths follow
            if key == "executed":
                kept[key] = sorted(kept[key])  # a set in ComfyUI
            if key in _NUMBERS:
                kept[key] = "NUMBER"
            if key in _TRACEBACK:
                kept[key] = "TRACEBACK"
            if key == "color":
                kept[key] = "COLOR"
        return {neutral(key): item for key, item in kept.items()}
    if isinstance(value, list):
        return [neutral(item) for item in value]
    if isinstance(value, str):
        value = _UUID.sub("ID", value)
        return _TEMP.sub("_temp_XXXXX", _COUNTER.sub("_N_", value))
    return value
