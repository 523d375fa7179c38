"""The outbox in a process that is killed with SIGKILL at every moment: each job is told of once, under one key."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.http_double import Reply
from tests.support.killed_outbox import MOMENTS
from tests.support.receiver import OK, Call, Receiver
from tests.support.waiting import eventually


def start(folder: Path, receiver: Receiver, jobs: list[str], kill: str | None = None) -> subprocess.Popen[str]:
    given = {"folder": str(folder), "urls": receiver.urls(), "jobs": jobs, "kill": kill}
    command = [sys.executable, "-m", "tests.support.killed_outbox", json.dumps(given)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def lines(process: subprocess.Popen[str]) -> list[str]:
    return process.communicate(timeout=60)[0].split("\n")[:-1]


def terminal(receiver: Receiver) -> dict[str, set[tuple[str, bytes]]]:
    """By job: keys and bodies of the terminal callbacks that arrived."""
    found: dict[str, set[tuple[str, bytes]]] = {}
    for call in receiver.delivered:
        if "/status" not in call.path:
            found.setdefault(call.body["job_id"], set()).add((call.key, call.raw))
    return found


@pytest.mark.parametrize("moment", MOMENTS)
def test_killed_at_each_moment(moment: str, tmp_path: Path) -> None:
    with Receiver() as receiver:
        killed = start(tmp_path / "outbox", receiver, ["one"], moment)
        assert lines(killed) == ["one"]
        assert killed.returncode == -9
        again = lines(start(tmp_path / "outbox", receiver, ["two"]))
        (told,) = terminal(receiver).pop("one")
        is_lost = moment in ("begun", "running", "before-end", "before-commit")
        assert told[0] == ("one-FAILED" if is_lost else "one-SUCCESS")
        assert again == (["interrupted one"] if is_lost else []) + ["two", "done"]
        if is_lost:
            body = json.loads(told[1])
            assert (body["state"], body["reason_code"]) == ("FAILED", "SYSTEM_ERROR")
        assert {key for key, _ in terminal(receiver)["two"]} == {"two-SUCCESS"}
        # Nothing is left, and a third start has nothing to say.
        assert lines(start(tmp_path / "outbox", receiver, [])) == ["done"]
        assert len([call for call in receiver.calls if call.key == told[0]]) == (2 if moment == "after-post" else 1)


def test_interrupted_twice(tmp_path: Path) -> None:
    """Killed again while the failure of the first kill waits for a receiver that is down."""
    with Receiver() as receiver:
        lines(start(tmp_path / "outbox", receiver, ["one"], "running"))
        receiver.rule = lambda call: Reply(503)
        again = start(tmp_path / "outbox", receiver, ["two"], "running")
        assert lines(again) == ["interrupted one", "two"]
        receiver.rule = lambda call: OK
        assert lines(start(tmp_path / "outbox", receiver, [])) == ["interrupted two", "done"]
        told = terminal(receiver)
        assert {job: [key for key, _ in each] for job, each in told.items()} == {
            "one": ["one-FAILED"],
            "two": ["two-FAILED"],
        }
        assert len({call.raw for call in receiver.calls if call.key == "one-FAILED"}) == 1


def test_killed_at_random_moments(tmp_path: Path) -> None:
    """With a receiver that fails half of the time: no job is lost, and none is told of in two ways."""
    choice = random.Random(5)

    def rule(call: Call) -> Reply:
        return OK if choice.random() < 0.5 else Reply(choice.choice([500, 429, 503]))

    accepted: list[str] = []
    with Receiver(rule) as receiver:
        for kill in range(6):
            seen = len(receiver.calls)
            process = start(tmp_path / "outbox", receiver, [f"job-{kill}-{number}" for number in range(500)])
            goal = seen + choice.randrange(1, 60)
            eventually(lambda p=process, g=goal: p.poll() is not None or len(receiver.calls) >= g, 30)
            assert process.poll() is None, "it ended before it was killed"
            process.kill()
            accepted += [line for line in lines(process) if line.startswith("job-")]
        receiver.rule = lambda call: OK
        assert lines(start(tmp_path / "outbox", receiver, []))[-1] == "done"
        told = terminal(receiver)
        assert len(accepted) > 6
        assert set(accepted) <= set(told)
        assert all(len(each) == 1 for each in told.values())
        interrupted = [job for job, each in told.items() if any(key.endswith("-FAILED") for key, _ in each)]
        assert len(interrupted) <= 6
        check_order(receiver)


def check_order(receiver: Receiver) -> None:
    """Nothing of a job comes after its terminal callback, but that one again."""
    ended: dict[str, Any] = {}
    for call in receiver.calls:
        job_id = call.body["job_id"]
        if job_id in ended:
            assert call.key == ended[job_id]
        elif "/status" not in call.path:
            ended[job_id] = call.key
