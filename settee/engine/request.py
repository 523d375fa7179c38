"""What a caller asks for, parsed and checked once at the door.

:func:`parse` accepts the field's shapes (a superset of what the most used ComfyUI worker takes) and returns a
typed :class:`JobRequest`, or raises InvalidRequest with every problem found: no GPU time is spent on a mistake.
Nothing here prints a caller's values: they may be private.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections import Counter
from collections.abc import Iterable
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    SecretStr,
    SkipValidation,
    ValidationError,
)

from settee.base.errors import InvalidRequest, PayloadTooLarge, problems_of
from settee.base.settings import MIB, Settings
from settee.comfyui import workflow as graph
from settee.comfyui.workflow import Problem, measure
from settee.models import spec
from settee.models.entry import ModelEntry


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


class InputFile(_Strict):
    """A file for ComfyUI's input folder. ``data``: base64, a data URI, http(s)://…, s3://bucket/key or volume://path."""

    name: str = Field(min_length=1, max_length=512)
    data: str = Field(repr=False, validation_alias=AliasChoices("data", "image"))


class Bucket(_Strict):
    """An S3 bucket of the caller's own (RunPod's top-level ``s3Config``)."""

    access_id: SecretStr = Field(alias="accessId")
    access_secret: SecretStr = Field(alias="accessSecret")
    bucket_name: str = Field(alias="bucketName", min_length=1)
    endpoint_url: str = Field(alias="endpointUrl", pattern=r"^https?://")


class Delivery(_Strict):
    """How results go back. Unset fields follow the worker's settings."""

    mode: Literal["auto", "base64", "s3"] | None = None
    #: Key prefix template for S3 instead of the worker's.
    prefix: str | None = Field(None, max_length=512)
    #: Lifetime of presigned URLs, seconds.
    expires_s: int | None = Field(None, ge=1, le=604_800)
    #: Re-encode images; unset passes ComfyUI's bytes through.
    image_format: Literal["png", "webp", "jpeg"] | None = None
    quality: int | None = Field(None, ge=1, le=100)
    #: Take the prompt and workflow (and EXIF) out of images.
    strip_metadata: bool = False
    #: Return previews of the temp folder too.
    include_temp: bool = False


def _files(value: Any) -> Any:
    """``{name: data}`` becomes ``[{"name", "data"}]``."""
    if isinstance(value, dict):
        return [{"name": name, "data": data} for name, data in value.items()]
    if value is None or isinstance(value, list):
        return value or ()
    raise ValueError('give {"name": data} or [{"name": …, "image": data}]')


def _delivery(value: Any) -> Any:
    if value is None:
        return {}
    return {"mode": value} if isinstance(value, str) else value


def _graph(value: Any) -> Any:
    """JSON text of a graph becomes the graph."""
    if not isinstance(value, str):
        return value
    try:
        return json.loads(value)
    except ValueError:
        raise ValueError("this text is not JSON") from None


class JobRequest(_Strict):
    """One job as its caller described it."""

    #: API format: ``{node_id: {"class_type", "inputs", "_meta"?}}``.
    workflow: Annotated[dict[str, Any], BeforeValidator(_graph)] = Field(repr=False)
    images: Annotated[tuple[InputFile, ...], BeforeValidator(_files)] = ()
    files: Annotated[tuple[InputFile, ...], BeforeValidator(_files)] = ()
    #: Models that the job brings, in the grammar of MODELS (settee/models/spec.py).
    models: SkipValidation[tuple[ModelEntry, ...]] = ()
    delivery: Annotated[Delivery, BeforeValidator(_delivery)] = Delivery()
    #: Seconds; None takes the worker's JOB_TIMEOUT_S.
    timeout_s: float | None = Field(None, gt=0, allow_inf_nan=False)
    #: Keep the job's files until the next job, for a look over SSH.
    debug: bool = False
    #: Run the good outputs of a workflow whose other outputs ComfyUI refuses.
    allow_partial: bool = False
    #: ``random`` draws every seed; else those that are -1 are drawn.
    seeds: Literal["random"] | None = None
    #: Goes to ComfyUI as it is; `extra_pnginfo` ends up in PNGs. Always an object: null would kill its executor.
    extra_data: Annotated[dict[str, Any], BeforeValidator(lambda value: {} if value is None else value)] = Field(
        default_factory=dict, repr=False
    )
    comfy_org_api_key: SecretStr | None = None
    #: Set by the door from RunPod's `s3Config`, never by the payload itself.
    bucket: Bucket | None = Field(None, repr=False)


#: How many of a request's unknown keys are compared with the known ones.
MAX_HINTS = 20
#: The keys of a payload, as documented.
KEYS = tuple(name for name in JobRequest.model_fields if name != "bucket")
#: Keys that people know from elsewhere.
_ELSEWHERE = {
    "prompt": "is called `workflow` here: give the graph under that key (words of a prompt go into its nodes)",
    "s3Config": "belongs next to `input`, at the top of the request, not inside it",
}


def decode(payload: Any, settings: Settings) -> dict[str, Any]:
    """Return the payload as an object. Raises InvalidRequest when it is neither one nor JSON text of one."""
    if isinstance(payload, (str, bytes)):
        if len(payload) > settings.max_request_mb * MIB:
            raise PayloadTooLarge(f"the request is over MAX_REQUEST_MB ({settings.max_request_mb:g} MiB)")
        try:
            payload = json.loads(payload)
        except (ValueError, RecursionError):
            raise InvalidRequest("input is text, but not JSON: send an object, or JSON text of one") from None
    if not isinstance(payload, dict):
        kind = "nothing" if payload is None else type(payload).__name__
        raise InvalidRequest(f'input must be an object such as {{"workflow": {{…}}}}, not {kind}')
    return payload


def parse(payload: Any, settings: Settings, *, bucket: Any = None) -> JobRequest:
    """Return a payload (an object, or JSON text of one) as a JobRequest.

    ``bucket`` is RunPod's top-level ``s3Config``. Raises InvalidRequest or PayloadTooLarge with all problems.
    """
    payload = decode(payload, settings)
    unknown = [key for key in payload if key not in KEYS]
    problems: list[Problem] = [_unknown(key, hinted=at < MAX_HINTS) for at, key in enumerate(unknown)]
    if payload.get("workflow") is None and "prompt" not in payload:
        problem = "missing: give the workflow in API format (Workflow > Export (API))"
        problems.append({"path": "workflow", "problem": problem})
    request: JobRequest | None = None
    known = {key: value for key, value in payload.items() if key in KEYS}
    known["models"] = _models(known.get("models"), settings, problems)
    if payload.get("workflow") is not None:
        try:
            request = JobRequest.model_validate({**known, **({"bucket": bucket} if bucket is not None else {})})
        except ValidationError as error:
            found = problems_of(error.errors(include_input=False), {"extra_forbidden": "unknown key"}, index=".{}")
            # Where its caller wrote it.
            problems += [{**each, "path": re.sub(r"^bucket\b", "s3Config", each["path"])} for each in found]
        except RecursionError:
            problems.append({"path": "", "problem": "nested too deeply"})
        workflow = request.workflow if request else payload["workflow"]
        if isinstance(workflow, dict):
            problems += graph.shape_problems(workflow, max_nodes=settings.max_nodes)
    if request is not None:
        problems += _beyond_types(request, settings)
    if problems:
        over_limits_only = all(problem.get("type") == "limit" for problem in problems)
        raise (PayloadTooLarge if over_limits_only else InvalidRequest).from_problems(problems)
    assert request is not None
    return request


def _models(value: Any, settings: Settings, problems: list[Problem]) -> tuple[ModelEntry, ...]:
    if value is None or value == []:
        return ()
    if not isinstance(value, list):
        problems.append({"path": "models", "problem": 'give a list such as ["org/name:file.safetensors:loras"]'})
        return ()
    if not settings.allow_job_models:
        problems.append({"path": "models", "problem": "this worker takes no models from jobs (ALLOW_JOB_MODELS)"})
        return ()
    if len(value) > settings.max_files:
        problem = f"{len(value)} models; MAX_FILES allows {settings.max_files}"
        problems.append({"path": "models", "type": "limit", "problem": problem})
        return ()
    entries, wrong = spec.of_job(value)
    problems += wrong
    return entries


def misspelt(key: str, known: Iterable[str]) -> str | None:
    """Return a warning for a key that is ignored and looks like one of those ``known``."""
    near = difflib.get_close_matches(key[:100], known, n=1, cutoff=0.8)
    return f"{key[:100]}: this key is ignored; did you mean {near[0]!r}?" if near else None


def _unknown(key: Any, *, hinted: bool) -> Problem:
    if key in _ELSEWHERE:
        return {"path": key, "problem": _ELSEWHERE[key]}
    if not hinted:
        return {"path": str(key)[:100], "problem": "unknown key"}
    if near := difflib.get_close_matches(str(key)[:100], KEYS, n=1):
        return {"path": str(key)[:100], "problem": "unknown key", "near": near}
    return {"path": str(key)[:100], "problem": f"unknown key; known keys: {', '.join(KEYS)}"}


def _beyond_types(request: JobRequest, settings: Settings) -> list[Problem]:
    """Limits and rules that concern several fields at once."""
    problems: list[Problem] = []
    size = 0
    for name in ("workflow", "extra_data"):
        characters, problem = measure(getattr(request, name))
        size += characters
        if problem:
            problems.append({"path": name, "problem": problem})
    inputs = (*request.images, *request.files)
    if len(inputs) > settings.max_files:
        limit = f"{len(inputs)} files; MAX_FILES allows {settings.max_files}"
        problems.append({"path": "images", "type": "limit", "problem": limit})
    # Names that differ in case only would be one file on some file systems; the field's rule is "unique".
    for name, count in Counter(file.name for file in inputs).items():
        if count > 1:
            problems.append({"path": "images", "problem": f"the name {name!r} is given twice"})
    if request.timeout_s is not None and request.timeout_s > settings.max_job_timeout_s:
        problems.append({"path": "timeout_s", "problem": f"over MAX_JOB_TIMEOUT_S ({settings.max_job_timeout_s:g} s)"})
    of_files = sum(len(file.data) for file in inputs)
    if size + of_files > settings.max_request_mb * MIB:
        path, advice = "workflow", "send what it embeds as `files`"
        if of_files > size:
            path, advice = "images", "send files by http(s) or s3 URL instead"
        limit = (
            f"{math.ceil((size + of_files) / MIB)} MiB of request; MAX_REQUEST_MB allows {settings.max_request_mb:g}"
        )
        problems.append({"path": path, "type": "limit", "problem": f"{limit}: {advice}"})
    return problems
