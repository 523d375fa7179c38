"""What odd histories, leaks and bad moments did to the engine: one test per fault found."""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from settee.backends.comfy.artifacts import FolderCollector
from settee.backends.comfy.process import SupervisedServer
from settee.base.errors import ComfyUnavailable, SetteeError
from settee.base.job import Status
from settee.base.settings import load
from settee.base.text import neutral
from settee.comfyui.isolation import restore
from settee.comfyui.node_registry import UNKNOWN
from settee.comfyui.outputs import Ended
from settee.comfyui.problems import explain
from settee.staging.workspace import Folders, Workspace
from tests.support.embedded import EmbeddedServer
from tests.support.http_double import Ask, HttpDouble, Reply
from tests.support.rig import QUICK, SLOW, Rig, empty, failing, png, slow
from tests.support.waiting import eventually

# --- what history says -------------------------------------------------------------------------------------------


@pytest.fixture
def space(tmp_path: Path) -> Workspace:
    space = Workspace(Folders(tmp_path / "input", tmp_path / "output", tmp_path / "temp"))
    space.open()
    return space


def collected(space: Workspace, outputs: dict[str, Any]) -> list[Any]:
    return FolderCollector(Ended("settee-x", [outputs]), {}, UNKNOWN, space).collect(False)[0]


@pytest.mark.parametrize("key", ["string", "value", "caption"])
def test_a_text_that_ends_like_a_picture_is_no_missing_file(space: Workspace, key: str) -> None:
    collected(space, {"1": {key: ["a photo of cat.png"]}})


def test_an_artifact_has_a_plain_name(space: Workspace) -> None:
    """A custom node may report the absolute name; it must not reach a caller, who writes files under these names."""
    (space.folders.output / "sub").mkdir()
    file = space.folders.output / "sub" / "a.png"
    file.write_bytes(png())
    for name in (str(file), "sub/a.png", "sub/../sub/a.png"):
        [artifact] = collected(space, {"1": {"images": [{"filename": name, "subfolder": "", "type": "output"}]}})
        assert (artifact.subfolder, artifact.filename) == ("sub", "a.png")


@pytest.mark.parametrize("node_id", ["../../x", "a/b", "\0", "\ud800", "."])
def test_a_text_has_a_plain_name_whatever_its_node_is_called(space: Workspace, node_id: str) -> None:
    [artifact] = collected(space, {node_id: {"text": ["hello"]}})
    assert "/" not in artifact.filename
    assert artifact.filename.isprintable()
    assert not artifact.filename.startswith(".")


def test_an_empty_prefix_shows_nothing_of_ours(rig: Rig) -> None:
    [output] = rig.run(empty(8, prefix="")).outputs
    assert "settee" not in f"{output.subfolder}/{output.filename}"


def test_a_picture_of_zeroes_is_not_walked_for_minutes(tmp_path: Path) -> None:
    path = tmp_path / "z.webp"
    with path.open("wb") as file:
        file.write(b"RIFF\0\0\0\0WEBP")
        file.truncate(40_000_000)
    started = time.process_time()
    restore(path, "settee-x")
    assert time.process_time() - started < 1


# --- what leaks ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["at path:/srv/private/x", "see file:///srv/private/x"])
def test_paths_after_a_colon_are_cut_too(text: str) -> None:
    assert "/srv" not in neutral(text)


def test_what_comfyui_says_of_a_workflow_has_no_host_path() -> None:
    said = {"type": "exception_during_validation", "message": "Exception", "details": "'/srv/private/secret/x.txt'"}
    problems = explain({"1": {"class_type": "A", "errors": [said]}}, {}, UNKNOWN)
    assert "/srv" not in json.dumps(problems)


def test_the_log_in_an_error_is_of_this_job_only(own_rig: Rig) -> None:
    with pytest.raises(SetteeError):
        own_rig.run(failing("error", message="words of caller A"))
    with pytest.raises(ComfyUnavailable) as caught:
        own_rig.run(failing("exit"))
    assert "words of caller A" not in str(caught.value.details)
    assert "Traceback" not in str(caught.value.details)


def test_what_a_sealed_job_prints_does_not_come_out_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """ComfyUI wraps stdout (app/logger.py) so that what a node prints waits for 8 KiB, PYTHONUNBUFFERED or not.

    It comes out during a later job, or at the end.
    """
    script = tmp_path / "comfyui.py"
    script.write_text(
        "import io, pathlib, sys, time\n"
        f"here = pathlib.Path({str(tmp_path)!r})\n"
        "sys.stdout = io.TextIOWrapper(sys.stdout.buffer, line_buffering=sys.stdout.line_buffering)\n"
        "def wait(name):\n"
        "    while not (here / name).exists(): time.sleep(0.005)\n"
        "wait('sealed'); print('words of a sealed job'); (here / 'printed').touch()\n"
        "wait('end'); print('got prompt', file=sys.stderr, flush=True); print('words of a later one')\n"
    )
    settings = load(
        comfy_url=None, comfy_port=0, comfy_command=f"{sys.executable} {script}", workspace_dir=tmp_path / "space"
    )
    server = SupervisedServer(settings, Folders(tmp_path / "i", tmp_path / "o", tmp_path / "space/temp"))
    caplog.set_level("INFO", "comfyui")
    server.start()
    try:
        with server.quiet():
            (tmp_path / "sealed").touch()
            eventually((tmp_path / "printed").exists)
        (tmp_path / "end").touch()
        eventually(lambda: server.unrecoverable, what="its end")
        with pytest.raises(AssertionError):
            eventually(lambda: "words of a sealed job" in caplog.text + str(server.log_tail(200)), timeout_s=1)
    finally:
        server.close()


# --- bad moments -------------------------------------------------------------------------------------------------


def test_closing_the_engine_ends_a_running_job_with_an_error_of_ours(tmp_path: Path) -> None:
    with Rig(tmp_path, embedded=True, comfy_start_timeout_s=20) as rig:
        run = rig.start(slow(steps=400))
        run.reach(Status.RUNNING, SLOW)
        started = time.monotonic()
        rig.engine.close()
        with pytest.raises(SetteeError):
            run.end()
        assert time.monotonic() - started < 10, "the job waited for a ComfyUI that will not come back"


def test_closing_the_engine_ends_what_comfyui_started(tmp_path: Path) -> None:
    note = tmp_path / "pid"
    script = tmp_path / "comfyui.py"
    script.write_text(
        "import pathlib, signal, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import signal, time\\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN)\\nprint(1, flush=True)\\n"
        "time.sleep(60)'], stdout=subprocess.PIPE)\n"
        "child.stdout.readline()\n"
        f"pathlib.Path({str(note)!r}).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    settings = load(
        comfy_url=None, comfy_port=0, comfy_command=f"{sys.executable} {script}", workspace_dir=tmp_path / "space"
    )
    server = SupervisedServer(settings, Folders(tmp_path / "i", tmp_path / "o", tmp_path / "space/temp"))
    server.start()
    pid = 0
    try:
        pid = int(eventually(lambda: note.exists() and note.read_text(), what="the child"))
    finally:
        server.close()
    try:
        eventually(lambda: not _is_alive(pid), timeout_s=2, what="the child's end")
    finally:
        if _is_alive(pid):
            os.kill(pid, signal.SIGKILL)


def _is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2][0] != "Z"
    except FileNotFoundError:
        return False


def test_a_worker_with_more_than_a_thousand_descriptors(rig: Rig) -> None:
    """select() takes none above 1023."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(4096, hard), hard))
    rig.engine.backend._session._drop_socket()
    held = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert rig.run(empty(9)).outputs
    finally:
        for fd in held:
            os.close(fd)
        rig.engine.backend._session._drop_socket()
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def test_a_frozen_comfyui_that_is_not_ours_does_not_go_on_with_a_job_given_up(tmp_path: Path) -> None:
    """What could not be stopped must be remembered, as after a stop that has no effect."""
    with EmbeddedServer(tmp_path / "comfy") as server, Rig(tmp_path, **server.shared) as rig:
        run = rig.start(slow(steps=1000, delay_ms=20))
        run.reach(Status.RUNNING, SLOW)
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        try:
            with pytest.raises(SetteeError):
                run.end()
        finally:
            os.kill(server.process.pid, signal.SIGCONT)
        started = time.monotonic()
        assert rig.run(empty(10)).outputs
        assert time.monotonic() - started < 5, "it waited for a job that was given up"


def test_an_answer_that_trickles_does_not_hold_up_a_cancel(tmp_path: Path) -> None:
    """The limits of urllib3 are per read: a body that comes byte by byte outlasts them all."""

    class Trickle(HttpDouble):
        def answer(self, ask: Ask) -> Reply:
            if ask.path.startswith("/object_info"):
                info = {"SaveImage": {"input": {"required": {}}, "output": [], "output_node": True}}
                return Reply(200, body=json.dumps(info).encode())
            if ask.path == "/queue":
                return Reply(200, body=b'{"queue_running": [], "queue_pending": []}')
            if ask.path.startswith("/history"):
                return Reply(200, body=b" " * 1000, rate=4)
            return Reply(503 if ask.path.startswith("/ws") else 200, body=b"{}")

    with Trickle() as server, Rig(tmp_path, comfy_url=server.origin) as rig:
        graph = {"1": {"class_type": "SaveImage", "inputs": {"filename_prefix": "a"}}}
        started = time.monotonic()
        with pytest.raises(SetteeError):
            rig.run(graph, timeout_s=2)
        assert time.monotonic() - started < 6


def test_a_prompt_whose_submission_was_not_answered_is_taken_back(tmp_path: Path) -> None:
    """On a ComfyUI that is not ours a timeout leaves the first prompt in the queue, and both run."""
    with EmbeddedServer(tmp_path / "comfy") as server, Rig(tmp_path, **server.shared) as rig:
        assert rig.run(empty(13)).outputs
        assert server.process is not None
        os.kill(server.process.pid, signal.SIGSTOP)
        run = rig.start(slow(steps=100, delay_ms=20))
        time.sleep(QUICK["comfy_unresponsive_s"] + 1.5)
        os.kill(server.process.pid, signal.SIGCONT)
        at_once = 0
        while run.is_alive():
            queue = rig.queue()
            at_once = max(at_once, len(queue["queue_running"]) + len(queue["queue_pending"]))
            time.sleep(0.02)
        assert run.end().outputs
        assert at_once == 1
