"""The stub worker under the real SDK against a control plane, and jobs for it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tests.support.control_plane import ControlPlane
from tests.support.worker import WorkerProcess


def does(what: str, **inputs: Any) -> dict[str, Any]:
    """The input of a job whose one node does this (see stub_engine)."""
    return {"workflow": {"1": {"class_type": what, "inputs": inputs}}}


@contextmanager
def working(
    plane: ControlPlane | None = None, *arguments: str, **settings: str
) -> Iterator[tuple[ControlPlane, WorkerProcess]]:
    """A control plane and a worker with these settings; a wait in vain shows the worker's log."""
    with plane or ControlPlane() as runpod, WorkerProcess(*arguments, env={**runpod.env(), **settings}) as worker:
        try:
            yield runpod, worker
        except TimeoutError as error:
            raise AssertionError(f"{error}\n--- worker ---\n{worker.log}") from error
