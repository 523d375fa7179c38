"""An entry of ComfyUI's history: how the prompt ended, and what its nodes left. Pure.

Shared by the worker and the client's bare ComfyUI, so it needs nothing but the standard library. Custom nodes write
into history too: nothing in it is trusted to have a shape.
"""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from settee.base.errors import ComfyError, ExecutionFailed, OutOfMemory, PromptLost
from settee.base.job import Kind
from settee.base.text import neutral
from settee.comfyui.media import kind_of
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.workflow import Workflow, natural_key, own_node, title

#: Keys of core nodes that describe the files next to them, or hold the editor's state.
_ABOUT = {"animated", "compositor_bboxes", "compositor_inputs", "dims", "histogram", "input_bboxes"}
#: Names of files in temp: Preview3DAdvanced's, PreviewGaussianSplat's, PreviewPointCloud's.
_TEMP_NAMES = ("preview3d_advanced_", "preview_splat_", "preview_pointcloud_")
#: Lists within lists that are looked through.
_MAX_DEPTH = 10
#: Keys whose texts are names of files.
_NAMING = {"result", "3d"}


#: (folder type, subfolder, filename), as history has it; nothing in it was checked.
Place = tuple[str, str, str]


def mapping(value: Any) -> dict[str, Any]:
    """Return the value if it is an object, else an empty one."""
    return value if isinstance(value, dict) else {}


def messages(status: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield ``(type, data)`` of each message that ComfyUI kept, in their order."""
    found = status.get("messages")
    for message in found if isinstance(found, list) else ():
        if isinstance(message, list) and len(message) == 2:
            yield str(message[0]), mapping(message[1])


def located(node_id: str, graph: Workflow, class_type: str | None = None) -> str:
    """Name a node as errors do; ``class_type`` where it may be one that the graph does not have."""
    return f"node {node_id} ({class_type or graph.get(node_id, {}).get('class_type', 'unknown')})"


def failure_of(
    status: Mapping[str, Any],
    graph: Workflow,
    registry: NodeRegistry,
    extra_data: Mapping[str, Any],
    *,
    is_freed: bool = True,
) -> ComfyError | None:
    """Return the error that a history entry's status stands for; None for a success.

    A loop through an odd link ends with "success" and an execution_error among the messages, so those go first.
    ``is_freed``: what ran out of memory runs once more, with all that ComfyUI held given up.
    """
    data: dict[str, Any] | None = None
    for kind, about in messages(status):
        if kind == "execution_interrupted":
            return PromptLost("the prompt was interrupted, by someone else or by a node of its own; send the job again")
        if kind == "execution_error":
            data = about
            break
    if data is None:
        is_success = status.get("status_str") == "success"
        return None if is_success else ExecutionFailed("ComfyUI reports that the workflow failed, but not why")
    node_id, class_type = own_node(graph, str(data.get("node_id"))), str(data.get("node_type"))
    exception = str(data.get("exception_type"))
    said = neutral(str(data.get("exception_message") or "").strip()) or exception.strip() or "it gives no reason"
    details = {
        "node_id": node_id,
        "class_type": class_type,
        "title": title(graph.get(node_id, {})),
        "exception_type": exception,
        "exception_message": said[:2000],
    }
    where = located(node_id, graph, class_type) if node_id else "the workflow"
    if exception.endswith("OutOfMemoryError") or "out of memory" in said.lower():
        advice = "use a smaller size or batch, or " + ("a larger GPU" if is_freed else "unload other models in ComfyUI")
        when = ", also after it was freed" if is_freed else ""
        return OutOfMemory(f"{where} ran out of memory{when}: {advice}", details=details)
    advice = "" if extra_data.get("extra_pnginfo") else _of_missing_graph(details, registry)
    return ExecutionFailed(f"{where} failed: {said.splitlines()[0][:300]}{advice}", details=details)


def _of_missing_graph(details: Mapping[str, Any], registry: NodeRegistry) -> str:
    """Return advice for a custom node that reads the editor's graph and does not ask whether there is one.

    Its Python errors name neither: ComfyUI gives it None for EXTRA_PNGINFO when a job has no `extra_pnginfo`.
    """
    class_type = details["class_type"]
    if "EXTRA_PNGINFO" not in registry.hidden(class_type).values() or registry.is_core(class_type):
        return ""
    said = f"{details['exception_type']}: {details['exception_message']}"
    if "NoneType" not in said and "extra_pnginfo" not in said.lower():
        return ""
    return (
        "; this node reads the editor's graph, which the job did not bring: send "
        'extra_data {"extra_pnginfo": {"workflow": the graph as the editor saves it}}'
    )


@dataclass(frozen=True)
class Reported:
    """One thing that a node reported: a file, a text, or a picture that it sent over the socket."""

    node_id: str
    key: str
    place: Place | None = None
    text: str | None = None


def reported(outputs: Mapping[str, Any], shows_state: Callable[[str], bool] = lambda _: False) -> Iterator[Reported]:
    """Yield everything that nodes reported, by node in natural order, whatever its key and shape.

    What is neither a file nor a string becomes a text as JSON; flags do not. ``shows_state``: True for a node that is
    not an output node, which only shows in the editor what goes through it: of that, files and ``text`` count.
    """
    for node_id in sorted(outputs, key=natural_key):
        for key, value in mapping(outputs[node_id]).items():
            is_state, others = shows_state(node_id) and key != "text", []
            for item in _items(value):
                if _is_file(item):
                    kind, subfolder = str(item.get("type", "output")), str(item.get("subfolder") or "")
                    yield Reported(node_id, key, place=(kind, subfolder, item["filename"]))
                elif isinstance(item, dict) and item.get("source") == "websocket":
                    yield Reported(node_id, key)
                elif is_state or key in _ABOUT or item is None or isinstance(item, bool):
                    continue
                elif isinstance(item, str):
                    if item or key == "text":
                        yield Reported(node_id, key, text=item)
                elif key not in _NAMING:
                    others.append(item)
            if others:
                yield Reported(node_id, key, text=json.dumps(others[0] if len(others) == 1 else others))


def _items(value: Any, depth: int = 0) -> Iterator[Any]:
    """Yield the items of a list, and the files at any depth within lists and objects."""
    is_list = isinstance(value, list)
    if (is_list and depth == 0) or (not _is_file(value) and _has_files(value, depth)):
        for item in value if is_list else value.values():
            yield from _items(item, depth + 1)
    else:
        yield value


def _is_file(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("filename"), str)


def _has_files(value: Any, depth: int = 0) -> bool:
    within = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return _is_file(value) or (depth < _MAX_DEPTH and any(_has_files(each, depth + 1) for each in within))


def saving_nodes(outputs: Mapping[str, Any]) -> set[str]:
    return {item.node_id for item in reported(outputs) if item.place is not None}


def named_file(key: str, item: Any) -> Place | None:
    """Return the place when the item is the name of a file, as Preview3D's `result` has it."""
    if key not in _NAMING or not isinstance(item, str) or "\n" in item or len(item) > 500:
        return None
    folder, name = posixpath.split(item)
    kind = "temp" if name.startswith(_TEMP_NAMES) else "output"
    return None if kind_of(name)[0] in (Kind.TEXT, Kind.FILE) else (kind, folder, name)


def text_name(node_id: str) -> str:
    return f"node_{re.sub(r'[^A-Za-z0-9_-]', '_', node_id)[:100]}.txt"
