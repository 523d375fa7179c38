"""Which file is downloaded next, and which stream may send a request."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import pytest

from settee.base.threads import Stopped
from settee.models.transfer import scheduler as scheduler_module
from settee.models.transfer.scheduler import Lane, Scheduler, Ticket
from tests.support.file_server import FileServer
from tests.support.http_double import Ask, Reply
from tests.support.transferring import SMALL, fetch, noise
from tests.support.waiting import eventually

DATA = noise(2_500_000)


# --- files -------------------------------------------------------------------------------------------------


class Taker:
    """Waits for a file's turn in a thread, and holds it until :attr:`let_go`."""

    def __init__(self, scheduler: Scheduler, lane: Lane, order: list[int | None]) -> None:
        self.let_go = threading.Event()
        self._scheduler, self._lane, self._order = scheduler, lane, order
        self.was_stopped = False
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        try:
            with self._scheduler.running(self._lane):
                self._order.append(self._lane.size)
                assert self.let_go.wait(10)
        except Stopped:
            self.was_stopped = True


def test_the_largest_goes_first_once_all_sizes_are_known() -> None:
    scheduler, order = Scheduler(8, max_files=1), list[int | None]()
    with ExitStack() as asking:
        asking.enter_context(scheduler.asking(scheduler.lane()))
        takers = [Taker(scheduler, scheduler.lane(size=size), order) for size in (5, 9, 7)]
        eventually(lambda: len(scheduler._queued) == 3)
        assert order == []
    for count, taker in zip((1, 2, 3), (takers[1], takers[2], takers[0]), strict=True):
        eventually(lambda count=count: len(order) == count)
        taker.let_go.set()
    for taker in takers:
        taker.thread.join(10)
    assert order == [9, 7, 5]


def test_a_file_that_a_job_waits_for_begins_at_once_also_when_others_download() -> None:
    scheduler, order = Scheduler(8, max_files=1), list[int | None]()
    first = Taker(scheduler, scheduler.lane(size=9), order)
    eventually(lambda: order == [9])
    waiting = scheduler.lane(size=1)
    second = Taker(scheduler, waiting, order)
    eventually(lambda: waiting in scheduler._queued)
    waiting.urgent = True
    eventually(lambda: order == [9, 1])
    for taker in (first, second):
        taker.let_go.set()
        taker.thread.join(10)


def test_a_waiting_file_can_be_stopped() -> None:
    scheduler, order = Scheduler(8, max_files=1), list[int | None]()
    first = Taker(scheduler, scheduler.lane(size=9), order)
    eventually(lambda: order == [9])
    waiting = scheduler.lane(size=1)
    second = Taker(scheduler, waiting, order)
    waiting.stop.set()
    scheduler.update()
    second.thread.join(10)
    assert second.was_stopped
    first.let_go.set()
    first.thread.join(10)
    with pytest.raises(Stopped), scheduler.running(waiting):
        pass


def test_a_source_that_does_not_answer_holds_nothing_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scheduler_module, "_ASKING_S", 0.1)
    scheduler, order = Scheduler(8, max_files=1), list[int | None]()
    with scheduler.asking(scheduler.lane()):
        taker = Taker(scheduler, scheduler.lane(size=5), order)
        eventually(lambda: order == [5])
        taker.let_go.set()
        taker.thread.join(10)


# --- requests ----------------------------------------------------------------------------------------------


class Waiting:
    """A ticket's turn, waited for in a thread."""

    def __init__(self, ticket: Ticket) -> None:
        self.ticket = ticket
        self.outcome: list[object] = []
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self) -> None:
        try:
            self.outcome.append(self.ticket.take())
        except Stopped:
            self.outcome.append("stopped")

    @property
    def has_it(self) -> bool:
        return self.ticket.buffer is not None

    def join(self) -> object:
        self._thread.join(5)
        return self.outcome[0]


def test_a_limit_and_buffers_that_are_used_again() -> None:
    scheduler = Scheduler(2)
    lane = scheduler.lane()
    one, two, three = lane.ticket(), lane.ticket(), lane.ticket()
    first = one.take()
    two.take()
    waiting = Waiting(three)
    eventually(lambda: scheduler.waiting)
    assert not waiting.has_it
    one.give()
    assert waiting.join() is first
    two.give()
    three.give()
    three.give()  # twice is once
    assert scheduler.free == 2


def test_the_urgent_one_goes_first() -> None:
    scheduler = Scheduler(1)
    holder = scheduler.lane().ticket()
    holder.take()
    early = Waiting(scheduler.lane().ticket())
    eventually(lambda: len(scheduler.waiting) == 1)
    late_lane = scheduler.lane()
    late = Waiting(late_lane.ticket())
    eventually(lambda: len(scheduler.waiting) == 2)
    late_lane.urgent = True
    holder.give()
    late.join()
    assert not early.has_it
    late.ticket.give()
    early.join()


def test_others_hand_theirs_back_and_go_on_after_it() -> None:
    scheduler = Scheduler(4)
    calm = scheduler.lane().ticket()
    calm.take()
    urgent_lane = scheduler.lane(urgent=True)
    urgent = urgent_lane.ticket()
    urgent.take()
    gone_on = threading.Event()

    def go_on() -> None:
        calm.yield_turn()
        gone_on.set()

    thread = threading.Thread(target=go_on)
    thread.start()
    eventually(lambda: calm.buffer is None)
    # There is room, but while a job waits for the urgent one it has the line for itself.
    assert not gone_on.wait(0.05)
    urgent_lane.urgent = False
    assert gone_on.wait(5)
    thread.join()
    assert calm.buffer is not None


def test_an_urgent_one_that_ends_lets_them_go_on() -> None:
    scheduler = Scheduler(4)
    urgent = scheduler.lane(urgent=True).ticket()
    urgent.take()
    calm = Waiting(scheduler.lane().ticket())
    eventually(lambda: scheduler.waiting)
    assert not calm.has_it
    urgent.give()
    calm.join()


def test_ranges_of_two_downloads_take_turns() -> None:
    scheduler = Scheduler(1)
    one, two = scheduler.lane().ticket(), scheduler.lane().ticket()
    one.take()
    assert one.yield_turn(between_ranges=True) is one.buffer
    other = Waiting(two)
    eventually(lambda: scheduler.waiting)
    # Between two chunks of a range it keeps its turn.
    assert one.yield_turn() is one.buffer
    again = threading.Thread(target=one.yield_turn, kwargs={"between_ranges": True})
    again.start()
    other.join()
    assert one.buffer is None
    two.give()
    again.join(5)
    assert one.buffer is not None


def test_a_ticket_that_is_cancelled_while_it_waits() -> None:
    scheduler = Scheduler(1)
    holder = scheduler.lane().ticket()
    holder.take()
    waiting = Waiting(scheduler.lane(urgent=True).ticket())
    eventually(lambda: scheduler.has_urgent)
    waiting.ticket.cancel()
    assert waiting.join() == "stopped"
    assert not scheduler.has_urgent
    with pytest.raises(Stopped):
        waiting.ticket.take()
    holder.give()
    assert scheduler.free == 1


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(DATA).running() as running:
        yield running


def test_no_more_requests_at_once_than_allowed(server: FileServer, tmp_path: Path) -> None:
    scheduler = Scheduler(2)
    server.rule = lambda ask, reply: setattr(reply, "rate", 20_000_000.0)
    threads = [
        threading.Thread(target=fetch, args=(server.url, tmp_path / str(i)), kwargs={"lane": scheduler.lane()})
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert all((tmp_path / str(i)).read_bytes() == DATA for i in range(3))
    ranges = [ask for ask in server.asked if ask.span]
    assert len(ranges) == 30
    # Questions for size and validator come on top.
    assert server.most_active <= 2 + 3


def test_the_file_that_a_job_waits_for(server: FileServer, tmp_path: Path) -> None:
    """Two calm downloads are under way when an urgent one begins: it gets the line, then they go on."""
    scheduler = Scheduler(4)
    server.rule = lambda ask, reply: setattr(reply, "rate", 1_000_000.0 if "calm" in ask.path else 8_000_000.0)
    order: list[str] = []

    def run(name: str, urgent: bool) -> None:
        fetch(f"{server.url}?{name}", tmp_path / name, lane=scheduler.lane(urgent=urgent))
        order.append(name)

    calm = [threading.Thread(target=run, args=(f"calm{i}", False)) for i in range(2)]
    for thread in calm:
        thread.start()
    eventually(lambda: len([ask for ask in server.asked if ask.sent]) >= 4)
    run("urgent", True)
    asked = [ask for ask in server.asked if ask.span]
    first = next(i for i, ask in enumerate(asked) if "urgent" in ask.path)
    last = max(i for i, ask in enumerate(asked) if "urgent" in ask.path)
    # Nobody else asked for anything in between, but for who was about to.
    assert len([ask for ask in asked[first : last + 1] if "calm" in ask.path]) <= 4
    for thread in calm:
        thread.join(60)
    assert order[0] == "urgent"
    assert sorted(order) == ["calm0", "calm1", "urgent"]
    assert all((tmp_path / name).read_bytes() == DATA for name in order)


def test_a_body_that_is_overtaken_is_closed_and_asked_for_again_from_where_it_was(
    server: FileServer, tmp_path: Path
) -> None:
    """Left open, it would go on taking its share of a slow line until the buffers in between are full."""
    scheduler = Scheduler(4)
    limits = replace(SMALL, range_bytes=len(DATA))
    server.rule = lambda ask, reply: setattr(reply, "rate", 800_000.0 if "calm" in ask.path else 5_000_000.0)
    thread = threading.Thread(
        target=fetch,
        args=(f"{server.url}?calm", tmp_path / "calm"),
        kwargs={"lane": scheduler.lane(), "limits": limits},
    )
    thread.start()
    eventually(lambda: [ask for ask in server.gets if ask.sent > 100_000])
    fetch(f"{server.url}?urgent", tmp_path / "urgent", lane=scheduler.lane(urgent=True), limits=limits)
    thread.join(60)
    first, second = (ask for ask in server.gets if "calm" in ask.path and ask.span != (0, 0))
    assert first.span is not None
    assert second.span is not None
    assert first.sent < len(DATA)
    assert first.span[0] < second.span[0] <= first.sent
    assert (tmp_path / "calm").read_bytes() == (tmp_path / "urgent").read_bytes() == DATA


def test_a_body_that_is_overtaken_before_its_first_byte_is_closed_too(server: FileServer, tmp_path: Path) -> None:
    """The urgent one wants the line while this one's request is on its way."""
    scheduler = Scheduler(4)
    limits = replace(SMALL, range_bytes=len(DATA))
    urgent = scheduler.lane(urgent=True).ticket()
    begun = threading.Event()

    def rule(ask: Ask, reply: Reply) -> None:
        if ask.method == "GET" and ask.span == (0, len(DATA) - 1) and not begun.is_set():
            begun.set()
            urgent.take()
            reply.rate = 1_000_000.0

    server.rule = rule
    thread = threading.Thread(
        target=fetch,
        args=(f"{server.url}?calm", tmp_path / "calm"),
        kwargs={"lane": scheduler.lane(), "limits": limits},
    )
    thread.start()
    assert begun.wait(10)
    first = next(ask for ask in server.gets if ask.span == (0, len(DATA) - 1))
    eventually(lambda: server.active == 0, what="the end of the body that nobody waits for")
    assert first.sent < len(DATA)
    urgent.give()
    thread.join(60)
    assert (tmp_path / "calm").read_bytes() == DATA
