"""The client on a bare ComfyUI: files go there, jobs are followed, results are addresses."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from unittest.mock import DEFAULT, Mock

import pytest
import requests
from PIL import Image

from settee.client.client_errors import JobStopped, NetworkError, Rejected, UsageError
from settee.client.follow import follow, result_of
from settee.client.targets import Answer, Status, comfy
from settee.client.targets.comfy import Comfy
from tests.support.bare_comfy import end, fetched, image, images, is_idle, loading, ran, running, sent
from tests.support.embedded import EmbeddedServer
from tests.support.rig import empty, failing, files_below, png, slow
from tests.support.waiting import eventually


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedServer]:
    with EmbeddedServer(tmp_path_factory.mktemp("comfy"), args=["--max-upload-size", "25"]) as server:
        yield server


@pytest.fixture
def target(server: EmbeddedServer) -> Iterator[Comfy]:
    target = Comfy(f"{server.url}/", api_key="comfy-org-key")
    yield target
    target.close()
    eventually(lambda: is_idle(server), what="an idle ComfyUI")


def colour(content: bytes) -> object:
    with Image.open(io.BytesIO(content)) as picture:
        return picture.convert("RGB").getpixel((0, 0))


# --- jobs ------------------------------------------------------------------------------------------------------


def test_a_picture_goes_there_and_comes_back(target: Comfy) -> None:
    answer = sent(target, loading("1_photo.png"), images=[image("1_photo.png", png((1, 2, 3)))])
    assert answer.status is Status.IN_QUEUE
    result = result_of(follow(target, answer, timeout_s=60))
    [output] = result.outputs
    assert (output.kind, output.type, output.node_id, output.media_type) == ("images", "url", "9", "image/png")
    assert output.filename.startswith("loaded_")
    assert colour(requests.get(output.data, timeout=5).content) == (1, 2, 3)
    assert result.timings["execution"] >= 0


def test_the_same_job_again_saves_again_and_uploads_nothing(server: EmbeddedServer, target: Comfy) -> None:
    """ComfyUI would answer from its cache, with the file of the first time (resubmit_cached.json)."""
    graph, photo = loading("a.png", prefix="again"), [image("a.png", png((9, 9, 9)))]
    [first] = images(ran(target, graph, images=photo))
    uploads = server.stats()["uploads"]
    (server.output_dir / first["filename"]).unlink()
    [second] = images(ran(target, graph, images=photo))
    assert colour(fetched(second)) == (9, 9, 9)
    assert server.stats()["uploads"] == uploads


def test_files_of_one_name_or_one_content_are_not_taken_for_each_other(server: EmbeddedServer, target: Comfy) -> None:
    # Somebody's own file of that name, which must not change.
    (server.input_dir / "a.png").write_bytes(b"mine")
    graph = {}
    given = {
        "a.png": (1, 0, 0),
        "faces/a.png": (2, 0, 0),
        'odd "n\u00e4me" \u56fe.png': (3, 0, 0),
        "copy.png": (1, 0, 0),
    }
    for number, name in enumerate(given):
        graph[f"{number}"] = {"class_type": "LoadImage", "inputs": {"image": f"{name} [input]" if number else name}}
        graph[f"s{number}"] = {
            "class_type": "SaveImage",
            "inputs": {"images": [f"{number}", 0], "filename_prefix": f"name{number}"},
        }
    answer = ran(target, graph, images=[image(name, png(rgb)) for name, rgb in given.items()])
    colours = {item["node_id"]: colour(fetched(item)) for item in images(answer)}
    assert colours == {f"s{number}": rgb for number, rgb in enumerate(given.values())}
    assert (server.input_dir / "a.png").read_bytes() == b"mine"


def test_outputs_of_every_kind(target: Comfy) -> None:
    graph = {
        **empty(),
        "2": {"class_type": "PreviewAny", "inputs": {"source": "s\u00e4id"}},
        "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}},
        "4": {
            "class_type": "SaveAnimatedWEBP",
            "inputs": {
                "images": ["1", 0],
                "filename_prefix": "sub/moving",
                "fps": 6.0,
                "lossless": False,
                "quality": 80,
                "method": "default",
            },
        },
        "5": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}},
    }
    answer = ran(target, graph)
    found = {item["node_id"]: item for item in images(answer)}
    assert set(found) == {"9", "4", "5"}
    assert found["4"]["subfolder"] == "sub"
    assert fetched(found["4"])[8:12] == b"WEBP"
    assert found["5"]["type"] == "base64"
    assert answer.output is not None
    [text] = answer.output["texts"]
    assert (text["data"], text["type"]) == ("s\u00e4id", "text")
    assert answer.output["warnings"] == ["1 preview file(s) were not returned; delivery.include_temp returns them"]
    assert len(images(ran(target, graph, delivery={"include_temp": True}))) == 4


def test_previews_come_back_where_nothing_else_is_made(target: Comfy) -> None:
    graph = {**empty(save=False), "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    answer = ran(target, graph, delivery="auto", extra_data=None, models=[], debug=True)
    assert [item["node_id"] for item in images(answer)] == ["3"]
    assert answer.output is not None
    assert "nothing but previews" in answer.output["warnings"][0]


def test_words_under_any_key_and_pictures_that_any_node_sends_come_back(target: Comfy) -> None:
    words = json.dumps({"tags": ["1girl"], "result": ["gone.glb", {"camera": 1}], "value": [42]})
    graph = {
        **empty(save=False),
        "2": {"class_type": "ETN_SendImageWebSocket", "inputs": {"images": ["1", 0], "format": "JPEG"}},
        "3": {"class_type": "Teller", "inputs": {"said": words}},
    }
    answer = ran(target, graph)
    assert [(item["node_id"], item["media_type"]) for item in images(answer)] == [("2", "image/jpeg")]
    assert answer.output is not None
    assert sorted(item["data"] for item in answer.output["texts"]) == ["1girl", "42", "gone.glb"]


@pytest.mark.parametrize("how", ["queue", "post"])
def test_prompts_that_a_job_starts_are_awaited_and_canceled_with_it(
    server: EmbeddedServer, target: Comfy, how: str
) -> None:
    node = {"images": ["1", 0], "filename_prefix": "v", "batches": 4, "requeue": 0, "how": how}
    graph = {**empty(save=False), "2": {"class_type": "BatchManagerLike", "inputs": node}}
    answer = ran(target, graph)
    assert [item["node_id"] for item in images(answer)] == ["2"]
    assert answer.output is not None
    assert "3 more prompt(s)" in answer.output["warnings"][0]
    node["batches"] = 10_000
    answer = sent(target, graph)
    eventually(lambda: server.stats()["prompts_executed"] > 6)
    eventually(lambda: (target.cancel(answer.job_id), is_idle(server))[1])


def test_progress_and_the_queue(target: Comfy) -> None:
    first, second = sent(target, slow(steps=100, delay_ms=20)), sent(target, slow(steps=2))
    assert target.status(second.job_id).queue_position == 1
    answers: list[Answer] = []
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(end, target, second)
        while not answers or not answers[-1].status.is_terminal:
            answers.append(target.status(first.job_id))
        assert images(other.result())
    told = [answer.progress for answer in answers if answer.progress.get("step")]
    assert {(step["phase"], step["node"], step["node_type"], step["max"]) for step in told} == {
        ("running", "5", "SetteeSampler", 100)
    }
    assert len({step["step"] for step in told}) > 2  # 0.33 tells no closer than 0.1 s apart
    percents = [step["percent"] for step in told]
    assert percents == sorted(percents)
    assert images(answers[-1])


def test_many_jobs_at_once_each_get_their_own(target: Comfy) -> None:
    def job(number: int) -> tuple[int, object]:
        graph = {**empty(number), "2": {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}}
        del graph["9"]
        [one] = images(ran(target, graph, images=[]))
        return number, colour(base64.b64decode(one["data"]))

    with ThreadPoolExecutor(6) as pool:
        assert all(rgb == (0, 0, number) for number, rgb in pool.map(job, range(20)))


def test_callers_that_wait_for_one_job_get_the_same_result(target: Comfy) -> None:
    answer = sent(target, slow(steps=20, delay_ms=5))
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: images(end(target, answer)), range(8)))
    assert found == [found[0]] * 8


def test_keys_go_along_and_stay_nowhere(server: EmbeddedServer, target: Comfy) -> None:
    one = sent(target, slow(steps=200), comfy_org_api_key="of-this-job", extra_data={"extra_pnginfo": {"a": 1}})
    two = sent(target, empty())
    queue = requests.get(f"{server.url}/queue", timeout=5).json()
    extras = {item[1]: item[3] for item in [*queue["queue_running"], *queue["queue_pending"]]}
    assert extras[one.job_id]["extra_pnginfo"] == {"a": 1}
    target.cancel(one.job_id)
    assert images(end(target, two))
    assert end(target, one).status is Status.CANCELLED
    history = requests.get(f"{server.url}/history", timeout=5).text
    assert "of-this-job" not in history
    assert "comfy-org-key" not in history


# --- failures ----------------------------------------------------------------------------------------------------


def test_a_workflow_that_comfyui_refuses_is_explained(target: Comfy) -> None:
    graph = empty()
    graph["1"]["class_type"] = "EmptyImag"
    answer = sent(target, graph)
    assert (answer.status, answer.code) == (Status.FAILED, "workflow_rejected")
    assert "1 EmptyImag: no such node class" in (answer.error or "")
    assert "did you mean 'EmptyImage'" in (answer.error or "")

    answer = sent(target, loading("nowhere.png"))
    assert "workflow: 1 LoadImage: " in (answer.error or "")
    assert "nowhere.png" in (answer.error or "")
    assert answer.details["problems"][0]["input"] == "image"


@pytest.mark.parametrize("allow", [False, True])
def test_a_workflow_that_is_good_in_part(server: EmbeddedServer, target: Comfy, allow: bool) -> None:
    # Refused, it has to be stopped: it would run on for minutes.
    good = slow(steps=2 if allow else 9000)
    graph = {**good, "2": loading("nowhere.png")["1"], "90": good["9"], "9": loading("")["9"]}
    graph["9"]["inputs"]["images"] = ["2", 0]
    answer = ran(target, graph, allow_partial=allow)
    if allow:
        assert [item["node_id"] for item in images(answer)] == ["90"]
        assert answer.output is not None
        [warning] = answer.output["warnings"]
        assert "allow_partial" in warning
        assert "nowhere.png" in warning
    else:
        assert (answer.status, answer.code) == (Status.FAILED, "workflow_rejected")
        assert "nowhere.png" in (answer.error or "")
        eventually(lambda: is_idle(server))


def test_a_node_that_fails_is_named_without_the_servers_paths(server: EmbeddedServer, target: Comfy) -> None:
    answer = ran(target, failing("error", message=f"cannot read {server.root}/models/a.bin"))
    assert (answer.status, answer.code) == (Status.FAILED, "execution_failed")
    assert answer.error == "node 5 (SetteeFault) failed: cannot read a.bin"
    assert answer.details["node_id"] == "5"
    assert str(server.root) not in json.dumps(answer.details)
    answer = ran(target, failing("oom"))
    assert answer.code == "out_of_memory"


def test_a_job_over_its_time_limit_is_ended(target: Comfy) -> None:
    answer = ran(target, slow(steps=4000), timeout_s=0.3)
    assert (answer.status, answer.code) == (Status.TIMED_OUT, "timeout")
    assert "0.3 s" in (answer.error or "")


def test_a_time_limit_outlives_a_cancel_that_found_no_answer(target: Comfy, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = sent(target, slow(steps=4000), timeout_s=0.3)
    run = target._runs[answer.job_id]
    cancel = Mock(wraps=run._cancel_job, side_effect=[NetworkError("no answer"), DEFAULT])
    monkeypatch.setattr(run, "_cancel_job", cancel)
    with pytest.raises(NetworkError, match="no answer"):
        end(target, answer)
    assert end(target, answer).status is Status.TIMED_OUT


# --- cancel, resume -----------------------------------------------------------------------------------------------


def test_cancel_ends_that_job_and_no_other(server: EmbeddedServer, target: Comfy) -> None:
    interrupts = server.stats()["interrupts"]
    first, second, third = sent(target, slow(steps=4000)), sent(target, empty()), sent(target, empty(1))
    running(target, first)
    target.cancel(second.job_id)
    assert end(target, second).status is Status.CANCELLED
    assert server.stats()["interrupts"] == interrupts, "an older ComfyUI interrupts whatever runs"
    assert target.status(first.job_id).status is Status.IN_PROGRESS
    target.cancel(first.job_id)
    answer = end(target, first)
    assert (answer.status, answer.code) == (Status.CANCELLED, "canceled")
    assert images(end(target, third))
    target.cancel(third.job_id)  # it has ended: nothing happens


def test_another_process_resumes_and_cancels(server: EmbeddedServer, target: Comfy) -> None:
    gone = Comfy(server.url)
    stop = threading.Event()
    stop.set()
    answer = sent(gone, slow(steps=200, delay_ms=15), delivery={"include_temp": True})
    with pytest.raises(JobStopped, match="stopped following"):
        follow(gone, answer, timeout_s=60, stop=stop)
    closed = server.stats()["sockets_closed"]
    gone.close()
    # ComfyUI forgets the newer socket of an id where the older one closes later.
    eventually(lambda: server.stats()["sockets_closed"] > closed, what="the closed socket")
    assert running(target, answer).progress["node"] == "5", "its socket is taken over"
    eventually(lambda: target.status(answer.job_id).progress.get("step"), what="a step")
    target.cancel(answer.job_id)
    assert end(target, answer).status is Status.CANCELLED
    with pytest.raises(JobStopped, match="does not know job"):
        target.status("00000000-0000-0000-0000-000000000000")
    with pytest.raises(JobStopped, match="does not know job"):
        target.cancel("../queue")


def test_a_cancel_by_id_is_the_first_thing_asked_for(
    server: EmbeddedServer, target: Comfy, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = sent(target, slow(steps=4000))
    running(target, answer)
    with closing(Comfy(server.url)) as later:
        monkeypatch.setattr(later._wire, "node_registry", None)  # megabytes, on a real one
        later.cancel(answer.job_id)
    assert end(target, answer).status is Status.CANCELLED


def test_jobs_that_wait_for_long_have_no_socket_before_they_run(
    server: EmbeddedServer, target: Comfy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(comfy, "SOCKETS", 1)
    before = server.stats()["sockets_opened"]
    first, second = sent(target, slow(steps=4000)), sent(target, slow(steps=200, delay_ms=15))
    running(target, first)
    assert target.status(second.job_id).queue_position == 1
    assert server.stats()["sockets_opened"] == before + 1, "hundreds of them leave a process no descriptors"
    target.cancel(first.job_id)
    assert running(target, second).progress["node"] == "5"
    assert images(end(target, second))


def test_previews_are_asked_for_once(server: EmbeddedServer, target: Comfy) -> None:
    """What a job was sent with holds for whoever resumes it."""
    graph = {**empty(save=False), "3": {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}}
    answer = sent(target, graph, delivery={"include_temp": True})
    later = Comfy(server.url)
    eventually(lambda: is_idle(server))
    assert [item["node_id"] for item in images(later.status(answer.job_id))] == ["3"]
    later.close()


def test_a_node_that_reports_nothing_fails_no_job_that_is_resumed(server: EmbeddedServer, target: Comfy) -> None:
    graph = {**empty(), "2": {"class_type": "QuietSaver", "inputs": {"images": ["1", 0], "folder": "quiet"}}}
    answer = sent(target, graph)
    later = Comfy(server.url)
    eventually(lambda: is_idle(server))
    for asked in (target, later):
        found = end(asked, answer)
        assert [item["node_id"] for item in images(found)] == ["9"]
        assert found.output is not None
        assert "node 2 (QuietSaver) reported nothing" in found.output["warnings"][0]
    later.close()


# --- refusals before anything is sent ------------------------------------------------------------------------------


def test_what_only_a_worker_can_do_is_refused_and_nothing_is_sent(server: EmbeddedServer, target: Comfy) -> None:
    before, files = server.stats(), files_below(server.input_dir)
    deep: object = 1
    for _ in range(100):
        deep = [deep]
    for asked, words in (
        ({"models": ["org/name:a.safetensors:loras"]}, "fetches no models"),
        ({"delivery": "s3"}, "delivers nothing to S3"),
        ({"delivery": {"image_format": "webp"}}, "image_format"),
        ({"extra_data": {"a": deep}}, "nested"),
        ({"timeout_s": -1}, "timeout_s"),
        ({"workflow": {**empty(), "7": {"class_type": "X", "inputs": {"a": ["nope", 0]}}}}, "not in the workflow"),
        ({"workflow": {**empty(), "7": {"class_type": "X", "inputs": {"a": float("nan")}}}}, "NaN"),
    ):
        with pytest.raises(UsageError, match=words):
            target.submit({"input": {"workflow": empty(), **asked}})
    assert server.stats()["prompts_queued"] == before["prompts_queued"]
    assert files_below(server.input_dir) == files


def test_a_file_that_is_too_large_for_it(target: Comfy) -> None:
    with pytest.raises(Rejected, match="--max-upload-size"):
        sent(target, loading("a.png"), images=[image("a.png", b"\0" * 27_000_000)])


# --- the target itself ------------------------------------------------------------------------------------------------


def test_health_and_registry(target: Comfy) -> None:
    health = target.health()
    assert health["queue"] == {"running": 0, "pending": 0}
    assert "system" in health
    assert "KSampler" in target.node_registry() or "SaveImage" in target.node_registry()


def test_nothing_there_or_something_else(server: EmbeddedServer) -> None:
    nobody = Comfy("http://127.0.0.1:9")
    nobody._wire._http.first_s = 0.1
    with pytest.raises(NetworkError, match="the server cannot be reached"):
        nobody.health()
    other = Comfy(f"{server.url}/settee")
    with pytest.raises(NetworkError, match="not a ComfyUI"):
        other.status("a")
    other.close()
    for address in ("127.0.0.1:8188", "ftp://a", "http://user:secret@host"):
        with pytest.raises(UsageError) as error:
            Comfy(address)
        assert "secret" not in str(error.value)
