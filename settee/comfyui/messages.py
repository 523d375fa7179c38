"""Messages of ComfyUI's event socket, and the progress of a prompt by them. Pure; for worker and client."""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import Any

from settee.base.json_io import loads
from settee.comfyui.workflow import Workflow

#: Each of these repeats the state of every node: 2 MB for a graph of 102 nodes (many_nodes.json). Its content
#: comes in smaller messages too, so it is skipped unparsed.
_SKIPPED = (b'{"type": "progress_state"', b'{"type":"progress_state"')
_BINARY_IMAGE = 1
_BINARY_IMAGE_WITH_METADATA = 4

#: Sends its pictures over the socket; history has nothing of them (big_ws_message.json).
PICTURE_NODE = "SaveImageWebsocket"

#: The very first message to send: previews then name their node (success_ksampler_preview_metadata.json).
FEATURES = '{"type": "feature_flags", "data": {"supports_preview_metadata": true}}'


@dataclass(frozen=True)
class Event:
    type: str
    data: dict[str, Any]


@dataclass(frozen=True)
class ImageEvent:
    """A picture sent over the socket: a preview, or the output of SaveImageWebsocket."""

    #: Known when the server speaks preview metadata; else the node that executes.
    node_id: str | None
    media_type: str
    content: bytes
    #: ComfyUI's own previews of a sampler's steps are JPEG and, by FEATURES, come with metadata. Whatever else is sent
    #: was made to be kept: SaveImageWebsocket's PNG comes with metadata too, external-tooling nodes send without.
    is_preview: bool = False


def text_event(raw: bytes) -> Event | None:
    """Read a text frame; None for one that is skipped, or has another shape."""
    if raw.startswith(_SKIPPED):
        return None
    try:
        message = loads(raw)
        return Event(str(message["type"]), dict(message["data"]))
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def remaining(status: Event) -> int | None:
    """Return how many prompts wait or run, by a ``status`` event; None when it does not state it."""
    said: Any = status.data
    for key in ("status", "exec_info", "queue_remaining"):
        said = said.get(key) if isinstance(said, dict) else None
    return said if isinstance(said, int) else None


def image_event(raw: bytes) -> ImageEvent | None:
    """Read a binary frame: event number (4 bytes), then image type or metadata length (4 bytes), big-endian."""
    if len(raw) < 8:
        return None
    kind, number = struct.unpack(">II", raw[:8])
    if kind == _BINARY_IMAGE:
        return ImageEvent(None, "image/png" if number == 2 else "image/jpeg", raw[8:])
    if kind == _BINARY_IMAGE_WITH_METADATA:
        try:
            metadata = loads(raw[8 : 8 + number])
        except (ValueError, RecursionError):
            return None
        if not isinstance(metadata, dict):
            return None
        node_id = metadata.get("node_id")
        media_type = str(metadata.get("image_type") or "image/jpeg")
        content, is_preview = raw[8 + number :], media_type == "image/jpeg"
        return ImageEvent(str(node_id) if node_id is not None else None, media_type, content, is_preview)
    return None


@dataclass
class Report:
    """The progress of a prompt; ``percent`` is over the whole graph and never falls."""

    node_id: str | None = None
    value: int | None = None
    maximum: int | None = None
    percent: float = 0.0


class Meter:
    """Turns events into percent of the graph: every node counts the same, the running one by its steps."""

    def __init__(self, workflow: Workflow) -> None:
        self._total = max(1, len(workflow))
        self._done: set[str] = set()
        self.report = Report()

    def take(self, event: Event) -> bool:
        """Note an event of the prompt; True when there is something to report."""
        report, data = self.report, event.data
        if event.type == "execution_cached":
            nodes = data.get("nodes")
            self._done.update(str(node) for node in (nodes if isinstance(nodes, list) else ()))
        elif event.type == "executing" and data.get("node") is not None:
            self._finish_current()
            report.node_id, report.value, report.maximum = str(data["node"]), None, None
        elif event.type == "progress" and (maximum := _count(data.get("max"))):
            report.node_id = str(data["node"]) if data.get("node") is not None else report.node_id
            report.value, report.maximum = _count(data.get("value")), maximum
        elif event.type == "execution_success":
            report.percent = 100.0
            return True
        else:
            return False
        part = report.value / report.maximum if report.value and report.maximum else 0.0
        percent = 100.0 * min(len(self._done) + min(part, 1.0), self._total) / self._total
        report.percent = max(report.percent, round(percent, 1))
        return True

    def _finish_current(self) -> None:
        if self.report.node_id is not None:
            self._done.add(self.report.node_id)


def _count(value: Any) -> int:
    """A custom node may report anything as its progress; what is not a number counts as 0."""
    return max(0, int(value)) if isinstance(value, (int, float)) and math.isfinite(value) else 0
