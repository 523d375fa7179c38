"""The kinds of values that an envelope's fields have: what each must look like, said in a person's words."""

from __future__ import annotations

import functools
import unicodedata
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, Field, StrictStr, WithJsonSchema

from settee.s3.target import bucket_problem

#: ComfyUI's own limits: of a seed, of steps and of a side in pixels. That of cfg its registry tells.
MAX_SEED, MAX_STEPS, MAX_SIDE = 2**64 - 1, 10_000, 16_384
#: S3's limit of a key, in bytes of UTF-8.
MAX_KEY_BYTES = 1024
#: Unicode's categories of control characters, line and paragraph separators, halves of surrogate pairs.
_UNPRINTABLE = frozenset(["Cc", "Zl", "Zp", "Cs"])


def _printable(value: str) -> str:
    """Control characters and line breaks are refused; what scripts need, joiners and wide spaces, is not."""
    if not value.isprintable() and any(unicodedata.category(char) in _UNPRINTABLE for char in value):
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
        raise ValueError("is not a SHA-256: give 64 hex digits, with or without sha256: in front")
    return digest


def _number_only(value: Any) -> Any:
    """pydantic would take "20" and true for numbers."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError("must be a number")
    return value


def whole(value: Any, least: int, most: int) -> int:
    """A whole number within limits, which JSON may write as 20.0 or 1e19. Raises ValueError."""
    if _number_only(value) != value // 1 or not least <= value <= most:
        raise ValueError(f"must be a whole number from {least} to {most}")
    return int(value)


def _whole(least: int, most: int) -> Any:
    return BeforeValidator(functools.partial(whole, least=least, most=most))


def _node_id(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise ValueError("must be a node's id: a text or a whole number")
    return str(value)


def _scalar(value: Any) -> Any:
    if isinstance(value, bool) or not isinstance(value, (str, int, float, type(None))):
        raise ValueError("must be a text or a number")
    return value


def _callback(value: str) -> str:
    _printable(value)
    scheme, colon, rest = value.partition(":")
    is_absolute = bool(colon) and not set(scheme) & set("/?#")
    if value.startswith(("//", "\\")) or " " in value:
        raise ValueError("is not an address")
    if is_absolute and not (scheme.lower() in ("http", "https") and rest.startswith("//") and rest.strip("/")):
        raise ValueError("must be an http(s) address, or a path for callbacks.base_url")
    return value


def _none_if_empty(value: Any) -> Any:
    return None if value == "" else value


def _empty_list(value: Any) -> Any:
    return () if value is None else value


def _empty_object(value: Any) -> Any:
    return {} if value is None else value


_NODE_ID = WithJsonSchema({"anyOf": [{"type": "string", "minLength": 1, "maxLength": 200}, {"type": "integer"}]})

Printable = Annotated[StrictStr, Field(min_length=1, max_length=200), AfterValidator(_printable)]
Bucket = Annotated[StrictStr, AfterValidator(_bucket)]
ObjectKey = Annotated[StrictStr, AfterValidator(_object_key)]
NodeId = Annotated[
    str, BeforeValidator(_node_id), Field(min_length=1, max_length=200), AfterValidator(_printable), _NODE_ID
]
Real = Annotated[float, BeforeValidator(_number_only), Field(allow_inf_nan=False)]
Scalar = Annotated[Any, BeforeValidator(_scalar)]
Seed = Annotated[int, Field(ge=0, le=MAX_SEED), _whole(0, MAX_SEED)]
Steps = Annotated[int, Field(ge=1, le=MAX_STEPS), _whole(1, MAX_STEPS)]
Side = Annotated[int, Field(ge=1, le=MAX_SIDE), _whole(1, MAX_SIDE)]
Cfg = Annotated[Real, Field(gt=0)]
Prompt = Annotated[StrictStr, Field(max_length=100_000)]
Path = Annotated[StrictStr, Field(min_length=1, max_length=500)]
Prefix = Annotated[StrictStr, AfterValidator(_key)]
LocalPath = Annotated[StrictStr, Field(max_length=1024), AfterValidator(_printable)]
Sha256 = Annotated[StrictStr, AfterValidator(_sha256)]
Address = Annotated[StrictStr, Field(max_length=2048), AfterValidator(_callback)]
#: For optional fields: forms send "" for what was left empty, and null for a list or an object.
EMPTY_IS_NONE = BeforeValidator(_none_if_empty)
NULL_IS_LIST = BeforeValidator(_empty_list)
NULL_IS_OBJECT = BeforeValidator(_empty_object)
