"""Values of an envelope: the kinds that its fields have, and what JSON can hold and the rest of the way cannot."""

from __future__ import annotations

import math
import unicodedata
from collections.abc import Sequence
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StrictStr, WithJsonSchema
from typing_extensions import TypeIs

from settee.base.errors import InvalidRequest
from settee.comfyui.seeds import MAX_SEED
from settee.comfyui.workflow import MAX_DEPTH, Problem
from settee.s3.target import bucket_problem
from settee.service.callback_urls import addressed

#: ComfyUI's own limits of steps and of a side in pixels. That of cfg is in its node registry.
_MAX_STEPS, _MAX_SIDE = 10_000, 16_384
#: S3's limit of a key, in bytes of UTF-8.
_MAX_KEY_BYTES = 1024
#: Unicode's categories of control characters, line and paragraph separators, halves of surrogate pairs.
_UNPRINTABLE = frozenset(["Cc", "Zl", "Zp", "Cs"])


def _printable(value: str) -> str:
    """Control characters and line breaks are refused; what scripts need, joiners and wide spaces, is not."""
    if not value.isprintable() and any(unicodedata.category(char) in _UNPRINTABLE for char in value):
        raise ValueError("holds characters that cannot be printed, such as a line break")
    return value


def _key(value: str) -> str:
    if len(value.encode(errors="replace")) > _MAX_KEY_BYTES:
        raise ValueError(f"is longer than {_MAX_KEY_BYTES} bytes")
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
    if problem := bucket_problem(value):
        raise ValueError(problem)
    return value


def _sha256(value: str) -> str:
    digest = value.strip().lower().removeprefix("sha256:")
    if len(digest) != 64 or set(digest) - set("0123456789abcdef"):
        raise ValueError("is not a SHA-256: give 64 hex digits, with or without sha256: in front")
    return digest


def is_number(value: object) -> TypeIs[int | float]:
    """Return True for a number of JSON's, which true and false are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _number(value: Any) -> Any:
    """pydantic would take "20" and true for numbers."""
    if not is_number(value):
        raise ValueError("must be a number")
    return value


def _whole(least: int, most: int) -> Any:
    """Take a whole number within limits, which JSON may write as 20.0 or 1e19."""

    def checked(value: Any) -> int:
        if _number(value) != value // 1 or not least <= value <= most:
            raise ValueError(f"must be a whole number from {least} to {most}")
        return int(value)

    return BeforeValidator(checked)


def _node_id(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("must be a node's id: a string or a whole number")
    return str(value)


def _scalar(value: Any) -> Any:
    if value is not None and not isinstance(value, str) and not is_number(value):
        raise ValueError("must be a string or a number")
    return value


def _callback(value: str) -> str:
    addressed(value, "http://localhost")  # any base will do: whether there is one is the agent's to know
    return value


_NODE_ID = WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1, "maxLength": 200}, {"type": "integer"}]})

Printable = Annotated[StrictStr, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Bucket = Annotated[StrictStr, AfterValidator(_bucket)]
ObjectKey = Annotated[StrictStr, AfterValidator(_object_key)]
NodeId = Annotated[
    str, BeforeValidator(_node_id), Field(min_length=1, max_length=200), AfterValidator(_printable), _NODE_ID
]
Scalar = Annotated[Any, BeforeValidator(_scalar)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), _whole(0, MAX_SEED)]
Steps = Annotated[int, Field(ge=1, le=_MAX_STEPS), _whole(1, _MAX_STEPS)]
Side = Annotated[int, Field(ge=1, le=_MAX_SIDE), _whole(1, _MAX_SIDE)]
Cfg = Annotated[float, BeforeValidator(_number), Field(gt=0, allow_inf_nan=False)]
Prompt = Annotated[StrictStr, Field(max_length=100_000)]
Path = Annotated[StrictStr, Field(min_length=1, max_length=500)]
LocalPath = Annotated[StrictStr, Field(max_length=1024), AfterValidator(_printable)]
Sha256 = Annotated[StrictStr, AfterValidator(_sha256)]
Address = Annotated[StrictStr, Field(max_length=2000), AfterValidator(_callback)]
Name = Annotated[StrictStr, Field(max_length=200)]
#: For optional fields: forms send "" for what was left empty, and null for a list or an object.
EMPTY_IS_NONE = BeforeValidator(lambda value: None if isinstance(value, str) and not value.strip() else value)
NULL_IS_LIST = BeforeValidator(lambda value: () if value is None else value)
NULL_IS_OBJECT = BeforeValidator(lambda value: {} if value is None else value)
Prefix = Annotated[StrictStr, AfterValidator(_key)]


def refusal(problems: Sequence[Problem], what: str) -> InvalidRequest:
    return InvalidRequest.from_problems(list(problems), what)


# --- what JSON can hold and the rest of the way cannot ----------------------------------------------------------

#: orjson, and most others, write no other whole numbers.
_MIN_WHOLE, _MAX_WHOLE = -(2**63), 2**64 - 1
#: Problems of values that are reported.
_MAX_REPORTED = 20


def kind_of(value: Any) -> str:
    """Return the kind of a value, in JSON's words."""
    kinds = {type(None): "nothing", bool: "true or false", int: "a number", float: "a number", str: "a string"}
    return kinds.get(type(value)) or ("a list" if isinstance(value, list) else "an object")


def value_problems(value: Any, depth: int = MAX_DEPTH) -> list[Problem]:
    """Return every value nested too deeply, every number JSON or a reader of it cannot hold, every text no UTF-8 can.

    Paths are the document's own: ``parameters.extra.loras[0].strength``.
    """
    if problem := _value_problem(value):
        return [{"path": "", "problem": problem}]
    if not isinstance(value, (dict, list)):
        return []
    if not depth:
        return [{"path": "", "problem": f"is nested more than {MAX_DEPTH} levels deep"}]
    problems: list[Problem] = []
    for key, item in value.items() if isinstance(value, dict) else enumerate(value):
        for found in value_problems(item, depth - 1):
            step = f"[{key}]" if isinstance(key, int) else f".{key[:100]}"
            # A path is written only where there is something to report.
            path = f"{step}{found['path']}" if found["path"][:1] in ("", "[") else f"{step}.{found['path']}"
            problems.append({**found, "path": path.removeprefix(".")})
            if len(problems) >= _MAX_REPORTED:
                return problems
    return problems


def _value_problem(value: Any) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else "is not a finite number"
    if isinstance(value, int):
        return None if _MIN_WHOLE <= value <= _MAX_WHOLE else "is a whole number of more than 64 bits"
    if isinstance(value, str):
        return "is not valid Unicode: it has half of a surrogate pair" if _is_broken(value) else None
    if isinstance(value, dict) and any(map(_is_broken, value)):
        return "has a key that is not valid Unicode"
    return None


def _is_broken(text: str) -> bool:
    """Return True if a string holds what UTF-8 cannot: JSON's ``"\\ud800"`` decodes to it."""
    return not text.isascii() and any("\ud800" <= char <= "\udfff" for char in text)
