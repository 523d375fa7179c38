"""Ctrl-C at moments that no signal can be timed to."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from settee.client import run_one
from settee.client.arguments import Environment
from settee.client.client_errors import JobStopped
from settee.client.endpoint import Job
from settee.client.targets import Answer, Status


def test_ctrl_c_between_sending_a_job_and_waiting_for_it_cancels_it(monkeypatch: pytest.MonkeyPatch) -> None:
    canceled: list[str] = []
    target = SimpleNamespace(cancel=canceled.append, keeps=lambda job_id: True)
    endpoint: Any = SimpleNamespace(target=target, environment=Environment())

    def interrupted(*_: Any, **__: Any) -> Any:
        raise KeyboardInterrupt

    monkeypatch.setattr("settee.client.run_one.Display.on_stderr", interrupted)
    arguments: Any = SimpleNamespace(quiet=True, timeout=1.0)
    with pytest.raises(JobStopped, match="job j1 asked to end"):
        run_one._finish(Job(endpoint, Answer("j1", Status.IN_PROGRESS)), arguments)
    assert canceled == ["j1"]
