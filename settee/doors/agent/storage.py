"""The S3 store of a job's template and models: what the agent asks it for before the engine fetches a model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from settee.base import threads
from settee.delivery.s3 import Target, client_for, explain, workers_target
from settee.errors import DownloadFailed, InvalidRequest
from settee.settings import Settings

#: A workflow is some 100 kB; what is larger is none.
MOST_BYTES = 20_000_000


@dataclass(frozen=True)
class Found:
    """What an object says of itself."""

    #: Bytes.
    size: int
    #: Its ETag: another one after every upload of other bytes.
    version: str | None = None
    metadata: dict[str, str] = field(default_factory=dict)


Check = Callable[[], None]


def _no_check() -> None:
    pass


class Storage:
    """Every method asks S3, with the timeouts of :mod:`settee.delivery.s3`, and may be called from any thread."""

    def __init__(self, settings: Settings) -> None:
        target = workers_target(settings)
        assert target is not None, "the agent's configuration always names its S3 store"
        self._target: Target = target

    def prepare(self) -> None:
        """Load botocore and its description of S3 before a job needs them: that holds all threads up for moments."""
        client_for(self._target)

    def head(self, bucket: str, key: str, what: str, check: Check = _no_check) -> Found:
        """Size, ETag and metadata. Raises InvalidRequest when it is not there, DownloadFailed when S3 cannot tell."""
        answer = self._ask(what, bucket, key, check, lambda s3: s3.head_object(Bucket=bucket, Key=key))
        return Found(
            int(answer["ContentLength"]), answer.get("ETag", "").strip('"') or None, dict(answer.get("Metadata") or {})
        )

    def workflow(self, bucket: str, key: str, check: Check = _no_check) -> dict[str, Any]:
        """The workflow in an object. Raises InvalidRequest for what is none, and what :meth:`head` does."""
        what = "workflow.minioKey"

        def read(s3: Any) -> bytes:
            with s3.get_object(Bucket=bucket, Key=key)["Body"] as body:
                content: bytes = body.read(MOST_BYTES + 1)
                return content

        content = self._ask(what, bucket, key, check, read)
        return parsed(content, what, f"s3://{bucket}/{key}")

    def _ask(self, what: str, bucket: str, key: str, check: Check, call: Callable[[Any], Any]) -> Any:
        """In a thread of its own: a server that is silent for minutes must not hold up a cancel for as long."""
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            return threads.call(lambda: call(client_for(self._target)), check=check, name="settee-s3")
        except ClientError as error:
            status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
            if status in (400, 404):
                raise wrong(what, f"s3://{bucket}/{key} is not there") from error
            reason = explain(error, self._target)
        except (BotoCoreError, OSError) as error:  # a body that breaks off is urllib3's, or the socket's
            reason = explain(error, self._target)
        raise DownloadFailed(f"{what}: {reason.message}", retryable=reason.retryable)


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
    """What is wrong with one field of the envelope."""
    return InvalidRequest.from_problems([{"path": path, "problem": problem}])
