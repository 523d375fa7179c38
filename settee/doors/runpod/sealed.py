"""Encrypted jobs: ``{"encrypted_input": token, "is_encrypted": true}`` in, ``{"encrypted_output": token, …}`` out.

Only RunPod's own envelope (id, s3Config, webhook, policy) and an error's code stay outside the seal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from settee.base.errors import InvalidRequest, SetteeError
from settee.base.settings import Settings
from settee.doors.runpod import render

if TYPE_CHECKING:
    from settee.base.sealing import Sealer

KEYS = ("encrypted_input", "is_encrypted")


def is_sealed(payload: dict[str, Any]) -> bool:
    """Whether this payload says that it is encrypted, however badly."""
    return payload.get("encrypted_input") is not None or bool(payload.get("is_encrypted"))


def plain(payload: dict[str, Any], settings: Settings) -> dict[str, Any]:
    """A payload that is not sealed, or InvalidRequest when this worker takes sealed ones only."""
    if settings.require_encryption:
        raise InvalidRequest(
            'this worker takes encrypted jobs only: send {"encrypted_input": token, "is_encrypted": true}'
        )
    return {key: value for key, value in payload.items() if key not in KEYS}


def sealer(settings: Settings) -> Sealer:
    """The worker's keys. Raises InvalidRequest when it has none: the caller must know before it trusts us."""
    if settings.encryption_key is None:
        raise InvalidRequest("this worker cannot open encrypted jobs: it has no ENCRYPTION_KEY")
    from settee.base.sealing import Sealer  # cryptography is imported for those who use it

    return Sealer(settings.encryption_key.get_secret_value())


def opened(payload: dict[str, Any], keys: Sealer) -> Any:
    """What the token holds. Raises InvalidRequest, or SealBroken when no key opens it."""
    token = payload.get("encrypted_input")
    if not isinstance(token, str) or not token:
        raise InvalidRequest("is_encrypted is set, so encrypted_input must be a token (text)")
    outside = sorted(str(key)[:100] for key in payload if key not in KEYS)
    if outside:
        problems = [{"path": key, "problem": "belongs inside encrypted_input"} for key in outside]
        raise InvalidRequest.from_problems(problems)
    return keys.open(token)


def closed(answer: dict[str, Any], keys: Sealer) -> dict[str, Any]:
    """A rendered result as its caller, and nobody else, can read it."""
    return {"encrypted_output": keys.seal(answer), "is_encrypted": True}


def closed_error(problem: SetteeError, keys: Sealer) -> dict[str, Any]:
    """A rendered error: outside only what its kind means in general, its own words under the seal."""
    outside = render.error(type(problem)(retryable=problem.retryable))
    return outside | closed(render.error(problem), keys)
