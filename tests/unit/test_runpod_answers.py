"""What goes to RunPod: answers, errors, progress, messages; and how often it is asked."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from settee.base import errors
from settee.base.job import Kind, Output, Progress, Result, Status
from settee.base.json_io import dumps
from settee.doors.runpod import render, wire
from settee.doors.runpod.door import ProgressFeed
from settee.doors.runpod.render import Unreadable
from settee.doors.runpod.wire import TOO_MANY_S, Pace, as_job
from tests.support.waiting import until

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
        answer = render.result(Result(outputs=(output(kind),)))
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
    answer = render.result(Result(outputs=outputs))
    image = answer["images"][0]
    assert (image["data"], image["type"], image["width"], image["height"]) == ("https://bucket/x.png", "s3_url", 3, 4)
    assert answer["texts"][0]["data"] == ""
    assert "width" not in answer["texts"][0]
    assert answer["files"][0]["data"] == "/runpod-volume/x"


def test_seeds_that_were_drawn_are_shown() -> None:
    assert render.result(Result(seeds={"3.seed": 5}))["seeds"] == {"3.seed": 5}
    assert "seeds" not in render.result(Result())


def test_warnings_are_also_errors_as_the_official_worker_calls_them() -> None:
    done = Result(warnings=("node 9 was cached",))
    assert render.result(done)["errors"] == render.result(done)["warnings"] == ["node 9 was cached"]
    assert "errors" not in render.result(Result())


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
        assert isinstance(answer["error"], str), "RunPod shows COMPLETED when error is not text"
        assert answer["error"].strip()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=[])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5) | st.integers(), inner, max_size=3),
    max_leaves=8,
)


@given(details=st.dictionaries(st.text(max_size=5), JSON, max_size=3), message=st.text(st.characters()))
@hypothesis_settings(max_examples=200)
def test_any_error_can_be_posted(details: dict[str, Any], message: str) -> None:
    answer = render.error(errors.ComfyError(message, details=details))
    body = dumps(render.message(answer))
    posted = json.loads(body.decode("utf-8"), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
    assert posted["error"].endswith("[comfy_error]")
    json.dumps(answer, ensure_ascii=False).encode("utf-8")  # the SDK's own way, under its stock loop


@given(value=JSON, char=st.characters(exclude_categories=["Cs"]))
@hypothesis_settings(max_examples=100)
def test_an_answer_in_pieces_is_its_json(value: Any, char: str) -> None:
    answer = render._safe_dict({"value": value, "long": [char * 300_000, {"data": "a" * 600_001}]})
    body = render.Body(answer)
    written = b"".join(body.pieces())
    assert json.loads(written) == answer
    assert len(body) == len(written)


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
    assert render.message({"error": "x", "code": "y", "refresh_worker": True}) == {
        "output": {"code": "y"},
        "error": "x",
        "stopPod": True,
    }
    assert render.message({"images": [], "refresh_worker": False}) == {"output": {"images": []}}


def test_ids_cannot_leave_their_place_in_the_url() -> None:
    template = "http://host/job-done/pod/$ID?gpu=x"
    assert wire.done_url(template, "sync-1a-u1") == "http://host/job-done/pod/sync-1a-u1?gpu=x&isStream=false"
    assert wire.done_url(template, "../x?y#z") == "http://host/job-done/pod/..%2Fx%3Fy%23z?gpu=x&isStream=false"


def test_the_pace_slows_for_quick_nothings_only(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [100.0]
    monkeypatch.setattr("settee.doors.runpod.wire.time.monotonic", lambda: now[0])
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


# --- a job that does not parse ------------------------------------------------------------------------------

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "body",
    [
        f'{{"id": "a-1", "input": {DEEP}}}',
        f'{{"input": {{"id": "not this", "x": {DEEP}, "t": "{{\\"id\\": 1"}}, "id" : "a-1"}}',
        f'[{{"webhook": "id", "input": {DEEP}, "id": "a-1"}}]',
        '{"id": "a-1", "input": {"seed": ' + "9" * 5000 + "}}",
        '{"id": "a-1", "input": "\xff"}',
    ],
    ids=["deep", "after its input", "batch", "digits", "not UTF-8"],
)
def test_a_job_that_does_not_parse_is_taken_by_its_id(body: str) -> None:
    job = as_job(body.encode("latin-1"))
    assert job is not None
    assert job["id"] == "a-1"
    assert isinstance(job["input"], Unreadable)


@pytest.mark.parametrize(
    "body", [b"<html>", b'{"id"', b'{"input": {"id": "a"}', b"[1]", b'{"id": ""}', b'{"input": 1}']
)
def test_what_is_no_job_is_an_error(body: bytes) -> None:
    with pytest.raises(ValueError, match="not a job"):
        as_job(body)


@pytest.mark.parametrize("body", [b"", b"null", b"[]", b" [ ] ", b"[null]"])
def test_an_answer_without_a_job_is_none(body: bytes) -> None:
    assert as_job(body) is None
