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

from settee.base.errors import JobCanceled, SetteeError
from settee.base.job import Status
from settee.base.text import one_line
from settee.doors.agent.callbacks.reasons import MAX_REASON, node_errors, problems, reason, reason_code
from settee.doors.agent.timestamps import stamp

_MAX_MESSAGE = 500
_MAX_PROBLEMS = 100

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
        "last_activity": None if last_activity is None else dict(last_activity),
    }
    return {
        "job_id": about.job_id,
        "client_id": about.client_id,
        "state": STATES[ended(error)],
        "timestamp": stamp(timestamp),
        **failure_shown(error),
        "timing": timing(started_at, timestamp),
        **{name: value for name, value in optional.items() if value is not None},
    }


def failure_shown(error: SetteeError) -> dict[str, Any]:
    """A job's error for its callback, GET /jobs/{id} and the archive: ``{reason_code, reason, error_type,
    node_errors?, problems?}``; ``problems`` are ``{path, problem}``."""
    optional = {"node_errors": node_errors(error), "problems": problems(error)[:_MAX_PROBLEMS]}
    return {
        "reason_code": reason_code(error),
        "reason": reason(error),
        "error_type": type(error).__name__,
        **{name: value for name, value in optional.items() if value},
    }


def ended(error: SetteeError) -> Status:
    """CANCELED or FAILED."""
    return Status.CANCELED if isinstance(error, JobCanceled) else Status.FAILED


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


__all__ = [
    "STATES",
    "About",
    "RenderParams",
    "UploadedArtifact",
    "as_json",
    "completion",
    "ended",
    "failure",
    "failure_shown",
    "one_line",
    "reason",
    "reason_code",
    "status",
    "status_key",
    "terminal_key",
    "timing",
]
