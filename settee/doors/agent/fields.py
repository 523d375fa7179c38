"""Values of an envelope: the kinds that its fields have, what JSON can hold and the rest of the way cannot, and how all
that is wrong is reported at once.
"""

from __future__ import annotations

import functools
import math
import unicodedata
from collections.abc import Sequence
from typing import Annotated, Any, NamedTuple

from pydantic import AfterValidator, BeforeValidator, Field, StrictStr, WithJsonSchema

from settee.base.errors import InvalidRequest
from settee.comfyui.seeds import MAX_SEED
from settee.comfyui.workflow import MAX_DEPTH, Problem
from settee.s3.target import bucket_problem

#: ComfyUI's own limits of steps and of a side in pixels. That of cfg is in its node registry.
MAX_STEPS, MAX_SIDE = 10_000, 16_384
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


# --- a whole document ------------------------------------------------------------------------------------------

#: orjson, and most others, write no other whole numbers.
_SMALLEST, _LARGEST = -(2**63), 2**64 - 1
#: More is not told.
_MOST = 20


#: How many mistakes of one job are told.
MAX_PROBLEMS = 100


class _At(NamedTuple):
    """A value, and the way to it. Its path is written only when there is something to say."""

    holder: _At | None
    key: str | int
    value: Any

    def path(self) -> str:
        names: list[str] = []
        at: _At | None = self
        while at is not None and at.holder is not None:
            names.append(f"[{at.key}]" if isinstance(at.key, int) else f".{_shown(at.key)}")
            at = at.holder
        return "".join(reversed(names)).removeprefix(".")


def kind_of(value: Any) -> str:
    """Return the kind of a value, in JSON's words."""
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, (int, float)):
        return "a number"
    if isinstance(value, str):
        return "a text"
    return "a list" if isinstance(value, list) else "an object"


def value_problems(document: Any) -> list[Problem]:
    """Every value nested too deeply, every number JSON or a reader of it cannot hold, every text no UTF-8 can.

    Paths are the document's own: ``parameters.extra.loras[0].strength``. Level by level, not recursively: the document
    may be deeper than Python's stack.
    """
    top = _of_one(document)
    if top or not isinstance(document, (dict, list)):
        return [{"path": "", "problem": top}] if top else []
    problems: list[Problem] = []
    level = [_At(None, "", document)]
    for _ in range(MAX_DEPTH):
        inside: list[_At] = []
        for at in level:
            value = at.value
            for key, item in value.items() if isinstance(value, dict) else enumerate(value):
                problem = _of_one(item)
                if problem:
                    problems.append({"path": _At(at, key, item).path(), "problem": problem})
                    if len(problems) >= _MOST:
                        return problems
                elif isinstance(item, (dict, list)):
                    inside.append(_At(at, key, item))
        if not inside:
            return problems
        level = inside
    # One as an example: all of a level may be too deep.
    return [*problems, {"path": level[0].path()[:200], "problem": f"is nested more than {MAX_DEPTH} levels deep"}]


def _shown(key: str) -> str:
    return key[:100].encode(errors="replace").decode()


def _of_one(value: Any) -> str | None:
    if isinstance(value, float):
        return None if math.isfinite(value) else "is not a finite number"
    if isinstance(value, int):
        return None if _SMALLEST <= value <= _LARGEST else "is a whole number of more than 64 bits"
    if isinstance(value, str):
        return "is not valid Unicode: it has half of a surrogate pair" if _is_broken(value) else None
    if isinstance(value, dict) and any(_is_broken(key) for key in value):
        return "has a key that is not valid Unicode"
    return None


def _is_broken(text: str) -> bool:
    """Return True if a string holds what UTF-8 cannot: JSON's ``"\\ud800"`` decodes to it."""
    if text.isascii():
        return False
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def refusal(problems: Sequence[Problem], what: str) -> InvalidRequest:
    """One error for all problems (at least one) of ``what``; the number of those beyond the first hundred."""
    told = list(problems[:MAX_PROBLEMS])
    if len(problems) > MAX_PROBLEMS:
        told.append({"path": "", "problem": f"and {len(problems) - MAX_PROBLEMS} more"})
    return InvalidRequest.from_problems(told, what)
