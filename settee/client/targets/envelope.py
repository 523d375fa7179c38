"""RunPod's envelope around a job, read: ``{"id", "status", "output", "error", "delayTime", "executionTime"}``.

Everything in it is a stranger's word. What the worker inside is, a settee worker or another, shows only here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from typing import Any

from settee.client.errors import NetworkError, UsageError
from settee.client.targets.target import Answer, Status

#: Opens a sealed result: ``{"encrypted_output": token, …}`` to what the token holds. Raises ClientError.
Unseal = Callable[[Mapping[str, Any]], dict[str, Any]]

#: Codes of settee's workers (settee.errors): the last word of an error line is one of these, in brackets.
CODES = (
    frozenset(["invalid_request", "seal_broken", "unsafe_path", "payload_too_large", "workflow_rejected"])
    | {"model_missing", "staging_failed", "download_failed", "integrity_error", "no_space"}
    | {"execution_failed", "out_of_memory", "comfy_unavailable", "comfy_error", "prompt_lost"}
    | {"output_missing", "output_too_large", "delivery_failed"}
    | {"timeout", "canceled", "busy", "config_error", "internal_error"}
)
#: The longest error line and progress text that is kept, characters.
MAX_LINE, MAX_TEXT = 4000, 500

_STATUSES = {status.value: status for status in Status} | {"CANCELED": Status.CANCELLED}
_CODE = re.compile(r"\s*\[([a-z_]+)\]$")
_ID = re.compile(rb'^\s*\{[^{}\[\]]*"id"\s*:\s*"([\w.-]{1,200})"')
#: A job's id: it is printed, and put into addresses and commands.
JOB_ID = re.compile(r"(?=.*[A-Za-z0-9])[\w.:-]{1,200}", re.ASCII)

LOST = (
    "RunPod says that the job completed, but has no result: it was over RunPod's limit (10 MB for /run, 20 MB for "
    "/runsync) or has expired; let the worker deliver to S3, or ask for less"
)
NO_WORKER = "the job completed, but its result is not an object with outputs: is a settee worker behind this address?"
TIMED_OUT = (
    "RunPod ended the job: it ran longer than the endpoint's execution timeout (10 minutes unless set), or waited in "
    "the queue beyond its time to live"
)


def job_id_in(head: bytes) -> str | None:
    """The job's id in the first bytes of an answer that broke off; None unless it is surely the envelope's own."""
    match = _ID.match(head)
    return match[1].decode("ascii", "replace") if match else None


def read(data: Any, *, name: str, job_id: str | None = None, unseal: Unseal | None = None) -> Answer:
    """How a job stands. ``name`` is the target's, for errors; ``job_id`` is what was asked for, None for a new job.

    Raises NetworkError for what is no such envelope, and what ``unseal`` raises.
    """
    if not isinstance(data, dict):
        raise NetworkError(f"{name}: the answer is not RunPod's: check the address", job_id=job_id)
    given = data.get("id")
    job_id = job_id or (given if isinstance(given, str) and JOB_ID.fullmatch(given) else None)
    if job_id is None:
        raise NetworkError(f"{name}: the answer has no job id: check the address")
    status = _STATUSES.get(str(data.get("status")).upper())
    if status is None:
        raise NetworkError(f"{name}: the answer has no status that RunPod has: check the address", job_id=job_id)
    timings = {key: float(data[key]) for key in ("delayTime", "executionTime") if _is_number(data.get(key))}
    output = data.get("output")
    if unseal is not None and status.is_terminal and isinstance(output, dict) and "encrypted_output" in output:
        try:
            output = {**output, **unseal(output)}
        except UsageError as error:
            # Of a failure, what stands outside the seal is enough: with another key, the worker could not open the job.
            if status is not Status.FAILED:
                error.job_id = job_id
                raise
        for key in ("encrypted_output", "is_encrypted"):
            output.pop(key, None)
        if status is Status.FAILED and isinstance(output.get("error"), str):
            # What stood outside the seal says less.
            data = {**data, "error": output["error"]}
    if not status.is_terminal:
        return Answer(job_id, status, progress=_progress(output), timings=timings)
    if status is Status.COMPLETED:
        if isinstance(output, dict) and output and not output.get("error"):
            return Answer(job_id, status, output=output, timings=timings)
        # A worker that returned its error under a key that RunPod does not read, or a result that got lost.
        if isinstance(output, dict) and output:
            data = {**data, "error": output["error"]}
        else:
            words = LOST if output is None or output == {} else NO_WORKER
            return Answer(job_id, Status.FAILED, error=words, timings=timings)
        status = Status.FAILED
    line, code, details = _failure(data.get("error"), output)
    if status is Status.TIMED_OUT and not line:
        line = TIMED_OUT
    return Answer(job_id, status, error=line, code=code, details=details, timings=timings)


def _failure(error: Any, output: Any) -> tuple[str | None, str | None, dict[str, Any]]:
    """Line, code and details of a job that ended badly, wherever its worker put them."""
    told: dict[str, Any] = dict(output) if isinstance(output, dict) else {}
    found = _as_object(error)
    if found is not None:
        told, error = {**told, **found}, None
    if not error:
        # The SDK tells of an exception that left the handler as error_type, error_message and error_traceback.
        error = next((told[key] for key in ("error", "error_message", "message", "errors") if told.get(key)), None)
        if (inner := _as_object(error)) is not None:
            told, error = {**told, **inner}, inner.get("message") or inner.get("error")
    if isinstance(error, list):
        error = "; ".join(str(part) for part in error if isinstance(part, (str, int, float)))
    line = error.strip()[:MAX_LINE] if isinstance(error, str) else ""
    code = told["code"] if isinstance(told.get("code"), str) else None
    match = _CODE.search(line)
    if match and (match[1] in CODES or match[1] == code):
        line, code = line[: match.start()], code or match[1]
    return line or None, code, told["details"] if isinstance(told.get("details"), dict) else {}


def _as_object(error: Any) -> dict[str, Any] | None:
    """An error that is an object, or JSON text of one."""
    if isinstance(error, str) and error.lstrip().startswith("{"):
        try:
            error = json.loads(error)
        except (ValueError, RecursionError):
            return None
    return error if isinstance(error, dict) else None


def _progress(output: Any) -> dict[str, Any]:
    """What a worker said last of a job under way, as far as it makes sense."""
    if isinstance(output, str):
        return {"message": output[:MAX_TEXT]} if output else {}
    if not isinstance(output, dict):
        return {}
    texts = {
        key: str(output[key])[:MAX_TEXT]
        for key in ("phase", "node", "node_type", "message")
        if isinstance(output.get(key), (str, int)) and not isinstance(output[key], bool)
    }
    return texts | {key: output[key] for key in ("percent", "step", "max") if _is_number(output.get(key))}


def _is_number(value: Any) -> bool:
    return (
        isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 1e15 and math.isfinite(value)
    )
