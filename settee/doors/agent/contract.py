"""The contract's answers and callbacks as models: what writes them, and what the OpenAPI page shows.

A field with a default may be left out, and is never null; a field without one is always there, also when it is null.
Examples are in examples.json, from real runs, with neutral ids; docs/agent-api.md shows them, too.
"""

from __future__ import annotations

import functools
import json
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from settee.base.job import Status
from settee.service.timestamps import stamp

if TYPE_CHECKING:
    from typing_extensions import Self

State = Literal[
    "QUEUED", "PREPARING", "MATERIALIZING", "SUBMITTED", "RUNNING", "UPLOADING", "SUCCESS", "FAILED", "CANCELED"
]
ReasonCode = Literal["VALIDATION_ERROR", "TRANSIENT_ERROR", "TIMEOUT", "CANCELED", "SYSTEM_ERROR"]

STATES: dict[Status, Any] = {status: "SUCCESS" if status is Status.SUCCEEDED else status.name for status in Status}


@functools.cache
def example(name: str) -> Any:
    """Return an example: ``envelope``, ``cancel``, ``event``, ``jobs`` (a list), or that of a callback by its name."""
    return json.loads(Path(__file__).with_name("examples.json").read_bytes())[name]


def _optional_is_never_null(schema: dict[str, Any]) -> None:
    for field in schema.get("properties", {}).values():
        if field.get("default", ...) is None:
            del field["default"]
            kinds = [kind for kind in field.pop("anyOf", ()) if kind != {"type": "null"}]
            field.update(kinds[0] if len(kinds) == 1 else {"anyOf": kinds} if kinds else {})


def _with_examples(name: str) -> Any:
    def change(schema: dict[str, Any]) -> None:
        _optional_is_never_null(schema)
        found = example(name)
        schema["examples"] = found if isinstance(found, list) else [found]

    return change


class Part(BaseModel):
    model_config = ConfigDict(
        frozen=True, use_attribute_docstrings=True, hide_input_in_errors=True, json_schema_extra=_optional_is_never_null
    )

    def shown(self) -> dict[str, Any]:
        """Return its JSON, without what is left out."""
        return self.model_dump(exclude_defaults=True)


class Progress(Part):
    """Progress within the job's state."""

    phase: str
    """The state in lower case: running, uploading, …"""
    percent: float | None = None
    """Share of the whole render, 0 to 100; while RUNNING."""
    node: str | None = None
    """The node that ComfyUI runs."""
    node_type: str | None = None
    """Its class."""
    step: int | float | None = None
    """Steps that are done, of max."""
    max: int | float | None = None
    """Steps of that node."""


class S3Place(Part):
    """Location of an output. Keep bucket and key; the address expires."""

    bucket: str
    key: str
    url: str
    """A presigned GET at the agent's own minio.endpoint, for BUCKET_EXPIRES_S seconds (7 days)."""


class Artifact(Part):
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
    """On the render node, where the file has been removed."""
    mime: str
    sha256: str
    """Hex, of the uploaded bytes."""
    bytes: int
    s3: S3Place


class LoraParams(Part):
    """A LoRA as it was applied, with all that extra.loras said of it."""

    model_config = ConfigDict(extra="allow")

    name: str
    """As ComfyUI lists it."""
    key: str
    strength_model: float
    """-2 to 2."""
    strength_clip: float
    """-2 to 2."""


class Params(Part):
    """Values that a render was made with. null: the workflow has none, or several."""

    model: str | None
    vae: str | None
    clip: str | None
    seed: int | None
    """Also when it was drawn."""
    steps: int | None
    cfg: int | float | None
    sampler: str | None
    scheduler: str | None
    denoise: int | float | None
    width: int | None
    height: int | None
    loras: list[LoraParams]


class UserShown(Part):
    id: str
    username: str


class WorkflowShown(Part):
    id: str
    version: str | int | float | None = None


class Meta(Part):
    """Whose job it was, of which template, and how long its phases took."""

    user: UserShown
    workflow: WorkflowShown
    seed_drawn: bool
    """True: the job named no seed."""
    timings_ms: dict[str, float]
    """By phase: wipe, ready, staging, models, execution, delivery, total."""


class NodeProblem(Part):
    """One thing that is wrong with a node."""

    message: str
    path: str | None = None
    """Path in the envelope or the workflow."""
    input: str | None = None
    value: Any = None
    near: list[str] | None = None
    """Names that may be meant."""
    exception_type: str | None = None
    """The class of what the node raised in ComfyUI."""
    title: str | None = None
    """The node's title."""


class NodeErrors(Part):
    errors: list[NodeProblem]
    class_type: str | None = None


class JobProblem(Part):
    """One thing that is wrong with a job."""

    path: str
    """Path in the envelope or the workflow; empty if the problem has no path."""
    problem: str


class Timing(Part):
    started_at: str
    """When the job was accepted."""
    finished_at: str
    duration_ms: int

    @classmethod
    def between(cls, started_at: datetime, finished_at: datetime) -> Self:
        """A clock that was put back gives no negative time."""
        duration_s = max(0.0, (finished_at - started_at).total_seconds())
        return cls(started_at=stamp(started_at), finished_at=stamp(finished_at), duration_ms=round(duration_s * 1000))


class Activity(Part):
    """ComfyUI's queue, counted."""

    running: int
    pending: int
    timestamp: str


# --- callbacks -------------------------------------------------------------------------------------------


class _Callback(Part):
    job_id: str
    client_id: str
    """The agent's comfyui.client_id."""
    timestamp: str
    """UTC, ISO 8601 with milliseconds and Z."""


class StatusCallback(_Callback):
    """A state that was entered, or still lasts."""

    model_config = ConfigDict(json_schema_extra=_with_examples("status"))

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


class _Render(Part):
    """Outputs of a job, their parameters, and its times."""

    artifacts: list[Artifact]
    params: Params
    meta: Meta


class JobResult(_Render):
    warnings: list[str]


class JobError(Part):
    reason_code: ReasonCode
    reason: str
    """One line for a person, at most 500 characters."""
    error_type: str
    """The class of settee's error: for logs, not for decisions."""
    node_errors: dict[str, NodeErrors] | None = None
    """By node id, when nodes are to blame."""
    problems: list[JobProblem] | None = None
    """Everything that is wrong, one by one; at most 100."""


class CompletionCallback(_Callback, _Render):
    """The job succeeded."""

    model_config = ConfigDict(json_schema_extra=_with_examples("completion"))

    state: Literal["SUCCESS"]
    prompt_id: str | None
    timing: Timing
    warnings: list[str] | None = None


class FailureCallback(_Callback, JobError):
    """The job failed, or was canceled."""

    model_config = ConfigDict(json_schema_extra=_with_examples("failure"))

    state: Literal["FAILED", "CANCELED"]
    timing: Timing
    prompt_id: str | None = None
    last_activity: Activity | None = None


# --- GET /jobs/{id} ---------------------------------------------------------------------------------------


class Job(Part):
    """The present state of a job. Also the data of each of its events."""

    model_config = ConfigDict(json_schema_extra=_with_examples("jobs"))

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


# --- what HTTP answers ------------------------------------------------------------------------------------


class Health(BaseModel):
    status: str = "ok"
    busy: bool


class Summary(Health):
    service: str


class Accepted(BaseModel):
    status: str = "accepted"
    jobId: str


class Cancelling(BaseModel):
    status: str = "cancelling"


class Problem(BaseModel):
    detail: str
    problems: list[dict[str, Any]] = Field(
        default_factory=list,
        description="Each with path and problem.",
        examples=[[{"path": "loras[0].key", "problem": "is missing"}]],
    )


class CancelRequest(BaseModel):
    """The body of POST /jobs/cancel, which the route reads itself."""

    token: str = Field(description="The job's cancelToken.", max_length=1000)
