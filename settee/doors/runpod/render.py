"""A job's end as RunPod's callers get it.

A superset of what the most used ComfyUI worker returns, so that its callers need no change: ``images`` is
always a list, ``status`` is ``success_no_images`` when a workflow left nothing behind at all, and ``errors``
(beside our ``warnings``) is there when something was not quite right.
"""

from __future__ import annotations

import math
from typing import Any

from settee.base.errors import OutputTooLarge, SetteeError
from settee.base.job import Kind, Output, Progress, Result

#: The longest error line, in characters; the whole text is in details.
MAX_LINE = 2000


def result(done: Result) -> dict[str, Any]:
    """``{"status", "images", "videos", "audio", "models_3d", "texts", "files", "timings", "warnings"}``."""
    answer: dict[str, Any] = {"status": "success" if done.outputs else "success_no_images"}
    answer |= {kind.value: [] for kind in Kind}
    for output in done.outputs:
        answer[output.kind.value].append(_file(output))
    if done.seeds:
        answer["seeds"] = dict(done.seeds)
    answer["timings"] = dict(done.timings)
    answer["warnings"] = list(done.warnings)
    if done.warnings:
        answer["errors"] = list(done.warnings)
    return _safe_dict(answer)


def error(problem: SetteeError) -> dict[str, Any]:
    """``{"error", "code", "details"}``; RunPod takes any non-empty ``error`` text for FAILED.

    The SDK moves ``code`` and ``details`` into the job's ``output``, which its local API drops for a failed
    job. So the code is also the last word of the error line: it is there whatever becomes of the rest.
    """
    line = " ".join(problem.message.split()) or problem.code
    details = dict(problem.details)
    if len(line) > MAX_LINE:
        details.setdefault("message", problem.message)
        line = line[:MAX_LINE] + "…"
    if problem.retryable:
        details.setdefault("retryable", True)
    return _safe_dict({"error": f"{line} [{problem.code}]", "code": problem.code, "details": details})


def too_large(size: int, why: str) -> dict[str, Any]:
    """The error in place of a result of ``size`` bytes that RunPod does not take."""
    return error(
        OutputTooLarge(
            f"the result has {size / 1e6:.1f} MB, {why}: set up S3 delivery (BUCKET_ENDPOINT_URL and its keys), mount "
            "a network volume, or ask for smaller or fewer outputs",
            details={"size": size},
        )
    )


def bounded(answer: dict[str, Any], cap: int) -> dict[str, Any]:
    """The answer, or an error about its size where it has over ``cap`` bytes as JSON."""
    from settee.doors.runpod import wire  # its aiohttp is slow to import, and ComfyUI starts meanwhile

    size = len(wire.Body(answer))
    if size <= cap:
        return answer
    if "error" in answer:
        short = {"error": answer["error"], "code": answer["code"], "details": {"omitted": "too large for RunPod"}}
    else:
        short = too_large(size, f"over the limit of {cap / 1e6:g} MB")
    return {**short, "refresh_worker": True} if answer.get("refresh_worker") else short


def progress(event: Progress, *, sealed: bool) -> dict[str, Any]:
    """The ``output`` of a job in progress. Of a sealed job it says no more than the phase and the percentage."""
    shown: dict[str, Any] = {"phase": event.status.value, "percent": event.percent}
    if not sealed:
        shown |= {
            "node": event.node_id,
            "node_type": event.node_type,
            "step": event.value,
            "max": event.maximum,
            "message": event.message,
        }
    return _safe_dict({key: value for key, value in shown.items() if value is not None})


def _file(output: Output) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "filename": output.filename,
        "type": output.type,
        "data": output.data if output.data is not None else output.url,
        "node_id": output.node_id,
        "subfolder": output.subfolder,
        "media_type": output.media_type,
        "size": output.size,
        "sha256": output.sha256,
    }
    if output.width is not None and output.height is not None:
        shown |= {"width": output.width, "height": output.height}
    return shown


def _safe_dict(value: dict[str, Any]) -> dict[str, Any]:
    return {_safe(str(key)): _safe(entry) for key, entry in value.items()}


def _safe(value: Any) -> Any:
    """The value with nothing in it that JSON in UTF-8 cannot carry: RunPod would lose the whole answer."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return _safe_dict(value)
    if isinstance(value, (list, tuple)):
        return [_safe(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int)) else str(value)
