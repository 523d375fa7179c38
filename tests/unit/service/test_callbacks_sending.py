"""Callbacks on their way out, to a real receiver that fails in every way."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import InvalidRequest, JobCanceled
from settee.base.job import Status
from settee.doors.agent.reporting import failure
from settee.service.store import Callback, Store
from settee.service.webhooks import Answer
from tests.support.http_double import Reply
from tests.support.outbox import Make, ReportedJob, begun, stored, succeed, tries
from tests.support.receiver import CUT, OK, SILENT, Call, Receiver, then
from tests.support.waiting import eventually

ACTIVITY = {"running": 1, "pending": 0, "timestamp": "2026-05-04T03:02:53.622Z"}


def late_of(job: ReportedJob, receiver: Receiver) -> Callback:
    """A callback of a job that has ended, or is about to."""
    return Callback(attempt_id=job.attempt.id, job_id=job.attempt.job_id, url=receiver.url(), key="late", body=b"{}")


class TestTerminal:
    @pytest.mark.parametrize(
        "trouble",
        [Reply(500), Reply(503), Reply(429), Reply(408), CUT, SILENT, Reply(delay_s=3)],
        ids=["500", "503", "429", "408", "cut", "silent", "slow"],
    )
    def test_retried_with_the_same_key_and_bytes(self, make: Make, receiver: Receiver, trouble: Reply) -> None:
        receiver.rule = then(trouble, trouble, OK)
        outbox = make(timeout_s=0.2)
        succeed(begun(outbox, {"completion": receiver.url()}))
        receiver.wait_for_key("job-SUCCESS")
        assert len(receiver.calls) == 3
        assert len({(call.key, call.raw) for call in receiver.calls}) == 1
        eventually(lambda: not outbox.pending)
        assert stored(outbox) == []

    def test_a_receiver_that_is_down_for_long(self, make: Make, receiver: Receiver) -> None:
        outbox = make()
        receiver.down()
        reporter = begun(outbox, receiver.urls())
        reporter.state(Status.PREPARING)
        succeed(reporter)
        eventually(lambda: tries(outbox)[0] > 8)  # more than any status gets
        receiver.up()
        receiver.wait_for_key("job-SUCCESS")
        assert receiver.keys == ["job-SUCCESS"]

    @pytest.mark.parametrize("status", [301, 400, 401, 403, 404, 409, 410, 422])
    def test_refused_for_good(self, make: Make, receiver: Receiver, status: int) -> None:
        receiver.rule = lambda call: Reply(status)
        outbox = make()
        succeed(begun(outbox, {"completion": receiver.url()}))
        eventually(lambda: not outbox.pending and stored(outbox, is_refused=True))
        assert len(receiver.calls) == 1
        assert stored(outbox) == []

    def test_a_refused_one_can_be_sent_again(self, make: Make, receiver: Receiver) -> None:
        """By another process, whose change is noticed; and to another address."""
        receiver.rule = lambda call: Reply(404) if call.path.endswith("completion") else OK
        outbox = make(look_s=0.05)
        succeed(begun(outbox, {"completion": receiver.url("completion")}))
        (kept,) = eventually(lambda: stored(outbox, is_refused=True))
        other = Store(outbox._store.path.parent)
        other.open(exclusive=False)
        other.retry(kept.id, receiver.url("moved"))
        assert receiver.wait_for_key("job-SUCCESS").raw == receiver.calls[0].raw
        eventually(lambda: not outbox.pending and not stored(outbox))
        other.close()
        assert [call.path.rpartition("/")[2] for call in receiver.calls] == ["completion", "moved"]

    def test_one_that_waits_is_sent_at_once_on_demand(self, make: Make, receiver: Receiver) -> None:
        receiver.rule = then(Reply(503), OK)
        outbox = make(retry_backoff_s=600, longest_pause_s=600, look_s=0.05)
        succeed(begun(outbox, {"completion": receiver.url()}))
        eventually(lambda: tries(outbox) == [1])
        time.sleep(0.2)  # nothing else of this process's own wakes it
        assert len(receiver.calls) == 1
        other = Store(outbox._store.path.parent)
        other.open(exclusive=False)
        other.retry(stored(outbox)[0].id)
        receiver.wait_for_key("job-SUCCESS")
        other.close()

    def test_one_that_is_dropped_is_not_sent(self, make: Make, receiver: Receiver) -> None:
        receiver.down()
        outbox = make(look_s=0.05)
        succeed(begun(outbox, {"completion": receiver.url()}))
        eventually(lambda: all(tries(outbox)))
        other = Store(outbox._store.path.parent)
        other.open(exclusive=False)
        other.remove([each.id for each in stored(outbox)])
        other.close()
        eventually(lambda: not outbox.pending)
        receiver.up()
        succeed(begun(outbox, {"completion": receiver.url()}))
        receiver.wait_for_key("job-SUCCESS")
        assert len(receiver.calls) == 1

    def test_retry_after_is_respected(self, make: Make, receiver: Receiver) -> None:
        receiver.rule = then(Reply(429, {"Retry-After": "1"}), OK)
        outbox = make()
        succeed(begun(outbox, {"completion": receiver.url()}))
        receiver.wait_for_key("job-SUCCESS")
        assert receiver.calls[1].at - receiver.calls[0].at >= 1

    def test_pauses_grow_to_a_limit(self, make: Make) -> None:
        moments: list[float] = []

        def sender(post: Callback, timeout_s: float) -> Answer:
            moments.append(time.monotonic())
            return Answer(why="down") if len(moments) < 7 else Answer(200)

        outbox = make(sender=sender, rand=lambda: 1.0, retry_backoff_s=0.02, longest_pause_s=0.08)
        succeed(begun(outbox, {"completion": "http://host/"}))
        eventually(lambda: len(moments) == 7)
        pauses = [after - before for before, after in itertools.pairwise(moments)]
        for pause, least in zip(pauses, (0.02, 0.04, 0.08, 0.08, 0.08, 0.08), strict=True):
            assert pause >= least

    def test_no_backoff_is_still_a_pause(self, make: Make) -> None:
        attempts: list[float] = []

        def sender(post: Callback, timeout_s: float) -> Answer:
            attempts.append(time.monotonic())
            return Answer(why="down") if len(attempts) < 5 else Answer(200)

        outbox = make(sender=sender, retry_backoff_s=0, longest_pause_s=300, rand=lambda: 1.0)
        succeed(begun(outbox, {"completion": "http://host/"}))
        eventually(lambda: not outbox.pending)
        assert attempts[-1] - attempts[0] >= 0.01 * (1 + 2 + 4 + 8)

    def test_it_survives_a_restart(self, make: Make, receiver: Receiver) -> None:
        outbox = make()
        receiver.down()
        succeed(begun(outbox, {"completion": receiver.url()}, "a"))
        begun(outbox, {"failure": receiver.url()}, "b").failed(JobCanceled())
        eventually(lambda: all(tries(outbox)))
        outbox.close()
        receiver.up()
        again = make()
        receiver.wait_for_key("a-SUCCESS")
        receiver.wait_for_key("b-CANCELED")
        eventually(lambda: not again.pending)
        assert sorted(receiver.keys) == ["a-SUCCESS", "b-CANCELED"]

    def test_one_that_hangs_holds_up_a_new_one_for_one_request(self, make: Make, receiver: Receiver) -> None:
        with Receiver(lambda call: SILENT) as silent:
            outbox = make(timeout_s=0.3)
            for number in range(5):
                succeed(begun(outbox, {"completion": silent.url()}, f"old-{number}"))
            eventually(lambda: all(tries(outbox)))
            put = time.monotonic()
            succeed(begun(outbox, {"completion": receiver.url()}, "new"))
            assert receiver.wait_for_key("new-SUCCESS").at - put < 0.3 + 0.9  # not 5 × 0.3

    def test_no_addresses_no_callbacks(self, make: Make, tmp_path: Path) -> None:
        outbox = make()
        reporter = begun(outbox, {})
        assert [each.job_id for each in outbox._store.running()] == ["job"]
        reporter.state(Status.RUNNING)
        succeed(reporter)
        assert outbox.pending == 0
        assert not outbox._store.running()

    def test_where_only_statuses_go_the_last_one_must_arrive(self, make: Make, receiver: Receiver) -> None:
        receiver.rule = lambda call: Reply(503) if call.number < 6 else OK
        reporter = begun(make(), {"status": receiver.url()})
        succeed(reporter)
        assert receiver.wait_for_key("job-SUCCESS-1").body["state"] == "SUCCESS"
        assert len(receiver.calls) == 7


class TestStatuses:
    def test_retried_so_often_and_no_more(self, make: Make, receiver: Receiver) -> None:
        receiver.rule = lambda call: Reply(500) if call.state == "PREPARING" else OK
        reporter = begun(make(max_retries=2), receiver.urls())
        reporter.state(Status.PREPARING)
        reporter.state(Status.RUNNING)
        receiver.wait_for_key("job-RUNNING-2")  # its only one
        assert [call.key for call in receiver.calls] == ["job-PREPARING-1"] * 3 + ["job-RUNNING-2"]
        assert len({call.raw for call in receiver.calls}) == 2

    def test_a_refused_one_is_not_tried_again(self, make: Make, receiver: Receiver) -> None:
        receiver.rule = lambda call: Reply(404) if call.state == "PREPARING" else OK
        reporter = begun(make(), receiver.urls())
        reporter.state(Status.PREPARING)
        reporter.state(Status.RUNNING)
        receiver.wait_for_key("job-RUNNING-2")
        assert len(receiver.calls) == 2

    def test_a_newer_heartbeat_replaces_one_that_waits(self, make: Make, receiver: Receiver) -> None:
        first = threading.Event()

        def rule(call: Call) -> Reply:
            first.wait(10)
            return OK

        receiver.rule = rule
        reporter = begun(make(timeout_s=10), receiver.urls(), heartbeat_s=0.005)
        reporter.state(Status.PREPARING)
        eventually(lambda: receiver.calls)
        eventually(lambda: reporter.seq >= 10)
        reporter.state(Status.RUNNING)
        seq = reporter.seq
        eventually(lambda: reporter.seq >= seq + 10)
        first.set()
        reporter.failed(JobCanceled())
        receiver.wait_for_key("job-CANCELED")
        # One in flight, and the newest of each state.
        assert receiver.states == ["PREPARING", "PREPARING", "RUNNING", "CANCELED", "CANCELED"]
        seqs = [call.body["heartbeat_seq"] for call in receiver.delivered[:-1]]
        assert seqs == sorted(seqs)
        assert seqs[1] >= 10

    def test_a_slow_receiver_delays_the_end_by_one_request(self, make: Make, receiver: Receiver) -> None:
        receiver.rule = lambda call: SILENT if "/status" in call.path else OK
        reporter = begun(make(timeout_s=0.4), receiver.urls())
        for state in (Status.QUEUED, Status.PREPARING, Status.MATERIALIZING, Status.RUNNING):
            reporter.state(state)
        eventually(lambda: receiver.calls)
        put = time.monotonic()
        succeed(reporter)
        assert receiver.wait_for_key("job-SUCCESS").at - put < 0.4 + 1.5  # not 4 states × 4 attempts × 0.4
        assert receiver.calls[-1].key == "job-SUCCESS"

    def test_nothing_comes_after_the_end(self, make: Make, receiver: Receiver) -> None:
        receiver.rule = lambda call: Reply(delay_s=0.002)
        outbox = make()
        for number in range(10):
            reporter = begun(outbox, receiver.urls(), f"j{number}", heartbeat_s=0.001)
            for state in (Status.QUEUED, Status.PREPARING, Status.RUNNING):
                reporter.state(state)
            eventually(lambda r=reporter: r.seq > 10)  # type: ignore[misc]
            succeed(reporter)
            reporter.state(Status.UPLOADING)
        receiver.wait_for_key("j9-SUCCESS")
        outbox.close(1)
        for number in range(10):
            own = [call.key for call in receiver.calls if call.body["job_id"] == f"j{number}"]
            assert own[-1] == f"j{number}-SUCCESS"
            assert own.count(f"j{number}-SUCCESS") == 1

    def test_the_outbox_itself_takes_none_after_the_end(self, make: Make, receiver: Receiver) -> None:
        outbox = make()
        reporter = begun(outbox, receiver.urls())
        succeed(reporter)
        late, ending = late_of(reporter, receiver), reporter.log.ending(failure(JobCanceled()))
        outbox.note(Status.RUNNING, late)
        outbox.finish(reporter.attempt, ending, [late])
        outbox.close(5)
        assert [call.key for call in receiver.calls] == ["job-SUCCESS-1", "job-SUCCESS"]

    def test_nor_while_the_end_is_being_stored(
        self, make: Make, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outbox = make()
        reporter, store, end = begun(outbox, receiver.urls()), outbox._store, outbox._store.end
        late = late_of(reporter, receiver)

        def slow(*args: Any, **given: Any) -> Any:
            outbox.note(Status.RUNNING, late)
            return end(*args, **given)

        monkeypatch.setattr(store, "end", slow)
        succeed(reporter)
        outbox.close(5)
        assert [call.key for call in receiver.calls] == ["job-SUCCESS-1", "job-SUCCESS"]

    def test_the_same_state_again_waits_for_the_heartbeat(self, make: Make, receiver: Receiver) -> None:
        reporter = begun(make(), receiver.urls(), heartbeat_s=60)
        for percent in range(50):
            reporter.state(Status.RUNNING, progress={"phase": "running", "percent": float(percent)})
        reporter.failed(JobCanceled())
        receiver.wait_for_key("job-CANCELED")
        assert [call.key for call in receiver.calls] == ["job-RUNNING-1", "job-CANCELED-2", "job-CANCELED"]

    def test_one_that_asks_for_patience_does_not_delay_the_end(self, make: Make, receiver: Receiver) -> None:
        receiver.rule = lambda call: Reply(429, {"Retry-After": "30"}) if "/status" in call.path else OK
        reporter = begun(make(), receiver.urls(), heartbeat_s=0.01)
        reporter.state(Status.RUNNING)
        eventually(lambda: receiver.calls)
        eventually(lambda: reporter.seq > 10)
        assert len(receiver.calls) == 1  # newer heartbeats leave it alone too
        put = time.monotonic()
        succeed(reporter)
        assert receiver.wait_for_key("job-SUCCESS").at - put < 2

    def test_a_newer_heartbeat_ends_the_retries_of_an_older_one(self, make: Make, receiver: Receiver) -> None:
        receiver.rule = lambda call: Reply(500) if call.number == 0 else OK
        reporter = begun(make(retry_backoff_s=30, longest_pause_s=30), receiver.urls(), heartbeat_s=0.05)
        reporter.state(Status.RUNNING)
        eventually(lambda: receiver.delivered)
        assert receiver.delivered[0].body["heartbeat_seq"] > 1

    def test_the_line_is_short_whatever_happens(self, make: Make, receiver: Receiver) -> None:
        receiver.rule = lambda call: SILENT
        reporter = begun(make(timeout_s=10), receiver.urls(), heartbeat_s=60)
        for _ in range(300):
            reporter.state(Status.PREPARING)
            reporter.state(Status.RUNNING)
        assert len(reporter.outbox._lanes["job"].runs[0].statuses) <= 100
        receiver.released.set()

    def test_heartbeats_go_on_without_a_snapshot(self, make: Make, receiver: Receiver) -> None:
        def activity() -> None:
            raise ConnectionError("ComfyUI is away")

        reporter = begun(make(), receiver.urls(), heartbeat_s=0.01, activity=activity)
        reporter.state(Status.RUNNING)
        beat = eventually(lambda: [call for call in receiver.delivered if call.body["heartbeat_seq"] >= 3])[0]
        assert "activity_snapshot" not in beat.body
        reporter.failed(JobCanceled())
        receiver.wait_for_key("job-CANCELED")

    def test_the_activity_is_asked_for(self, make: Make, receiver: Receiver) -> None:
        reporter = begun(make(), receiver.urls(), heartbeat_s=0.01, activity=lambda: dict(ACTIVITY))
        reporter.state(Status.RUNNING)
        eventually(lambda: len(receiver.delivered) > 1)
        reporter.failed(InvalidRequest("no"))
        assert receiver.wait_for_key("job-FAILED").body["last_activity"] == ACTIVITY
        assert "activity_snapshot" not in receiver.calls[0].body
        assert receiver.calls[1].body["activity_snapshot"] == ACTIVITY
