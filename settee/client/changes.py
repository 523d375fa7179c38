"""What the client changes in a workflow before it sends it: shown first, then applied to a copy."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from settee.comfyui.literals import Place, with_values
from settee.comfyui.workflow import Workflow


@dataclass(frozen=True)
class Change:
    """One input of one node gets another value."""

    node_id: str
    input: str
    value: Any
    #: What asked for it: ``--prompt``, ``--img``, ``seed``.
    why: str


@dataclass(frozen=True)
class InputFile:
    """A file of the caller's that goes with the job, under a name that its loader has been given."""

    #: On the worker. No two files of one job share one.
    name: str
    path: Path
    #: ``image``, ``mask``, ``video`` or ``audio``.
    kind: str


def applied(workflow: Workflow, changes: Iterable[Change]) -> Workflow:
    """A copy with these changes; of two for the same input, the later one counts."""
    return with_values(workflow, {Place(change.node_id, change.input): change.value for change in changes})
