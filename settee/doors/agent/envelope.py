"""The dispatch envelope of POST /jobs, parsed and checked once: its models, and :func:`parse`.

Keys that are not known are ignored, since control planes grow; anything else that is wrong is told, all of it at once
and in the caller's own (camelCase) names. Nothing here prints a caller's values: they may be private.

``jobId`` and the ids of user and workflow are any printable text: they may hold ``../``, so they are shown and logged,
and never made part of a path without being made safe first.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    StrictStr,
    ValidationError,
    field_validator,
)
from pydantic.alias_generators import to_camel

from settee import workflow as graph
from settee.buckets import bucket_problem
from settee.doors.agent.envelope_example import EXAMPLE
from settee.doors.agent.json_values import value_problems
from settee.errors import InvalidRequest
from settee.workflow import Problem

#: How many mistakes of one envelope are told.
MAX_PROBLEMS = 100
#: ComfyUI's own limits: of a seed, of steps, of a side in pixels and of cfg.
MAX_SEED, MAX_STEPS, MAX_SIDE, MAX_CFG = 2**64 - 1, 10_000, 16_384, 100.0
#: S3's limit of a key, in bytes of UTF-8.
MAX_KEY_BYTES = 1024


def _printable(value: str) -> str:
    if not value.isprintable():
        raise ValueError("holds characters that cannot be printed, such as a line break")
    return value


def _key(value: str) -> str:
    if len(value.encode(errors="replace")) > MAX_KEY_BYTES:
        raise ValueError(f"is longer than {MAX_KEY_BYTES} bytes")
    if any(part in (".", "..") for part in value.split("/")):
        # MinIO refuses such keys, and others take them for another object's.
        raise ValueError('has a "." or ".." between its slashes')
    return _printable(value)


def _object_key(value: str) -> str:
    if not value.strip("/"):
        raise ValueError("names no object")
    if value.endswith("/"):
        raise ValueError("names a folder, not an object")
    return _key(value)


def _bucket(value: str) -> str:
    problem = bucket_problem(value)
    if problem:
        raise ValueError(problem)
    return value


def _sha256(value: str) -> str:
    digest = value.strip().lower().removeprefix("sha256:")
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError("is no SHA-256: give 64 hex digits, with or without sha256: in front")
    return digest


def _number_only(value: Any) -> Any:
    """pydantic would take "20" and true for numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("must be a number")
    return value


def _node_id(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("must be a node's id: a text or a whole number")
    return str(value)


def _callback(value: str) -> str:
    _printable(value)
    scheme, colon, rest = value.partition(":")
    is_absolute = bool(colon) and not set(scheme) & set("/?#")
    if value.startswith(("//", "\\")) or " " in value:
        raise ValueError("is no address")
    if is_absolute and not (scheme.lower() in ("http", "https") and rest.startswith("//") and rest.strip("/")):
        raise ValueError("must be an http(s) address, or a path for callbacks.base_url")
    return value


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


def _empty_list(value: Any) -> Any:
    return () if value is None else value


def _empty_object(value: Any) -> Any:
    return {} if value is None else value


Printable = Annotated[StrictStr, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Bucket = Annotated[StrictStr, AfterValidator(_bucket)]
ObjectKey = Annotated[StrictStr, AfterValidator(_object_key)]
NodeId = Annotated[str, BeforeValidator(_node_id), Field(min_length=1, max_length=200), AfterValidator(_printable)]
Whole = Annotated[int, BeforeValidator(_number_only)]
Real = Annotated[float, BeforeValidator(_number_only), Field(allow_inf_nan=False)]
_OPTIONAL = BeforeValidator(_none_if_empty)


class _Part(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
        validate_by_name=False,
    )


class User(_Part):
    id: Printable
    username: Printable


class OutputPlace(_Part):
    bucket: Bucket
    prefix: Annotated[StrictStr, AfterValidator(_key)]
    """Keys of the uploads begin with it; empty takes the agent's own."""


class WorkflowSource(_Part):
    """Where the template comes from: inline, else localPath, else minioKey."""

    id: Printable
    version: StrictStr | int | float | None = None
    minio_key: Annotated[ObjectKey | None, _OPTIONAL] = None
    local_path: Annotated[StrictStr | None, Field(max_length=1024), _OPTIONAL] = None
    """Below the agent's workflows folder."""
    inline: dict[str, Any] | None = Field(None, repr=False)
    """The workflow itself, in ComfyUI's API format."""
    bucket: Annotated[Bucket | None, _OPTIONAL] = None
    """Of minioKey; baseModel.bucket unless given."""

    @field_validator("local_path")
    @classmethod
    def _path(cls, value: str | None) -> str | None:
        return None if value is None else _printable(value)


class Asset(_Part):
    """A model or a LoRA at the S3 endpoint."""

    bucket: Bucket
    key: ObjectKey
    cache_strategy: Literal["ephemeral", "persistent"] = "ephemeral"
    """An ephemeral asset goes after the job that brought it."""
    checksum: Annotated[Annotated[StrictStr, AfterValidator(_sha256)] | None, _OPTIONAL] = None
    """SHA-256 in hex, with or without sha256: in front."""
    display_name: Annotated[Printable | None, _OPTIONAL] = None
    original_name: Annotated[Printable | None, _OPTIONAL] = None


class Resolution(_Part):
    """Pixels."""

    width: Annotated[Whole, Field(ge=1, le=MAX_SIDE)]
    height: Annotated[Whole, Field(ge=1, le=MAX_SIDE)]


class Parameters(_Part):
    """What to make. A sampling field that is missing here may stand in extra, under its name in a binding."""

    prompt: StrictStr = Field(max_length=100_000, repr=False)
    negative_prompt: StrictStr | None = Field(None, max_length=100_000, repr=False)
    seed: Annotated[Whole, Field(ge=0, le=MAX_SEED)] | None = None
    """Drawn when there is none."""
    cfg_scale: Annotated[Real, Field(gt=0, le=MAX_CFG)] | None = None
    steps: Annotated[Whole, Field(ge=1, le=MAX_STEPS)] | None = None
    sampler: Annotated[StrictStr | None, Field(max_length=200)] = None
    scheduler: Annotated[StrictStr | None, Field(max_length=200)] = None
    resolution: Resolution | None = None
    extra: Annotated[dict[str, Any], BeforeValidator(_empty_object)] = Field(default_factory=dict, repr=False)
    """More parameters by name, for bindings; extra.loras tells each LoRA's strength."""


class Override(_Part):
    """A value for one place of the workflow."""

    node: NodeId
    path: StrictStr = Field(min_length=1, max_length=500)
    """Dotted, such as inputs.ckpt_name."""
    value: Any = Field(repr=False)


class Binding(_Part):
    """One place of the workflow that a parameter's value goes to."""

    parameter: StrictStr = Field(min_length=1, max_length=200)
    node: NodeId
    path: StrictStr = Field(min_length=1, max_length=500)
    """Dotted, such as inputs.ckpt_name."""


_Url = Annotated[Annotated[StrictStr, Field(max_length=2048), AfterValidator(_callback)] | None, _OPTIONAL]


class Callbacks(_Part):
    """Where to report: http(s) addresses, or paths for the agent's callbacks.base_url."""

    status: _Url = None
    completion: _Url = None
    failure: _Url = None


class Envelope(_Part):
    """One job, as a control plane dispatches it."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    job_id: Printable
    user: User
    output: OutputPlace
    workflow: WorkflowSource
    base_model: Asset
    parameters: Parameters
    loras: Annotated[tuple[Asset, ...], BeforeValidator(_empty_list), Field(max_length=100)] = ()
    """Applied in this order, each with its own strength."""
    priority: StrictStr | int | float | None = None
    """Kept for the archive; the agent has no queue."""
    requested_at: StrictStr | int | float | None = None
    """Kept for the archive."""
    cancel_token: Annotated[SecretStr | None, Field(max_length=1000), _OPTIONAL] = None
    """What POST /jobs/cancel must name to end this job."""
    workflow_overrides: Annotated[tuple[Override, ...], BeforeValidator(_empty_list), Field(max_length=10_000)] = ()
    """Written into the template first."""
    workflow_parameters: Annotated[tuple[Binding, ...], BeforeValidator(_empty_list), Field(max_length=10_000)] = ()
    """Written into the template after the overrides."""
    callbacks: Annotated[Callbacks, BeforeValidator(_empty_object)] = Callbacks()

    @property
    def workflow_bucket(self) -> str:
        """Where workflow.minioKey lies."""
        return self.workflow.bucket or self.base_model.bucket

    def shown(self) -> dict[str, Any]:
        """The envelope in its caller's names and JSON's types, for the archive: without cancelToken."""
        return self.model_dump(mode="json", by_alias=True, exclude={"cancel_token"}, exclude_none=True)


def parse(data: object, *, max_nodes: int = 5000) -> Envelope:
    """The envelope in decoded JSON. Raises InvalidRequest with every problem: ``details.problems``, each a
    ``{"path", "problem"}`` such as ``{"path": "loras[0].key", …}``.

    ``max_nodes``: the most nodes of an inline workflow (settings.max_nodes).
    """
    if not isinstance(data, dict):
        kind = "nothing" if data is None else type(data).__name__
        raise InvalidRequest.from_problems([{"path": "", "problem": f"must be a JSON object, not {kind}"}], "envelope")
    problems = value_problems(data)
    envelope: Envelope | None = None
    if not problems:
        try:
            envelope = Envelope.model_validate(data)
        except ValidationError as error:
            problems += [_problem(item) for item in error.errors(include_input=False, include_url=False)]
        problems += _source_problems(data, max_nodes)
        problems += _given_twice(envelope)
    if problems:
        if len(problems) > MAX_PROBLEMS:
            problems[MAX_PROBLEMS:] = [{"path": "", "problem": f"and {len(problems) - MAX_PROBLEMS} more"}]
        raise InvalidRequest.from_problems(problems, "envelope")
    assert envelope is not None
    return envelope


def _source_problems(data: dict[str, Any], max_nodes: int) -> list[Problem]:
    """What is wrong with the workflow's source, beyond the types of its fields."""
    source = data.get("workflow")
    if not isinstance(source, dict):
        return []
    inline = source.get("inline")
    if isinstance(inline, dict):
        found = graph.shape_problems(inline, max_nodes=max_nodes)
        return [{**problem, "path": problem["path"].replace("workflow", "workflow.inline", 1)} for problem in found]
    if inline is None and not source.get("localPath") and not source.get("minioKey"):
        return [{"path": "workflow", "problem": "names no workflow: give inline, localPath or minioKey"}]
    return []


def _given_twice(envelope: Envelope | None) -> list[Problem]:
    """A LoRA that is listed twice would be applied twice."""
    problems: list[Problem] = []
    seen: set[tuple[str, str]] = set()
    for at, lora in enumerate(envelope.loras if envelope else ()):
        if (lora.bucket, lora.key) in seen:
            problems.append({"path": f"loras[{at}]", "problem": "is the same object as one before it"})
        seen.add((lora.bucket, lora.key))
    return problems


def _problem(item: Any) -> Problem:
    path = ""
    for part in item["loc"]:
        path += f"[{part}]" if isinstance(part, int) else f"{'.' if path else ''}{part}"
    if item["type"] == "missing":
        return {"path": path, "problem": "is missing"}
    return {"path": path, "problem": str(item["msg"]).removeprefix("Value error, ")}


__all__ = ["Asset", "Binding", "Callbacks", "Envelope", "Override", "parse"]
