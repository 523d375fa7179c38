"""One job through the door, in this process, on the stub engine."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from settee import errors
from settee.doors.runpod import render, wire
from settee.doors.runpod.door import ENVELOPE, Door
from settee.doors.runpod.progress import ProgressFeed
from settee.doors.runpod.take import TOO_MANY_S, Pace
from settee.job import Kind, Output, Progress, Result, Status
from settee.sealing import Sealer, generate_key
from settee.settings import Settings
from tests.support.stub_engine import StubEngine

KEY = generate_key()


def does(what: str, **inputs: Any) -> dict[str, Any]:
    return {"workflow": {"1": {"class_type": what, "inputs": inputs}}}


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


async def until(condition: Callable[[], Any], timeout_s: float = 5.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


# --- answers ------------------------------------------------------------------------------------------------


def output(kind: Kind, **fields: Any) -> Output:
    given = {
        "filename": f"{kind.value}.bin",
        "subfolder": "a/b",
        "kind": kind,
        "node_id": "57:8",
        "media_type": "application/octet-stream",
        "size": 1,
        "sha256": "ab",
        "type": "base64",
        "data": "AA==",
    }
    return Output(**{**given, **fields})


def test_every_kind_has_its_list_and_images_is_always_there() -> None:
    for kind in Kind:
        answer = render.result(Result(job_id="1", status=Status.SUCCEEDED, outputs=(output(kind),)))
        assert answer["status"] == "success"
        assert {key: len(answer[key]) for key in ("images", "videos", "audio", "models_3d", "texts", "files")} == {
            other.value: int(other is kind) for other in Kind
        }


def test_data_is_the_content_or_where_it_went() -> None:
    outputs = (
        output(Kind.IMAGE, type="s3_url", data=None, url="https://bucket/x.png", width=3, height=4),
        output(Kind.TEXT, type="text", data=""),
        output(Kind.FILE, type="path", data=None, url="/runpod-volume/x"),
    )
    answer = render.result(Result(job_id="1", status=Status.SUCCEEDED, outputs=outputs))
    image = answer["images"][0]
    assert (image["data"], image["type"], image["width"], image["height"]) == ("https://bucket/x.png", "s3_url", 3, 4)
    assert answer["texts"][0]["data"] == ""
    assert "width" not in answer["texts"][0]
    assert answer["files"][0]["data"] == "/runpod-volume/x"


def test_warnings_are_also_errors_as_the_official_worker_calls_them() -> None:
    done = Result(job_id="1", status=Status.SUCCEEDED, warnings=("node 9 was cached",))
    assert render.result(done)["errors"] == render.result(done)["warnings"] == ["node 9 was cached"]
    assert "errors" not in render.result(Result(job_id="1", status=Status.SUCCEEDED))


def test_an_error_is_one_line_that_ends_in_its_code() -> None:
    answer = render.error(errors.ExecutionFailed("node 3\n\n  failed\tbadly"))
    assert answer == {"error": "node 3 failed badly [execution_failed]", "code": "execution_failed", "details": {}}


def test_a_long_error_is_cut_and_its_whole_text_in_details() -> None:
    answer = render.error(errors.ComfyError("x" * 10_000))
    assert len(answer["error"]) < 2100
    assert answer["error"].endswith("… [comfy_error]")
    assert answer["details"]["message"] == "x" * 10_000


def test_an_error_says_when_sending_again_may_help() -> None:
    assert render.error(errors.DownloadFailed())["details"] == {"retryable": True}
    assert render.error(errors.ModelMissing())["details"] == {}


def test_every_error_of_the_tree_is_shown_as_failed() -> None:
    def below(kind: type[errors.SetteeError]) -> Iterator[type[errors.SetteeError]]:
        yield kind
        for child in kind.__subclasses__():
            yield from below(child)

    for kind in below(errors.SetteeError):
        answer = render.error(kind())
        assert isinstance(answer["error"], str), "RunPod shows COMPLETED when error is no text"
        assert answer["error"].strip()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(details=st.dictionaries(st.text(max_size=5), JSON, max_size=3), message=st.text(st.characters()))
@hypothesis_settings(max_examples=200, deadline=None)
def test_any_error_can_be_posted(details: dict[str, Any], message: str) -> None:
    answer = render.error(errors.ComfyError(message, details=details))
    body = wire.encode(wire.message(answer))
    posted = json.loads(body.decode("utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert posted["error"].endswith("[comfy_error]")
    json.dumps(answer, ensure_ascii=False).encode("utf-8")  # the SDK's own way, under its stock loop


@given(job_input=JSON)
@hypothesis_settings(max_examples=200, deadline=None)
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


def test_jobs_that_come_at_once_wait_for_one_another(make: Callable[..., Rig]) -> None:
    rig = make()

    async def scene() -> list[dict[str, Any]]:
        jobs = [rig.door.run({"id": str(number), "input": does("Wait", seconds=0.02)}) for number in range(5)]
        return await asyncio.gather(*jobs)

    assert [answer["status"] for answer in asyncio.run(scene())] == ["success_no_images"] * 5
    assert rig.engine.began == rig.engine.ended == list("01234")


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
    deadline = time.monotonic() + 5
    while not rig.engine.ended:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_shutdown_reaches_a_job_that_begins_during_it(make: Callable[..., Rig]) -> None:
    rig = make(shutdown_grace_s=0.05)

    async def scene() -> dict[str, Any]:
        rig.door.shut_down()
        return await rig.door.run({"id": "a", "input": does("Wait", seconds=60)})

    answer = asyncio.run(scene())
    assert answer["code"] == "canceled"
    assert answer["details"] == {"reason": "shutdown", "retryable": True}


# --- progress -----------------------------------------------------------------------------------------------


def play(scene: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(scene())


def test_progress_keeps_to_the_latest() -> None:
    sent: list[dict[str, Any]] = []

    async def post(update: dict[str, Any]) -> None:
        sent.append(update)

    async def scene() -> None:
        feed = ProgressFeed(post, 0.02)
        for number in range(1000):
            feed.offer({"n": number})
        await until(lambda: sent)
        feed.offer({"n": 1000})
        await until(lambda: len(sent) == 2)
        await feed.settle()
        feed.offer({"n": 1001})
        await asyncio.sleep(0.05)

    play(scene)
    assert sent == [{"n": 999}, {"n": 1000}]


def test_settling_waits_for_an_update_in_flight_but_not_for_long() -> None:
    ended: list[str] = []

    async def scene() -> None:
        release = asyncio.Event()

        async def post(update: dict[str, Any]) -> None:
            try:
                await release.wait()
                ended.append("sent")
            except asyncio.CancelledError:
                ended.append("cut off")
                raise

        for timeout_s, let_go in ((5.0, True), (0.05, False)):
            release.clear()
            feed = ProgressFeed(post, 0.01)
            feed.offer({"n": 1})
            await asyncio.sleep(0.05)
            if let_go:
                asyncio.get_running_loop().call_later(0.05, release.set)
            await feed.settle(timeout_s)

    play(scene)
    assert ended == ["sent", "cut off"]


def test_progress_that_cannot_be_sent_is_nobodys_problem() -> None:
    tried: list[int] = []

    async def post(update: dict[str, Any]) -> None:
        tried.append(update["n"])
        raise OSError("no route to RunPod")

    async def scene() -> None:
        feed = ProgressFeed(post, 0.01)
        for number in range(3):
            feed.offer({"n": number})
            await until(lambda number=number: number in tried)  # type: ignore[misc]
        await feed.settle()

    play(scene)
    assert tried == [0, 1, 2]


def test_progress_of_a_sealed_job_is_a_phase_and_a_number() -> None:
    event = Progress(
        job_id="a",
        status=Status.RUNNING,
        node_id="5",
        node_type="KSampler",
        value=3,
        maximum=20,
        percent=40.0,
        message="private",
    )
    assert render.progress(event, sealed=True) == {"phase": "running", "percent": 40.0}
    assert render.progress(event, sealed=False) == {
        "phase": "running",
        "percent": 40.0,
        "node": "5",
        "node_type": "KSampler",
        "step": 3,
        "max": 20,
        "message": "private",
    }


# --- the wire -----------------------------------------------------------------------------------------------


def test_messages_have_the_sdks_shape() -> None:
    assert wire.message({"error": "x", "code": "y", "refresh_worker": True}) == {
        "output": {"code": "y"},
        "error": "x",
        "stopPod": True,
    }
    assert wire.message({"images": [], "refresh_worker": False}) == {"output": {"images": []}}


def test_ids_cannot_leave_their_place_in_the_url() -> None:
    template = "http://host/job-done/pod/$ID?gpu=x"
    assert wire.done_url(template, "sync-1a-u1") == "http://host/job-done/pod/sync-1a-u1?gpu=x&isStream=false"
    assert wire.done_url(template, "../x?y#z") == "http://host/job-done/pod/..%2Fx%3Fy%23z?gpu=x&isStream=false"


def test_the_pace_slows_for_quick_nothings_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("settee.doors.runpod.take.time.monotonic", lambda: now[0])
    pace = Pace()
    waits = []
    for _ in range(6):
        pace.took(False)
        waits.append(pace.delay_s())
        now[0] += waits[-1]
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.0, 1.0]
    now[0] += 20  # a long poll
    pace.took(False)
    assert pace.delay_s() == 0
    pace.took(True)
    assert pace.delay_s() == 0
    pace.too_many()
    assert pace.delay_s() == TOO_MANY_S
    waits = []
    for _ in range(6):
        pace.failed()
        waits.append(pace.delay_s())
    assert waits == [1, 2, 4, 8, 10, 10]
    assert all(math.isfinite(wait) for wait in waits)
