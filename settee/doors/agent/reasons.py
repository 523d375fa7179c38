"""The reason of a failure, for the dispatcher and the operator: without paths of this host, and in the words of
the agent's own configuration. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError

from settee.base.errors import (
    IntegrityError,
    InvalidRequest,
    JobCanceled,
    JobTimeout,
    ModelMissing,
    SetteeError,
    WorkflowRejected,
    more,
)
from settee.base.text import neutral, one_line
from settee.doors.agent.contract import JobError, ReasonCode
from settee.doors.agent.engine_settings import spelled

#: Characters of `reason`, and of one problem.
MAX_REASON = 500
_MAX_PATH = 200
_MAX_PROBLEMS = 100
#: The caller's own mistakes: the same dispatch fails again wherever it is sent.
_CALLERS = (InvalidRequest, WorkflowRejected, ModelMissing)


def job_error(error: SetteeError) -> JobError:
    """Return a job's error as its callback, GET /jobs/{id} and the archive state it."""
    found: dict[str, Any] = {
        "reason_code": reason_code(error),
        "reason": reason(error),
        "error_type": type(error).__name__,
        "problems": problems(error)[:_MAX_PROBLEMS] or None,
    }
    try:
        return JobError.model_validate({**found, "node_errors": node_errors(error) or None})
    except ValidationError:  # what a node's exception says of itself is the node's
        return JobError.model_validate(found)


def reason_code(error: SetteeError) -> ReasonCode:
    """One of the contract's five. A TRANSIENT_ERROR may well go away when the same job is sent again."""
    if isinstance(error, JobCanceled):
        return "CANCELED"
    if isinstance(error, JobTimeout):
        return "TIMEOUT"
    # The bucket is the dispatch's as well.
    if isinstance(error, _CALLERS) or _is_another_file(error) or error.details.get("s3_code") == "NoSuchBucket":
        return "VALIDATION_ERROR"
    return "TRANSIENT_ERROR" if error.retryable else "SYSTEM_ERROR"


def _is_another_file(error: SetteeError) -> bool:
    """Return True if the object is whole and not the one whose checksum the dispatch (or its metadata) names.

    A hash is compared only when all bytes are there; a short file is reported by its size.
    """
    return isinstance(error, IntegrityError) and error.details.get("expected_sha256") is not None


def reason(error: SetteeError) -> str:
    """One line: of several problems as many as have room in it."""
    found = problems(error)
    said = one_line(_shown(error.message), len(error.message) + MAX_REASON)
    # What from_problems() ends in; this door's answers have no details.
    closing = more(len(found) - 1)
    if not said.endswith(closing):
        return one_line(said, MAX_REASON)
    said, rest = said.removesuffix(closing), found[1:]
    while rest:
        where = f"{rest[0]['path']}: " if rest[0]["path"] else ""
        longer = f"{said}; {where}{rest[0]['problem']}"
        if len(longer) + len(_more(rest[1:])) > MAX_REASON:
            break
        said, rest = longer, rest[1:]
    return one_line(said, MAX_REASON - len(_more(rest))) + _more(rest)


def _more(rest: Sequence[Any]) -> str:
    return f"; and {len(rest)} more" if rest else ""


def problems(error: SetteeError) -> list[dict[str, str]]:
    """``{path, problem}`` of each that the error tells of."""
    return [
        {
            "path": one_line(_shown(str(problem.get("path") or "")), _MAX_PATH),
            "problem": one_line(_shown(f"{problem.get('problem', '')}{_near(problem)}"), MAX_REASON),
        }
        for problem in _details(error)
    ]


def _details(error: SetteeError) -> list[dict[str, Any]]:
    found = error.details.get("problems")
    return [each for each in found if isinstance(each, dict)] if isinstance(found, list) else []


def _near(problem: Mapping[str, Any]) -> str:
    near = problem.get("near")
    return f"; did you mean {' or '.join(map(repr, near))}?" if near and isinstance(near, list) else ""


def node_errors(error: SetteeError) -> dict[str, Any]:
    """Return what is known by node id: ``{class_type?, errors: [{message, …}]}``. Empty when no node is at fault."""
    found: dict[str, dict[str, Any]] = {}
    for problem in _details(error):
        if problem.get("node_id") is not None:
            _add(found, problem, str(problem.get("problem", "")), ("path", "input", "value", "near"))
    if error.details.get("node_id") is not None and not found:
        said = error.details.get("exception_message")
        _add(found, error.details, str(said or error.message), ("exception_type", "title", "input"))
    return found


def _add(found: dict[str, dict[str, Any]], about: Mapping[str, Any], message: str, names: Sequence[str]) -> None:
    node = found.setdefault(str(about["node_id"]), {"errors": []})
    if about.get("class_type"):
        node["class_type"] = about["class_type"]
    told = {"message": message, **{name: about[name] for name in names if about.get(name)}}
    node["errors"].append({name: _shown(value) for name, value in told.items()})


def _shown(value: Any) -> Any:
    """Every text in it without absolute paths of this machine, and with the agent's options for the engine's."""
    if isinstance(value, str):
        return spelled(neutral(value))
    if isinstance(value, (list, tuple)):
        return [_shown(each) for each in value]
    if isinstance(value, dict):
        return {_shown(name): _shown(each) for name, each in value.items()}
    return value
