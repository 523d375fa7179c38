"""What a hostile caller did to the engine with a graph, or a node with its messages: one test per fault found."""

from __future__ import annotations

import dataclasses
import signal
import struct
import time
from pathlib import Path
from typing import Any

import pytest

from settee.backends.backend import Limits
from settee.backends.comfy.artifacts import FolderCollector
from settee.backends.comfy.process import Server
from settee.backends.comfy.prompts import Prompts
from settee.backends.comfy.watcher import Watcher
from settee.base.errors import InvalidRequest, SetteeError
from settee.base.job import Cancel
from settee.base.settings import load
from settee.comfyui import isolation, problems
from settee.comfyui.event_socket import Event, ImageEvent, image_event
from settee.comfyui.follower import Meter
from settee.comfyui.http_api import Queue
from settee.comfyui.node_registry import NodeRegistry
from tests.support.rig import SAVED, Rig, b64, empty, picture, png, refuse, saving, slow
from tests.support.waiting import eventually

# --- graphs that kill ComfyUI's executor thread, or fool it ---------------------------------------------------


@pytest.mark.parametrize("slot", [True, False])
def test_a_link_whose_slot_is_a_boolean_is_a_link_to_comfyui(slot: bool) -> None:
    """graph_utils.is_link takes it for one; execution_list.add_node raises for the missing node, outside any try."""
    refuse(saving(x=["nope", slot]))


def test_a_loop_through_a_boolean_slot_is_a_loop() -> None:
    """Real ComfyUI reports success, with the error in status.messages, and ran nothing."""
    refuse(saving(x=["9", True]))


def test_the_executor_dies_while_it_runs_a_prompt(own_rig: Rig) -> None:
    """execution_start was heard, so the watcher waits for the job's own time limit (an hour by default).

    ComfyUI says so in its log only: "Exception in thread Thread-1 (prompt_worker):".
    """
    job = own_rig.job(empty(), timeout_s=20)
    unchecked = job.request.model_copy(update={"workflow": saving(x=["nope", True])})
    started = time.monotonic()
    with pytest.raises(SetteeError):
        own_rig.engine.run(dataclasses.replace(job, request=unchecked))
    assert time.monotonic() - started < 12
    assert own_rig.run(empty(3)).outputs


def test_a_chain_longer_than_comfyui_can_recurse(rig: Rig) -> None:
    """Through inputs no class declares, so it is not validated; caching.get_ordered_ancestry_internal recurses."""
    graph = empty()
    for index in range(900):
        source = f"n{index - 1}" if index else "1"
        graph[f"n{index}"] = {"class_type": "EmptyImage", "inputs": {**graph["1"]["inputs"], "x": [source, 0]}}
    graph["9"]["inputs"]["images"] = ["n899", 0]
    with pytest.raises(InvalidRequest, match="a chain of 902 nodes"):
        rig.run(graph)


@pytest.mark.parametrize("value", [["nope", 0], ["9", 0]])
def test_a_link_wrapped_as_a_value_is_unwrapped_by_comfyui(value: Any) -> None:
    """validate_inputs replaces {"__value__": x} by x after all link checks; the executor then follows it."""
    refuse(saving(images={"__value__": value}))


@pytest.mark.parametrize("slot", [float("nan"), float("inf"), 0.5])
def test_a_slot_that_is_no_whole_number(slot: float) -> None:
    refuse(saving(images=["1", slot]))


@pytest.mark.parametrize("where", ["_meta", "inputs", "extra_data"])
def test_json_too_deep_for_comfyui(where: str) -> None:
    """Its queue copies prompts with copy.deepcopy in the executor's thread: RecursionError, and the thread is gone."""
    deep: Any = 1
    for _ in range(800):
        deep = {"a": deep}
    graph = empty()
    if where == "extra_data":
        refuse(graph, extra_data={"extra_pnginfo": deep})
    elif where == "_meta":
        graph["1"]["_meta"] = deep
        refuse(graph)
    else:
        graph["1"]["inputs"]["unused"] = deep
        refuse(graph)


def test_an_unused_loader_with_an_odd_input_does_not_end_the_embedded_executor(own_rig: Rig) -> None:
    """Real ComfyUI runs this graph: what IS_CHANGED raises is only a warning there."""
    graph = empty(5)
    graph["3"] = {"class_type": "LoadImage", "inputs": {"image": ["9"]}}
    assert own_rig.run(graph, timeout_s=5).outputs


# --- graphs that reach outside, or break ours ------------------------------------------------------------------


def test_a_path_wrapped_as_a_value_reads_nothing_outside(rig: Rig, tmp_path: Path) -> None:
    outside = tmp_path / "outside.png"
    outside.write_bytes(png())
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": {"__value__": str(outside)}}},
        "9": {"class_type": "SaveImage", "inputs": SAVED},
    }
    with pytest.raises(SetteeError):
        rig.run(graph)


def test_a_latent_is_loaded_from_the_input_folder_only() -> None:
    """LoadLatent's `latent` bears no upload mark; ComfyUI's exists_annotated_filepath takes absolute names."""
    info = {"LoadLatent": {"input": {"required": {"latent": [[]]}}, "output": ["LATENT"], "output_node": False}}
    graph = {"1": {"class_type": "LoadLatent", "inputs": {"latent": "/srv/private/x.latent"}}}
    assert problems.path_problems(graph, NodeRegistry(info))


def test_a_node_id_of_five_thousand_digits(rig: Rig) -> None:
    graph = empty(6)
    graph["1" * 5000] = graph.pop("9")
    assert rig.run(graph).outputs


def test_thousands_of_unknown_classes_are_refused_quickly() -> None:
    info = {f"Custom Node {i} Image Loader (suite)": {"input": {}, "output": []} for i in range(2000)}
    graph = {str(i): {"class_type": f"Custom Image Lodaer Node {i}", "inputs": {}} for i in range(100)}
    started = time.process_time()
    assert problems.registry_problems(graph, NodeRegistry(info))
    assert time.process_time() - started < 3, "5,000 nodes would take fifty times as long, without a cancel check"


# --- pictures of another job -----------------------------------------------------------------------------------


def test_a_fingerprint_in_a_node_does_not_reach_comfyui() -> None:
    """ComfyUI writes `is_changed` into the prompt, so into PNGs too, and believes it when it comes back.

    Real ComfyUI then answers from its cache: LoadImage returns the picture of the job before, whosever it was.
    """
    graph = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "in.png"}, "is_changed": ["1127…"]},
        "9": {"class_type": "SaveImage", "inputs": SAVED},
    }
    assert "is_changed" not in isolation.isolate(graph, NodeRegistry(), "settee-x")["1"]


def test_a_loader_without_a_fingerprint_reads_this_job_s_files(rig: Rig) -> None:
    """Real ComfyUI (COMFY_URL) only: LoadImageSetFromFolderNode has no IS_CHANGED, so its cache key is the folder."""
    rig.run(empty(12))
    if "LoadImageSetFromFolderNode" not in rig.engine.backend._session.registry:
        pytest.skip("needs a ComfyUI with its training nodes")
    graph = {
        "1": {"class_type": "LoadImageSetFromFolderNode", "inputs": {"folder": "set", "resize_method": "None"}},
        "9": {"class_type": "SaveImage", "inputs": SAVED},
    }
    for colour in ((200, 0, 0), (0, 0, 200)):
        [output] = rig.run(graph, images={"set/a.png": b64(png(colour))}).outputs
        assert picture(output).getpixel((3, 3)) == colour


# --- what nodes say over the socket ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "data"),
    [
        ("progress", {"value": "x", "max": 5}),
        ("progress", {"value": [1], "max": 5}),
        ("progress", {"value": float("nan"), "max": 5}),
        ("progress", {"value": 1, "max": float("inf")}),
        ("execution_cached", {"nodes": 5}),
    ],
)
def test_odd_progress_of_a_custom_node(kind: str, data: dict[str, Any]) -> None:
    Meter({"1": {}}).take(Event(kind, data))


@pytest.mark.parametrize("metadata", [b"[]", b"5", b"null"])
def test_odd_metadata_of_a_preview(metadata: bytes) -> None:
    image_event(struct.pack(">II", 4, len(metadata)) + metadata + b"picture")


def test_progress_never_falls_also_when_comfyui_is_restarted(own_rig: Rig) -> None:
    run = own_rig.start(slow(steps=30))
    eventually(lambda: [step for step in run.progress if (step.percent or 0) > 45], what="half of the graph")
    own_rig.send_signal(signal.SIGKILL)
    assert run.end().outputs
    percents = [step.percent for step in run.progress if step.percent is not None]
    assert percents == sorted(percents)


# --- pictures over the socket --------------------------------------------------------------------------------------


def test_a_picture_over_a_socket_that_is_not_there_is_no_success(own_rig: Rig) -> None:
    graph = empty(7, save=False)
    graph["2"] = {"class_type": "SaveImageWebsocket", "inputs": {"images": ["1", 0]}}
    own_rig.fault("ws_refuse")
    with pytest.raises(SetteeError):
        own_rig.run(graph)


@pytest.mark.parametrize("between", [False, True])
def test_history_that_comes_before_the_pictures_does_not_end_the_wait(between: bool) -> None:
    """ComfyUI's executor only queues pictures; its event loop encodes and sends them after history is stored."""

    class Client:
        asked = 0

        def history(self, prompt_id: str, **_: Any) -> dict[str, Any] | None:
            self.asked += 1
            if between and self.asked == 1:
                return None
            return {"outputs": {}, "status": {"status_str": "success"}}

        def queue(self, **_: Any) -> Queue:
            """The prompt ended between the two questions."""
            return Queue((), ())

    class Socket:
        is_open = pristine = True
        remaining = 0
        left = 8

        def receive(self, until: float, cancel: Any) -> Any:
            while self.left and time.monotonic() < until:
                time.sleep(0.2)
                self.left -= 1
                yield ImageEvent("2", "image/png", b"picture")
            if not self.left:
                yield Event("executing", {"node": None, "prompt_id": "p"})

    server = Server(Client())  # type: ignore[arg-type]  # stands for one that has answered
    with Cancel() as cancel:
        watcher = Watcher(
            server,
            Socket(),  # type: ignore[arg-type]
            "p",
            {"2": {"class_type": "SaveImageWebsocket", "inputs": {}}},
            load(),
            lambda *_, **__: None,
            Prompts(server, load(), lambda _: None),
            Limits(cancel=cancel, deadline=time.monotonic() + 10),
            senders={"2"},
        )
        assert len([*watcher.entries()]) == 1
    assert len(watcher.ended.pictures) == 8


def test_previews_are_not_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every step of a sampler sends one; only pictures of SaveImageWebsocket are outputs."""
    kept: list[int] = []

    def spy(*args: Any, **named: Any) -> Any:
        kept.append(len(args[0].pictures))
        return FolderCollector(*args, **named)

    monkeypatch.setattr("settee.backends.comfy.comfy_backend.FolderCollector", spy)
    with Rig(tmp_path, embedded=True, comfy_args="--preview-method auto") as rig:
        assert rig.run(slow(steps=20, delay_ms=5)).outputs
    assert kept == [0]
