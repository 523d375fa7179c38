"""What can go wrong for somebody who sends a job, as one tree; each kind has an exit code of its own.

ClientError
├── UsageError 2            the request cannot be made as it was asked for; nothing was sent
│   └── Ambiguous           there is more than one place for what was asked for
├── Rejected 3              the worker refused the job: the workflow, an input or a key is wrong
├── JobFailed 4             the job ran, and failed
├── JobStopped 5            canceled, or out of time
└── NetworkError 6          the target cannot be reached, or does not answer as it should
    └── AuthError           it wants another key
"""

from __future__ import annotations

from typing import Any, ClassVar

#: Codes of settee's workers (docs/api.md) that mean: the same job will be refused again.
_REFUSALS = frozenset(
    ["invalid_request", "seal_broken", "unsafe_path", "payload_too_large", "workflow_rejected", "model_missing"]
)
_STOPS = frozenset(("canceled", "timeout"))


class ClientError(Exception):
    """One line for a person; ``details`` is what the worker said beside it."""

    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, code: str | None = None, details: dict[str, Any] | None = None, job_id: str | None = None
    ) -> None:
        super().__init__(message)
        self.message = message
        #: The worker's error code (docs/api.md), where it gave one.
        self.code = code
        self.details: dict[str, Any] = details or {}
        self.job_id = job_id


class UsageError(ClientError):
    """The request cannot be made as it was asked for; nothing was sent."""

    exit_code = 2


class Ambiguous(UsageError):
    """There is more than one place for what was asked for; the message names them, and how to choose."""


class Rejected(ClientError):
    """The worker refused the job."""

    exit_code = 3


class JobFailed(ClientError):
    """The job ran, and failed."""

    exit_code = 4


class JobStopped(ClientError):
    """The job was canceled, or ran out of time."""

    exit_code = 5


class NetworkError(ClientError):
    """The target cannot be reached, or does not answer as it should."""

    exit_code = 6


class AuthError(NetworkError):
    """The target wants another key."""


def of_code(code: str | None) -> type[ClientError]:
    """The kind of error that a worker's code means; without one, the job failed."""
    if code in _REFUSALS:
        return Rejected
    return JobStopped if code in _STOPS else JobFailed
