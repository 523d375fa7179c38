"""What callbacks say: their bodies and idempotency keys. Pure.

Shapes are those of the agent's contract. Errors are settee's own, whose messages and details are safe to show.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any

from settee.doors.agent.timestamps import stamp
from settee.errors import InvalidRequest, JobCanceled, JobTimeout, ModelMissing, SetteeError, WorkflowRejected
from settee.job import Status
from settee.redact import neutral

#: Characters of `reason`.
MAX_REASON = 500
_MAX_MESSAGE = 500
#: The caller's own mistakes: the same dispatch fails again wherever it is sent.
_CALLERS = (InvalidRequest, WorkflowRejected, ModelMissing)

STATES = {
    Status.QUEUED: "QUEUED",
    Status.PREPARING: "PREPARING",
    Status.MATERIALIZING: "MATERIALIZING",
    Status.SUBMITTED: "SUBMITTED",
    Status.RUNNING: "RUNNING",
    Status.UPLOADING: "UPLOADING",
    Status.SUCCEEDED: "SUCCESS",
    Status.FAILED: "FAILED",
    Status.CANCELED: "CANCELED",
}


@dataclass(frozen=True, kw_only=True)
class About:
    """Whose callbacks they are."""

    job_id: str
    client_id: str


@dataclass(frozen=True, kw_only=True)
class UploadedArtifact:
    """One output as it lies in S3. ``abs_path`` and ``rel_path`` are on the render node, as the contract asks."""

    kind: str
    node_id: str
    filename: str
    subfolder: str
    rel_path: str
    abs_path: str
    mime: str
    bucket: str
    key: str
    url: str
    #: Hex.
    sha256: str
    bytes: int

    def as_dict(self) -> dict[str, Any]:
        fields = asdict(self)
        fields["s3"] = {name: fields.pop(name) for name in ("bucket", "key", "url")}
        return fields


@dataclass(frozen=True, kw_only=True)
class RenderParams:
    """What a render was made with. ``loras`` are ``{name, strength_model, strength_clip, …}``."""

    model: str | None = None
    vae: str | None = None
    clip: str | None = None
    seed: int | None = None
    steps: int | None = None
    cfg: float | None = None
    sampler: str | None = None
    scheduler: str | None = None
    denoise: float | None = None
    width: int | None = None
    height: int | None = None
    loras: tuple[Mapping[str, Any], ...] = ()

    def as_dict(self) -> dict[str, Any]:
        return {**asdict(self), "loras": [dict(lora) for lora in self.loras]}


def status(
    about: About,
    state: Status,
    seq: int,
    timestamp: datetime,
    *,
    prompt_id: str | None = None,
    message: str | None = None,
    progress: Mapping[str, Any] | None = None,
    reason: str | None = None,
    activity: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The body of a status callback. What is None is left out."""
    optional = {
        "prompt_id": prompt_id,
        "message": None if message is None else one_line(message, _MAX_MESSAGE),
        "progress": None if progress is None else dict(progress),
        "reason": None if reason is None else one_line(reason, MAX_REASON),
        "activity_snapshot": None if activity is None else dict(activity),
    }
    return {
        "job_id": about.job_id,
        "client_id": about.client_id,
        "state": STATES[state],
        "timestamp": stamp(timestamp),
        "heartbeat_seq": seq,
        **{name: value for name, value in optional.items() if value is not None},
    }


def completion(
    about: About,
    timestamp: datetime,
    started_at: datetime,
    *,
    artifacts: Sequence[UploadedArtifact],
    params: RenderParams,
    meta: Mapping[str, Any],
    prompt_id: str | None,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """The body of a completion callback; the job finished at ``timestamp``."""
    body: dict[str, Any] = {
        "job_id": about.job_id,
        "client_id": about.client_id,
        "state": STATES[Status.SUCCEEDED],
        "timestamp": stamp(timestamp),
        "artifacts": [artifact.as_dict() for artifact in artifacts],
        "params": params.as_dict(),
        "meta": dict(meta),
        "prompt_id": prompt_id,
        "timing": timing(started_at, timestamp),
    }
    if warnings:
        body["warnings"] = list(warnings)
    return body


def failure(
    about: About,
    timestamp: datetime,
    started_at: datetime,
    error: SetteeError,
    *,
    prompt_id: str | None = None,
    last_activity: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """The body of a failure callback; the job ended at ``timestamp``. What is not known is left out."""
    optional = {
        "prompt_id": prompt_id,
        "node_errors": node_errors(error) or None,
        "last_activity": None if last_activity is None else dict(last_activity),
    }
    return {
        "job_id": about.job_id,
        "client_id": about.client_id,
        "state": STATES[ended(error)],
        "timestamp": stamp(timestamp),
        "reason_code": reason_code(error),
        "reason": reason(error),
        "error_type": type(error).__name__,
        "timing": timing(started_at, timestamp),
        **{name: value for name, value in optional.items() if value is not None},
    }


def failure_shown(error: SetteeError) -> dict[str, Any]:
    """A job's error for GET /jobs/{id} and the archive: ``{reason_code, reason, error_type, node_errors?}``."""
    found = {"reason_code": reason_code(error), "reason": reason(error), "error_type": type(error).__name__}
    nodes = node_errors(error)
    return {**found, "node_errors": nodes} if nodes else found


def ended(error: SetteeError) -> Status:
    """CANCELED or FAILED."""
    return Status.CANCELED if isinstance(error, JobCanceled) else Status.FAILED


def reason_code(error: SetteeError) -> str:
    """One of the contract's five. A TRANSIENT_ERROR may well go away when the same job is sent again."""
    if isinstance(error, JobCanceled):
        return "CANCELED"
    if isinstance(error, JobTimeout):
        return "TIMEOUT"
    if isinstance(error, _CALLERS):
        return "VALIDATION_ERROR"
    return "TRANSIENT_ERROR" if error.retryable else "SYSTEM_ERROR"


def reason(error: SetteeError) -> str:
    """One line, without absolute paths of this machine."""
    return one_line(neutral(error.message), MAX_REASON)


def node_errors(error: SetteeError) -> dict[str, Any]:
    """What is known by node id: ``{class_type?, errors: [{message, …}]}``. Empty when no node is to blame."""
    found: dict[str, dict[str, Any]] = {}
    problems = error.details.get("problems")
    for problem in problems if isinstance(problems, list) else ():
        if isinstance(problem, dict) and problem.get("node_id") is not None:
            _add(found, problem, str(problem.get("problem", "")), ("path", "input", "value", "near"))
    if error.details.get("node_id") is not None and not found:
        said = error.details.get("exception_message")
        _add(found, error.details, str(said or error.message), ("exception_type", "title", "input"))
    return found


def _add(found: dict[str, dict[str, Any]], about: Mapping[str, Any], message: str, names: Sequence[str]) -> None:
    node = found.setdefault(str(about["node_id"]), {"errors": []})
    if about.get("class_type"):
        node["class_type"] = about["class_type"]
    node["errors"].append({"message": message, **{name: about[name] for name in names if about.get(name)}})


def timing(started_at: datetime, finished_at: datetime) -> dict[str, Any]:
    """``{started_at, finished_at, duration_ms}``; a clock that was put back gives no negative time."""
    duration = max(0.0, (finished_at - started_at).total_seconds())
    return {
        "started_at": stamp(started_at),
        "finished_at": stamp(finished_at),
        "duration_ms": round(duration * 1000),
    }


def status_key(job_id: str, state: Status, seq: int) -> str:
    return f"{job_id}-{STATES[state]}-{seq}"


def terminal_key(job_id: str, state: Status) -> str:
    return f"{job_id}-{STATES[state]}"


def as_json(body: Mapping[str, Any]) -> bytes:
    """What is sent. What JSON has no word for (NaN, a date in somebody's metadata) must not lose a callback."""
    try:
        text = json.dumps(body, allow_nan=False)
    except (ValueError, TypeError):
        text = json.dumps(_plain(body), allow_nan=False)
    return text.encode("ascii")


def _plain(value: Any, depth: int = 0) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (str, int, float)):
        return value
    if depth < 50:
        if isinstance(value, Mapping):
            return {str(key): _plain(each, depth + 1) for key, each in value.items()}
        if isinstance(value, (list, tuple, set, frozenset)):
            return [_plain(each, depth + 1) for each in value]
    return str(value)[:200]


def one_line(text: str, limit: int) -> str:
    """Without line breaks and control characters, at most ``limit`` characters."""
    text = " ".join("".join(c if c.isprintable() else " " for c in text).split())
    return text if len(text) <= limit else f"{text[: limit - 1]}…"
