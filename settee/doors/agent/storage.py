"""The S3 store of a job's template and models: what the agent asks it for before the engine fetches a model."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from settee.delivery.s3 import Target, client_for, explain, workers_target
from settee.errors import DownloadFailed, InvalidRequest
from settee.settings import Settings

#: A workflow is some 100 kB; what is larger is none.
_MOST_BYTES = 20_000_000


@dataclass(frozen=True)
class Found:
    """What an object says of itself."""

    #: Bytes.
    size: int
    metadata: dict[str, str] = field(default_factory=dict)


class Storage:
    """Every method asks S3, with the timeouts of :mod:`settee.delivery.s3`, and may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        target = workers_target(settings)
        assert target is not None, "the agent's configuration always names its S3 store"
        self._target: Target = target

    def head(self, bucket: str, key: str, what: str) -> Found:
        """Size and metadata. Raises InvalidRequest when it is not there, DownloadFailed when S3 cannot tell."""
        answer = self._ask(what, bucket, key, "head_object")
        return Found(int(answer["ContentLength"]), dict(answer.get("Metadata") or {}))

    def workflow(self, bucket: str, key: str) -> dict[str, Any]:
        """The workflow in an object. Raises InvalidRequest for what is none, and what :meth:`head` does."""
        what = "workflow.minioKey"
        answer = self._ask(what, bucket, key, "get_object")
        with answer["Body"] as body:
            content = body.read(_MOST_BYTES + 1)
        if len(content) > _MOST_BYTES:
            raise _problem(what, f"s3://{bucket}/{key} is too large for a workflow")
        return parsed(content, what, f"s3://{bucket}/{key}")

    def _ask(self, what: str, bucket: str, key: str, call: str) -> Any:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return getattr(client_for(self._target), call)(Bucket=bucket, Key=key)
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status in (400, 404):
                raise _problem(what, f"s3://{bucket}/{key} is not there") from error
            reason = explain(error, self._target)
        except BotoCoreError as error:
            reason = explain(error, self._target)
        raise DownloadFailed(f"{what}: {reason.message}", retryable=reason.retryable)


def parsed(content: bytes, what: str, shown: str) -> dict[str, Any]:
    """A workflow's JSON. Raises InvalidRequest."""
    try:
        data = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise _problem(what, f"{shown} is no JSON") from error
    if not isinstance(data, dict):
        raise _problem(what, f"{shown} holds no workflow: it must be an object of nodes")
    return data


def _problem(path: str, problem: str) -> InvalidRequest:
    return InvalidRequest.from_problems([{"path": path, "problem": problem}])
