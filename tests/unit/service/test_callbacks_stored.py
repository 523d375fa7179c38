"""Callbacks in the store: what is in it, when, and what an agent that comes after makes of it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import ConfigError, StagingError
from settee.base.job import Status
from settee.doors.agent.intake import report_interrupted
from settee.service import timestamps
from settee.service.callbacks import Outbox
from settee.service.store import Attempt, Callback, Store
from settee.service.webhooks import Answer
from tests.support.http_double import Reply
from tests.support.outbox import Make, begun, stored, succeed
from tests.support.receiver import OK, Receiver, then
from tests.support.waiting import eventually


def fill(store: Store) -> None:
    """Leave no page for a row of any size."""
    assert store._db is not None
    (pages,) = store._db.execute("PRAGMA page_count").fetchone()
    store._db.execute(f"PRAGMA max_page_count={pages}")


def make_room(store: Store) -> None:
    assert store._db is not None
    store._db.execute("PRAGMA max_page_count=1000000")


#: Larger than what the pages of a small file have left.
LARGE = "x" * 100_000


class TestDisk:
    def test_it_is_there_before_the_first_try(self, make: Make) -> None:
        seen: list[Any] = []

        def sender(post: Callback, timeout_s: float) -> Answer:
            seen.append([each.key for each in stored(outbox)])
            seen.append(outbox._store.running())
            return Answer(200)

        outbox = make(sender=sender)
        succeed(begun(outbox, {"completion": "http://host/"}))
        eventually(lambda: not outbox.pending)
        assert seen == [["job-SUCCESS"], []]
        assert stored(outbox) == []

    def test_the_slot_may_be_free_before_it_is_sent(self, make: Make) -> None:
        """What ends a job is stored, then the slot is free, then its dispatcher learns of it."""
        order: list[str] = []

        def sender(post: Callback, timeout_s: float) -> Answer:
            order.append("sent")
            return Answer(200)

        outbox = make(sender=sender)
        job = begun(outbox, {"completion": "http://host/"})
        finish = outbox.finish

        def finish_and_note(*args: Any) -> None:
            finish(*args, on_stored=lambda: order.append(f"{len(stored(outbox))} stored"))

        outbox.finish = finish_and_note  # type: ignore[assignment]
        succeed(job)
        eventually(lambda: not outbox.pending)
        assert order == ["1 stored", "sent"]

    def test_for_this_user_only(self, make: Make, tmp_path: Path) -> None:
        make()
        root = tmp_path / "outbox"
        assert root.stat().st_mode & 0o777 == 0o700
        assert {path.stat().st_mode & 0o777 for path in root.iterdir()} == {0o600}

    def test_a_full_one_loses_nothing(self, make: Make, receiver: Receiver) -> None:
        receiver.rule = then(Reply(500), OK)
        outbox = make()
        reporter = begun(outbox, {"completion": receiver.url()})
        fill(outbox._store)
        reporter.completed(warnings=[LARGE])
        with pytest.raises(StagingError, match="full"):
            begun(outbox, {"status": f"http://host/{LARGE}"}, "another")
        receiver.wait_for_key("job-SUCCESS")
        eventually(lambda: not outbox.pending)
        make_room(outbox._store)
        begun(outbox, {}, "another")
        assert [each.job_id for each in outbox._store.running()] == ["another"]

    def test_what_a_full_one_refused_is_written_later(self, make: Make, receiver: Receiver) -> None:
        """With the next try, or before the next job is accepted."""
        receiver.rule = lambda call: Reply(503)
        for job_id, pause_s in (("a", 0.05), ("b", 600.0)):
            outbox = make(longest_pause_s=pause_s, retry_backoff_s=pause_s)
            reporter = begun(outbox, {"completion": receiver.url()}, job_id)
            fill(outbox._store)
            calls = len(receiver.calls)
            reporter.completed(warnings=[LARGE])
            eventually(lambda n=calls: len(receiver.calls) > n)  # type: ignore[misc]
            assert [each.job_id for each in outbox._store.running()] == [job_id]
            make_room(outbox._store)
            if job_id == "a":
                eventually(lambda o=outbox: not o._store.running())  # type: ignore[misc]
        begun(outbox, {}, "c")
        assert [each.job_id for each in outbox._store.running()] == ["c"]
        assert [each.job_id for each in stored(outbox)] == ["a", "b"]

    def test_two_agents_do_not_share_one(self, make: Make, tmp_path: Path) -> None:
        make()
        with pytest.raises(ConfigError, match="state_dir"):
            Store(tmp_path / "outbox").open()

    def test_a_folder_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match="state_dir"):
            Store(tmp_path / "file" / "outbox").open()

    def test_nothing_is_touched_before_the_start(self, tmp_path: Path) -> None:
        Outbox(Store(tmp_path / "outbox"), sender=None)  # type: ignore[arg-type]
        assert not list(tmp_path.iterdir())


def restarted(outbox: Outbox, make: Make) -> tuple[Outbox, list[Attempt]]:
    """The agent was killed, and starts again."""
    outbox.close()
    outbox._store.close()
    store = Store(outbox._store.path.parent)
    store.open()
    found = report_interrupted(store)
    store.close()
    return make(), found


class TestInterrupted:
    def test_failed_with_system_error_once(self, make: Make, receiver: Receiver) -> None:
        reporter = begun(make(), {"failure": receiver.url()}, "gone", prompt_id="p")
        again, (attempt,) = restarted(reporter.outbox, make)
        assert (attempt.job_id, attempt.prompt_id) == ("gone", "p")
        body = receiver.wait_for_key("gone-FAILED").body
        assert (body["reason_code"], body["error_type"]) == ("SYSTEM_ERROR", "AgentRestarted")
        assert body["timing"]["started_at"] == timestamps.stamp(attempt.started_at)
        assert abs((attempt.started_at - reporter.attempt.started_at).total_seconds()) < 0.001
        eventually(lambda: not again.pending)
        assert restarted(again, make)[1] == []
        assert len(receiver.calls) == 1

    def test_where_only_statuses_go(self, make: Make, receiver: Receiver) -> None:
        reporter = begun(make(), {"status": receiver.url()}, "gone")
        reporter.state(Status.RUNNING)
        receiver.wait_for_key("gone-RUNNING-1")
        restarted(reporter.outbox, make)
        call = eventually(lambda: receiver.calls[1:])[0]
        assert call.state == "FAILED"
        assert call.body["heartbeat_seq"] > 1
        assert call.body["reason"]

    def test_where_nothing_goes(self, make: Make) -> None:
        again, found = restarted(begun(make(), {}, "gone").outbox, make)
        assert [each.job_id for each in found] == ["gone"]
        assert again.pending == 0

    def test_killed_while_it_was_reported(self, make: Make, receiver: Receiver) -> None:
        """The end and its callback are one step: what a second restart finds is the one and only report."""
        receiver.down()
        outbox, _ = restarted(begun(make(), {"failure": receiver.url()}, "gone").outbox, make)
        again, found = restarted(outbox, make)
        assert (found, again.pending) == ([], 1)
        receiver.up()
        receiver.wait_for_key("gone-FAILED")
        assert receiver.keys == ["gone-FAILED"]
