"""Everything that can go wrong with a job, as one tree.

    SetteeError
    ├── ConfigError                 the worker's own settings are wrong
    ├── InvalidRequest              the caller's mistake; costs no GPU time
    │   ├── SealBroken              an encrypted payload that does not open
    │   ├── UnsafePath              a file name that leaves its folder
    │   └── PayloadTooLarge         over a limit of size, count or pixels
    ├── StagingError                an input or a model could not be put in place
    │   ├── ModelMissing
    │   ├── DownloadFailed
    │   ├── IntegrityError
    │   └── NoSpace
    ├── ComfyError                  ComfyUI refused, failed or went away
    │   ├── ComfyUnavailable
    │   ├── PromptLost              removed from ComfyUI's queue by someone else
    │   ├── WorkflowRejected
    │   ├── ExecutionFailed
    │   └── OutOfMemory
    ├── DeliveryError               the outputs exist but cannot be handed over
    │   ├── OutputTooLarge
    │   └── OutputMissing
    ├── JobTimeout
    ├── JobCanceled
    └── Busy                        one job at a time, and one is running

`code` is what every door reports: RunPod's error, an HTTP status, a callback's reason, an exit code.
`message` is one line for a person. `details` is JSON and safe to show: no traceback, host path or secret.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar

if TYPE_CHECKING:
    from typing_extensions import Self


#: How many of the problems of one error are listed.
MAX_PROBLEMS = 100


def more(count: int) -> str:
    """Return the end of a message whose details hold ``count`` further problems."""
    return f" (and {count} more, see details)" if count else ""


class SetteeError(Exception):
    """The job failed inside the worker; its log has the traceback under the job's id."""

    code: ClassVar[str] = "internal_error"
    #: The same request may well succeed when it is sent again.
    retryable: bool = False

    def __init_subclass__(cls, *, code: str | None = None, retryable: bool | None = None) -> None:
        cls.code = code or cls.code
        cls.retryable = cls.retryable if retryable is None else retryable

    def __init__(
        self,
        message: str | None = None,
        *,
        details: dict[str, Any] | None = None,
        retryable: bool | None = None,
    ) -> None:
        self.message = message or (type(self).__doc__ or "").strip().splitlines()[0]
        self.details: dict[str, Any] = details or {}
        if retryable is not None:
            self.retryable = retryable
        super().__init__(self.message)

    def __str__(self) -> str:
        return self.message

    @classmethod
    def from_problems(cls, problems: list[dict[str, Any]], what: str = "request") -> Self:
        """Return one error for a list of ``{"path", "problem", …}``: the first in the message, a hundred in details."""
        if len(problems) > MAX_PROBLEMS:
            rest = {"path": "", "problem": f"and {len(problems) - MAX_PROBLEMS + 1} more"}
            problems = [*problems[: MAX_PROBLEMS - 1], rest]
        # One line, whatever a caller's keys hold.
        line = " ".join(f"invalid {what}: {problem_line(problems[0])}".split())
        return cls(line + more(len(problems) - 1), details={"problems": problems})

    def lines(self) -> list[str]:
        """Return a line for each problem, or the message: for a terminal, where details are not seen."""
        problems = self.details.get("problems") or ()
        return [problem_line(each) for each in problems if isinstance(each, dict)] or [self.message]


def problem_line(problem: dict[str, Any]) -> str:
    """Return one problem for a person: where it is, and of which node class, what is wrong, and near matches."""
    where, class_type = problem.get("path"), problem.get("class_type")
    if where and class_type:
        where = f"{where} ({str(class_type)[:100]})"
    near = f"; did you mean {' or '.join(map(repr, problem['near']))}?" if problem.get("near") else ""
    return " ".join(f"{f'{where}: ' if where else ''}{problem['problem']}{near}".split())


#: For pydantic's errors that speak of Python's types; people write JSON, YAML and variables.
_WORDS = {
    "missing": "is missing",
    "string_type": "should be a string",
    **dict.fromkeys(("tuple_type", "list_type"), "should be a list"),
    **dict.fromkeys(("dict_type", "model_type"), "should be an object"),
    **dict.fromkeys(("float_type", "float_parsing"), "should be a number"),
    **dict.fromkeys(("int_type", "int_parsing", "int_from_float"), "should be a whole number"),
    **dict.fromkeys(("bool_type", "bool_parsing"), "should be true or false"),
}


def problems_of(
    found: Iterable[Mapping[str, Any]], words: Mapping[str, str] | None = None, *, index: str = "[{}]"
) -> list[dict[str, Any]]:
    """Return pydantic's errors as ``{"path": "loras[0].key", "problem"}``, in the words of who gave the value.

    ``words``: the caller's own, by pydantic's types. ``index``: a place in a list, as its paths have it.
    """
    words, problems = {**_WORDS, **(words or {})}, []
    for item in found:
        steps = (index.format(part) if isinstance(part, int) else f".{part[:100]}" for part in item["loc"])
        message = re.sub(r"^(Input|String|Tuple) should", "should", str(item["msg"]).removeprefix("Value error, "))
        problem = words.get(item["type"], message.replace(" after validation", ""))
        problems.append({"path": "".join(steps).removeprefix("."), "problem": problem})
    return problems


class ConfigError(SetteeError, code="config_error"):
    """The worker's settings are wrong."""


class InvalidRequest(SetteeError, code="invalid_request"):
    """The request is not valid."""


class SealBroken(InvalidRequest, code="seal_broken"):
    """The encrypted input does not open with this worker's key."""


class UnsafePath(InvalidRequest, code="unsafe_path"):
    """A file name leaves the folder it belongs to."""


class PayloadTooLarge(InvalidRequest, code="payload_too_large"):
    """The request is over one of the worker's limits."""


class StagingError(SetteeError, code="staging_failed"):
    """An input or a model could not be put in place."""


class ModelMissing(StagingError, code="model_missing"):
    """The workflow names a model that no entry supplies."""


class DownloadFailed(StagingError, code="download_failed", retryable=True):
    """A download failed."""


class IntegrityError(StagingError, code="integrity_error"):
    """A file is not what it should be."""


class NoSpace(StagingError, code="no_space"):
    """There is not enough space left on the worker's disk."""


class ComfyError(SetteeError, code="comfy_error"):
    """ComfyUI could not run the workflow."""


class ComfyUnavailable(ComfyError, code="comfy_unavailable", retryable=True):
    """ComfyUI does not answer."""


class PromptLost(ComfyError, code="prompt_lost", retryable=True):
    """The prompt was removed from ComfyUI's queue by someone else before it ran."""


class WorkflowRejected(ComfyError, code="workflow_rejected"):
    """ComfyUI does not accept the workflow."""


class ExecutionFailed(ComfyError, code="execution_failed"):
    """A node of the workflow failed."""


class OutOfMemory(ComfyError, code="out_of_memory"):
    """The workflow needs more GPU memory than this worker has."""


class DeliveryError(SetteeError, code="delivery_failed"):
    """The outputs could not be delivered."""


class OutputTooLarge(DeliveryError, code="output_too_large"):
    """The result is larger than the platform takes."""


class OutputMissing(DeliveryError, code="output_missing"):
    """ComfyUI reported an output file that is not there."""


class JobTimeout(SetteeError, code="timeout", retryable=True):
    """The job ran into its time limit."""


class JobCanceled(SetteeError, code="canceled"):
    """The job was canceled."""


class Busy(SetteeError, code="busy", retryable=True):
    """The worker runs one job at a time, and one is running."""
