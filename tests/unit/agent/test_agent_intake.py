"""The intake with an engine that is told what to do."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import Busy, JobCanceled, ModelMissing, StagingError
from settee.base.job import Job, Result
from settee.comfyui.node_registry import NodeRegistry
from settee.doors.agent import config as configs
from settee.doors.agent import envelope as envelopes
from settee.doors.agent.archive import Archive
from settee.doors.agent.engine_settings import make_folders, to_settings
from settee.doors.agent.intake import Intake
from settee.models.folder.model_folder import ModelFolder
from settee.service.callbacks import Outbox
from settee.service.store import Store, StoreError
from settee.service.webhooks import WebhookSender
from tests.support.agent import HeldStore
from tests.support.waiting import eventually

REGISTRY = NodeRegistry(json.loads((Path(__file__).parents[2] / "data" / "object_info.json").read_text()))


class Engine:
    """Places a job's models, and does what ``ends`` says, one after another."""

    restarts = 0
    output_dir = None

    def __init__(self, models: Path, ends: list[Any]) -> None:
        self.model_folder, self.ends, self.jobs = ModelFolder(models), ends, list[Job]()
        self.is_idle = threading.Event()
        self.is_idle.set()
        self.backend = self

    def node_registry(self, cancel: object = None, **_: object) -> NodeRegistry:
        return REGISTRY

    def await_models(self, entries: object, timeout_s: float) -> bool:
        return True

    def settle(self, timeout_s: float, is_over: object) -> bool:
        return self.is_idle.wait(timeout_s)

    def queue(self) -> tuple[int, int]:
        return 0, 0

    def run(self, job: Job, on_progress: object, cancel: object) -> Result:
        self.jobs.append(job)
        for entry in job.request.models:
            path = self.model_folder.path_of(entry)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"x" * (entry.size or 0))
            self.model_folder.record(entry, size=entry.size or 0, sha256=None, xxh3=None)
        end = self.ends.pop(0)
        if isinstance(end, Exception):
            raise end
        return Result(timings={"total": 1.0})


@pytest.fixture
def store() -> Iterator[HeldStore]:
    with HeldStore().running() as store:
        assert isinstance(store, HeldStore)
        yield store


@contextlib.contextmanager
def intake_of(root: Path, store: HeldStore, ends: list[Any], **comfyui: Any) -> Iterator[tuple[Intake, Engine]]:
    paths = {"base_models": "models/checkpoints", "loras": "models/loras"}
    paths |= {name: name for name in ("workflows", "outputs", "temp")}
    config = configs.parse(
        {
            "minio": {"endpoint": store.endpoint_url, "access_key": "any", "secret_key": "any"},
            "comfyui": {"model_refresh_delay_seconds": 0.05, **comfyui},
            "paths": {name: str(root / folder) for name, folder in paths.items()},
        }
    )
    make_folders(config)
    engine, kept = Engine(root / "models", ends), Store(config.state_folder)
    kept.open()
    outbox = Outbox(kept, sender=WebhookSender())
    outbox.start()
    try:
        yield Intake(config, to_settings(config), engine, kept, outbox), engine  # type: ignore[arg-type]
    finally:
        outbox.close()
        kept.close()


def run(root: Path, store: HeldStore, ends: list[Any], **comfyui: Any) -> tuple[dict[str, Any], Engine]:
    with intake_of(root, store, ends, **comfyui) as (intake, engine):
        intake.submit(job(store))
        record = intake.log_of("a job")
        assert record is not None
        eventually(lambda: record.is_over)
        assert not intake.slot.is_busy
        return dict(record.shown), engine


def job(store: HeldStore, **changes: Any) -> envelopes.Envelope:
    return envelopes.parse(store.envelope(**{"jobId": "a job", **changes}))


def test_comfyui_may_list_a_new_model_a_little_later(tmp_path: Path, store: HeldStore) -> None:
    shown, engine = run(tmp_path, store, [ModelMissing("not listed yet"), "success"])
    assert (shown["state"], len(engine.jobs)) == ("SUCCESS", 2), shown
    assert engine.jobs[0].prompt_id == engine.jobs[1].prompt_id


def test_models_that_comfyui_never_lists_are_no_fault_of_the_dispatch(tmp_path: Path, store: HeldStore) -> None:
    problem = {"path": "workflow.1.inputs.ckpt_name", "problem": "no model", "value": "sdxl_base_1.0.safetensors"}
    errors = [ModelMissing.from_problems([problem], "workflow") for _ in range(2)]
    shown, _ = run(tmp_path, store, errors)
    assert (shown["state"], shown["error"]["reason_code"]) == ("FAILED", "SYSTEM_ERROR")
    assert "paths.base_models" in shown["error"]["reason"]


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

    monkeypatch.setattr("settee.doors.agent.prepare.result_of", broken)
    shown, _ = run(tmp_path, store, ["success"])
    assert (shown["state"], shown["error"]["reason_code"]) == ("FAILED", "SYSTEM_ERROR")


def test_looking_up_a_job_has_a_time_limit(tmp_path: Path, store: HeldStore) -> None:
    store.hold("GET /models/generator-workflows/")
    try:
        shown, engine = run(tmp_path, store, [], timeout_seconds=0.3)
    finally:
        store.let_go()
    assert (shown["state"], shown["error"]["reason_code"], engine.jobs) == ("FAILED", "TIMEOUT", [])


def test_what_the_lookup_took_is_no_longer_the_engines(tmp_path: Path, store: HeldStore) -> None:
    store.hold("GET /models/generator-workflows/")
    threading.Timer(1.5, store.let_go).start()
    _, engine = run(tmp_path, store, ["success"], timeout_seconds=600)
    limit_s = engine.jobs[0].request.timeout_s
    assert limit_s is not None
    assert 500 < limit_s < 599


def test_a_dispatch_that_the_disk_refuses_leaves_nothing_open(
    tmp_path: Path, store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise StoreError("database or disk is full")

    with intake_of(tmp_path, store, ["success"]) as (intake, _):
        with monkeypatch.context() as patched:
            patched.setattr("settee.service.store.Store.accept", refuse)
            for turn in range(20):
                if turn == 5:
                    before = len(os.listdir("/proc/self/fd"))
                with pytest.raises(StagingError):
                    intake.submit(job(store))
        assert len(os.listdir("/proc/self/fd")) == before
        assert not intake.slot.is_busy
        intake.submit(job(store))
        eventually(lambda: not intake.slot.is_busy)


def test_a_dispatch_without_a_thread_for_it_may_be_sent_again(
    tmp_path: Path, store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = threading.Thread.start

    def refuse(thread: threading.Thread) -> None:
        if thread.name == "settee-job":
            raise RuntimeError("can't start new thread")
        start(thread)

    with intake_of(tmp_path, store, ["success"]) as (intake, _):
        with monkeypatch.context() as patched:
            patched.setattr(threading.Thread, "start", refuse)
            with pytest.raises(StagingError):
                intake.submit(job(store), "a key", "digest")
        assert not intake.slot.is_busy
        assert intake.submit(job(store), "a key", "digest") == "a job"
        eventually(lambda: not intake.slot.is_busy)
        record = intake.log_of("a job")
        assert record is not None
        assert dict(record.shown)["state"] == "SUCCESS"


def test_the_slot_is_free_when_the_end_is_told(
    tmp_path: Path, store: HeldStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However long the archive takes; and what has ended cannot be canceled."""
    told, go_on = threading.Event(), threading.Event()
    event = Archive.event

    def slow(archive: Archive, name: str, details: Any = None) -> bool:
        if name == "succeeded":
            told.set()
            go_on.wait(20)
        return event(archive, name, details)

    monkeypatch.setattr(Archive, "event", slow)
    with intake_of(tmp_path, store, ["success", "success"]) as (intake, _):
        intake.submit(job(store, cancelToken="stop"))
        assert told.wait(20)
        try:
            assert not intake.slot.is_busy
            assert not intake.slot.cancel("stop")
            assert intake.submit(job(store, jobId="next")) == "next"
        finally:
            go_on.set()
        eventually(lambda: not intake.slot.is_busy)


def test_a_comfyui_that_runs_on_keeps_the_slot(tmp_path: Path, store: HeldStore) -> None:
    with intake_of(tmp_path, store, [JobCanceled(), "success"]) as (intake, engine):
        engine.is_idle.clear()
        intake.submit(job(store, cancelToken="stop"))
        record = intake.log_of("a job")
        assert record is not None
        eventually(lambda: record.is_over)
        assert not intake.slot.cancel("stop")
        with pytest.raises(Busy):
            intake.submit(job(store, jobId="next"))
        engine.is_idle.set()
        eventually(lambda: not intake.slot.is_busy)
