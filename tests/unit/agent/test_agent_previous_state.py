"""A state folder that settee 0.1 wrote, killed while a job ran, is taken over: tests/data/agent-state-0.1."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from settee.doors.agent.intake import report_interrupted
from settee.doors.agent.previous_state import PreviousState
from settee.service.store import Store
from tests.support.outbox import Make
from tests.support.receiver import Receiver
from tests.support.waiting import eventually

WRITTEN = Path(__file__).parents[2] / "data" / "agent-state-0.1"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the fixture ``make`` has its outbox."""
    shutil.copytree(WRITTEN, tmp_path / "outbox")
    return tmp_path / "outbox"


def taken_over(folder: Path) -> Store:
    store, previous = Store(folder), PreviousState(folder)
    store.open(adopt=previous.adopt)
    previous.remove()
    return store


def written(name: str) -> list[dict[str, str]]:
    return [json.loads(path.read_bytes()) for path in sorted((WRITTEN / name).iterdir())]


def test_everything_is_taken_over_once(folder: Path) -> None:
    store = taken_over(folder)
    assert [(each.key, each.url, each.body.decode()) for each in store.callbacks()] == [
        (each["key"], each["url"], each["body"]) for each in written("pending")
    ]
    assert [each.key for each in store.callbacks()] == ["delivered later-SUCCESS", "again-FAILED", "again-SUCCESS"]
    assert [each.job_id for each in store.running()] == ["interrupted"]
    assert store.known_key("a key") == ("digest-of-delivered later", "delivered later")
    store.close()
    left = {path.name for path in folder.iterdir()} - {".lock", store.path.name, f"{store.path.name}-journal"}
    assert left == {"jobs", "refused", "leavings.json"}

    # What an older agent writes into the folder once there is a store is not this agent's.
    shutil.copy(WRITTEN / "running.json", folder)
    again = taken_over(folder)
    assert len(again.callbacks()) == 3
    assert (folder / "running.json").exists()
    again.close()


def test_what_was_pending_arrives_with_the_same_keys_and_bytes(folder: Path, make: Make, receiver: Receiver) -> None:
    store = taken_over(folder)
    (interrupted,) = report_interrupted(store)
    for each in store.callbacks():
        store.retry(each.id, receiver.url("completion"))
    store.close()
    outbox = make()
    eventually(lambda: not outbox.pending)
    arrived = {(call.key.replace("%20", " "), call.raw.decode()) for call in receiver.delivered}
    assert {(each["key"], each["body"]) for each in written("pending")} < arrived
    assert [key for key in receiver.keys if key.startswith("again")] == ["again-FAILED", "again-SUCCESS"]
    body = receiver.wait_for_key("interrupted-FAILED").body
    assert (body["error_type"], body["prompt_id"]) == ("AgentRestarted", interrupted.prompt_id)


def test_killed_between_the_callback_and_the_journal(folder: Path) -> None:
    """Version 0.1 wrote one after the other: what has its callback was not interrupted."""
    (path, *_) = sorted((folder / "pending").iterdir())
    running = json.loads((folder / "running.json").read_bytes())
    (folder / "running.json").write_text(json.dumps({**running, "run_id": json.loads(path.read_bytes())["run_id"]}))
    store = taken_over(folder)
    assert (store.running(), len(store.callbacks())) == ([], 3)
    store.close()


@pytest.mark.parametrize(
    "text", ["", "[]", "null", '{"version": 1}', "[" * 100_000, '{"run_id": 5, "keys": 3, "jobs": 1}']
)
def test_what_is_damaged_costs_itself_alone(text: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    damaged = [folder / "running.json", folder / "keys.json", next((folder / "pending").iterdir())]
    for path in damaged:
        path.write_text(text)
    store = taken_over(folder)
    assert (len(store.callbacks()), store.running()) == (2, [])
    assert all(path.name in caplog.text and path.exists() for path in damaged)
    store.close()
