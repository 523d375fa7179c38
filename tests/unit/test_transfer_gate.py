"""Whose turn it is, of all downloads together."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from settee.base.threads import Stopped
from settee.models.transfer.gate import Gate, Ticket
from tests.support.file_server import Ask, FileServer, Reply
from tests.support.transferring import SMALL, fetch, noise
from tests.support.waiting import eventually

DATA = noise(2_500_000)


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
    gate = Gate(2)
    lane = gate.lane()
    one, two, three = lane.ticket(), lane.ticket(), lane.ticket()
    first = one.take()
    two.take()
    waiting = Waiting(three)
    eventually(lambda: gate._waiting)
    assert not waiting.has_it
    one.give()
    assert waiting.join() is first
    two.give()
    three.give()
    three.give()  # twice is once
    assert gate._free == 2


def test_the_urgent_one_goes_first() -> None:
    gate = Gate(1)
    holder = gate.lane().ticket()
    holder.take()
    early = Waiting(gate.lane().ticket())
    eventually(lambda: len(gate._waiting) == 1)
    late_lane = gate.lane()
    late = Waiting(late_lane.ticket())
    eventually(lambda: len(gate._waiting) == 2)
    late_lane.urgent = True
    holder.give()
    late.join()
    assert not early.has_it
    late.ticket.give()
    early.join()


def test_others_hand_theirs_back_and_go_on_after_it() -> None:
    gate = Gate(4)
    calm = gate.lane().ticket()
    calm.take()
    urgent_lane = gate.lane(urgent=True)
    urgent = urgent_lane.ticket()
    urgent.take()
    gone_on = threading.Event()

    def breathe() -> None:
        calm.breathe()
        gone_on.set()

    thread = threading.Thread(target=breathe)
    thread.start()
    eventually(lambda: calm.buffer is None)
    # There is room, but while a job waits for the urgent one it has the line for itself.
    assert not gone_on.wait(0.05)
    urgent_lane.urgent = False
    assert gone_on.wait(5)
    thread.join()
    assert calm.buffer is not None


def test_an_urgent_one_that_ends_lets_them_go_on() -> None:
    gate = Gate(4)
    urgent = gate.lane(urgent=True).ticket()
    urgent.take()
    calm = Waiting(gate.lane().ticket())
    eventually(lambda: gate._waiting)
    assert not calm.has_it
    urgent.give()
    calm.join()


def test_ranges_of_two_downloads_take_turns() -> None:
    gate = Gate(1)
    one, two = gate.lane().ticket(), gate.lane().ticket()
    one.take()
    assert one.breathe(between_ranges=True) is one.buffer
    other = Waiting(two)
    eventually(lambda: gate._waiting)
    # Between two chunks of a range it keeps its turn.
    assert one.breathe() is one.buffer
    again = threading.Thread(target=one.breathe, kwargs={"between_ranges": True})
    again.start()
    other.join()
    assert one.buffer is None
    two.give()
    again.join(5)
    assert one.buffer is not None


def test_a_ticket_that_is_cancelled_while_it_waits() -> None:
    gate = Gate(1)
    holder = gate.lane().ticket()
    holder.take()
    waiting = Waiting(gate.lane(urgent=True).ticket())
    eventually(lambda: gate.rush)
    waiting.ticket.cancel()
    assert waiting.join() == "stopped"
    assert not gate.rush
    with pytest.raises(Stopped):
        waiting.ticket.take()
    holder.give()
    assert gate._free == 1


@pytest.fixture
def server() -> Iterator[FileServer]:
    with FileServer(DATA).running() as running:
        yield running


def test_no_more_requests_at_once_than_allowed(server: FileServer, tmp_path: Path) -> None:
    gate = Gate(2)
    server.rule = lambda ask, reply: setattr(reply, "rate", 20_000_000.0)
    threads = [
        threading.Thread(target=fetch, args=(server.url, tmp_path / str(i)), kwargs={"lane": gate.lane()})
        for i in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert all((tmp_path / str(i)).read_bytes() == DATA for i in range(3))
    ranges = [ask for ask in server.asked if ask.span]
    assert len(ranges) == 30
    # Questions for size and validator come on top.
    assert server.most_active <= 2 + 3


def test_the_file_that_a_job_waits_for(server: FileServer, tmp_path: Path) -> None:
    """Two calm downloads are under way when an urgent one begins: it gets the line, then they go on."""
    gate = Gate(4)
    limits = replace(SMALL, stall_s=20)
    server.rule = lambda ask, reply: setattr(reply, "rate", 1_000_000.0 if "calm" in ask.path else 8_000_000.0)
    order: list[str] = []

    def run(name: str, urgent: bool) -> None:
        fetch(f"{server.url}?{name}", tmp_path / name, lane=gate.lane(urgent=urgent), limits=limits)
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
        thread.join(20)
    assert order[0] == "urgent"
    assert sorted(order) == ["calm0", "calm1", "urgent"]
    assert all((tmp_path / name).read_bytes() == DATA for name in order)


def test_a_body_that_is_overtaken_is_closed_and_asked_for_again_from_where_it_was(
    server: FileServer, tmp_path: Path
) -> None:
    """Left open, it would go on taking its share of a slow line until the buffers in between are full."""
    gate = Gate(4)
    limits = replace(SMALL, range_bytes=len(DATA), stall_s=20)
    server.rule = lambda ask, reply: setattr(reply, "rate", 800_000.0 if "calm" in ask.path else 5_000_000.0)
    thread = threading.Thread(
        target=fetch, args=(f"{server.url}?calm", tmp_path / "calm"), kwargs={"lane": gate.lane(), "limits": limits}
    )
    thread.start()
    eventually(lambda: [ask for ask in server.gets if ask.sent > 100_000])
    fetch(f"{server.url}?urgent", tmp_path / "urgent", lane=gate.lane(urgent=True), limits=limits)
    thread.join(20)
    first, second = (ask for ask in server.gets if "calm" in ask.path and ask.span != (0, 0))
    assert first.span is not None
    assert second.span is not None
    assert first.sent < len(DATA)
    assert first.span[0] < second.span[0] <= first.sent
    assert (tmp_path / "calm").read_bytes() == (tmp_path / "urgent").read_bytes() == DATA


def test_a_body_that_is_overtaken_before_its_first_byte_is_closed_too(server: FileServer, tmp_path: Path) -> None:
    """The urgent one wants the line while this one's request is on its way."""
    gate = Gate(4)
    limits = replace(SMALL, range_bytes=len(DATA), stall_s=20)
    urgent = gate.lane(urgent=True).ticket()
    begun = threading.Event()

    def rule(ask: Ask, reply: Reply) -> None:
        if ask.method == "GET" and ask.span == (0, len(DATA) - 1) and not begun.is_set():
            begun.set()
            urgent.take()
            reply.rate = 1_000_000.0

    server.rule = rule
    thread = threading.Thread(
        target=fetch, args=(f"{server.url}?calm", tmp_path / "calm"), kwargs={"lane": gate.lane(), "limits": limits}
    )
    thread.start()
    assert begun.wait(10)
    first = next(ask for ask in server.gets if ask.span == (0, len(DATA) - 1))
    eventually(lambda: server.active == 0, what="the end of the body that nobody waits for")
    assert first.sent < len(DATA)
    urgent.give()
    thread.join(20)
    assert (tmp_path / "calm").read_bytes() == DATA
