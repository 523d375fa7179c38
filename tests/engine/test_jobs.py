"""What a job may ask for, what it gets, and what it leaves behind: nothing."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import Busy, ComfyUnavailable, InvalidRequest, JobCanceled, SetteeError, WorkflowRejected
from settee.base.job import Cancel, Kind, Status
from tests.support.embedded import EmbeddedServer
from tests.support.rig import (
    EXTERNAL,
    ROOT,
    SLOW,
    Rig,
    b64,
    empty,
    failing,
    files_below,
    picture,
    png,
    slow,
)
from tests.support.waiting import eventually


def load(name: str = "in.png", prefix: str = "made") -> dict[str, Any]:
    return {
        "1": {"class_type": "LoadImage", "inputs": {"image": name}},
        "2": {"class_type": "ImageInvert", "inputs": {"image": ["1", 0]}},
        "9": {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": prefix}},
    }


# --- what comes back ---------------------------------------------------------------------------------------


def test_a_picture_goes_in_and_its_inverse_comes_out(rig: Rig) -> None:
    result = rig.run(load("sub/in.png"), images=[{"name": "sub/in.png", "image": b64(png((10, 200, 30)))}])
    [output] = result.outputs
    assert (output.kind, output.type, output.media_type, output.node_id) == (Kind.IMAGE, "base64", "image/png", "9")
    assert (output.width, output.height) == (64, 64)
    assert picture(output).getpixel((5, 5)) in [(245, 55, 225), (245, 54, 225)]  # ComfyUI cuts 54.99999 off
    assert set(result.timings) >= {"staging", "execution", "delivery", "wipe", "total"}
    assert not result.warnings


def test_every_kind_of_output_is_told_by_its_suffix(rig: Rig) -> None:
    graph = {"1": {"class_type": "SetteeSaveFiles", "inputs": {"kind": "all", "filename_prefix": "a/b", "text": "hé"}}}
    outputs = rig.run(graph).outputs
    kinds = {output.kind: output for output in outputs}
    assert set(kinds) == {Kind.AUDIO, Kind.MODEL_3D, Kind.VIDEO, Kind.IMAGE, Kind.TEXT}
    assert "hé" in [output.data for output in outputs if output.type == "text"]
    assert {output.subfolder for output in outputs if output.type == "base64"} == {"a"}


def test_outputs_keep_the_subfolder_their_author_meant(rig: Rig) -> None:
    [output] = rig.run(empty(21, prefix="deep/er/name")).outputs
    assert (output.subfolder, output.filename) == ("deep/er", "name_00001_.png")


def test_patterns_of_a_prefix_are_filled_in_as_the_editor_does(rig: Rig) -> None:
    [output] = rig.run(empty(26, prefix="%date:yyyy%/%EmptyImage.color%_%width%_%nothing.here%")).outputs
    assert (output.subfolder, output.filename) == (time.strftime("%Y"), "26_64_%nothing.here%_00001_.png")


def test_a_pattern_that_leads_out_of_the_folder_is_refused(rig: Rig) -> None:
    graph = empty(prefix="%Words.value%/x")
    graph["2"] = {"class_type": "PrimitiveString", "inputs": {"value": ".."}, "_meta": {"title": "Words"}}
    with pytest.raises(InvalidRequest, match="leaves its folder"):
        rig.run(graph)


def test_previews_are_returned_only_when_asked_for(rig: Rig) -> None:
    graph = empty(22)
    graph["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    result = rig.run(graph)
    assert [output.node_id for output in result.outputs] == ["9"]
    assert "include_temp" in result.warnings[0]
    # Again, with nothing changed: a cached preview's file is long wiped, so it must be made again too.
    again = rig.run(graph, delivery={"include_temp": True})
    assert sorted(output.node_id for output in again.outputs) == ["3", "9"]


def test_a_picture_over_the_socket_is_an_output(rig: Rig) -> None:
    graph = empty(23, save=False)
    graph["2"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}
    [output] = rig.run(graph).outputs
    assert output.node_id == "2"
    assert picture(output).size == (64, 64)


def test_progress_names_nodes_and_steps_and_never_falls(rig: Rig) -> None:
    run = rig.start(slow(steps=6, delay_ms=10))
    run.end()
    steps = [(step.value, step.maximum) for step in run.progress if step.node_type == SLOW and step.value]
    assert EXTERNAL or {(1, 6), (6, 6)} <= set(steps)
    percents = [step.percent for step in run.progress if step.percent is not None]
    assert percents == sorted(percents)
    assert percents[-1] == 100
    order = [step.status for step in run.progress]
    assert order == sorted(order, key=list(Status).index), "a job went back to an earlier state"


def test_stand_ins_for_models_say_so_in_every_result(own_rig: Rig) -> None:
    graph = empty()
    graph["2"] = {"class_type": "VAELoader", "inputs": {"vae_name": "pixel_space"}}
    graph["3"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["1", 0], "vae": ["2", 0]}}
    graph["4"] = {"class_type": "VAEDecode", "inputs": {"samples": ["3", 0], "vae": ["2", 0]}}
    graph["9"]["inputs"]["images"] = ["4", 0]
    for _ in range(2):
        assert own_rig.run(graph).warnings == (
            "made up by settee's embedded ComfyUI, which runs no model: 2 (VAELoader)",
        )


# --- seeds ---------------------------------------------------------------------------------------------------


def seeded(seed: Any, class_type: str = "PrimitiveInt") -> dict[str, Any]:
    """A picture that depends on a seed, which comes by a link."""
    graph = slow(steps=1, delay_ms=0)
    graph["5"]["inputs"]["seed"] = ["20", 0]
    graph["20"] = {"class_type": class_type, "inputs": {"value": seed}}
    return graph


@pytest.mark.skipif(EXTERNAL is not None, reason="its picture is made by a node of the embedded server")
@pytest.mark.parametrize(("seed", "request_"), [(-1, {}), (77, {"seeds": "random"})])
def test_a_seed_is_drawn_and_the_picture_can_be_made_again(rig: Rig, seed: int, request_: dict[str, Any]) -> None:
    results = [rig.run(seeded(seed), **request_) for _ in range(2)]
    first, second = (result.outputs[0].sha256 for result in results)
    assert first != second
    assert [list(result.seeds) for result in results] == [["20.value"]] * 2
    again = rig.run(seeded(results[0].seeds["20.value"]))
    assert (again.outputs[0].sha256, again.seeds) == (first, {})


def test_seeds_that_cannot_be_drawn_are_named(rig: Rig) -> None:
    result = rig.run(empty(25), seeds="random")
    assert (result.seeds, result.warnings) == ({}, ("seeds: random: this workflow has no seed to draw",))


# --- what is refused, before any GPU time ---------------------------------------------------------------------


def test_every_problem_is_named_at_once_with_near_matches(rig: Rig) -> None:
    graph = {
        "1": {"class_type": "EmtyImage", "inputs": {}},
        "2": {"class_type": "SaveImages", "inputs": {"images": ["1", 0]}},
        "3": {"class_type": "ImageScale", "inputs": {"image": ["1", 0]}},
    }
    with pytest.raises(WorkflowRejected, match="did you mean 'EmptyImage'") as caught:
        rig.run(graph)
    problems = {(item["node_id"], item.get("input")): item for item in caught.value.details["problems"]}
    assert problems[("1", None)]["near"][0] == "EmptyImage"
    assert problems[("2", None)]["near"][0] == "SaveImage"
    assert ("3", "upscale_method") in problems


def test_a_value_that_comfyui_refuses_is_explained(rig: Rig) -> None:
    graph = load()
    graph["2"] = {
        "class_type": "ImageScaleBy",
        "inputs": {"image": ["1", 0], "upscale_method": "lancos", "scale_by": 900.0},
    }
    with pytest.raises(WorkflowRejected) as caught:
        rig.run(graph, images={"in.png": b64(png())})
    problems = {item["input"]: item for item in caught.value.details["problems"]}
    assert problems["upscale_method"]["near"][0] == "lanczos"
    assert problems["upscale_method"]["value"] == "lancos"
    assert problems["scale_by"]["value"] == 900.0


def test_a_file_that_did_not_come_with_the_job(rig: Rig) -> None:
    with pytest.raises(InvalidRequest, match=r"did not come with the job.*did you mean 'photo\.png'"):
        rig.run(load("phto.png"), images={"photo.png": b64(png())})


@pytest.mark.parametrize("name", ["/etc/hostname", "../../secret.png", "C:\\x.png", "a.png [output]", "~/x.png"])
def test_a_file_outside_the_input_folder_is_refused(rig: Rig, name: str) -> None:
    with pytest.raises(InvalidRequest):
        rig.run(load(name))


def test_a_workflow_without_an_output_node(rig: Rig) -> None:
    with pytest.raises(WorkflowRejected, match="no output node"):
        rig.run(empty(25, save=False))


def test_node_classes_can_be_ruled_out(tmp_path: Path) -> None:
    with (
        EmbeddedServer(tmp_path / "comfy") as server,
        Rig(tmp_path, comfy_url=server.url, denied_nodes=("Save*",), allowed_nodes=("EmptyImage", "SaveImage")) as rig,
    ):
        with pytest.raises(InvalidRequest, match="DENIED_NODES"):
            rig.run(empty())
        with pytest.raises(InvalidRequest, match="ALLOWED_NODES"):
            rig.run({"1": {"class_type": "LoadImage", "inputs": {"image": "x.png"}}})


# --- stopping --------------------------------------------------------------------------------------------------


def test_cancel_stops_comfyui_itself(rig: Rig) -> None:
    run = rig.start(slow(steps=1000, delay_ms=20))
    run.reach(Status.RUNNING, SLOW)
    started = time.monotonic()
    run.cancel.set()
    with pytest.raises(JobCanceled):
        run.end()
    assert time.monotonic() - started < 15, "20 s of rendering were left"
    assert rig.is_idle(), "the slot is free while ComfyUI renders on"
    assert rig.run(empty(26)).outputs


def test_cancel_before_the_job_begins(rig: Rig) -> None:
    with Cancel() as cancel:
        cancel.set()
        with pytest.raises(JobCanceled):
            rig.run(empty(27), cancel=cancel)


def test_cancel_of_a_node_that_does_not_listen_costs_comfyui_a_restart(rig: Rig) -> None:
    generation = rig.server.generation
    run = rig.start(failing("sleep", seconds=60))
    run.reach(Status.RUNNING, "SetteeFault")
    run.cancel.set()
    with pytest.raises(JobCanceled):
        run.end()
    rig.engine.backend.wait_ready(20)
    assert rig.server.generation == generation + 1
    assert rig.run(empty(28)).outputs


def test_cancel_while_the_interrupt_is_slow(rig: Rig) -> None:
    rig.fault("interrupt_slow", 1)
    run = rig.start(slow(steps=1000, delay_ms=20))
    run.reach(Status.RUNNING, SLOW)
    run.cancel.set()
    with pytest.raises(JobCanceled):
        run.end()
    assert rig.is_idle()


def test_a_server_that_is_not_ours_and_does_not_stop_takes_no_job_meanwhile(tmp_path: Path) -> None:
    with (
        EmbeddedServer(tmp_path / "comfy") as server,
        Rig(tmp_path, comfy_url=server.url, comfy_interrupt_s=0.5) as rig,
    ):
        run = rig.start(failing("sleep", seconds=2))
        run.reach(Status.RUNNING, "SetteeFault")
        run.cancel.set()
        with pytest.raises(JobCanceled):
            run.end()
        with pytest.raises(ComfyUnavailable, match="does not stop an earlier job"):
            rig.run(empty())
        assert not rig.engine.settle(10, lambda: True)
        assert not rig.engine.settle(0, lambda: False)
        assert rig.engine.settle(10, lambda: False)
        assert rig.is_idle()
        assert rig.run(empty()).outputs


def test_one_job_at_a_time(rig: Rig) -> None:
    run = rig.start(slow(steps=1000, delay_ms=20))
    run.reach(Status.RUNNING, SLOW)
    with pytest.raises(Busy):
        rig.run(empty(29))
    run.cancel.set()
    with pytest.raises(JobCanceled):
        run.end()


# --- what is left ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "graph", [empty(30, prefix="a/b/c"), failing("error"), {"1": {"class_type": "X", "inputs": {}}}]
)
def test_nothing_is_left_after_success_or_failure(rig: Rig, graph: dict[str, Any]) -> None:
    images = {"deep/secret.png": b64(png())}
    with contextlib.suppress(SetteeError):
        rig.run(graph, images=images)
    assert files_below(*rig.folders) == []


def test_the_bytes_of_inputs_and_outputs_are_gone_not_only_their_names(rig: Rig) -> None:
    """Descriptors opened while the job ran still read the same pages afterwards: zeros."""
    graph = slow(steps=1000, delay_ms=20)
    graph["2"] = {"class_type": "LoadImage", "inputs": {"image": "secret.png"}}
    graph["3"] = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "copy"}}
    run = rig.start(graph, images={"secret.png": b64(png())})
    run.reach(Status.RUNNING, SLOW)
    paths = [path for path in files_below(*rig.folders) if path.is_file()]
    assert paths
    opened = [path.open("rb") for path in paths]
    before = [file.read() for file in opened]
    assert all(any(content) for content in before)
    run.cancel.set()
    with pytest.raises(JobCanceled):
        run.end()
    for file, content in zip(opened, before, strict=True):
        file.seek(0)
        assert not any(file.read(len(content)))
        file.close()


def test_debug_keeps_the_files_until_the_next_job(rig: Rig) -> None:
    rig.run(load(), images={"in.png": b64(png())}, debug=True)
    assert [path.name for path in files_below(rig.folders[0])] == ["in.png"]
    rig.run(empty(31))
    assert files_below(*rig.folders) == []


def test_what_an_earlier_job_left_is_never_returned(rig: Rig) -> None:
    stray = rig.folders[1] / "stray.png"
    stray.write_bytes(png())
    outputs = rig.run(empty(32)).outputs
    assert [output.filename for output in outputs] == ["made_00001_.png"]
    assert not stray.exists()


# --- other servers -------------------------------------------------------------------------------------------------


def test_a_server_whose_folders_are_not_shared(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "comfy") as server, Rig(tmp_path / "own", comfy_url=server.url) as rig:
        [output] = rig.run(load("sub/in.png"), images={"sub/in.png": b64(png((1, 2, 3)))}).outputs
        assert picture(output).getpixel((0, 0)) == pytest.approx((254, 253, 252), abs=1)
        assert (output.width, output.height, output.subfolder) == (64, 64, "")
        [again] = rig.run(load("sub/in.png"), images={"sub/in.png": b64(png((4, 5, 6)))}).outputs
        assert picture(again).getpixel((0, 0)) == pytest.approx((251, 250, 249), abs=1)


def test_a_comfyui_that_never_starts_shows_the_end_of_its_log(tmp_path: Path) -> None:
    rig = Rig(tmp_path, embedded=True, comfy_args="--fault die_at_start")
    rig.engine.start()
    try:
        with pytest.raises(ComfyUnavailable, match="does not start") as caught:
            rig.engine.backend.wait_ready(30)
        assert any("Error" in line for line in caught.value.details["log"])
        assert rig.engine.backend.unrecoverable
        with pytest.raises(ComfyUnavailable):
            rig.run(empty())
    finally:
        rig.engine.close()


def test_a_job_waits_for_a_comfyui_that_still_starts(tmp_path: Path) -> None:
    rig = Rig(tmp_path, embedded=True, comfy_args="--fault slow_start=1.5")
    rig.engine.start()
    try:
        assert rig.run(empty()).outputs
    finally:
        rig.engine.close()


def test_a_worker_that_is_killed_takes_comfyui_with_it(tmp_path: Path) -> None:
    """Nobody is left to stop it: the kernel does."""
    code = (
        "import sys; from pathlib import Path; from tests.support.rig import Rig\n"
        "with Rig(Path(sys.argv[1]), embedded=True) as rig:\n"
        "    print(rig.server._process.pid, flush=True); sys.stdin.read()"
    )
    worker = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert worker.stdin is not None
    assert worker.stdout is not None
    with worker, worker.stdin:
        pid = int(worker.stdout.readline())
        os.kill(pid, 0)
        worker.kill()
        eventually(lambda: not Path(f"/proc/{pid}/cmdline").exists() or not Path(f"/proc/{pid}/cmdline").read_bytes())


def test_closing_the_engine_ends_comfyui(tmp_path: Path) -> None:
    with Rig(tmp_path, embedded=True) as rig:
        process = rig.server._process
    assert process.poll() is not None
