"""Who downloads next."""

from __future__ import annotations

import threading
from contextlib import ExitStack

import pytest

from settee.base.threads import Stopped
from settee.models import turns as turns_module
from settee.models.turns import Turn, Turns
from tests.support.waiting import eventually


def turn(size: int | None = None, urgent: bool = False) -> Turn:
    return Turn(threading.Event(), size, urgent)


class Taker:
    """Takes a turn in a thread, and holds it until told."""

    def __init__(self, turns: Turns, mine: Turn, order: list[int | None]) -> None:
        self.let_go = threading.Event()
        self._turns, self._turn, self._order = turns, mine, order
        self.was_stopped = False
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            with self._turns.taken(self._turn):
                self._order.append(self._turn.size)
                assert self.let_go.wait(10)
        except Stopped:
            self.was_stopped = True


def test_the_largest_goes_first_once_all_sizes_are_known() -> None:
    turns, order = Turns(at_once=1), list[int | None]()
    with ExitStack() as asking:
        asking.enter_context(turns.asking(turn()))
        takers = [Taker(turns, turn(size), order) for size in (5, 9, 7)]
        eventually(lambda: len(turns._waiting) == 3)
        assert order == []
    for count, taker in zip((1, 2, 3), (takers[1], takers[2], takers[0]), strict=True):
        eventually(lambda count=count: len(order) == count)
        taker.let_go.set()
    for taker in takers:
        taker.thread.join(10)
    assert order == [9, 7, 5]


def test_what_a_job_waits_for_begins_at_once_also_when_all_turns_are_taken() -> None:
    turns, order = Turns(at_once=1), list[int | None]()
    first = Taker(turns, turn(9), order)
    eventually(lambda: order == [9])
    waiting = turn(1)
    second = Taker(turns, waiting, order)
    eventually(lambda: waiting in turns._waiting)
    waiting.urgent = True
    turns.changed()
    eventually(lambda: order == [9, 1])
    for taker in (first, second):
        taker.let_go.set()
        taker.thread.join(10)


def test_who_waits_can_be_stopped() -> None:
    turns, order = Turns(at_once=1), list[int | None]()
    first = Taker(turns, turn(9), order)
    eventually(lambda: order == [9])
    waiting = turn(1)
    second = Taker(turns, waiting, order)
    waiting.stop.set()
    turns.changed()
    second.thread.join(10)
    assert second.was_stopped
    first.let_go.set()
    first.thread.join(10)
    with pytest.raises(Stopped), turns.taken(waiting):
        pass


def test_a_source_that_does_not_answer_holds_nobody_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(turns_module, "_PATIENCE_S", 0.1)
    turns, order = Turns(at_once=1), list[int | None]()
    with turns.asking(turn()):
        taker = Taker(turns, turn(5), order)
        eventually(lambda: order == [5])
        taker.let_go.set()
        taker.thread.join(10)
