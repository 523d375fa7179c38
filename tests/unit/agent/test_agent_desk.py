"""The desk with an engine that is told what to do."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from settee.doors.agent import config as configs
from settee.doors.agent.callbacks.outbox import Outbox
from settee.doors.agent.callbacks.posting import Poster
from settee.doors.agent.desk import Desk
from settee.doors.agent.dispatch import envelope as envelopes
from settee.doors.agent.engine_settings import make_folders, to_settings
from settee.doors.agent.metrics import Metrics
from settee.errors import ModelMissing
from settee.job import Job, Result, Status
from settee.models.placed import Shelf
from tests.support.agent import HeldStore
from tests.support.waiting import eventually

REGISTRY = json.loads((Path(__file__).parents[2] / "data" / "object_info.json").read_text())


class Engine:
    """Places a job's models, and does what ``ends`` says, one after another."""

    restarts = 0
    output_dir = None

    def __init__(self, models: Path, ends: list[Any]) -> None:
        self.shelf, self.ends, self.jobs = Shelf(models), ends, list[Job]()

    def object_info(self, cancel: object = None) -> Any:
        return REGISTRY

    def await_models(self, entries: object, timeout_s: float) -> bool:
        return True

    def settle(self, timeout_s: float, is_over: object) -> bool:
        return True

    def queue(self) -> tuple[int, int]:
        return 0, 0

    def run(self, job: Job, on_progress: object, cancel: object) -> Result:
        self.jobs.append(job)
        for entry in job.request.models:
            path = self.shelf.path_of(entry)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * (entry.size or 0))
            self.shelf.record(entry, size=entry.size or 0, sha256=None, xxh3=None)
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return Result(job_id=job.id, status=Status.SUCCEEDED, timings={"total": 1.0})


@pytest.fixture
def store() -> Iterator[HeldStore]:
    with HeldStore().running() as store:
        assert isinstance(store, HeldStore)
        yield store


def run(root: Path, store: HeldStore, ends: list[Any]) -> tuple[dict[str, Any], Engine]:
    paths = {"base_models": "models/checkpoints", "loras": "models/loras"}
    paths |= {name: name for name in ("workflows", "outputs", "temp")}
    config = configs.parse(
        {
            "minio": {"endpoint": store.endpoint_url, "access_key": "any", "secret_key": "any"},
            "comfyui": {"model_refresh_delay_seconds": 0.05},
            "paths": {name: str(root / folder) for name, folder in paths.items()},
        }
    )
    make_folders(config)
    engine, outbox = Engine(root / "models", ends), Outbox(config.state_folder, sender=Poster())
    outbox.start()
    try:
        desk = Desk(config, to_settings(config), engine, outbox, Metrics())  # type: ignore[arg-type]
        desk.submit(envelopes.parse(store.envelope(jobId="a job")))
        eventually(lambda: not desk.is_busy, 20)
        record = desk.record("a job")
        assert record is not None
        return record.shown(), engine
    finally:
        outbox.close()


def test_comfyui_may_list_a_new_model_a_little_later(tmp_path: Path, store: HeldStore) -> None:
    shown, engine = run(tmp_path, store, [ModelMissing("not listed yet"), "success"])
    assert (shown["state"], len(engine.jobs)) == ("SUCCESS", 2), shown
    assert engine.jobs[0].prompt_id == engine.jobs[1].prompt_id


def test_but_is_asked_only_once_more(tmp_path: Path, store: HeldStore) -> None:
    shown, engine = run(tmp_path, store, [ModelMissing("no such model"), ModelMissing("no such model")])
    assert (shown["state"], shown["error"]["reason_code"], len(engine.jobs)) == ("FAILED", "VALIDATION_ERROR", 2)


def test_a_fault_of_the_agents_own_ends_the_job(tmp_path: Path, store: HeldStore) -> None:
    """The dispatcher hears of it, the slot is free, and what it was stays in the log."""
    shown, _ = run(tmp_path, store, [ZeroDivisionError("a fault")])
    assert (shown["state"], shown["error"]["reason_code"]) == ("FAILED", "SYSTEM_ERROR")
    assert "a fault" not in json.dumps(shown)


def test_a_fault_after_the_render_is_told_too(
    tmp_path: Path, store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: object) -> None:
        raise KeyError("a key")

    monkeypatch.setattr("settee.doors.agent.work.artifacts", broken)
    shown, _ = run(tmp_path, store, ["success"])
    assert (shown["state"], shown["error"]["reason_code"]) == ("FAILED", "SYSTEM_ERROR")
