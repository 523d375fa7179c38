"""An outbox of callbacks, the receiver that they go to, and jobs that report through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from settee.doors.agent.callbacks.outbox import Outbox
from settee.doors.agent.callbacks.posting import Poster
from settee.doors.agent.callbacks.reporter import RenderParams, Reporter, Urls
from tests.support.receiver import Receiver

Make = Callable[..., Outbox]


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    """A started outbox; all use one folder, so one at a time."""
    made: list[Outbox] = []

    def make(**given: Any) -> Outbox:
        options = {"timeout_s": 1.0, "retry_backoff_s": 0.01, "longest_pause_s": 0.05, **given}
        outbox = Outbox(tmp_path / "outbox", **{"sender": Poster(), **options})
        made.append(outbox)
        outbox.start()
        return outbox

    yield make
    for outbox in made:
        outbox.close()


def begun(outbox: Outbox, urls: dict[str, str], job_id: str = "job", **given: Any) -> Reporter:
    reporter = Reporter(job_id, "agent", Urls(**urls), outbox, **given)
    reporter.begin()
    return reporter


def succeed(reporter: Reporter) -> None:
    reporter.completed(artifacts=[], params=RenderParams(seed=3))


def files(tmp_path: Path, name: str = "pending") -> list[Path]:
    return sorted((tmp_path / "outbox" / name).glob("*"))
