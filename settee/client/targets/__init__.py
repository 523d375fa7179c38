"""Where jobs can be sent, and what they answer. One call is one question: :mod:`settee.client.follow` asks again."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any, Protocol

from settee.comfyui.node_registry import NodeRegistry


class Status(str, Enum):
    """RunPod's names for the states of a job, used for every target."""

    IN_QUEUE = "IN_QUEUE"
    IN_PROGRESS = "IN_PROGRESS"
    COMPLETED = "COMPLETED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"
    TIMED_OUT = "TIMED_OUT"

    @property
    def is_terminal(self) -> bool:
        return self not in (Status.IN_QUEUE, Status.IN_PROGRESS)


@dataclass(frozen=True)
class Answer:
    """A job's present state."""

    job_id: str
    status: Status
    #: Of a COMPLETED job: the worker's result (docs/api.md), opened when it came sealed.
    output: dict[str, Any] | None = None
    #: Of one that ended otherwise: the line for a person, and settee's code and details where they came.
    error: str | None = None
    code: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    #: Of one under way: ``phase, percent, node, node_type, step, max, message``, as far as they are known.
    progress: dict[str, Any] = field(default_factory=dict)
    #: How many are ahead of it, where the target reports it.
    queue_position: int | None = None
    #: RunPod's ``delayTime`` and ``executionTime``, milliseconds.
    timings: dict[str, float] = field(default_factory=dict)


class Target(Protocol):
    """A place that runs jobs. Every method raises NetworkError (AuthError) when it cannot be asked, and may be called
    from any thread. Payloads are ``{"input": {…}}`` as in docs/api.md."""

    #: For a person: ``endpoint abc123``, ``http://127.0.0.1:8000``, ``ComfyUI at http://…``.
    name: str
    #: The largest request it takes, bytes of JSON; None when there is no limit.
    request_cap: int | None

    def submit(self, payload: dict[str, Any]) -> Answer:
        """Begin a job. With a target that answers when the job has ended (/runsync), it may be over already."""

    def status(self, job_id: str) -> Answer: ...

    def cancel(self, job_id: str) -> None:
        """Ask for a job's end, which :meth:`status` shows. Raises UsageError where the target cannot cancel."""

    def keeps(self, job_id: str) -> bool:
        """Return True if the job can be asked for and canceled by its id later."""

    def health(self) -> dict[str, Any]:
        """Return the target's own health report, as it is."""

    def node_registry(self) -> NodeRegistry | None:
        """ComfyUI's node registry, where it can be asked."""

    def close(self) -> None: ...
