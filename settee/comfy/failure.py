"""What a prompt's history says of how it ended, as an error of ours."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from settee.comfyui.history import ending
from settee.comfyui.node_registry import NodeRegistry
from settee.comfyui.workflow import Workflow
from settee.errors import ComfyError, ExecutionFailed, OutOfMemory, PromptLost


def failure_of(
    status: dict[str, Any], graph: Workflow, registry: NodeRegistry, extra_data: Mapping[str, Any]
) -> ComfyError | None:
    """The error that a history entry's status stands for; None for a success. ``extra_data``: what the job sent."""
    end = ending(status, graph)
    if end.kind == "success":
        return None
    if end.kind == "interrupted":
        return PromptLost("the prompt was interrupted, by someone else or by a node of its own; send the job again")
    if end.kind == "out_of_memory":
        return OutOfMemory(
            f"{end.where} ran out of memory, also after it was freed: use a smaller size or batch, or a larger GPU",
            details=end.details,
        )
    if not end.where:
        return ExecutionFailed("ComfyUI reports that the workflow failed, but not why")
    advice = "" if extra_data.get("extra_pnginfo") else _of_missing_graph(end.details, registry)
    return ExecutionFailed(f"{end.where} failed: {end.said}{advice}", details=end.details)


def _of_missing_graph(details: Mapping[str, Any], registry: NodeRegistry) -> str:
    """Advice for a custom node that reads the editor's graph and does not ask whether there is one.

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
