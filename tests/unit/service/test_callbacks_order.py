"""A job id that came again, and senders that fail in ways of their own: everything goes in its order all the same."""

from __future__ import annotations

import socket
import threading
import time

import pytest

from settee.base.errors import InvalidRequest
from settee.base.job import Status
from settee.service.store import Callback
from settee.service.webhooks import Answer, WebhookSender
from tests.support.http_double import Reply
from tests.support.outbox import Make, begun, succeed, tries
from tests.support.receiver import OK, Receiver
from tests.support.waiting import eventually


class TestAgain:
    """The same job id, sent once more after its first run failed."""

    def test_the_later_run_does_not_overtake(self, make: Make, receiver: Receiver) -> None:
        outbox = make()
        receiver.down()
        begun(outbox, receiver.urls()).failed(InvalidRequest("no"))
        eventually(lambda: tries(outbox)[0] > 3)
        again = begun(outbox, receiver.urls(), heartbeat_s=60)
        again.state(Status.QUEUED)
        again.state(Status.RUNNING)
        receiver.up()
        receiver.wait_for_key("job-RUNNING-2")
        succeed(again)
        receiver.wait_for_key("job-SUCCESS")
        assert receiver.keys == ["job-FAILED", "job-QUEUED-1", "job-RUNNING-2", "job-SUCCESS-3", "job-SUCCESS"]

    def test_nor_one_that_ends_while_the_receiver_is_down(self, make: Make, receiver: Receiver) -> None:
        outbox = make(timeout_s=0.2)
        receiver.down()
        for run in range(3):
            reporter = begun(outbox, receiver.urls(), prompt_id=f"run {run}")
            reporter.state(Status.RUNNING)
            succeed(reporter) if run == 2 else reporter.failed(InvalidRequest("no"))
        eventually(lambda: tries(outbox)[0] > 3)
        assert tries(outbox)[1:] == [0, 0]
        runs = list(outbox._lanes["job"].runs)
        eventually(lambda: all((run.until or 0) < time.monotonic() for run in runs))
        receiver.up()
        receiver.wait_for_key("job-SUCCESS")
        # Statuses had their time; what must arrive did, in its order.
        assert receiver.keys == ["job-FAILED", "job-FAILED", "job-SUCCESS"]
        assert [call.body["prompt_id"] for call in receiver.delivered] == ["run 0", "run 1", "run 2"]

    def test_nor_after_a_restart(self, make: Make, receiver: Receiver) -> None:
        outbox = make()
        receiver.down()
        begun(outbox, receiver.urls()).failed(InvalidRequest("no"))
        succeed(begun(outbox, receiver.urls()))
        outbox.close()
        receiver.rule = lambda call: Reply(503) if call.number == 0 else OK
        receiver.up()
        begun(make(), receiver.urls(), heartbeat_s=60).state(Status.QUEUED)
        receiver.wait_for_key("job-QUEUED-1")
        assert [call.key for call in receiver.calls] == ["job-FAILED", "job-FAILED", "job-SUCCESS", "job-QUEUED-1"]

    def test_other_jobs_go_past_what_is_held(self, make: Make, receiver: Receiver) -> None:
        with Receiver(lambda call: Reply(503)) as failing:
            outbox = make()
            begun(outbox, {"completion": failing.url(), "failure": failing.url()}).failed(InvalidRequest("no"))
            held = begun(outbox, receiver.urls(), heartbeat_s=0.005)
            held.state(Status.RUNNING)
            eventually(lambda: held.seq > 20)
            assert len(outbox._lanes["job"].runs[1].statuses) == 1  # newer heartbeats replace it, as ever
            succeed(held)
            other = begun(outbox, receiver.urls(), "other", heartbeat_s=60)
            other.state(Status.RUNNING)
            succeed(other)
            receiver.wait_for_key("other-SUCCESS")
            assert receiver.keys == ["other-RUNNING-1", "other-SUCCESS-2", "other-SUCCESS"]
            failing.rule = lambda call: OK
            receiver.wait_for_key("job-SUCCESS")

    def test_one_that_is_refused_lets_the_next_go(self, make: Make, receiver: Receiver) -> None:
        receiver.rule = lambda call: Reply(503 if call.number < 3 else 404) if "failure" in call.path else OK
        outbox = make()
        begun(outbox, {"failure": receiver.url("failure")}).failed(InvalidRequest("no"))
        succeed(begun(outbox, {"completion": receiver.url()}))
        receiver.wait_for_key("job-SUCCESS")
        assert [call.key for call in receiver.calls] == ["job-FAILED"] * 4 + ["job-SUCCESS"]

    def test_closing_does_not_wait_for_what_is_held(self, make: Make) -> None:
        outbox = make(sender=lambda post, timeout_s: Answer(why="down"), retry_backoff_s=30, longest_pause_s=30)
        begun(outbox, {"failure": "http://host/"}).failed(InvalidRequest("no"))
        again = begun(outbox, {"status": "http://host/", "completion": "http://host/"}, heartbeat_s=60)
        again.state(Status.RUNNING)
        succeed(again)
        closed = time.monotonic()
        outbox.close(20)
        assert time.monotonic() - closed < 10


class TestFaults:
    def test_a_sender_that_raises_ends_no_thread(self, make: Make, receiver: Receiver) -> None:
        poster, raised = WebhookSender(), list[str]()

        async def sender(post: Callback, timeout_s: float) -> Answer:
            if post.key in ("job-RUNNING-1", "job-SUCCESS") and post.key not in raised:
                raised.append(post.key)
                raise KeyError("a fault of its own")
            return await poster(post, timeout_s)

        reporter = begun(make(sender=sender), receiver.urls(), heartbeat_s=60)
        reporter.state(Status.RUNNING)
        receiver.wait_for_key("job-RUNNING-1")
        succeed(reporter)
        receiver.wait_for_key("job-SUCCESS")
        assert raised == ["job-RUNNING-1", "job-SUCCESS"]

    def test_nor_does_a_store_that_raises(
        self, make: Make, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        outbox, asked = make(look_s=0.01), list[None]()

        def changes() -> int:
            asked.append(None)
            raise MemoryError

        monkeypatch.setattr(outbox._store, "changes", changes)
        eventually(lambda: len(asked) > 1)
        succeed(begun(outbox, receiver.urls()))
        receiver.wait_for_key("job-SUCCESS")

    def test_nor_does_a_machine_without_another_thread_for_heartbeats(
        self, make: Make, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        start, refused = threading.Thread.start, []

        def begin(thread: threading.Thread) -> None:
            if thread.name == "settee-heartbeat" and not refused:
                refused.append(thread)
                raise RuntimeError("can't start new thread")
            start(thread)

        monkeypatch.setattr(threading.Thread, "start", begin)
        reporter = begun(make(), receiver.urls(), heartbeat_s=0.01)
        reporter.state(Status.PREPARING)
        reporter.state(Status.RUNNING)
        eventually(lambda: len(receiver.delivered) > 3)
        succeed(reporter)
        assert receiver.wait_for_key("job-SUCCESS").body["state"] == "SUCCESS"

    def test_a_status_that_was_given_up_does_not_come_after_the_end(
        self, make: Make, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Its name is looked up for longer than anybody waits."""
        looked_up, lookup, found = threading.Event(), socket.getaddrinfo, []

        def slow(host: str, *args: object, **kwargs: object) -> object:
            if host != "slow.example":
                return lookup(host, *args, **kwargs)  # type: ignore[arg-type]
            looked_up.wait(20)
            found.append(host)
            return lookup("127.0.0.1", *args, **kwargs)  # type: ignore[arg-type]

        monkeypatch.setattr(socket, "getaddrinfo", slow)
        monkeypatch.setenv("NO_PROXY", "*")
        poster = WebhookSender()
        outbox = make(sender=poster, timeout_s=0.2, max_retries=0)
        status = receiver.url().replace("127.0.0.1", "slow.example")
        reporter = begun(outbox, {"status": status, "completion": receiver.url()}, heartbeat_s=60)
        reporter.state(Status.RUNNING)
        succeed(reporter)
        receiver.wait_for_key("job-SUCCESS")
        assert poster.lookups.running
        looked_up.set()
        eventually(lambda: not poster.lookups.running)  # its thread is through
        assert found
        assert receiver.keys == ["job-SUCCESS"]
        assert len(receiver.calls) == 1
