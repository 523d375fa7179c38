"""Requests that nobody waits for any more."""

from __future__ import annotations

import threading

import pytest

from settee.delivery import lanes
from tests.support.waiting import eventually


def test_a_request_that_was_given_up_is_known_to_hold_the_end_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lanes, "GRACE_S", 0.1)
    answered, begun = threading.Event(), threading.Event()

    def request() -> None:
        begun.set()
        answered.wait(20)

    running = lanes.Lanes(2, lambda: None, lambda: None)
    try:
        running.submit(request)
        assert begun.wait(10)
        running.halt()
        running.close()
        assert lanes.are_stuck()
    finally:
        answered.set()
    eventually(lambda: not lanes.are_stuck())
