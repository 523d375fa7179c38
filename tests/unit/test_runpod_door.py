"""One job through the door, in this process, on the stub engine."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from settee.base.sealing import Sealer, generate_key
from settee.base.settings import Settings
from settee.doors.runpod.door import ENVELOPE, Door
from tests.support.stub_engine import StubEngine
from tests.support.stub_rig import does
from tests.support.waiting import eventually, until

KEY = generate_key()


class Rig:
    """A door on a stub engine; ``run`` gives it one job from a fresh event loop."""

    def __init__(self, **settings: Any) -> None:
        self.settings = Settings(**settings)
        self.engine = StubEngine(self.settings)
        self.door = Door(self.engine, self.settings)

    def run(self, job_input: Any, job_id: str = "job-1", **envelope: Any) -> dict[str, Any]:
        return asyncio.run(self.door.run({"id": job_id, "input": job_input, **envelope}))


@pytest.fixture
def make() -> Iterator[Callable[..., Rig]]:
    rigs: list[Rig] = []

    def make(**settings: Any) -> Rig:
        rigs.append(Rig(**settings))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.door.close()
        assert rig.engine.closed


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(job_input=JSON)
@hypothesis_settings(max_examples=100)
def test_any_input_is_answered(job_input: Any) -> None:
    rig = Rig()
    try:
        answer = rig.run(job_input)
        assert answer["code"] == "invalid_request"
        assert "Traceback" not in str(answer)
        assert rig.engine.began == []
    finally:
        rig.door.close()


# --- a job --------------------------------------------------------------------------------------------------


def test_a_job_starts_comfyui_once_and_waits_for_it(make: Callable[..., Rig]) -> None:
    rig = make()
    rig.engine.ready.clear()

    async def scene() -> dict[str, Any]:
        job = asyncio.create_task(rig.door.run({"id": "a", "input": does("Give", size=1)}))
        await asyncio.sleep(0.05)
        assert not job.done()
        rig.engine.ready.set()
        return await job

    assert asyncio.run(scene())["status"] == "success"
    assert rig.run(does("Give", size=1))["status"] == "success"


def test_keys_beside_the_input_that_look_misspelt_are_warnings(make: Callable[..., Rig]) -> None:
    answer = make().run(does("Give", size=1), s3config={"bucketName": "b"}, tenant="x")
    assert answer["warnings"] == ["s3config: this key is ignored; did you mean 's3Config'?"]


def test_the_warm_up_runs_before_the_first_job_and_once(make: Callable[..., Rig], tmp_path: Path) -> None:
    path = tmp_path / "warm.json"
    path.write_text(json.dumps(does("Wait", seconds=0)["workflow"]))
    rig = make(warmup_workflow=path)
    rig.run(does("Give", size=1), "a")
    rig.run(does("Give", size=1), "b")
    assert rig.engine.began == ["warmup", "a", "b"]


@pytest.mark.parametrize("content", [None, "{", '{"nodes": []}'])
def test_a_warm_up_that_is_none_is_named(make: Callable[..., Rig], tmp_path: Path, content: str | None) -> None:
    path = tmp_path / "warm.json"
    if content is not None:
        path.write_text(content)
    answer = make(warmup_workflow=path).run(does("Give", size=1))
    assert answer["code"] == "config_error"
    assert "WARMUP_WORKFLOW" in answer["error"]
    assert str(tmp_path) not in str(answer)


@pytest.mark.parametrize("error", ["InvalidRequest", "PayloadTooLarge", "WorkflowRejected", "ModelMissing"])
def test_a_warm_up_that_is_refused_is_not_the_callers_mistake(
    make: Callable[..., Rig], tmp_path: Path, error: str
) -> None:
    path = tmp_path / "warm.json"
    path.write_text(json.dumps(does("Fail", error=error, message="no such node")["workflow"]))
    answer = make(warmup_workflow=path).run(does("Give", size=1))
    assert answer["error"] == "WARMUP_WORKFLOW: no such node [config_error]"


# --- what a caller may do wrong -----------------------------------------------------------------------------


def test_of_very_many_mistakes_the_first_hundred_are_told(make: Callable[..., Rig]) -> None:
    answer = make().run({f"workflo{number}": 1 for number in range(50_000)})
    problems = answer["details"]["problems"]
    assert len(problems) == 100
    assert problems[0]["near"] == ["workflow"]
    assert problems[98]["problem"] == "unknown key"
    assert problems[99]["problem"] == "and 49902 more"


def test_mistakes_in_s3config_are_told_in_its_own_names(make: Callable[..., Rig]) -> None:
    answer = make().run(does("Give", size=1), s3Config={"accessId": "a", "bucketName": "b", "endpointUrl": "ftp://c"})
    assert [problem["path"] for problem in answer["details"]["problems"]] == [
        "s3Config.accessSecret",
        "s3Config.endpointUrl",
    ]


@pytest.mark.parametrize("error", ["WorkflowRejected", "DownloadFailed", "ExecutionFailed", "DeliveryError"])
def test_the_log_has_the_kind_of_an_error_and_not_its_words(
    make: Callable[..., Rig], caplog: pytest.LogCaptureFixture, error: str
) -> None:
    caplog.set_level(logging.INFO)
    details = {"problems": [{"path": "1", "problem": "private"}] * 3}
    answer = make().run(does("Fail", error=error, message="private", details=details))
    assert f"failed: {answer['code']} (3 problems)" in caplog.messages
    assert "private" not in caplog.text


def test_an_answer_over_the_cap_becomes_an_error_about_it(make: Callable[..., Rig]) -> None:
    """Whoever posts it: the SDK's own loop does not look at sizes."""
    rig = make(run_result_mb=0.1)
    answer = rig.run(does("Fail", error="ComfyError", message="what went wrong", details={"x": "y" * 100_000}))
    assert answer["error"] == "what went wrong [comfy_error]"
    assert answer["details"] == {"omitted": "too large for RunPod"}


def test_jobs_that_come_at_once_wait_for_one_another(make: Callable[..., Rig]) -> None:
    rig = make()

    async def scene() -> list[dict[str, Any]]:
        jobs = [rig.door.run({"id": str(number), "input": does("Wait", seconds=0.02)}) for number in range(5)]
        return await asyncio.gather(*jobs)

    assert [answer["status"] for answer in asyncio.run(scene())] == ["success_no_images"] * 5
    assert rig.engine.began == rig.engine.ended == list("01234")


def test_a_job_counts_before_its_thread_begins(make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    """A signal may come while the thread starts, and must not find an idle worker."""
    rig = make()
    submit, busy = rig.door._pool.submit, []

    def looked_at(*arguments: Any) -> Any:
        busy.append(rig.door.is_busy)
        return submit(*arguments)

    monkeypatch.setattr(rig.door._pool, "submit", looked_at)
    rig.run(does("Echo"))
    assert busy == [True]
    assert not rig.door.is_busy


def test_the_callers_bucket_comes_from_the_envelope_only(make: Callable[..., Rig]) -> None:
    rig = make()
    seen: list[Any] = []
    real = rig.engine.run
    rig.engine.run = lambda job, *rest: seen.append(job.request.bucket) or real(job, *rest)  # type: ignore[method-assign]
    s3 = {"accessId": "a", "accessSecret": "b", "bucketName": "c", "endpointUrl": "https://s3"}
    rig.run(does("Give", size=1), s3Config=s3)
    assert seen[0].bucket_name == "c"
    assert rig.run({**does("Give", size=1), "bucket": s3})["code"] == "invalid_request"
    bad = rig.run(does("Give", size=1), s3Config={**s3, "endpointUrl": "ftp://x", "accessSecret": 5})
    assert bad["code"] == "invalid_request"


def test_caps_follow_the_id(make: Callable[..., Rig]) -> None:
    rig = make(run_result_mb=10, runsync_result_mb=20)
    seen: list[int | None] = []
    real = rig.engine.run
    rig.engine.run = lambda job, *rest: seen.append(job.max_result_bytes) or real(job, *rest)  # type: ignore[method-assign]
    for job_id in ("abc-u1", "sync-abc-u1", "test-abc", "local_test"):
        rig.run(does("Give", size=1), job_id)
    assert seen == [10_000_000 - ENVELOPE, 20_000_000 - ENVELOPE, None, None]


def test_an_envelope_without_an_id_or_input_is_answered(make: Callable[..., Rig]) -> None:
    rig = make()
    assert asyncio.run(rig.door.run({}))["code"] == "invalid_request"


# --- sealed -------------------------------------------------------------------------------------------------


def seal(value: Any, key: str = KEY) -> dict[str, Any]:
    return {"encrypted_input": Sealer(key).seal(value), "is_encrypted": True}


def test_a_sealed_job_comes_back_sealed(make: Callable[..., Rig]) -> None:
    rig = make(encryption_key=KEY, require_encryption=True)
    answer = rig.run(seal(does("Give", size=3)))
    assert set(answer) == {"encrypted_output", "is_encrypted"}
    assert Sealer(KEY).open(answer["encrypted_output"])["images"][0]["data"] == "AAAA"


def test_of_a_sealed_failure_only_its_kind_is_outside(make: Callable[..., Rig]) -> None:
    rig = make(encryption_key=KEY)
    answer = rig.run(seal(does("Fail", error="WorkflowRejected", message="a secret", details={"why": "a secret"})))
    inside = Sealer(KEY).open(answer.pop("encrypted_output"))
    assert "secret" not in str(answer)
    assert answer == {
        "error": "ComfyUI does not accept the workflow. [workflow_rejected]",
        "code": "workflow_rejected",
        "details": {},
        "is_encrypted": True,
    }
    assert inside == {
        "error": "a secret [workflow_rejected]",
        "code": "workflow_rejected",
        "details": {"why": "a secret"},
    }


def test_the_log_of_a_sealed_job_says_nothing_of_it(make: Callable[..., Rig], caplog: pytest.LogCaptureFixture) -> None:
    rig = make(encryption_key=KEY)
    with caplog.at_level(logging.DEBUG):
        crashed = rig.run(seal(does("Crash", message="a secret")))
        rig.run(seal(does("Fail", error="ComfyError", message="a secret")))
        rig.run(seal({"workflow": {"a secret": 5}, "secret": 1}))
    assert crashed["code"] == "internal_error"
    assert "secret" not in caplog.text
    assert "RuntimeError" in caplog.text, "what failed is still to be found"


@pytest.mark.parametrize(
    ("payload", "code"),
    [
        (lambda: seal(does("Give", size=3), generate_key()), "seal_broken"),
        (lambda: {"encrypted_input": "x", "is_encrypted": True}, "seal_broken"),
        (lambda: {"encrypted_input": "é" * 100, "is_encrypted": True}, "seal_broken"),
        (lambda: {"encrypted_input": {"a": 1}, "is_encrypted": True}, "invalid_request"),
        (lambda: {"is_encrypted": True, **does("Give", size=3)}, "invalid_request"),
        (lambda: {**seal(does("Give", size=3)), "workflow": {}}, "invalid_request"),
        (lambda: seal(seal(does("Give", size=3))), "invalid_request"),
        (lambda: seal([1]), "invalid_request"),
    ],
)
def test_seals_that_are_wrong_are_refused(
    make: Callable[..., Rig], payload: Callable[[], dict[str, Any]], code: str
) -> None:
    rig = make(encryption_key=KEY)
    assert rig.run(payload())["code"] == code
    assert rig.engine.began == []


def test_plain_jobs_are_refused_when_sealed_ones_are_required(make: Callable[..., Rig]) -> None:
    rig = make(encryption_key=KEY, require_encryption=True)
    for payload in (does("Give", size=3), {**does("Give", size=3), "is_encrypted": False}):
        answer = rig.run(payload)
        assert answer["code"] == "invalid_request"
        assert "encrypted jobs only" in answer["error"]
    assert rig.engine.began == []


def test_is_encrypted_false_is_a_plain_job(make: Callable[..., Rig]) -> None:
    assert make().run({**does("Give", size=3), "is_encrypted": False})["status"] == "success"


# --- stopping -----------------------------------------------------------------------------------------------


def test_cancelling_waits_for_the_engine(make: Callable[..., Rig]) -> None:
    rig = make()

    async def scene() -> None:
        job = asyncio.create_task(rig.door.run({"id": "a", "input": does("Deaf", seconds=0.4)}))
        await until(lambda: rig.engine.began)
        for _ in range(3):
            job.cancel()
            await asyncio.sleep(0.02)
        assert not job.done()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert rig.engine.ended == ["a"]

    asyncio.run(scene())


def test_cancelling_a_job_that_waits_for_its_turn_leaves_the_other_alone(make: Callable[..., Rig]) -> None:
    rig = make()

    async def scene() -> None:
        first = asyncio.create_task(rig.door.run({"id": "a", "input": does("Wait", seconds=0.2)}))
        second = asyncio.create_task(rig.door.run({"id": "b", "input": does("Wait", seconds=60)}))
        await until(lambda: rig.engine.began)
        second.cancel()
        with pytest.raises(asyncio.CancelledError):
            await second
        assert not first.done()
        assert (await first)["status"] == "success_no_images"

    asyncio.run(scene())
    assert rig.engine.began == ["a"]


def test_a_job_that_never_stops_gives_the_worker_up(make: Callable[..., Rig], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("settee.doors.runpod.door.OVERDUE_S", 0.0)
    rig = make(comfy_interrupt_s=0.05, comfy_start_timeout_s=0.05)
    spent: list[bool] = []
    rig.door.on_spent = lambda: spent.append(True)

    async def scene() -> dict[str, Any]:
        job = asyncio.create_task(rig.door.run({"id": "a", "input": does("Deaf", seconds=1)}))
        await until(lambda: rig.engine.began)
        job.cancel()
        with pytest.raises(asyncio.CancelledError):
            await job
        assert rig.engine.ended == []
        assert spent
        return await rig.door.run({"id": "b", "input": does("Give", size=1)})

    answer = asyncio.run(scene())
    assert answer["code"] == "comfy_unavailable"
    assert answer["refresh_worker"] is True
    eventually(lambda: rig.engine.ended, what="the end of the engine's thread")


def test_a_shutdown_reaches_a_job_that_begins_during_it(make: Callable[..., Rig]) -> None:
    rig = make(shutdown_grace_s=0.05)

    async def scene() -> dict[str, Any]:
        rig.door.shut_down()
        return await rig.door.run({"id": "a", "input": does("Wait", seconds=60)})

    answer = asyncio.run(scene())
    assert answer["code"] == "canceled"
    assert answer["details"] == {"reason": "shutdown", "retryable": True}
