"""The errors of a caller who sends a job, as one tree; each kind has an exit code of its own.

ClientError
├── UsageError 2            the request cannot be made as it was asked for; nothing was sent
│   └── Ambiguous           there is more than one place for what was asked for
├── Rejected 3              the worker refused the job: the workflow, an input or a key is wrong
├── JobFailed 4             the job ran, and failed
├── JobStopped 5            canceled, or out of time
└── NetworkError 6          the target cannot be reached, or does not answer as it should
    ├── AuthError           it requires another key
    ├── StatusError         it answers with an HTTP status that is not a success
    └── Unsure              it may have accepted the job: the answer was lost
"""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator
from typing import Any, ClassVar

#: Codes of settee's workers (docs/api.md) that mean: the same job will be refused again.
_REFUSALS = frozenset(
    ["invalid_request", "seal_broken", "unsafe_path", "payload_too_large", "workflow_rejected", "model_missing"]
)
_STOPS = frozenset(("canceled", "timeout"))


#: What Python calls otherwise than the command line does; any other option ``--a-b`` is the keyword ``a_b``.
_KEYWORDS = {
    "--img": "images",
    "--mask": "masks",
    "--video": "videos",
    "--comfy": "comfy=True",
    "--url": "where",
    "--endpoint": "where",
    "--timeout": "wait_s",
    "--job-timeout": "timeout_s",
    "--model": "models",
    "--resume": "Endpoint.job",
    "--cancel": "Endpoint.cancel",
}
_at_command_line = False


@contextlib.contextmanager
def command_line() -> Iterator[None]:
    """Errors made meanwhile are read at the command line: they name its options. In Python they name keywords."""
    global _at_command_line
    before, _at_command_line = _at_command_line, True
    try:
        yield
    finally:
        _at_command_line = before


@functools.cache
def _keyword(option: str) -> str:
    """Return an option's keyword; an option of another program stays as it is."""
    from settee.client import cli_options

    is_ours = option in cli_options.parser("")._option_string_actions
    return _KEYWORDS.get(option, option[2:].replace("-", "_")) if is_ours else option


class ClientError(Exception):
    """One line for a person; ``details`` is what the worker reported in addition."""

    exit_code: ClassVar[int] = 1

    def __init__(
        self, message: str, *, code: str | None = None, details: dict[str, Any] | None = None, job_id: str | None = None
    ) -> None:
        if not _at_command_line:
            message = re.sub(r"(?<![\w-])--[a-z]+(?:-[a-z]+)*", lambda found: _keyword(found[0]), message)
            message = re.sub(r"(Endpoint\.\w+) ([\w.:-]+)", r"\1('\2')", message)
        self.message = message
        super().__init__(message)
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
    """The target requires another key."""


class StatusError(NetworkError):
    """The server answered with an HTTP status that is not a success."""

    def __init__(self, message: str, status: int, words: str) -> None:
        super().__init__(message)
        self.status = status
        #: The answer's own line about it, or "".
        self.words = words


class Unsure(NetworkError):
    """A request that must not be repeated was sent, and what became of it is not known."""

    def __init__(self, message: str, head: bytes) -> None:
        super().__init__(message)
        #: The first bytes of an answer that broke off; never shown.
        self.head = head


def of_code(code: str | None) -> type[ClientError]:
    """Return the kind of error that a worker's code means; without one, the job failed."""
    if code in _REFUSALS:
        return Rejected
    return JobStopped if code in _STOPS else JobFailed
