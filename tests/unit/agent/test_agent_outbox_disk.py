"""Callbacks on the disk: what lies there, when, and what an agent that comes after makes of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import ConfigError, StagingError
from settee.base.job import Status
from settee.doors.agent import timestamps
from settee.doors.agent.callbacks import letters
from settee.doors.agent.callbacks.outbox import Outbox
from settee.doors.agent.callbacks.posting import Answer, Post, Poster
from tests.support.outbox import Make, begun, files, succeed
from tests.support.receiver import OK, Receiver, Response, then
from tests.support.waiting import eventually


class TestDisk:
    def test_it_lies_there_before_the_first_attempt(self, make: Make, tmp_path: Path) -> None:
        seen: list[Any] = []

        def sender(post: Post, timeout_s: float) -> Answer:
            seen.append([json.loads(path.read_bytes())["key"] for path in files(tmp_path)])
            seen.append((tmp_path / "outbox" / "running.json").exists())
            return Answer(200)

        outbox = make(sender=sender)
        succeed(begun(outbox, {"completion": "http://host/"}))
        eventually(lambda: not outbox.pending)
        assert seen == [["job-SUCCESS"], False]
        assert files(tmp_path) == []

    def test_for_this_user_only(self, make: Make, tmp_path: Path) -> None:
        outbox = make(sender=lambda post, timeout_s: Answer(why="down"))
        reporter = begun(outbox, {"completion": "http://me:secret@host/"})
        root = tmp_path / "outbox"
        assert (root / "running.json").stat().st_mode & 0o777 == 0o600
        succeed(reporter)
        assert [path.stat().st_mode & 0o777 for path in files(tmp_path)] == [0o600]
        assert {path.stat().st_mode & 0o777 for path in (root, root / "pending", root / "refused")} == {0o700}

    def test_a_full_one_loses_nothing(
        self, make: Make, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        receiver.rule = then(Response(500), OK)
        outbox = make()
        reporter = begun(outbox, {"completion": receiver.url()})

        def full(path: Path, data: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(letters, "_write", full)
        succeed(reporter)
        with pytest.raises(StagingError, match="No space left"):
            begun(outbox, {}, "another")
        receiver.wait_for_key("job-SUCCESS")
        eventually(lambda: not outbox.pending)
        assert not (tmp_path / "outbox" / "running.json").exists()

    def test_what_a_full_one_refused_is_written_later(
        self, make: Make, receiver: Receiver, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With the next attempt, or before the next job is accepted."""
        write, journal = letters._write, tmp_path / "outbox" / "running.json"

        def full(path: Path, data: Any) -> None:
            raise OSError(28, "No space left on device")

        receiver.rule = lambda call: Response(503)
        outbox = make()
        for job_id, pause_s in (("a", 0.05), ("b", 600.0)):
            outbox._longest_pause_s = outbox._backoff_s = pause_s
            reporter = begun(outbox, {"completion": receiver.url()}, job_id)
            monkeypatch.setattr(letters, "_write", full)
            succeed(reporter)
            eventually(lambda o=outbox: all(each.attempts for each in o._waiting))  # type: ignore[misc]
            assert json.loads(journal.read_bytes())["job_id"] == job_id
            monkeypatch.setattr(letters, "_write", write)
            if job_id == "a":
                eventually(lambda: not journal.exists())
        begun(outbox, {}, "c")
        assert json.loads(journal.read_bytes())["job_id"] == "c"
        assert [json.loads(path.read_bytes())["job_id"] for path in files(tmp_path)] == ["a", "b"]

    def test_it_is_on_the_disk_and_not_only_in_memory(
        self, make: Make, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        synced: list[str] = []
        sync = os.fsync

        def fsync(fd: int) -> None:
            synced.append(os.path.basename(os.readlink(f"/proc/self/fd/{fd}")))
            sync(fd)

        seen: list[list[str]] = []
        outbox = make(sender=lambda post, timeout_s: seen.append(list(synced)) or Answer(200))
        monkeypatch.setattr(os, "fsync", fsync)
        reporter = begun(outbox, {"completion": "http://host/"})
        assert synced == ["running.json.part", "outbox"]
        synced.clear()
        succeed(reporter)
        eventually(lambda: not outbox.pending)
        (before,) = seen
        assert before[0].endswith(".json.part")
        assert before[1:] == ["pending", "outbox"]

    def test_what_is_damaged_is_put_aside(self, make: Make, receiver: Receiver, tmp_path: Path) -> None:
        root = tmp_path / "outbox"
        (root / "pending").mkdir(parents=True)
        (root / "running.json").write_text("{}")
        for name, text in (("1.json", ""), ("2.json", "[]"), ("3.json", '{"version": 1}'), ("4.json.part", "x")):
            (root / "pending" / name).write_text(text)
        succeed(begun(make(), {"completion": receiver.url()}))
        receiver.wait_for_key("job-SUCCESS")
        eventually(lambda: not files(tmp_path))
        assert [path.name for path in files(tmp_path, "refused")] == ["1.json", "2.json", "3.json"]

    def test_two_agents_do_not_share_one(self, make: Make, tmp_path: Path) -> None:
        make()
        with pytest.raises(ConfigError, match="state_dir"):
            Outbox(tmp_path / "outbox", sender=Poster()).start()

    def test_a_folder_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigError, match="state_dir"):
            Outbox(tmp_path / "file" / "outbox", sender=Poster()).start()

    def test_nothing_is_touched_before_the_start(self, tmp_path: Path) -> None:
        Outbox(tmp_path / "outbox", sender=Poster())
        assert not list(tmp_path.iterdir())


class TestInterrupted:
    def test_failed_with_system_error_once(self, make: Make, receiver: Receiver, tmp_path: Path) -> None:
        outbox = make()
        reporter = begun(outbox, {"failure": receiver.url()}, "gone", prompt_id="p")
        outbox.close()
        again = Outbox(tmp_path / "outbox", sender=Poster())
        running = again.start()
        assert running is not None
        assert (running.job_id, running.prompt_id) == ("gone", "p")
        body = receiver.wait_for_key("gone-FAILED").body
        again.close(1)
        assert (body["reason_code"], body["error_type"]) == ("SYSTEM_ERROR", "AgentRestarted")
        assert body["timing"]["started_at"] == timestamps.stamp(running.started_at)
        assert abs((running.started_at - reporter.started_at).total_seconds()) < 0.001
        third = Outbox(tmp_path / "outbox", sender=Poster())
        assert third.start() is None
        third.close(1)
        assert len(receiver.calls) == 1

    def test_where_only_statuses_go(self, make: Make, receiver: Receiver) -> None:
        outbox = make()
        reporter = begun(outbox, {"status": receiver.url()}, "gone")
        reporter.state(Status.RUNNING)
        receiver.wait_for_key("gone-RUNNING-1")
        outbox.close()
        make()
        call = eventually(lambda: receiver.calls[1:])[0]
        assert call.state == "FAILED"
        assert call.body["heartbeat_seq"] > 1
        assert call.body["reason"]

    def test_where_nothing_goes(self, make: Make, tmp_path: Path) -> None:
        outbox = make()
        begun(outbox, {}, "gone")
        outbox.close()
        again = Outbox(tmp_path / "outbox", sender=Poster())
        assert again.start() is not None
        assert again.pending == 0
        again.close()

    def test_killed_while_it_was_reported(self, make: Make, receiver: Receiver, tmp_path: Path) -> None:
        """The failure is on the disk, and the journal still there: that is the one and only report."""
        journal = tmp_path / "outbox" / "running.json"
        outbox = make()
        receiver.down()
        begun(outbox, {"failure": receiver.url()}, "gone")
        outbox.close()
        text = journal.read_bytes()
        make().close()
        journal.write_bytes(text)
        again = Outbox(tmp_path / "outbox", sender=Poster(), retry_backoff_s=0.01)
        assert again.start() is None
        assert again.pending == 1
        assert not journal.exists()
        receiver.up()
        receiver.wait_for_key("gone-FAILED")
        again.close()
        assert receiver.keys == ["gone-FAILED"]
