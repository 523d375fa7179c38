"""Between RunPod's JSON and ours: answers as its callers get them, sealed where the job was, and their bytes.

A superset of what the most used ComfyUI worker returns, so that its callers need no change: ``images`` is always a
list, ``status`` is ``success_no_images`` when a workflow left nothing behind at all, and ``errors`` (next to our
``warnings``) is there when something was not quite right.

Encrypted jobs are ``{"encrypted_input": token, "is_encrypted": true}`` in, ``{"encrypted_output": token, …}`` out. Only
RunPod's own envelope (id, s3Config, webhook, policy) and an error's code stay outside the seal.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from settee.base.errors import InvalidRequest, OutputTooLarge, SetteeError
from settee.base.job import Kind, Output, Progress, Result
from settee.base.json_io import dumps
from settee.base.settings import Settings

if TYPE_CHECKING:
    from settee.base.sealing import Sealer

#: The longest error line, in characters; the whole text is in details.
MAX_LINE = 2000
#: Keys of a sealed payload.
KEYS = ("encrypted_input", "is_encrypted")
#: Characters of a long string that are encoded at a time.
_PIECE = 1 << 18


class Unreadable:
    """The input of a job whose JSON Python does not read: it is answered all the same."""


def result(done: Result) -> dict[str, Any]:
    """``{"status", "images", "videos", "audio", "models_3d", "texts", "files", "timings", "warnings"}``."""
    answer: dict[str, Any] = {"status": "success" if done.outputs else "success_no_images"}
    answer |= {kind.value: [] for kind in Kind}
    for output in done.outputs:
        answer[output.kind.value].append(_file(output))
    if done.seeds:
        answer["seeds"] = dict(done.seeds)
    answer["timings"] = dict(done.timings)
    answer["warnings"] = list(done.warnings)
    if done.warnings:
        answer["errors"] = list(done.warnings)
    return _safe_dict(answer)


def _file(output: Output) -> dict[str, Any]:
    names = ("filename", "type", "data", "node_id", "subfolder", "media_type", "size", "sha256")
    shown = {name: getattr(output, name) for name in names}
    if shown["data"] is None:
        shown["data"] = output.url
    if output.width is not None and output.height is not None:
        shown |= {"width": output.width, "height": output.height}
    return shown


def error(problem: SetteeError) -> dict[str, Any]:
    """``{"error", "code", "details"}``; RunPod takes any non-empty ``error`` text for FAILED.

    The SDK moves ``code`` and ``details`` into the job's ``output``, which its local API drops for a failed
    job. So the code is also the last word of the error line: it is there whatever becomes of the rest.
    """
    line = " ".join(problem.message.split()) or problem.code
    details = dict(problem.details)
    if len(line) > MAX_LINE:
        details.setdefault("message", problem.message)
        line = line[:MAX_LINE] + "…"
    if problem.retryable:
        details.setdefault("retryable", True)
    return _safe_dict({"error": f"{line} [{problem.code}]", "code": problem.code, "details": details})


def too_large(size: int, why: str) -> dict[str, Any]:
    """Return the error in place of a result of ``size`` bytes that RunPod does not take."""
    return error(
        OutputTooLarge(
            f"the result has {size / 1e6:.1f} MB, {why}: set up S3 delivery (BUCKET_ENDPOINT_URL and its keys), mount "
            "a network volume, or ask for smaller or fewer outputs",
            details={"size": size},
        )
    )


def bounded(answer: dict[str, Any], cap: int) -> dict[str, Any]:
    """Return the answer, or an error about its size where it has over ``cap`` bytes as JSON."""
    size = len(Body(answer))
    if size <= cap:
        return answer
    if "error" in answer:
        short = {"error": answer["error"], "code": answer["code"], "details": {"omitted": "too large for RunPod"}}
    else:
        short = too_large(size, f"over the limit of {cap / 1e6:g} MB")
    return {**short, "refresh_worker": True} if answer.get("refresh_worker") else short


def progress(event: Progress, *, sealed: bool) -> dict[str, Any]:
    """Return the ``output`` of a job in progress: of a sealed one no more than the phase and the percentage."""
    shown: dict[str, Any] = {"phase": event.status.value, "percent": event.percent}
    if not sealed:
        shown |= {"node": event.node_id, "node_type": event.node_type, "step": event.value}
        shown |= {"max": event.maximum, "message": event.message}
    return _safe_dict({key: value for key, value in shown.items() if value is not None})


# --- sealed -------------------------------------------------------------------------------------------------------


def is_sealed(payload: dict[str, Any]) -> bool:
    """Return True if this payload claims to be encrypted, however badly."""
    return payload.get("encrypted_input") is not None or bool(payload.get("is_encrypted"))


def sealer(settings: Settings) -> Sealer:
    """Return the worker's keys. Raises InvalidRequest when it has none: the caller must know before it trusts us."""
    if settings.encryption_key is None:
        raise InvalidRequest("this worker cannot open encrypted jobs: it has no ENCRYPTION_KEY")
    from settee.base.sealing import Sealer  # cryptography is imported for those who use it

    return Sealer(settings.encryption_key.get_secret_value())


def opened(payload: dict[str, Any], keys: Sealer) -> Any:
    """Return what the token holds. Raises InvalidRequest, or SealBroken when no key opens it."""
    token = payload.get("encrypted_input")
    if not isinstance(token, str) or not token:
        raise InvalidRequest("is_encrypted is set, so encrypted_input must be a token (text)")
    outside = sorted(str(key)[:100] for key in payload if key not in KEYS)
    if outside:
        raise InvalidRequest.from_problems(
            [{"path": key, "problem": "belongs inside encrypted_input"} for key in outside]
        )
    return keys.open(token)


def closed(answer: dict[str, Any], keys: Sealer) -> dict[str, Any]:
    """Return a rendered result as its caller alone can read it."""
    return {"encrypted_output": keys.seal(answer), "is_encrypted": True}


def closed_error(problem: SetteeError, keys: Sealer) -> dict[str, Any]:
    """Return a rendered error: outside only what its kind means in general, its own words under the seal."""
    outside = error(type(problem)(retryable=problem.retryable))
    return outside | closed(error(problem), keys)


# --- bytes --------------------------------------------------------------------------------------------------------


def message(answer: dict[str, Any]) -> dict[str, Any]:
    """Return a handler's answer as the SDK posts it: ``{"output", "error"?, "stopPod"?}``."""
    output = dict(answer)
    failure, refresh = output.pop("error", None), output.pop("refresh_worker", None)
    posted: dict[str, Any] = {"output": output} if output else {}
    if failure:
        posted["error"] = failure
    if refresh:
        posted["stopPod"] = True
    return posted


class Body:
    """A value as JSON, of whose long strings no more than a piece is held at a time.

    An answer's base64 is there as text already; as one body it would be there twice. ``len()`` is the size in bytes.
    """

    def __init__(self, value: Any) -> None:
        self._long: list[str] = []
        mark = uuid.uuid4().hex

        def cut(part: Any) -> Any:
            if isinstance(part, str) and len(part) > _PIECE:
                self._long.append(part)
                return mark
            if isinstance(part, dict):
                return {key: cut(entry) for key, entry in part.items()}
            return [cut(entry) for entry in part] if isinstance(part, list) else part

        #: What stands around the long strings, in their order.
        self._around = dumps(cut(value)).split(mark.encode())
        self._size = sum(map(len, self.pieces()))

    def __len__(self) -> int:
        return self._size

    def pieces(self) -> Iterator[bytes]:
        yield self._around[0]
        for text, after in zip(self._long, self._around[1:], strict=True):
            for at in range(0, len(text), _PIECE):
                yield dumps(text[at : at + _PIECE])[1:-1]
            yield after


def _safe_dict(value: dict[str, Any]) -> dict[str, Any]:
    return {_safe(str(key)): _safe(entry) for key, entry in value.items()}


def _safe(value: Any) -> Any:
    """Return the value with nothing in it that JSON in UTF-8 cannot carry: RunPod would lose the whole answer."""
    if isinstance(value, str):
        return value if value.isascii() else value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return _safe_dict(value)
    if isinstance(value, (list, tuple)):
        return [_safe(entry) for entry in value]
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    return value if value is None or isinstance(value, (bool, int)) else str(value)
