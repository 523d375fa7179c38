"""Workers with a real ComfyUI of their own: COMFY_DIR and COMFY_PYTHON name it, COMFY_ARGS what it needs (`--cpu`)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from settee.base.errors import ComfyUnavailable, ExecutionFailed, WorkflowRejected
from tests.support.memory import resident
from tests.support.rig import Rig, empty, files_below

COMFY_DIR = os.environ.get("COMFY_DIR")

pytestmark = pytest.mark.skipif(COMFY_DIR is None, reason="COMFY_DIR names no ComfyUI")

NODES = """
import asyncio, os, sys, time, traceback
import torch

def exits(): sys.exit("no model in /opt/models/sd")
async def exits_later():
    await asyncio.sleep(0.01)
    raise SystemExit(3)
def quotes_its_traceback():
    try: open("/opt/secret/model.bin")
    except OSError: raise RuntimeError("\\x1b[31mcannot load:\\x1b[0m " + traceback.format_exc())
def crashes():
    try: open("/opt/secret/model.bin")
    except OSError: traceback.print_exc(); sys.stderr.flush()
    print("\\x1b[31mabout to crash\\x1b[0m", flush=True)
    time.sleep(0.5)  # what ran is told by another thread
    os.kill(os.getpid(), 11)
    time.sleep(60)

def node(work):
    class Node:
        RETURN_TYPES, FUNCTION, CATEGORY, OUTPUT_NODE = (), "go", "tests", True
        INPUT_TYPES = classmethod(lambda cls: {"required": {}})
        go = staticmethod(work)
    return Node

class TrainingData:
    RETURN_TYPES, FUNCTION, CATEGORY = ("LATENT", "CONDITIONING"), "go", "tests"
    INPUT_TYPES = classmethod(lambda cls: {"required": {}})
    def go(self): return {"samples": torch.zeros(1, 4, 8, 8)}, [[torch.zeros(1, 2, 3), {}]]

class Checks(TrainingData):
    OUTPUT_NODE = True
    def go(self): return {}, None
class ExitsInValidateInputs(Checks):
    VALIDATE_INPUTS = classmethod(lambda cls: sys.exit("no model"))
class ExitsInIsChanged(Checks):
    IS_CHANGED = classmethod(lambda cls: sys.exit("no model"))

NODE_CLASS_MAPPINGS = {
    **{work.__name__: node(work) for work in (exits, exits_later, quotes_its_traceback, crashes)},
    **{each.__name__: each for each in (TrainingData, ExitsInValidateInputs, ExitsInIsChanged)},
}
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ComfyUI's base folder, with custom nodes of the tests' own."""
    folder: Path = tmp_path_factory.mktemp("base")
    for name in ("custom_nodes", "models"):
        (folder / name).mkdir()
    (folder / "custom_nodes" / "tests.py").write_text(NODES)
    return folder


@pytest.fixture(scope="module")
def real(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Rig]:
    args = f"{os.environ.get('COMFY_ARGS', '')} --base-directory {base}"
    waits = {"comfy_unresponsive_s": 60, "comfy_stall_s": 20, "comfy_start_timeout_s": 120, "job_timeout_s": 150}
    where = {"comfy_dir": COMFY_DIR, "comfy_command": None, "comfy_args": args}
    rig = Rig(tmp_path_factory.mktemp("real"), embedded=True, **where, **waits)
    rig.engine.start()
    try:
        rig.engine.backend.wait_ready(120)
        yield rig
    finally:
        rig.engine.close()


def alone(class_type: str) -> dict[str, Any]:
    return {"5": {"class_type": class_type, "inputs": {}}}


@pytest.mark.parametrize(("node", "said"), [("exits", "no model in sd"), ("exits_later", "3")])
def test_a_node_that_exits_fails_its_job_and_no_other(real: Rig, node: str, said: str) -> None:
    with pytest.raises(ExecutionFailed, match=rf"node 5 \({node}\) failed: SystemExit: {said}"):
        real.run(alone(node), timeout_s=20)
    generation = real.server.generation
    assert real.run(empty(1)).outputs
    assert real.server.generation == generation


def test_an_exit_in_a_nodes_checks_is_an_error_of_its_own(real: Rig) -> None:
    """As any exception there: one refuses the prompt, the other has the node run again."""
    save = {"7": {"class_type": "SaveLatent", "inputs": {"samples": ["5", 0], "filename_prefix": "x"}}}
    with pytest.raises(WorkflowRejected, match="node 5, VALIDATE_INPUTS: SystemExit: no model"):
        real.run({**alone("ExitsInValidateInputs"), **save}, timeout_s=20)
    generation = real.server.generation
    assert real.run({**alone("ExitsInIsChanged"), **empty(2)}, timeout_s=20).outputs
    assert real.server.generation == generation


def test_a_failure_quotes_no_traceback_and_no_colours(real: Rig) -> None:
    with pytest.raises(ExecutionFailed) as caught:
        real.run(alone("quotes_its_traceback"))
    said = "cannot load: FileNotFoundError: [Errno 2] No such file or directory: 'model.bin'"
    assert caught.value.details["exception_message"] == said


def test_nothing_of_a_job_stays_on_the_disk(real: Rig, base: Path) -> None:
    graph = empty(2)
    graph["2"] = {"class_type": "PreviewImage", "inputs": {"images": ["1", 0]}}
    graph["3"] = {"class_type": "EmptyLatentImage", "inputs": {"width": 64, "height": 64, "batch_size": 1}}
    graph["4"] = {"class_type": "SaveLatent", "inputs": {"samples": ["3", 0], "filename_prefix": "latent"}}
    if "SaveTrainingDataset" in real.engine.backend.node_registry():
        graph["6"] = {"class_type": "TrainingData", "inputs": {}}
        inputs = {"latents": ["6", 0], "conditioning": ["6", 1], "folder_name": "set", "shard_size": 10}
        graph["7"] = {"class_type": "SaveTrainingDataset", "inputs": inputs}
    assert COMFY_DIR is not None
    before = tree(base), tree(Path(COMFY_DIR))
    made = {output.filename for output in real.run(graph).outputs}
    assert {"made_00001_.png", "latent_00001_.latent"} <= made
    assert "7" not in graph or {"shard_0000.pkl", "metadata.json"} <= made
    assert (tree(base), tree(Path(COMFY_DIR))) == before
    assert files_below(*real.folders) == []


def tree(folder: Path) -> dict[str, int]:
    """Files with the times of their last change; what Python compiles is no job's."""
    return {
        str(path): path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.suffix != ".pyc"
    }


def test_tensors_of_earlier_jobs_do_not_add_up_in_memory(real: Rig) -> None:
    def run(colour: int) -> int:
        real.run(empty(colour, size=2048))
        return resident("VmRSS", real.server._process.pid)

    first = [run(colour) for colour in (10, 11)][-1]
    assert [run(colour) for colour in range(12, 20)][-1] - first < 4 * 2048**2 * 3 * 4  # 8 jobs, at most 4 tensors


def test_a_crash_shows_what_was_printed_without_tracebacks(real: Rig) -> None:
    with pytest.raises(ComfyUnavailable, match=r"went away twice while it ran node 5 \(crashes\)") as caught:
        real.run(alone("crashes"))
    log = caught.value.details["log"]
    assert "about to crash" in log
    assert any("FileNotFoundError" in line for line in log)
    assert not any("\x1b" in line or ", line " in line or "Traceback" in line or "/opt/" in line for line in log)
    assert real.run(empty(3)).outputs
