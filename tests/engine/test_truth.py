"""History and queue decide how a job stands; the socket only tells early. One test per way of getting it wrong."""

from __future__ import annotations

import os
import signal
import time
import uuid
from pathlib import Path

import pytest
import requests

from settee.backends.comfy import comfy_client as client
from settee.base.errors import (
    ComfyError,
    ComfyUnavailable,
    ExecutionFailed,
    JobTimeout,
    OutOfMemory,
    OutputMissing,
    PromptLost,
    WorkflowRejected,
)
from settee.base.job import Status
from tests.support.embedded import EmbeddedServer
from tests.support.rig import QUICK, SLOW, Rig, empty, failing, files_below, slow
from tests.support.waiting import eventually


def test_a_node_error_is_a_failure_that_names_the_node(rig: Rig) -> None:
    with pytest.raises(ExecutionFailed, match=r"node 5 \(SetteeFault\) failed: it broke") as caught:
        rig.run(failing("error", message="it broke"))
    assert caught.value.details["node_id"] == "5"
    assert caught.value.details["exception_type"] == "RuntimeError"
    assert "Traceback" not in str(caught.value.details)


def test_the_final_message_is_lost(rig: Rig) -> None:
    rig.fault("no_final_message")
    assert rig.run(empty(1)).outputs


def test_the_socket_drops_and_the_job_ends_before_it_is_back(rig: Rig) -> None:
    rig.needs_own_comfyui()
    run = rig.start(slow(steps=20, delay_ms=40))
    run.reach(Status.RUNNING, SLOW)
    rig.fault("ws_refuse")
    rig.fault("ws_drop_after", 1)
    assert run.end().outputs
    rig.fault("ws_refuse", None)
    # The next job gets a socket, and its progress, again.
    after = rig.start(slow(steps=3))
    assert after.end().outputs
    assert after.reach(Status.RUNNING, SLOW)


def test_the_socket_drops_and_comes_back_in_the_middle(rig: Rig) -> None:
    rig.needs_own_comfyui()
    run = rig.start(slow(steps=60, delay_ms=50))
    run.reach(Status.RUNNING, SLOW)
    rig.fault("ws_drop_after", 1)
    seen = len(run.progress)
    assert run.end().outputs
    assert [step for step in run.progress[seen + 3 :] if step.node_type == SLOW], "no progress after it"


def test_the_socket_is_open_and_silent(rig: Rig) -> None:
    rig.fault("ws_silent")
    assert rig.run(slow(steps=50, delay_ms=50)).outputs  # longer than COMFY_STALL_S: not mistaken for a dead executor


def test_no_socket_at_all(own_rig: Rig) -> None:
    own_rig.fault("ws_refuse")
    assert own_rig.run(slow(steps=5)).outputs


def test_a_prompt_that_someone_else_deletes(tmp_path: Path) -> None:
    """Only a waiting prompt can be deleted, so another one runs first."""
    with EmbeddedServer(tmp_path / "comfy") as server, Rig(tmp_path / "own", comfy_url=server.url) as rig:
        other = {"prompt": slow(steps=200, delay_ms=20), "prompt_id": str(uuid.uuid4())}
        requests.post(f"{rig.url}/prompt", json=other, timeout=5).raise_for_status()
        rig.running_id()
        run = rig.start(empty(2))
        pending = eventually(lambda: rig.queue()["queue_pending"], what="our prompt in the queue")
        requests.post(f"{rig.url}/queue", json={"delete": [pending[0][1]]}, timeout=5)
        with pytest.raises(ComfyError) as caught:
            run.end()
        assert caught.value.code == "prompt_lost"


def test_a_prompt_that_someone_else_interrupts(rig: Rig) -> None:
    run = rig.start(slow())
    run.reach(Status.RUNNING, SLOW)
    requests.post(f"{rig.url}/interrupt", json={}, timeout=5)
    with pytest.raises(PromptLost, match="interrupted, by someone else"):
        run.end()


def test_comfyui_is_killed_and_the_job_runs_again(rig: Rig) -> None:
    run = rig.start(slow(steps=30))
    run.reach(Status.RUNNING, SLOW)
    rig.send_signal(signal.SIGKILL)
    result = run.end()
    assert len(result.outputs) == 1
    assert "ran twice" in result.warnings[0]


def test_what_the_first_of_two_runs_saved_is_no_output(rig: Rig) -> None:
    graph = slow(steps=30)
    graph["2"] = {"class_type": "SaveImage", "inputs": {"images": ["1", 0], "filename_prefix": "early/first"}}
    run = rig.start(graph)
    run.reach(Status.RUNNING, SLOW)
    eventually(lambda: len(files_below(rig.folders[1])) == 3, what="the first picture")
    rig.send_signal(signal.SIGKILL)
    outputs = [(output.subfolder, output.filename) for output in run.end().outputs]
    assert outputs == [("early", "first_00001_.png"), ("", "made_00001_.png")]


def test_comfyui_dies_of_the_workflow_itself(rig: Rig) -> None:
    with pytest.raises(ComfyUnavailable, match=r"went away twice while it ran node 5 \(SetteeFault\)") as caught:
        rig.run(failing("exit"))
    assert caught.value.retryable
    assert caught.value.details["log"], "the end of ComfyUI's log is missing"
    assert rig.run(empty(3)).outputs


def test_comfyui_freezes_and_is_replaced(rig: Rig) -> None:
    rig.needs_own_comfyui()
    run = rig.start(slow(steps=30))
    run.reach(Status.RUNNING, SLOW)
    pid = rig.send_signal(signal.SIGSTOP)
    assert run.end().outputs
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


def test_a_short_freeze_is_waited_for(rig: Rig) -> None:
    run = rig.start(slow(steps=30))
    run.reach(Status.RUNNING, SLOW)
    generation = rig.server.generation
    rig.send_signal(signal.SIGSTOP)
    time.sleep(1.2)
    rig.send_signal(signal.SIGCONT)
    assert not run.end().warnings
    assert rig.server.generation == generation


def test_a_comfyui_that_is_not_ours_is_restarted_in_mid_run(tmp_path: Path) -> None:
    slow_to_judge = {**QUICK, "comfy_unresponsive_s": 15}
    with EmbeddedServer(tmp_path / "comfy") as server, Rig(tmp_path, **slow_to_judge, **server.shared) as rig:
        run = rig.start(slow(steps=40))
        run.reach(Status.RUNNING, SLOW)
        assert server.process is not None
        server.process.kill()
        server.process.wait(5)
        server.start()
        result = run.end()
        assert result.outputs
        assert "ran twice" in result.warnings[0]


def test_a_comfyui_that_is_not_ours_and_gone_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is not frozen: nobody listens, so nothing of it has to be waited for."""
    monkeypatch.setattr(client, "REFUSED_S", 0.3)
    waits = {**QUICK, "comfy_unresponsive_s": 60}
    with EmbeddedServer(tmp_path / "comfy") as server, Rig(tmp_path, **waits, **server.shared) as rig:
        run = rig.start(slow(steps=1000))
        run.reach(Status.RUNNING, SLOW)
        server.stop()
        gone = r"cannot be reached for \d s, and it did not come back: nothing listens at COMFY_URL"
        with pytest.raises(ComfyUnavailable, match=gone):
            run.end()


def test_a_comfyui_that_is_not_ours_and_gone_between_two_jobs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "REFUSED_S", 0.3)
    waits = {**QUICK, "comfy_unresponsive_s": 60}
    with EmbeddedServer(tmp_path / "comfy") as server, Rig(tmp_path, **waits, **server.shared) as rig:
        assert rig.run(empty(1)).outputs
        server.stop()
        for _ in range(2):  # known to have been there, and not known any more
            with pytest.raises(ComfyUnavailable, match="nothing listens at COMFY_URL"):
                rig.start(empty(2)).end()
        server.start()
        assert rig.run(empty(3)).outputs


def test_history_comes_late(rig: Rig) -> None:
    rig.fault("history_late", 1.5)
    assert rig.run(empty(4)).outputs


def test_history_comes_late_and_the_socket_says_nothing(rig: Rig) -> None:
    rig.fault("history_late", 1.5)
    rig.fault("no_final_message")
    assert rig.run(empty(5)).outputs


def test_history_never_comes(rig: Rig) -> None:
    rig.fault("history_lost")
    with pytest.raises(ComfyError, match="history was not available within 4 s"):
        rig.run(empty(6))


def test_the_same_graph_twice_saves_twice(rig: Rig) -> None:
    graph = slow(steps=2, seed=7)
    first, second = rig.run(graph), rig.run(graph)
    assert second.outputs[0].sha256 == first.outputs[0].sha256, "the metadata shows which job it was"
    assert first.outputs[0].filename == second.outputs[0].filename == "made_00001_.png"
    assert first.outputs[0].subfolder == second.outputs[0].subfolder == ""


def test_only_the_saving_nodes_of_a_known_graph_run_again(rig: Rig) -> None:
    graph = slow(steps=2, seed=8)
    rig.run(graph)
    again = rig.start(graph)
    assert again.end().outputs
    assert {step.node_type for step in again.progress if step.node_type} == {"SaveImage"}


def test_a_partly_bad_prompt_fails_before_it_runs(rig: Rig) -> None:
    graph = slow()
    bad = {"image": ["1", 0], "upscale_method": "nope", "width": 9, "height": 9, "crop": "disabled"}
    graph["20"] = {"class_type": "ImageScale", "inputs": bad}
    graph["21"] = {"class_type": "SaveImage", "inputs": {"images": ["20", 0], "filename_prefix": "bad"}}
    with pytest.raises(WorkflowRejected) as caught:
        rig.run(graph)
    problem = caught.value.details["problems"][0]
    assert (problem["node_id"], problem["class_type"], problem["input"], problem["value"]) == (
        "20",
        "ImageScale",
        "upscale_method",
        "nope",
    )
    graph = {**empty(16), "20": graph["20"], "21": graph["21"]}
    result = rig.run(graph, allow_partial=True)
    assert [output.node_id for output in result.outputs] == ["9"]
    assert "not run (allow_partial): workflow.20.inputs.upscale_method" in result.warnings[0]
    assert not result.warnings[1:], "an output that was not run has nothing to report"


def test_out_of_memory_once_is_freed_and_tried_again(rig: Rig) -> None:
    before = rig.stats()
    rig.fault("oom", 1)
    result = rig.run(empty(9))
    assert result.outputs
    assert "out of memory" in result.warnings[0]
    assert rig.stats()["frees"] > before["frees"]


def test_out_of_memory_for_good_is_a_clear_error(rig: Rig) -> None:
    with pytest.raises(OutOfMemory, match=r"node 5 \(SetteeFault\) ran out of memory, also after it was freed"):
        rig.run(failing("oom"))


def test_an_executor_that_runs_nothing_is_noticed(own_rig: Rig) -> None:
    own_rig.fault("executor_dead")
    result = own_rig.run(empty(10))
    assert result.outputs
    assert "has run nothing" in result.warnings[0]


def test_an_executor_that_someone_killed_before(rig: Rig) -> None:
    """A node without inputs that no output needs leaves a server that answers and never runs again."""
    rig.needs_own_comfyui()
    body = {"prompt": {**empty(11), "5": {"class_type": "ImageInvert"}}}
    requests.post(f"{rig.url}/prompt", json=body, timeout=5)
    assert rig.run(empty(12)).outputs


def test_the_answer_to_post_prompt_is_lost(rig: Rig) -> None:
    rig.fault("prompt_lost_response", 1)
    result = rig.run(slow(steps=5))
    assert len(result.outputs) == 1
    assert rig.server.is_running()


def test_post_prompt_fails_with_500(rig: Rig) -> None:
    rig.fault("prompt_500", 1)
    with pytest.raises(WorkflowRejected, match="HTTP 500"):
        rig.run(empty(13))
    assert rig.run(empty(13)).outputs


def test_a_server_that_takes_connections_and_never_answers(rig: Rig) -> None:
    rig.fault("http_hang", "/prompt")
    assert rig.run(empty(14)).outputs  # it is restarted, which switches the fault off


def test_an_output_that_is_not_there_is_an_error(rig: Rig) -> None:
    rig.fault("delete_outputs")
    with pytest.raises(OutputMissing, match=r"made_00001_\.png"):
        rig.run(empty(15))


def test_a_job_runs_into_its_time_limit(rig: Rig) -> None:
    started = time.monotonic()
    with pytest.raises(JobTimeout, match="time limit of 1 s"):
        rig.run(slow(steps=1000), timeout_s=1)
    assert time.monotonic() - started < 25, "50 s of rendering were left"
    assert rig.is_idle()
