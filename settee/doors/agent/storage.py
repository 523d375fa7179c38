"""The S3 store of a job's template and models: what the agent asks it for before the engine fetches a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from settee.base import threads
from settee.base.errors import DownloadFailed, InvalidRequest
from settee.base.settings import Settings
from settee.models.sources.s3_object import sha256_of
from settee.s3.client import client_for
from settee.s3.error_table import S3Error, explained
from settee.s3.objects import head, read
from settee.s3.target import Target, workers_target

#: A workflow is some 100 kB; what is larger is not one.
MOST_BYTES = 20_000_000


@dataclass(frozen=True)
class Found:
    """An object's own description."""

    #: Bytes.
    size: int
    #: Its ETag: another one after every upload of other bytes.
    version: str | None = None
    #: Hex, where its uploader or S3 states it.
    sha256: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)


Check = Callable[[], None]
T = TypeVar("T")


def _no_check() -> None:
    pass


class Storage:
    """Every method asks S3, with the timeouts of :mod:`settee.s3.client`, and may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        target = workers_target(settings)
        assert target is not None, "the agent's configuration always names its S3 store"
        self._target: Target = target

    def prepare(self) -> None:
        """Load botocore and its description of S3 before a job needs them: that holds all threads up for moments."""
        client_for(self._target)

    def head(self, bucket: str, key: str, what: str, check: Check = _no_check) -> Found:
        """Size, ETag and metadata. Raises InvalidRequest when it does not exist, DownloadFailed when S3 fails."""
        answer = self._ask(what, bucket, key, check, lambda target: head(target, key))
        version = answer.get("ETag", "").strip('"') or None
        return Found(int(answer["ContentLength"]), version, sha256_of(answer), dict(answer.get("Metadata") or {}))

    def workflow(self, bucket: str, key: str, check: Check = _no_check) -> dict[str, Any]:
        """Return the workflow in an object. Raises InvalidRequest for anything else, and what :meth:`head` does."""
        what = "workflow.minioKey"
        content = self._ask(what, bucket, key, check, lambda target: read(target, key, MOST_BYTES + 1))
        return parsed(content, what, f"s3://{bucket}/{key}")

    def _ask(self, what: str, bucket: str, key: str, check: Check, call: Callable[[Target], T]) -> T:
        """In a thread of its own: a server that is silent for minutes must not hold up a cancel for as long."""
        target = replace(self._target, bucket=bucket, by_month=False)
        try:
            with explained(target, reads=True):
                return threads.call(lambda: call(target), check=check, name="settee-s3")
        except S3Error as error:
            if error.status in (400, 404):
                raise wrong(what, f"s3://{bucket}/{key} is not there") from error
            raise DownloadFailed(f"{what}: {error.message}", retryable=error.retryable) from error


def parsed(content: bytes, what: str, shown: str) -> dict[str, Any]:
    """The workflow in a file's first :data:`MOST_BYTES` and one more. Raises InvalidRequest."""
    if len(content) > MOST_BYTES:
        raise wrong(what, f"{shown} is too large for a workflow")
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise wrong(what, f"{shown} is not JSON") from error
    if not isinstance(data, dict):
        raise wrong(what, f"{shown} holds no workflow: it must be an object of nodes")
    return data


def wrong(path: str, problem: str) -> InvalidRequest:
    """Return an error for one field of the envelope."""
    return InvalidRequest.from_problems([{"path": path, "problem": problem}])
