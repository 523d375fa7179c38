"""What an entry of ComfyUI's history says: how the prompt ended, and what its nodes left. Pure.

Shared by the worker and the client's bare ComfyUI, so it needs nothing but the standard library. Custom nodes write
into history too: nothing in it is trusted to have a shape.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from settee.job import Kind
from settee.media import kind_of
from settee.redact import neutral
from settee.workflow import Workflow, natural_key, title

#: Keys that say something about the files beside them, not what was made.
_ABOUT = {"animated"}
#: Keys whose texts are names of files.
_NAMING = {"result", "3d"}


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


@dataclass(frozen=True)
class Ending:
    """How a prompt ended."""

    kind: Literal["success", "interrupted", "out_of_memory", "failed"]
    #: Of a failure: the node, and the first line of what it said; "" where ComfyUI does not tell.
    where: str = ""
    said: str = ""
    #: ``node_id, class_type, title, exception_type, exception_message``; no path of the server's.
    details: dict[str, Any] = field(default_factory=dict)


def ending(status: Mapping[str, Any], graph: Workflow) -> Ending:
    """Read a history entry's ``status``.

    A loop through an odd link ends with "success" and an execution_error among the messages, so those go first.
    """
    for name, data in messages(status):
        if name == "execution_interrupted":
            return Ending("interrupted")
        if name == "execution_error":
            return _failure(data, graph)
    return Ending("success" if status.get("status_str") == "success" else "failed")


def messages(status: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """``(type, data)`` of each message that ComfyUI kept, in their order."""
    found = status.get("messages")
    for message in found if isinstance(found, list) else ():
        if isinstance(message, list) and len(message) == 2:
            yield str(message[0]), mapping(message[1])


def _failure(data: Mapping[str, Any], graph: Workflow) -> Ending:
    node_id = str(data.get("node_id"))
    class_type = str(data.get("node_type"))
    exception = str(data.get("exception_type"))
    said = neutral(str(data.get("exception_message") or "").strip()) or exception.strip() or "it does not say why"
    details = {
        "node_id": node_id,
        "class_type": class_type,
        "title": title(graph.get(node_id, {})),
        "exception_type": exception,
        "exception_message": said[:2000],
    }
    out_of_memory = exception.endswith("OutOfMemoryError") or "out of memory" in said.lower()
    return Ending(
        "out_of_memory" if out_of_memory else "failed",
        where=f"node {node_id} ({class_type})",
        said=said.splitlines()[0][:300],
        details=details,
    )


def output_items(outputs: Mapping[str, Any]) -> Iterator[tuple[str, str, Any]]:
    """``(node id, key, item)`` of everything that nodes reported, by node in natural order.

    An item is an object with a ``filename``, or whatever else stood there that is no object.
    """
    for node_id in sorted(outputs, key=natural_key):
        output = outputs[node_id]
        if not isinstance(output, Mapping):
            continue
        for key, value in output.items():
            if key in _ABOUT:
                continue
            for item in value if isinstance(value, list) else [value]:
                if not isinstance(item, dict) or isinstance(item.get("filename"), str):
                    yield node_id, key, item


def named_file(key: str, item: Any) -> tuple[str, str] | None:
    """(subfolder, filename) when the item is the name of a file below output, as Preview3D's `result` has it."""
    if key not in _NAMING or not isinstance(item, str) or "\n" in item or len(item) > 500:
        return None
    folder, name = posixpath.split(item)
    return None if kind_of(name)[0] in (Kind.TEXT, Kind.FILE) else (folder, name)


def text_name(node_id: str) -> str:
    """The file name of a text that a node left."""
    return f"node_{re.sub(r'[^A-Za-z0-9_-]', '_', node_id)[:100]}.txt"
