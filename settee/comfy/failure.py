"""What a prompt's history says of how it ended, as an error of ours."""

from __future__ import annotations

from typing import Any

from settee.errors import ComfyError, ExecutionFailed, OutOfMemory, PromptLost
from settee.history import ending
from settee.workflow import Workflow


def failure_of(status: dict[str, Any], graph: Workflow) -> ComfyError | None:
    """The error that a history entry's status stands for; None for a success."""
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
    return ExecutionFailed(f"{end.where} failed: {end.said}", details=end.details)
