"""A result is everything that a job made, or an error: whatever its nodes start, report, send or only write.

The classes are those of tests/support/comfy_pack/embedded.py; a real ComfyUI at COMFY_URL has them with
tests/support/comfy_pack and settee/comfy_nodes/settee_patches in its custom_nodes, without which these are skipped.
"""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import pytest
import requests

from settee.backends.comfy.artifacts import FolderCollector
from settee.base.errors import OutputMissing
from settee.base.job import Artifact, Kind, Progress, Status
from settee.comfyui.node_registry import UNKNOWN
from settee.comfyui.outputs import Ended
from settee.staging.workspace import Workspace
from tests.support.embedded import EmbeddedServer
from tests.support.rig import Rig, b64, empty, files_below, picture, png, slow, told, with_node
from tests.support.waiting import eventually

pytestmark = pytest.mark.usefixtures("comfy_pack")


# --- files that only the disk knows ---------------------------------------------------------------------


def test_files_that_a_saver_does_not_report_are_returned(rig: Rig) -> None:
    result = rig.run(with_node("QuietSaver", folder="quiet/here"))
    assert {(output.filename, output.subfolder, output.node_id, output.kind) for output in result.outputs} == {
        ("q1.png", "quiet/here", "2", Kind.IMAGE),
        ("captions.txt", "quiet/here", "2", Kind.TEXT),
    }
    assert not result.warnings
    assert files_below(*rig.folders) == []


def test_a_saver_with_a_folder_of_its_own_loses_nothing(rig: Rig) -> None:
    for shows in ("true", "false"):
        graph = with_node("Image Save", output_path="day", filename_prefix="ComfyUI", show_previews=shows)
        [output] = rig.run(graph).outputs
        assert (output.node_id, output.filename) == ("2", "ComfyUI_0001.png")
        assert "settee-" not in output.subfolder


def test_a_file_of_which_no_node_is_known_is_returned_with_a_warning(own_rig: Rig) -> None:
    graph = with_node("QuietSaver", folder="a")
    graph["3"] = {"class_type": "QuietSaver", "inputs": {"images": ["1", 0], "folder": "./b"}}
    result = own_rig.run(graph)
    assert sorted((output.node_id, output.subfolder) for output in result.outputs) == [
        *[("", "b")] * 2,
        *[("2", "a")] * 2,
    ]
    assert any("no node reported" in warning for warning in result.warnings)


def test_links_and_hidden_files_below_output_are_not_returned_but_named(rig: Rig, own_rig: Rig) -> None:
    graph = slow(steps=20, delay_ms=20)
    run = own_rig.start(graph)
    run.reach(Status.RUNNING)
    output = own_rig.folders[1]
    (output / "link.png").symlink_to("/etc/hostname")
    (output / ".hidden").write_bytes(b"x")
    (output / "half.mp4.part").write_bytes(b"x")
    (output / "linked").symlink_to("/etc")
    result = run.end()
    assert [each.node_id for each in result.outputs] == ["9"]
    assert any(warning.startswith("4 hidden") for warning in result.warnings)


def test_a_file_that_is_gone_before_it_can_be_taken_is_an_error_only_if_a_node_reported_it(rig: Rig) -> None:
    class Vanishing(Workspace):
        def made(self, below: str = "", kind: str = "output") -> tuple[list[str], int]:
            found = super().made(below, kind)
            for name in found[0]:
                (self.folders.output / name).unlink()
            return found

    workspace = Vanishing(rig.engine.backend.workspace.folders)
    ended = Ended(
        "p", [{"9": {"images": [{"filename": "a.png", "subfolder": "", "type": "output"}]}}], is_alone=lambda: True
    )

    def collected(name: str) -> list[Artifact]:
        (workspace.folders.output / name).write_bytes(b"x")
        return FolderCollector(ended, empty(), UNKNOWN, workspace).collect(None)[0]

    with pytest.raises(OutputMissing):
        collected("a.png")
    ended.outputs.clear()
    assert collected("work.dat") == []


def during(write: Callable[[], object]) -> Callable[[Progress], None]:
    """Tells a job's progress, and lets something else happen once while its nodes run."""
    done: list[object] = []
    return lambda step: None if step.status is not Status.RUNNING or done else done.append(write())


def test_input_files_that_a_node_writes_over_are_returned_and_others_are_not(rig: Rig) -> None:
    folder = rig.engine.backend.workspace.folders.input
    graph = slow(steps=6, delay_ms=40) | {"2": {"class_type": "LoadImage", "inputs": {"image": "a/kept.png"}}}
    images = {name: b64(png((7, 7, 7))) for name in ("a/kept.png", "a/masked.png")}
    result = rig.run(graph, images=images, on_progress=during(lambda: (folder / "a/masked.png").write_bytes(b"masked")))
    assert [(each.filename, each.size) for each in result.outputs if each.node_id != "9"] == [("masked.png", 6)]
    assert any("no node reported masked.png" in warning for warning in result.warnings)


def test_files_that_a_node_adds_to_the_input_folder_are_returned(own_rig: Rig) -> None:
    folder = own_rig.engine.backend.workspace.folders.input
    result = own_rig.run(
        slow(steps=6, delay_ms=40), on_progress=during(lambda: (folder / "new.png").write_bytes(png()))
    )
    assert sorted(each.filename for each in result.outputs) == ["made_00001_.png", "new.png"]


@pytest.mark.parametrize("ends", [True, False])
def test_a_file_that_is_still_being_written_is_waited_for_or_warned_of(rig: Rig, ends: bool) -> None:
    """A node may leave the writing to a thread, or to a program, and return."""
    stop, threads = threading.Event(), []

    def write() -> None:
        with (rig.engine.backend.workspace.folders.output / "film.mp4").open("wb", buffering=0) as file:
            for _ in range(20):
                file.write(bytes(1000))
                time.sleep(0.05)
            if not ends:
                stop.wait(20)

    def begin() -> None:
        threads.append(threading.Thread(target=write))
        threads[0].start()

    try:
        result = rig.run(slow(steps=4, delay_ms=20), on_progress=during(begin))
    finally:
        stop.set()
        threads[0].join()
    assert [each.size for each in result.outputs if each.filename == "film.mp4"] == [20_000]
    warned = [warning for warning in result.warnings if warning.startswith("still open for writing")]
    assert ["film.mp4" in warning for warning in warned] == ([] if ends else [True])


def test_many_files_that_a_node_keeps_open_are_one_warning(rig: Rig) -> None:
    output = rig.engine.backend.workspace.folders.output
    with ExitStack() as stack:

        def leave_open() -> None:
            for number in range(50):
                stack.enter_context((output / f"kept{number:02}.bin").open("wb", buffering=0)).write(b"x")

        result = rig.run(slow(steps=4, delay_ms=20), on_progress=during(leave_open))
    assert len(result.outputs) == 51
    [warning] = [warning for warning in result.warnings if warning.startswith("still open for writing")]
    assert "kept04.bin and 45 more" in warning


@pytest.mark.parametrize("is_alone", [True, False])
def test_only_the_jobs_own_folder_counts_where_others_write_too(tmp_path: Path, is_alone: bool) -> None:
    with EmbeddedServer(tmp_path / "comfy") as server:
        folders = {"comfy_input_dir": server.input_dir, "comfy_output_dir": server.output_dir}
        with Rig(tmp_path / "own", comfy_url=server.url, **folders) as rig:
            if not is_alone:
                requests.post(f"{server.url}/prompt", json={"prompt": slow(steps=20, delay_ms=20)}, timeout=5)
            result = rig.run(with_node("QuietSaver", folder="quiet"))
            assert len(result.outputs) == (2 if is_alone else 0)
            said = any("node 2 (QuietSaver) reported nothing" in warning for warning in result.warnings)
            assert said is not is_alone


def test_what_another_made_between_our_end_and_our_look_is_not_returned(tmp_path: Path) -> None:
    with EmbeddedServer(tmp_path / "comfy") as server:
        folders = {"comfy_input_dir": server.input_dir, "comfy_output_dir": server.output_dir}
        with Rig(tmp_path / "own", comfy_url=server.url, **folders) as rig:

            def history() -> int:
                return len(requests.get(f"{server.url}/history", timeout=5).json())

            def let_another_in(step: Progress) -> None:
                if step.status is Status.SUBMITTED:
                    eventually(lambda: history() == 1, what="our end, which we have not heard of")
                    requests.post(f"{server.url}/prompt", json={"prompt": empty(prefix="theirs")}, timeout=5)
                    eventually(lambda: history() == 2, what="theirs")

            result = rig.run(empty(prefix="ours"), on_progress=let_another_in)
            assert [output.filename for output in result.outputs] == ["ours_00001_.png"]


# --- what nodes report ----------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["tags", "string", "prompt", "caption", "text"])
def test_words_under_any_key_are_texts(rig: Rig, key: str) -> None:
    [output] = rig.run(told(**{key: ["1girl, solo"]})).outputs
    assert (output.kind, output.data, output.node_id) == (Kind.TEXT, "1girl, solo", "2")


def test_what_is_neither_file_nor_word_is_a_text_of_json(rig: Rig) -> None:
    result = rig.run(told(value=[42], boxes=[[1, 2], [3, 4]], has_more=[True], nothing=[None], animated=[False]))
    assert [output.data for output in result.outputs] == ["42", "[[1, 2], [3, 4]]"]
    assert not result.warnings


def test_warnings_stay_few_whatever_a_node_reports(rig: Rig) -> None:
    """RunPod drops a result over its cap, and thousands of warnings were over it."""
    others = [{"filename": f"{number}.png", "subfolder": "", "type": f"t{number}"} for number in range(3000)]
    result = rig.run(told(images=[*others, *others], text=["the word"]))
    assert [output.data for output in result.outputs] == ["the word"]
    assert len(result.warnings) == 51
    assert result.warnings[-1] == "and 2950 more warnings"


def test_files_are_found_in_reports_of_any_shape(rig: Rig) -> None:
    graph = with_node("QuietSaver", folder="deep")
    entry = {"filename": "q1.png", "subfolder": "deep", "type": "output"}
    nested = {"a": [{"b": [{"c": entry}]}], "frames": [[entry], [{**entry, "filename": "captions.txt"}]]}
    graph["3"] = {"class_type": "Teller", "inputs": {"said": json.dumps(nested)}}
    outputs = rig.run(graph).outputs
    assert sorted(output.filename for output in outputs) == ["captions.txt", "q1.png"]


def test_a_file_that_is_reported_and_missing_is_an_error(rig: Rig) -> None:
    with pytest.raises(OutputMissing):
        rig.run(told(images=[{"filename": "gone.png", "subfolder": "", "type": "output"}]))


# --- nodes that become others --------------------------------------------------------------------------------------


@pytest.mark.parametrize("class_type", ["ExpandingSaver", "ExpandingLinked", "ExpandingLoop"])
def test_savers_within_a_node_that_expands_save_again_for_every_job(rig: Rig, class_type: str) -> None:
    if not rig.is_external:
        pytest.skip("the embedded server's nodes do not expand")
    graph = with_node(class_type, count=2, color=time.time_ns() % 10_000)
    if class_type != "ExpandingSaver":
        del graph["1"], graph["2"]["inputs"]["images"]
    graph["9"] = {"class_type": "SaveImage", "inputs": {"images": ["2", 0], "filename_prefix": "last"}}
    for _ in range(3):
        result = rig.run(graph)
        assert [output.node_id for output in result.outputs] == ["2", "2", "9"]
        assert not result.warnings
        texts = [picture(output).text for output in result.outputs]  # type: ignore[attr-defined]
        assert not any("settee" in text["prompt"] for text in texts)


# --- pictures over the socket ---------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_pictures_that_any_output_node_sends_over_the_socket_are_outputs(rig: Rig, kind: str) -> None:
    [output] = rig.run(with_node("ETN_SendImageWebSocket", format=kind)).outputs
    assert (output.node_id, output.media_type) == ("2", f"image/{kind.lower()}")
    assert picture(output).size == (64, 64)


def test_pictures_lost_with_the_socket_are_an_error(own_rig: Rig) -> None:
    own_rig.fault("ws_drop_after", 2)
    with pytest.raises(OutputMissing, match="ETN_SendImageWebSocket"):
        own_rig.run(with_node("ETN_SendImageWebSocket", format="PNG"))


# --- previews -------------------------------------------------------------------------------------------


def test_previews_are_returned_when_a_graph_has_nothing_else(rig: Rig) -> None:
    graph = empty(24, save=False)
    graph["3"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    result = rig.run(graph)
    assert [output.node_id for output in result.outputs] == ["3"]
    assert any("nothing but previews" in warning for warning in result.warnings)
