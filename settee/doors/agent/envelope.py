"""The dispatch envelope of POST /jobs, parsed and checked once: its models, and :func:`parse`.

Keys that are not known are ignored, since control planes grow, with a warning where one looks misspelt; anything else
that is wrong is reported, all of it at once and in the caller's own (camelCase) names. Nothing here prints a caller's
values: they may be private.

``jobId`` and the ids of user and workflow are any printable text: they may hold ``../``, so they are shown and logged,
and never made part of a path without being made safe first.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, SecretStr, StrictStr, ValidationError
from pydantic.alias_generators import to_camel

from settee.base.errors import MAX_PROBLEMS, problems_of
from settee.comfyui import workflow as graph
from settee.comfyui.workflow import Problem
from settee.doors.agent import fields
from settee.doors.agent.contract import example
from settee.doors.agent.fields import EMPTY_IS_NONE, NULL_IS_LIST, NULL_IS_OBJECT, Printable, Scalar, refusal
from settee.engine.request import misspelt


class _Part(BaseModel):
    model_config = ConfigDict(
        alias_generator=to_camel,
        extra="ignore",
        frozen=True,
        hide_input_in_errors=True,
        use_attribute_docstrings=True,
    )


class User(_Part):
    id: Printable
    username: Printable


class OutputPlace(_Part):
    bucket: fields.Bucket
    prefix: fields.Prefix
    """Keys of the uploads begin with it; empty takes the agent's own."""


class WorkflowSource(_Part):
    """The source of the template: inline, else localPath, else minioKey."""

    id: Printable
    version: Scalar = None
    minio_key: Annotated[fields.ObjectKey | None, EMPTY_IS_NONE] = None
    local_path: Annotated[fields.LocalPath | None, EMPTY_IS_NONE] = None
    """Below the agent's workflows folder."""
    inline: dict[str, Any] | None = Field(None, repr=False)
    """The workflow itself, in ComfyUI's API format."""
    bucket: Annotated[fields.Bucket | None, EMPTY_IS_NONE] = None
    """The bucket of minioKey; baseModel.bucket unless given."""


class Asset(_Part):
    """A model or a LoRA at the S3 endpoint."""

    bucket: fields.Bucket
    key: fields.ObjectKey
    cache_strategy: Literal["ephemeral", "persistent"] = "ephemeral"
    """An ephemeral asset goes after the job that brought it."""
    checksum: Annotated[fields.Sha256 | None, EMPTY_IS_NONE] = None
    """SHA-256 in hex, with or without sha256: in front."""
    display_name: Annotated[Printable | None, EMPTY_IS_NONE] = None
    original_name: Annotated[Printable | None, EMPTY_IS_NONE] = None


class Resolution(_Part):
    """Pixels."""

    width: fields.Side
    height: fields.Side


class Parameters(_Part):
    """Values of the render. A sampling field that is missing here may stand in extra, under its name in a binding."""

    prompt: fields.Prompt = Field(repr=False)
    negative_prompt: fields.Prompt | None = Field(None, repr=False)
    seed: fields.Seed | None = None
    """Drawn if absent."""
    cfg_scale: fields.Cfg | None = None
    steps: fields.Steps | None = None
    sampler: Annotated[fields.Name | None, EMPTY_IS_NONE] = None
    scheduler: Annotated[fields.Name | None, EMPTY_IS_NONE] = None
    resolution: Resolution | None = None
    extra: Annotated[dict[str, Any], NULL_IS_OBJECT] = Field(default_factory=dict, repr=False)
    """More parameters by name, for bindings; extra.loras has each LoRA's strength."""


class Override(_Part):
    """A value for one place of the workflow."""

    node: fields.NodeId
    path: fields.Path
    """Dotted, such as inputs.ckpt_name."""
    value: Any = Field(repr=False)


class Binding(_Part):
    """One place of the workflow that a parameter's value goes to."""

    parameter: StrictStr = Field(min_length=1, max_length=200)
    node: fields.NodeId
    path: fields.Path
    """Dotted, such as inputs.ckpt_name."""


_Url = Annotated[fields.Address | None, EMPTY_IS_NONE]


class Callbacks(_Part):
    """Addresses of reports: http(s) addresses, or paths for the agent's callbacks.base_url."""

    status: _Url = None
    completion: _Url = None
    failure: _Url = None


class Envelope(_Part):
    """One job, as a control plane dispatches it."""

    model_config = ConfigDict(json_schema_extra=lambda schema: schema.update(examples=[example("envelope")]))

    job_id: Printable
    user: User
    output: OutputPlace
    workflow: WorkflowSource
    base_model: Asset
    parameters: Parameters
    loras: Annotated[tuple[Asset, ...], NULL_IS_LIST, Field(max_length=100)] = ()
    """Applied in this order, each with its own strength."""
    priority: Scalar = None
    """Kept for the archive; the agent has no queue."""
    requested_at: Scalar = None
    """Kept for the archive."""
    cancel_token: Annotated[SecretStr | None, Field(max_length=1000), EMPTY_IS_NONE] = None
    """The token that POST /jobs/cancel must name to end this job."""
    workflow_overrides: Annotated[tuple[Override, ...], NULL_IS_LIST, Field(max_length=10_000)] = ()
    """Written into the template first."""
    workflow_parameters: Annotated[tuple[Binding, ...], NULL_IS_LIST, Field(max_length=10_000)] = ()
    """Written into the template after the overrides."""
    callbacks: Annotated[Callbacks, NULL_IS_OBJECT] = Callbacks()
    _misspelt: tuple[str, ...] = PrivateAttr(())

    @property
    def warnings(self) -> tuple[str, ...]:
        """A line for each ignored key that looks like a known one."""
        return self._misspelt

    @property
    def workflow_bucket(self) -> str:
        """The bucket of workflow.minioKey."""
        return self.workflow.bucket or self.base_model.bucket

    def shown(self) -> dict[str, Any]:
        """Return what was given, in its caller's names and JSON's types, for the archive: without cancelToken."""
        return self.model_dump(mode="json", by_alias=True, exclude={"cancel_token"}, exclude_unset=True)


# --- parsing ----------------------------------------------------------------------------------------------------


def parse(data: object, *, max_nodes: int = 5000) -> Envelope:
    """Return the envelope in decoded JSON. Raises InvalidRequest with every problem: ``details.problems``, each a
    ``{"path", "problem"}`` such as ``{"path": "loras[0].key", …}``.

    ``max_nodes``: the most nodes of an inline workflow (settings.max_nodes).
    """
    if not isinstance(data, dict):
        raise refusal([{"path": "", "problem": f"must be a JSON object, not {fields.kind_of(data)}"}], "envelope")
    if problems := fields.value_problems(data):
        raise refusal(problems, "envelope")
    try:
        envelope = Envelope.model_validate(data)
    except ValidationError as error:
        problems = problems_of(error.errors(include_input=False))
        raise refusal([*problems, *_source_problems(data, max_nodes)], "envelope") from None
    if problems := [*_source_problems(data, max_nodes), *_given_twice(envelope)]:
        raise refusal(problems, "envelope")
    envelope._misspelt = tuple(itertools.islice(_misspelt(data, Envelope, ""), MAX_PROBLEMS))
    return envelope


def _misspelt(data: dict[str, Any], model: type[_Part], where: str) -> Iterator[str]:
    known = {field.alias or name: field for name, field in model.model_fields.items()}
    for key, value in data.items():
        if (field := known.get(key)) is None:
            if warning := misspelt(key, known.keys() - data.keys()):
                yield f"{where}{warning}"
        elif (part := _part_of(field.annotation)) is not None:
            for at, each in enumerate(value) if isinstance(value, list) else [("", value)]:
                if isinstance(each, dict):
                    yield from _misspelt(each, part, f"{where}{key}{f'[{at}]' if at != '' else ''}.")


def _part_of(annotation: Any) -> type[_Part] | None:
    """The model in a field's type, such as tuple[Asset, ...] or Resolution | None."""
    if within := get_args(annotation):
        return next((found for each in within if (found := _part_of(each)) is not None), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, _Part) else None


def _source_problems(data: dict[str, Any], max_nodes: int) -> list[Problem]:
    """Yield what is wrong with the workflow's source, beyond the types of its fields."""
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


def _given_twice(envelope: Envelope) -> list[Problem]:
    """A LoRA that is listed twice would be applied twice."""
    problems: list[Problem] = []
    seen: set[tuple[str, str]] = set()
    for at, lora in enumerate(envelope.loras):
        if (lora.bucket, lora.key) in seen:
            problems.append({"path": f"loras[{at}]", "problem": "is the same object as one before it"})
        seen.add((lora.bucket, lora.key))
    return problems
