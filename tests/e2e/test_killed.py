"""A worker that is killed outright while ComfyUI, which is not its own, runs its job."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.support.embedded import EmbeddedServer
from tests.support.rig import ROOT, Rig, empty, files_below, saving
from tests.support.waiting import eventually

#: A worker in a process of its own that runs a job and tells of its end.
_CODE = """
import json, sys; from pathlib import Path; from tests.support.rig import Rig
root, settings, graph = Path(sys.argv[1]), json.loads(sys.argv[2]), json.loads(sys.argv[3])
with Rig(root, **settings) as rig:
    print("starts", flush=True); rig.run(graph); print("ended", flush=True); sys.stdin.read()
"""

_BATCHES = {"images": ["1", 0], "filename_prefix": "old", "batches": 16_000, "requeue": 0}
_STEPS = {"image": ["1", 0], "seed": 1, "steps": 10_000, "delay_ms": 20}
OLD_JOBS: dict[str, Any] = {
    # Of the embedded server, whatever server the other tests use.
    "runs": saving(images=["5", 0]) | {"5": {"class_type": "SetteeSampler", "inputs": _STEPS}},
    "requeues": empty(save=False) | {"2": {"class_type": "BatchManagerLike", "inputs": _BATCHES}},
    "posts": empty(save=False) | {"2": {"class_type": "BatchManagerLike", "inputs": {**_BATCHES, "how": "post"}}},
}


@pytest.mark.parametrize("shares", [True, False])
@pytest.mark.parametrize("kind", OLD_JOBS)
def test_nothing_of_a_killed_workers_job_runs_on_or_reaches_the_next(tmp_path: Path, kind: str, shares: bool) -> None:
    with EmbeddedServer(tmp_path / "comfy") as server:
        settings = server.shared if shares else {"comfy_url": server.url}
        arguments = [json.dumps(settings, default=str), json.dumps(OLD_JOBS[kind])]
        command = [sys.executable, "-c", _CODE, str(tmp_path / "own"), *arguments]
        with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as worker:
            running = lambda: requests.get(f"{server.url}/queue", timeout=5).json()["queue_running"]  # noqa: E731
            eventually(running, timeout_s=60, what="the job")
            worker.kill()
        eventually(running, what="it running on")  # between two prompts of one job none runs
        theirs = requests.post(f"{server.url}/prompt", json={"prompt": empty(prefix="theirs")}, timeout=5).json()
        with Rig(tmp_path / "own", **settings) as rig:
            result = rig.run(empty(3))
            assert [output.filename for output in result.outputs] == ["made_00001_.png"]
            rig.engine.backend._session.prompts.settle()
            eventually(rig.is_idle, what="an idle ComfyUI")
            history = requests.get(f"{server.url}/history", timeout=5).json()
            assert set(history) == {theirs["prompt_id"]}
            if shares:
                assert not [path for path in files_below(*rig.folders) if path.is_file()]
