"""What a prompt's history says of how it ended, as an error of ours."""

from __future__ import annotations

from typing import Any

from settee import workflow
from settee.errors import ComfyError, ExecutionFailed, OutOfMemory, PromptLost
from settee.redact import neutral
from settee.workflow import Workflow


def mapping(value: Any) -> dict[str, Any]:
    """The value if it is an object, else an empty one: custom nodes write into history too."""
    return value if isinstance(value, dict) else {}


def failure_of(status: dict[str, Any], graph: Workflow) -> ComfyError | None:
    """The error that a history entry's status stands for; None for a success.

    A loop through an odd link ends with "success" and an execution_error among the messages, so those go first.
    """
    messages = status.get("messages")
    for message in messages if isinstance(messages, list) else ():
        name, data = message if isinstance(message, list) and len(message) == 2 else (None, None)
        if name == "execution_interrupted":
            return PromptLost("the prompt was interrupted, by someone else or by a node of its own; send the job again")
        if name == "execution_error":
            return _node_failure(mapping(data), graph)
    if status.get("status_str") == "success":
        return None
    return ExecutionFailed("ComfyUI reports that the workflow failed, but not why")


def _node_failure(data: dict[str, Any], graph: Workflow) -> ComfyError:
    node_id = str(data.get("node_id"))
    class_type = str(data.get("node_type"))
    exception = str(data.get("exception_type"))
    said = neutral(str(data.get("exception_message") or "").strip()) or exception
    details = {
        "node_id": node_id,
        "class_type": class_type,
        "title": workflow.title(graph.get(node_id, {})),
        "exception_type": exception,
        "exception_message": said[:2000],
    }
    where = f"node {node_id} ({class_type})"
    if exception.endswith("OutOfMemoryError") or "out of memory" in said.lower():
        return OutOfMemory(
            f"{where} ran out of memory, also after it was freed: use a smaller size or batch, or a larger GPU",
            details=details,
        )
    return ExecutionFailed(f"{where} failed: {said.splitlines()[0][:300]}", details=details)
