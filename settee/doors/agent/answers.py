"""What GET /jobs/{id} and the callbacks say, as models: for the OpenAPI page, and for tests that hold it to real ones.

The agent writes none of its answers with these; it makes them in record.py and callbacks/payloads.py. A field with a
default may be left out, and is never null; a field without one is always there, also when it is null.
"""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict

from settee.doors.agent import answer_examples as examples

State = Literal[
    "QUEUED", "PREPARING", "MATERIALIZING", "SUBMITTED", "RUNNING", "UPLOADING", "SUCCESS", "FAILED", "CANCELED"
]
ReasonCode = Literal["VALIDATION_ERROR", "TRANSIENT_ERROR", "TIMEOUT", "CANCELED", "SYSTEM_ERROR"]


def _left_out_or_there(schema: dict[str, Any]) -> None:
    """In the schema, what may be left out is not null when it is there."""
    for field in schema.get("properties", {}).values():
        if field.get("default", ...) is None:
            del field["default"]
            kinds = [kind for kind in field.pop("anyOf", ()) if kind != {"type": "null"}]
            field.update(kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {})


class _Part(BaseModel):
    model_config = ConfigDict(use_attribute_docstrings=True, json_schema_extra=_left_out_or_there)


class Progress(_Part):
    """How far the state that the job is in has come."""

    phase: str
    """The state in lower case: running, uploading, …"""
    percent: float | None = None
    """Of the whole render, 0 to 100; while RUNNING."""
    node: str | None = None
    """The node that ComfyUI runs."""
    node_type: str | None = None
    """Its class."""
    step: float | None = None
    """Of that node, which counts to max."""
    max: float | None = None
    """Steps of that node."""


class S3Place(_Part):
    """Where an output lies. Keep bucket and key; the address ends."""

    bucket: str
    key: str
    url: str
    """A presigned GET at the agent's own minio.endpoint, for BUCKET_EXPIRES_S seconds (7 days)."""


class Artifact(_Part):
    """One output."""

    kind: Literal["images", "videos", "audio", "models_3d", "texts", "files"]
    node_id: str
    """The node that made it."""
    filename: str
    """As ComfyUI called it."""
    subfolder: str
    """As the workflow asked for it."""
    rel_path: str
    """Below ComfyUI's folder of outputs, on the render node."""
    abs_path: str
    """On the render node, where the file is no more."""
    mime: str
    sha256: str
    """Hex, of the uploaded bytes."""
    bytes: int
    s3: S3Place


class LoraParams(_Part):
    """A LoRA as it was applied, with all that extra.loras said of it."""

    model_config = ConfigDict(extra="allow")

    name: str
    """As ComfyUI lists it."""
    key: str
    strength_model: float
    """-2 to 2."""
    strength_clip: float
    """-2 to 2."""


class Params(_Part):
    """What a render was made with. null: the workflow has none, or several."""

    model: str | None
    vae: str | None
    clip: str | None
    seed: int | None
    """Also when it was drawn."""
    steps: int | None
    cfg: float | None
    sampler: str | None
    scheduler: str | None
    denoise: float | None
    width: int | None
    height: int | None
    loras: list[LoraParams]


class UserShown(_Part):
    id: str
    username: str


class WorkflowShown(_Part):
    id: str
    version: str | int | float | None = None


class Meta(_Part):
    """Whose job it was, of which template, and how long its phases took."""

    user: UserShown
    workflow: WorkflowShown
    seed_drawn: bool
    """Whether the job named no seed."""
    timings_ms: dict[str, float]
    """By phase: wipe, ready, staging, models, execution, delivery, total."""


class NodeProblem(_Part):
    """One thing that is wrong with a node."""

    message: str
    path: str | None = None
    """Where in the envelope or the workflow."""
    input: str | None = None
    value: Any = None
    near: list[str] | None = None
    """Names that may be meant."""
    exception_type: str | None = None
    """What the node raised in ComfyUI."""
    title: str | None = None
    """The node's title."""


class NodeErrors(_Part):
    errors: list[NodeProblem]
    class_type: str | None = None


class JobProblem(_Part):
    """One thing that is wrong with a job."""

    path: str
    """Where in the envelope or the workflow; empty where there is no place to name."""
    problem: str


class Timing(_Part):
    started_at: str
    """When the job was accepted."""
    finished_at: str
    duration_ms: int


class Activity(_Part):
    """ComfyUI's queue, counted."""

    running: int
    pending: int
    timestamp: str


# --- callbacks -------------------------------------------------------------------------------------------


class _Callback(_Part):
    job_id: str
    client_id: str
    """The agent's comfyui.client_id."""
    timestamp: str
    """UTC, ISO 8601 with milliseconds and Z."""


class StatusCallback(_Callback):
    """A state that was entered, or still lasts."""

    model_config = ConfigDict(json_schema_extra=lambda schema: _shown(schema, examples.STATUS))

    state: State
    heartbeat_seq: int
    """Counts the job's statuses from 1; a higher one is newer."""
    prompt_id: str | None = None
    """ComfyUI's id of the prompt."""
    message: str | None = None
    """For a person."""
    progress: Progress | None = None
    reason: str | None = None
    """Why it ended, with FAILED and CANCELED."""
    activity_snapshot: Activity | None = None
    """As of the latest heartbeat."""


class CompletionCallback(_Callback):
    """The job succeeded."""

    model_config = ConfigDict(json_schema_extra=lambda schema: _shown(schema, examples.COMPLETION))

    state: Literal["SUCCESS"]
    artifacts: list[Artifact]
    params: Params
    meta: Meta
    prompt_id: str | None
    timing: Timing
    warnings: list[str] | None = None


class FailureCallback(_Callback):
    """The job failed, or was canceled."""

    model_config = ConfigDict(json_schema_extra=lambda schema: _shown(schema, examples.FAILURE))

    state: Literal["FAILED", "CANCELED"]
    reason_code: ReasonCode
    reason: str
    """One line for a person, at most 500 characters."""
    error_type: str
    """Which error of settee's it was: for logs, not for decisions."""
    timing: Timing
    prompt_id: str | None = None
    node_errors: dict[str, NodeErrors] | None = None
    """By node id, when nodes are to blame."""
    problems: list[JobProblem] | None = None
    """Everything that is wrong, one by one; at most 100."""
    last_activity: Activity | None = None


# --- GET /jobs/{id} ---------------------------------------------------------------------------------------


class JobResult(_Part):
    artifacts: list[Artifact]
    params: Params
    meta: Meta
    warnings: list[str]


class JobError(_Part):
    reason_code: ReasonCode
    reason: str
    error_type: str
    node_errors: dict[str, NodeErrors] | None = None
    problems: list[JobProblem] | None = None


class Job(_Part):
    """How a job stands. Also the data of each of its events."""

    model_config = ConfigDict(json_schema_extra=lambda schema: _shown(schema, *examples.JOBS))

    jobId: str
    state: State
    acceptedAt: str
    finishedAt: str | None = None
    """Once it has ended."""
    promptId: str | None = None
    """ComfyUI's id of the prompt."""
    message: str | None = None
    """For a person."""
    progress: Progress | None = None
    result: JobResult | None = None
    """With SUCCESS."""
    error: JobError | None = None
    """With FAILED and CANCELED."""


def _shown(schema: dict[str, Any], *found: dict[str, Any]) -> None:
    _left_out_or_there(schema)
    schema["examples"] = list(found)


__all__ = ["CompletionCallback", "FailureCallback", "Job", "StatusCallback"]
